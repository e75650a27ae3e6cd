"""`python -m openclawd.worker.builds`: which instruction sets the installed llama.cpp uses.

A process of its own, because a library that was built for another machine ends it. Says their names
on its standard output, with spaces between them.
"""

from __future__ import annotations

import sys

from openclawd.backends.llama_build import features


def main() -> None:
    sys.stdout.write(" ".join(features()))


if __name__ == "__main__":
    main()
