"""What `openclawctl generate --dry-run` prints."""

from __future__ import annotations

from typing import Any, Final

from openclawctl.cli.budgets import MEASURES, time_text
from openclawctl.cli.shell import Shell, print_json, print_line, print_table
from openclawctl.wire.money import format_money
from openclawctl.wire.units import format_duration

_HEADER: Final = ["LIMIT", "UNIT", "LEFT", "AFTER", "RESETS"]


def print_forecast(shell: Shell, forecast: dict[str, Any]) -> None:
    """What a request would take, and what is left of what it is under."""
    if shell.is_json:
        print_json(forecast)
        return
    for name, text in _facts(forecast):
        print_line(f"{name:<8} {text}")
    rows = [*_rate_rows(forecast), *_budget_rows(forecast)]
    if rows:
        print_line()
        print_table(_HEADER, rows, right="LEFT AFTER", cut="LIMIT")


def _facts(forecast: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("model", str(forecast.get("model", "?"))),
        ("prompt", _prompt(forecast)),
        ("answer", f"at most {forecast.get('completion_tokens', '?')} tokens"),
        ("cost", cost_text(forecast.get("cost"))),
        ("limits", "; ".join(map(_limit, forecast.get("limits") or [])) or "none but the model's"),
        ("now", _queue(forecast)),
    ]


def _prompt(forecast: dict[str, Any]) -> str:
    dropped = (forecast.get("context") or {}).get("dropped")
    cut = f", after {dropped} were dropped" if dropped else ""
    return f"{forecast.get('prompt_tokens', '?')} tokens{cut}"


def cost_text(cost: dict[str, Any] | None) -> str:
    """The most that it costs."""
    if not cost:
        return "nothing: no model has a price"
    currency = cost.get("currency", "")
    text = f"at most {format_money(cost.get('total', 0))} {currency}"
    if cost.get("per_second"):
        text += f", and {format_money(cost['per_second'])} for each second of computing"
    return f"{text} (prompt: {format_money(cost.get('prompt', 0))})"


def _limit(limit: dict[str, Any]) -> str:
    values = [f"{name} {value:g}" for name, value in limit.items() if name not in ("name", "per")]
    return f"{limit.get('name', '?')} ({', '.join(values)})"


def _queue(forecast: dict[str, Any]) -> str:
    queue = forecast.get("queue") or {}
    text = f"{queue.get('running', '?')} running, {queue.get('waiting', '?')} waiting"
    if queue.get("eta_s"):
        text += f", it would wait about {format_duration(queue['eta_s'])}"
    if forecast.get("waits_for_budget"):
        text += "; it would wait for what others have reserved of a budget"
    return text


def _rate_rows(forecast: dict[str, Any]) -> list[list[str]]:
    return [_rate_row(rate, forecast) for rate in forecast.get("rate_limits") or []]


def _rate_row(rate: dict[str, Any], forecast: dict[str, Any]) -> list[str]:
    """Tokens of the answer are counted as they come, so the prompt's alone are taken off here."""
    left = max(0, rate.get("limit", 0) - rate.get("used", 0))
    taken = forecast.get("prompt_tokens", 0) if rate.get("unit") == "tokens" else 1
    window = f"within {format_duration(rate.get('window_s') or 0)}"
    wait_s = rate.get("retry_after_s") or 0
    when = f"{window}; room in {format_duration(wait_s)}" if wait_s else window
    name, unit = str(rate.get("rule", "?")), str(rate.get("unit", "?"))
    return [name, unit, str(left), str(max(0, left - taken)), when]


def _budget_rows(forecast: dict[str, Any]) -> list[list[str]]:
    return [
        [
            " of ".join(filter(None, [str(row.get("name", "?")), str(row.get("bucket") or "")])),
            measure,
            shown(row[measure].get("left") or 0),
            shown(row[measure].get("left_after") or 0),
            time_text(row.get("resets_at")) or "never",
        ]
        for row in forecast.get("budgets") or []
        for measure, shown in MEASURES.items()
        if isinstance(row.get(measure), dict)
    ]
