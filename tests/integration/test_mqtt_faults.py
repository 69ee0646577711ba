"""The link against a broker that dies, freezes, restarts, refuses, floods; and against what is no broker at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.base.errors import BrokerError
from edge_agent.base.limits import INBOX_BYTES
from edge_agent.client.request_client import RequestClient
from edge_agent.mqtt.options import MqttOptions
from edge_agent.mqtt.outbox import RETURNS
from edge_agent.mqtt.spool import Spool
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.topics import Subscription, Topics
from tests.support.mosquitto import Mosquitto, free_port
from tests.support.mqtt import NotedLink, linked, until

TOPICS = Topics("edge/v1", "pi")
ALL = [Subscription("edge/v1/#")]


def message(body: bytes, topic: str = "edge/v1/pi/reply/x", **more: object) -> Outbound:
    return Outbound(topic, body, **more)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def impostor(answer: bytes | None, then: bytes = b"") -> AsyncIterator[tuple[int, list[bytes]]]:
    """Something on a port that is no broker: it says `answer`, or hangs up at once when that is None; to the next
    that it hears it says `then`."""
    heard: list[bytes] = []
    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.transport.abort()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        if answer is not None:
            writer.write(answer)
            await writer.drain()
            if await reader.read(1000):
                writer.write(then)
                await reader.read(1000)

    port = free_port()
    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield port, heard
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.05)


CONNACK = b"\x20\x03\x00\x00\x00"


@pytest.mark.parametrize("version", [5, 311])
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_it_comes_back_when_the_broker_does(tmp_path: Path, how: str, version: int) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path, persistence=True) as broker:
            options = broker.options("pi", protocol=version)
            async with linked(options, ALL) as pi:
                assert pi.link.publish(message(b"before"))
                await until(lambda: pi.bodies == [b"before"])
                getattr(broker, how)()
                await until(lambda: not pi.link.connected)
                # An answer that was ready while the broker was away is delivered when it is back, unless it is late.
                assert pi.link.publish(message(b"meanwhile", expiry_s=60.0))
                assert pi.link.publish(message(b"late", expiry_s=0.3))
                await asyncio.sleep(0.5)
                assert pi.link.alive()
                broker.start()
                await until(lambda: pi.link.connected)
                assert pi.link.publish(message(b"after"))
                await until(lambda: b"after" in pi.bodies)
                assert pi.bodies == [b"before", b"meanwhile", b"after"]
            assert [change.connected for change in pi.changes][:1] == [True]
            assert [change.connected for change in pi.changes][-1] is True

    asyncio.run(run())


@pytest.mark.parametrize("version", [5, 311])
def test_a_message_that_the_broker_hangs_up_on_is_given_up_and_harms_no_other(
    tmp_path: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            async with linked(broker.options("pi", protocol=version), ALL) as pi:
                bodies = [b"%d" % number for number in range(6)]
                for body in bodies[:3]:
                    assert pi.link.publish(message(body, expiry_s=60.0))
                assert pi.link.publish(message(b"bad", "edge/v1/pi/reply/\uffff", expiry_s=60.0))
                for body in bodies[3:]:
                    assert pi.link.publish(message(body, expiry_s=60.0))
                await until(lambda: set(bodies) <= set(pi.bodies))
                assert sum(not change.connected for change in pi.changes) <= RETURNS
                assert pi.link.connected

    with caplog.at_level(logging.WARNING, "edge_agent.mqtt"):
        asyncio.run(run())
    assert sum("is given up" in record.message for record in caplog.records) == 1


def test_it_starts_before_the_broker_and_says_once_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        broker = Mosquitto(tmp_path)
        async with linked(broker.options("pi"), ready=False) as pi:
            await asyncio.sleep(1.0)
            assert pi.link.alive()
            assert not pi.link.connected
            assert [change.text for change in pi.changes] == [
                f"127.0.0.1:{broker.port}: nothing listens there (start the broker or check mqtt.port)"
            ]
            with broker:
                await until(lambda: pi.link.connected)
                assert [change.kind for change in pi.changes] == ["transient", "connected"]
                await pi.link.stop([])

    with caplog.at_level(logging.INFO, "edge_agent.mqtt"):
        asyncio.run(run())
    assert len(caplog.records) == 2


def test_a_card_that_stalls_does_not_stop_the_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stalled, over = threading.Event(), threading.Event()

    def sync(_descriptors: object) -> None:
        stalled.set()
        over.wait(30.0)

    async def run() -> None:
        monkeypatch.setattr(Spool, "sync", staticmethod(sync))
        with Mosquitto(tmp_path) as broker:
            async with linked(broker.options("pi", keepalive_s=1), spool=Spool(tmp_path / "spool")) as pi:
                assert pi.link.publish(message(b"an event", keep="disk"))
                await until(stalled.is_set)
                pings = broker.log.count("Received PINGREQ")
                await until(lambda: broker.log.count("Received PINGREQ") >= pings + 2)
                assert [change.kind for change in pi.changes] == ["connected"]
                over.set()

    try:
        asyncio.run(run())
    finally:
        over.set()


def test_a_full_disk_is_said_once_and_so_is_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def run() -> None:
        broker = Mosquitto(tmp_path)
        async with linked(broker.options("pi"), ready=False, spool=Spool(tmp_path / "spool")) as pi:
            with monkeypatch.context() as patch:
                patch.setattr("edge_agent.mqtt.spool.os.pwrite", full)
                for body in (b"1", b"2"):
                    assert pi.link.publish(message(body, keep="disk"))
                await until(lambda: "events are kept in memory only: No space left on device" in caplog.text)
                await asyncio.sleep(1.5)
            assert pi.link.publish(message(b"3", keep="disk"))
            await until(lambda: "events go to the disk again" in caplog.text)
        assert caplog.text.count("kept in memory") == 1

    with caplog.at_level(logging.WARNING, "edge_agent.mqtt"):
        asyncio.run(run())


def test_a_frozen_broker_is_noticed_and_left_in_time(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            pi = NotedLink(broker.options("pi", keepalive_s=1), ALL)
            await pi.start()
            await until(lambda: pi.link.connected)
            broker.freeze()
            await until(lambda: not pi.link.connected, within_s=5.0)
            broker.thaw()
            await until(lambda: pi.link.connected)
            broker.freeze()
            began = time.monotonic()
            await pi.stop([message(b"bye")])
            assert time.monotonic() - began < 4.0

    asyncio.run(run())


def test_a_wrong_password_is_said_once_and_mended_without_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        secret = tmp_path / "password"
        secret.write_text("wrong\n")
        with Mosquitto(tmp_path, users={"device": "right"}) as broker:
            options = broker.options("pi", username="device", password_file=str(secret))
            async with linked(options, ready=False) as pi:
                await asyncio.sleep(1.0)
                assert [change.kind for change in pi.changes] == ["permanent"]
                assert "check mqtt.username and the password" in pi.changes[0].text
                assert "wrong" not in caplog.text
                secret.write_text("right\n")
                await until(lambda: pi.link.connected)

    with caplog.at_level(logging.INFO, "edge_agent.mqtt"):
        asyncio.run(run())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize("version", [5, 311])
def test_a_client_with_a_wrong_password_is_told_at_once(tmp_path: Path, version: int) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path, users={"device": "right"}) as broker:
            options = broker.options("", username="device", password="wrong", protocol=version)
            began = time.monotonic()
            with pytest.raises(BrokerError, match="the password"):
                await RequestClient(options).connect()
            assert time.monotonic() - began < 5

    asyncio.run(run())


def test_a_takeover_is_not_fought() -> None:
    async def run() -> None:
        # DISCONNECT 0x8E; mosquitto sends it in later versions than some of those in use.
        async with impostor(CONNACK + b"\xe0\x02\x8e\x00") as (port, heard):
            options = MqttOptions(host="127.0.0.1", port=port, client_id="pi", reconnect_base_s=0.01)
            async with linked(options, ready=False) as pi:
                await until(lambda: pi.changes and pi.changes[-1].kind == "takeover")
                assert "give each device its own name" in pi.changes[-1].text
                await asyncio.sleep(0.3)
                assert len(heard) == 1
                assert pi.link.alive()

    asyncio.run(run())


def test_two_of_one_name_back_off_even_where_the_broker_says_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            options = broker.options("pi")
            async with linked(options, random01=lambda: 0.9) as first, linked(options, random01=lambda: 0.9) as second:
                both = (first, second)
                await until(lambda: any("another client use" in one.text for pi in both for one in pi.changes))

    asyncio.run(run())


def test_what_was_not_acknowledged_comes_again(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path, persistence=True) as broker:
            options = broker.options("pi")
            wanted = [Subscription(TOPICS.infer("+"))]
            async with linked(broker.options("app")) as app, linked(options, wanted, ack=False) as pi:
                app.link.publish(message(b"1", TOPICS.infer("m")))
                await until(lambda: pi.bodies == [b"1"])
                old = pi.seen[0]
                broker.stop()
                broker.start()
                await until(lambda: pi.bodies == [b"1", b"1"])
                # The token of the first delivery belongs to a connection that is gone: it acknowledges nothing.
                pi.link.ack(old)
                broker.stop()
                broker.start()
                await until(lambda: pi.bodies == [b"1", b"1", b"1"])
                pi.link.ack(pi.seen[-1])
                await asyncio.sleep(0.2)
                broker.stop()
                broker.start()
                await until(lambda: pi.link.connected)
                await asyncio.sleep(0.3)
                assert len(pi.seen) == 3

    asyncio.run(run())


def test_back_pressure_holds_a_flood_and_loses_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        total = 3000
        with Mosquitto(tmp_path, extra=["max_queued_messages 0"]) as broker:
            wanted = [Subscription(TOPICS.infer("+"))]
            pi = NotedLink(broker.options("pi"), wanted)
            await pi.link.start()
            await until(lambda: pi.link.connected)
            async with linked(broker.options("app")) as app:
                for n in range(total):
                    while not app.link.publish(message(str(n).encode(), TOPICS.infer("m"))):
                        await asyncio.sleep(0.01)
                    if n % 50 == 0:
                        await asyncio.sleep(0)
                await until(lambda: len(app.link._outbox) == 0 and not app.link._inflight)
                # Nobody has read yet: not more than the receive maximum has left the broker.
                assert len(pi.link._inbox) == 64
                reading = asyncio.create_task(pi._read())
                await until(lambda: len(pi.seen) == total, within_s=60)
                assert pi.bodies == [str(n).encode() for n in range(total)]
                await pi.stop()
                await reading

    asyncio.run(run())


def test_a_flood_of_qos_0_stops_at_the_socket(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path, extra=["max_queued_messages 0"]) as broker:
            pi = NotedLink(broker.options("pi"), [Subscription(TOPICS.infer("+"), qos=0)])
            await pi.link.start()
            await until(lambda: pi.link.connected)
            async with linked(broker.options("app")) as app:
                for n in range(700):
                    while not app.link.publish(message(b"x" * 8192, TOPICS.infer("m"), qos=0)):
                        await asyncio.sleep(0.01)
                    if n % 50 == 0:
                        await asyncio.sleep(0)
                await until(lambda: pi.link._inbox.full)
                await asyncio.sleep(0.3)
                assert len(pi.link._inbox) <= INBOX_BYTES // 8192
                reading = asyncio.create_task(pi._read())
                await until(lambda: len(pi.seen) == 700, within_s=60)
                await pi.stop()
                await reading

    asyncio.run(run())


def test_the_brokers_limits_are_kept(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path, extra=["max_inflight_messages 2", "max_packet_size 20000"]) as broker:
            async with linked(broker.options("pi"), ALL) as pi:
                most = pi.link.payload_limit(message(b""))
                assert 20_000 - 100 < most < 20_000
                assert not pi.link.publish(message(b"x" * (most + 1)))
                assert pi.link.publish(message(b"x" * most))
                most_inflight = 0
                for n in range(50):
                    assert pi.link.publish(message(str(n).encode()))
                    most_inflight = max(most_inflight, len(pi.link._inflight))
                await until(lambda: len(pi.seen) == 51)
                assert most_inflight == 2

    asyncio.run(run())


def test_a_refused_subscription_is_said() -> None:
    async def run() -> None:
        # SUBACK for packet 1 with reason code 0x87, not authorised.
        async with impostor(CONNACK, then=b"\x90\x04\x00\x01\x00\x87") as (port, _):
            options = MqttOptions(host="127.0.0.1", port=port, client_id="pi")
            async with linked(options, [Subscription("edge/v1/pi/infer/+")]) as pi:
                assert pi.changes[-1].kind == "subscription-refused"
                assert "check its access list: edge/v1/pi/infer/+: Not authorized" in pi.changes[-1].text

    asyncio.run(run())


def test_events_outlive_broker_and_agent(tmp_path: Path) -> None:
    async def run() -> None:
        spool_at = tmp_path / "spool"
        with Mosquitto(tmp_path, persistence=True) as broker:
            wanted = [Subscription(TOPICS.event)]
            async with linked(broker.options("watch"), wanted) as watch:
                broker.stop()
                first = NotedLink(broker.options("pi"), spool=Spool(spool_at))
                await first.start()
                for n in range(20):
                    assert first.link.publish(message(str(n).encode(), TOPICS.event, keep="disk"))
                await asyncio.sleep(0.1)
                # kill -9: nothing is stopped in order; what the next process finds is what was written.
                for task in first.link._tasks:
                    task.cancel()
                second = NotedLink(broker.options("pi"), spool=Spool(spool_at))
                await second.start()
                assert second.link.publish(message(b"20", TOPICS.event, keep="disk"))
                broker.start()
                await until(lambda: len(watch.bodies) >= 21)
                assert watch.bodies == [str(n).encode() for n in range(21)]
                await second.stop()
                await first.stop()
                left = Spool(spool_at)
                assert len(left) == 0
                left.close()

    asyncio.run(run())


WILL = """
import asyncio, sys
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.envelope import Outbound

