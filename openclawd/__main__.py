"""`openclawd`: command line, privileges, directories, logging; then the daemon."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import pwd
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from openclawctl.wire.errors import OpenclawError
from openclawd import __version__
from openclawd.arguments import OptionParser

try:
    from openclawd.config import (
        Config,
        ConfigError,
        config_from_models,
        load_config,
        missing_files,
    )
    from openclawd.config.effective import DEFAULT, Effective, Override, listing
    from openclawd.config.json_schema import json_schema
    from openclawd.config.places import Places, find_places
    from openclawd.config.source import KeyPath, Source, read_source
except ModuleNotFoundError as error:  # the base installation has this program, but only the client
    sys.exit(f"openclawd: error: {error}; the daemon needs `pip install 'openclawd[daemon]'`")

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 78
"""EX_CONFIG in sysexits.h: starting again cannot help, so a unit can list it in
`RestartPreventExitStatus=`."""

logger = logging.getLogger("openclawd")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon. Returns the exit status: 0 stopped, 1 could not start, 2 usage, 78
    configuration."""
    arguments = _parser().parse_args(argv)
    if arguments.config_schema:
        print(json.dumps(json_schema(), indent=2, ensure_ascii=False))  # noqa: T201
        return 0
    os.umask(0o027)  # whatever holds usage is made private on its own; logs are for a group to read
    places = _places(arguments)
    if arguments.models is not None:  # then no file is read, whatever stands in its place
        places = dataclasses.replace(places, config_file=None)
    if arguments.doctor:
        return _examine(arguments, places)
    try:
        config = _config(arguments, places)
        if arguments.show_config:
            print(_shown(arguments, config, places))  # noqa: T201
            return 0
    except ConfigError as error:
        print(error, file=sys.stderr)  # noqa: T201 - logging is not configured yet
        return EXIT_CONFIG
    if arguments.check_config:
        print(_checked(arguments, config, places))  # noqa: T201
        for warning in _warnings(config, places):
            print(f"openclawd: warning: {warning}", file=sys.stderr)  # noqa: T201
        return 0
    return _run(arguments, config, places)


def _examine(arguments: argparse.Namespace, places: Places) -> int:
    from openclawd.doctor.examination import Subject, examine

    subject = Subject(
        places,
        lambda: _config(arguments, places),
        user=arguments.user,
        metrics_port=arguments.metrics_port,
    )
    findings = [finding.as_dict() for finding in examine(subject)]
    print(json.dumps({"findings": findings}))  # noqa: T201
    return 0


