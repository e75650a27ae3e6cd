"""The installed service on a machine that has booted: everything an administrator does to it, and
everything that happens to it. In this order, on one machine; and on others, once under each
drop-in."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from system.conftest import CONFIG, MODEL, bring_packages, configure, install
from system.machine import booted_machine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from system.machine import Machine

pytestmark = pytest.mark.timeout(600)

DEBIAN: Final = Path(__file__).parents[2] / "packaging" / "debian"

CAP_SYS_RESOURCE: Final = 24
ASK: Final = "openclawctl generate --json 'The capital of France is' --max-tokens 8 --temperature 0"
METRICS: Final = (
    "curl -sf --unix-socket /run/openclawd/openclawd-metrics.sock http://localhost/metrics"
)
ASK_LONG: Final = "openclawctl generate --json '1 2 3 4' --max-tokens 400 --temperature 0"

LOAD: Final = """
import sys, threading
from openclawctl import Client

lock, started, failures = threading.Lock(), 0, []

def next_number():
    global started
    with lock:
        started += 1
        open("/home/alice/started", "w").write(str(started))
        return started

def ask():
    with Client() as client:
        while (number := next_number()) <= 300:
            try:
                result = client.generate(f"Number {number} is", max_tokens=8)
                assert result.usage.completion_tokens <= 8
            except Exception as error:
                failures.append(f"{number}: {type(error).__name__}: {error}")

threads = [threading.Thread(target=ask) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print("\\n".join(failures))
print(f"{len(failures)} of 300 failed")
"""

PROBER: Final = """
import contextlib, os, socket, sys

path, over = sys.argv[1:]
num_connections = 0
while not os.path.exists(over):
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
        except OSError as error:
            sys.exit(f"not connected after {num_connections} times: {type(error).__name__}")
        num_connections += 1
        sock.settimeout(0.05)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)
print("never refused" if num_connections else "never tried")
"""
"""Connects to a socket, with no second try, until a file comes into being: `Client` tries again, so
that `LOAD` does not see whether it was refused. Each waits for its end a moment, so as not to fill
up the queue of connections that nobody takes meanwhile."""


SECOND: Final = """\
model_paths: [/var/lib/openclawd/models]
budgets:
  - {name: small, match: {principal: 'user:root'}, tokens: 1000, window: day, alerts: [0.01]}
notify: {command: [/usr/local/bin/alert, second]}
"""


MOST_EXPOSED: Final = {"": 0.8, "torch": 1.2, "cuda": 2.0}
DROP_INS: Final = "/etc/systemd/system/openclawd.service.d"


@pytest.fixture(scope="module", params=MOST_EXPOSED, ids=["plain", "torch", "cuda"])
def drop_in(request: pytest.FixtureRequest) -> str:
    """Whose rules the service runs under, beside its own."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def machine(drop_in: str) -> Iterator[Machine]:
    with booted_machine() as machine:
        bring_packages(machine)
        install(machine)
        if drop_in:
            example = f"/usr/share/doc/openclawd/examples/{drop_in}.conf"
            machine.run(f"mkdir -p {DROP_INS} && cp {example} {DROP_INS}")
            machine.run("systemctl daemon-reload")
        configure(machine)
        yield machine


def answer(text: str) -> dict[str, Any]:
    """The object that a command printed."""
    result: dict[str, Any] = json.loads(text)
    return result


def model_row(machine: Machine, name: str = "smollm2") -> dict[str, Any]:
    rows = answer(machine.run("openclawctl status --json"))["models"]
    return next(dict(row) for row in rows if row["name"] == name)


def entries(machine: Machine, match: str) -> list[dict[str, Any]]:
    """What the journal has of the service."""
    lines = machine.run(f"journalctl --unit openclawd --output json --no-pager {match}")
    return [json.loads(line) for line in lines.splitlines()]


def wait_answer(machine: Machine) -> None:
    machine.wait("systemctl is-active openclawd")
    machine.wait(ASK)


def set_config(machine: Machine, text: str) -> None:
    machine.write("/etc/openclawd/openclawd.yaml", text)


