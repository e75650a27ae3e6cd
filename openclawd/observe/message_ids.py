"""The `MESSAGE_ID` of journal entries that programs look for (systemd.journal-fields(7)).

`journalctl MESSAGE_ID=…` finds all entries of one kind. Released ones are never changed. In the
fields of a record such an id is called `message_id`; it goes to the journal only.
"""

from __future__ import annotations

from typing import Final

REQUEST_FINISHED: Final = "5b0f0a4c1d3e4e7a9c6a2f8d17b3e041"
"""The line of a finished inference request."""

AUDIT: Final = "c7f1d2a85e0b4a6f8b93d4e6f1027a5c"
"""Something that the audit has a row of, but for finished requests, which have their own line."""

AUDIT_HEAD: Final = "2e9a6c4f7b1d4830a5f2c8e0937d6b14"
"""The end of the audit's chain: `HEAD` is what `openclawctl audit verify --head` takes."""

ALERT: Final = "8fa1d2c45b0e4a3f9c7d61e02b5a4e17"
"""A budget has reached one of its alert shares."""

ALERT_LOST: Final = "d80f5a7c4e1b4b92a6d3c9e2057f8b16"
"""An alert that `openclawd-notify` did not take in."""

AUDIT_BROKEN: Final = "91d3b7e02f684c1ea0c5f6482d9e7b3a"
"""The audit is not as it was left."""
