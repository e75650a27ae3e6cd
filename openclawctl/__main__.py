"""The program `openclawctl`, and `python -m openclawctl` where its script is not on `$PATH`."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Entry point. The imports take most of a short command's time, so Ctrl-C often comes then."""
    try:
        from openclawctl.cli import main as run

        run()
    except KeyboardInterrupt:
        from openclawctl.wire.errors import EXIT_INTERRUPTED

        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
