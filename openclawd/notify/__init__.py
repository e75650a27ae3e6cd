"""`openclawd-notify`: runs the commands and webhooks that are to be told of an alert.

A process of its own, because the daemon opens no network connection and starts no program of
anybody's choice. Knows alerts as a few names and numbers. Must not know the daemon, its ledger, or
any text of prompts and completions.

Invariants: nothing that an alert's receiver does (hang, fail, answer for ever) keeps another alert
from its own; what waits is bounded; no shell ever sees a field of an alert.
"""
