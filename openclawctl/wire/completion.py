"""What `generate` and `chat` take.

Owns the parameters of everything that makes text; how the next token is chosen is `sampling.py`'s.

Invariant: `decode(encode(x)) == x`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from openclawctl.wire.chat import ChatMessage, decode_messages
from openclawctl.wire.fields import suggestion
from openclawctl.wire.formats import OutputFormat, decode_format
from openclawctl.wire.labels import decode_labels
from openclawctl.wire.sampling import Sampling
from openclawctl.wire.scheduling import decode_keep_alive_s, decode_scheduling
from openclawctl.wire.tokens import MAX_TOKEN_ID
from openclawctl.wire.tools import Tool, ToolChoice, decode_tools

if TYPE_CHECKING:
    from openclawctl.wire.fields import Fields

MAX_CHOICES: Final = 256
"""As many as a model can have sequences in one batch (`LLAMA_MAX_SEQ` in llama.cpp)."""

MAX_PROMPT_IDS: Final = 60_000
"""Most token ids of a prompt: a frame holds 65,536 items (`framing.py`). Text has no such limit."""

MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 256
"""Longest stop string: this many characters may be held back from a stream while they could still
become one."""

MAX_TOKENS: Final = 2**31 - 1
MAX_MODEL_NAME_CHARS: Final = 256

REASONING_MODES: Final = ("split", "raw", "off")


_OPTIONAL: Final = (
    "model", "max_tokens", "priority", "deadline_s", "adapter", "app", "session", "keep_alive_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class GenerateParams:
    """`generate`: continue a prompt as it stands, without a chat template. Token ids are taken as
    they are. `echo`: the answer begins with the prompt. `suffix` is what comes after the answer,
    for models that can fill in between. `dry_run`: say what it would take, and compute nothing."""

    prompt: str | list[int]
    model: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    stream: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    priority: str | None = None
    deadline_s: float | None = None
    format: OutputFormat | None = None
    n: int = 1
    echo: bool = False
    adapter: str | None = None
    suffix: str | None = None
    app: str | None = None
    session: str | None = None
    keep_alive_s: float | None = None
    dry_run: bool = False

    @classmethod
    def decode(cls, source: Fields) -> GenerateParams:
        return cls(
            prompt=_decode_prompt(source),
            suffix=source.text_or_none("suffix"),
            echo=source.boolean("echo", default=False),
            **_decode_completion(source),
        )

    def encode(self) -> dict[str, Any]:
        encoded = {"prompt": self.prompt, **_encode_completion(self)}
        if self.suffix is not None:
            encoded["suffix"] = self.suffix
        if self.echo:
            encoded["echo"] = True
        return encoded


@dataclass(frozen=True, slots=True)
class ChatParams:
    """`chat`: the assistant's next turn, through the model's own chat template. `reasoning`: what
    becomes of what it thinks first (`split` from the answer, left in it `raw`, or switched `off`).
    `tools` are what it may call, `tool_choice` whether it may or must. `dry_run` as above.
    """

    messages: list[ChatMessage]
    model: str | None = None
    max_tokens: int | None = None
    stop: list[str] = field(default_factory=list)
    stream: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    priority: str | None = None
    deadline_s: float | None = None
    format: OutputFormat | None = None
    n: int = 1
    adapter: str | None = None
    reasoning: str = "split"
    tools: list[Tool] = field(default_factory=list)
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    app: str | None = None
    session: str | None = None
    keep_alive_s: float | None = None
    dry_run: bool = False

    @classmethod
    def decode(cls, source: Fields) -> ChatParams:
        params = cls(
            messages=decode_messages(source),
            reasoning=source.choice("reasoning", REASONING_MODES, default="split"),
            tools=decode_tools(source),
            tool_choice=ToolChoice.decode(source),
            **_decode_completion(source),
        )
        _check_tools(source, params)
        return params

    def encode(self) -> dict[str, Any]:
        encoded = _encode_completion(self)
        encoded["messages"] = [message.encode() for message in self.messages]
        if self.reasoning != "split":
            encoded["reasoning"] = self.reasoning
        if self.tools:
            encoded["tools"] = [tool.encode() for tool in self.tools]
        if self.tool_choice != ToolChoice():
            encoded["tool_choice"] = self.tool_choice.encode()
        return encoded


def _check_tools(source: Fields, params: ChatParams) -> None:
    choice, names = params.tool_choice, [tool.name for tool in params.tools]
    if choice.name and choice.name not in names:
        raise source.fail(
            f"'tool_choice' names {choice.name!r}, which is none of the 'tools'"
            + suggestion(choice.name, names)
        )
    if choice.mode == "required" and not names:
        raise source.fail("'tool_choice' is required, but there are no 'tools'")
    if params.format is not None and names and choice.mode != "none":
        raise source.fail("'format' and 'tools' exclude each other: an answer has one shape")


def _decode_prompt(source: Fields) -> str | list[int]:
    if not source.is_list("prompt"):
        return source.text("prompt")
    return source.integers("prompt", max_items=MAX_PROMPT_IDS, low=0, high=MAX_TOKEN_ID)


def _decode_completion(source: Fields) -> dict[str, Any]:
    stop = source.texts("stop", max_items=MAX_STOP_STRINGS)
    if any(not 0 < len(text) <= MAX_STOP_CHARS for text in stop):
        raise source.fail(f"each 'stop' string must have 1 to {MAX_STOP_CHARS} characters")
    return {
        "model": source.text_or_none("model", max_chars=MAX_MODEL_NAME_CHARS),
        "max_tokens": source.integer_or_none("max_tokens", low=1, high=MAX_TOKENS),
        "n": source.integer("n", low=1, high=MAX_CHOICES) if source.has("n") else 1,
        "stop": stop,
        "stream": source.boolean("stream", default=False),
        "sampling": Sampling.decode(source),
        "format": decode_format(source),
        "adapter": source.text_or_none("adapter", max_chars=MAX_MODEL_NAME_CHARS),
        "keep_alive_s": decode_keep_alive_s(source),
        "dry_run": source.boolean("dry_run", default=False),
        **decode_scheduling(source),
        **decode_labels(source),
    }


def _encode_completion(params: GenerateParams | ChatParams) -> dict[str, Any]:
    encoded = {"stream": params.stream, **params.sampling.encode()}
    for name in _OPTIONAL:
        if (value := getattr(params, name)) is not None:
            encoded[name] = value
    if params.n != 1:
        encoded["n"] = params.n
    if params.dry_run:
        encoded["dry_run"] = True
    if params.stop:
        encoded["stop"] = params.stop
    if params.format is not None:
        encoded["format"] = params.format.encode()
    return encoded
