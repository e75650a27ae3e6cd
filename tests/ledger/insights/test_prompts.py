"""Prefixes, long prompts and cut answers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from openclawd.ledger.insights import ModelSize, PrefixSums, Sample
from openclawd.ledger.insights.prompts import prompt_findings, wilson_lower

LOAD = Sample(
    hour=1,
    principal="user:a",
    model="m",
    op="chat",
    requests=1000,
    prompt_tokens=400_000,
    cached_tokens=100_000,
    completion_tokens=100_000,
)


def prefix(length: int = 1024, times: int = 100, **changes: object) -> PrefixSums:
    values: dict[str, object] = {
        "model": "m",
        "principal": "user:a",
        "digest": f"{length:032x}",
        "parent": "",
        "length": length,
        "requests": times,
        "computed_tokens": times * length,
        "prompt_tokens": times * (length + 100),
        "cached_tokens": 0,
        "completion_tokens": times * 200,
    }
    return PrefixSums(**{**values, **changes})  # type: ignore[arg-type]


def kinds(findings: list[object]) -> list[str]:
    return [finding.kind for finding in findings]  # type: ignore[attr-defined]


def test_a_prefix_that_is_computed_each_time() -> None:
    (found,) = prompt_findings([LOAD], [prefix()], {})
    assert (found.kind, found.tokens, found.principal) == ("repeated-prefix", 99 * 1024, "user:a")
    assert "1,024 tokens" in found.seen
    assert "system_prompts" in found.do


def test_one_that_is_cached_is_fine() -> None:
    assert not prompt_findings([LOAD], [prefix(computed_tokens=5 * 1024)], {})


def test_one_of_many_principals_names_none_and_tells_of_pinning() -> None:
    rows = [prefix(times=30, principal=name) for name in ("user:a", "user:b", "user:c")]
    (found,) = prompt_findings([LOAD], rows, {})
    assert (found.principal, found.numbers["principals"]) == ("", 3)
    assert "once for everybody" in found.do


def test_the_advice_follows_the_configuration() -> None:
    size = ModelSize(model="m", parallel=1, context=1, kv_tokens=1, sharing="off")
    (found,) = prompt_findings([LOAD], [prefix()], {"m": size})
    assert "prefix_sharing" in found.do


def test_a_short_prefix_is_told_only_for_what_longer_ones_do_not_explain() -> None:
    long = prefix(4096, parent="short")
    short = prefix(1024, digest="short")
    assert [one.numbers["prefix_tokens"] for one in prompt_findings([LOAD], [long, short], {})] == [
        4096
    ]
    more = replace(short, requests=200, computed_tokens=200 * 1024)
    both = prompt_findings([LOAD], [long, more], {})
    assert [(one.numbers["prefix_tokens"], one.tokens) for one in both] == [
        (4096, 99 * 4096),
        (1024, 199 * 1024 - 99 * 1024),
    ]


def test_a_hundredth_of_what_the_model_computes_is_not_told() -> None:
    busy = replace(LOAD, requests=300_000, prompt_tokens=100_000_000, completion_tokens=9_000_000)
    assert not prompt_findings([busy], [prefix()], {})


def test_long_prompts_for_a_word() -> None:
    wordy = replace(
        LOAD, requests=100, prompt_tokens=300_000, cached_tokens=0, completion_tokens=300
    )
    (found,) = prompt_findings([wordy], [], {})
    assert (found.kind, found.principal, found.tokens) == ("long-prompts", "user:a", 300_000)
    assert "3,000 prompt tokens" in found.seen
    assert not prompt_findings([replace(wordy, op="embed")], [], {})
    assert not prompt_findings([replace(wordy, completion_tokens=50_000)], [], {})
    assert not prompt_findings([replace(wordy, cached_tokens=299_000)], [], {})


def test_long_prompts_with_one_beginning_are_told_once_and_by_it() -> None:
    row = prefix(64, times=100, computed_tokens=640, prompt_tokens=300_000, completion_tokens=300)
    deeper = replace(row, digest="d", parent=row.digest, length=256, computed_tokens=2560)
    samples = [
        replace(LOAD, requests=200, prompt_tokens=320_000, cached_tokens=0, completion_tokens=9_300)
    ]
    (found,) = prompt_findings(samples, [row, deeper], {})
    assert (found.kind, found.numbers["prefix"]) == ("long-prompts", row.digest)


def test_answers_that_are_cut() -> None:
    cut = replace(LOAD, cut_answers=600)
    (found,) = prompt_findings([cut], [], {})
    assert (found.kind, found.numbers["share"], found.tokens) == ("cut-answers", 0.6, 60_000)
    assert not prompt_findings([replace(LOAD, cut_answers=100)], [], {})


def test_money_goes_with_tokens() -> None:
    (found,) = prompt_findings([replace(LOAD, cost=5_000_000)], [prefix()], {})
    assert found.cost == 5_000_000 * 99 * 1024 // 500_000


def test_wilson() -> None:
    """Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263."""
    assert round(wilson_lower(81, 263), 4) == 0.2553
    assert wilson_lower(0, 10) < 1e-9


counts = st.integers(0, 10**7)
texts = st.sampled_from(["", "a", "b", "c"])
any_prefixes = st.builds(
    PrefixSums,
    model=texts,
    principal=texts,
    digest=texts,
    parent=texts,
    length=st.integers(0, 5000),
    requests=counts,
    computed_tokens=counts,
    prompt_tokens=counts,
    cached_tokens=counts,
    completion_tokens=counts,
    cut_answers=counts,
)
any_samples = st.builds(
    Sample,
    hour=counts,
    principal=texts,
    model=texts,
    op=st.sampled_from(["chat", "embed"]),
    requests=counts,
    prompt_tokens=counts,
    cached_tokens=counts,
    completion_tokens=counts,
    cut_answers=counts,
    cost=counts,
)


@given(st.lists(any_samples, max_size=6), st.lists(any_prefixes, max_size=8))
def test_anything_at_all_raises_nothing(samples: list[Sample], prefixes: list[PrefixSums]) -> None:
    for found in prompt_findings(samples, prefixes, {}):
        assert found.tokens > 0
        assert found.cost >= 0
