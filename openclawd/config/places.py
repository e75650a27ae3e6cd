"""Where the daemon's directories and files are (design, "Names, places, defaults").

A flag wins over what systemd set, that over root's directories, those over the user's own (XDG).
Reads the environment (systemd's variables as they are given, XDG's as they are) and looks whether
one file exists; creates nothing.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAME = "openclawd"
CONFIG_FILE = "openclawd.yaml"


@dataclass(frozen=True, slots=True)
class Places:
    """`config_file` is None when none was named and none is in its usual place,
    `usual_config_file`. `shell_config_file` is the one of a daemon that this user starts without
    options and without systemd. The socket's folder may be made if it is of `usual_socket_dirs`.
    `uses_root_dirs`: started as root by hand, without systemd."""

    socket: Path
    state_dir: Path
    config_file: Path | None
    usual_config_file: Path
    shell_config_file: Path
    usual_socket_dirs: frozenset[Path]
    uses_root_dirs: bool

    @property
    def check_command(self) -> str:
        """What checks the configuration file, typed in a shell."""
        if self.config_file in (None, self.shell_config_file):
            return "openclawctl config check"
        return f"openclawctl config check {shlex.quote(str(self.config_file))}"

    @property
    def prefix_dir(self) -> Path:
        """A folder for each model, with what its workers keep of prefixes."""
        return self.state_dir / "prefixes"

    @property
    def notify_socket(self) -> Path:
        """Where systemd listens for `openclawd-notify`, if it does."""
        return self.socket.with_name("notify.sock")

    @property
    def fetch_socket(self) -> Path:
        """Where systemd listens for `openclawd-fetch`, if it does."""
        return self.socket.with_name("fetch.sock")

    @property
    def models_dir(self) -> Path:
        """Where models are put if the configuration says nothing."""
        return self.state_dir / "models"

    @property
    def metrics_socket(self) -> Path:
        """Where `/metrics` is offered, unless `monitoring.socket` says otherwise."""
        return self.socket.with_name(f"{self.socket.stem}-metrics.sock")

    @property
    def prefix_key_file(self) -> Path:
        """The key of prompts' hashes (`openclawd.ledger.prefix_key`)."""
        return self.state_dir / "prefix.key"

    @property
    def footprints_file(self) -> Path:
        """What models took in memory (`openclawd.fleet.footprints`)."""
        return self.state_dir / "footprints.json"

    @property
    def ledger_file(self) -> Path:
        return self.state_dir / "ledger.sqlite3"


def find_places(
    environ: Mapping[str, str],
    *,
    is_root: bool,
    socket: Path | None = None,
    state_dir: Path | None = None,
    config_file: Path | None = None,
) -> Places:
    """The places of a daemon started in `environ`, absolute. The keyword paths are its flags."""
    runtime_dir = _place(environ, "RUNTIME_DIRECTORY", is_root, Path("/run") / NAME)
    usual_socket_dirs = {runtime_dir, _place({}, "RUNTIME_DIRECTORY", is_root, Path("/run") / NAME)}
    states = state_dir or _place(environ, "STATE_DIRECTORY", is_root, Path("/var/lib") / NAME)
    usual, of_shell = (
        _place(variables, "CONFIGURATION_DIRECTORY", is_root, Path("/etc") / NAME) / CONFIG_FILE
        for variables in (environ, {})
    )
    if config_file is None and usual.exists():
        config_file = usual
    return Places(
        socket=(socket or runtime_dir / f"{NAME}.sock").absolute(),
        state_dir=states.absolute(),
        config_file=config_file and config_file.absolute(),
        usual_config_file=usual.absolute(),
        shell_config_file=of_shell.absolute(),
        usual_socket_dirs=frozenset(folder.absolute() for folder in usual_socket_dirs),
        uses_root_dirs=is_root and "STATE_DIRECTORY" not in environ and state_dir is None,
    )


def _place(environ: Mapping[str, str], variable: str, is_root: bool, root_dir: Path) -> Path:  # noqa: FBT001 - private
    given = environ.get(variable, "").split(":")[0]  # systemd lists several with colons
    if given:
        return Path(given)
    return root_dir if is_root else _XDG[variable]()


def _user_runtime_dir() -> Path:
    """Where logind puts it; the client looks there too (`openclawctl.paths`). Not platformdirs'
    answer: without `$XDG_RUNTIME_DIR` that is a name in /tmp that anybody can foresee and take."""
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}") / NAME


_XDG: dict[str, Callable[[], Path]] = {
    "RUNTIME_DIRECTORY": _user_runtime_dir,
    "STATE_DIRECTORY": lambda: platformdirs.user_state_path(NAME, appauthor=False),
    "CONFIGURATION_DIRECTORY": lambda: platformdirs.user_config_path(NAME, appauthor=False),
}
