"""`openclawd-metrics`: offers the daemon's metrics socket on a loopback TCP port.

A process of its own, because the daemon opens no network port: Prometheus cannot scrape a Unix
socket. It knows nothing of the daemon but that socket's path, and nothing of HTTP but how to say
that the daemon is away: it passes bytes on.

Imports nothing of the rest of openclawd.
"""
