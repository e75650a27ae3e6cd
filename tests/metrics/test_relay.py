"""`openclawd-metrics` as a process: what it passes on, whom it refuses, how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from openclawd.metrics.__main__ import main

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
PROGRAM = [sys.executable, "-m", "openclawd.metrics"]
AS_SYSTEMD_DOES = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "openclawd.metrics", *sys.argv[2:]])
"""


@contextlib.contextmanager
def daemon(path, answer=ANSWER):
    """A metrics socket that answers one request after the other, and what it was asked."""
    asked = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        if not (data := connection.recv(65536)):
                            return
                        asked.append(data)
                        connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))  # and says nothing: that ends the thread
            thread.join()


@contextlib.contextmanager
def running(*arguments, descriptor=None):
    """The program, once it listens; its port with it."""
    environ = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
    command = [*PROGRAM, *map(str, arguments)]
    if descriptor is not None:
        command = [sys.executable, "-c", AS_SYSTEMD_DOES, str(descriptor), *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        pass_fds=[] if descriptor is None else [descriptor],
    )
    try:
        line = process.stderr.readline()
        assert "offering" in line, line + process.stderr.read()
        yield process, int(line.split()[-1])
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def ask(port, request=REQUEST, host="127.0.0.1"):
    with socket.create_connection((host, port), timeout=20) as client:
        client.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := client.recv(65536):
                answer += data
        return answer


def test_it_passes_on_what_is_asked_and_answered_and_says_when_the_daemon_is_away(folder):
    path = folder / "m.sock"
    with running("--socket", path, "--listen", "127.0.0.1:0") as (process, port):
        away = ask(port)
        assert away.startswith(b"HTTP/1.1 502 ")
        assert b"systemctl status openclawd" in away
        with daemon(path) as asked:
            assert [ask(port), ask(port)] == [ANSWER, ANSWER]
        assert asked == [REQUEST, REQUEST]
        path.unlink()
        assert ask(port).startswith(b"HTTP/1.1 502 ")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert process.stderr.read().count("is openclawd running?") == 2


def test_a_socket_that_systemd_passes(folder):
    path = folder / "m.sock"
    with socket.create_server(("127.0.0.1", 0)) as listener, daemon(path):
        port = listener.getsockname()[1]
        with running("--socket", path, descriptor=listener.fileno()) as (_, said):
            assert (said, ask(port)) == (port, ANSWER)


@pytest.mark.parametrize("address", ["0.0.0.0:9867", "192.0.2.1:80", "[::]:1", "localhost:1", "x"])
def test_other_addresses_are_refused(address, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--listen", address])
    assert end.value.code == 2
    assert "--listen" in capsys.readouterr().err


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as holder:
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        ended = subprocess.run(
            [*PROGRAM, "--listen", address], capture_output=True, text=True, timeout=20, check=False
        )
    assert ended.returncode == 1
    assert "cannot listen" in ended.stderr
