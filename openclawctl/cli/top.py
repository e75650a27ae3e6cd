"""`openclawctl top`: what the daemon does just now, drawn again and again.

Owns the view: what of a `status` stands where, how much of it a terminal of some size shows, and
the rates of principals, which come from two looks at their requests.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import termios
import time
import tty
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from openclawctl.cli.requests import tokens_of
from openclawctl.cli.shell import (
    Shell,
    duration_s,
    json_option,
    one_line,
    print_json,
    print_json_line,
    print_line,
    table_lines,
)
from openclawctl.wire.errors import OpenclawError
from openclawctl.wire.units import format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from openclawctl.client import Client

    Line = tuple[str, bool]
    """A line of text, and whether it is a title."""

_MODELS: Final = ["MODEL", "STATE", "SLOTS", "QUEUED", "WAIT", "TOK/S", "MEMORY", "NOTE"]
_PRINCIPALS: Final = ["WHO", "RUNNING", "WAITING", "TOKENS", "TOK/S"]
_REQUESTS: Final = ["STATE", "PLACE", "TOKENS", "AGE", "PRINCIPAL", "APP", "MODEL", "ID"]
_NUMBERS: Final = "SLOTS QUEUED WAIT TOK/S MEMORY RUNNING WAITING TOKENS PLACE AGE"
_CUT: Final = "MODEL WHO PRINCIPAL APP"

_LEAST_INTERVAL_S: Final = 0.2
_WIDTH_OF_FILES: Final = 120


def _interval_s(ctx: click.Context, param: click.Parameter, value: str) -> float:
    return max(_LEAST_INTERVAL_S, duration_s(ctx, param, value) or 0.0)


@click.command("top")
@click.option("--once", is_flag=True, help="Show it once and end; so it is without a terminal.")
@click.option(
    "--interval",
    "interval_s",
    metavar="DURATION",
    default="1s",
    show_default=True,
    callback=_interval_s,
    help="How often to look; 200ms at the least.",
)
@json_option
@click.pass_obj
def top_command(shell: Shell, /, *, once: bool, interval_s: float) -> None:
    """Show what the daemon does just now: models, requests, the queue, tokens a second, and who.

    q or Ctrl-C ends it. Requests are your own, or everybody's if you may see them. With --json it
    prints an object a line, until Ctrl-C; with --once a single one.

    \b
    Examples:
      openclawctl top
      openclawctl top --once
      openclawctl top --json | jq -c '.principals[] | [.principal, .tokens_per_s]'
    """
    with shell.client() as client:
        look = Look(client)
        look.again()
        if once or not (shell.is_json or sys.stdout.isatty()):
            _show_once(shell, look)
            return
        try:
            if shell.is_json:
                _stream(look, interval_s)
            else:
                _draw(look, interval_s)
        except KeyboardInterrupt:
            return


def _show_once(shell: Shell, look: Look) -> None:
    if shell.is_json:
        print_json(look.as_dict())
        return
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDTH_OF_FILES
    for text, _ in look.lines(width, height=None):
        print_line(text)


def _stream(look: Look, interval_s: float) -> None:
    while True:
        print_json_line(look.as_dict())
        time.sleep(interval_s)
        look.again()


def _draw(look: Look, interval_s: float) -> None:
    """On the whole terminal. A daemon that goes away is waited for: it may be restarting."""
    from openclawctl.cli.render import Screen

    with Keys() as keys, Screen() as screen:
        while True:
            width, height = screen.size
            screen.draw(look.lines(width, height=height))
            if keys.wait("q", interval_s):
                return
            try:
                look.again()
            except OpenclawError as problem:
                look.problem = problem.message


class Keys:
    """What is typed, key by key and unseen, for the length of the block. Nothing without a
    terminal."""

    def __enter__(self) -> Self:
        self._fd = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        if self._fd is not None:
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._fd is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    def wait(self, key: str, timeout_s: float) -> bool:
        """Wait for a key, at most so long. Was it typed, or has the terminal gone?"""
        end = time.monotonic() + timeout_s
        while (left_s := end - time.monotonic()) > 0:
            ready, _, _ = select.select([] if self._fd is None else [self._fd], [], [], left_s)
            if ready and self._fd is not None:
                typed = os.read(self._fd, 64)
                if not typed or key.encode() in typed.lower():
                    return True
        return False


@dataclass(slots=True)
class Look:
    """What was seen last, and how fast requests have got on since the look before."""

    client: Client
    status: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    _seen_at: float = 0.0
    _tokens: dict[str, int] = field(default_factory=dict)
    _rates: dict[str, float] = field(default_factory=dict)

    def again(self) -> None:
        """Raises `OpenclawError`."""
        self.status = self.client.status(requests=True)
        self.problem = ""
        now, before = time.monotonic(), self._tokens
        self._tokens = {row["request_id"]: row.get("completion_tokens", 0) for row in self.open}
        self._rates = {
            name: (num_tokens - before.get(name, 0)) / (now - self._seen_at)
            for name, num_tokens in self._tokens.items()
            if self._seen_at
        }
        self._seen_at = now

    @property
    def open(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.status.get("requests", {}).get("open", [])
        return rows

    def as_dict(self) -> dict[str, Any]:
        """What `status` says, and who asks how much."""
        return {**self.status, "principals": self.principals()}

    def principals(self) -> list[dict[str, Any]]:
        """Those who have open requests, who gets most tokens first."""
        found: dict[str, dict[str, Any]] = {}
        for row in self.open:
            who = found.setdefault(
                row["principal"],
                {"principal": row["principal"], "running": 0, "waiting": 0}
                | {"completion_tokens": 0, "tokens_per_s": 0.0},
            )
            who["running" if row.get("state") == "running" else "waiting"] += 1
            who["completion_tokens"] += row.get("completion_tokens", 0)
            who["tokens_per_s"] += self._rates.get(row["request_id"], 0.0)
        for who in found.values():
            who["tokens_per_s"] = round(who["tokens_per_s"], 1)
        return sorted(found.values(), key=lambda who: (-who["tokens_per_s"], who["principal"]))

    def lines(self, width: int, *, height: int | None) -> list[Line]:
        """The view, so many columns wide; what is beyond `height` is counted in its last line."""
        lines = list(self._lines(width))
        if height is None or len(lines) <= height:
            return lines
        shown = lines[: max(0, height - 1)]
        return [*shown, (f"… {len(lines) - len(shown)} more lines", False)]

    def _lines(self, width: int) -> Iterator[Line]:
        yield self._headline(), True
        yield from ((one_line(text), False) for text in self._troubles())
        for header, rows in (
            (_MODELS, [_model_row(model) for model in self.status.get("models", [])]),
            (_PRINCIPALS, [_principal_row(who) for who in self.principals()]),
            (_REQUESTS, [_request_row(row) for row in self.open]),
        ):
            if rows:
                yield "", False
                lines = table_lines(header, rows, right=_NUMBERS, cut=_CUT, width=width)
                yield from ((text, number == 0) for number, text in enumerate(lines))

    def _headline(self) -> str:
        server, requests = self.status.get("server", {}), self.status.get("requests", {})
        waiting = requests.get("queued", 0)
        return (
            f"openclawd {server.get('version', '?')}, {server.get('state', '?')} for "
            f"{format_duration(server.get('uptime_s', 0))}: {requests.get('running', 0)} running, "
            f"{waiting} queued, {self.status.get('tokens', {}).get('per_s', 0):.1f} tokens/s"
        )

    def _troubles(self) -> Iterator[str]:
        if self.problem:
            yield f"no answer, trying again: {self.problem}"
        for reason in self.status.get("health", {}).get("reasons", []):
            yield f"! {reason.get('message')}"
        for gpu in self.status.get("gpus", []):
            used, size = gpu.get("used_bytes"), gpu.get("memory_bytes")
            busy = gpu.get("busy")
            yield (
                f"GPU {gpu.get('index', '?')} {gpu.get('name', '')}: "
                f"{format_size(used or 0)} of {format_size(size or 0)}"
                + (f", {busy:.0%} busy" if busy is not None else "")
            )


def _model_row(model: dict[str, Any]) -> list[str]:
    loading = model.get("loading") or {}
    note = f"{loading.get('phase', '')} {loading.get('fraction', 0):.0%}" if loading else ""
    eta_s = model.get("queue", {}).get("normal", {}).get("eta_s")
    return [
        str(model.get("name", "?")),
        str(model.get("state", "?")),
        f"{model.get('busy', 0)}/{model.get('slots', '-')}",
        str(model.get("queued", 0) + model.get("waiting", 0)),
        format_duration(eta_s) if eta_s else "-",
        f"{model.get('tokens_per_s') or 0:.1f}",
        format_size(model["memory_bytes"]) if model.get("memory_bytes") else "-",
        str(note or model.get("reason") or ""),
    ]


def _principal_row(who: dict[str, Any]) -> list[str]:
    numbers = [str(who[name]) for name in ("running", "waiting", "completion_tokens")]
    return [who["principal"], *numbers, f"{who['tokens_per_s']:.1f}"]


def _request_row(row: dict[str, Any]) -> list[str]:
    position = row.get("position")
    return [
        str(row.get("state", "?")),
        "-" if position is None else str(position),
        tokens_of(row),
        format_duration(row.get("age_s", 0)),
        *(str(row.get(name) or "-") for name in ("principal", "app", "model", "request_id")),
    ]
