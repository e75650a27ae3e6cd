"""Who is told when a budget reaches one of its alert shares."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, PlainValidator

from openclawd.config import values
from openclawd.config.keys import Section, count, key

_WEBHOOK: Final = re.compile(r"https?://[A-Za-z0-9.\[\]:-]+([/?][\x21-\x7e]*)?")


def _command(value: list[str]) -> list[str]:
    """No shell: the first is a program's path, which depends on nobody's PATH."""
    if value and not value[0].startswith("/"):
        raise ValueError("not an absolute path")
    if any("\0" in item for item in value):
        raise ValueError("no argument can hold this")
    return value


def _webhook(value: str | None) -> str | None:
    if value is not None and not _WEBHOOK.fullmatch(value):
        raise ValueError("not such an address")
    return value


class NotifyConfig(Section):
    """What `openclawd-notify` does with an alert."""

    command: Annotated[list[str], AfterValidator(_command)] = key(
        [],
        meaning="A program to run for each alert, with its arguments, without a shell. It finds the"
        " alert in `OPENCLAW_BUDGET`, `OPENCLAW_PRINCIPAL`, `OPENCLAW_WINDOW`, `OPENCLAW_SHARE`,"
        " `OPENCLAW_USED`, `OPENCLAW_LIMIT` and `OPENCLAW_RESET_AT`.",
        allowed="a list: the absolute path of a program, then its arguments",
        default_text="none",
    )
    webhook: Annotated[str | None, AfterValidator(_webhook)] = key(
        None,
        meaning="An address that gets each alert as a POST of a JSON object. Certificates are"
        " verified, redirects not followed, proxies not used.",
        allowed="an address such as https://example.org/hook, without a user's name",
        default_text="none",
    )
    timeout_s: Annotated[float, PlainValidator(values.alert_timeout_s)] = key(
        10.0,
        alias="timeout",
        meaning="How long one attempt may take; then the command is killed with all it started.",
        allowed="a duration from 1ms to 10m",
        default_text="10s",
    )
    retries: int = count(
        3,
        low=0,
        high=10,
        meaning="How often it is tried again, after 1 s, 2 s, 4 s and so on.",
    )