# ---- start ----


def test_it_was_active_when_its_models_had_answered_and_not_before(machine: Machine) -> None:
    assert machine.show("openclawd", "ActiveState") == "active"
    rows = answer(machine.run("openclawctl status --json"))["models"]
    assert [row["state"] for row in rows] == ["ready", "ready"]
    shown = machine.run("systemctl show -P ActiveEnterTimestamp --timestamp=us+utc openclawd")
    active_at = datetime.strptime(shown.strip(), "%a %Y-%m-%d %H:%M:%S.%f UTC").replace(tzinfo=UTC)
    assert active_at.timestamp() >= max(row["since"] for row in rows)


def test_the_status_line_says_what_an_administrator_wants_to_know(machine: Machine) -> None:
    machine.wait(
        "systemctl show -P StatusText openclawd"
        " | grep -x 'smollm2 ready, other ready; 0 running, 0 queued, [0-9]* tokens/s'"
    )


def test_a_member_of_the_group_gets_an_answer_and_a_stranger_does_not(machine: Machine) -> None:
    result = answer(machine.run(ASK, user="alice"))
    assert "Paris" in result["text"]
    stranger = machine.attempt(ASK, user="bob")
    assert stranger.returncode == 3
    assert "usermod -aG openclaw bob" in stranger.stdout


def test_the_library_on_debians_own_python(machine: Machine) -> None:
    script = "from openclawctl import Client; print(Client().generate('1 2 3', max_tokens=4).text)"
    assert machine.run(f'python3 -c "{script}"', user="alice").strip()


def test_the_journal_has_each_request_with_its_fields(machine: Machine) -> None:
    machine.run(ASK, user="alice")
    finished = entries(machine, "MESSAGE_ID=5b0f0a4c1d3e4e7a9c6a2f8d17b3e041")[-1]
    assert finished["PRINCIPAL"] == "user:alice"
    assert finished["MODEL"] == "smollm2"
    assert finished["COMPLETION_TOKENS"] == "8"
    assert "France" not in json.dumps(finished)


def test_workers_die_before_the_daemon_when_memory_runs_out(machine: Machine) -> None:
    pid = machine.show("openclawd", "MainPID")
    capabilities = int(machine.run("grep CapEff /proc/1/status").split()[1], 16)
    may_lower = capabilities >> CAP_SYS_RESOURCE & 1  # not in every container
    score = machine.run(f"cat /proc/{pid}/oom_score_adj").strip()
    assert score == ("-500" if may_lower else "0")
    worker = model_row(machine)["worker_pid"]
    assert machine.run(f"cat /proc/{worker}/oom_score_adj").strip() == "500"


# ---- the sandbox ----


def test_verify_is_silent(machine: Machine) -> None:
    done = machine.attempt("systemd-analyze verify --man=no /lib/systemd/system/openclawd*.*")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_exposure(machine: Machine, drop_in: str) -> None:
    shown = machine.show("openclawd", "DropInPaths")
    assert shown == (f"{DROP_INS}/{drop_in}.conf" if drop_in else "")
    assert exposure(machine, "openclawd.service") <= MOST_EXPOSED[drop_in]


@pytest.mark.parametrize(
    ("unit", "most"), [("@two", 0.8), ("-metrics", 0.3), ("-notify", 1.2), ("-fetch@1", 1.2)]
)
def test_the_exposure_of_what_runs_beside_it(machine: Machine, unit: str, most: float) -> None:
    assert exposure(machine, f"openclawd{unit}.service") <= most


def exposure(machine: Machine, unit: str) -> float:
    line = machine.run(f"systemd-analyze security --no-pager {unit} | tail -1")
    found = re.search(r"exposure level for \S+: ([0-9.]+)", line)
    assert found, line
    return float(found[1])


