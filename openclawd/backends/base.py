"""What every backend does, and how it fails.

Owns the `Backend` protocol and its result types. Knows no ML library;
`tests/backends/conformance.py` holds every backend to what is promised here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from openclawd.engine.batch import Outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from openclawd.engine.batch import Batch


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """A LoRA's file, and how strongly it is applied."""

    path: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Which model, with what. `threads` and `gpu_layers` None mean automatic; `context` is tokens
    per sequence, `kv_tokens` for all together, `batch_tokens` at most in one step. A batch may name
    one of `adapters`. With `shares_cells` False every slot has `context` cells of its own, and none
    can be kept for others. `computes_aside`: where prompts disturb running streams, be ready to
    compute them aside, which takes memory for one more sequence. `gpu_budgets` are bytes on
    each GPU for automatic `gpu_layers` (none: all there is); one that `needs_gpu` does not load
    without."""

    path: str
    parallel: int
    context: int
    kv_tokens: int
    batch_tokens: int
    threads: int | None = None
    gpu_layers: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    adapters: dict[str, AdapterSpec] = field(default_factory=dict)
    shares_cells: bool = True
    computes_aside: bool = False
    gpu_budgets: tuple[int, ...] = ()
    needs_gpu: bool = False


Scoring = Literal["softmax", "sigmoid", "raw"]
"""How a model's numbers become scores."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model is. `context` is the length that really applies to a sequence; it is
    smaller than the one asked for where the model cannot do more. `parallel` is more than was asked
    for where sequences need no memory between steps.

    A model that classifies has `labels`, and its vectors are their scores, as `label_scores` makes
    them; the number of one with a single label comes raw. `rank_scores` makes that of how well two
    texts go together, where it can tell. Of a model that embeds, `pooling` says how its vectors
    come from those of the tokens, and whether their length is 1 (`is_normalised`).

    `attention` is how that is computed, where there is a choice."""

    description: str
    architecture: str
    quantization: str
    parameters: int
    size_bytes: int
    context_train: int
    context: int
    parallel: int
    kv_tokens: int
    embedding_length: int
    vocab_size: int
    can_generate: bool
    can_embed: bool
    threads: int
    gpu_layers: int
    devices: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    label_scores: Scoring | None = None
    rank_scores: Scoring | None = None
    pooling: str = ""
    is_normalised: bool = True
    attention: str = ""


@dataclass(frozen=True, slots=True)
class PairFormat:
    """The tokens that a model wants before the first of two texts, between them and after the
    second."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The largest batches `forward` takes. `splits_prompts` False: a prompt must come in one.

    `num_prefix_tags`: sequence ids beside the slots, from `parallel` on, under which cells can be
    kept for others; 0 when the model's memory cannot share part of a sequence. `can_drop_last`: the
    cells of a batch's last tokens can be dropped after it, as wrong guesses must be.
    `tile_tokens`: how many a large batch computes at once, if they belong together; one with both
    decodes and parts of prompts takes longer than the two apart. None where that makes no
    difference. `aside_tokens`: the most that a batch may have which `is_aside`; None where nothing
    can be computed aside. `scans_all_cells`: a step passes over every cell in use, its own or not,
    and that takes time.
    """

    batch_tokens: int
    embedding_batch_tokens: int
    splits_prompts: bool
    num_prefix_tags: int = 0
    can_drop_last: bool = False
    tile_tokens: int | None = None
    aside_tokens: int | None = None
    scans_all_cells: bool = False


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What rendering a chat needs from the model file. The texts are empty when the model has no
    such token; `adds_bos` and `adds_eos` say that `tokenize(add_special=True)` adds them.
    `tool_template` is for chats with tools, where it is another one."""

    template: str | None
    bos_text: str
    eos_text: str
    adds_bos: bool
    adds_eos: bool
    tool_template: str | None = None


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """The tokens that a model wants before what precedes a gap, before what follows it, and before
    what it fills in."""

    prefix: int
    suffix: int
    middle: int


