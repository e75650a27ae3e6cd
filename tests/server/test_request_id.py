"""Request ids are UUIDs of version 7: unique, and in the order of their time."""

from __future__ import annotations

import time
import uuid

from openclawd.server.inference import new_request_id


def test_it_is_a_version_7_uuid_of_now() -> None:
    request_id = new_request_id()
    assert request_id.version == 7
    assert request_id.variant == uuid.RFC_4122
    assert abs((request_id.int >> 80) / 1000 - time.time()) < 60


def test_ids_are_unique() -> None:
    assert len({new_request_id() for _ in range(10_000)}) == 10_000
