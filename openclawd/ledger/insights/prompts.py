"""Prompts that cost more than they need: prefixes computed again and again, long prompts for little
output, answers cut by limits.

Prompts are grouped by the keyed hash of what they begin with (`PrefixSums`), at several lengths; a
shorter prefix is told of only for what the longer ones found in it do not explain. What has no
known prefix is judged by principal and model.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from openclawd.ledger.insights.samples import WITHOUT_TEXT, Finding, ModelSize, PrefixSums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from openclawd.ledger.insights.samples import Sample

MIN_SHARE: Final = 0.01
"""What is less than a hundredth of the tokens that the model computed is not worth reading."""

MIN_WASTED_TOKENS: Final = 20_000
MIN_TIMES: Final = 20
"""A prefix that was computed less often may just have been evicted now and then."""

MIN_REQUESTS: Final = 20
LONG_PROMPT_TOKENS: Final = 1_000
LITTLE_OUTPUT: Final = 0.02
"""A long prompt with less than one token of answer for 50 of prompt: what is read to write it could
be shorter, or be shared."""

CUT_SHARE: Final = 0.2
"""With so many answers cut short (or more, by the lower end of Wilson's 95 % interval) the limit is
wrong, or the prompt."""

_Z_95: Final = 1.96
_DIGITS: Final = 12
"""Of a hash, in sentences."""


@dataclass(slots=True)
class _Group:
    """Requests with the same beginning, of all principals; or all of one principal's."""

    model: str
    digest: str = ""
    parent: str = ""
    length: int = 0
    requests: int = 0
    computed_prefix_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    cut_answers: int = 0
    by_principal: Counter[str] = field(default_factory=Counter)

    @property
    def computed_tokens(self) -> int:
        """Of the prompts."""
        return max(0, self.prompt_tokens - self.cached_tokens)

    @property
    def principal(self) -> str:
        """The only one, or none."""
        return next(iter(self.by_principal)) if len(self.by_principal) == 1 else ""

    @property
    def what(self) -> str:
        if not self.digest:
            return f"{self.requests:,} requests"
        name = self.digest[:_DIGITS]
        return f"{self.requests:,} requests with the same first {self.length:,} tokens ({name})"

    def add(self, one: PrefixSums | Sample, *, sign: int = 1) -> None:
        self.requests += sign * one.requests
        self.prompt_tokens += sign * one.prompt_tokens
        self.cached_tokens += sign * one.cached_tokens
        self.completion_tokens += sign * one.completion_tokens
        self.cut_answers += sign * one.cut_answers
        self.by_principal[one.principal] += sign * one.requests


class PromptFindings:
    """The findings about prompts of one report."""

    def __init__(
        self,
        samples: Iterable[Sample],
        prefixes: Iterable[PrefixSums],
        sizes: Mapping[str, ModelSize],
    ) -> None:
        self._sizes = sizes
        self._sums: dict[tuple[str, str], _Group] = {}
        self._computed: Counter[str] = Counter()
        self._costs: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._rows: dict[tuple[str, str], list[PrefixSums]] = defaultdict(list)
        self._groups: dict[tuple[str, str], _Group] = {}
        for sample in samples:
            self._take_sample(sample)
        for row in prefixes:
            self._take_prefix(row)

    def _take_sample(self, sample: Sample) -> None:
        self._computed[sample.model] += max(0, sample.prompt_tokens - sample.cached_tokens)
        self._computed[sample.model] += sample.completion_tokens
        self._costs[sample.model] += sample.cost
        self._tokens[sample.model] += sample.tokens
        if sample.op not in WITHOUT_TEXT:
            key = (sample.principal, sample.model)
            self._sums.setdefault(key, _Group(sample.model)).add(sample)

    def _take_prefix(self, row: PrefixSums) -> None:
        key = (row.model, row.digest)
        self._rows[key].append(row)
        if key not in self._groups:
            self._groups[key] = _Group(row.model, row.digest, row.parent, row.length)
        self._groups[key].computed_prefix_tokens += row.computed_tokens
        self._groups[key].add(row)

    def find(self) -> list[Finding]:
        return [
            *self._repeated_prefixes(),
            *self._grouped(_is_long_for_little, self._long_prompt),
            *self._grouped(_is_cut_often, self._cut_answers),
        ]

    # ---- prefixes that are computed again and again ----

    def _repeated_prefixes(self) -> list[Finding]:
        """The longest first; what they explain is taken off what they begin with."""
        found = []
        explained: Counter[tuple[str, str]] = Counter()
        for group in sorted(self._groups.values(), key=lambda one: -one.length):
            everything = max(0, group.computed_prefix_tokens - group.length)
            own = everything - explained[group.model, group.digest]
            times = group.computed_prefix_tokens // max(1, group.length)
            if self._is_worth_it(group.model, own) and times >= MIN_TIMES:
                found.append(self._repeated(group, wasted=own, times=times))
                self._pass_on(group, everything, explained)
            else:
                self._pass_on(group, explained[group.model, group.digest], explained)
        return found

    def _pass_on(self, group: _Group, wasted: int, explained: Counter[tuple[str, str]]) -> None:
        """Of so many tokens wasted in a prefix, its parent has its share by length."""
        parent = self._groups.get((group.model, group.parent))
        if parent is not None and group.length > 0:
            share = wasted * parent.length // group.length
            explained[parent.model, parent.digest] += share

    def _repeated(self, group: _Group, *, wasted: int, times: int) -> Finding:
        num_principals = len(group.by_principal)
        return Finding(
            kind="repeated-prefix",
            model=group.model,
            principal=group.principal,
            seen=f"{group.what} computed these about {times:,} times"
            + (f", for {num_principals} principals" if num_principals > 1 else ""),
            do=_advice_on_sharing(self._sizes.get(group.model), num_principals),
            tokens=wasted,
            cost=self._cost(group.model, wasted),
            numbers={
                "prefix": group.digest,
                "prefix_tokens": group.length,
                "requests": group.requests,
                "times_computed": times,
                "computed_tokens": group.computed_prefix_tokens,
                "principals": num_principals,
            },
        )

    # ---- by prefix, then by principal ----

    def _grouped(
        self, is_bad: Callable[[_Group], bool], describe: Callable[[_Group], Finding]
    ) -> list[Finding]:
        """Findings about the shortest prefixes of which something is true, and about what is left
        of each principal's requests."""
        found, told = [], set()
        left = {key: _copy(group) for key, group in self._sums.items()}
        for group in sorted(self._groups.values(), key=lambda one: one.length):
            key = (group.model, group.digest)
            if (group.model, group.parent) in told:
                told.add(key)
            elif is_bad(group) and self._is_worth_it(group.model, describe(group).tokens):
                told.add(key)
                found.append(describe(group))
                for row in self._rows[key]:
                    if rest := left.get((row.principal, row.model)):
                        rest.add(row, sign=-1)
        for (principal, model), rest in left.items():
            rest.by_principal = Counter({principal: 1})
            if is_bad(rest) and self._is_worth_it(model, describe(rest).tokens):
                found.append(describe(rest))
        return found

    def _long_prompt(self, group: _Group) -> Finding:
        prompt, output = _mean(group.prompt_tokens, group), _mean(group.completion_tokens, group)
        return Finding(
            kind="long-prompts",
            model=group.model,
            principal=group.principal,
            seen=f"{group.what} have {prompt:,.0f} prompt tokens on average"
            f" for {output:,.1f} tokens of answer",
            do="shorten the prompt, or put what never changes first, so that it is computed once;"
            " `embed` may do where the answer is only a class or a number",
            tokens=group.computed_tokens,
            cost=self._cost(group.model, group.computed_tokens),
            numbers={
                "prefix": group.digest,
                "requests": group.requests,
                "prompt_tokens": group.prompt_tokens,
                "cached_tokens": group.cached_tokens,
                "completion_tokens": group.completion_tokens,
            },
        )

    def _cut_answers(self, group: _Group) -> Finding:
        share = group.cut_answers / max(1, group.requests)
        tokens = round(group.completion_tokens * share)
        return Finding(
            kind="cut-answers",
            model=group.model,
            principal=group.principal,
            seen=f"{group.what}: {share:.0%} of the answers were cut off by max_tokens",
            do="raise max_tokens or max_output_tokens if the ends are needed; else ask for short"
            " answers in the prompt, or give a stop string",
            tokens=tokens,
            cost=self._cost(group.model, tokens),
            numbers={
                "prefix": group.digest,
                "requests": group.requests,
                "cut_answers": group.cut_answers,
                "share": round(share, 4),
            },
        )

    # ---- what it is worth ----

    def _is_worth_it(self, model: str, tokens: int) -> bool:
        return tokens >= max(MIN_WASTED_TOKENS, MIN_SHARE * self._computed[model])

    def _cost(self, model: str, tokens: int) -> int:
        return self._costs[model] * tokens // max(1, self._tokens[model])


def _copy(group: _Group) -> _Group:
    copy = _Group(group.model)
    for name in ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cut_answers"):
        setattr(copy, name, getattr(group, name))
    return copy


def _mean(tokens: int, group: _Group) -> float:
    return tokens / max(1, group.requests)


def _is_long_for_little(group: _Group) -> bool:
    return (
        group.requests >= MIN_REQUESTS
        and _mean(group.prompt_tokens, group) >= LONG_PROMPT_TOKENS
        and group.completion_tokens <= LITTLE_OUTPUT * group.prompt_tokens
    )


def _is_cut_often(group: _Group) -> bool:
    if group.requests < MIN_REQUESTS:
        return False
    return wilson_lower(group.cut_answers, group.requests) >= CUT_SHARE


def wilson_lower(hits: int, num: int) -> float:
    """The lower end of the 95 % interval of a share (E. B. Wilson 1927, "Probable Inference", JASA
    22)."""
    share, z2 = min(1.0, max(0.0, hits / num)), _Z_95**2
    centre = share + z2 / (2 * num)
    half = _Z_95 * math.sqrt(share * (1 - share) / num + z2 / (4 * num * num))
    return (centre - half) / (1 + z2 / num)


def _advice_on_sharing(size: ModelSize | None, num_principals: int) -> str:
    if size is not None and size.sharing == "off":
        return "switch `prefix_sharing` of the model on: every request computes everything now"
    if num_principals > 1 and (size is None or size.sharing == "principal"):
        return (
            "put it into `system_prompts` of the model: it is then computed once for everybody;"
            " prefixes are not shared between principals otherwise"
        )
    return (
        "put it into `system_prompts` of the model, which keeps it; or give the model more"
        " `kv_tokens` or a longer `keep_alive`, so that it is still there for the next request"
    )


def prompt_findings(
    samples: Sequence[Sample], prefixes: Sequence[PrefixSums], sizes: Mapping[str, ModelSize]
) -> list[Finding]:
    """Everything that is worth telling about prompts."""
    return PromptFindings(samples, prefixes, sizes).find()