def test_the_service_has_no_network_and_may_write_nowhere_else(machine: Machine) -> None:
    machine.run("systemctl restart openclawd")
    pid = machine.show("openclawd", "MainPID")
    inside = f"nsenter --target {pid} --mount --net --"
    assert machine.run(f"{inside} cat /proc/net/dev | grep -c :").strip() == "1"  # loopback
    for folder in ("/usr", "/etc", "/opt"):
        assert machine.attempt(f"{inside} touch {folder}/x").returncode != 0  # even as root
    assert machine.attempt(f"{inside} runuser -u openclawd touch /etc/openclawd/x").returncode != 0
    assert machine.run(f"grep -i seccomp: /proc/{pid}/status").split()[1] == "2"
    assert machine.run(f"grep CapBnd /proc/{pid}/status").split()[1].strip("0") == ""


# ---- reload ----


def test_a_good_configuration_is_reloaded_and_a_bad_one_is_reported(machine: Machine) -> None:
    pid = machine.show("openclawd", "MainPID")
    machine.run("systemctl reload openclawd")
    set_config(machine, CONFIG + "no_such_key: 1\n")
    bad = machine.attempt("systemctl reload openclawd")
    set_config(machine, CONFIG)
    assert bad.returncode != 0
    assert "no_such_key" in machine.run("journalctl -u openclawd -n 20 --no-pager")
    assert machine.show("openclawd", "MainPID") == pid
    assert machine.show("openclawd", "ActiveState") == "active"
    machine.run(ASK)


def test_a_bad_configuration_does_not_start_and_is_not_tried_again(machine: Machine) -> None:
    set_config(machine, "models: [")
    assert machine.attempt("systemctl restart openclawd").returncode != 0
    assert machine.show("openclawd", "ActiveState") == "failed"
    dead = doctor(machine, "unit")
    assert dead["state"] == "failed"
    assert dead["message"] == "openclawd.service is dead: its configuration is wrong"
    assert "openclawctl config check" in dead["remedy"]
    set_config(machine, CONFIG)
    machine.run("systemctl reset-failed openclawd; systemctl restart openclawd.socket openclawd")
    machine.run(ASK)


# ---- what is wrong with it ----


def doctor(machine: Machine, check: str, *, user: str = "") -> dict[str, Any]:
    """The worst that `openclawctl doctor` finds of a check."""
    report = machine.attempt("openclawctl doctor --json", user=user).stdout
    return next(dict(found) for found in answer(report)["findings"] if found["check"] == check)


def test_the_doctor_finds_nothing_that_keeps_it_from_working(machine: Machine) -> None:
    report = answer(machine.run("openclawctl doctor --json"))
    assert report["ok"]
    states = {found["check"]: found["state"] for found in report["findings"]}
    assert states["unit"] in ("ok", "warning")  # it was started again by tests before
    checks = ("socket", "config", "models", "ledger", "clock", "cpu")
    assert [states[check] for check in checks] == ["ok"] * len(checks)


def test_the_doctor_of_a_stranger_says_how_to_get_in(machine: Machine) -> None:
    found = doctor(machine, "socket", user="bob")
    assert found["state"] == "failed"
    assert "usermod -aG openclaw bob" in found["remedy"]


def test_the_doctor_looks_with_the_eyes_of_the_service(machine: Machine) -> None:
    model = "/var/lib/openclawd/models/closed.gguf"
    machine.run(f"cp /var/lib/openclawd/models/*.gguf {model} && chmod 600 {model}")
    found = doctor(machine, "models")
    machine.run(f"rm {model}")
    assert found["state"] == "failed"
    assert f"openclawd may not read {model} (mode 0600, owner root)" in found["message"]
    assert f"chgrp openclawd {model}" in found["remedy"]


# ---- what dies and hangs ----


def test_a_killed_worker_is_replaced(machine: Machine) -> None:
    pid, other = model_row(machine)["worker_pid"], model_row(machine, "other")["worker_pid"]
    asking = machine.start(ASK_LONG, user="alice")
    machine.wait("openclawctl status --json | grep -q '\"running\": *1'")
    machine.run(f"kill -KILL {pid}")
    assert answer(asking.communicate()[0])["usage"]["completion_tokens"] == 400
    assert model_row(machine)["worker_pid"] != pid
    assert model_row(machine, "other")["worker_pid"] == other


