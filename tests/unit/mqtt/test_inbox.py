"""What arrived and waits: bounded, in order, shared, and it says when there is room again."""

from __future__ import annotations

import asyncio

from edge_agent.mqtt.inbox import IN_HAND, Inbox
from edge_agent.protocol.envelope import Inbound


def test_order_bounds_and_room() -> None:
    async def run() -> None:
        room: list[int] = []
        inbox = Inbox(lambda: room.append(len(inbox)), max_messages=5, max_bytes=100)
        stream = inbox.stream()
        for topic in "abc":
            assert inbox.put(Inbound(topic, b"", qos=1))
            assert not inbox.full
        assert inbox.put(Inbound("d", b"", qos=1))
        assert inbox.full, "the last place is for another client"
        # More may already be in paho's hands when reading stops: what has to be acknowledged is never dropped.
        assert all(inbox.put(Inbound(topic, b"", qos=1)) for topic in "efgh")
        assert "".join([(await anext(stream)).topic for _ in range(8)]) == "abcdefgh"
        assert room == [3]
        assert inbox.dropped == 0

    asyncio.run(run())


def test_a_broker_that_ignores_our_receive_maximum_loses_nothing_before_the_socket_is_left_unread() -> None:
    async def run() -> None:
        inbox = Inbox(lambda: None, max_messages=10)
        taken = [inbox.put(Inbound("a", b"", qos=1)) for _ in range(10 + IN_HAND + 5)]
        assert taken == [True] * (10 + IN_HAND) + [False] * 5
        assert inbox.dropped == 5

    asyncio.run(run())


def test_bytes_fill_it_too() -> None:
    async def run() -> None:
        inbox = Inbox(lambda: None, max_messages=10, max_bytes=100)
        inbox.put(Inbound("a", b"x" * 100))
        assert inbox.full
        assert not inbox.put(Inbound("b", b"x"))
        await anext(inbox.stream())
        assert not inbox.full
        assert inbox.dropped == 1

    asyncio.run(run())


def test_clients_take_turns_and_a_flood_at_qos_0_is_cut_off_and_counted() -> None:
    async def run() -> None:
        inbox = Inbox(lambda: None, max_messages=10)
        flood = [inbox.put(Inbound("flood", b"", response_topic="f")) for _ in range(20)]
        assert flood == [True] * 8 + [False] * 12
        assert inbox.put(Inbound("good", b"", response_topic="g"))
        assert inbox.put(Inbound("surely", b"", qos=1, response_topic="f"))
        stream = inbox.stream()
        assert [(await anext(stream)).topic for _ in range(3)] == ["flood", "good", "surely"]
        assert inbox.dropped == 12

    asyncio.run(run())


def test_nothing_is_handed_out_while_its_answer_would_find_no_room() -> None:
    async def run() -> None:
        free = False
        inbox = Inbox(lambda: None, lambda: free)
        inbox.put(Inbound("a", b""))
        taking = asyncio.create_task(anext(inbox.stream()))
        inbox.look_again()
        await asyncio.sleep(0)
        assert not taking.done()
        free = True
        inbox.look_again()
        assert (await taking).topic == "a"

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
