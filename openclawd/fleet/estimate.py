"""How much memory a model will take, by arithmetic. Pure: facts of its files and the settings it is
to be loaded with in, a sum with its parts out.

Owns the formulas. They follow llama.cpp's own (of llama-cpp-python 0.3.36: `llama_kv_cache`,
`llama_kv_cache_iswa`, `llama_memory_recurrent`, `llama_context::output_reserve`) and what
`backends/llama_load.py` asks it for; the constants that no formula gives were measured, see
docs/memory.md. `tests/fleet/test_memory.py` compares them with what llama.cpp says it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from openclawd.fleet.estimate_torch import TORCH_LIBRARIES, torch_parts
from openclawd.fleet.parts import Part, kept_part
from openclawd.fleet.residency import HOST, Need

if TYPE_CHECKING:
    from openclawd.fleet.footprints import Measured
    from openclawd.worker.facts import Layers, ModelFacts
    from openclawd.worker.messages import Load

CACHE_BITS: Final = {
    "f32": 32.0, "f16": 16.0, "bf16": 16.0, "q8_0": 8.5, "q5_1": 6.0, "q5_0": 5.5, "q4_1": 5.0,
    "q4_0": 4.5,
}  # fmt: skip
"""Bits of one number in the KV cache, with its block's scale (ggml-common.h, `block_*`)."""

WEIGHTS: Final = "weights"

_CELL_PAD: Final = 256
"""llama.cpp rounds a cache up to it (`llama_context`, `n_ctx`)."""

_UBATCH: Final = 512  # `UBATCH_TOKENS` of backends/llama_load.py, which the daemon may not import
_ASIDE: Final = 256  # `ASIDE_TOKENS` there
_EMBEDDING_BATCH: Final = 128  # `EMBEDDING_BATCH_TOKENS` there
_ASIDE_OUTPUTS: Final = 2  # `n_outputs_max` of backends/llama_aside.py
_FLOAT: Final = 4
_LIBRARIES: Final = 10 * 2**20
"""Pages of llama.cpp, libc and the interpreter that a worker maps, if nobody else does."""

_PROCESS: Final = 30 * 2**20
"""What a worker with llama.cpp and without a model has to itself: 27 MiB (2026-11-29)."""

_PER_TOKEN: Final = 300
"""Of the vocabulary: in llama.cpp's tables and in those of constrained answers."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """`basis` is `estimated` or `measured`; `library_bytes` are those pages that only other workers
    share."""

    parts: tuple[Part, ...]
    basis: str = "estimated"
    library_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(part.num_bytes for part in self.parts)

    def on(self, device: str) -> int:
        return sum(part.num_bytes for part in self.parts if part.device == device)

    def corrected(self, measured: Measured) -> Estimate:
        """The same with what a worker really had to itself, in place of what was computed of it.
        Once it was used; before, its buffers are there and most of their pages are not."""
        on_host = [part for part in self.parts if part.device == HOST and not part.is_mapped]
        own = measured.own_bytes + self.library_bytes
        if not measured.is_used:
            own = max(own, sum(part.num_bytes for part in on_host))
        known = [part for part in on_host if part.name == WEIGHTS]
        rest = max(0, own - sum(part.num_bytes for part in known))
        worker = Part("worker", rest, "the most that one was seen to have beside its weights")
        others = (part for part in self.parts if part not in on_host)
        return Estimate((*others, *known, worker), "measured", self.library_bytes)

    def need(self, weights: str, *, num_workers: int = 1) -> Need:
        """What `num_workers` of it take. `weights` tells its files from others'."""
        own: dict[str, int] = {}
        mapped = 0
        for part in self.parts:
            if part.is_mapped:
                mapped += part.num_bytes
            else:
                own[part.device] = own.get(part.device, 0) + part.num_bytes * num_workers
        return Need(own, weights if mapped else "", mapped)


