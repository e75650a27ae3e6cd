"""The options of openclawd's programs: each only as it is spelt, with a word on the near one.

Knows nothing of the wire, whose `suggestion` does as much: `openclawd-metrics` has none of it.
"""

from __future__ import annotations

import argparse
import difflib
from typing import Any


class OptionParser(argparse.ArgumentParser):
    """Takes no abbreviation, which would be another option's the day that one is added."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base class does, but names the option that may have been meant. Exits with 2."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
            near = f"; did you mean {close[0]}?" if close else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return arguments
