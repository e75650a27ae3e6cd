"""`openclawctl status`, `ping` and `version`."""

from __future__ import annotations

import time
from typing import Any

import click

from openclawctl import __version__
from openclawctl.cli.latency import print_latency
from openclawctl.cli.shell import Shell, json_option, print_json, print_line, print_table
from openclawctl.wire.errors import DaemonUnreachable
from openclawctl.wire.units import format_duration, format_size

_NO_MODEL = "no model is configured: see `models:` in openclawd.yaml, or `openclawd --models`"


@click.command("status")
@click.option("--latency", is_flag=True, help="Show how long each model's requests take.")
@json_option
@click.pass_obj
def status_command(shell: Shell, /, *, latency: bool) -> None:
    """Show the daemon's state: requests, tokens, memory and models.

    \b
    Examples:
      openclawctl status
      openclawctl status --latency
      openclawctl status --json | jq .health
    """
    with shell.client() as client:
        status = client.status(latency=latency)
    if shell.is_json:
        print_json(status)
        return
    _print_server(status)
    rows = [_model_row(model) for model in status.get("models", [])]
    print_line()
    if rows:
        print_table(_HEADER, rows, right=_NUMBERS, cut="MODEL NOTE")
    else:
        print_line(_NO_MODEL)
    if latency:
        print_line()
        print_latency(status.get("models", []))


_HEADER = ["MODEL", "STATE", "RUNNING", "QUEUED", "WAIT", "MEMORY", "NOTE"]
_NUMBERS = "RUNNING QUEUED WAIT MEMORY"


def _print_server(status: dict[str, Any]) -> None:
    server = status.get("server", {})
    uptime = format_duration(server.get("uptime_s", 0))
    print_line(
        f"openclawd {server.get('version', '?')}, {server.get('state', '?')} for {uptime}"
        f", pid {server.get('pid', '?')}"
    )
    for name, value in _facts(status, server):
        print_line(f"  {name:<12} {value}")


def _facts(status: dict[str, Any], server: dict[str, Any]) -> list[tuple[str, str]]:
    requests, tokens = status.get("requests", {}), status.get("tokens", {})
    connections = status.get("connections", {})
    counts = ", ".join(
        f"{requests.get(name, 0)} {name}" for name in ("running", "queued", "finished", "failed")
    )
    processed = f"{tokens.get('prompt', 0)} prompt, {tokens.get('completion', 0)} completion"
    return [
        ("socket", str(server.get("socket", "?"))),
        ("requests", counts),
        ("tokens", f"{processed}, {tokens.get('per_s', 0):.1f}/s now"),
        ("connections", f"{connections.get('open', 0)} of {connections.get('max', 0)}"),
        ("memory", format_size(status.get("memory_bytes", 0))),
        ("health", _health(status.get("health", {}))),
        *_drain(server.get("drain")),
        ("you are", str(status.get("principal", "?"))),
    ]


def _drain(drain: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Who has told it to take no new requests, and what ends that."""
    if not drain:
        return []
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(drain.get("since", 0)))
    by = drain.get("by", "?")
    return [("drained by", f"{by} since {since}; `openclawctl resume` takes requests again")]


def _health(health: dict[str, Any]) -> str:
    """The worst of what is wrong, if anything is."""
    reasons = [str(reason.get("message")) for reason in health.get("reasons", [])]
    more = f" (and {len(reasons) - 1} more: `openclawctl health`)" if len(reasons) > 1 else ""
    return ": ".join([str(health.get("status", "?")), *reasons[:1]]) + more


def _model_row(model: dict[str, Any]) -> list[str]:
    is_default = " (default)" if model.get("default") else ""
    return [
        f"{model.get('name', '?')}{is_default}",
        str(model.get("state", "?")),
        str(model.get("busy", 0)),
        str(model.get("queued", 0)),
        _wait(model),
        format_size(model.get("memory_bytes") or 0),
        str(model.get("reason") or ""),
    ]


def _wait(model: dict[str, Any]) -> str:
    """About how long a new request of normal priority would wait."""
    eta_s = model.get("queue", {}).get("normal", {}).get("eta_s")
    return format_duration(eta_s) if eta_s else "-"


@click.command("ping")
@json_option
@click.pass_obj
def ping_command(shell: Shell, /) -> None:
    """Ask the daemon whether it answers, and how fast.

    \b
    Examples:
      openclawctl ping
      openclawctl --timeout 2 ping && echo "it answers"
    """
    with shell.client() as client:
        server = client.ping().get("server", "?")  # the first one connects too
        start = time.monotonic()
        client.ping()
        rtt_s = time.monotonic() - start
    if shell.is_json:
        print_json({"server": server, "rtt_s": rtt_s})
    else:
        print_line(f"{server} answered in {rtt_s * 1000:.2f} ms")


@click.command("version")
@json_option
@click.pass_obj
def version_command(shell: Shell, /) -> None:
    """Show the versions of this client and, if it can be reached, of the daemon.

    \b
    Examples:
      openclawctl version
      openclawctl version --json | jq -r .server
    """
    server = None
    try:
        with shell.client() as client:
            server = client.ping().get("server")
    except DaemonUnreachable:
        pass  # the client has a version without it
    if shell.is_json:
        print_json({"client": f"openclawctl {__version__}", "server": server})
    else:
        print_line(f"openclawctl {__version__}")
        print_line(str(server or "openclawd: not reachable"))
