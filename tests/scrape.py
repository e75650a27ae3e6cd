"""What a test sees of a daemon's metrics socket."""

from __future__ import annotations

import re
import socket
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from harness import Daemon

Samples = dict[str, dict[frozenset[tuple[str, str]], float]]
"""By name, by labels."""

_LINE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def metrics_socket(daemon: Daemon) -> Path:
    return daemon.socket.with_name(f"{daemon.socket.stem}-metrics.sock")


def get(path: Path, target: str) -> tuple[int, str]:
    """The status and the body of a GET."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        answer = b""
        while data := client.recv(65536):
            answer += data
    head, body = answer.split(b"\r\n\r\n", 1)
    return int(head.split(b" ")[1]), body.decode()


def parse(text: str) -> Samples:
    samples: Samples = defaultdict(dict)
    for line in text.splitlines():
        if not line.startswith("#"):
            match = _LINE.fullmatch(line)
            assert match, line
            labels = frozenset(_LABEL.findall(match[2] or ""))
            assert labels not in samples[match[1]], f"twice: {line}"
            samples[match[1]][labels] = float(match[3])
    return samples


def scrape(daemon: Daemon) -> Samples:
    status, body = get(metrics_socket(daemon), "/metrics")
    assert status == 200
    return parse(body)


def sum_by(samples: Samples, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Sums over all other labels; what is 0 is left out."""
    sums: dict[tuple[str, ...], float] = defaultdict(float)
    for found, value in samples.get(name, {}).items():
        values = dict(found)
        sums[tuple(values[label] for label in labels)] += value
    return {key: value for key, value in sums.items() if value}
