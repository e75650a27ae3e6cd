"""What people and other programs see of the daemon: logs and systemd's notifications.

Must not know requests, models or connections: callers hand in names and numbers.
"""
