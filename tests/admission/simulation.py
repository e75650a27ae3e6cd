"""A model with its queue, its engine and its clients, on a virtual clock.

The queue is the real one. The engine gives its slots by rank, takes them from the lowest rank that
came last, computes a token of each stream in a step, and of prompts as much as the streams bear; a
prompt of higher rank than all that decodes is read at once. Its times are those of SmolLM2 on two
cores, about.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from openclawd.admission.queue import RequestQueue
from openclawd.admission.tiers import DEFAULT_TIER, Priority, Tier

STEP_S = 0.010
STREAM_S = 0.004
PROMPT_TOKEN_S = 0.0025
PACED_TOKENS = 24
"""Of prompts in a step beside streams."""


@dataclass(eq=False)
class Client:
    """One that asks again as soon as it is answered, with `num_open` requests at a time; or, with
    `period_s`, once in that time. Lengths are drawn evenly from the ranges."""

    name: str
    tier: Tier = DEFAULT_TIER
    priority: Priority = Priority.NORMAL
    prompt_tokens: tuple[int, int] = (64, 64)
    completion_tokens: tuple[int, int] = (16, 16)
    num_open: int = 1
    period_s: float | None = None
    first_s: float = 0.0
    served: int = 0
    waits_s: list[float] = field(default_factory=list)
    ttfts_s: list[float] = field(default_factory=list)


@dataclass(eq=False)
class Job:
    client: Client
    number: int
    arrived_s: float
    prompt_left: int
    tokens_left: int
    rank: int = 0
    has_slot: bool = False
    started_s: float = 0.0
    num_set_aside: int = 0


class World:
    """`num_events` counts what the queue was told: who came, who left, what was served."""

    def __init__(self, *clients: Client, places: int = 8, max_skips: int = 32) -> None:
        self.places = places
        self.queue: RequestQueue[Job] = RequestQueue(
            model="m", max_running=places, max_waiting=10**6, max_skips=max_skips
        )
        self.clients = clients
        self.now = 0.0
        self.num_events = 0
        self.num_set_aside = 0
        self.max_set_aside = 0  # of one request
        self.num_starts = 0
        self.longest_s = 0.0
        self.gaps: defaultdict[Priority, list[int]] = defaultdict(list)  # starts between two starts
        self._last_start: dict[Priority, int] = {}
        self._started: list[Job] = []
        self._is_changed = True
        self._chance = random.Random(1)
        self._numbers = itertools.count()
        self._arrivals: list[tuple[float, int, Client]] = []
        for number, client in enumerate(clients):
            heapq.heappush(self._arrivals, (client.first_s, number, client))

    def run(self, *, num_events: int = 10**9, until_s: float = 1e9) -> World:
        while self.num_events < num_events and self.now < until_s:
            while self._arrivals and self._arrivals[0][0] <= self.now:
                self._arrive()
            if self._started:
                self._step()
            else:
                self.now = self._arrivals[0][0]
        return self

    def served(self) -> Counter[str]:
        return Counter({client.name: client.served for client in self.clients})

    # ---- clients ----

    def _arrive(self) -> None:
        at_s, number, client = heapq.heappop(self._arrivals)
        if client.period_s is not None:
            heapq.heappush(self._arrivals, (at_s + client.period_s, number, client))
        for _ in range(client.num_open):
            self._ask(client, at_s)

    def _ask(self, client: Client, at_s: float) -> None:
        job = Job(
            client,
            next(self._numbers),
            at_s,
            self._chance.randint(*client.prompt_tokens),
            self._chance.randint(*client.completion_tokens),
        )
        self._admit(
            self.queue.enter(
                job,
                priority=client.priority,
                weight=1,
                now=self.now,
                principal=client.name,
                tier=client.tier,
                tokens=job.prompt_left,
            )
        )

    def _admit(self, jobs: list[Job]) -> None:
        self.num_events += 1
        for job in self.queue.take_moved():
            rank = self.queue.rank(job)
            if rank % 4 == 3:
                self.num_set_aside += 1
                job.num_set_aside += 1
                self.max_set_aside = max(self.max_set_aside, job.num_set_aside)
            job.rank = rank
            self._is_changed = True
        for job in jobs:
            job.rank = self.queue.rank(job)
            job.started_s = self.now
            job.client.waits_s.append(self.now - job.arrived_s)
            self._started.append(job)
            self._is_changed = True
            self.num_starts += 1
            last = self._last_start.get(job.client.priority, self.num_starts)
            self.gaps[job.client.priority].append(self.num_starts - last)
            self._last_start[job.client.priority] = self.num_starts

    # ---- the engine ----

    def _step(self) -> None:
        if self._is_changed:
            self._is_changed = False
            self._started.sort(key=lambda job: (-job.rank, not job.has_slot, job.number))
            for place, job in enumerate(self._started):
                job.has_slot = place < self.places
        running = self._started[: self.places]
        streams = [job for job in running if not job.prompt_left]
        prompts = [job for job in running if job.prompt_left]
        paced_rank = max((job.rank for job in streams), default=None)
        left, num_read, read = PACED_TOKENS, 0, []
        for job in prompts:
            is_paced = paced_rank is not None and job.rank <= paced_rank
            tokens = min(job.prompt_left, left) if is_paced else job.prompt_left
            left = max(0, left - tokens)
            read.append((job, tokens))
            num_read += tokens
        self.now += STEP_S + STREAM_S * len(streams) + PROMPT_TOKEN_S * num_read
        for job, tokens in read:
            job.prompt_left -= tokens
            job.client.served += tokens
            if not job.prompt_left and tokens:
                job.client.ttfts_s.append(self.now - job.arrived_s)
                streams.append(job)
        for job in streams:
            self._serve(job)

    def _serve(self, job: Job) -> None:
        job.tokens_left -= 1
        job.client.served += 1
        self._admit(self.queue.charge(job, 1, now=self.now))
        if job.tokens_left:
            return
        self.longest_s = max(self.longest_s, self.now - job.started_s)
        self._started.remove(job)
        self._is_changed = True
        self._admit(self.queue.leave(job, now=self.now))
        if job.client.period_s is None:
            self._ask(job.client, self.now)
