"""The changes themselves: see sitecustomize.py.

Loaded when Python starts, so it imports nothing of the worker by itself; above all not llama_cpp,
which must not be loaded before the worker has set its environment.
"""

from __future__ import annotations

import json
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

from fixed_step import FixedStep

from openclawd.backends.base import go_on
from openclawd.engine.batch import ParkSlot, ResumeSlot

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from openclawd.backends.base import Backend, ForwardResult, LoadSpec
    from openclawd.engine.batch import Batch


def stamped_steps(step_s: str, llama: ModuleType) -> None:
    """Steps of `step_s` seconds. Each token's text is when its step began and ended, in nanoseconds
    of the monotonic clock, which the client can compare with its own time."""
    load = llama.load

    def load_stamped(spec: LoadSpec, on_progress: Callable[[float], bool]) -> Any:
        return _Stamped(load(spec, on_progress), step_s=float(step_s))

    llama.load = load_stamped


class _Stamped(FixedStep):
    def piece(self, token: int) -> bytes:
        del token
        return f"{self.began_ns}:{self.ended_ns} ".encode()


# ---- profile ----

_STEPS_PER_WRITE: Final = 50
"""The time that writing takes is in no step's figures."""


class _Clock:
    """Adds up the time that parts take until the next step begins."""

    def __init__(self) -> None:
        self._parts_s: dict[str, float] = {}
        self._batch: dict[str, int] = {}
        self._start_s = 0.0
        self._lines: list[str] = []

    def measure(self, owner: Any, name: str, part: str) -> None:
        """Replace a function of `owner` by one that notes how long it takes."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start_s = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                spent_s = time.perf_counter() - start_s
                self._parts_s[part] = self._parts_s.get(part, 0.0) + spent_s

        setattr(owner, name, timed)

    def begin_step(self, batch: Batch, path: str) -> None:
        """A step lasts from the beginning of one `forward` to that of the next."""
        now_s = time.perf_counter()
        if self._batch:
            step = {**self._batch, "step": now_s - self._start_s, **self._parts_s}
            self._lines.append(json.dumps(step))
        if len(self._lines) == _STEPS_PER_WRITE:
            with open(path, "a", encoding="utf-8") as file:
                file.write("\n".join([*self._lines, ""]))
            self._lines.clear()
        self._parts_s.clear()
        self._batch = {"sequences": len(batch.chunks), "tokens": batch.num_tokens}
        self._start_s = time.perf_counter()


class _Profiled:
    def __init__(self, backend: Backend, path: str) -> None:
        self._backend = backend
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self, batch: Batch, between: Callable[[], bool] = go_on) -> ForwardResult:
        _clock.begin_step(batch, self._path)
        return self._backend.forward(batch, between)


_clock = _Clock()


def profiled_pipe(path: str, pipe: ModuleType) -> None:
    del path
    _clock.measure(pipe.Pipe, "send", "pipe")


def profiled_backend(path: str, llama: ModuleType) -> None:
    """Write a line for each step to the file `path`: its tokens, and seconds of it by part."""
    _clock.measure(llama.llama_cpp, "llama_decode", "decode")
    _clock.measure(llama.Sampler, "sample", "sampling")
    load = llama.load

    def load_profiled(spec: LoadSpec, on_progress: Callable[[float], bool]) -> Any:
        return _Profiled(load(spec, on_progress), path)

    llama.load = load_profiled


# ---- steps ----


class _Logged:
    def __init__(self, backend: Backend, path: str) -> None:
        self._backend = backend
        self._path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def forward(self, batch: Batch, between: Callable[[], bool] = go_on) -> ForwardResult:
        result = self._backend.forward(batch, between)
        tokens = getattr(result, "tokens", {})
        vectors = getattr(result, "vectors", {})
        line = {
            "parked": [[op.slot, op.key] for op in batch.cache_ops if isinstance(op, ParkSlot)],
            "resumed": [[op.slot, op.key] for op in batch.cache_ops if isinstance(op, ResumeSlot)],
            "opened": [
                [opening.slot, opening.tokens[: opening.num_prompt_tokens]]
                for opening in batch.opened
            ],
            "computed": [[chunk.slot, chunk.position, len(chunk.tokens)] for chunk in batch.chunks],
            "sampled": [[slot, [each.token for each in some]] for slot, some in tokens.items()],
            "vectors": list(vectors),
        }
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return result


def logged_steps(path: str, llama: ModuleType) -> None:
    """Write a line for each step to the file `path`, before anybody is told of it: which slots were
    taken from their sequences and given to those that had been parked, which prompts have got which
    slots, what was computed, and what was sampled."""
    load = llama.load

    def load_logged(spec: LoadSpec, on_progress: Callable[[float], bool]) -> Any:
        return _Logged(load(spec, on_progress), path)

    llama.load = load_logged


# ---- check ----


def checked_when_idle(path: str, loop: ModuleType) -> None:
    """Whenever the engine has nothing to do, write to the file `path` whether its invariants hold
    (`Scheduler.check`): `ok`, or the assertion that does not."""
    drain = loop.EngineLoop._drain

    def checked(self: Any) -> bool:
        if self._scheduler.is_idle:
            try:
                self._scheduler.check()
                found = "ok"
            except AssertionError:
                found = traceback.format_exc()
            with open(path, "a") as file:
                file.write(f"{found}\n")
        return bool(drain(self))

    loop.EngineLoop._drain = checked


CHANGES: Final[dict[str, dict[str, Callable[[str, ModuleType], None]]]] = {
    "check": {"openclawd.worker.loop": checked_when_idle},
    "steps": {"openclawd.backends.llama": logged_steps},
    "fixed-step": {"openclawd.backends.llama": stamped_steps},
    "profile": {
        "openclawd.worker.pipe": profiled_pipe,
        "openclawd.backends.llama": profiled_backend,
    },
}
"""By the kind of hook: what is done to which module of the worker."""
