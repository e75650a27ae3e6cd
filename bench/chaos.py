"""`python bench/chaos.py [--rounds 20] [--seed N]`: daemons and workers that are killed under load.

Each round kills a worker and then the daemon at random moments, and puts the same questions to the
next daemon as `tests/faults/test_chaos.py` (`tests/kills.py`): the ledger, the budgets, the audit,
and what clients were told. Ends at the first that is not as it must be, or prints what happened.
"""

from __future__ import annotations

import argparse
import json
import time

from live import short_folder  # adds tests/ to where modules are found

from kills import Chaos  # isort: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="kills of each kind (20)")
    parser.add_argument("--seed", type=int, default=20_261_129)
    arguments = parser.parse_args()
    started_s = time.monotonic()
    with short_folder() as folder:
        chaos = Chaos(folder, arguments.seed)
        try:
            chaos.run(num_rounds=arguments.rounds)
        finally:
            print(json.dumps(chaos.summary(), indent=2))
    print(f"all in order after {time.monotonic() - started_s:.0f} s, seed {arguments.seed}")


if __name__ == "__main__":
    main()
