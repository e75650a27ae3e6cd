"""The wire protocol, shared by client and daemon: bytes in, events out.

No sockets, no time, no I/O.
"""
