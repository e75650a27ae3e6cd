"""Every configuration key: its type, default, range and meaning.

Owns the documented keys; how one is declared is `keys.py`'s, and some sections have a module each.
`docs/configuration.md` is made from the texts here and `etc/openclawd.yaml` is checked against
them. Must not know files or lines.

Durations are seconds and sizes are bytes once validated. What belongs together but depends on more
than one key (defaults that follow other keys) is a property, so that no caller works it out again.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    PlainValidator,
    StringConstraints,
)

from openclawctl.wire.framing import MAX_FRAME_BYTES
from openclawctl.wire.sampling import SAMPLING_INTEGERS, SAMPLING_RANGES, Sampling
from openclawd.config import values
from openclawd.config.autoscale import MAX_WORKERS, AutoscaleConfig
from openclawd.config.budgets import BudgetConfig  # noqa: TC001 - pydantic reads the annotations
from openclawd.config.fetch import FetchConfig
from openclawd.config.keys import Section, count, key
from openclawd.config.limits import ON_TOO_LONG_ALLOWED, LimitConfig, OnTooLongText
from openclawd.config.monitoring import MonitoringConfig
from openclawd.config.notify import NotifyConfig
from openclawd.config.placement import (
    CPUS,
    GPU_MEMORY_PER_MODEL,
    GPU_WAIT,
    SPLIT_MODE,
    TENSOR_SPLIT,
    WITHOUT_GPU,
    Cpus,
    GpuMemory,
    GpuWait,
    Shares,
    SplitMode,
    WithoutGpu,
)
from openclawd.config.prices import CURRENCY_ALLOWED, Currency, LedgerConfig, PriceConfig
from openclawd.config.rates import RateLimitConfig  # noqa: TC001 - pydantic reads the annotations
from openclawd.config.security import SecurityConfig
from openclawd.config.tiers import DEFAULT_TIER_NAME, TIER_NAME_TEXT, TierConfig, Tiers
from openclawd.config.torch_options import TorchOptions

MODEL_NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._:-]*$"
DEFAULT_KEEP_ALIVE_S: Final = 300.0
DEFAULT_MAX_OUTPUT_TOKENS: Final = 1024
DEFAULT_SAMPLING: Final = Sampling(
    temperature=0.8,
    top_k=40,
    typical_p=1.0,
    top_p=0.95,
    min_p=0.05,
    xtc_probability=0.0,
    xtc_threshold=0.1,
    mirostat=0,
    mirostat_tau=5.0,
    mirostat_eta=0.1,
    repeat_penalty=1.0,
    repeat_last_n=64,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    dry_multiplier=0.0,
    dry_base=1.75,
    dry_allowed_length=2,
    dry_penalty_last_n=64,
)
"""llama.cpp's own defaults (common/common.h, `common_params_sampling`). No seed: each request gets
a random one."""

_MAX_CONTEXT: Final = 16_777_216
_MAX_SEQUENCES: Final = 256
"""LLAMA_MAX_SEQ in llama.cpp's llama-cparams.h."""


def _sampling(name: str, meaning: str) -> Any:
    low, high = SAMPLING_RANGES[name]
    default = getattr(DEFAULT_SAMPLING, name)
    kind = "a whole number" if name in SAMPLING_INTEGERS else "a number"
    return key(
        None,
        meaning=meaning,
        allowed=f"{kind} from {low} to {high}",
        default_text="random for each request" if default is None else str(default),
        ge=low,
        le=high,
    )


Unbuilt = Annotated[
    dict[str, Any], BeforeValidator(values.empty_if_nil), AfterValidator(values.nothing_yet)
]
ModelName = Annotated[str, StringConstraints(pattern=MODEL_NAME_PATTERN, max_length=256)]
Duration = Annotated[float, PlainValidator(values.duration_s)]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
_CACHE_TYPES: Final = "f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0"
NAME_TEXT: Final = "letters, digits and . _ : -, beginning with a letter or digit"


