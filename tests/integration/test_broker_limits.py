"""Brokers that take only small packets, refuse a subscription, or grant one and do not serve it; real daemons."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import subprocess
import sys
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge_agent.mqtt import subscription_monitor
from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.outbox import RETURNS
from edge_agent.mqtt.packets import packet_bytes
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.topics import Subscription, Topics
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.mqtt import NotedLink, linked, until

DEVICE = "dev1"
OWN = f"edge/v1/{DEVICE}"
REPLIES = "edge/v1/client/desk/reply"
TOPICS = Topics("edge/v1", DEVICE)
ECHO = {"text": "x"}


def said(link: NotedLink, tail: str) -> list[dict[str, Any]]:
    """The bodies that came on one of the device's topics."""
    return [json.loads(one.payload) for one in link.seen if one.topic == f"{OWN}/{tail}" and one.payload]


async def ask(link: NotedLink, body: dict[str, Any], request_id: str = "1") -> dict[str, Any]:
    """A request and its answer."""
    payload = json.dumps(body | {"id": request_id, "reply_to": REPLIES}).encode()
    assert link.link.publish(Outbound(f"{OWN}/infer/echo", payload))
    found: list[dict[str, Any]] = []

    def answered() -> bool:
        found[:] = [json.loads(one.payload) for one in link.seen if one.topic == REPLIES]
        found[:] = [one for one in found if one["id"] == request_id]
        return bool(found)

    await until(answered)
    return found[0]


@pytest.mark.parametrize("most", [2048, 1100, 700])
def test_a_brokers_maximum_packet_size_is_obeyed_and_what_does_not_fit_is_named_once(tmp_path: Path, most: int) -> None:
    async def run(broker: Mosquitto) -> None:
        async with linked(broker.options("desk"), [Subscription("edge/v1/#")]) as desk:
            status = await ask(desk, ECHO)
            assert status["status"] == 200
            assert (await ask(desk, {"texts": ["x"] * 60}, "2"))["status"] == 413
            assert "fit a message" in str((await ask(desk, {"texts": ["x"] * 60}, "3"))["reason"])
            await until(lambda: [one for one in said(desk, "event") if one["kind"] == "not-sendable"])
            await asyncio.sleep(2.5)  # two more intervals of telemetry
            named = [one["data"]["topic"] for one in said(desk, "event") if one["kind"] == "not-sendable"]
            assert len(set(named)) == len(named), "each is named once"
            assert f"{OWN}/telemetry" in named
            await until(lambda: said(desk, "status"))
            assert said(desk, "status")[-1]["state"] == "online"
            assert all(packet_bytes(Outbound(one.topic, one.payload, one.qos), 4) <= most for one in desk.seen)

    with Mosquitto(tmp_path, extra=[f"max_packet_size {most}"]) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        agent.install(echo_package(tmp_path))
        with running(agent):
            asyncio.run(run(broker))
        assert broker.log.count("New client connected from 127.0.0.1:") >= 1
        assert broker.log.count(f" as {DEVICE} ") == 1, "the connection never ended"
        assert agent.log.count(f"what is to be sent on {OWN}/telemetry is given up") == 1


@pytest.mark.parametrize("qos", [0, 1])
def test_a_broker_of_3_1_1_that_hangs_up_on_large_packets_is_not_sent_them_for_ever(tmp_path: Path, qos: int) -> None:
    """It cannot name its limit: a state of 3 KB, new each time, ends three connections and no more."""

    async def run() -> None:
        with Mosquitto(tmp_path, extra=["max_packet_size 2048"]) as broker:
            async with linked(broker.options(DEVICE, protocol=311), [Subscription("edge/v1/#")]) as link:
                for number in range(100):
                    status = Outbound(f"{OWN}/status", b"%d" % number, keep="latest")
                    link.link.publish(Outbound(f"{OWN}/telemetry", bytes(3000 + number), qos, keep="latest"))
                    link.link.publish(status)
                    await asyncio.sleep(0.05)
                    if not link.link.publish(Outbound(f"{OWN}/telemetry", bytes(3000), qos, keep="latest")):
                        break
                await until(lambda: link.link.connected)
                ends = [change for change in link.changes if not change.connected]
                assert len(ends) <= RETURNS
                assert any("is it larger than the broker takes?" in change.text for change in ends)
                assert not any("client id" in change.text for change in ends)
                assert not link.link.publish(Outbound(f"{OWN}/models", bytes(3300), keep="latest")), "as large"
                assert link.link.publish(Outbound(f"{OWN}/models", bytes(1500), keep="latest"))
                await until(lambda: any(one.topic == f"{OWN}/models" for one in link.seen))
                assert link.link.take_dropped()["unsendable"] >= 2

    asyncio.run(run())


