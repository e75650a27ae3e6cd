"""The models and their worker processes: names, states, starts, restarts, and the link to each.

Knows names, cores, files' states and worker messages. Must not know clients, the meaning of tokens
or any ML library. `restart` and `placement` decide; `model`, `replica`, `process` and `link` do.
"""