class InferenceSettings(Section):
    """Defaults and limits of requests, for the daemon or for one model. None: not set here."""

    max_input_tokens: int | None = count(
        None,
        low=1,
        high=_MAX_CONTEXT,
        meaning="Most prompt tokens of a request. What becomes of longer prompts, `on_too_long`"
        " says.",
        default_text="what the model's context holds",
    )
    max_output_tokens: int | None = count(
        None,
        low=1,
        high=_MAX_CONTEXT,
        meaning="Most completion tokens of a request, and what a request that does not say gets.",
        default_text=str(DEFAULT_MAX_OUTPUT_TOKENS),
    )
    on_too_long: OnTooLongText | None = key(
        None,
        meaning="What becomes of a prompt that is over `max_input_tokens`, or does not fit into the"
        " context together with its answer. See `limits`.",
        allowed=ON_TOO_LONG_ALLOWED,
        default_text="error",
    )
    temperature: float | None = _sampling(
        "temperature", "How freely tokens are chosen; 0 always takes the likeliest."
    )
    top_k: int | None = _sampling("top_k", "Choose among this many likeliest tokens; 0 is off.")
    typical_p: float | None = _sampling(
        "typical_p",
        "Choose among the tokens that surprise about as much as is to be expected, up to this"
        " probability together; 1 is off.",
    )
    top_p: float | None = _sampling(
        "top_p", "Choose among the likeliest tokens that together have this probability; 1 is off."
    )
    min_p: float | None = _sampling(
        "min_p", "Drop tokens less likely than this share of the likeliest one; 0 is off."
    )
    xtc_probability: float | None = _sampling(
        "xtc_probability",
        "How often to leave out, of the tokens over `xtc_threshold`, all but the least likely;"
        " 0 is off.",
    )
    xtc_threshold: float | None = _sampling(
        "xtc_threshold", "What a token must have to be left out that way; over 0.5 is off."
    )
    mirostat: int | None = _sampling(
        "mirostat",
        "Keep the text at an even surprise, by version 1 or 2 of mirostat, in place of top_k,"
        " typical_p, top_p, min_p and XTC; 0 is off.",
    )
    mirostat_tau: float | None = _sampling("mirostat_tau", "The surprise to keep, in bits a token.")
    mirostat_eta: float | None = _sampling("mirostat_eta", "How fast mirostat steers towards it.")
    repeat_penalty: float | None = _sampling(
        "repeat_penalty", "Make tokens that came before less likely; 1 is off."
    )
    repeat_last_n: int | None = _sampling(
        "repeat_last_n", "How many tokens back the penalties look."
    )
    frequency_penalty: float | None = _sampling(
        "frequency_penalty", "Lower a token's chance each time it came before; 0 is off."
    )
    presence_penalty: float | None = _sampling(
        "presence_penalty", "Lower a token's chance once it came before; 0 is off."
    )
    dry_multiplier: float | None = _sampling(
        "dry_multiplier",
        "Lower the chance of tokens that go on with a run of tokens seen before, by this times"
        " `dry_base` to the power of how long it is over `dry_allowed_length`; 0 is off.",
    )
    dry_base: float | None = _sampling("dry_base", "See `dry_multiplier`.")
    dry_allowed_length: int | None = _sampling(
        "dry_allowed_length", 'The shortest run that counts. A new line, : " and * end a run.'
    )
    dry_penalty_last_n: int | None = _sampling(
        "dry_penalty_last_n", "How many tokens back to look for such runs."
    )
    seed: int | None = _sampling("seed", "Seed of the random choice, for repeatable answers.")

    def sampling(self) -> Sampling:
        """The sampling settings alone; None where this section says nothing."""
        names = SAMPLING_RANGES.keys() & type(self).model_fields
        return Sampling(**{name: getattr(self, name) for name in names})