ACCESS = f"""
user desk
topic readwrite #
user {DEVICE}
topic write {OWN}/#
topic write edge/v1/client/+/reply/#
"""
USERS = {"desk": "desk", DEVICE: DEVICE}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks every second, and half a second for a message to oneself."""
    monkeypatch.setattr(subscription_monitor, "CHECK_S", 1.0)
    monkeypatch.setattr(subscription_monitor, "RETURN_S", 0.5)


def listening(options: MqttOptions) -> AbstractAsyncContextManager[NotedLink]:
    """A link with a device's subscriptions, which sends itself messages."""
    return linked(options, TOPICS.subscriptions(), own_topics=TOPICS.self_checks())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("protocol", [5, 311])
def test_a_device_that_the_broker_lets_hear_nothing_knows_it_and_recovers(tmp_path: Path, protocol: int) -> None:
    """mosquitto grants the subscription and asks the access list only when it delivers."""

    async def run() -> None:
        with Mosquitto(tmp_path, users=USERS, acl=ACCESS) as broker:
            options = broker.options(DEVICE, username=DEVICE, password=DEVICE, protocol=protocol)
            async with listening(options) as link:
                await until(lambda: link.link.troubles)
                assert f"nothing arrives on {OWN}/cmd/+, {OWN}/infer/+" in link.link.troubles[0]
                assert link.changes[-1].kind == "subscription-refused"
                (broker.folder / "acl").write_text(ACCESS.replace("topic write edge/v1/dev1", "topic edge/v1/dev1"))
                broker.reload()
                await until(lambda: link.changes[-1].kind == "connected")
                assert link.link.troubles == ()

    asyncio.run(run())


@pytest.mark.usefixtures("quick")
def test_where_a_device_may_not_write_to_its_own_topics_nothing_is_claimed(tmp_path: Path) -> None:
    async def run() -> None:
        acl = ACCESS.replace(f"topic write {OWN}/#", f"topic read {OWN}/#")
        with Mosquitto(tmp_path, users=USERS, acl=acl) as broker:
            options = broker.options(DEVICE, username=DEVICE, password=DEVICE, protocol=5)
            async with listening(options) as link:
                await asyncio.sleep(3.0)
                assert link.link.troubles == ()
                assert link.link.publish_failures == 0

    asyncio.run(run())


