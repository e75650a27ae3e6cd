"""Where the daemon's files are: flags, then systemd, then root's directories, then XDG."""

from __future__ import annotations

from pathlib import Path

from openclawctl import paths
from openclawd.config.places import find_places

SYSTEMD = {"RUNTIME_DIRECTORY": "/run/x:/run/y", "STATE_DIRECTORY": "/var/lib/x"}


def test_a_flag_wins() -> None:
    places = find_places(SYSTEMD, is_root=True, socket=Path("/tmp/s"), state_dir=Path("/tmp/d"))
    assert (places.socket, places.state_dir) == (Path("/tmp/s"), Path("/tmp/d"))


def test_systemd_wins_over_roots_directories() -> None:
    places = find_places(SYSTEMD, is_root=True)
    assert places.socket == Path("/run/x/openclawd.sock")
    assert places.ledger_file == Path("/var/lib/x/ledger.sqlite3")
    assert not places.uses_root_dirs


def test_root_by_hand_uses_the_system_directories() -> None:
    places = find_places({}, is_root=True)
    assert places.socket == Path("/run/openclawd/openclawd.sock")
    assert places.state_dir == Path("/var/lib/openclawd")
    assert places.uses_root_dirs


def test_a_user_gets_xdg_directories(monkeypatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    config = tmp_path / "config" / "openclawd" / "openclawd.yaml"
    config.parent.mkdir(parents=True)
    config.touch()
    places = find_places({}, is_root=False)
    assert places.socket == tmp_path / "run" / "openclawd" / "openclawd.sock"
    assert places.state_dir == tmp_path / "state" / "openclawd"
    assert places.config_file == config


def test_daemon_and_client_agree_on_a_users_socket(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    for runtime_dir in ("/run/user/4711", ""):
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime_dir)
        ours = find_places({}, is_root=False).socket
        assert str(ours.parent) == paths.user_runtime_dir()


def test_the_check_names_a_file_that_it_would_not_find_by_itself() -> None:
    def command(environ: dict[str, str], file: str, *, is_root: bool = True) -> str:
        return find_places(environ, is_root=is_root, config_file=Path(file)).check_command

    usual = "/etc/openclawd/openclawd.yaml"
    assert command({}, usual) == "openclawctl config check"
    assert command({}, "/tmp/my x.yaml") == "openclawctl config check '/tmp/my x.yaml'"
    unit = {"CONFIGURATION_DIRECTORY": "/etc/openclawd"}
    assert command(unit, usual) == "openclawctl config check"
    assert command(unit, usual, is_root=False) == f"openclawctl config check {usual}"


def test_which_socket_folders_may_be_made(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert find_places({}, is_root=True).usual_socket_dirs == {Path("/run/openclawd")}
    assert find_places({}, is_root=False).usual_socket_dirs == {Path("/run/user/1/openclawd")}
    assert Path("/run/x") in find_places(SYSTEMD, is_root=True).usual_socket_dirs


def test_a_relative_flag_becomes_absolute() -> None:
    assert find_places({}, is_root=False, socket=Path("s")).socket == Path.cwd() / "s"
