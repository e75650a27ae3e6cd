"""Showing an answer while it is written: text, progress, Ctrl-C, statistics. For generate and chat.

Invariant: the first Ctrl-C cancels on the daemon and waits for the exact usage; a second one leaves
at once.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

from openclawctl.cli.shell import say, write
from openclawctl.wire.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Self

    from openclawctl.cli.render import WaitingLine
    from openclawctl.client import Stream
    from openclawctl.results import Completion
    from openclawctl.wire.messages import Event

_PATIENCE_S: Final = 0.3
"""Waits shorter than this are not worth a progress line."""

_WORTH_TELLING_S: Final = 0.01


class Progress:
    """What is told while there is no text yet. Pass `on_event` to the request."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._is_shown = sys.stderr.isatty()
        self._line: WaitingLine | None = None

    def on_event(self, event: Event) -> None:
        data = event.data
        if event.kind == "warning":
            self.stop()
            say(f"openclawctl: warning: {data.get('message', data.get('code', ''))}")
        elif event.kind == "queued":
            self.show(_queued_text(data), None)
        elif event.kind == "loading":
            self.show(f"loading: {data.get('phase', '')}", data.get("fraction"))
        elif event.kind == "started":
            self.stop()

    def show(self, text: str, fraction: float | None) -> None:
        """Tell how far something is; `fraction` None when nobody knows."""
        if not self._is_shown or time.monotonic() - self._start < _PATIENCE_S:
            return
        if self._line is None:
            from openclawctl.cli.render import WaitingLine

            self._line = WaitingLine()
        self._line.update(text, fraction)

    def stop(self) -> None:
        """Take the line away, before anything else is printed."""
        if self._line is not None:
            self._line.stop()
            self._line = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _queued_text(data: dict[str, Any]) -> str:
    text, eta_s = f"queued, position {data.get('position', '?')}", data.get("eta_s")
    return text if eta_s is None else f"{text}, about {format_duration(eta_s)}"


def read_answer(stream: Stream, progress: Progress, *, is_shown: bool) -> bool:
    """Read a stream to its end, printing it if `is_shown`. Returns whether Ctrl-C ended it."""
    try:
        _read(stream, progress, is_shown=is_shown)
    except KeyboardInterrupt:
        stream.cancel()
        _read(stream, progress, is_shown=is_shown)
        return True
    return False


def _read(stream: Stream, progress: Progress, *, is_shown: bool) -> None:
    """Reasoning goes to a terminal beside the text, never into it."""
    is_reasoning = False
    for delta in stream:
        progress.stop()
        if not is_shown or delta.index != 0:
            continue
        if delta.reasoning and sys.stderr.isatty():
            is_reasoning = True
            say(delta.reasoning, end="")
        if delta.text and is_reasoning:
            is_reasoning = False
            say("\n")
        write(delta.text)
    progress.stop()


def chat_of(system: str | None, turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a chat: its turns, after the system message if it has one."""
    return [*([{"role": "system", "content": system}] if system else []), *turns]


def was_cancelled(result: Completion, *, is_interrupted: bool) -> bool:
    """Was it cancelled, here by Ctrl-C or by somebody else? The latter is told: it looks like an
    answer that is whole."""
    is_cancelled = result.finish_reason == "cancelled"
    if is_cancelled and not is_interrupted:
        say("openclawctl: the request was cancelled by somebody else; this is not all of it")
    return is_cancelled or is_interrupted


def stats_line(result: Completion) -> str:
    """Token counts and times in one line."""
    usage, timings = result.usage, result.timings
    reasons = ", ".join(choice.finish_reason for choice in result.choices)
    counts = f"{usage.prompt_tokens} prompt tokens ({usage.cached_tokens} cached)"
    parts = [
        f"{counts}, {usage.completion_tokens} completion tokens ({reasons})",
        f"queue {format_duration(timings.queue_s)}",
        f"total {format_duration(timings.total_s)}",
    ]
    if timings.load_s >= _WORTH_TELLING_S:
        parts.insert(1, f"load {format_duration(timings.load_s)}")
    if timings.ttft_s is not None:
        parts.insert(-1, f"first token {format_duration(timings.ttft_s)}")
        decode_s = timings.total_s - timings.ttft_s
        if usage.completion_tokens > 1 and decode_s > 0:
            parts.append(f"{(usage.completion_tokens - 1) / decode_s:.1f} tokens/s")
    return "; ".join(parts)