async def run():
    status = "edge/v1/pi/status"
    will = Outbound(status, b"offline", retain=True, keep="latest")
    link = MqttTransport(MqttOptions(host="127.0.0.1", port=int(sys.argv[1]), client_id="pi"), [], will)
    await link.start()
    link.publish(Outbound(status, b"online", retain=True, keep="latest"))
    await asyncio.sleep(60)

asyncio.run(run())
"""


def test_the_will_speaks_after_kill_9_and_not_after_a_goodbye(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            wanted = [Subscription(TOPICS.status, replay=True)]
            async with linked(broker.options("watch"), wanted) as watch:
                process = subprocess.Popen([sys.executable, "-c", WILL, str(broker.port)])
                try:
                    await until(lambda: watch.bodies == [b"online"])
                finally:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                await until(lambda: watch.bodies == [b"online", b"offline"])
                will = message(b"offline", TOPICS.status, retain=True, keep="latest")
                polite = NotedLink(broker.options("pi"), will=will)
                await polite.start()
                await until(lambda: polite.link.connected)
                await polite.stop([message(b"stopped", TOPICS.status, retain=True, keep="latest")])
                await until(lambda: watch.bodies[2:] == [b"stopped"])
                await asyncio.sleep(0.2)
                assert len(watch.bodies) == 3

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\xff" * 50,
        b"\x20\x02\x00",
        CONNACK + b"\x30\x03\x00\x05x",
        CONNACK + b"\x30\x06\x00\x01x\x7f\x00\x00",
        CONNACK + b"\x32\x04\x00\x01x\x00",
        CONNACK + b"\x40\x01\x00",
        CONNACK + b"\x90\x01\x00",
        b"",
        None,
    ],
)
def test_what_is_no_broker_is_survived(answer: bytes | None) -> None:
    async def run() -> None:
        async with impostor(answer) as (port, heard):
            options = MqttOptions(
                host="127.0.0.1", port=port, client_id="pi", reconnect_base_s=0.01, reconnect_cap_s=0.01,
                connect_timeout_s=0.1,
            )  # fmt: skip
            async with linked(options, ALL, ready=False) as pi:
                await until(lambda: len(heard) >= 3)
                assert pi.link.alive()
                if answer is None:
                    # Two that hung up on MQTT 5 (protocol level 5); the third attempt is made with 3.1.1 (level 4).
                    assert [packet[packet.index(b"MQTT") + 4] for packet in heard[:3]] == [5, 5, 4]

    asyncio.run(run())


def test_a_broker_of_3_1_1_alone_is_spoken_to_in_its_way() -> None:
    async def run() -> None:
        # Return code 1 in a CONNACK of 3.1.1: unacceptable protocol version.
        async with impostor(b"\x20\x02\x00\x01") as (port, heard):
            options = MqttOptions(host="127.0.0.1", port=port, client_id="pi", reconnect_base_s=0.01)
            async with linked(options, ready=False):
                await until(lambda: len(heard) >= 2)
                assert [packet[packet.index(b"MQTT") + 4] for packet in heard[:2]] == [5, 4]

    asyncio.run(run())


def test_no_thread_and_no_task_stays_behind(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            for _ in range(5):
                async with linked(broker.options("pi"), ALL):
                    pass
            async with linked(replace(broker.options("pi"), port=free_port()), ready=False):
                await asyncio.sleep(0.1)
            await until(lambda: not [one for one in threading.enumerate() if one.name == "mqtt-dial"])
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
