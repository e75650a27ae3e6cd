"""`make demo`: a real model answers through a real daemon, and what a warm model is worth.

Starts openclawd with SmolLM2 in a temporary directory, streams an answer from it, measures the time
to the first token with and without the daemon, shows the usage that the daemon recorded, and stops
it. Every figure is measured while you watch. Exit status 0 when all of it worked.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from children import ChildFailed
from first_token import cold_start, fresh_script, prompt, warm
from live import MODEL, Daemon, running_daemon, smollm2_path, stop_on_sigterm
from machine import DISTURBED_SHARE, CpuWatch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from openclawctl import Client, OpenclawError
from openclawctl.cli.shell import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openclawctl import Stream

PROMPT: Final = "Say hello to a new user of this computer in two friendly sentences."
MAX_TOKENS: Final = 60
COLD_ROUNDS: Final = 3
WARM_ROUNDS: Final = 5
WIDTH_WITHOUT_TERMINAL: Final = 100

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_WITHOUT_TERMINAL)


def main() -> int:
    stop_on_sigterm()
    started, watch = time.monotonic(), CpuWatch()
    try:
        demo()
    except KeyboardInterrupt:
        say("\n[yellow]Interrupted.[/] The daemon is stopped.")
        return 130
    except (OpenclawError, ChildFailed, AssertionError, OSError) as problem:
        return fail(problem)
    if watch.others_share() >= DISTURBED_SHARE:
        say(
            f"[yellow]Other processes used {watch.others_share():.0%} of this machine's CPU time "
            "meanwhile: on a calm machine the figures are better.[/]"
        )
    say(f"[dim]The daemon is stopped. All of this took {time.monotonic() - started:.0f} s.[/]")
    return 0


def demo() -> None:
    model_path = smollm2_path()
    headline("A daemon of your own")
    show_command(f"openclawd --models {MODEL}=…/{model_path.name}")
    started = time.monotonic()
    with running_daemon("--models", f"{MODEL}={model_path}") as daemon:
        daemon.wait_notification("STATUS=")  # its socket is open from then on
        with Client(daemon.socket, app="demo") as client:
            wait_loaded(client, daemon)
            say(
                f"{model_path.stem}, {model_path.stat().st_size / 2**20:.0f} MiB, was ready "
                f"{time.monotonic() - started:.1f} s after the daemon's start; it stays warm now."
            )
            headline("A chat")
            answer(client)
            headline("The time to the first token")
            compare_first_tokens(client, daemon)
        headline("What was used, from the daemon's ledger")
        run_command(["openclawctl", "usage", "--by", "app"], daemon)
    headline("How to go on")
    show_next_steps(model_path)


# ---- the steps ----


def wait_loaded(client: Client, daemon: Daemon) -> None:
    """Show how the model loads until the daemon says it is ready."""
    columns = (TextColumn("loading {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(MODEL, total=1.0)

        def show(phase: str, fraction: float | None) -> None:
            progress.update(task, description=f"{MODEL} ({phase})", completed=fraction)

        client.load(MODEL, on_progress=show)
        daemon.wait_ready()
        progress.update(task, description=MODEL, completed=1.0)


def answer(client: Client) -> None:
    """Stream one answer as it is written."""
    say(f"[bold]{'you':{len(MODEL)}}[/] {PROMPT}")
    say(f"[bold]{MODEL}[/] ", end="")
    messages = [{"role": "user", "content": PROMPT}]
    with client.chat(
        messages, model=MODEL, max_tokens=MAX_TOKENS, temperature=0, stream=True
    ) as stream:
        seconds = _print_stream(stream)
        result = stream.result
    assert result.text.strip(), "the model answered nothing"
    rate = result.usage.completion_tokens / seconds
    say(
        f"[dim]{result.usage.prompt_tokens} prompt tokens, {result.usage.completion_tokens} "
        f"completion tokens, {rate:.0f} tokens/s, first one after "
        f"{result.timings.ttft_s or 0:.3f} s[/]"
    )


def _print_stream(stream: Stream) -> float:
    """Print each piece when it comes. Returns the seconds it took."""
    started = time.monotonic()
    for delta in stream:
        sys.stdout.write(printable(delta.text))
        sys.stdout.flush()
    print()
    return time.monotonic() - started


def compare_first_tokens(client: Client, daemon: Daemon) -> None:
    """Measure now, each with a prompt of its own, and show the medians side by side."""
    with console.status("measuring …"):
        prompts = map(prompt, itertools.count())
        cold = [cold_start(next(prompts)) for _ in range(COLD_ROUNDS)]
        scripts = [fresh_script(str(daemon.socket), next(prompts)) for _ in range(COLD_ROUNDS)]
        warm_s = statistics.median(warm(client, next(prompts)) for _ in range(WARM_ROUNDS))
    cold_s = statistics.median(start.total_s for start in cold)
    load_s = statistics.median(start.load_s for start in cold)
    table = Table("from … to its first token", "first token", "times as long")
    for column in table.columns[1:]:
        column.justify = "right"
    for what, seconds in (
        ("a new process that loads the model itself", cold_s),
        ("  the same without starting Python and importing llama_cpp", load_s),
        ("a new process that asks the daemon", statistics.median(scripts)),
        ("a program that is connected to the daemon", warm_s),
    ):
        table.add_row(what, f"{seconds * 1e3:,.0f} ms", f"{seconds / warm_s:.1f}")
    console.print(table)
    say(
        f"Through the daemon the first token comes [bold]{cold_s / warm_s:.0f} times[/] sooner.\n"
        f"[dim]Short prompts; medians of {COLD_ROUNDS} cold and {WARM_ROUNDS} warm runs, just now; "
        "the model file was in the page cache.[/]"
    )


def show_next_steps(model_path: Path) -> None:
    say("Keep a daemon running, talk to it, and see what it does:")
    show_command(f"{_command('openclawctl')} daemon start --models {MODEL}={model_path}")
    show_command(f"{_command('openclawctl')} generate 'The capital of France is'")
    show_command(f"{_command('openclawctl')} status")


# ---- showing ----


def headline(text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


def say(text: str, *, end: str = "\n") -> None:
    console.print(text, end=end, soft_wrap=True)


def show_command(text: str) -> None:
    console.print(f"$ {text}", style="cyan", markup=False, soft_wrap=True)


def run_command(command: Sequence[str], daemon: Daemon) -> None:
    """Run an installed command as a user would, against this daemon."""
    name, *arguments = command
    show_command(" ".join(command))
    done = subprocess.run(
        [_command(name), "--socket", str(daemon.socket), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise ChildFailed(f"{' '.join(command)} failed: {done.stderr.strip()}")


def _command(name: str) -> str:
    """An installed command, which lies beside the interpreter; relative if that is shorter."""
    path = Path(sys.executable).with_name(name)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def fail(problem: Exception) -> int:
    errors = Console(stderr=True, highlight=False)
    errors.print("\nThe demo failed:", style="bold red")
    errors.print(str(problem), markup=False, soft_wrap=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
