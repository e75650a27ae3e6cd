"""What the benchmarks change inside a worker process, so that the worker itself need not know them.

Python imports this module at its start where its folder is in `PYTHONPATH`. In a worker, and only
there, it waits for modules of the worker to be imported and then changes them (`hooks.py`):

    OPENCLAWD_BENCH=fixed-step:0.005   each step takes 5 ms; a token's text is the times of its step
    OPENCLAWD_BENCH=profile:FILE       how long the parts of each step take, as lines in FILE
    OPENCLAWD_BENCH=check:FILE         whether the engine's invariants hold whenever it is idle
    OPENCLAWD_BENCH=steps:FILE         what each step computed and sampled, as lines in FILE
"""

import functools
import importlib.util
import os
import sys


class _AfterImport:
    """A finder that lets the others find a module, and calls `change` with it once it has run."""

    def __init__(self, name, change):
        self._name = name
        self._change = change

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self._change(module)

        spec.loader.exec_module = exec_module
        return spec


def _install():
    kind, _, argument = os.environ.get("OPENCLAWD_BENCH", "").partition(":")
    if not kind or "openclawd.worker" not in sys.orig_argv:
        return
    import hooks

    for name, change in hooks.CHANGES[kind].items():
        sys.meta_path.insert(0, _AfterImport(name, functools.partial(change, argument)))


_install()
