"""Where the client finds the daemon's socket and its own settings, and why a socket cannot be used.

Owns the order of look-up, the client configuration file and the sentences about sockets. Knows
nothing of the protocol.

The file, `~/.config/openclawd/client.yaml` (under `$XDG_CONFIG_HOME` where that is set), is a flat
list of `key: value` lines: the base installation has no YAML library, and three keys need none.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from openclawctl.wire.errors import DaemonUnreachable, Kind, OpenclawError

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawctl.options import CompletionOptions, EmbedOptions, ScoringOptions

SYSTEM_SOCKET: Final = "/run/openclawd/openclawd.sock"
SOCKET_VARIABLE: Final = "OPENCLAWD_SOCKET"
API_KEY_VARIABLE: Final = "OPENCLAWD_API_KEY_FILE"
START_HINT: Final = (
    "start it with `systemctl start openclawd`, or with `openclawctl daemon start` where there is "
    "no systemd; a daemon elsewhere is named by --socket or $OPENCLAWD_SOCKET"
)

_MAX_CONFIG_BYTES: Final = 64 * 1024
_MAX_KEY_CHARS: Final = 256
"""Longest API key: what a `hello` may carry."""


class ConfigError(OpenclawError):
    """The client's own configuration cannot be used. Its code is never on the wire."""

    code = "bad-config"
    kind = Kind.REQUEST
    exit_status = 2


@dataclass(frozen=True)
class ClientConfig:
    """What `client.yaml` may set. Paths are absolute."""

    socket: str | None = None
    default_model: str | None = None
    api_key_file: str | None = None


def config_file() -> str:
    """Where the client configuration is looked for, whether or not it exists."""
    # Spelled out, since importing platformdirs would be a tenth of `openclawctl status`.
    base = os.environ.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(base):
        base = os.path.expanduser("~/.config")
    return os.path.join(base, "openclawd", "client.yaml")


def load_config(path: str | None = None) -> ClientConfig:
    """The client configuration; an empty one when there is no file. Raises `ConfigError`."""
    path = path or config_file()
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_CONFIG_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return ClientConfig()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > _MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {_MAX_CONFIG_BYTES} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text") from None
    return parse_config(text, path=path)


def parse_config(text: str, *, path: str) -> ClientConfig:
    """Read flat `key: value` lines. Raises `ConfigError` with file and line."""
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#") or (number == 1 and stripped == "---"):
            continue
        where = f"{path}:{number}"
        key, value = _split_line(line, where)
        if key in values:
            raise ConfigError(f"{where}: {key!r} is set twice")
        values[key] = _KEYS[key](value, where) if value else ""
    return ClientConfig(**{key: value for key, value in values.items() if value})


def _split_line(line: str, where: str) -> tuple[str, str]:
    key, colon, rest = line.partition(":")
    if not colon or line[0].isspace() or line.startswith("-") or (rest and rest[0] not in " \t"):
        raise ConfigError(
            f"{where}: {line.strip()!r} is not a `key: value` line",
            hint="this file is flat: no lists, no indentation",
        )
    key = key.rstrip()
    if key not in _KEYS:
        raise ConfigError(f"{where}: unknown key {key!r}; allowed: {', '.join(_KEYS)}")
    return key, _scalar(rest.strip(), where)


def _scalar(text: str, where: str) -> str:
    """A plain or quoted value, without the comment behind it."""
    if not text.startswith(("'", '"')):
        return text.split(" #")[0].rstrip() if not text.startswith("#") else ""
    end = text.find(text[0], 1)
    rest = text[end + 1 :].strip()
    if end < 0 or "\\" in text[:end] or (rest and not rest.startswith("#")):
        raise ConfigError(f"{where}: {text!r} is not one quoted value without backslashes")
    return text[1:end]


def _text(value: str, where: str) -> str:
    del where
    return value


def _absolute_path(value: str, where: str) -> str:
    path = os.path.expanduser(value)
    if not os.path.isabs(path):
        raise ConfigError(f"{where}: {value!r} must be an absolute path, or start with ~/")
    return path


_KEYS: Final[dict[str, Callable[[str, str], str]]] = {
    "socket": _absolute_path,
    "default_model": _text,
    "api_key_file": _absolute_path,
}


def find_socket(explicit: str | None, *, config: ClientConfig) -> str:
    """The daemon's socket: `explicit` (`--socket`), `$OPENCLAWD_SOCKET`, the client configuration,
    the system's if it exists, the user's own. Whether anything listens there is another matter."""
    chosen = explicit or os.environ.get(SOCKET_VARIABLE) or config.socket
    if chosen:
        return chosen
    if os.path.exists(SYSTEM_SOCKET) or os.geteuid() == 0:  # root's own daemon is the system's
        return SYSTEM_SOCKET
    return os.path.join(user_runtime_dir(), "openclawd.sock")


