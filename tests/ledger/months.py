"""Months of use for tests: seeded, with daily and weekly patterns, bursts, growth and heavy tails.

Plain months have what every installation has and nobody wants to be told of: busy and quiet days, a
job each night, prefixes that are computed anew now and then. The planted cases come on top.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass, field, replace
from statistics import median

from openclawd.ledger.insights import ModelPeaks, ModelSize, PrefixSums, Sample

FIRST_DAY = 20_500
"""2026-02-16, a Monday."""

NUM_DAYS = 30
NOW_HOUR = (FIRST_DAY + NUM_DAYS) * 24

MODELS = ("smollm2", "qwen", "embedder")


@dataclass(frozen=True)
class Kind:
    """How a principal uses a model. `rate` is requests in a busy hour; `noise` the standard
    deviation of the logarithm of a day's and an hour's rate; `prompt` and `completion` are medians
    of log-normal sizes, whose logarithms have the standard deviation `tail`."""

    principal: str
    model: str
    shape: str
    rate: float
    prompt: float
    completion: float
    noise: float = 0.3
    tail: float = 1.0
    growth: float = 0.0
    cut: float = 0.05


KINDS = (
    Kind("user:alice", "smollm2", "office", 12, 300, 150),
    Kind("user:bob", "smollm2", "office", 6, 900, 200, tail=1.2),
    Kind("user:carol", "qwen", "office", 6, 500, 250, growth=0.8),
    Kind("user:dave", "qwen", "rare", 8, 700, 300, noise=0.6, tail=1.3),
    Kind("key:website", "smollm2", "day", 40, 250, 120, noise=0.25),
    Kind("key:website", "qwen", "day", 15, 600, 180, noise=0.3, growth=-0.4),
    Kind("key:nightly", "qwen", "night", 60, 800, 60, noise=0.15, tail=0.6),
    Kind("key:search", "embedder", "day", 80, 200, 0, noise=0.3, cut=0.0),
)

SIZES = (
    ModelSize(model="smollm2", parallel=8, context=4096, kv_tokens=16384),
    ModelSize(model="qwen", parallel=8, context=8192, kv_tokens=32768),
    ModelSize(model="embedder", parallel=4, context=1024, kv_tokens=4096),
)

PEAKS = (
    ModelPeaks(model="smollm2", days=30, slots=8, context=3500, kv_tokens=12000),
    ModelPeaks(model="qwen", days=30, slots=6, context=6100, kv_tokens=21000),
    ModelPeaks(model="embedder", days=30, slots=3, context=800, kv_tokens=2200),
)


@dataclass
class Month:
    """What `analyse` is given."""

    samples: list[Sample]
    prefixes: list[PrefixSums] = field(default_factory=list)
    peaks: list[ModelPeaks] = field(default_factory=lambda: list(PEAKS))
    sizes: list[ModelSize] = field(default_factory=lambda: list(SIZES))


def plain_month(seed: int, *, num_days: int = NUM_DAYS) -> Month:
    rng = random.Random(seed)
    kinds = [_varied(rng, kind) for kind in KINDS]
    samples = [sample for kind in kinds for sample in _samples(rng, kind, num_days)]
    return Month(samples, prefixes=_prefixes(rng, samples))


def with_spike(month: Month, seed: int, *, factor: float = 10.0) -> tuple[Month, str]:
    """A working day on which one principal had `factor` times what it usually has on that weekday;
    and which principal that is."""
    rng = random.Random(seed)
    principal, model = rng.choice([(k.principal, k.model) for k in KINDS if k.shape != "rare"])
    by_day: Counter[int] = Counter()
    for s in month.samples:
        if (s.principal, s.model) == (principal, model):
            by_day[s.hour // 24] += s.tokens
    day = rng.choice([day for day in sorted(by_day) if (day - FIRST_DAY) % 7 < 5])
    usual = median(by_day[other] for other in by_day if (other - day) % 7 == 0)
    return replace_samples(month, principal, model, day, factor * usual / by_day[day]), principal


def replace_samples(month: Month, principal: str, model: str, day: int, factor: float) -> Month:
    def changed(sample: Sample) -> Sample:
        if (sample.principal, sample.model, sample.hour // 24) != (principal, model, day):
            return sample
        names = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "cut_answers")
        return replace(sample, **{name: round(getattr(sample, name) * factor) for name in names})

    return replace(month, samples=[changed(sample) for sample in month.samples])


def with_repeated_prefix(month: Month, seed: int, *, num_times: int = 400) -> Month:
    """A prefix of 5,000 tokens that was computed `num_times` times, by several principals, as the
    daemon would have written it down."""
    rng = random.Random(seed)
    principals = ["user:alice", "user:bob", "user:carol"][: rng.randint(1, 3)]
    share = num_times // len(principals)
    rows, samples = [], []
    for number, principal in enumerate(principals):
        times = share + (num_times - share * len(principals)) * (number == 0)
        parent = ""
        for length in (64, 256, 1024, 4096):
            rows.append(
                PrefixSums(
                    model="smollm2",
                    principal=principal,
                    digest=f"planted{length}",
                    parent=parent,
                    length=length,
                    requests=times,
                    computed_tokens=times * length,
                    prompt_tokens=times * 5_300,
                    cached_tokens=0,
                    completion_tokens=times * 200,
                )
            )
            parent = f"planted{length}"
        for day in range(NUM_DAYS):
            num = times * (day + 1) // NUM_DAYS - times * day // NUM_DAYS
            if num:
                samples.append(
                    Sample(
                        hour=(FIRST_DAY + day) * 24 + 11,
                        principal=f"key:planted-{principal}",
                        model="smollm2",
                        op="chat",
                        requests=num,
                        prompt_tokens=num * 5_300,
                        cached_tokens=0,
                        completion_tokens=num * 200,
                    )
                )
    return replace(month, samples=month.samples + samples, prefixes=month.prefixes + rows)


def with_large_context(month: Month) -> Month:
    """A model with 32,768 tokens of context of which 3,500 were ever used."""
    sizes = [
        replace(size, context=32_768, kv_tokens=8 * 32_768) if size.model == "smollm2" else size
        for size in month.sizes
    ]
    return replace(month, sizes=sizes)


def _varied(rng: random.Random, kind: Kind) -> Kind:
    return replace(
        kind,
        rate=kind.rate * math.exp(rng.gauss(0, 0.3)),
        prompt=kind.prompt * math.exp(rng.gauss(0, 0.2)),
        growth=kind.growth + rng.gauss(0, 0.2),
    )


def _samples(rng: random.Random, kind: Kind, num_days: int) -> list[Sample]:
    samples = []
    for day in range(num_days):
        busy = math.exp(rng.gauss(0, kind.noise) + kind.growth * day / num_days)
        for hour in range(24):
            weight = _weight(kind.shape, day, hour, rng)
            burst = math.exp(rng.gauss(0, kind.noise))
            num = _poisson(rng, kind.rate * weight * busy * burst)
            if num:
                samples.append(_sample(rng, kind, (FIRST_DAY + day) * 24 + hour, num))
    return samples


def _sample(rng: random.Random, kind: Kind, hour: int, num: int) -> Sample:
    prompt = sum(_sizes(rng, kind.prompt, kind.tail, num))
    completions = _sizes(rng, kind.completion, kind.tail, num) if kind.completion else []
    cut = sum(rng.random() < kind.cut for _ in range(num))
    return Sample(
        hour=hour,
        principal=kind.principal,
        model=kind.model,
        op="chat" if kind.completion else "embed",
        requests=num,
        prompt_tokens=prompt,
        cached_tokens=round(prompt * rng.uniform(0.2, 0.5)) if kind.completion else 0,
        completion_tokens=sum(completions),
        cut_answers=cut,
    )


def _sizes(rng: random.Random, middle: float, tail: float, num: int) -> list[int]:
    """Log-normal, at most a context."""
    return [min(6_000, round(rng.lognormvariate(math.log(middle), tail))) for _ in range(num)]


def _weight(shape: str, day: int, hour: int, rng: random.Random) -> float:
    is_weekend = day % 7 >= 5
    match shape:
        case "office":
            return math.exp(-((hour - 13) ** 2) / 18) * (0.04 if is_weekend else 1.0)
        case "day":
            return (0.3 + 0.7 * math.exp(-((hour - 15) ** 2) / 40)) * (0.7 if is_weekend else 1.0)
        case "night":
            return 1.0 if hour in (2, 3) else 0.0
        case _:  # some afternoons of a month
            return float(hour in (14, 15, 16) and random.Random(f"{day}").random() < 0.3)


def _poisson(rng: random.Random, mean: float) -> int:
    if mean > 50:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    limit, product, num = math.exp(-mean), rng.random(), 0
    while product > limit:
        product *= rng.random()
        num += 1
    return num


def _prefixes(rng: random.Random, samples: list[Sample]) -> list[PrefixSums]:
    """System prompts of a few hundred tokens, computed anew after each unloading."""
    rows = []
    for kind in KINDS:
        if not kind.completion:
            continue
        own = [s for s in samples if (s.principal, s.model) == (kind.principal, kind.model)]
        requests = sum(s.requests for s in own)
        parent = ""
        for length in (64, 256):
            digest = f"{kind.principal}{kind.model}{length}"
            times = 1 + round(NUM_DAYS * rng.uniform(0.5, 1.5))
            rows.append(
                PrefixSums(
                    model=kind.model,
                    principal=kind.principal,
                    digest=digest,
                    parent=parent,
                    length=length,
                    requests=requests,
                    computed_tokens=times * length,
                    prompt_tokens=sum(s.prompt_tokens for s in own),
                    cached_tokens=sum(s.cached_tokens for s in own),
                    completion_tokens=sum(s.completion_tokens for s in own),
                    cut_answers=sum(s.cut_answers for s in own),
                )
            )
            parent = digest
    return rows
