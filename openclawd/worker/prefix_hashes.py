"""Keyed hashes of what a prompt begins with, by which the daemon sees prompts that begin alike.

The daemon gets the hashes and never the tokens; without the key nobody can tell from a hash whether
a guessed prompt was asked.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from openclawd.worker.messages import HASH_BYTES, PREFIX_LENGTHS, packed

if TYPE_CHECKING:
    from collections.abc import Sequence


def prefix_hashes(tokens: Sequence[int], key: bytes, *, adapter: str) -> bytes:
    """The BLAKE2b hashes (RFC 7693) of those of `PREFIX_LENGTHS` that the prompt reaches, one after
    the other; empty without a key. With another adapter the same tokens have other KV cells."""
    if not key:
        return b""
    state = hashlib.blake2b(adapter.encode() + b"\0", digest_size=HASH_BYTES, key=key)
    digests, start = [], 0
    for length in PREFIX_LENGTHS:
        if len(tokens) < length:
            break
        state.update(packed(tokens[start:length]).tobytes())
        digests.append(state.copy().digest())
        start = length
    return b"".join(digests)
