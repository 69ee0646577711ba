"""A world that is not as it should be when the daemon starts, or ends under it: it says what is wrong, and goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.base.errors import EdgeError
from edge_agent.client.request_client import RequestClient
from edge_agent.demo import stage
from edge_agent.demo.device import DemoDevice
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.desk import cli, desk, said, write_config
from tests.support.mosquitto import Mosquitto, find, free_port
from tests.support.mqtt import until


def wait_for(condition: Callable[[], object], within_s: float = 15.0) -> None:
    until_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come about"
        time.sleep(0.02)


def test_the_broker_may_come_later(tmp_path: Path) -> None:
    """READY without a broker, one line about it, and service as soon as it is there."""
    broker = Mosquitto(tmp_path)
    agent = AgentProcess(tmp_path / "device", broker.port)
    agent.install(echo_package(tmp_path))
    with running(agent):
        wait_for(lambda: "no broker" in agent.log)
        time.sleep(1.0)
        assert agent.log.count("no broker") == 1, agent.log
        assert f"127.0.0.1:{broker.port}: nothing listens there (start the broker or check mqtt.port)" in agent.log
        with broker:
            reply = asyncio.run(_first_answer(broker))
    assert reply == 200


async def _first_answer(broker: Mosquitto) -> int:
    async with desk(broker) as table:
        await until(lambda: table.bodies("status") and table.bodies("status")[-1]["state"] == "online", 40.0)
        await until(lambda: table.bodies("info"))  # what it is was said anew
        return int((await table.ask("first", {"text": "x"}))["status"])


def test_a_wrong_password_is_said_once_by_the_daemon_and_at_once_by_infer(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("wrong\n")
    with Mosquitto(tmp_path, users={"dev1": "right"}) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        secret = {"EDGE_AGENT__MQTT__USERNAME": "dev1", "EDGE_AGENT__MQTT__PASSWORD_FILE": str(password)}
        agent.install(echo_package(tmp_path))
        with running(agent, **secret):
            wait_for(lambda: "check mqtt.username and the password" in agent.log)
            time.sleep(1.5)
            assert agent.log.count("check mqtt.username and the password") == 1, agent.log
            assert agent.process is not None
            assert agent.process.poll() is None, "a wrong password ends nothing"
            asked = cli("infer", "--config", agent.config, "echo", "x", **secret)
            assert asked.returncode == 1
            assert said(asked).count("\n") == 1, asked.stderr
            assert "Not authorized" in said(asked)
            assert "check mqtt.username and the password" in said(asked)
            assert "wrong" not in said(asked) + agent.log, "a password is never shown"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("nowhere", "No such file or directory"),
        ("empty", "is empty"),
    ],
)
def test_a_password_file_that_cannot_be_used(tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "empty").write_text("")
    config = write_config(tmp_path, 1883)
    secret = {"EDGE_AGENT__MQTT__USERNAME": "dev1", "EDGE_AGENT__MQTT__PASSWORD_FILE": str(tmp_path / path)}
    result = cli("run", "--config", config, **secret)
    assert result.returncode == 2
    assert words in said(result)
    assert "mqtt.password_file" in said(result)


def test_a_state_folder_that_is_a_file(tmp_path: Path) -> None:
    config = write_config(tmp_path, 1883)
    (tmp_path / "state").write_text("in the way")
    result = cli("run", "--config", config)
    assert result.returncode == 1
    assert str(tmp_path / "state") in said(result)
    assert "a file lies where a folder is needed" in said(result)


def test_after_kill_9_the_broker_says_offline_and_the_next_daemon_says_what_happened(tmp_path: Path) -> None:
    """The will speaks; events that waited on disk for a broker outlive the daemon too."""
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path))
        with running(agent):
            broker.kill()
            wait_for(lambda: "no broker" in agent.log)
            os.kill(agent.workers()[0], signal.SIGKILL)
            wait_for(lambda: "worker-died" in agent.log)
            agent.stop(signal.SIGKILL)
        broker.start()
        asyncio.run(_tell(agent, broker))


async def _tell(agent: AgentProcess, broker: Mosquitto) -> None:
    async with desk(broker) as table:
        with running(agent):
            event = await table.event("worker-died")
            assert event["data"]["model"] == "echo"
            await until(lambda: table.bodies("status"))
            assert table.bodies("status")[-1]["state"] == "online"
            assert table.bodies("status")[-1]["boot_id"] != event["boot_id"], "said by the daemon before"
            agent.stop(signal.SIGKILL)
            await until(lambda: table.bodies("status")[-1]["state"] == "offline")
            assert table.bodies("status")[-1]["reason"] == "connection lost"


def test_infer_says_that_the_device_is_away_or_unknown(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path))
        unknown = cli("infer", "--config", agent.config, "--device", "nobody", "echo", "x", "--deadline", 2)
        assert unknown.returncode == 1
        assert "is the device's name right, and is it running?" in said(unknown)
        with running(agent):
            assert cli("infer", "--config", agent.config, "echo", "x").returncode == 0
            agent.stop()
        away = cli("infer", "--config", agent.config, "echo", "x", "--deadline", 2)
        assert away.returncode == 1
        assert "dev1 says it is offline: stopped in order" in said(away)


def test_infer_without_a_broker(tmp_path: Path) -> None:
    port = free_port()
    result = cli("infer", "--config", write_config(tmp_path, port), "echo", "x")
    assert result.returncode == 1
    assert said(result) == (
        f"edge-agent: 127.0.0.1:{port}: nothing listens there (start the broker or check mqtt.port)\n"
    )


def test_a_stop_answers_what_is_open(tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path, delay_s=1.0))

        async def run() -> tuple[list[int], int]:
            async with RequestClient(broker.options("waiting"), devices=["dev1"]) as client:
                asks = [asyncio.create_task(client.infer("dev1", "echo", {"text": "x"}, 20)) for _ in range(3)]
                await asyncio.sleep(0.4)
                code = await asyncio.to_thread(agent.stop)
                return [(await ask).status for ask in asks], code

        with running(agent, EDGE_AGENT__WORKER__MAX_ROWS="1"):
            assert asyncio.run(run()) == ([503, 503, 503], 0)


def test_a_port_in_use_is_said_before_a_broker_is_started(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(EdgeError, match=f"port {port} is in use"), stage.broker(tmp_path, port):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="port 70000 cannot be used"), stage.broker(tmp_path, 70000):
        pass


def test_a_second_stage_in_a_folder_is_told_of_the_first(tmp_path: Path) -> None:
    with (
        stage.alone(tmp_path),
        pytest.raises(EdgeError, match=f"a demo is running in .* already .pid {os.getpid()}"),
        stage.alone(tmp_path),
    ):
        pass
    with stage.alone(tmp_path):
        pass


def test_a_daemon_that_ends_before_it_is_ready_is_noticed_although_another_speaks(tmp_path: Path) -> None:
    config = tmp_path / "edge-agent.toml"
    config.write_text('[device]\nid = "no good id"\n')
    began_s = time.monotonic()
    with pytest.raises(EdgeError, match="the daemon ended with exit code"), stage.daemon(config, tmp_path):
        pass
    assert time.monotonic() - began_s < stage.READY_S / 2


def test_a_stage_reads_on_what_its_daemon_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket that nobody reads holds some ten words, and the daemon warned of it."""
    program = (
        "import os, signal, socket; told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); told.settimeout(10)\n"
        "[told.sendto(word, os.environ['NOTIFY_SOCKET']) for word in [b'READY=1', *[b'STATUS=well'] * 50]]\n"
        "print('all was told', flush=True); signal.pause()\n"
    )
    monkeypatch.setattr(stage, "module_command", lambda *_: [sys.executable, "-c", program])
    with stage.daemon(tmp_path / "edge-agent.toml", tmp_path) as daemon:
        wait_for(lambda: "all was told" in daemon.part.log.read_text())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stage_that_is_ended_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    program = (
        "import sys, signal, pathlib; from edge_agent.demo import stage\n"
        "with stage.ended_by_signals(), stage.broker(pathlib.Path(sys.argv[1])) as broker:\n"
        "    print(broker.port, flush=True); signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        process.send_signal(number)
        assert process.wait(10.0) == (-number if number == signal.SIGKILL else 128 + number)
    until_s = time.monotonic() + 10.0
    while _listens(port) and time.monotonic() < until_s:  # killed, it cannot wait for the end of the others
        time.sleep(0.05)
    assert not _listens(port), "the broker has ended, too"


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_broker_of_a_stage_listens_for_browsers_where_it_was_built_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with stage.broker(tmp_path) as broker:
        assert broker.websockets is not None
        assert _listens(broker.websockets)
        broker.part.process.kill()
        broker.part.process.wait(10.0)
        with pytest.raises(EdgeError):
            stage.stay(broker, broker.part.check)
        assert f"edge-agent console --broker ws://127.0.0.1:{broker.websockets} " in capsys.readouterr().out
    without = tmp_path / "bin" / "mosquitto"
    without.parent.mkdir()
    refusal = 'grep -q websockets "$2" && { echo "Websockets support not available."; exit 1; }'
    without.write_text(f'#!/bin/sh\n{refusal}\nexec {find("mosquitto")} "$@"\n')
    without.chmod(0o755)
    monkeypatch.setenv("PATH", f"{without.parent}:{os.environ['PATH']}")
    with stage.broker(tmp_path) as broker:
        assert broker.websockets is None
        assert _listens(broker.port)


def test_a_demo_notices_that_its_device_has_ended(tmp_path: Path) -> None:
    with stage.broker(tmp_path) as broker, DemoDevice(tmp_path, broker) as shown:
        asyncio.run(shown.watched(asyncio.sleep(0.0)))
        broker.part.process.kill()
        began_s = time.monotonic()
        with pytest.raises(EdgeError, match="the broker ended with exit code -9"):
            asyncio.run(shown.watched(asyncio.sleep(60.0)))
        with pytest.raises(EdgeError, match="the broker ended"):
            stage.stay(broker, shown.check)
        assert time.monotonic() - began_s < 30.0


@pytest.fixture
def card(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that can be made read-only."""
    folder = tmp_path / "device" / "state"
    folder.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("NO MOUNTS HERE: a read-only state folder was NOT tried (needs root and CAP_SYS_ADMIN)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_what_is_installed_is_served_from_a_card_that_is_read_only(card: Path, tmp_path: Path) -> None:
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path))
        subprocess.run(["mount", "-o", "remount,ro", str(card)], check=True)
        with running(agent):
            asyncio.run(_served_until_writable(broker, card))
            wait_for(lambda: "the state folder can be written again" in agent.log)
        assert "is mounted read-only; check the card" in agent.log
        assert "Traceback" not in agent.log
        assert (card / "daemon.lock").exists()


async def _served_until_writable(broker: Mosquitto, card: Path) -> None:
    async with desk(broker) as table:
        await until(lambda: table.bodies("status") and table.bodies("status")[-1]["state"] == "degraded", 20.0)
        assert "the state folder cannot be written" in table.bodies("status")[-1]["reason"]
        assert (await table.ask("first", {"text": "x"}))["status"] == 200
        subprocess.run(["mount", "-o", "remount,rw", str(card)], check=True)
        event = await table.event("state-folder")
        assert event["data"] == {"writable": True}
        await until(lambda: table.bodies("status")[-1]["state"] == "online", 10.0)