class LlamaOptions(Section):
    """Options of the llama.cpp backend. None: llama.cpp decides."""

    flash_attn: Annotated[bool | None, PlainValidator(values.auto_or_flag)] = key(
        None,
        meaning="Flash attention: less memory for long contexts; a quantised value cache needs it.",
        allowed="auto, true or false",
        default_text="auto",
    )
    cache_type_k: CacheType = key(
        "f16", meaning="Number format of the key cache.", allowed=_CACHE_TYPES
    )
    cache_type_v: CacheType = key(
        "f16", meaning="Number format of the value cache.", allowed=_CACHE_TYPES
    )
    mlock: bool = key(
        default=False,
        meaning="Keep the model's memory from being swapped out (needs LimitMEMLOCK=infinity).",
        allowed="true or false",
    )
    mmap: Annotated[bool | None, PlainValidator(values.auto_or_flag)] = key(
        None,
        meaning="Map the weights from the model's file, where workers with that file share them,"
        " instead of reading them into memory of the worker's own, in huge pages, where one stream"
        " is up to a tenth faster. `auto`: mapped if several workers or models have the file, if"
        " the machine has a GPU that the model may use, if memory has no room for two copies, or if"
        " the kernel gives no transparent huge pages.",
        allowed="auto, true or false",
        default_text="auto",
    )


class BackendOptions(TorchOptions, LlamaOptions):
    """Which backend serves a model may depend on what is at its path: each refuses those of the
    other."""

    batch_tokens: int = count(
        512,
        low=8,
        high=65_536,
        meaning="Token budget of one step; a torch encoder's has twice as many. Smaller keeps"
        " streams even while long prompts are read.",
    )
    tensor_split: Shares = TENSOR_SPLIT
    split_mode: SplitMode = SPLIT_MODE

    def for_backend(self) -> dict[str, Any]:
        """The options the backend is to be told; those left to it are absent."""
        return self.model_dump(exclude_unset=True, exclude_none=True, exclude={"batch_tokens"})


class Speculation(Section):
    """How tokens are guessed ahead for one model."""

    method: Literal["off", "ngram", "draft"] = key(
        "off",
        meaning="`ngram`: what followed the same tokens before in the same text, good for edits,"
        " summaries and code. `draft`: what a smaller model says.",
        allowed="off, ngram or draft",
    )
    max_tokens: int = count(
        16, low=1, high=64, meaning="Most tokens guessed for one sequence in one step."
    )
    draft_model: Annotated[str | None, AfterValidator(values.file_path_or_none)] = key(
        None,
        meaning="The draft model's file, with `method: draft`: same vocabulary, much smaller.",
        allowed="the path of a GGUF file, absolute or in `model_paths`",
        default_text="none",
    )


class AdapterConfig(Section):
    """One LoRA of a model."""

    path: Annotated[str, AfterValidator(values.file_path)] = key(
        ...,
        meaning="The adapter's file: absolute, or a name looked up in `model_paths`.",
        allowed="the path of a GGUF file",
        default_text="(required)",
    )
    scale: float = key(
        1.0,
        meaning="How strongly it is applied.",
        allowed="a number from -100 to 100",
        ge=-100,
        le=100,
    )


