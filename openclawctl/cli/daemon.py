"""`openclawctl daemon`: a daemon in the background for people without systemd."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from openclawctl import paths
from openclawctl.cli import launch
from openclawctl.cli.shell import Shell, json_option, print_json, print_line, say
from openclawctl.wire.errors import EXIT_UNREACHABLE, OpenclawError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_F = TypeVar("_F", bound="Callable[..., Any]")

_ROOT_STATE_DIR: Final = Path("/var/lib/openclawd")


@click.group("daemon")
def daemon_command() -> None:
    """Start and stop a daemon of your own, where there is no systemd.

    \b
    Examples:
      openclawctl daemon start --models smollm2=./SmolLM2-135M-Instruct.Q4_1.gguf
      openclawctl daemon stop
    """


def _refuse_port(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.BadParameter(
            "openclawd opens no network port: HTTP comes with the gateway, which is not built yet. "
            "Local programs use the Unix socket (--socket)",
            ctx=ctx,
            param=param,
        )


_OPTIONS: Final = (
    click.option("--models", metavar="NAME[=PATH],…", help="Serve these models."),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        metavar="N",
        help="Workers that have each model.",
    ),
    click.option("--config", metavar="FILE", type=click.Path(), help="The daemon's configuration."),
    click.option("--socket", metavar="PATH", type=click.Path(), help="The socket to listen on."),
    click.option(
        "--state-dir",
        metavar="DIR",
        type=click.Path(),
        help="Where its ledger, log and models/ are.",
    ),
    click.option("--port", hidden=True, expose_value=False, callback=_refuse_port),
)


def _start_options(function: _F) -> _F:
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


@daemon_command.command("start")
@_start_options
@json_option
@click.pass_obj
def start_command(shell: Shell, /, **options: Any) -> None:
    """Start openclawd in the background and wait until its models are ready.

    \b
    Examples:
      openclawctl daemon start --models smollm2=./SmolLM2-135M-Instruct.Q4_1.gguf
      openclawctl daemon start --config ./openclawd.yaml
    """
    shell.socket_path = options["socket"] or shell.socket_path
    path = _socket_path(shell)
    running = launch.find_running(path)
    if running is not None:
        _tell(shell, path, running, "was already running", runs=True)
        warn_of_options(running, _arguments(shell, options))
        return
    _warn_of_systemd()
    started = _launch(shell, _arguments(shell, options), options["state_dir"])
    _tell(shell, path, started, "started", runs=True)


@daemon_command.command("stop")
@json_option
@click.pass_obj
def stop_command(shell: Shell, /) -> None:
    """Let openclawd finish its requests, and stop it.

    \b
    Examples:
      openclawctl daemon stop
      openclawctl --timeout 10 daemon stop
    """
    path = _socket_path(shell)
    running = launch.find_running(path)
    if running is not None:
        _refuse_unit(running, "stop")
        launch.stop(running.pid, timeout_s=shell.timeout_s or launch.STOP_TIMEOUT_S)
    _tell(shell, path, running, "stopped" if running else "was not running", runs=False)


@daemon_command.command("restart")
@_start_options
@json_option
@click.pass_obj
def restart_command(shell: Shell, /, **options: Any) -> None:
    """Stop openclawd and start it again, with the same options if none are given.

    \b
    Examples:
      openclawctl daemon restart
      openclawctl daemon restart --config ./openclawd.yaml --workers 2
    """
    shell.socket_path = options["socket"] or shell.socket_path
    path = _socket_path(shell)
    arguments = _arguments(shell, options)
    running = launch.find_running(path)
    if running is not None:
        _refuse_unit(running, "restart")
        if not any(options.values()):  # as it was started
            arguments = launch.arguments_of(running.pid)
        launch.stop(running.pid, timeout_s=shell.timeout_s or launch.STOP_TIMEOUT_S)
    _tell(shell, path, _launch(shell, arguments, options["state_dir"]), "restarted", runs=True)


@daemon_command.command("status")
@json_option
@click.pass_obj
def status_command(shell: Shell, /) -> int:
    """Say whether openclawd runs, as which process. Exits 3 if it does not.

    \b
    Examples:
      openclawctl daemon status
      openclawctl daemon status || openclawctl daemon start --config ./openclawd.yaml
    """
    path = _socket_path(shell)
    running = launch.find_running(path)
    if running is None:
        _tell(shell, path, None, "is not running", runs=False)
        return EXIT_UNREACHABLE
    managed = f", as {running.unit} of systemd" if running.unit else ""
    _tell(shell, path, running, f"is running{managed}", runs=True)
    return 0


def _socket_path(shell: Shell) -> str:
    return os.path.abspath(paths.find_socket(shell.socket_path, config=paths.load_config()))


def _tell(
    shell: Shell, path: str, process: launch.Running | None, sentence: str, *, runs: bool
) -> None:
    """`process` is the one that runs now, or was stopped."""
    pid = process.pid if process else None
    if shell.is_json:
        state = "running" if runs else "stopped"
        print_json({"state": state, "pid": pid if runs else None, "socket": path})
    else:
        who = "openclawd" if pid is None else f"openclawd (pid {pid})"
        print_line(f"{who} {sentence}; socket {path}")


def _arguments(shell: Shell, options: dict[str, Any]) -> list[str]:
    """The daemon's own arguments. Paths become absolute: it does not run in this directory."""
    arguments = []
    if options["models"]:
        arguments += ["--models", ",".join(map(_absolute_model, options["models"].split(",")))]
    if options["workers"]:
        arguments += ["--workers", str(options["workers"])]
    # Always said: the client may have found this path by means that the daemon does not know.
    arguments += ["--socket", _socket_path(shell)]
    for name in ("config", "state_dir"):
        if options[name]:
            arguments += [f"--{name.replace('_', '-')}", os.path.abspath(options[name])]
    return arguments


