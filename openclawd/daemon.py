"""The composition root: one TaskGroup, signals, and the order of start and stop.

Start: locks, ledger, socket, models; READY when every preloaded model has answered a warm-up call
or failed. Stop: no new requests, drain, cancel what is left, stop the workers, close the ledger.
A second SIGTERM or SIGINT skips the drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import gc
import grp
import hashlib
import logging
import os
import platform
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openclawctl.wire.errors import Problem, ShuttingDown, Unavailable
from openclawctl.wire.units import format_duration
from openclawd.fleet.fetcher import Fetcher
from openclawd.fleet.kept_files import sweep
from openclawd.fleet.registry import Fleet
from openclawd.fleet.spec import ModelState
from openclawd.ledger import Ledger
from openclawd.ledger.audit_key import load_audit_key
from openclawd.ledger.keys import read_keys
from openclawd.ledger.prefix_key import read_or_create_key
from openclawd.observe import logs, message_ids
from openclawd.observe.alerts import AlertSender
from openclawd.observe.beats import START_PATIENCE_S, Beats
from openclawd.observe.logs import fields, log_bug
from openclawd.observe.systemd import take_passed_sockets
from openclawd.server.auditing import tell_head, tell_mismatch
from openclawd.server.dispatch import answer
from openclawd.server.identities import Identities
from openclawd.server.listener import (
    SERVER_OPTIONS,
    UNIT_NEEDS,
    StartError,
    hold_lock,
    only_listener,
    open_socket,
    raise_descriptor_limit,
)
from openclawd.server.monitoring import Monitoring
from openclawd.server.names import Names
from openclawd.server.peer import Peer
from openclawd.server.reload import Reloader, alert_target
from openclawd.server.service import Service
from openclawd.server.summary import summary
from openclawd.server.upkeep import keep_pruned

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Callable, Iterator

    from openclawd.config import Config
    from openclawd.config.places import Places
    from openclawd.config.security import SecurityConfig
    from openclawd.fleet.model import Model
    from openclawd.observe.systemd import Notifier

logger = logging.getLogger(__name__)

CANCEL_GRACE_S = 5.0
"""How long cancelled requests get to record their usage, after the drain's own limit."""

FLUSH_GRACE_S = 1.0
STATUS_INTERVAL_S = 0.5
STOP_SPARE_S = 45.0
"""What a stop may take beside the drain: two graces for what is cancelled, workers that save what
is kept of prefixes, the ledger."""

_NUM_BLOCKING_THREADS = 4

_PR_SET_DUMPABLE = 4
"""linux/include/uapi/linux/prctl.h"""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the daemon is started with."""

    config: Config
    places: Places
    version: str
    read_config: Callable[[], Config]
    """Reads and checks it again. Blocks on the disk; raises `ConfigError`."""

    @property
    def metrics_socket(self) -> Path:
        chosen = self.config.monitoring.socket
        return Path(chosen) if chosen else self.places.metrics_socket

    def config_origin(self) -> dict[str, str]:
        """Where the configuration came from, and the SHA-256 of what it came to, defaults and the
        command line's overrides included."""
        file = self.places.config_file
        whole = self.config.model_dump_json().encode()
        return {"file": str(file or ""), "sha256": hashlib.sha256(whole).hexdigest()}


def run(settings: Settings, notifier: Notifier) -> None:
    """Run until a signal ends it. Raises `StartError` with what stood in the way."""
    _keep_memory_private()
    raise_descriptor_limit(settings.config.resource_limits.max_connections)
    with contextlib.ExitStack() as stack:
        state_dir = settings.places.state_dir
        stack.enter_context(
            hold_lock(state_dir / "openclawd.lock", what=f"the state directory {state_dir}")
        )
        sock = stack.enter_context(_listening_socket(settings))
        places = dataclasses.replace(settings.places, socket=Path(sock.getsockname()).absolute())
        settings = dataclasses.replace(settings, places=places)
        metrics_sock = None
        if settings.config.monitoring.metrics:
            gid = _socket_gid(settings.config.security)
            metrics_sock = stack.enter_context(open_socket(settings.metrics_socket, gid=gid))
        asyncio.run(_Daemon(settings, notifier).run(sock, metrics_sock))


