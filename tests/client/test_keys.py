"""The methods on identity of both clients: which operation they ask, with which parameters."""

from __future__ import annotations

import asyncio

import pytest

from openclawctl import AsyncClient, Client, InvalidRequest, ProtocolError

CALLS = [
    ("whoami", (), {}, "whoami", {}),
    (
        "create_key",
        ("ci",),
        {"role": "user", "models": "q*", "expires": "90d", "tier": "gold"},
        "keys.create",
        {"name": "ci", "role": "user", "tier": "gold", "models": ["q*"], "expires_s": 7_776_000.0},
    ),
    ("create_key", ("ci",), {"role": "user"}, "keys.create", {"name": "ci", "role": "user"}),
    ("list_keys", (), {}, "keys.list", {}),
    ("show_key", ("ci",), {}, "keys.show", {"name": "ci"}),
    ("rotate_key", ("ci",), {}, "keys.rotate", {"name": "ci", "overlap_s": 86_400.0}),
    (
        "rotate_key",
        ("ci",),
        {"overlap": 0, "expires": "1h"},
        "keys.rotate",
        {"name": "ci", "overlap_s": 0.0, "expires_s": 3600.0},
    ),
    ("revoke_key", ("ci",), {}, "keys.revoke", {"name": "ci"}),
    (
        "embed",
        ("x",),
        {"app": "billing", "session": "s"},
        "embed",
        {"input": ["x"], "app": "billing", "session": "s"},
    ),
]


@pytest.mark.parametrize(("method", "args", "kwargs", "op", "params"), CALLS)
def test_both_clients_ask_the_same(peer, method, args, kwargs, op, params):
    daemon = peer(handler=lambda connection, request: connection.done(request, keys=[]))

    async def ask():
        async with AsyncClient(daemon.path) as client:
            return await getattr(client, method)(*args, **kwargs)

    def ask_blocking():
        with Client(daemon.path) as client:
            return getattr(client, method)(*args, **kwargs)

    for run in (ask_blocking, lambda: asyncio.run(ask())):
        if method == "embed":
            with pytest.raises(ProtocolError):  # this peer knows no vectors
                run()
        else:
            assert run() == ([] if method == "list_keys" else {"keys": []})
    assert [(request.op, request.params) for request in daemon.requests] == [(op, params)] * 2


@pytest.mark.parametrize(("field", "value"), [("expires", "soon"), ("models", [""])])
def test_a_mistake_is_named_before_anything_is_sent(field, value):
    with pytest.raises(InvalidRequest, match=field):
        Client("/nonexistent").create_key("ci", role="user", **{field: value})