@dataclass(frozen=True, slots=True)
class NoFreeCells:
    """The batch was not computed, because the KV cache had no room for it. Nothing changed, except
    that its cache operations are done and its opened slots are set up. The slots and tags in
    `lost` have no cells, because what was parked or stowed did not fit."""

    lost: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodeFailed:
    """The batch could not be computed; what the backend holds is undefined from now on."""

    message: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The batch was given up, because `between` said so. Nothing changed, except that its cache
    operations are done and its opened slots are set up."""


ForwardResult = Outputs | NoFreeCells | DecodeFailed | Stopped


def go_on() -> bool:
    """Nothing is to be done between the parts of a batch."""
    return True


class NotNumbers(Exception):
    """Among the logits is one that is no number, or the highest is infinite."""


class GrammarFailed(Exception):
    """A grammar is wrong, or cannot go on. The message says why, as a part of a sentence."""


class CannotLoad(Exception):
    """The model does not load. `permanent`: trying again cannot help until something is changed."""

    def __init__(self, message: str, *, hint: str, permanent: bool) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.permanent = permanent


def unreadable(path: str, error: OSError) -> CannotLoad:
    """What the disk says of a model's file. It may do better later."""
    return CannotLoad(
        f"{path} cannot be read: {error.strerror}",
        hint="look at the disk or the network file system it is on",
        permanent=False,
    )


class LoadAborted(Exception):
    """`on_progress` asked to give up."""


class Backend(Protocol):
    """A loaded model. `forward`, `copy_cells_out`, `copy_cells_in`, `stow` and `close` belong to
    one thread, the rest to any."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def limits(self) -> BatchLimits: ...

    @property
    def build(self) -> str:
        """Library and version: what `copy_cells_out` gave, only the same build takes back."""
        ...

    @property
    def chat_format(self) -> ChatFormat: ...

    @property
    def infill_tokens(self) -> InfillTokens | None:
        """None for models that cannot fill in a gap."""
        ...

    @property
    def pair_format(self) -> PairFormat | None:
        """None for models that take one text at a time."""
        ...

    @property
    def control_texts(self) -> tuple[str, ...]:
        """The texts that `tokenize(parse_special=True)` makes into control tokens."""
        ...

    @property
    def max_token_bytes(self) -> int:
        """A text of n bytes has at least n / `max_token_bytes` tokens; 0 when that is not known."""
        ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids. `add_special` adds what the model wants around a prompt; `parse_special` makes
        the texts of control tokens into those tokens, otherwise they are plain text."""
        ...

    def detokenize(self, tokens: Sequence[int]) -> bytes:
        """The text of tokens, control tokens included. Each must be in `[0, vocab_size)`."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes that a sampled token adds to the text; none for control tokens."""
        ...

    def is_end(self, token: int) -> bool:
        """Does this token end a generation?"""
        ...

    def check_grammar(self, grammar: str) -> None:
        """Compile a grammar for `SamplingParams.grammar`. Blocks. Raises `GrammarFailed`."""
        ...

    def forward(self, batch: Batch, between: Callable[[], bool] = go_on) -> ForwardResult:
        """Do the batch's cache operations, set up its opened slots, compute its chunks, sample or
        pool. Blocks. A batch without chunks ends with the first of these.

        While a batch is computed that `is_aside`, `between` is called after every few operations of
        the model. It may call `forward` for other slots, with batches that are not aside, and says
        whether to go on; what it raises is raised here.

        A chunk's position is the number of tokens whose cells its slot has. The token sampled after
        position p is a function of the tokens, the sampling parameters and p, as exactly as the
        hardware's arithmetic is.
        """
        ...

    def copy_cells_out(self, owner: int) -> bytes:
        """The KV cells of a slot or a tag, to be put back by `copy_cells_in` here or in another
        process that has the same model loaded in the same way; also those that are stowed. Does not
        modify. Blocks. Empty when the library cannot; then they must be computed again."""
        ...

    def copy_cells_in(self, owner: int, data: bytes) -> bool:
        """Make the cells that `copy_cells_out` gave those of a slot or a tag, at their old
        positions; what it had before is dropped. Blocks. False when they do not fit, or are those
        of another model: then it has none. `data` must be whole and unaltered: native code takes it
        apart."""
        ...

    def stow(self, tag: int, data: bytes) -> None:
        """The same as if `StowCells` had taken these cells of a tag, which has none."""
        ...

    def close(self) -> None:
        """Free everything. Nothing else may be called afterwards."""
        ...


class Load(Protocol):
    """How a backend is loaded."""

    def __call__(self, spec: LoadSpec, on_progress: Callable[[float], bool]) -> Backend:
        """Blocks. `on_progress` gets the fraction that is read and returns False to give up.
        Raises `CannotLoad` and `LoadAborted`."""
        ...
