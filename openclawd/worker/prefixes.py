"""What is kept of prefixes from one worker of a model to the next.

Owns which kept prefixes are written when a worker stops and restored when the next one loads, and
how long that may take. The format is `prefix_files.py`'s, what is kept while a worker runs is the
engine's.
"""

from __future__ import annotations

import hashlib
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from openclawctl.wire.units import format_size
from openclawd.worker.messages import SAVE_S
from openclawd.worker.prefix_files import PrefixFolder, SavedPrefix, file_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from openclawd.backends.base import Backend
    from openclawd.engine.prefixes import KeptPrefix
    from openclawd.engine.scheduler import Scheduler
    from openclawd.worker.messages import Load

_MAX_SAVED_BYTES: Final = 4 * 2**30
"""Most that one worker writes when it stops: some 30,000 tokens of an 8-billion model."""

_OF_MEMORY_ALONE: Final = ("mmap", "mlock")
"""Options that change where weights are, and nothing that is computed."""

_log = logging.getLogger(__name__)


class PersistentPrefixes:
    """Between a scheduler, a backend and a folder. Belongs to the engine thread.

    Whatever is wrong with the folder costs computing time only: it is logged, and nothing else.
    """

    def __init__(self, load: Load, backend: Backend, scheduler: Scheduler) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._is_on = load.persist_prefixes != "off" and backend.limits.num_prefix_tags > 0
        self._saves_all = load.persist_prefixes == "all"
        self._folder = _open_folder(load, backend)

    def restore_pinned(self, prompts: Iterable[list[int]]) -> None:
        """Put back what there is of these; what belongs to others is removed. Before `pin`."""
        wanted = [tuple(prompt) for prompt in prompts] if self._is_on else []

        def is_wanted(prefix: SavedPrefix) -> bool:
            tokens = tuple(prefix.tokens)
            return any(prompt[: len(tokens)] == tokens for prompt in wanted)

        self._restore(is_wanted, pinned=True)

    def restore_others(self) -> None:
        """Put back what users' requests left, if that is wanted; else it is removed. After `pin`,
        since pinned prefixes come first."""
        self._restore(lambda _: self._is_on and self._saves_all, pinned=False)

    def save(self) -> None:
        """Write what is not on the disk yet, and remove what is not kept any more. Blocks, for
        about `SAVE_S` at most. Whoever builds on what could not be written is not written either.
        """
        if self._folder is None or not (self._is_on and self._scheduler.is_idle):
            return  # a worker that is stopped while it computes has lost its daemon
        batch, kept = self._scheduler.kept_prefixes()
        self._backend.forward(batch)
        wanted = {
            self._folder.name_of(prefix.owner, prefix.tokens, prefix.start): prefix
            for prefix in kept
            if prefix.owner.is_everybody or self._saves_all
        }
        new = [prefix for name, prefix in wanted.items() if not self._folder.has(name)]
        self._folder.remove_others(wanted)
        if new:
            self._save(self._folder, new)

    def _restore(self, is_wanted: Callable[[SavedPrefix], bool], *, pinned: bool) -> None:
        if self._folder is None:
            return
        num_restored = num_tokens = 0
        for prefix in self._folder.read(pinned=pinned):
            if is_wanted(prefix) and self._put_back(prefix):
                num_restored += 1
                num_tokens += len(prefix.tokens) - prefix.start
            else:
                _log.info("a saved prefix is removed: it is not wanted any more, or has no room")
                self._folder.remove(prefix.owner, prefix.tokens, prefix.start)
        if num_restored:
            _log.info("%d saved prefixes restored (%d tokens)", num_restored, num_tokens)

    def _put_back(self, prefix: SavedPrefix) -> bool:
        tag = self._scheduler.adopt(prefix.owner, prefix.tokens, prefix.start)
        if tag is None:
            return False
        if not prefix.owner.is_everybody:
            self._backend.stow(tag, prefix.cells)
            return True
        if self._backend.copy_cells_in(tag, prefix.cells):
            return True
        self._scheduler.disown(tag)
        return False

    def _save(self, folder: PrefixFolder, prefixes: list[KeptPrefix]) -> None:
        deadline = time.monotonic() + SAVE_S
        num_saved = num_bytes = 0
        for prefix in prefixes:
            if time.monotonic() > deadline or num_bytes > _MAX_SAVED_BYTES:
                break
            cells = self._backend.copy_cells_out(prefix.tag)
            try:
                folder.write(SavedPrefix(prefix.owner, [*prefix.tokens], prefix.start, cells))
            except OSError as error:
                _log.warning("prefixes cannot be saved: %s", error)
                break
            num_saved += 1
            num_bytes += len(cells)
        _log.info(
            "%d of %d new prefixes saved (%s)", num_saved, len(prefixes), format_size(num_bytes)
        )


def _open_folder(load: Load, backend: Backend) -> PrefixFolder | None:
    """None where there is to be none, or a file that the cells depend on cannot be identified."""
    if not load.prefix_folder:
        return None
    try:
        fingerprints = _fingerprints(load, backend)
    except OSError as error:
        _log.warning("prefixes are neither saved nor restored: %s", error)
        return None
    folder = Path(load.prefix_folder)
    return PrefixFolder(folder, fingerprints=fingerprints, max_age_s=load.max_prefix_age_s)


def _fingerprints(load: Load, backend: Backend) -> dict[str, str]:
    """What the cells depend on, by adapter. Raises `OSError`."""
    options = sorted(item for item in load.options.items() if item[0] not in _OF_MEMORY_ALONE)
    settings = load.context, load.kv_tokens, options
    model = file_identity(Path(load.path)), backend.build, settings
    depends_on: dict[str, object] = {"": model}
    for name, adapter in load.adapters.items():
        depends_on[name] = model, file_identity(Path(adapter["path"])), adapter["scale"]
    return {
        name: hashlib.sha256(repr(facts).encode()).hexdigest() for name, facts in depends_on.items()
    }
