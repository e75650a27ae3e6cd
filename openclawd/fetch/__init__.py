"""`openclawd-fetch`: gets models from a hub or an address of the web, and keeps the models folder.

A process of its own, because the daemon opens no network connection and writes no model. One
process serves one request of the daemon and ends; it may be killed at any moment. Must not know the
daemon, users, or what a model computes.

Invariants: under a model's name there is a file that was verified, or none; everything else is in
the hidden folder `.fetch` beside it; nothing is written outside the folders it was started with.
"""
