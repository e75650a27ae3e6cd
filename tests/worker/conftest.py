"""One warm worker for the tests that leave it as they found it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from harness import short_folder
from worker.driver import WorkerProcess, running_worker

from openclawd.worker.messages import Loaded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def warm_worker(model_path: Path) -> Iterator[WorkerProcess]:
    with short_folder() as folder, running_worker(folder) as worker:
        loaded = worker.load(model_path)
        assert isinstance(loaded, Loaded), loaded
        yield worker
