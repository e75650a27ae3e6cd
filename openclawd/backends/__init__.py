"""The only files that import an ML library. `base` is what the backends have in common."""
