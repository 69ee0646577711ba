"""Hostile messages, as files beside this test: `<status>-<what>.json`. Each is refused with that status and no more.

A message comes in three ways: with a response topic (MQTT 5), with its own `reply_to` (3.1.1), and retained.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest

from edge_agent.base.causes import Cause
from edge_agent.client.request_client import RequestClient
from edge_agent.protocol.decode import Refusal, Request, decode
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.topics import Topics
from tests.integration.test_mqtt_roundtrip import device
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import linked, until

TOPICS = Topics("edge/v1", "pi")
REPLY = TOPICS.client_reply("attacker")
CAUSES = {400: Cause.MALFORMED, 404: Cause.IMPOSSIBLE_NAME, 413: Cause.TOO_LARGE, 422: Cause.INVALID}
FILES = sorted((Path(__file__).parent / "messages").glob("*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_refused_quickly_and_in_few_words(path: Path) -> None:
    status = int(path.stem.split("-")[0])
    inbound = Inbound(TOPICS.infer("m"), path.read_bytes(), response_topic=REPLY, correlation=b"c")
    began = time.perf_counter()
    refusal = decode(inbound, topics=TOPICS, now_s=0.0)
    assert time.perf_counter() - began < 1.0
    assert isinstance(refusal, Refusal)
    assert refusal.status == status, refusal.reason
    assert refusal.cause is CAUSES[status]
    assert len(refusal.reason) <= 200
    assert refusal.reason.isprintable()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_old_client_gets_the_answer_only_where_it_may_listen(path: Path) -> None:
    refusal = decode(Inbound(TOPICS.infer("m"), path.read_bytes()), topics=TOPICS, now_s=0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.reply is None or refusal.reply.topic == REPLY
    assert (refusal.reply is None) == (refusal.event is not None)


def test_the_same_request_twice_has_one_key() -> None:
    body = Inbound(TOPICS.infer("m"), b'{"text":"x"}', response_topic=REPLY, correlation=b"c", received_s=1.0)
    first, second = (decode(body, topics=TOPICS, now_s=1.0) for _ in range(2))
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    assert (first.client, first.id) == (second.client, second.id)


def test_every_flipped_bit_of_a_good_request_is_a_request_or_a_refusal() -> None:
    body = b'{"text":"turn on the light","adapter":"home","priority":3,"params":{"top_k":3},"id":"1"}'
    for at in range(len(body) * 8):
        flipped = bytearray(body)
        flipped[at // 8] ^= 1 << at % 8
        inbound = Inbound(TOPICS.infer("m"), bytes(flipped), response_topic=REPLY, correlation=b"c")
        assert isinstance(decode(inbound, topics=TOPICS, now_s=0.0), Request | Refusal)


def test_a_device_under_fire_goes_on_answering(tmp_path: Path) -> None:
    async def run() -> None:
        dice = random.Random(7)
        with Mosquitto(tmp_path) as broker:
            async with device(broker) as pi, linked(broker.options("attacker")) as attacker:
                topics = [TOPICS.infer("m"), TOPICS.infer("ü$ "), TOPICS.cancel, TOPICS.command("install")]
                for path in FILES:
                    for topic in topics:
                        reply = dice.choice([None, REPLY, "edge/v1/pi/cmd/remove", "edge/v1/client/a/reply/x"])
                        shot = Outbound(
                            topic,
                            path.read_bytes(),
                            content_type=dice.choice([None, "text/html", "application/json"]),
                            correlation=dice.randbytes(200) if dice.random() < 0.3 else b"c",
                            response_topic=reply,
                            user={"k" * 50: "v" * 500},
                        )
                        assert attacker.link.publish(shot)
                await until(lambda: len(attacker.link._outbox) == 0)
                async with RequestClient(broker.options("")) as client:
                    assert (await client.infer("pi", "m", {"text": "still there?"})).result == ["still there?"]
                assert pi.connected

    asyncio.run(run())
