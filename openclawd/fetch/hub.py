"""What a source means: which files of a hub's repository, with which sizes and checksums.

The addresses are those of huggingface.co, which others follow: `/api/models/REPO/revision/REV`
with `blobs=true` lists the files of a commit, `/REPO/resolve/COMMIT/PATH` is one of them. What a
hub says is not believed: every path is checked, and every file against its checksum.
"""

from __future__ import annotations

import fnmatch
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlsplit

from openclawctl.wire.errors import InvalidRequest, NotFound, Unavailable, Unsupported
from openclawd.fetch import checks

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.fetch.messages import Pull

LISTING_BYTES: Final = 16 * 1024 * 1024
"""Most that a repository's listing may have: some ten thousand files."""

_REPO: Final = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?::(.+))?", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40,64}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHA1: Final = re.compile(r"[0-9a-f]{40}")
_SHARD: Final = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_SHOWN_FILES: Final = 12
_WHOLE_MODELS: Final = ("config.json", "modules.json")
_DUPLICATES: Final = ("consolidated*", "original/*", "*/*.safetensors")
"""The same weights once more, in the layout of another program, or for another one."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """`path` is where it goes below the model's folder. Of the checksums one is known, or the
    request said that it may be unverified; `git_sha1` is that of git's blob."""

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be there afterwards: one file, or a folder of several."""

    name: str
    files: tuple[RemoteFile, ...]
    is_folder: bool
    source: str

    @property
    def size(self) -> int | None:
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def target(self) -> str:
        """The name in the models folder."""
        return self.name if self.is_folder else f"{self.name}{checks.GGUF}"


def plan(pull: Pull, read: Callable[[str], bytes]) -> Plan:
    """What a source means. `read` gives a small answer of the hub. Raises `Problem`."""
    if "://" in pull.source:
        return _plan_of_address(pull)
    match = _REPO.fullmatch(pull.source)
    if match is None:
        raise InvalidRequest(
            f"{pull.source[:200]!r} is neither REPO, REPO:FILE nor an https address",
            hint="such as bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M",
        )
    return _plan_of_repository(pull, match[1], match[2], read)


def _plan_of_address(pull: Pull) -> Plan:
    try:
        path = unquote(urlsplit(pull.source).path).rsplit("/", 1)[-1]
    except ValueError:
        raise InvalidRequest("the address is not one") from None
    checks.check_path(path)
    checks.check_kind(path)
    if not path.endswith(checks.GGUF):
        raise Unsupported(
            f"{path} is only a part of a model", hint="give the repository: REPO, without a file"
        )
    if pull.sha256 is None and not pull.is_unverified:
        raise InvalidRequest(
            "nobody says what the checksum of this address is, so it cannot be verified",
            hint="give it with --sha256, or --unverified to take whatever comes",
        )
    file = RemoteFile(path, pull.source, sha256=pull.sha256)
    name = pull.name or checks.name_from(path)
    return Plan(name, (file,), is_folder=False, source=_without_secrets(pull.source))


def _without_secrets(url: str) -> str:
    """Without a user's name and a query: what may be remembered of an address."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _plan_of_repository(
    pull: Pull, repo: str, pattern: str | None, read: Callable[[str], bytes]
) -> Plan:
    revision = quote(pull.revision, safe="")
    commit, files = _listing(
        read(f"{pull.endpoint}/api/models/{repo}/revision/{revision}?blobs=true")
    )
    paths = _choose(repo, sorted(files), pattern)
    is_folder = len(paths) > 1 or not paths[0].endswith(checks.GGUF)
    base = f"{pull.endpoint}/{repo}/resolve/{commit}"
    chosen = tuple(_remote_file(base, path, files[path], pull, is_folder) for path in paths)
    name = pull.name or checks.name_from(_folder_name(repo, paths[0]) if is_folder else paths[0])
    return Plan(name, chosen, is_folder=is_folder, source=f"{pull.source}@{commit[:12]}")


def _folder_name(repo: str, path: str) -> str:
    shard = _SHARD.fullmatch(path)
    return shard[1] if shard else repo


def _listing(data: bytes) -> tuple[str, dict[str, dict[str, Any]]]:
    """The commit, and what is said of each file."""
    try:
        answer = json.loads(data)
        commit = answer["sha"]
        files = {file["rfilename"]: file for file in answer["siblings"]}
        is_fine = _COMMIT.fullmatch(commit) and all(isinstance(path, str) for path in files)
    except (ValueError, TypeError, KeyError, RecursionError):
        is_fine = False
    if not is_fine:
        raise Unavailable(
            "the hub's answer is no listing of a repository", hint="check fetch.endpoint"
        )
    return commit, files