def estimate(
    facts: ModelFacts,
    load: Load,
    *,
    draft: ModelFacts | None = None,
    gpu_layers: int = 0,
    gpu: str = "gpu",
) -> Estimate:
    """What one worker takes. `gpu_layers` of the layers are on the device `gpu`; one more than
    there are is the output layer, too."""
    if facts.kind == "torch":
        torch = torch_parts(facts, load, device=gpu if gpu_layers else HOST)
        return Estimate(tuple(torch), library_bytes=TORCH_LIBRARIES)
    parts = _gguf_parts(facts, load, gpu_layers, gpu) + _kept_parts(facts, load)
    if draft is not None:
        helper = replace(load, computes_aside=False)
        parts += [
            replace(part, name=f"draft model's {part.name}")
            for part in _gguf_parts(draft, helper, gpu_layers, gpu)
        ]
    return Estimate((*parts, _process(facts)), library_bytes=_LIBRARIES)


# ---- GGUF ----


def _gguf_parts(facts: ModelFacts, load: Load, gpu_layers: int, gpu: str) -> list[Part]:
    share = min(gpu_layers / facts.num_layers, 1.0) if facts.num_layers else 0.0
    rest = facts.weights_bytes - facts.repeating_bytes
    on_gpu = round(facts.repeating_bytes * share) + (rest if gpu_layers > facts.num_layers else 0)
    is_mapped = bool(load.options.get("mmap", True))
    packed = round(facts.packed_bytes * (1 - share))
    # What is read, not mapped, is converted on its way: there is no other copy.
    in_memory = facts.weights_bytes - on_gpu - (0 if is_mapped else packed)
    which = "all tensors of the file" if is_mapped or not packed else "the other tensors"
    parts = [
        Part(WEIGHTS, in_memory, which, HOST, is_mapped),
        Part(WEIGHTS, on_gpu, f"{gpu_layers} layers on the GPU", gpu),
        Part("copy of the weights" if is_mapped else WEIGHTS, packed, "in the layout of this CPU"),
    ]
    if not facts.is_encoder:
        parts += _cache_parts(facts, load, share, gpu)
        parts += _aside_parts(facts, load, share)
    compute_device = gpu if share else HOST
    parts.append(Part("compute buffers", *_compute(facts, load), compute_device))
    return [part for part in parts if part.num_bytes]


def _cache_parts(facts: ModelFacts, load: Load, share: float, gpu: str) -> list[Part]:
    cells = _cells(load)
    windows = _window_cells(facts, load, cells)
    cache = sum(
        layers.count * _layer_bytes(layers, load.options, windows.get(layers.window, cells))
        for layers in facts.attention
    )
    state = facts.state_width * _FLOAT * load.parallel
    how = f"{cells} tokens, {round(cache / max(cells, 1) / 1024, 1)} KiB each"
    parts = []
    for name, size, text in (
        ("KV cache", cache, how),
        ("recurrent state", state, f"{load.parallel} sequences"),
    ):
        parts.append(Part(name, round(size * (1 - share)), text))
        parts.append(Part(name, round(size * share), text, gpu))
    return parts