class ModelConfig(Section):
    """One model: where it is, how much of the machine it gets, when it is loaded."""

    path: Annotated[str, AfterValidator(values.file_path)] = key(
        ...,
        meaning="The model's file, or its folder with config.json and safetensors: absolute, or a"
        " name looked up in `model_paths`.",
        allowed="the path of a GGUF file or of a folder",
        default_text="(required)",
    )
    backend: Literal["auto", "llama", "torch"] = key(
        "auto",
        meaning="What runs the model. `auto` is torch for a folder, llama for a file.",
        allowed="auto, llama or torch",
    )
    preload: bool = key(
        default=False,
        meaning="Load at start and warm up before the daemon is ready, instead of at first use.",
        allowed="true or false",
    )
    required: bool = key(
        default=False,
        meaning="Fail the daemon's start when this model cannot be preloaded; needs `preload`.",
        allowed="true or false",
    )
    workers: int = count(
        1,
        low=1,
        high=MAX_WORKERS,
        meaning="Workers that have the model. Each computes `parallel` sequences at once and has KV"
        " cells of its own; on a CPU they share the weights. Requests go where their beginning is"
        " known, and go on elsewhere when a worker dies.",
    )
    autoscale: Annotated[AutoscaleConfig, BeforeValidator(values.empty_if_nil)] = key(
        AutoscaleConfig(),
        meaning="Have as many workers as the load asks for, instead of `workers`.",
        allowed="a map with min and max",
        default_text="off",
    )
    parallel: int = count(
        8,
        low=1,
        high=_MAX_SEQUENCES,
        meaning="Sequences computed in one batch. Of encoders, `batch_tokens` bounds that.",
    )
    context: int = count(
        2048, low=16, high=_MAX_CONTEXT, meaning="Tokens per sequence, prompt and completion."
    )
    configured_kv_tokens: int | None = count(
        None,
        low=16,
        high=_MAX_CONTEXT * _MAX_SEQUENCES,
        alias="kv_tokens",
        meaning="Tokens of KV cache for all sequences together; it must hold one whole `context`.",
        default_text="parallel * context",
    )
    configured_keep_alive_s: Annotated[float | None, PlainValidator(values.keep_alive_s)] = key(
        None,
        alias="keep_alive",
        meaning="How long the model stays loaded after its last use; a request may say otherwise"
        " for itself. Another model that needs the memory may end it sooner.",
        allowed="a duration such as 5m, or forever (-1)",
        default_text="5m; forever with `preload` or `pinned`",
    )
    pinned: bool = key(
        default=False,
        meaning="Stay loaded for good once loaded, also when others need the memory; `keep_alive`"
        " cannot be set beside it.",
        allowed="true or false",
    )
    min_residency_s: Duration = key(
        0.0,
        alias="min_residency",
        meaning="How long it stays, once loaded, before it must make way for another model while it"
        " is in use.",
        allowed="a duration such as 10s",
        default_text="0s",
    )
    min_parallel: int | None = count(
        None,
        low=1,
        high=_MAX_SEQUENCES,
        meaning="Where memory is short, load it with fewer sequences than `parallel`, down to"
        " this.",
        default_text="`parallel`: never fewer",
    )
    min_context: int | None = count(
        None,
        low=16,
        high=_MAX_CONTEXT,
        meaning="Where memory is still short then, load it with a shorter `context`, down to this.",
        default_text="`context`: never shorter",
    )
    devices: list[Annotated[str, PlainValidator(values.device)]] = key(
        [],
        meaning="GPUs the model may use; none named means all.",
        allowed="a list of GPU indexes, GPU-… UUIDs or MIG-… UUIDs",
    )
    gpu_layers: Annotated[int | None, PlainValidator(values.auto_or_count)] = key(
        None,
        meaning="Layers computed on the GPU; 0 keeps the model on the CPU. `auto`: as many as fit"
        " into `gpu_memory_per_model` and into what is free.",
        allowed="auto, or a whole number from 0 to 1024",
        default_text="auto",
    )
    threads: Annotated[int | None, PlainValidator(values.auto_or_threads)] = key(
        None,
        meaning="CPU threads of the model.",
        allowed="auto, or a whole number from 1 to 1024",
        default_text="auto: one for each CPU that the worker is bound to",
    )
    cpus: Cpus = CPUS
    without_gpu: WithoutGpu = WITHOUT_GPU
    speculation: Annotated[Speculation, BeforeValidator(values.empty_if_nil)] = key(
        Speculation(),
        meaning="Guess tokens ahead and check several in one step. Changes no answer, up to near"
        " ties; recurrent and hybrid models, which cannot take back a token, do without.",
        allowed="a map",
    )
    system_prompts: Annotated[list[str], AfterValidator(values.system_prompts)] = key(
        [],
        meaning="System prompts that are computed when the model is loaded and kept for good, for"
        " everybody: chats that begin with one need not compute it. They take KV cells: one whole"
        " `context` must fit beside them.",
        allowed=f"a list of {values.MAX_SYSTEM_PROMPTS} different texts at most, none empty",
    )
    adapters: Annotated[dict[ModelName, AdapterConfig], BeforeValidator(values.adapters)] = key(
        {},
        meaning="LoRAs that are loaded with the model, by the names that requests call them"
        " (`adapter`); a path alone has `scale` 1. System prompts are pinned for requests without.",
        allowed=f"a map of names ({NAME_TEXT}) to paths, or to maps with the keys path and scale",
    )
    prefix_sharing: Annotated[
        Literal["principal", "all", "off"], BeforeValidator(values.off_if_false)
    ] = key(
        "principal",
        meaning="Whose requests share what was computed of a common beginning: each user's own, or"
        " everybody's (then times and `cached_tokens` tell what others' prompts begin with). With"
        " `off` nothing is shared, and many streams with nothing in common are faster.",
        allowed="principal, all or off",
    )
    prefill_aside: bool = key(
        default=True,
        meaning="On a CPU: read long prompts in a context of their own, with pauses for the steps"
        " of running streams. These keep their pace, and the prompt is read faster than in parts"
        " that are small enough. Takes memory for one more sequence of `context` tokens. Has no"
        " effect with `parallel: 1`, with `context` or `batch_tokens` below 256, without flash"
        " attention or with quantised caches, nor where cells cannot be shared (`prefix_sharing`).",
        allowed="true or false",
    )
    persist_prefixes: Annotated[
        Literal["pinned", "all", "off"], BeforeValidator(values.off_if_false)
    ] = key(
        "pinned",
        meaning="What is kept in the state directory while the model is not loaded, so that it need"
        " not be computed again: its `system_prompts`, or also what users' prompts and answers"
        " begin with (these files hold their text, as tokens), or nothing.",
        allowed="pinned, all or off",
    )
    max_prefix_age_s: Duration = key(
        2_592_000.0,
        alias="max_prefix_age",
        meaning="How old such a file may get; it is removed when the daemon starts or the model is"
        " loaded.",
        allowed="a duration such as 30d",
        default_text="30d",
    )
    inference_settings: Annotated[InferenceSettings, BeforeValidator(values.empty_if_nil)] = key(
        InferenceSettings(),
        meaning="Overrides of the daemon's `inference_settings` for this model.",
        allowed="a map with the keys of inference_settings",
    )
    options: Annotated[BackendOptions, BeforeValidator(values.empty_if_nil)] = key(
        BackendOptions(),
        meaning="Options of the backend.",
        allowed="a map",
    )

    @property
    def scale(self) -> tuple[int, int]:
        """The fewest and the most workers."""
        low, high = self.autoscale.min, self.autoscale.max
        return (self.workers, self.workers) if low is None or high is None else (low, high)

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV cache for all sequences together."""
        return self.configured_kv_tokens or self.parallel * self.context

    @property
    def keep_alive_s(self) -> float:
        """Seconds to stay loaded after the last use; infinity is for ever."""
        if self.configured_keep_alive_s is not None:
            return self.configured_keep_alive_s
        return math.inf if self.preload or self.pinned else DEFAULT_KEEP_ALIVE_S


class ResourceLimits(Section):
    """What one daemon hands out at most."""

    gpu_memory_per_model: GpuMemory = GPU_MEMORY_PER_MODEL
    gpu_wait_s: GpuWait = GPU_WAIT
    memory_bytes: Annotated[int | None, PlainValidator(values.auto_or_size)] = key(
        None,
        alias="memory",
        meaning="The host's memory that all models together may take. Models that were not used for"
        " longest leave when others need room; what cannot fit is not loaded.",
        allowed="auto, or a size such as 8GiB",
        default_text="auto: nine tenths of what is to be had, within the control group's limit",
    )
    group_wait_s: Duration = key(
        2.0,
        alias="group_wait",
        meaning="How long requests for a model that is not loaded wait while the models that would"
        " have to make way are in use. Requests that alternate between models that do not fit"
        " together are so served in groups, each of which costs one load.",
        allowed="a duration such as 2s",
        default_text="2s",
    )
    cpu_cores_per_worker: int | None = count(
        None,
        low=1,
        high=4096,
        meaning="CPUs that each worker of a model without `cpus` has to itself: it is bound to"
        " them, no other worker is, and it has as many threads unless `threads` says otherwise. A"
        " model for which too few are free does not load.",
        default_text="all CPUs, shared with other models",
    )
    max_connections: int = count(
        512,
        low=1,
        high=100_000,
        meaning="Most open connections, `reserved_admin_connections` included.",
    )
    reserved_admin_connections: int = count(
        8, low=0, high=1000, meaning="Connections of `max_connections` that only admins may use."
    )
    max_connections_per_user: int = count(
        256, low=1, high=100_000, meaning="Most open connections of one user."
    )
    max_requests_per_connection: int = count(
        256, low=1, high=65_536, meaning="Most open requests on one connection."
    )
    max_requests_per_user: int = count(
        1024, low=1, high=1_000_000, meaning="Most open requests of one user."
    )
    max_queued_requests: int = count(
        1024,
        low=1,
        high=1_000_000,
        meaning="Most requests waiting for a model; more are refused as `overloaded`. An eighth is"
        " kept for each higher priority: `batch` may fill three quarters.",
    )
    max_skips: int = count(
        32,
        low=1,
        high=1_000_000,
        meaning="How often a waiting request may be overtaken by later ones, more urgent or"
        " smaller, before it goes first.",
    )
    hello_timeout_s: Duration = key(
        10.0,
        alias="hello_timeout",
        meaning="How long a new connection may take to say `hello`.",
        allowed="a duration such as 10s",
        default_text="10s",
    )
    drain_timeout_s: Duration = key(
        30.0,
        alias="drain_timeout",
        meaning="How long accepted requests may take to finish when the daemon stops.",
        allowed="a duration such as 30s",
        default_text="30s",
    )
    step_timeout_s: Annotated[float, PlainValidator(values.step_timeout_s)] = key(
        120.0,
        alias="step_timeout",
        meaning="How long a model's worker that has something to compute may go without finishing"
        " a step. After half of that the daemon counts as unhealthy (docs/monitoring.md), at its"
        " end the worker is killed and replaced, and its requests go on in the new one. A large"
        " model on few cores may take long to read a part of a long prompt.",
        allowed="a duration from 1s to 1h",
        default_text="2m",
    )
    max_frame_bytes: Annotated[int, PlainValidator(values.frame_bytes)] = key(
        MAX_FRAME_BYTES,
        meaning="Largest message in either direction.",
        allowed="a size from 64KiB to 1GiB",
        default_text="16MiB",
    )


class LoggingConfig(Section):
    """What is logged, how and where. Prompts and completions never are."""

    level: Literal["debug", "info", "warning", "error"] = key(
        "info", meaning="Least severe messages to log.", allowed="debug, info, warning or error"
    )
    format: Literal["auto", "journald", "json", "console"] = key(
        "auto",
        meaning="`auto` is journald when stderr goes to the journal, else console.",
        allowed="auto, journald, json or console",
    )
    file: Annotated[str, AfterValidator(values.absolute)] | None = key(
        None,
        meaning="Also log to this file, one JSON object a line; opened anew on SIGHUP and by"
        " `openclawctl reload`.",
        allowed="an absolute path",
        default_text="none",
    )
    syslog: bool = key(default=False, meaning="Also log to syslog.", allowed="true or false")


class Config(Section):
    """The whole configuration."""

    models: Annotated[dict[ModelName, ModelConfig], BeforeValidator(values.empty_if_nil)] = key(
        {}, meaning="The models by name.", allowed=f"a map of names ({NAME_TEXT}) to model settings"
    )
    default_model: str | None = key(
        None,
        meaning="The model of requests that name none.",
        allowed="a name of models or aliases",
        default_text="the only model, if there is one",
    )
    aliases: Annotated[dict[ModelName, str], BeforeValidator(values.empty_if_nil)] = key(
        {},
        meaning="Other names of models.",
        allowed=f"a map of names ({NAME_TEXT}) to names of models",
    )
    model_paths: list[Annotated[str, AfterValidator(values.absolute)]] = key(
        ["/var/lib/openclawd/models"],
        meaning="Folders in which model files are looked up, in this order.",
        allowed="a list of absolute paths",
        default_text="the folder `models` of the state directory",
    )
    resource_limits: Annotated[ResourceLimits, BeforeValidator(values.empty_if_nil)] = key(
        ResourceLimits(), meaning="What the daemon hands out at most.", allowed="a map"
    )
    inference_settings: Annotated[InferenceSettings, BeforeValidator(values.empty_if_nil)] = key(
        InferenceSettings(), meaning="Defaults and limits of every request.", allowed="a map"
    )
    security: Annotated[SecurityConfig, BeforeValidator(values.empty_if_nil)] = key(
        SecurityConfig(), meaning="Who may do what.", allowed="a map"
    )
    tiers: Tiers = key(
        {DEFAULT_TIER_NAME: TierConfig()},
        meaning="What users, groups and keys may be given: priorities and shares of the models. The"
        f" tier `{DEFAULT_TIER_NAME}` is for whoever is given none.",
        allowed=f"a map of names ({TIER_NAME_TEXT}) to tiers",
        default_text=f"`{DEFAULT_TIER_NAME}` alone",
    )
    limits: Annotated[list[LimitConfig], BeforeValidator(values.empty_list_if_nil)] = key(
        [],
        meaning="Rules that bound single requests, and how many of them run and wait. Of all that"
        " fit a request, the strictest value wins.",
        allowed="a list of maps with the keys of limits",
    )
    rate_limits: Annotated[list[RateLimitConfig], BeforeValidator(values.empty_list_if_nil)] = key(
        [],
        meaning="How many tokens and requests in how long. All rules that fit a request must have"
        " room for it.",
        allowed="a list of rules, each a map",
    )
    budgets: Annotated[list[BudgetConfig], BeforeValidator(values.empty_list_if_nil)] = key(
        [],
        meaning="How much may be used in a window of time. A request must fit every budget that it"
        " matches.",
        allowed="a list of budgets",
    )
    currency: Currency = key(
        "USD", meaning="What `prices` are in. One for the whole daemon.", allowed=CURRENCY_ALLOWED
    )
    prices: Annotated[dict[ModelName, PriceConfig], BeforeValidator(values.empty_if_nil)] = key(
        {},
        meaning="What models cost, by their names; a model that is not in it is free.",
        allowed=f"a map of names ({NAME_TEXT}) to prices",
    )
    ledger: Annotated[LedgerConfig, BeforeValidator(values.empty_if_nil)] = key(
        LedgerConfig(), meaning="How long the ledger keeps what was used.", allowed="a map"
    )
    fetch: Annotated[FetchConfig, BeforeValidator(values.empty_if_nil)] = key(
        FetchConfig(), meaning="Where models come from and are put (`pull`).", allowed="a map"
    )
    notify: Annotated[NotifyConfig, BeforeValidator(values.empty_if_nil)] = key(
        NotifyConfig(),
        meaning="Who is told when a budget reaches one of its `alerts`.",
        allowed="a map",
    )
    logging: Annotated[LoggingConfig, BeforeValidator(values.empty_if_nil)] = key(
        LoggingConfig(), meaning="What is logged, how and where.", allowed="a map"
    )
    monitoring: Annotated[MonitoringConfig, BeforeValidator(values.empty_if_nil)] = key(
        MonitoringConfig(), meaning="Metrics, health and warnings.", allowed="a map"
    )
    caching: Unbuilt = key({}, meaning="Response caches (not built yet).", allowed="an empty map")

    @property
    def fetch_directory(self) -> str:
        """The folder that models are put into; empty if there is none."""
        return self.fetch.directory or next(iter(self.model_paths), "")

    def default_name(self) -> str | None:
        """The model of a request that names none: the default, or the only one."""
        if self.default_model is not None:
            return self.aliases.get(self.default_model, self.default_model)
        return next(iter(self.models)) if len(self.models) == 1 else None

    def sampling_for(self, model: ModelConfig) -> Sampling:
        """A model's sampling: its own settings, else the daemon's, else the defaults.

        Only `seed` may be None in it.
        """
        daemon_wide = self.inference_settings.sampling().over(DEFAULT_SAMPLING)
        return model.inference_settings.sampling().over(daemon_wide)

    def max_input_tokens_for(self, model: ModelConfig) -> int | None:
        """Most prompt tokens of a request to this model; None leaves it to the context."""
        own = model.inference_settings.max_input_tokens
        return own if own is not None else self.inference_settings.max_input_tokens

    def max_output_tokens_for(self, model: ModelConfig) -> int:
        """Most completion tokens of a request to this model."""
        own = model.inference_settings.max_output_tokens
        daemon_wide = self.inference_settings.max_output_tokens
        return own or daemon_wide or DEFAULT_MAX_OUTPUT_TOKENS

    def on_too_long_for(self, model: ModelConfig) -> str:
        """What becomes of a prompt that is too long for this model."""
        own = model.inference_settings.on_too_long
        return own or self.inference_settings.on_too_long or "error"
