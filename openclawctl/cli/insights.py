"""`openclawctl insights`."""

from __future__ import annotations

from typing import Any

import click

from openclawctl.cli.shell import Shell, json_option, names_of, print_json, print_line, print_table


@click.command("insights")
@click.option(
    "--since", metavar="DURATION", default="30d", show_default=True, help="Look at the last 7d …"
)
@click.option(
    "--model", "-m", metavar="NAME", help="Only one model.", shell_complete=names_of("models")
)
@click.option(
    "--principal",
    metavar="NAME",
    help="Only one principal, such as user:alice.",
    shell_complete=names_of("principals"),
)
@json_option
@click.pass_obj
def insights_command(shell: Shell, /, since: str, model: str | None, principal: str | None) -> None:
    """Show what is wasteful or unusual in the ledger, what to do about it, and trends.

    \b
    Examples:
      openclawctl insights
      openclawctl insights --since 90d --json | jq '.findings[].do'
    """
    with shell.client() as client:
        report = client.insights(since=since, model=model, principal=principal)
    if shell.is_json:
        print_json(report)
        return
    findings = report.get("findings", [])
    for number, finding in enumerate(findings, 1):
        _print_finding(number, finding)
    if not findings:
        print_line(f"nothing to complain of in the last {since}")
    if trends := report.get("trends"):
        print_line()
        _print_trends(trends)


def _print_finding(number: int, finding: dict[str, Any]) -> None:
    about = ", ".join(filter(None, (finding.get("model"), finding.get("principal"))))
    print_line(f"{number}. {finding.get('kind')}: {about} ({_worth(finding)})")
    print_line(f"   {finding.get('seen')}")
    print_line(f"   → {finding.get('do')}")


def _worth(finding: dict[str, Any]) -> str:
    """Money is in millionths of the currency of the prices."""
    parts = []
    if cost := finding.get("cost"):
        parts.append(f"{cost / 1e6:,.2f} in money")
    if tokens := finding.get("tokens"):
        parts.append(f"{tokens:,} tokens")
    if kv_tokens := finding.get("kv_tokens"):
        parts.append(f"{kv_tokens:,} KV tokens of memory")
    return ", ".join(parts) or "little"


_NUMBERS = ("DAYS", "TOKENS", "PER_DAY", "PER_WEEK", "NEXT_7D", "NEXT_30D")


def _print_trends(trends: list[dict[str, Any]]) -> None:
    rows = [
        [
            str(trend.get("principal")),
            str(trend.get("model")),
            str(trend.get("days")),
            f"{trend.get('tokens', 0):,}",
            f"{trend.get('tokens_per_day', 0):,}",
            _change(trend.get("change_per_week")),
            *_forecasts(trend.get("forecasts", [])),
        ]
        for trend in trends
    ]
    header = ["PRINCIPAL", "MODEL", *_NUMBERS]
    print_table(header, rows, right=" ".join(_NUMBERS), cut="PRINCIPAL MODEL")


def _change(share: float | None) -> str:
    return "-" if share is None else f"{share:+.0%}"


def _forecasts(forecasts: list[dict[str, Any]]) -> list[str]:
    """Of 7 and 30 days, each with its 80 % interval."""
    texts = [f"{one['tokens']:,} ({one['low']:,}-{one['high']:,})" for one in forecasts]
    return [*texts, "-", "-"][:2]
