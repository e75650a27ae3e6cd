"""One worker's life: load the model, warm it up, then serve.

Owns when each part exists: messages that come while the model is loading wait. Knows no
sockets and no signals.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from openclawd.backends.base import (
    AdapterSpec,
    CannotLoad,
    LoadAborted,
    LoadSpec,
)
from openclawd.worker.backends import load_of
from openclawd.worker.drafting import make_drafter
from openclawd.worker.loop import EngineLoop
from openclawd.worker.messages import (
    EXIT_LOAD_FAILED,
    EXIT_LOAD_FAILED_FOR_NOW,
    EXIT_STOPPED,
    Abort,
    Drop,
    Load,
    Loaded,
    LoadFailed,
    Loading,
    Prepare,
    Reprioritize,
    Start,
    Stop,
)
from openclawd.worker.pinning import check_room, num_distinct, pin, tokens_of_system_prompts
from openclawd.worker.pipe import DaemonGone
from openclawd.worker.prefixes import PersistentPrefixes
from openclawd.worker.quoting import MAX_MESSAGE_CHARS, shortened
from openclawd.worker.tokenizer import Tokenizer
from openclawd.worker.warm_up import GARBAGE, trouble_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from openclawd.backends.base import Backend
    from openclawd.engine.scheduler import Scheduler
    from openclawd.worker.messages import FromWorker

_READ: Final = "read"
_WARM_UP: Final = "warm-up"
_SYSTEM_PROMPTS: Final = "system prompts"
_PROGRESS_S: Final = 0.1
"""At most ten progress messages a second."""

_NOT_PINNED: Final = (
    "system_prompts are computed anew for every request: this model cannot share a part of"
    " a sequence (it has a sliding window, is recurrent or hybrid, or parallel is too large)"
)

_NOT_SPECULATING: Final = (
    "speculation is off: this model is recurrent or hybrid, so it cannot take back the tokens that"
    " were guessed wrong"
)

_log = logging.getLogger(__name__)


class Worker:
    """`run_engine` and `run_tokenizer` are its two threads; the rest may be called from any."""

    def __init__(self, load: Load, send: Callable[[FromWorker], None]) -> None:
        self._load = load
        self._send = send
        self._is_stopping = threading.Event()
        self._is_ready = threading.Event()
        self.is_saving = False
        """Is the engine thread done computing, and writing what is to outlive it?"""
        self._tokenizer: Tokenizer | None = None
        self._loop: EngineLoop | None = None

    def submit_to_tokenizer(self, message: Prepare | Drop) -> None:
        """Requests come only after `loaded` was sent."""
        assert self._tokenizer is not None
        self._tokenizer.submit(message)

    def submit_to_engine(self, message: Start | Reprioritize | Abort) -> None:
        assert self._loop is not None
        self._loop.submit(message)

    def stop(self) -> None:
        """Give up loading, or end after the running step."""
        self._is_stopping.set()
        if self._loop is not None:
            self._loop.submit(Stop())

    def run_tokenizer(self) -> int:
        self._is_ready.wait()
        assert self._tokenizer is not None
        self._tokenizer.run()
        return EXIT_STOPPED

    def run_engine(self) -> int:
        """Load, then compute until the end; the exit status of the process."""
        try:
            started_s = time.perf_counter()
            backend = self._load_backend()
            self._warm_up(backend)
            tokenizer = Tokenizer(backend, self._send, prefix_key=self._load.prefix_key)
            loop = EngineLoop(
                backend,
                tokenizer,
                model=self._load.name,
                send=self._send,
                drafter=make_drafter(self._load.guess_method, backend, self._load_draft),
                max_guesses=self._load.max_guesses,
                max_skips=self._load.max_skips,
            )
            prefixes = PersistentPrefixes(self._load, backend, loop.scheduler)
            num_pinned = self._pin_system_prompts(backend, tokenizer, loop.scheduler, prefixes)
            load_s = time.perf_counter() - started_s
        except LoadAborted:
            return EXIT_STOPPED
        except CannotLoad as failure:
            message = shortened(failure.message, MAX_MESSAGE_CHARS)
            self._send(LoadFailed(message, failure.hint, failure.permanent))
            return EXIT_LOAD_FAILED if failure.permanent else EXIT_LOAD_FAILED_FOR_NOW
        info = _describe(backend, tokenizer, load_s=load_s, num_pinned_tokens=num_pinned)
        if self._load.system_prompts and not num_pinned:
            info["warnings"].append(_NOT_PINNED)
        if self._load.guess_method != "off" and not backend.limits.can_drop_last:
            info["warnings"].append(_NOT_SPECULATING)
        self._tokenizer, self._loop = tokenizer, loop
        status = self._serve(loop, info)
        if status == EXIT_STOPPED:
            self.is_saving = True
            prefixes.save()
        return status

    def _serve(self, loop: EngineLoop, info: dict[str, Any]) -> int:
        self._is_ready.set()
        for warning in info["warnings"]:
            _log.warning("%s: %s", self._load.name, warning)
        if self._is_stopping.is_set():  # `stop` came when there was no loop to tell
            return EXIT_STOPPED
        self._send(Loaded(info))
        return loop.run()

    # ---- loading ----

    def _load_backend(self) -> Backend:
        adapters = {
            name: AdapterSpec(adapter["path"], adapter["scale"])
            for name, adapter in self._load.adapters.items()
        }
        return self._load_file(self._load.path, adapters, aside=self._load.computes_aside)

    def _load_draft(self) -> Backend:
        return self._load_file(self._load.draft_path, {})

    def _load_file(
        self, path: str, adapters: dict[str, AdapterSpec], *, aside: bool = False
    ) -> Backend:
        spec = LoadSpec(
            path=path,
            parallel=self._load.parallel,
            context=self._load.context,
            kv_tokens=self._load.kv_tokens,
            batch_tokens=self._load.batch_tokens,
            threads=self._load.threads,
            gpu_layers=self._load.gpu_layers,
            options=self._load.options,
            adapters=adapters,
            shares_cells=self._load.shares_prefixes,
            computes_aside=aside,
            gpu_budgets=tuple(self._load.gpu_budgets),
            needs_gpu=self._load.needs_gpu,
        )
        return load_of(self._load.backend, path)(spec, self._progress(_READ))

    def _progress(self, phase: str) -> Callable[[float], bool]:
        """Says how far a phase is, now and then; asks to give up when the worker is to stop."""
        next_s = 0.0

        def report(fraction: float) -> bool:
            nonlocal next_s
            now_s = time.monotonic()
            if now_s >= next_s or fraction >= 1:
                next_s = now_s + _PROGRESS_S
                try:
                    self._send(Loading(phase, min(max(fraction, 0.0), 1.0)))
                except DaemonGone:  # an exception cannot pass through native code
                    return False
            return not self._is_stopping.is_set()

        return report

    def _warm_up(self, backend: Backend) -> None:
        """Compute something real: it pages the weights in, and shows that the model works."""
        self._send(Loading(_WARM_UP, 0.0))
        if trouble := trouble_of(backend):
            raise CannotLoad(
                f"{self._load.path} was read, but the model does not work: {trouble}",
                hint="see the worker's log lines before this one",
                permanent=trouble == GARBAGE,
            )
        self._send(Loading(_WARM_UP, 1.0))

    def _pin_system_prompts(
        self,
        backend: Backend,
        tokenizer: Tokenizer,
        scheduler: Scheduler,
        prefixes: PersistentPrefixes,
    ) -> int:
        """How many tokens are kept for good: none where cells cannot be shared. Also restores what
        users' requests left."""
        texts = self._load.system_prompts
        prompts = tokens_of_system_prompts(texts, backend, tokenizer) if texts else []
        if not backend.limits.num_prefix_tags:
            prompts = []
        check_room(prompts, backend)
        report = self._progress(_SYSTEM_PROMPTS)

        def go_on(fraction: float) -> None:
            if not report(fraction):
                raise LoadAborted

        prefixes.restore_pinned(prompts)
        pin(prompts, backend, scheduler, go_on)
        prefixes.restore_others()
        return num_distinct(prompts)


def _describe(
    backend: Backend, tokenizer: Tokenizer, *, load_s: float, num_pinned_tokens: int
) -> dict[str, Any]:
    """`Loaded.info`: what `models` and `status` show. Its names come from the model's files."""
    info = backend.info
    warnings = [*info.warnings]
    if info.can_generate and not tokenizer.template.is_usable:
        warnings.append(f"chat is not possible with this model: {tokenizer.template.problem}")
    return {
        **{name: getattr(info, name) for name in info.__dataclass_fields__},
        "description": shortened(info.description),
        "architecture": shortened(info.architecture),
        "devices": [*info.devices],
        "max_token_bytes": backend.max_token_bytes,
        "warnings": [shortened(warning, MAX_MESSAGE_CHARS) for warning in warnings],
        "chat_template": tokenizer.template.is_usable,
        "infill": backend.infill_tokens is not None,
        "pinned_tokens": num_pinned_tokens,
        "shares_prefixes": backend.limits.num_prefix_tags > 0,
        "load_s": round(load_s, 3),
    }
