"""A hub on 127.0.0.1 that can cut, stall and lie. One thread a connection, no httpx.

As a program it serves over TLS, as a machine that has no network finds the hub of the world: with
nothing but what Python brings.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import ssl
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 16 * 1024


def gguf(num_bytes: int, seed: int = 1) -> bytes:
    """What begins like a GGUF file and goes on with noise."""
    noise = hashlib.shake_256(seed.to_bytes(4, "little")).digest(num_bytes - 8)
    return b"GGUF" + (3).to_bytes(4, "little") + noise


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Behaviour:
    """What a server does beside serving. `cuts` are numbers of bytes of a body after which it hangs
    up, one for each answer; with `stalls` it is silent there instead, until `go_on` is set."""

    cuts: list[int] = field(default_factory=list)
    stalls: bool = False
    knows_ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    sends: Callable[[str, bytes], bytes] = lambda path, data: data
    """What is really sent of a file."""
    says_length: Callable[[int], int | None] = lambda length: length
    redirects_to: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    go_on: threading.Event = field(default_factory=threading.Event)


class Hub:
    """Serves one repository with `files`; `listing` may be changed by a test. `certificate` is a
    file with a key and its certificate, for TLS."""

    def __init__(
        self,
        files: dict[str, bytes],
        behaviour: Behaviour | None = None,
        *,
        repo: str = "org/model",
        certificate: Path | None = None,
        port: int = 0,
    ) -> None:
        self.files = files
        self.repo = repo
        self.behaviour = behaviour or Behaviour()
        self.listing: dict[str, Any] = {
            "sha": COMMIT,
            "siblings": [_sibling(path, data) for path, data in files.items()],
        }
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.num_bytes_sent = 0
        self.on_chunk: Callable[[int], object] = lambda total: None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(OSError):
                    hub.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = False
        self._server.block_on_close = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.behaviour.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        self.requests.append((request.path, dict(request.headers)))
        path = unquote(urlsplit(request.path).path)
        if path.startswith(f"/api/models/{self.repo}/revision/"):
            self._send(request, json.dumps(self.listing).encode())
        elif self.behaviour.statuses:
            request.send_error(self.behaviour.statuses.pop(0))
        elif self.behaviour.redirects_to and not path.startswith("/elsewhere"):
            request.send_response(302)
            request.send_header("Location", self.behaviour.redirects_to + path)
            request.send_header("Content-Length", "0")
            request.end_headers()
        else:
            self._send_file(request, path)

    def _send_file(self, request: BaseHTTPRequestHandler, path: str) -> None:
        path = path.removeprefix("/elsewhere")
        path = path.removeprefix(f"/{self.repo}/resolve/{COMMIT}/").removeprefix("/")
        if path not in self.files:
            request.send_error(404)
            return
        data = self.files[path]
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start = 0
        match = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        is_same = request.headers.get("If-Range", etag) == etag
        if match and self.behaviour.knows_ranges and is_same:
            start = int(match[1])
        self._send(request, self.behaviour.sends(path, data)[start:], start, len(data), etag)

    def _send(
        self,
        request: BaseHTTPRequestHandler,
        body: bytes,
        start: int = 0,
        total: int | None = None,
        etag: str | None = None,
    ) -> None:
        request.send_response(206 if start else 200)
        length = self.behaviour.says_length(len(body)) if etag else len(body)
        if length is not None:
            request.send_header("Content-Length", str(length))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{total}")
        if etag:
            request.send_header("ETag", etag)
            for name, value in self.behaviour.headers.items():
                request.send_header(name, value)
        request.end_headers()
        self._send_body(request, body, is_file=etag is not None)

    def _send_body(self, request: BaseHTTPRequestHandler, body: bytes, *, is_file: bool) -> None:
        cut = self.behaviour.cuts.pop(0) if is_file and self.behaviour.cuts else None
        end = len(body) if cut is None else min(cut, len(body))
        for begin in range(0, end, CHUNK):
            chunk = body[begin : min(begin + CHUNK, end)]
            request.wfile.write(chunk)
            if is_file:
                self.num_bytes_sent += len(chunk)
                self.on_chunk(self.num_bytes_sent)
        if cut is not None and self.behaviour.stalls:
            self.behaviour.go_on.wait(30)


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_sha1(data)}
    if path.endswith((".gguf", ".safetensors", ".bin")):
        row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    return row


def main() -> None:
    """server.py CERTIFICATE REPO NAME=FILE PATH=FILE…: on port 443 until it is ended, the first
    file in the repository and the others under their paths."""
    certificate, repo, *served = sys.argv[1:]
    files = {}
    for each in served:
        name, _, path = each.partition("=")
        files[name] = Path(path).read_bytes()
    first = next(iter(files))
    hub = Hub({first: files[first]}, repo=repo, certificate=Path(certificate), port=443)
    hub.files.update(files)


if __name__ == "__main__":
    main()