def test_a_stopped_worker_is_replaced_long_before_the_service(machine: Machine) -> None:
    service = machine.show("openclawd", "MainPID")
    pid, other = model_row(machine)["worker_pid"], model_row(machine, "other")["worker_pid"]
    asking = machine.start(ASK_LONG, user="alice")
    machine.wait("openclawctl status --json | grep -q '\"running\": *1'")
    machine.run(f"kill -STOP {pid}")
    machine.wait(f"{METRICS} | grep -q '^openclawd_model_stalled_seconds.*\"smollm2\".* [1-9]'")
    machine.wait("! openclawctl health")  # both said so before it is replaced
    deep = answer(machine.attempt("openclawctl health --deep --json").stdout)
    assert (deep["status"], model_row(machine)["worker_pid"]) == ("failing", pid)
    assert answer(machine.run(f"{ASK} --model other"))["model"] == "other"
    assert answer(asking.communicate()[0])["usage"]["completion_tokens"] == 400
    assert model_row(machine)["worker_pid"] != pid
    assert model_row(machine, "other")["worker_pid"] == other
    assert machine.show("openclawd", "MainPID") == service
    (stalled,) = entries(machine, "MESSAGE_ID=6c0e5d91f3a84b27b1d84a7e92f05c63")
    assert stalled["WORKER_PID"] == str(pid)


def test_a_killed_daemon_is_started_again_and_takes_its_workers_with_it(machine: Machine) -> None:
    pid, worker = machine.show("openclawd", "MainPID"), model_row(machine)["worker_pid"]
    machine.run(f"kill -KILL {pid}")
    machine.wait(f"test ! -e /proc/{worker}")
    wait_answer(machine)
    assert machine.show("openclawd", "MainPID") not in (pid, "0")


def test_the_watchdog_ends_a_daemon_that_hangs(machine: Machine) -> None:
    folder = "/run/systemd/system/openclawd.service.d"
    machine.run(
        f"mkdir -p {folder} && printf '[Service]\\nWatchdogSec=3\\n' > {folder}/fast.conf"
        " && systemctl daemon-reload && systemctl restart openclawd"
    )
    pid = machine.show("openclawd", "MainPID")
    machine.run(f"kill -STOP {pid}")
    machine.wait(f"test ! -e /proc/{pid}")
    wait_answer(machine)
    machine.run(f"rm -r {folder} && systemctl daemon-reload")
    assert "watchdog" in machine.run("journalctl -u openclawd --no-pager -n 100").lower()
    machine.run("systemctl restart openclawd")


# ---- stop and restart ----


def test_a_stop_lets_what_runs_finish(machine: Machine) -> None:
    asking = machine.start(ASK_LONG, user="alice")
    machine.wait("openclawctl status --json | grep -q '\"running\": *1'")
    machine.run("systemctl stop openclawd")
    assert answer(asking.communicate()[0])["usage"]["completion_tokens"] == 400
    assert machine.show("openclawd", "Result") == "success"
    assert machine.run("stat -c '%U %G %a' /run/openclawd/openclawd.sock") == "root openclaw 660\n"


def test_who_asks_a_stopped_service_starts_it(machine: Machine) -> None:
    machine.run(ASK, user="alice")
    machine.wait("systemctl is-active openclawd")  # its model may answer before all are loaded


def test_restarts_under_load_refuse_and_lose_nothing(machine: Machine) -> None:
    machine.write("/home/alice/load.py", LOAD)
    machine.write("/home/alice/prober.py", PROBER)
    machine.run("systemctl reset-failed")
    prober = machine.start(
        "python3 /home/alice/prober.py /run/openclawd/openclawd.sock /home/alice/over",
        user="alice",
    )
    load = machine.start("python3 /home/alice/load.py", user="alice")
    for number in (20, 70, 120, 170, 220):
        machine.wait(f"test $(cat /home/alice/started) -ge {number}")
        machine.run("systemctl restart openclawd")
    output, _ = load.communicate(timeout=400)
    machine.run("touch /home/alice/over")
    assert prober.communicate(timeout=60)[0].strip() == "never refused"
    assert output.strip() == "0 of 300 failed"


