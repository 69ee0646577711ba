"""Requests and answers over a real mosquitto: both protocol versions, large messages, order, time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from edge_agent.base.errors import RequestError
from edge_agent.base.limits import MESSAGE_BYTES
from edge_agent.client.request_client import RequestClient
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol import decode, encode
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.messages import Reply, Status, StreamChunk, Timing
from edge_agent.protocol.topics import Subscription, Topics
from tests.support.mosquitto import Mosquitto, find

TOPICS = Topics("edge/v1", "pi")
Answer = Callable[[decode.Request], list[Outbound]]


def echo(request: decode.Request) -> list[Outbound]:
    body = Reply(id=request.id, status=200, model=request.model, result=list(request.texts))
    return [encode.reply(body, request.reply, 10.0)]


@contextlib.asynccontextmanager
async def device(broker: Mosquitto, answer: Answer = echo, **options: object) -> AsyncIterator[MqttTransport]:
    """A device that answers whatever it can decode, refuses the rest, and says it is online."""
    online = Status(state="online", boot_id="b", seq=1, ts=0.0, heartbeat_s=10.0, reason="ready")
    link = MqttTransport(broker.options("pi", **options), TOPICS.subscriptions())
    await link.start()

    async def serve() -> None:
        async for message in link.messages():
            taken = decode.decode(message, topics=TOPICS, now_s=asyncio.get_running_loop().time())
            link.ack(message)
            if isinstance(taken, decode.Request):
                for outbound in answer(taken):
                    assert link.publish(outbound)
            elif isinstance(taken, decode.Refusal) and taken.reply:
                error = RequestError(taken.status, taken.cause, taken.reason)
                link.publish(encode.refusal(error, taken.reply, taken.remaining_s))

    task = asyncio.create_task(serve())
    await until(lambda: link.connected)
    link.publish(encode.status(online, TOPICS))
    try:
        yield link
    finally:
        await link.stop([])
        await task


async def until(condition: Callable[[], bool], within_s: float = 15.0) -> None:
    for _ in range(round(within_s / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


@pytest.mark.parametrize("version", [5, 311])
def test_a_request_is_answered(tmp_path: Path, version: int) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            async with device(broker, protocol=version), RequestClient(broker.options("", protocol=version)) as client:
                reply = await client.infer("pi", "minilm", {"text": "hello"}, deadline_s=2.5)
                assert (reply.status, reply.model, reply.result) == (200, "minilm", ["hello"])
                refused = await client.infer("pi", "minilm", {"text": "hello", "colour": 1})
                assert refused.status == 422
                assert "colour" in str(refused.reason)

    asyncio.run(run())


def test_old_and_new_clients_share_a_device(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            async with (
                device(broker),
                RequestClient(broker.options("new")) as new,
                RequestClient(broker.options("old", protocol=311)) as old,
            ):
                both = await asyncio.gather(*(client.infer("pi", "m", {"text": "x"}) for client in (new, old)))
                assert [reply.status for reply in both] == [200, 200]

    asyncio.run(run())


def test_the_round_trip_is_quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def run(broker: Mosquitto) -> list[float]:
        async with device(broker), RequestClient(broker.options("")) as client:
            spans = []
            for _ in range(300):
                began = time.perf_counter()
                await client.infer("pi", "m", {"text": "x"})
                spans.append((time.perf_counter() - began) * 1000)
            return sorted(spans)

    with Mosquitto(tmp_path) as broker:
        spans = asyncio.run(run(broker))
    with capsys.disabled():
        print(f"\n  MQTT round trip, QoS 1, both ends in one loop: p50 {spans[150]:.2f} ms p99 {spans[297]:.2f} ms")
    # Without TCP_NODELAY on both ends it is 44 to 88 ms, whatever the machine.
    assert spans[150] < 40


@pytest.mark.parametrize("version", [5, 311])
def test_large_messages_pass(tmp_path: Path, version: int) -> None:
    async def run() -> None:
        texts = ["x" * 32_000] * 4
        with Mosquitto(tmp_path) as broker:
            options = broker.options("c", protocol=version)
            async with device(broker, protocol=version), RequestClient(options) as client:
                assert (await client.infer("pi", "m", {"texts": texts})).result == texts

    asyncio.run(run())


def test_a_message_over_the_limit_is_refused_in_words(tmp_path: Path) -> None:
    async def run() -> None:
        too_large = json.dumps({"texts": ["x" * 32_000] * 6}).encode()
        assert len(too_large) > MESSAGE_BYTES
        (tmp_path / "body").write_bytes(too_large)
        with Mosquitto(tmp_path) as broker:
            async with device(broker):
                listener = MqttTransport(broker.options("c"), [Subscription(TOPICS.client_reply("c", "#"))])
                await listener.start()
                await until(lambda: listener.connected)
                # Our own client would not send it, so it goes by the standard tool.
                command = [find("mosquitto_pub"), "-V", "5", "-p", str(broker.port), "-q", "1", "-t", TOPICS.infer("m")]
                command += ["-D", "publish", "response-topic", TOPICS.client_reply("c"), "-f", str(tmp_path / "body")]
                await asyncio.to_thread(subprocess.run, command, check=True)
                answer = await asyncio.wait_for(anext(listener.messages()), 10)
                assert json.loads(answer.payload)["status"] == 413
                assert answer.user["status"] == "413"
                await listener.stop([])

    asyncio.run(run())


def test_a_wrong_device_name_is_noticed_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            async with device(broker), RequestClient(broker.options("")) as client:
                with pytest.raises(RequestError, match="nobody listens") as caught:
                    await client.infer("typo", "m", {"text": "x"}, deadline_s=20.0)
                assert caught.value.status == 503

    asyncio.run(run())


def test_silence_ends_with_what_the_device_last_said(tmp_path: Path) -> None:
    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            async with (
                device(broker, lambda _: []),
                RequestClient(broker.options(""), devices=["pi"]) as client,
            ):
                with pytest.raises(RequestError, match="pi says it is online: ready") as caught:
                    await client.infer("pi", "m", {"text": "x"}, deadline_s=0.2)
                assert caught.value.status == 408

    asyncio.run(run())


@pytest.mark.parametrize("version", [5, 311])
def test_streams_arrive_in_order(tmp_path: Path, version: int) -> None:
    def stream(request: decode.Request) -> list[Outbound]:
        timing = Timing(0.0, 0.0, 1.0, 1.0)
        parts = [StreamChunk(id=request.id, seq=n, text=f"{n} ", done=False) for n in range(40)]
        parts.append(StreamChunk(id=request.id, seq=40, text="", done=True, timing=timing))
        return [encode.chunk(part, request.reply, 10.0) for part in parts]

    async def run() -> None:
        with Mosquitto(tmp_path) as broker:
            options = broker.options("", protocol=version)
            async with device(broker, stream, protocol=version), RequestClient(options) as client:
                parts = [part async for part in client.stream("pi", "m", {"text": "x"})]
                assert [part.seq for part in parts if isinstance(part, StreamChunk)] == list(range(41))

    asyncio.run(run())


def test_a_retained_request_is_not_served_and_not_replayed(tmp_path: Path) -> None:
    async def run() -> None:
        seen: list[Inbound] = []
        with Mosquitto(tmp_path) as broker:
            link = MqttTransport(broker.options("pi"), TOPICS.subscriptions())
            await link.start()
            await until(lambda: link.connected)

            async def read() -> None:
                async for message in link.messages():
                    link.ack(message)
                    seen.append(message)

            task = asyncio.create_task(read())
            command = [find("mosquitto_pub"), "-p", str(broker.port), "-t", TOPICS.infer("m"), "-q", "1", "-r"]
            await asyncio.to_thread(subprocess.run, [*command, "-m", '{"text":"x"}'], check=True)
            await until(lambda: len(seen) == 1)
            refusal = decode.decode(seen[0], topics=TOPICS, now_s=0.0)
            assert isinstance(refusal, decode.Refusal)
            assert refusal.event == "retained-dropped"
            await link.stop([])
            await task

            again = MqttTransport(broker.options("pi", session_expiry_s=0), TOPICS.subscriptions())
            await again.start()
            await until(lambda: again.connected)
            await asyncio.sleep(0.2)
            assert len(again._inbox) == 0
            await again.stop([])

    asyncio.run(run())
