"""What is said of health: in the log once, and to somebody only of models that they may see."""

from __future__ import annotations

import logging

from openclawd.observe import message_ids
from openclawd.server.health import Health, Reason, Status, health_of
from openclawd.server.monitoring import HealthLog

STALLED = Health(
    Status.FAILING, "ready", (Reason("model a: it is stuck", "a"), Reason("the disk is full"))
)
FAILED = Health(Status.DEGRADED, "ready", (Reason("model b: failed: no file", "b"),))
WELL = Health(Status.OK, "ready", ())
STARTING = Health(Status.FAILING, "starting", (Reason("the daemon is starting"),))


def test_the_log_hears_of_each_change_once(caplog):
    caplog.set_level(logging.INFO)
    log = HealthLog()
    for health in (STARTING, WELL, STALLED, STALLED, FAILED, WELL, WELL):
        log.note(health)
    assert [record.getMessage() for record in caplog.records] == [
        "health is failing: model a: it is stuck; the disk is full",
        "health is degraded: model b: failed: no file",
        "healthy again",
    ]
    ids = [record.fields["message_id"] for record in caplog.records]
    assert ids == [message_ids.UNHEALTHY, message_ids.UNHEALTHY, message_ids.HEALTHY]


def test_models_that_somebody_may_not_see_are_not_named():
    shown = STALLED.as_dict(may_see=lambda model: False)
    assert shown["reasons"] == [
        {"model": "", "message": "another model has a problem"},
        {"model": "", "message": "the disk is full"},
    ]
    assert STALLED.as_dict(may_see=lambda model: True)["reasons"][0]["model"] == "a"


def test_a_daemon_without_models():
    def health(server):
        return health_of([], server=server, ledger_problem=None).status

    assert (health("ready"), health("starting"), health("draining")) == (
        Status.OK,
        Status.FAILING,
        Status.FAILING,
    )