def test_no_service_is_stopped_for_good_by_stopping_its_socket_too(machine: Machine) -> None:
    machine.run("systemctl stop openclawd.socket openclawd")
    gone = machine.attempt(ASK)
    assert gone.returncode == 3
    machine.run("systemctl start openclawd")
    machine.run(ASK)


# ---- beside the service ----


def test_an_alert_is_delivered_by_a_service_of_its_own(machine: Machine) -> None:
    machine.run(f"{ASK} --session alerting", user="alice")
    journal = "journalctl -u openclawd-notify --no-pager --output cat"
    machine.wait(f"{journal} | grep -q 'budget alerting at 0.01'")
    uid = machine.run("id -u openclawd").strip()
    assert f"uid {uid}" not in machine.run(journal)


def test_the_metrics_are_offered_on_a_port_by_a_service_without_a_network(machine: Machine) -> None:
    machine.run("systemctl start openclawd-metrics.socket")
    url = "http://127.0.0.1:9867/metrics"
    read = f"import urllib.request as u; print(u.urlopen('{url}').read().decode())"
    assert "openclawd_healthy 1" in machine.run(f'python3 -c "{read}"')
    assert doctor(machine, "port")["message"] == "openclawd-metrics listens on port 9867"
    machine.run("systemctl stop openclawd-metrics.socket openclawd-metrics")


def test_a_second_instance_has_its_own_configuration(machine: Machine) -> None:
    """And the models of the first one, and its way for alerts."""
    machine.write("/etc/openclawd-two/openclawd.yaml", SECOND)
    machine.run("systemctl enable --now openclawd@two")
    two = "openclawctl --socket /run/openclawd/two.sock"
    assert machine.run("stat -c '%U %G %a' /run/openclawd/two.sock") == "root openclaw 660\n"
    machine.run(f"{two} generate --model {MODEL} '1 2 3' --max-tokens 30 --ignore-eos")
    assert [row["name"] for row in answer(machine.run(f"{two} status --json"))["models"]] == [MODEL]
    journal = "journalctl -u openclawd-notify --no-pager --output cat"
    machine.wait(f"{journal} | grep -q 'second small at 0.01'")
    assert answer(machine.run(f"{two} doctor --json"))["ok"]
    machine.run("systemctl disable --now openclawd@two")
    assert machine.attempt("systemctl is-enabled openclawd@two.socket").returncode != 0
    machine.run("systemctl stop openclawd@two.socket")
    machine.run(ASK)


def test_a_model_is_loaded_from_a_copy_on_faster_storage(machine: Machine) -> None:
    copies, unit = "/var/cache/openclawd/models", "/etc/systemd/system/openclawd-fetch@.service.d"
    machine.run(f"install -d -o openclawd-fetch -g openclawd -m 2750 {copies}")
    example = "/usr/share/doc/openclawd/examples/fetch-copies.conf"
    machine.run(f"mkdir -p {unit} && cp {example} {unit} && systemctl daemon-reload")
    set_config(machine, f"{CONFIG}fetch: {{copy_to: {copies}}}\n")
    machine.run(f"systemctl restart openclawd && {ASK}")
    owner = machine.run(f"stat -c '%U:%G %a' {copies}/{MODEL}.gguf")
    set_config(machine, CONFIG)
    machine.run(f"rm -r {unit} {copies} && systemctl daemon-reload && systemctl restart openclawd")
    assert owner == "openclawd-fetch:openclawd 640\n"


def test_the_packages_own_test(machine: Machine) -> None:
    smoke = machine.root / "root/smoke"
    smoke.write_text((DEBIAN / "tests/smoke").read_text())
    done = machine.attempt("sh /root/smoke")
    assert (done.returncode, done.stderr) == (0, "")  # autopkgtest takes both for a failure
