"""What a request takes of its rate limits and budgets, from before its reservation to its end.

Owns the order (rates, then budgets, both before anything is on disk) and what is given back. How
much there is, and who waits, is admission's.

Invariant: whatever was taken is settled with what was computed, or given back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openclawctl.wire.operations import EncodingParams
from openclawd.admission.budget_rules import Amount, Need
from openclawd.admission.budgets import Fallback
from openclawd.server.fallback import use_fallback

if TYPE_CHECKING:
    from openclawd.admission.budgets import Reserved
    from openclawd.admission.rates import RatePlace
    from openclawd.server.budgets import Reservation
    from openclawd.server.inference import Inference
    from openclawd.server.lanes import Slot
    from openclawd.server.rates import Charge


class Account:
    """Of one request. Takes everything in `take`, and once; then it is settled or given back.

    It does not keep its request: both would be garbage that only a collection of it finds, and what
    many requests leave so is a pause for all.
    """

    def __init__(self) -> None:
        self._charge: Charge | None = None
        self.reservation: Reservation | None = None

    async def take(self, inference: Inference, slot: Slot) -> None:
        """Charge the prompt to every rate limit and hold the worst case in every budget, waiting
        where the rules say so; perhaps with a lower `max_tokens`. `slot` is what it holds in its
        lanes. Raises `RateLimited`, `LimitExceeded`, `BudgetExceeded`, `Overloaded` or
        `UseFallback`."""
        service, subject = inference.service, inference.subject
        self._charge = await service.rates.admit(
            subject,
            inference.prompt_tokens,
            on_queued=lambda place: _wait_for_rate(inference, slot, place),
        )
        taken = await service.budgets.reserve(
            subject,
            need_of(inference),
            on_queued=lambda position: _wait_for_budget(inference, slot, position),
            is_fallback=bool(inference.fallback_from),
        )
        if isinstance(taken, Fallback):
            use_fallback(inference, taken.model, taken.problem)
        self.reservation = taken
        lower_maximum(inference, taken)

    def completion(self, num_tokens: int) -> None:
        """So many tokens more have been computed."""
        if self._charge is not None:
            self._charge.completion(num_tokens)

    def settle(self, *, tokens: int, money: int) -> None:
        """It came to this. Only once the ledger has it, or cannot."""
        if self.reservation is not None:
            self.reservation.settle(Amount(tokens, money))

    def refund(self) -> None:
        """Nothing was computed: the prompt's tokens count in no rate limit."""
        if self._charge is not None:
            self._charge.refund()

    def undo(self) -> None:
        """It goes on as another request, which asks anew: this one counts in no rate limit."""
        if self._charge is not None:
            self._charge.undo()


def need_of(inference: Inference) -> Need:
    """The worst case by the tokens that each choice may have."""
    prompt, num_choices = inference.prompt_tokens, inference.num_choices
    price = inference.service.prices.of(inference.model.name)
    params = inference.params
    least = 0 if isinstance(params, EncodingParams) else params.sampling.min_tokens or 1

    def worst(max_completion: int) -> Amount:
        completion = num_choices * max_completion
        return Amount(prompt + completion, price.worst_case(prompt, completion))

    return Need(worst, max_completion=inference.max_tokens, least_completion=least)


def lower_maximum(inference: Inference, taken: Reservation | Reserved) -> None:
    """To what a budget leaves, of which the client hears."""
    if taken.shrunk_by:
        inference.exchange.warn(
            "max-tokens-lowered",
            f"budget {taken.shrunk_by} leaves {taken.max_completion} completion tokens; "
            f"max_tokens was {inference.max_tokens}",
        )
    inference.max_tokens = taken.max_completion


def _wait_for_rate(inference: Inference, slot: Slot, place: RatePlace) -> None:
    slot.must_wait()
    data = {"position": place.position, "eta_s": place.eta_s, "rule": place.rule}
    inference.note_queued(data)


def _wait_for_budget(inference: Inference, slot: Slot, position: int) -> None:
    slot.must_wait()
    inference.note_queued({"position": position, "eta_s": None})
