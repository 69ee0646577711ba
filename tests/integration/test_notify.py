"""sd_notify against real sockets: by path, abstract, full, gone."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.agent.ports import Notifier
from edge_agent.lifecycle.supervision import SystemdNotifier


class Manager:
    """The service manager's end of the socket."""

    def __init__(self, address: str | Path) -> None:
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(str(address))
        self.channel.settimeout(5)

    def heard(self) -> str:
        return self.channel.recv(4096).decode()

    def silent(self) -> bool:
        self.channel.setblocking(False)
        try:
            self.channel.recv(4096)
        except BlockingIOError:
            return True
        finally:
            self.channel.settimeout(5)
        return False


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    ours = Manager(tmp_path / "notify")
    yield ours
    ours.channel.close()


def test_every_message_over_a_path(manager: Manager, tmp_path: Path) -> None:
    notifier = SystemdNotifier(str(tmp_path / "notify"))
    port: Notifier = notifier
    port.ready()
    port.status("2 models resident,\nbroker away")
    port.watchdog()
    notifier.extend_timeout(12.5)
    notifier.reloading(1234.5)
    port.stopping()
    heard = [manager.heard() for _ in range(6)]
    assert heard == [
        "READY=1",
        "STATUS=2 models resident, broker away",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=12500000",
        "RELOADING=1\nMONOTONIC_USEC=1234500000",
        "STOPPING=1",
    ]


def test_an_abstract_socket() -> None:
    name = f"edge-agent-test-{os.getpid()}"
    ours = Manager(f"\0{name}")
    try:
        SystemdNotifier(f"@{name}").ready()
        assert ours.heard() == "READY=1"
    finally:
        ours.channel.close()


def test_the_environment_is_read_and_emptied_so_that_children_cannot_speak(manager: Manager, tmp_path: Path) -> None:
    env = {
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": "60000000",
        "WATCHDOG_PID": str(os.getpid()),
        "OTHER": "1",
    }
    notifier = SystemdNotifier.from_environment(env)
    assert env == {"OTHER": "1"}
    assert notifier.watchdog_s == 60.0
    notifier.ready()
    assert manager.heard() == "READY=1"


@pytest.mark.parametrize(
    "env", [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}]
)
def test_a_watchdog_that_is_not_ours(env: dict[str, str]) -> None:
    assert SystemdNotifier.from_environment(dict(env)).watchdog_s is None


def test_outside_systemd_nothing_happens() -> None:
    SystemdNotifier.from_environment({}).ready()
    SystemdNotifier("").status("x")


def test_a_manager_that_is_gone_is_said_once(
    manager: Manager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = SystemdNotifier(str(tmp_path / "notify"))
    manager.channel.close()
    with caplog.at_level(logging.WARNING):
        notifier.watchdog()
        notifier.watchdog()
    assert [record.getMessage() for record in caplog.records] == ["systemd cannot be notified: Connection refused"]


def test_a_manager_that_does_not_read_does_not_stop_the_agent(manager: Manager, tmp_path: Path) -> None:
    notifier = SystemdNotifier(str(tmp_path / "notify"))
    for _ in range(2000):  # far more than a datagram socket holds
        notifier.watchdog()
    assert manager.heard() == "WATCHDOG=1"


def test_an_address_of_another_kind_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        SystemdNotifier("vsock:2:1234").ready()
    assert "only a path or an abstract name is understood" in caplog.text


def test_no_sign_of_life_while_something_is_wrong(
    manager: Manager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults: list[str | None] = [None, "the network thread has ended", "the network thread has ended", None]
    notifier = SystemdNotifier(str(tmp_path / "notify"), 60.0, health=lambda: faults.pop(0))
    with caplog.at_level(logging.INFO):
        notifier.watchdog()
        assert manager.heard() == "WATCHDOG=1"
        notifier.watchdog()
        assert manager.heard() == "STATUS=the network thread has ended"
        notifier.watchdog()
        assert manager.silent()
        notifier.watchdog()
        assert manager.heard() == "WATCHDOG=1"
    assert len(caplog.records) == 2, "a change is logged, not every round"


SCRIPT = """
import asyncio, os, sys, time
from edge_agent.lifecycle.supervision import SystemdNotifier
from edge_agent.lifecycle.supervision import Signals

async def main():
    notifier = SystemdNotifier.from_environment()
    end = asyncio.Event()
    reloads = []
    def stop(name):
        print("stopped by", name, "after", len(reloads), "reloads", flush=True)
        if "hang" not in sys.argv:
            end.set()
    with Signals(stop, lambda: (reloads.append(1), notifier.status("reloaded"))):
        notifier.ready()
        await end.wait()
        notifier.stopping()

asyncio.run(main())
"""


def started(tmp_path: Path, *args: str) -> subprocess.Popen[str]:
    env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *args], env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_daemon_stops_in_order_and_reloads(manager: Manager, tmp_path: Path, name: str) -> None:
    import signal

    with started(tmp_path) as process:
        manager.channel.settimeout(30)
        assert manager.heard() == "READY=1"
        process.send_signal(signal.SIGHUP)
        assert manager.heard() == "STATUS=reloaded"
        process.send_signal(getattr(signal, name))
        assert manager.heard() == "STOPPING=1"
        output, _ = process.communicate(timeout=30)
    assert output == f"stopped by {name} after 1 reloads\n"
    assert process.returncode == 0


def test_a_second_signal_ends_a_shutdown_that_hangs(manager: Manager, tmp_path: Path) -> None:
    import signal

    with started(tmp_path, "hang") as process:
        manager.channel.settimeout(30)
        assert manager.heard() == "READY=1"
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "stopped by SIGTERM after 0 reloads\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM
