"""Who may ask, how much, and in which order.

Pure: identities, counts, limits and `now` come in, decisions and refusals go out. Must not know
sockets, processes, SQL or the clock.
"""