class RefusingProxy:
    """Passes everything between a client and a broker, but answers the first `refused` SUBSCRIBEs itself: 0x87."""

    def __init__(self, broker_port: int, refused: int) -> None:
        self._broker_port = broker_port
        self._refused = refused
        self.seen = 0
        self.port = free_port()

    async def __aenter__(self) -> RefusingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        below, out = await asyncio.open_connection("127.0.0.1", self._broker_port)
        await asyncio.gather(self._up(reader, writer, out), self._down(below, writer))

    async def _up(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter, out: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(2)
                assert head[1] < 128 or head[0] >> 4 != 8, "a SUBSCRIBE of these tests is short"
                length, shift = head[1] & 127, 7
                while head[-1] & 128:
                    head += await reader.readexactly(1)
                    length |= (head[-1] & 127) << shift
                    shift += 7
                body = await reader.readexactly(length)
                if head[0] >> 4 == 8:
                    self.seen += 1
                if head[0] >> 4 == 8 and self.seen <= self._refused:
                    codes = bytes([0x87]) * self._filters(body)
                    back.write(bytes([0x90, 3 + len(codes)]) + body[:2] + b"\0" + codes)
                else:
                    out.write(head + body)
        out.close()

    async def _down(self, below: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await below.read(65_536):
                writer.write(data)
        writer.close()

    @staticmethod
    def _filters(body: bytes) -> int:
        at, count = 3 + body[2], 0
        while at < len(body):
            at += 2 + int.from_bytes(body[at : at + 2], "big") + 1
            count += 1
        return count


@pytest.mark.usefixtures("quick")
def test_a_refused_subscription_is_tried_again_until_it_is_granted(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            async with RefusingProxy(broker.port, refused=2) as proxy:
                options = replace(broker.options(DEVICE, protocol=5), port=proxy.port)
                async with listening(options) as link:
                    assert "the broker refuses subscriptions" in link.link.troubles[0]
                    assert f"{OWN}/infer/+: Not authorized" in link.link.troubles[0]
                    await until(lambda: link.changes[-1].kind == "connected")
                    assert link.link.troubles == ()
                    assert proxy.seen == 3
                    async with linked(broker.options("desk")) as desk:
                        assert desk.link.publish(Outbound(f"{OWN}/infer/m", b"{}"))
                        await until(lambda: any(one.topic == f"{OWN}/infer/m" for one in link.seen))

    asyncio.run(run())


def test_a_deaf_daemon_says_degraded(tmp_path: Path) -> None:
    async def run(broker: Mosquitto) -> None:
        options = broker.options("desk", username="desk", password="desk")
        async with linked(options, [Subscription("edge/v1/#")]) as desk:
            await until(lambda: [one for one in said(desk, "status") if one["state"] == "degraded"], within_s=30)
            assert "nothing arrives on" in said(desk, "status")[-1]["reason"]

    with Mosquitto(tmp_path, users=USERS, acl=ACCESS) as broker:
        agent = with_password(AgentProcess(tmp_path / "device", broker.port))
        agent.install(echo_package(tmp_path))
        with running(agent):
            asyncio.run(run(broker))


def with_password(agent: AgentProcess) -> AgentProcess:
    """The agent as the user DEVICE of its broker."""
    password = agent.folder / "password"
    password.write_text(DEVICE)
    settings(agent, f'username = "{DEVICE}"\npassword_file = "{password}"')
    return agent


def settings(agent: AgentProcess, mqtt: str = "", telemetry: str = "", device: str = DEVICE) -> None:
    """More lines in these sections of the agent's settings, and its name."""
    text = agent.config.read_text().replace("[store]", f"{mqtt}\n[store]", 1)
    text = text.replace("[telemetry]", f"[telemetry]\n{telemetry}", 1).replace(
        f'id = "{DEVICE}"', f'id = "{device}"', 1
    )
    agent.config.write_text(text)


CONTROL = "$CONTROL/dynamic-security/v1"
REFUSED = {"acltype": "subscribePattern", "topic": f"{OWN}/#", "priority": 1, "allow": False}
LEADS = {"acltype": "publishClientSend", "topic": f"{CONTROL}/#", "priority": 1, "allow": True}


def dynamic_rules() -> dict[str, Any]:
    """Everybody may do everything, but DEVICE may not subscribe to its own topics; `desk` may change that."""
    everything = ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe")

    salt = b"twelve bytes"

    def client(name: str, role: str) -> dict[str, Any]:
        derived = hashlib.pbkdf2_hmac("sha512", name.encode(), salt, 101)
        secret = {"password": base64.b64encode(derived).decode(), "salt": base64.b64encode(salt).decode()}
        return {"username": name, "iterations": 101, **secret, "roles": [{"rolename": role}]}

    roles = [{"rolename": "deaf", "acls": [REFUSED]}, {"rolename": "leads", "acls": [LEADS]}]
    clients = [client(DEVICE, "deaf"), client("desk", "leads")]
    return {"defaultACLAccess": dict.fromkeys(everything, True), "clients": clients, "groups": [], "roles": roles}


def test_a_daemon_whose_subscriptions_mosquitto_refuses_says_degraded_and_recovers(tmp_path: Path) -> None:
    """Its plugin for dynamic security refuses a SUBSCRIBE itself; a plain access list swallows what it covers."""
    plugin = next(iter(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so")), None)
    if plugin is None:
        pytest.skip("MOSQUITTO'S PLUGIN FOR DYNAMIC SECURITY IS NOT HERE: refused subscriptions were NOT tried with it")
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(dynamic_rules()))
    allow = {"command": "removeRoleACL", "rolename": "deaf", "acltype": REFUSED["acltype"], "topic": REFUSED["topic"]}

    async def run(broker: Mosquitto) -> None:
        options = broker.options("desk", username="desk", password="desk")
        async with linked(options, [Subscription("edge/v1/#")]) as desk:

            def state(wanted: str) -> bool:
                return bool(said(desk, "status")) and said(desk, "status")[-1]["state"] == wanted

            await until(lambda: state("degraded"), within_s=30)
            assert "the broker refuses subscriptions" in said(desk, "status")[-1]["reason"]
            assert desk.link.publish(Outbound(CONTROL, json.dumps({"commands": [allow]}).encode()))
            await until(lambda: state("online"), within_s=90)
            assert (await ask(desk, ECHO))["status"] == 200

    with Mosquitto(tmp_path, extra=[f"plugin {plugin}", f"plugin_opt_config_file {rules}"]) as broker:
        agent = with_password(AgentProcess(tmp_path / "device", broker.port))
        agent.install(echo_package(tmp_path))
        with running(agent):
            asyncio.run(run(broker))


def retained(broker: Mosquitto) -> dict[str, str]:
    """What the broker retains, by topic: the state in it, where there is one."""

    async def run() -> dict[str, str]:
        async with linked(broker.options("looker"), [Subscription("#", replay=True)]) as desk:
            await asyncio.sleep(0.3)
            kept = [one for one in desk.seen if one.retained and one.payload]
            return {one.topic: json.loads(one.payload).get("state", "") for one in kept}

    return asyncio.run(run())


def retains(broker: Mosquitto, expected: dict[str, str]) -> None:
    """Wait until the broker retains that."""
    until_s = time.monotonic() + 20.0
    while (found := retained(broker)) != expected:
        assert time.monotonic() < until_s, found


def test_a_device_that_is_renamed_or_stops_announcing_leaves_nothing_behind_at_the_broker(tmp_path: Path) -> None:
    def of(name: str, state: str, *more: str) -> dict[str, str]:
        return {f"edge/v1/{name}/{tail}": state * (tail == "status") for tail in ("status", "info", "models")} | {
            f"homeassistant/device/{one}/config": "" for one in more
        }

    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        settings(agent, telemetry="home_assistant = true")
        with running(agent):
            retains(broker, of(DEVICE, "online", DEVICE))
            assert agent.stop() == 0
        agent.config.write_text(agent.config.read_text().replace("home_assistant = true", ""))
        with running(agent):
            retains(broker, of(DEVICE, "online"))
            assert agent.stop() == 0
        retains(broker, of(DEVICE, "offline"))
        settings(agent, telemetry="home_assistant = true", device="other")
        with running(agent):
            retains(broker, of("other", "online", "other"))


def test_a_daemon_of_3_1_1_whose_telemetry_ends_connections_serves_on_without_it(tmp_path: Path) -> None:
    async def run(broker: Mosquitto) -> None:
        async with linked(broker.options("desk"), [Subscription("edge/v1/#")]) as desk:
            await until(lambda: "telemetry is given up" in agent.log, within_s=60)
            await until(lambda: agent.log.count("connected to 127.0.0.1") == 1 + RETURNS, within_s=30)
            await asyncio.sleep(3.0)  # three intervals of telemetry
            assert broker.log.count(f" as {DEVICE} ") == 1 + RETURNS, "no further connection ends"
            await until(lambda: said(desk, "status") and said(desk, "status")[-1]["state"] == "online")
            assert (await ask(desk, ECHO))["status"] == 200

    with Mosquitto(tmp_path, extra=["max_packet_size 2048"]) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port)
        settings(agent, mqtt='protocol = "3.1.1"')
        agent.install(echo_package(tmp_path))
        with running(agent):
            asyncio.run(run(broker))


def doctors_line(agent: AgentProcess) -> str:
    """What `edge-agent doctor` says of hearing the device's topics; empty where nothing is wrong."""
    command = [sys.executable, "-m", "edge_agent", "doctor", "--json", "--config", str(agent.config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    found = [check["text"] for check in json.loads(done.stdout) if check["name"] == "broker"]
    assert found, done.stderr
    return "\n".join(text for text in found if "does not come back" in text)


def test_doctor_finds_that_the_device_would_hear_nothing(tmp_path: Path) -> None:
    with Mosquitto(tmp_path, users=USERS, acl=ACCESS + "topic readwrite edge/v1/client/+/reply/ping\n") as broker:
        agent = with_password(AgentProcess(tmp_path / "device", broker.port))
        assert f"{OWN}/cmd/~self, {OWN}/infer/~self" in doctors_line(agent)
        acl = (broker.folder / "acl").read_text().replace(f"topic write {OWN}/#", f"topic {OWN}/#")
        (broker.folder / "acl").write_text(acl)
        broker.reload()
        assert doctors_line(agent) == ""
