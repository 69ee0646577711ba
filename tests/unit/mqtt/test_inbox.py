"""What arrived and waits: bounded, in order, and it says when there is room again."""

from __future__ import annotations

import asyncio

from edge_agent.mqtt.transport import Inbox
from edge_agent.protocol.envelope import Inbound


def test_order_bounds_and_room() -> None:
    async def run() -> None:
        room: list[int] = []
        inbox = Inbox(lambda: room.append(len(inbox)), max_messages=2, max_bytes=100)
        stream = inbox.stream()
        assert inbox.put(Inbound("a", b""))
        assert not inbox.full
        assert inbox.put(Inbound("b", b""))
        assert inbox.full
        # One more may already be in paho's hands when reading stops; after that nothing is taken.
        assert inbox.put(Inbound("c", b""))
        assert not inbox.put(Inbound("d", b""))
        assert [(await anext(stream)).topic for _ in range(3)] == ["a", "b", "c"]
        assert room == [1]

    asyncio.run(run())


def test_bytes_fill_it_too() -> None:
    async def run() -> None:
        inbox = Inbox(lambda: None, max_messages=10, max_bytes=100)
        inbox.put(Inbound("a", b"x" * 100))
        assert inbox.full
        await anext(inbox.stream())
        assert not inbox.full

    asyncio.run(run())


def test_closing_ends_the_stream_after_what_waits() -> None:
    async def run() -> None:
        inbox = Inbox(lambda: None)
        inbox.put(Inbound("a", b""))

        async def read() -> list[str]:
            return [message.topic async for message in inbox.stream()]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        inbox.close()
        assert await reading == ["a"]

    asyncio.run(run())
