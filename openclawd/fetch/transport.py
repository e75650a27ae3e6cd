"""Answers of web servers, in pieces. The only module that opens a network connection (httpx).

Owns which addresses may be asked: https, with a certificate that this machine trusts, wherever
redirects lead; http only to this machine, and only if that was allowed for a test. A token goes to
the hub's own host and nowhere else. Proxies are those of the environment.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx

from openclawctl.wire.errors import Denied, InvalidRequest, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECT_S: Final = 15.0
SILENCE_S: Final = 30.0
"""A server that sends nothing for so long has stalled."""

_MAX_REDIRECTS: Final = 5
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class Interrupted(Exception):
    """The connection failed, and another one may do better. `str()` says how."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`chunks` begin at byte `start` of the whole, which has `total` bytes if that is known."""

    start: int
    total: int | None
    etag: str | None
    chunks: Iterator[bytes]


class Transport:
    """One for a request of the daemon's. `token` is for the host of `endpoint`."""

    def __init__(
        self,
        endpoint: str,
        *,
        token: str | None,
        allows_loopback_http: bool,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._allows_loopback_http = allows_loopback_http
        self._host = _origin(httpx.URL(endpoint)) if token else None
        self._token = token
        timeout = httpx.Timeout(silence_s, connect=CONNECT_S)
        headers = {"User-Agent": "openclawd-fetch", "Accept-Encoding": "identity"}
        self._client = httpx.Client(timeout=timeout, headers=headers, verify=_trust())

    def close(self) -> None:
        self._client.close()

    def read(self, url: str, *, max_bytes: int) -> bytes:
        """A small answer as a whole. Raises like `open`."""
        with self.open(url) as answer:
            data = b""
            for chunk in answer.chunks:
                data += chunk
                if len(data) > max_bytes:
                    raise Unavailable(f"{shown(url)} answers with more than {max_bytes} bytes")
            return data

    @contextlib.contextmanager
    def open(self, url: str, *, start: int = 0, etag: str | None = None) -> Iterator[Answer]:
        """Ask for an address from byte `start` on, if it still is what had this `etag`; the answer
        may begin at 0 all the same. Raises `Interrupted`, and `Problem` where another try is of no
        use."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and etag:
            headers["If-Range"] = etag
        with _mapped_errors(url), contextlib.ExitStack() as stack:
            yield _answer_of(self._follow(url, headers, stack), url, start)

    def _follow(
        self, url: str, headers: dict[str, str], stack: contextlib.ExitStack
    ) -> httpx.Response:
        here = httpx.URL(url)
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(here)
            own = {"Authorization": f"Bearer {self._token}"} if self._is_hub(here) else {}
            response = stack.enter_context(
                self._client.stream("GET", here, headers={**headers, **own})
            )
            if not response.has_redirect_location:
                return response
            here = here.join(response.headers["Location"])
        raise Unavailable(f"{shown(url)} redirects more than {_MAX_REDIRECTS} times")

    def _is_hub(self, url: httpx.URL) -> bool:
        return self._host is not None and _origin(url) == self._host

    def _check(self, url: httpx.URL) -> None:
        is_allowed = url.scheme == "https" or (
            url.scheme == "http" and self._allows_loopback_http and _is_loopback(url.host)
        )
        if not is_allowed or not url.host or url.userinfo:
            raise InvalidRequest(
                f"{shown(str(url))} is not an https address without a user's name",
                hint="models are fetched over https only",
            )


def shown(url: str) -> str:
    """What may be told of an address: queries and users' names are often secrets."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        return "the address"
    return f"{parsed.scheme}://{parsed.netloc.decode('ascii', 'replace')}{parsed.path}"


def _trust() -> ssl.SSLContext | bool:
    """What is trusted on this machine, a company's own authority too; `SSL_CERT_FILE` and
    `SSL_CERT_DIR` name another file or folder. httpx by itself would take the list that comes with
    it (True), which is for machines that have none."""
    paths = ssl.get_default_verify_paths()
    has_any = bool(paths.cafile or (paths.capath and os.listdir(paths.capath)))
    return ssl.create_default_context() if has_any else True


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _answer_of(response: httpx.Response, url: str, start: int) -> Answer:
    _check_status(response, url)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise Unavailable(f"{shown(url)} is sent compressed, which was not asked for")
    begin, total = 0, _number(response.headers.get("Content-Length"))
    if response.status_code == httpx.codes.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise Unavailable(f"{shown(url)} answers with another part than it was asked for")
        begin, total = start, int(match[3])
    etag = response.headers.get("ETag")
    # A weak one does not promise the same bytes (RFC 9110, 8.8.1).
    strong = etag if etag and not etag.startswith("W/") else None
    return Answer(begin, total, strong, response.iter_raw())


_WORTH_ANOTHER_TRY: Final = (408, 425, 429)
"""Of 4xx, what may pass (RFC 9110, RFC 8470, RFC 6585); any 5xx may."""

_NOTHING_LEFT: Final = 416


def _check_status(response: httpx.Response, url: str) -> None:
    status = response.status_code
    if status in (httpx.codes.OK, httpx.codes.PARTIAL_CONTENT):
        return
    what = f"{shown(url)} answers {status}"
    if status in (401, 403):
        raise Denied(what, hint="a model that needs a licence or login needs fetch.token_file")
    if status in (404, 410):
        raise NotFound(f"{what}: there is no such repository, revision or file")
    if status >= 500 or status in (*_WORTH_ANOTHER_TRY, _NOTHING_LEFT):
        raise Interrupted(what)
    raise Unavailable(what)


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdecimal() else None


@contextlib.contextmanager
def _mapped_errors(url: str) -> Iterator[None]:
    """httpx's exceptions become ours here and nowhere else."""
    try:
        yield
    except httpx.ReadTimeout:
        raise Interrupted("the server has stalled") from None
    except httpx.TransportError as error:
        if (untrusted := _untrusted(error)) is not None:
            raise Unavailable(
                f"the certificate of {shown(url)} is not trusted here: {untrusted.verify_message}",
                hint="an authority of your own goes into /usr/local/share/ca-certificates (as .crt;"
                " then update-ca-certificates), and a clock that is wrong must be set",
            ) from None
        raise Interrupted(f"the connection failed: {_reason(error)}") from None
    except (httpx.InvalidURL, httpx.HTTPError) as error:
        raise InvalidRequest(f"{shown(url)} cannot be asked: {_reason(error)}") from None


def _untrusted(error: BaseException | None) -> ssl.SSLCertVerificationError | None:
    """What is below httpx's exception, if that is a certificate."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
