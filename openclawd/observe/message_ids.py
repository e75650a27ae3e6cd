"""The `MESSAGE_ID` of journal entries that programs look for (systemd.journal-fields(7)).

`journalctl MESSAGE_ID=…` finds all entries of one kind. Released ones are never changed. In the
fields of a record such an id is called `message_id`; it goes to the journal only.
"""

from __future__ import annotations

from typing import Final

REQUEST_FINISHED: Final = "5b0f0a4c1d3e4e7a9c6a2f8d17b3e041"
"""The line of a finished inference request."""

AUDIT: Final = "c7f1d2a85e0b4a6f8b93d4e6f1027a5c"
"""Something that the audit has a row of, but for finished requests, which have their own line."""

AUDIT_HEAD: Final = "2e9a6c4f7b1d4830a5f2c8e0937d6b14"
"""The end of the audit's chain: `HEAD` is what `openclawctl audit verify --head` takes."""

ALERT: Final = "8fa1d2c45b0e4a3f9c7d61e02b5a4e17"
"""A budget has reached one of its alert shares."""

ALERT_LOST: Final = "d80f5a7c4e1b4b92a6d3c9e2057f8b16"
"""An alert that `openclawd-notify` did not take in."""

AUDIT_BROKEN: Final = "91d3b7e02f684c1ea0c5f6482d9e7b3a"
"""The audit is not as it was left."""

READY: Final = "481e0a2892dd40ee9342fb8bbc089ec3"
"""The start is over: every preloaded model has answered or failed."""

STOPPING: Final = "ce3313b2be144547b69a3ca6442ff615"
"""The daemon takes no more requests and lets the running ones finish."""

REQUESTS_CUT: Final = "77623c2b40e548d7a7ebcf40c6ad1bae"
"""Requests that did not finish before the end of the drain were cancelled."""

RECOVERED: Final = "d5c7431a66cb477fa676aa82fcf7f6ee"
"""Requests were open when the daemon was killed; their usage is estimated."""

MODEL_READY: Final = "21a2f77c6f854f94b06b9c4103ffe893"
"""A model is loaded and has answered its warm-up."""

MODEL_FAILED: Final = "5eea9a9be1bd49c58dd6b1500968e90a"
"""A model cannot be used until its file or the configuration changes, or somebody loads it."""

MODEL_BACKOFF: Final = "f1185380db69460d84ec6b44f2560268"
"""A model's worker died, or could not load it for now; it is tried again."""

REQUEST_SUSPECTED: Final = "95c2d88263a44ae989ce5ef520551989"
"""A request was in flight when two workers in a row died."""

WORKER_STUCK: Final = "870f7dafa7e14ac1b4c5ca5daecc2d71"
"""A worker did not read a prompt in time and is killed."""

CALLER_REFUSED: Final = "4bbb346b7ba04e1ca233d908c19b4f90"
"""A connection was refused: nobody known, a wrong key, or too many of them."""

CLIENT_TOO_SLOW: Final = "a5b6b84f6ee1423cb9c37a0ff8aedebf"
"""A client did not read its results and is disconnected."""

UNHEALTHY: Final = "0faa938b6796459bb165dec6bf446c07"
"""Something is wrong that people should look at: a stalled or failed model, a full disk."""

HEALTHY: Final = "520983ca97a64af8bad567d592d881bd"
"""What was wrong is right again."""

LEDGER_UNSOUND: Final = "da0dce4948f04e48b2fefb0f37c56b81"
"""A check of the ledger found something."""

MEMORY_LOW: Final = "f52a53f8765d49bc8784c0ff352812b1"
"""The memory of the machine, or what the service may have of it, is nearly used up."""

VRAM_LOW: Final = "c17f812a4e7843b0b63660ac68dca5f1"
"""The memory of a GPU is nearly used up."""

CPU_THROTTLED: Final = "871dd4ecc4aa486191ed3bd0ac9ba21d"
"""A CPU quota holds the service back."""

BUG: Final = "09b921087fc7400eac54736efd3e5bd5"
"""The daemon failed on a bug of its own; the entry has the story."""

WORKER_STALLED: Final = "6c0e5d91f3a84b27b1d84a7e92f05c63"
"""A worker had work and made no progress, and is killed."""

WATCHDOG_STARVED: Final = "f2b7c1685d9e4038ae41960b73cd8e15"
"""systemd is not told any more that the daemon is well, and will restart it."""