def _remedy(places: Places) -> str:
    """What to do about a configuration that cannot be read again."""
    if places.config_file is None:
        return "it is from the command line: put the file there, or start the daemon again"
    return f"correct it and reload again; `{places.check_command}` checks it beforehand"


def _started_threads(count: int) -> ThreadPoolExecutor:
    """What `asyncio.to_thread` runs in. All are there from the start: one that comes when two such
    calls happen to meet, days later, looks like a leak to whoever counts."""
    threads = ThreadPoolExecutor(count, "blocking")
    are_there = threading.Barrier(count + 1)
    for _ in range(count):
        threads.submit(are_there.wait)
    are_there.wait()
    return threads


def _listening_socket(settings: Settings) -> contextlib.AbstractContextManager[socket.socket]:
    """The one that systemd passed on, or one of our own. Raises `StartError`."""
    try:
        passed = take_passed_sockets(os.environ)
    except OSError as error:  # a file, a pipe, or less than was announced
        raise StartError(
            f"what systemd passed on is no socket ({error.strerror}); {UNIT_NEEDS}"
        ) from None
    if passed:
        return only_listener(passed)
    return open_socket(settings.places.socket, gid=_socket_gid(settings.config.security))


class _Daemon:
    """One run of the daemon, inside its event loop."""

    def __init__(self, settings: Settings, notifier: Notifier) -> None:
        self._settings = settings
        self._notifier = notifier
        self._stop = asyncio.Event()
        self._failure: StartError | None = None
        self._drain_limit: asyncio.Timeout | None = None
        self._status_timer: asyncio.TimerHandle | None = None
        self._beats = Beats(
            notifier, status=self._summary, trouble=self._trouble, is_starting=self._is_starting
        )
        self._tasks: asyncio.TaskGroup | None = None
        self._reloader: Reloader
        self._service: Service
        self._fleet: Fleet

    async def run(self, sock: socket.socket, metrics_sock: socket.socket | None) -> None:
        """Serve on `sock`, and metrics on the other one, if there is one."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        loop.set_default_executor(_started_threads(_NUM_BLOCKING_THREADS))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        prefix_dir = settings.places.prefix_dir
        await asyncio.to_thread(sweep, prefix_dir, settings.config.models)
        names = Names(loop.call_soon_threadsafe)
        with (
            contextlib.closing(names),
            self._open_ledger() as ledger,
            contextlib.closing(
                AlertSender(alert_target(settings.config.notify), settings.places.notify_socket)
            ) as alerts,
        ):
            self._fleet = Fleet(
                settings.config,
                prefix_dir=prefix_dir,
                on_change=self._note_change,
                fetcher=_fetcher(settings),
                prefix_key=self._read_prefix_key(),
                footprints_file=settings.places.footprints_file,
                version=settings.version,
            )
            self._service = Service(
                settings.config,
                self._fleet,
                ledger,
                answer=answer,
                version=settings.version,
                socket_path=settings.places.socket,
                identities=Identities(settings.config, read_keys(ledger.path), ledger),
                names=names,
                alerts=alerts,
            )
            self._reloader = Reloader(
                self._service,
                settings.config,
                read=settings.read_config,
                remedy=_remedy(settings.places),
                origin=lambda config: dataclasses.replace(settings, config=config).config_origin(),
            )
            self._service.reload = self._reloader.reload
            async with self._monitored(metrics_sock):
                await self._serve(sock)
        if self._failure is not None:
            raise self._failure
        logger.info("stopped")

    @contextlib.contextmanager
    def _open_ledger(self) -> Iterator[Ledger]:
        path = self._settings.places.ledger_file
        post = asyncio.get_running_loop().call_soon_threadsafe
        try:
            ledger = Ledger.open(
                path,
                node=platform.node(),
                post=post,
                audit_key=load_audit_key(os.environ, self._settings.places.state_dir),
                tell_head=tell_head,
            )
        except Unavailable as problem:
            raise StartError(str(problem)) from None
        if ledger.recovered:
            logger.warning(
                "%d requests were open when the daemon was killed; the ledger has them as failed, "
                "with estimated usage",
                ledger.recovered,
                extra=fields(message_id=message_ids.RECOVERED),
            )
        if ledger.audit.mismatch:
            tell_mismatch(ledger.audit.mismatch)
        with contextlib.closing(ledger):
            yield ledger

    def _read_prefix_key(self) -> bytes:
        try:
            return read_or_create_key(self._settings.places.prefix_key_file)
        except Unavailable as problem:
            raise StartError(str(problem)) from None

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._fleet.start(tasks)
            self._service.start(tasks)
            self._audit_start()
            self._service.budgets.say_due_alerts()
            listener = await loop.create_unix_server(
                lambda: Peer(self._service), sock=sock, **SERVER_OPTIONS
            )
            logger.info("listening on %s", self._settings.places.socket)
            readiness = tasks.create_task(self._become_ready())
            pruning = tasks.create_task(
                keep_pruned(self._service.ledger, lambda: self._reloader.config.ledger.keep_usage_s)
            )
            statistics = tasks.create_task(self._service.statistics.keep())
            beats = tasks.create_task(self._beats.run())
            await self._stop.wait()
            readiness.cancel()
            pruning.cancel()
            listener.close()
            await self._drain()
            await self._fleet.stop()
            beats.cancel()
            statistics.cancel()
            await self._service.statistics.write()
            self._service.audit.stop()
            self._service.audit.note(action="stop")

    @contextlib.asynccontextmanager
    async def _monitored(self, sock: socket.socket | None) -> AsyncIterator[None]:
        """Look around and answer scrapes, from the start to the end of the drain."""
        monitoring = Monitoring(self._service, self._settings.config.monitoring)
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(monitoring.http.connect, sock=sock) if sock else None
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(monitoring.keep())
            try:
                yield
            finally:
                keeping.cancel()
                if server is not None:
                    server.close()
                monitoring.http.close()

    # ---- start ----

    def _audit_start(self) -> None:
        """Who runs what, with which configuration."""
        note, settings = self._service.audit.note, self._settings
        story = {"version": settings.version, "uid": os.geteuid(), "daemon_pid": os.getpid()}
        if mismatch := self._service.audit.log.mismatch:
            story["audit"] = mismatch
        note(action="start", detail=story)
        note(action="config", detail=settings.config_origin())

    async def _become_ready(self) -> None:
        """Load what is to be preloaded, and say READY when each has succeeded or failed."""
        preloads = self._fleet.preloads()
        async with asyncio.TaskGroup() as tasks:
            for model in preloads:
                tasks.create_task(model.wait_settled())
        for model in preloads:
            if model.spec.required and model.state is not ModelState.READY:
                self._failure = StartError(
                    f"the required model {model.name} did not load: {model.reason}"
                )
                self._stop.set()
                return
        # What is there now stays: no full collection need look at it again, some 50,000 objects and
        # 28 ms of the loop (a busy machine, 2026-11-29).
        gc.collect()
        gc.freeze()
        self._service.is_ready = True
        paths = self._settings.config.model_paths
        self._notifier.ready()
        self._show_status()
        told = summary(list(self._fleet.models), model_paths=paths)
        logger.info("ready: %s", told, extra=fields(message_id=message_ids.READY))

    def _note_change(self, model: Model) -> None:
        """A model's state or load progress changed."""
        del model  # the line is about all of them
        if self._status_timer is None:
            loop = asyncio.get_running_loop()
            self._status_timer = loop.call_later(STATUS_INTERVAL_S, self._show_status)

    def _show_status(self) -> None:
        self._status_timer = None
        self._beats.show_status()

    def _summary(self) -> str:
        """What an administrator wants to know in one line."""
        if self._stop.is_set():
            limit_s = self._reloader.config.resource_limits.drain_timeout_s
            return f"draining, at most {format_duration(limit_s)}; {self._service.load_summary()}"
        paths = self._reloader.config.model_paths
        line = summary(list(self._fleet.models), model_paths=paths)
        if not self._service.is_ready:
            return line
        gate = self._service.gate
        drained = f"{gate.state} ({gate.story()}); " if gate.is_shut else ""
        return f"{drained}{line}; {self._service.load_summary()}"

    def _trouble(self) -> str:
        """Why a restart of the whole daemon is the last thing that may help; empty if it is not."""
        stuck = [model.name for model in self._fleet.models if model.is_beyond_help]
        return f"workers that were killed do not end: {', '.join(stuck)}" if stuck else ""

    def _is_starting(self) -> bool:
        """Is it starting, and do the models that are loading get on?"""
        loading = [model for model in self._fleet.models if model.state is ModelState.LOADING]
        return not self._service.is_ready and all(
            model.stalled_s < START_PATIENCE_S for model in loading
        )

    # ---- reload ----

    def _hang_up(self) -> None:
        """SIGHUP: as the operation `reload`, but that what is wrong is told the log."""
        if self._tasks is None or self._stop.is_set():
            logs.reopen()
        else:
            self._tasks.create_task(self._reload())

    async def _reload(self) -> None:
        if self._service.is_ready:  # else `ready` comes when the start is over
            self._notifier.reloading()
        try:
            await self._reloader.reload(None)
        except Problem as problem:
            for line in problem.message.splitlines():
                logger.error("%s", line)
        except Exception:
            log_bug(logger, "the configuration was not applied, because of a bug")
        finally:
            if self._service.is_ready:
                self._notifier.ready()
                self._show_status()

    # ---- stop ----

    def _ask_to_stop(self) -> None:
        if self._drain_limit is not None and not self._drain_limit.expired():
            self._drain_limit.reschedule(asyncio.get_running_loop().time())
        self._stop.set()

    async def _drain(self) -> None:
        """Let requests finish, within the limit; then end them."""
        limit_s = self._reloader.config.resource_limits.drain_timeout_s
        self._notifier.stopping()
        self._notifier.extend_timeout(limit_s + STOP_SPARE_S)
        self._show_status()
        logger.info(
            "stopping: requests get up to %s to finish",
            format_duration(limit_s),
            extra=fields(message_id=message_ids.STOPPING),
        )
        self._service.drain("the daemon is stopping")
        if not await self._wait_idle(limit_s):
            await self._cancel_rest()
        self._service.close_connections()
        asyncio.get_running_loop().call_later(FLUSH_GRACE_S, self._service.abort_connections)

    async def _wait_idle(self, limit_s: float) -> bool:
        """Until nothing is open (True), or the limit is over or a second signal came (False)."""
        try:
            async with asyncio.timeout(limit_s) as self._drain_limit:
                await self._service.wait_idle()
        except TimeoutError:
            return False
        finally:
            self._drain_limit = None  # a signal that comes later has nothing to cut short
        return True

    async def _cancel_rest(self) -> None:
        problem = ShuttingDown("the daemon stopped before this request was finished")
        num_open = self._service.cancel_all(problem)
        logger.warning(
            "%d requests did not finish in time and are cancelled",
            num_open,
            extra=fields(message_id=message_ids.REQUESTS_CUT),
        )
        if not await self._wait_idle(CANCEL_GRACE_S):
            logger.warning("some workers do not answer and are killed")
            for model in self._fleet.models:
                model.abandon()
            await self._wait_idle(CANCEL_GRACE_S)  # what they computed still ends with a word


