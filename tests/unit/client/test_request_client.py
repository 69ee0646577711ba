"""What a client does with parts that come faster than they are read, on a link that brings what the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from edge_agent.base.errors import RequestError
from edge_agent.client import request_client as module
from edge_agent.client.request_client import RequestClient
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.envelope import Inbound, Outbound
from edge_agent.protocol.messages import StreamChunk


class Link:
    """A connected transport: each request is answered with `parts` chunks, the last one done."""

    parts = 0
    connected = True

    def __init__(self, *_: Any, **__: Any) -> None:
        self._arrived: asyncio.Queue[Inbound | None] = asyncio.Queue(maxsize=4096)

    async def start(self, _listener: Any) -> None:
        pass

    async def stop(self, _last_words: Any) -> None:
        self._arrived.put_nowait(None)

    async def messages(self) -> AsyncIterator[Inbound]:
        while (message := await self._arrived.get()) is not None:
            yield message

    def ack(self, _message: Inbound) -> None:
        pass

    def publish(self, message: Outbound) -> bool:
        for seq in range(self.parts):
            body = StreamChunk(id="s", seq=seq, text="x", done=seq == self.parts - 1)
            topic = message.response_topic or ""
            self._arrived.put_nowait(Inbound(topic, msgspec.json.encode(body), correlation=message.correlation))
        return True


async def read_slowly(seqs: list[int]) -> None:
    """Read a stream of which everything has come before its second part is asked for."""
    async with RequestClient(MqttOptions(host="nowhere", client_id="me")) as asker:
        async for part in asker.stream("dev", "m", {"prompt": "p"}):
            assert isinstance(part, StreamChunk)
            seqs.append(part.seq)
            for _ in range(2 * Link.parts if len(seqs) == 1 else 0):
                await asyncio.sleep(0)


def test_parts_that_were_not_read_in_time_are_missed_aloud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MqttTransport", Link)
    monkeypatch.setattr(Link, "parts", 400)
    seqs: list[int] = []
    with pytest.raises(RequestError, match="faster than it was read") as caught:
        asyncio.run(read_slowly(seqs))
    assert caught.value.status == 503
    assert seqs == list(range(len(seqs)))
    assert len(seqs) >= 256


def test_a_stream_that_fits_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MqttTransport", Link)
    monkeypatch.setattr(Link, "parts", 200)
    seqs: list[int] = []
    asyncio.run(read_slowly(seqs))
    assert seqs == list(range(200))


async def _read_one() -> None:
    async with RequestClient(MqttOptions(host="nowhere", client_id="me")) as asker:
        stream = asker.stream("dev", "m", {"prompt": "p"})
        async for _ in stream:
            break
        await stream.aclose()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("parts", "cancels"), [(3, 1), (1, 0)])
def test_whoever_reads_no_further_withdraws_the_rest(monkeypatch: pytest.MonkeyPatch, parts: int, cancels: int) -> None:
    published: list[Outbound] = []
    publish = Link.publish

    def heard(self: Link, message: Outbound) -> bool:
        published.append(message)
        return publish(self, message)

    monkeypatch.setattr(module, "MqttTransport", Link)
    monkeypatch.setattr(Link, "publish", heard)
    monkeypatch.setattr(Link, "parts", parts)
    asyncio.run(_read_one())
    withdrawn = [msgspec.json.decode(one.payload) for one in published if one.topic == "edge/v1/dev/cancel"]
    assert len(withdrawn) == cancels
    assert all(one["id"] == (published[0].correlation or b"").decode() for one in withdrawn)


class Liar(Link):
    """A link on which somebody else answers: each request with these bytes, and the device's status before that."""

    said = b""

    def publish(self, message: Outbound) -> bool:
        self._arrived.put_nowait(Inbound("edge/v1/dev/status", self.said))
        self._arrived.put_nowait(Inbound(message.response_topic or "", self.said, correlation=message.correlation))
        return True


@pytest.mark.parametrize("said", [b'{"id":"\xff"}', b"[" * 100_000, b"{", b"{}", b"", b'{"id":1,"status":"x"}'])
def test_an_answer_that_is_none_is_a_sentence_and_the_reading_goes_on(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an access list any client may publish to a reply topic."""
    monkeypatch.setattr(module, "MqttTransport", Liar)
    monkeypatch.setattr(Liar, "said", said)

    async def body() -> None:
        async with RequestClient(MqttOptions(host="nowhere", client_id="me")) as asker:
            for _ in range(2):
                with pytest.raises(RequestError, match="an answer came that this version of edge-agent cannot read"):
                    await asker.infer("dev", "m", {"text": "x"}, 0.5)
                with pytest.raises(RequestError, match="an answer came that this version of edge-agent cannot read"):
                    async for _part in asker.stream("dev", "m", {"prompt": "x"}, 0.5):
                        pass

    asyncio.run(body())
