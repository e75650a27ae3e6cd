"""Whose place a request may take that is owed one: fair preemption among equals in priority. Pure.

A principal's share of the places is what is due to it by weights, among those who are active, and
one at least. One that stays within its share with a request more, and has been served no more than
the other, may take places of one that keeps its share without them, in whole places: of the one
furthest above its share, the newest first.

It cannot go to and fro: who gives up a place has its share but for a part of a place, so it cannot
claim it back, and one that was set aside is safe until it was served `SAFE_TOKENS` more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from openclawd.admission.fairness import Entry, Ticket, comes_before

if TYPE_CHECKING:
    from collections.abc import Iterable

    from openclawd.admission.fairness import Account, FairLine

SAFE_TOKENS: Final = 8
"""Copying what was computed to the host's memory and back costs less than one token
(docs/structure.md, "One step"), so what this bounds is how often a stream may pause."""


def choose_victims(
    claimant: Entry[Ticket],
    running: Iterable[Entry[Ticket]],
    line: FairLine[Ticket],
    *,
    num_places: int,
    num_needed: int,
    max_places: int,
) -> list[Entry[Ticket]]:
    """Whom to set aside so that `num_needed` places become free, of at most `max_places`; nobody if
    that is not the claimant's due. `num_places` are there for all of `running`."""

    def share(account: Account[Ticket]) -> float:
        return max(1.0, line.share(account, num_places))

    if claimant.account.places + claimant.weight > share(claimant.account):
        return []
    victims: list[Entry[Ticket]] = []
    held = {entry.account: entry.account.places for entry in running}
    newest_first = sorted(running, key=_start_number, reverse=True)
    rest = [each for each in newest_first if _may_lose(each, claimant)]
    while num_needed > 0:
        rest = [
            each for each in rest if held[each.account] - each.weight >= int(share(each.account))
        ]
        victim = max(rest, key=lambda each: held[each.account] - share(each.account), default=None)
        if victim is None or (max_places := max_places - victim.weight) < 0:
            return []
        rest.remove(victim)
        victims.append(victim)
        held[victim.account] -= victim.weight
        num_needed -= victim.weight
    return victims


def _may_lose(entry: Entry[Ticket], claimant: Entry[Ticket]) -> bool:
    is_other = entry.account is not claimant.account
    is_safe = entry.charged < entry.safe_until
    return is_other and not is_safe and comes_before(claimant.account, entry.account)


def _start_number(entry: Entry[Ticket]) -> int:
    return entry.start_number
