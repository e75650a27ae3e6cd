"""How long steps take, learned from those that were, and what a prefill may therefore take.

Owns the promise that running streams keep their pace while prompts are read: a step with a part of
a prompt in it takes at most `MAX_STRETCH` times as long as the same step without, as long as at
least two streams run for each prompt. With p prompts beside d streams it may take (2 p / d)**2
times that: where many wait for their first token, small parts would keep them all waiting for the
pace of a few. Knows no sequences and no clock; durations come in.

A step's duration is close to linear in its tokens: with SmolLM2 on one core, 5.0 to 6.4 ms more
for each prompt token, whether a step holds 8 or 480 of them, beside 0, 4 or 8 decodes; on two
cores 4.4 ms in parts of 11 to 20 and 3.1 in parts of 64 or more (measured 2026-11-23). So one mean
a token is enough to plan with, and small parts are worth avoiding where nobody needs them.
"""

from __future__ import annotations

from typing import Final

MAX_STRETCH: Final = 3.0
"""Steps that take up to 4 times as long are promised; the rest is for what estimates miss. With s
times, a prompt beside running streams takes s / (s - 1) times as long as alone: here 1.5."""

SHARED_STRETCH: Final = 2.4
"""The same where a step has a part of a prompt, and another prompt is computed aside between two of
them: the two together stay below 4."""

PAUSE_SLOWNESS: Final = 1.3
"""A step in a pause of what is computed aside finds the caches full of that, and takes a fifth
longer (25 ms, 20.9 before; SmolLM2, four streams, 2026-12-01). So much slower is no news; what is
slower still, or faster, shows that the streams' own pace has changed."""

MIN_CHUNK: Final = 4
"""A prefill always goes on by this many tokens, however fast the decodes are."""

_WEIGHT_OF_NEWEST: Final = 0.2
"""A change of load is followed within about ten steps; one slow step moves little."""


class Pace:
    """The running means of one model's steps. Durations are seconds."""

    def __init__(self) -> None:
        self._decode_step_s: dict[int, float] = {}
        self._prefill_token_s: float | None = None

    def note(
        self,
        num_decode_tokens: int,
        num_prefill_tokens: int,
        duration_s: float,
        *,
        in_pause: bool = False,
    ) -> None:
        """A step took this long. Decode tokens are those that give an output, guesses included. One
        that was `in_pause` of what is computed aside may have been slow for that alone."""
        if num_prefill_tokens == 0:
            before = self._decode_step_s.get(num_decode_tokens)
            if in_pause and before is not None:
                duration_s = min(duration_s, max(before, duration_s / PAUSE_SLOWNESS))
            self._decode_step_s[num_decode_tokens] = _mean(before, duration_s)
        else:
            mean_s = duration_s / (num_decode_tokens + num_prefill_tokens)
            decodes_s = self._decode_step_s.get(num_decode_tokens, num_decode_tokens * mean_s)
            rest_s = (duration_s - decodes_s) / num_prefill_tokens
            # Never next to nothing, or one quick step would let a whole prompt in.
            self._prefill_token_s = _mean(self._prefill_token_s, max(rest_s, mean_s / 2))

    def max_prefill_tokens(
        self, num_decode_tokens: int, num_prompts: int = 1, *, stretch: float = MAX_STRETCH
    ) -> int | None:
        """How many tokens of `num_prompts` prompts may be computed beside these decodes; None while
        nothing is known that would forbid any."""
        step_s = self.decode_step_s(num_decode_tokens)
        if step_s is None or self._prefill_token_s is None:
            return None
        stretch *= max(1.0, 2 * num_prompts / max(1, num_decode_tokens)) ** 2
        return max(MIN_CHUNK, int((stretch - 1) * step_s / self._prefill_token_s))

    def max_aside_s(self, num_decode_tokens: int, *, stretch: float = MAX_STRETCH) -> float:
        """How long a prefill may compute before the next step of these decodes."""
        return (stretch - 1) * (self.decode_step_s(num_decode_tokens) or 0.0)

    def decode_step_s(self, num_tokens: int) -> float | None:
        """About how long a step of just these decodes takes. Where there was none like it, from the
        nearest: never less than that of fewer tokens, nor more than theirs in proportion."""
        if num_tokens in self._decode_step_s:
            return self._decode_step_s[num_tokens]
        known = [each for each in self._decode_step_s if each < num_tokens]
        if known:
            nearest = max(known)
            return self._decode_step_s[nearest] * num_tokens / nearest
        return self._decode_step_s[min(self._decode_step_s)] if self._decode_step_s else None

    def a_guess_pays(self, num_tokens: int) -> bool:
        """Is a step of these decodes so far from busy that one token more is cheap? Then it is
        worth guessing what comes next. Where every token costs the same it never is."""
        step_s = self.decode_step_s(num_tokens)
        if step_s is None or self._prefill_token_s is None:
            return True
        return step_s / num_tokens > 1.5 * self._prefill_token_s


def _mean(before: float | None, newest: float) -> float:
    return newest if before is None else before + _WEIGHT_OF_NEWEST * (newest - before)
