"""Names that a shell completes: of models, adapters, keys, principals, requests, instances.

Owns which names there are to choose from, and that asking for them never holds up somebody who
types: the daemon has `LIMIT_S` to answer, and what goes wrong is not told.
"""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from click.shell_completion import CompletionItem

from openclawctl.cli.requests import open_requests
from openclawctl.cli.shell import Shell
from openclawctl.wire.errors import OpenclawError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    import click

    from openclawctl.client import Client

LIMIT_S: Final = 0.2
"""For connecting, asking and hearing. Longer, and people take the terminal for stuck."""

_SINCE: Final = "30d"
"""Whoever has asked nothing for so long is not likely to be meant."""

_SOCKETS: Final = Path("/run/openclawd")


class _TooLate(Exception):
    """`LIMIT_S` are over."""


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Models, and their other names."""
    del param
    rows = _ask(ctx, lambda client: client.models())
    return _fitting([name for row in rows for name in _names_of(row)], incomplete)


def adapters(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """LoRAs of the model that is named already, else of all."""
    del param
    model = ctx.params.get("model")
    rows = _ask(ctx, lambda client: client.models())
    meant = [row for row in rows if model is None or model in _names_of(row)]
    return _fitting([name for row in meant for name in row.get("adapters") or []], incomplete)


def _names_of(model: dict[str, Any]) -> list[str]:
    return [str(model.get("name", "")), *(model.get("aliases") or [])]


def keys(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """API keys, to who may list them."""
    del param
    rows = _ask(ctx, lambda client: client.list_keys())
    return _fitting([str(row.get("name", "")) for row in rows], incomplete)


def principals(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Those whose usage one may see."""
    del param
    rows = _ask(ctx, lambda client: client.usage(by="principal", since=_SINCE).get("rows", []))
    return _fitting([str(row.get("key", "")) for row in rows], incomplete)


def requests(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Open requests, with who asked for what."""
    del param
    rows = _ask(ctx, lambda client: open_requests(client)["open"])
    return [
        CompletionItem(row["request_id"], help=f"{row['state']} {row['model']} {row['principal']}")
        for row in rows
        if row["request_id"].startswith(incomplete)
    ]


def instances(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Instances openclawd@NAME, by their sockets."""
    del ctx, param
    names = [path.stem for path in _SOCKETS.glob("*.sock")]
    return _fitting([name for name in names if name != "openclawd"], incomplete)


def _fitting(names: list[str], incomplete: str) -> list[CompletionItem]:
    fitting = {name for name in names if name and name.startswith(incomplete)}
    return [CompletionItem(name) for name in sorted(fitting)]


def _ask(
    ctx: click.Context, question: Callable[[Client], list[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """What the daemon says that is meant by the options typed so far; nothing if it says nothing in
    time."""
    given, shell = ctx.find_root().params, Shell()
    shell.socket_path, shell.api_key_file = given.get("socket"), given.get("api_key_file")
    try:
        with _limited(), shell.client() as client:
            return question(client)
    except (_TooLate, OpenclawError, OSError):
        return []


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise `_TooLate` in the block, wherever it is after `LIMIT_S`."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TooLate

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