def user_runtime_dir() -> str:
    """The directory of a daemon that runs for this user alone; the daemon chooses the same.

    Not platformdirs' answer: without `$XDG_RUNTIME_DIR` that may be a name in /tmp, which anybody
    can foresee and take.
    """
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return os.path.join(base, "openclawd")


def api_key_path(explicit: str | None, *, config: ClientConfig) -> str | None:
    """The file that is to hold the API key, if one is named."""
    return explicit or os.environ.get(API_KEY_VARIABLE) or config.api_key_file


def load_api_key(explicit: str | None, *, config: ClientConfig) -> str | None:
    """The API key, from a file: never from the command line, where `ps` shows it.

    Raises `ConfigError` when a file is named and cannot be used.
    """
    path = api_key_path(explicit, config=config)
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            key = file.read(_MAX_KEY_CHARS + 16).strip()
    except OSError as error:
        raise ConfigError(f"cannot read the API key file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"the API key file {path} is not UTF-8 text") from None
    if not 0 < len(key) <= _MAX_KEY_CHARS:
        raise ConfigError(f"the API key file {path} must hold 1 to {_MAX_KEY_CHARS} characters")
    return key


class Target:
    """Which daemon a client talks to, as whom, and about which model: what its caller said, and the
    client configuration for what was left out. The file is read once, when first needed."""

    def __init__(self, socket_path: str | None, api_key_file: str | None) -> None:
        self._socket_path = socket_path
        self._api_key_file = api_key_file
        self._config: ClientConfig | None = None

    def socket_path(self) -> str:
        return find_socket(self._socket_path, config=self._loaded_config())

    def api_key(self) -> str | None:
        return load_api_key(self._api_key_file, config=self._loaded_config())

    def holds_key(self) -> bool:
        """Is a file with an API key named anywhere?"""
        return bool(api_key_path(self._api_key_file, config=self._loaded_config()))

    def default_model(self) -> str | None:
        return self._loaded_config().default_model

    def set_default_model(self, options: CompletionOptions | EmbedOptions | ScoringOptions) -> None:
        if options.get("model") is None:
            options["model"] = self.default_model()

    def model_params(self, model: str | None) -> dict[str, str]:
        model = model or self.default_model()
        return {} if model is None else {"model": model}

    def _loaded_config(self) -> ClientConfig:
        if self._config is None:
            self._config = load_config()
        return self._config


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return True  # gone since, or closed to us


def why_unreachable(path: str, error: OSError) -> DaemonUnreachable:
    """What a failed `connect` means, and what to do about it."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return DaemonUnreachable(
            f"there is no socket at {path}: openclawd is not running", hint=START_HINT
        )
    if isinstance(error, PermissionError):
        return DaemonUnreachable(f"no permission to use the socket {path}", hint=_group_hint(path))
    if isinstance(error, ConnectionRefusedError) and not _is_socket(path):
        return DaemonUnreachable(
            f"{path} is no socket",
            hint="name the daemon's with --socket or $OPENCLAWD_SOCKET; it is usually "
            f"{SYSTEM_SOCKET}",
        )
    if isinstance(error, ConnectionRefusedError):
        return DaemonUnreachable(
            f"nothing listens on {path}: the daemon that made this socket is gone", hint=START_HINT
        )
    if isinstance(error, TimeoutError | BlockingIOError):
        return DaemonUnreachable(
            f"the daemon at {path} accepts no connection: its queue of callers is full",
            hint="see `systemctl status openclawd` and the daemon's log",
        )
    return DaemonUnreachable(f"cannot connect to {path}: {error.strerror or error}")


def _group_hint(path: str) -> str:
    """Which group may use the socket, and how the caller gets into it."""
    import grp
    import pwd

    try:
        gid = os.stat(path).st_gid
        group = grp.getgrgid(gid)
        user = pwd.getpwuid(os.geteuid()).pw_name
    except (OSError, KeyError):  # a directory on the way is closed to us, or a nameless id
        return "ask the administrator for membership of the group that owns this socket"
    if user in group.gr_mem and gid not in os.getgroups():
        return f"{user} is in group {group.gr_name}, but not in this session: log in again"
    join = f"`sudo usermod -aG {group.gr_name} {user}`"
    return f"it belongs to group {group.gr_name}: {join}, then log in again"