def _run(arguments: argparse.Namespace, config: Config, places: Places) -> int:
    # Imported late: `--check-config` and `--help` need neither SQLite nor the loop.
    from openclawd import daemon
    from openclawd.observe import logs
    from openclawd.observe.systemd import Notifier
    from openclawd.server.listener import StartError

    try:
        _prepare_directories(places, arguments.user)
        with logs.configured(config.logging):
            if places.uses_root_dirs:
                logger.warning(
                    "started as root without systemd, with /run/openclawd and /var/lib/openclawd; "
                    "--user NAME drops root's rights"
                )
            logger.info("openclawd %s, pid %d", __version__, os.getpid())
            for warning in _warnings(config, places):
                logger.warning("%s", warning)
            settings = daemon.Settings(
                config, places, __version__, read_config=lambda: _config(arguments, places)
            )
            daemon.run(settings, Notifier())
    except (StartError, OpenclawError, OSError) as error:
        print(f"openclawd: error: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="openclawd",
        description="Serve GGUF models to local programs over a Unix socket.",
        epilog="Talk to it with openclawctl, or from Python with `from openclawctl import Client`.",
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--config", type=Path, metavar="FILE", help="configuration (YAML or JSON)")
    what.add_argument(
        "--models",
        metavar="NAME[=PATH],…",
        help="serve these models with default settings, without a configuration file; a NAME alone "
        "is NAME.gguf in the state directory's models/",
    )
    add("--workers", type=int, metavar="N", help="workers that have each model")
    add("--socket", type=Path, metavar="PATH", help="the Unix socket to listen on")
    add("--state-dir", type=Path, metavar="DIR", help="where the ledger and models/ are")
    add("--log-level", choices=["debug", "info", "warning", "error"], help="least severe to log")
    add("--log-format", choices=["auto", "journald", "json", "console"], help="how to log")
    add("--user", metavar="NAME", help="drop root's rights to this user after start")
    add("--check-config", action="store_true", help="check the configuration and exit")
    add(
        "--show-config",
        nargs="?",
        const="plain",
        choices=["plain", "origin", "json"],
        metavar="plain|origin|json",
        help="print the configuration that holds, or where each value is from as well, and exit",
    )
    add("--config-schema", action="store_true", help="print it as JSON Schema and exit")
    add("--doctor", action="store_true", help="say as JSON what is wrong on this machine, and exit")
    add("--metrics-port", type=int, metavar="PORT", help="openclawd-metrics' port, for --doctor")
    add("--version", action="version", version=f"openclawd {__version__}")
    add("--port", action=_RefusePort, help=argparse.SUPPRESS)
    return parser


class _RefusePort(argparse.Action):
    """`--port` is asked for by people who expect HTTP; tell them instead of "unrecognized"."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        parser.error(
            "--port: openclawd opens no network port; HTTP comes with the gateway, which is not "
            "built yet. Local programs use the Unix socket (--socket)"
        )


def _places(arguments: argparse.Namespace) -> Places:
    return find_places(
        os.environ,
        is_root=os.geteuid() == 0,
        socket=arguments.socket,
        state_dir=arguments.state_dir,
        config_file=arguments.config,
    )


def _config(arguments: argparse.Namespace, places: Places) -> Config:
    """The configuration with the command line's overrides. Raises `ConfigError`."""
    workers, state_dir = arguments.workers, places.state_dir
    if arguments.models is not None:
        config = config_from_models(arguments.models, workers=workers, state_dir=state_dir)
    elif places.config_file is not None:
        config = load_config(places.config_file, workers=workers, state_dir=state_dir)
    else:
        config = Config(model_paths=[str(state_dir / "models")])
    overrides = {"level": arguments.log_level, "format": arguments.log_format}
    overrides = {key: value for key, value in overrides.items() if value is not None}
    return config.model_copy(update={"logging": config.logging.model_copy(update=overrides)})


def _checked(arguments: argparse.Namespace, config: Config, places: Places) -> str:
    models = ", ".join(config.models) or "none"
    if places.config_file is None and arguments.models is None:
        missing = f"there is no configuration file at {places.usual_config_file}"
        return f"openclawd: {missing}, so the defaults hold; models: {models}"
    source = places.config_file or "--models"
    return f"openclawd: the configuration ({source}) is valid; models: {models}"


def _warnings(config: Config, places: Places) -> Iterator[str]:
    """What need not be wrong: files may come later."""
    place = places.config_file or "--models"
    for message in missing_files(config):
        yield f"{message}; put it there, or correct its path in {place}"


def _shown(arguments: argparse.Namespace, config: Config, places: Places) -> str:
    settings = Effective(config, *_sources(arguments, config, places)).settings()
    state_dir_from = _origin("state_dir", arguments, "STATE_DIRECTORY")
    if arguments.show_config == "json":
        rows = [setting.as_dict() for setting in settings]
        file = places.config_file and str(places.config_file)
        return json.dumps({"file": file, "settings": rows}, ensure_ascii=False)
    with_origin = arguments.show_config == "origin"
    head = [
        f"# configuration file: {places.config_file or 'none'}",
        f"# state directory: {places.state_dir} ({state_dir_from})",
        f"# socket: {places.socket} ({_origin('socket', arguments, 'RUNTIME_DIRECTORY')})",
    ]
    return "\n".join([*head, listing(settings, with_origin=with_origin)])


def _sources(
    arguments: argparse.Namespace, config: Config, places: Places
) -> tuple[Source, dict[KeyPath, Override]]:
    """The file, and what is not from it. Raises `ConfigError`."""
    if places.config_file is not None:
        source = read_source(places.config_file)
    else:
        source = Source("--models" if arguments.models else DEFAULT, {})
    overrides: dict[KeyPath, Override] = {}
    if arguments.workers is not None:
        overrides["models", "*", "workers"] = Override(arguments.workers, "--workers")
    for key in ("level", "format"):
        if (value := getattr(arguments, f"log_{key}")) is not None:
            overrides["logging", key] = Override(value, f"--log-{key}")
    if "model_paths" not in source.data:
        origin = _origin("state_dir", arguments, "STATE_DIRECTORY")
        overrides["model_paths",] = Override(config.model_paths, origin)
    return source, overrides


def _origin(option: str, arguments: argparse.Namespace, variable: str) -> str:
    if getattr(arguments, option) is not None:
        return f"--{option.replace('_', '-')}"
    return f"environment: ${variable}" if os.environ.get(variable) else DEFAULT


def _prepare_directories(places: Places, user: str | None) -> None:
    """Make the directories that are missing, and become `user`. Raises `OSError`, also for a
    socket's folder that is not of the usual ones: its name may be misspelt."""
    owner = _user(user) if user else None
    may_be_made = {*places.usual_socket_dirs, places.state_dir}
    if not places.socket.parent.is_dir() and places.socket.parent not in may_be_made:
        raise OSError(
            f"there is no folder {places.socket.parent} for the socket {places.socket.name}: "
            "correct --socket, or make the folder first"
        )
    folders = (
        (places.state_dir, 0o700),
        (places.socket.parent, 0o755),
        (places.state_dir / "models", 0o750),
    )
    for folder, mode in folders:
        if not folder.is_dir():
            _make_directory(folder, mode, owner)
    if owner is not None:
        os.initgroups(owner.pw_name, owner.pw_gid)
        os.setgid(owner.pw_gid)
        os.setuid(owner.pw_uid)


def _make_directory(folder: Path, mode: int, owner: pwd.struct_passwd | None) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)
        if owner is not None:
            shutil.chown(folder, owner.pw_uid, owner.pw_gid)
    except OSError as error:
        raise OSError(
            f"the directory {folder} cannot be made: {error.strerror}; name others with --socket "
            "and --state-dir"
        ) from None


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        raise OSError(f"there is no user {name!r} (--user)") from None


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
