"""The openclawd daemon: identity, admission, queue, ledger and fleet in one asyncio loop.

This package's `worker`, `engine` and `backends` run in processes of their own.
"""

from importlib.metadata import version

__version__ = version("openclawd")
