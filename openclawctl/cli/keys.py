"""`openclawctl whoami` and `openclawctl keys`."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import click

from openclawctl.cli.budgets import MEASURES
from openclawctl.cli.secrecy import SecretFile, keep_memory_private
from openclawctl.cli.shell import (
    Shell,
    json_option,
    names_of,
    print_json,
    print_line,
    print_table,
    say,
)
from openclawctl.wire.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@click.command("whoami")
@json_option
@click.pass_obj
def whoami_command(shell: Shell, /) -> None:
    """Show who you are to the daemon, what you may do, and what you have left.

    \b
    Examples:
      openclawctl whoami
      openclawctl --api-key-file nightly.key whoami
      openclawctl whoami --json | jq .left
    """
    with shell.client() as client:
        me = client.whoami()
    if shell.is_json:
        print_json(me)
        return
    for name, value in _facts(me):
        print_line(f"{name:<12} {value}")


def _facts(me: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [(name, str(me.get(name, "?"))) for name in ("principal", "role", "tier")]
    if key := me.get("key"):
        facts.append(("key", f"{key.get('prefix', '?')}, expires {_date(key.get('expires_at'))}"))
    facts += [(name, _listed(me.get(name))) for name in ("groups", "operations", "models")]
    facts.append(("sees", "everybody's usage" if me.get("everybody") else "its own usage"))
    limits: Mapping[str, Any] = me.get("limits") or {}
    facts += [("limits", f"{what.replace('_', ' ')}: {value}") for what, value in limits.items()]
    return facts + [("left", text) for text in _left(me.get("left") or {})]


def _left(left: Mapping[str, Any]) -> list[str]:
    """What is left of each rate limit and budget."""
    rates = [
        f"{rate.get('rule')}: {max(0, rate.get('limit', 0) - rate.get('used', 0))} of"
        f" {rate.get('limit')} {rate.get('unit')} in {format_duration(rate.get('window_s') or 0)}"
        for rate in left.get("rate_limits") or []
    ]
    budgets = [
        f"{row.get('name')}: {shown(row[unit].get('left') or 0)} of"
        f" {shown(row[unit].get('limit') or 0)} {unit}"
        for row in left.get("budgets") or []
        for unit, shown in MEASURES.items()
        if row.get(unit)
    ]
    return rates + budgets


@click.group("keys")
def keys_command() -> None:
    """Make, list, rotate and revoke API keys.

    \b
    Examples:
      openclawctl keys create --name nightly --role user --expires 90d --out nightly.key
      openclawctl keys list
      openclawctl keys rotate nightly --overlap 1h --out new.key
      openclawctl keys revoke nightly
    """


def _secret_options(function: Callable[..., Any]) -> Callable[..., Any]:
    function = click.option(
        "--out",
        metavar="FILE",
        help="Write the key to a new file that only you can read, instead of showing it.",
    )(function)
    return click.option(
        "--expires", metavar="DURATION", help="After 12h, 90d … it is good no more. Default: never."
    )(function)


@keys_command.command("create")
@click.option("--name", required=True, metavar="NAME", help="What it is called in reports.")
@click.option("--role", required=True, metavar="ROLE", help="reader, user, operator, admin …")
@click.option("--tier", metavar="TIER", help="How urgent its requests are.")
@click.option(
    "--models", metavar="PATTERN,…", help="Models that it may use. Default: all that ROLE may."
)
@_secret_options
@json_option
@click.pass_obj
def create_command(
    shell: Shell,
    /,
    name: str,
    role: str,
    tier: str | None,
    models: str | None,
    expires: str | None,
    out: str | None,
) -> None:
    """Make an API key, and show it once: the daemon keeps only a hash of it.

    Programs name a file that holds it, with --api-key-file or $OPENCLAWD_API_KEY_FILE.

    \b
    Example:
      openclawctl keys create --name nightly --role user --expires 90d --out nightly.key
    """
    patterns = None if models is None else [pattern.strip() for pattern in models.split(",")]
    with _handing_over(out) as file, shell.client() as client:
        key = client.create_key(name, role=role, tier=tier, models=patterns, expires=expires)
        _hand_over(shell, key, file)


@keys_command.command("rotate")
@click.argument("name", shell_complete=names_of("keys"))
@click.option(
    "--overlap",
    metavar="DURATION",
    default="24h",
    show_default=True,
    help="How long the old key stays good; 0 ends it at once.",
)
@_secret_options
@json_option
@click.pass_obj
def rotate_command(
    shell: Shell, /, name: str, overlap: str, expires: str | None, out: str | None
) -> None:
    """Make a new key in place of the old one, under the same NAME.

    \b
    Examples:
      openclawctl keys rotate nightly --out new.key
      openclawctl keys rotate nightly --overlap 0 --expires 90d --out new.key
    """
    with _handing_over(out) as file, shell.client() as client:
        _hand_over(shell, client.rotate_key(name, overlap=overlap, expires=expires), file)


@keys_command.command("revoke")
@click.argument("name", shell_complete=names_of("keys"))
@json_option
@click.pass_obj
def revoke_command(shell: Shell, /, name: str) -> None:
    """End the key NAME for good, and the requests that run by it.

    \b
    Example:
      openclawctl keys revoke nightly
    """
    with shell.client() as client:
        key = client.revoke_key(name)
    if shell.is_json:
        print_json(key)
    else:
        print_line(f"{key.get('name', name)} is {key.get('state', 'revoked')}")


@keys_command.command("show")
@click.argument("name", shell_complete=names_of("keys"))
@json_option
@click.pass_obj
def show_command(shell: Shell, /, name: str) -> None:
    """Show what is known of the key NAME; never the key itself.

    \b
    Examples:
      openclawctl keys show nightly
      openclawctl keys show nightly --json | jq .last_used_at
    """
    with shell.client() as client:
        key = client.show_key(name)
    if shell.is_json:
        print_json(key)
        return
    for field in ("name", "state", "role", "tier"):
        print_line(f"{field:<12} {key.get(field, '?')}")
    for field in ("prefixes", "models"):
        print_line(f"{field:<12} {_listed(key.get(field))}")
    print_line(f"{'created':<12} {_date(key.get('created_at'))} by {key.get('created_by', '?')}")
    for field in ("expires", "revoked", "last_used"):
        print_line(f"{field.replace('_', ' '):<12} {_date(key.get(f'{field}_at'))}")


@keys_command.command("list")
@json_option
@click.pass_obj
def list_command(shell: Shell, /) -> None:
    """List all keys, the revoked ones too.

    \b
    Examples:
      openclawctl keys list
      openclawctl keys list --json | jq -r '.keys[] | select(.state == "valid").name'
    """
    with shell.client() as client:
        keys = client.list_keys()
    if shell.is_json:
        print_json({"keys": keys})
        return
    if not keys:
        print_line("no keys")
        return
    header = ["NAME", "KEY", "STATE", "ROLE", "TIER", "MODELS", "EXPIRES", "LAST USED"]
    print_table(header, [_row(key) for key in keys], cut="NAME KEY ROLE TIER MODELS")


def _row(key: dict[str, Any]) -> list[str]:
    used_at = key.get("last_used_at")
    ago = f"{format_duration(max(0.0, time.time() - used_at))} ago" if used_at else "never"
    texts = [str(key.get(name, "?")) for name in ("state", "role", "tier")]
    prefixes = [f"{prefix}…" for prefix in key.get("prefixes") or []]
    return [
        str(key.get("name", "?")),
        _listed(prefixes),
        *texts,
        _listed(key.get("models")),
        _date(key.get("expires_at")),
        ago,
    ]


def _handing_over(out: str | None) -> contextlib.AbstractContextManager[SecretFile | None]:
    """Get ready to hold a secret, and to write it to `out` if it is to go there."""
    keep_memory_private()
    return contextlib.nullcontext() if out is None else SecretFile(out)


def _hand_over(shell: Shell, key: dict[str, Any], file: SecretFile | None) -> None:
    secret = str(key.pop("secret", ""))
    if file is not None:
        file.write(secret)
        say(f"the key {key.get('name')} is in {file.path}")
    if key.get("expires_at") is not None:
        say(f"it is good until {_date(key['expires_at'])}")
    if shell.is_json:
        print_json(key if file is not None else {**key, "secret": secret})
    elif file is None:
        print_line(secret)
        say("this is the only time that the key is shown: the daemon keeps a hash of it")


def _listed(values: list[Any] | None) -> str:
    return ", ".join(map(str, values)) if values else "-"


def _date(seconds: float | None) -> str:
    return "never" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