def warn_of_options(running: launch.Running, arguments: list[str]) -> None:
    """Say which options a daemon that runs already was not started with, and how to apply them."""
    try:
        its_own = launch.arguments_of(running.pid)
    except (OpenclawError, OSError):  # systemd, which listens for it; not for this user to see
        its_own = []
    options = [word for word in arguments[::2] if word != "--socket"]  # all of them have a value
    differ = [each for each in options if _value(each, arguments) != _value(each, its_own)]
    if not differ:
        return
    verb = "was" if len(differ) == 1 else "were"
    if running.unit:
        what = f"it is {running.unit}: change its configuration, then say `openclawctl reload`"
    else:
        what = f"apply all that you give with `openclawctl daemon restart {shlex.join(arguments)}`"
    say(f"openclawctl: warning: {' and '.join(differ)} {verb} not applied; {what}")


def _value(option: str, arguments: Sequence[str]) -> str | None:
    """The value of `--option VALUE` or `--option=VALUE`."""
    for word, following in zip(arguments, [*arguments, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if name == option:
            return value if equals else following
    return None


def _absolute_model(entry: str) -> str:
    """`name=PATH` with the path made absolute. A mere file name that is not here stays as it is:
    the daemon looks it up in its own directories."""
    name, equals, path = entry.partition("=")
    if not equals and ("/" in entry or entry.endswith(".gguf")):  # it will ask for a name
        return os.path.abspath(entry) if "/" in entry or os.path.exists(entry) else entry
    path = os.path.expanduser(path)
    is_here = equals and ("/" in path or os.path.exists(path))
    return f"{name}={os.path.abspath(path)}" if is_here else entry


def log_file_of(arguments: Sequence[str], state_dir: str | None = None) -> Path:
    """Where the log of a daemon goes that `daemon start` has started with these arguments."""
    return _state_dir(state_dir, arguments) / "openclawd.log"


def _launch(shell: Shell, arguments: Sequence[str], state_dir: str | None) -> launch.Running:
    pid = launch.start(
        arguments,
        log_file=log_file_of(arguments, state_dir),
        on_status=lambda text: say(f"openclawd: {text}"),
        timeout_s=shell.timeout_s,
    )
    with shell.client() as client:  # it is ready even when a model is not: say so at once
        for model in client.models():
            if model.get("state") == "failed":
                say(f"openclawctl: warning: model {model['name']} failed: {model.get('reason')}")
    return launch.Running(pid, unit=None)


def _state_dir(explicit: str | None, arguments: Sequence[str]) -> Path:
    """Where the daemon keeps its state: the log goes there too."""
    if "--state-dir" in arguments:
        return Path(arguments[arguments.index("--state-dir") + 1])
    given = explicit or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given).absolute()
    if os.geteuid() == 0:
        return _ROOT_STATE_DIR
    import platformdirs

    return Path(platformdirs.user_state_path("openclawd", appauthor=False))


def _warn_of_systemd() -> None:
    """A second daemon beside the system's is allowed, but rarely what was meant."""
    systemctl = shutil.which("systemctl")
    if systemctl is None or not Path("/run/systemd/system").is_dir():
        return
    answer = subprocess.run(
        [systemctl, "is-active", "openclawd.service"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.stdout.strip() in ("active", "activating"):
        say("openclawctl: note: systemd runs an openclawd too; this one is a second daemon")


def _refuse_unit(running: launch.Running, verb: str) -> None:
    if running.unit is not None:
        raise OpenclawError(
            f"this openclawd is {running.unit} of systemd, which would start it again",
            hint=f"use `systemctl {verb} {running.unit}`",
        )