def _remote_file(
    base: str,
    path: str,
    facts: dict[str, Any],
    pull: Pull,
    is_folder: bool,  # noqa: FBT001 - private
) -> RemoteFile:
    checks.check_path(path)
    stored = facts.get("lfs")
    sha256 = _matching(_SHA256, stored.get("sha256")) if isinstance(stored, dict) else None
    if pull.sha256 is not None and not is_folder:
        sha256 = pull.sha256
    git_sha1 = None if sha256 else _matching(_SHA1, facts.get("blobId"))
    if not (sha256 or git_sha1 or pull.is_unverified):
        raise Unavailable(
            f"the hub does not say what the checksum of {path} is",
            hint="give it with --sha256, or --unverified to take whatever comes",
        )
    size = facts.get("size")
    return RemoteFile(
        path=path if is_folder else path.rsplit("/", 1)[-1],
        url=f"{base}/{quote(path)}",
        size=size if isinstance(size, int) and size >= 0 else None,
        sha256=sha256,
        git_sha1=git_sha1,
    )


def _matching(pattern: re.Pattern[str], value: object) -> str | None:
    return value if isinstance(value, str) and pattern.fullmatch(value) else None


# ---- which files ----


def _choose(repo: str, paths: list[str], pattern: str | None) -> list[str]:
    models = [path for path in paths if _is_model_gguf(path)]
    if pattern is not None:
        return _choose_by_pattern(repo, paths, pattern)
    if models:
        return _one_model(repo, models, paths)
    if any(path in _WHOLE_MODELS for path in paths):
        return _whole_model(repo, paths)
    raise Unsupported(f"{repo} holds no model: neither GGUF files nor a config.json")


def _choose_by_pattern(repo: str, paths: list[str], pattern: str) -> list[str]:
    if pattern in paths:
        checks.check_kind(pattern)
        found = [pattern]
    else:
        glob = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
        found = [path for path in paths if fnmatch.fnmatch(path.lower(), glob.lower())]
        found = [path for path in found if _is_model_gguf(path)]
    if not found:
        raise NotFound(
            f"no GGUF file of {repo} fits {pattern!r}",
            hint=f"there are: {_some([path for path in paths if path.endswith(checks.GGUF)])}",
        )
    if not found[0].endswith(checks.GGUF):
        raise Unsupported(
            f"{found[0]} is only a part of a model", hint="give the repository without a file"
        )
    return _one_model(repo, found, paths)


def _one_model(repo: str, found: list[str], paths: list[str]) -> list[str]:
    """One file, or all the parts of one that is split."""
    bases = {match[1] if (match := _SHARD.fullmatch(path)) else path for path in found}
    if len(bases) > 1:
        raise InvalidRequest(
            f"{repo} has {len(found)} files that fit",
            hint=f"choose one as REPO:FILE: {_some(found)}",
        )
    shard = _SHARD.fullmatch(found[0])
    if shard is None:
        return found
    parts = [path for path in paths if (match := _SHARD.fullmatch(path)) and match[1] == shard[1]]
    if len(parts) != int(shard[2]):
        raise Unavailable(f"{repo} has {len(parts)} of the {int(shard[2])} parts of {shard[1]}")
    return parts


def _whole_model(repo: str, paths: list[str]) -> list[str]:
    """Safetensors and what they need."""
    weights = [
        path
        for path in paths
        if path.endswith(checks.SAFETENSORS)
        and not any(fnmatch.fnmatch(path, each) for each in _DUPLICATES)
    ]
    if not weights and checks.has_pickles(paths):
        checks.check_kind(next(path for path in paths if checks.has_pickles([path])))
    if not weights:
        raise Unsupported(f"{repo} has no safetensors files")
    beside = [path for path in paths if checks.is_beside_weights(path)]
    return sorted(weights + [path for path in beside if not path.startswith("onnx/")])


def _is_model_gguf(path: str) -> bool:
    """Not what belongs to one, such as an encoder of images."""
    return path.endswith(checks.GGUF) and not path.rsplit("/", 1)[-1].startswith("mmproj")


def _some(paths: list[str]) -> str:
    more = len(paths) - _SHOWN_FILES
    return (", ".join(paths[:_SHOWN_FILES]) or "none") + (f" and {more} more" if more > 0 else "")
