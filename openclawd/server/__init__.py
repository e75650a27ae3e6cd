"""Clients' connections and the way of each request: in at `listener`, out at `peer`.

Knows connections, admission, the ledger and the fleet's front door (`Fleet`, `Model`, `Link`). Must
not know how a model runs.
"""
