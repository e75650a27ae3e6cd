"""The worker process: one model in one fresh interpreter, and what it says to the daemon."""