def _fetcher(settings: Settings) -> Fetcher:
    """What a helper that we start ourselves may do; systemd's unit says it of another."""
    config = settings.config
    arguments = ["--models-dir", config.fetch_directory or str(settings.places.models_dir)]
    if config.fetch.copy_to is not None:
        arguments += ["--copy-dir", config.fetch.copy_to]
    if config.fetch.token_file is not None:
        arguments += ["--token-file", config.fetch.token_file]
    if config.fetch.allow_loopback_http:
        arguments.append("--allow-loopback-http")
    return Fetcher(settings.places.fetch_socket, arguments)


def _keep_memory_private() -> None:
    """No core file, and nobody but root may look into this process: clients' keys pass through it.

    Workers inherit the limit, since prompts pass through them. That they can be looked into by
    their own user (a debugger, a profiler) comes back with `execve`; they hold no key.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A core that is piped to a program (`kernel.core_pattern`) has no limit: core(5).
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _socket_gid(security: SecurityConfig) -> int | None:
    """The group of the socket; None leaves it the daemon's own. Raises `StartError`."""
    name, is_optional = security.wanted_socket_group()
    if not name:
        return None
    try:
        gid = grp.getgrnam(name).gr_gid
    except KeyError:
        if is_optional:
            return None
        raise StartError(
            f"there is no group {name!r}, which security.socket_group names; make it with "
            f"`groupadd --system {name}`"
        ) from None
    if os.geteuid() == 0 or gid in (os.getegid(), *os.getgroups()):
        return gid
    if is_optional:
        return None
    raise StartError(
        f"the daemon's user is not in the group {name!r}, which security.socket_group names, and "
        "so cannot give it the socket"
    )