def _cells(load: Load) -> int:
    if load.shares_prefixes:
        return _padded(load.kv_tokens)
    return load.parallel * _padded(load.kv_tokens // load.parallel)


def _window_cells(facts: ModelFacts, load: Load, cells: int) -> dict[int, int]:
    """Cells of layers with a window: a window of each sequence, and what is computed at once."""
    sequences = load.parallel if load.shares_prefixes else 1
    streams = 1 if load.shares_prefixes else load.parallel
    batch = _batch(facts, load)
    return {
        layers.window: streams * _padded(min(cells // streams, layers.window * sequences + batch))
        for layers in facts.attention
        if layers.window
    }


def _layer_bytes(layers: Layers, options: dict[str, Any], cells: int) -> float:
    key_bits = CACHE_BITS[options.get("cache_type_k", "f16")]
    value_bits = CACHE_BITS[options.get("cache_type_v", "f16")]
    return cells * (layers.key_width * key_bits + layers.value_width * value_bits) / 8


def _kept_parts(facts: ModelFacts, load: Load) -> list[Part]:
    """Prefixes that are not in the cache any more; see `_num_prefix_tags` of
    backends/llama_load.py."""
    if facts.is_encoder or not (load.shares_prefixes and _is_plain(facts)):
        return []
    return [kept_part(_attention_bytes(facts, load, load.kv_tokens), load)]


def _is_plain(facts: ModelFacts) -> bool:
    return not facts.state_width and not any(layers.window for layers in facts.attention)


def _attention_bytes(facts: ModelFacts, load: Load, cells: int) -> float:
    return sum(each.count * _layer_bytes(each, load.options, cells) for each in facts.attention)


def _aside_parts(facts: ModelFacts, load: Load, share: float) -> list[Part]:
    """A second context for one long prompt; see `_aside_tokens` of backends/llama_load.py."""
    kinds = {load.options.get(f"cache_type_{which}", "f16") for which in "kv"}
    is_possible = _is_plain(facts) and len(kinds) == 1 and kinds <= {"f16", "f32"} and not share
    has_room = min(load.batch_tokens, load.context) >= _ASIDE
    is_wanted = load.computes_aside and load.parallel > 1 and load.shares_prefixes
    has_flash = load.options.get("flash_attn") is not False
    if not (is_possible and has_room and is_wanted and has_flash):
        return []
    cells = _padded(load.context)
    cache = _attention_bytes(facts, load, cells)
    buffer = _graph_bytes(facts, load, batch=_ASIDE, outputs=_ASIDE_OUTPUTS, cells=cells)
    return [Part("prompts aside", round(cache) + buffer, f"{cells} tokens and their buffers")]


def _compute(facts: ModelFacts, load: Load) -> tuple[int, str]:
    batch = _batch(facts, load)
    outputs = max(load.parallel, _EMBEDDING_BATCH)
    buffer = _graph_bytes(facts, load, batch=batch, outputs=outputs, cells=_cells(load))
    logits = max(load.parallel, 1) * facts.vocab_size * _FLOAT
    return buffer + logits, f"{batch} tokens at once"


def _batch(facts: ModelFacts, load: Load) -> int:
    largest = max(load.batch_tokens, load.parallel)
    if facts.is_encoder:
        return max(load.context, load.parallel)
    is_whole = any(layers.window for layers in facts.attention)
    return largest if is_whole else min(largest, _UBATCH)


def _graph_bytes(facts: ModelFacts, load: Load, *, batch: int, outputs: int, cells: int) -> int:
    """The larger of the two ends of a step: all layers with the mask of the attention, or the
    logits of `outputs` tokens. Of the activations of a layer, six as wide as the model and two
    as wide as its feed-forward part are there at once (SmolLM2, 2026-11-29)."""
    batch = min(batch, cells)
    logits = min(batch, outputs) * (facts.vocab_size + 2 * facts.embedding_width) * _FLOAT
    activations = batch * _FLOAT * (6 * facts.embedding_width + 2 * facts.feed_forward_width)
    if facts.is_encoder:
        scores = facts.num_heads * batch * batch * _FLOAT
        return activations + scores
    if not facts.attention:
        return max(logits, activations)
    if load.options.get("flash_attn") is False:
        attention = batch * cells * _FLOAT * (facts.num_heads + 1)
    else:
        attention = batch * cells * 2
    return max(logits, activations + attention)


def _process(facts: ModelFacts) -> Part:
    size = _LIBRARIES + _PROCESS + _PER_TOKEN * facts.vocab_size + 2 * facts.vocab_bytes
    return Part("process", size, "interpreter, libraries and vocabulary")


def _padded(cells: int) -> int:
    return -(-cells // _CELL_PAD) * _CELL_PAD


# ---- less of it ----


def shrunk(load: Load, *, min_parallel: int, min_context: int) -> list[Load]:
    """The same model in ever less memory, the largest first: half as many sequences, down to
    `min_parallel`, and then half as long ones, down to `min_context`."""
    smaller = []
    parallel, context = load.parallel, load.context
    while parallel > min_parallel:
        parallel = max(parallel // 2, min_parallel)
        smaller.append((parallel, context))
    while context > min_context:
        context = max(context // 2, min_context)
        smaller.append((parallel, context))
    return [
        replace(
            load,
            parallel=parallel,
            context=context,
            kv_tokens=max(context, min(load.kv_tokens, parallel * context)),
        )
        for parallel, context in smaller
    ]
