"""What arrived and waits: bounded, in order, shared, and it says when there is room again."""

from __future__ import annotations

import asyncio
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.limits import INBOX_MESSAGE_BYTES
from edge_agent.mqtt.inbox import IN_HAND, TAKEN_AT_ONCE, Inbox
from edge_agent.protocol.envelope import Inbound


def test_order_bounds_and_room() -> None:
    async def run() -> None:
        room: list[int] = []
        inbox = Inbox(lambda: room.append(len(inbox)), max_messages=5)
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


def test_bytes_fill_it_too_and_a_message_costs_more_than_its_body() -> None:
    async def run() -> None:
        inbox = Inbox(lambda: None, max_messages=1000, max_bytes=10 * INBOX_MESSAGE_BYTES)
        taken = [inbox.put(Inbound("a", b"", response_topic="a")) for _ in range(9)]
        assert taken == [True] * 8 + [False], "four fifths of the bytes"
        assert inbox.full
        assert inbox.put(Inbound("b", b"", response_topic="b"))
        stream = inbox.stream()
        assert [(await anext(stream)).topic for _ in range(3)] == ["a", "b", "a"]
        assert not inbox.full
        assert inbox.dropped == 1

    asyncio.run(run())


def test_five_thousand_small_requests_at_once_are_held_and_the_next_client_is_reached() -> None:
    async def run() -> None:
        inbox = Inbox(lambda: None)
        for _ in range(5000):
            assert not inbox.full
            assert inbox.put(Inbound("burst", b'{"text":"turn on the light"}', response_topic="burst"))
        assert inbox.put(Inbound("good", b"", response_topic="good"))
        stream = inbox.stream()
        assert [(await anext(stream)).topic for _ in range(2)] == ["burst", "good"]
        assert inbox.dropped == 0

    asyncio.run(run())


@given(st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("abc"), st.integers(0, 3000))), max_size=60))
def test_it_is_full_exactly_while_there_is_no_room_or_someone_has_a_share(steps: list[tuple[str, int] | None]) -> None:
    async def run() -> None:
        inbox = Inbox(lambda: None, max_messages=12, max_bytes=16 * 1024)
        stream = inbox.stream()
        waiting: list[tuple[str, int]] = []
        for step in steps:
            if step is None and waiting:
                taken = await anext(stream)
                waiting.remove((str(taken.response_topic), len(taken.payload)))
            elif step is not None:
                was_full = inbox.full
                added = inbox.put(Inbound("t", b"x" * step[1], response_topic=step[0]))
                assert added or was_full, "what is read while there is room is kept"
                if added:
                    waiting.append(step)
            assert len(inbox) == len(waiting) <= 12
            held_bytes = sum(size + INBOX_MESSAGE_BYTES for _, size in waiting)
            assert held_bytes < 16 * 1024 + 3000 + INBOX_MESSAGE_BYTES
            largest = max(Counter(client for client, _ in waiting).values(), default=0)
            if inbox.full:
                own = Counter[str]()
                for client, size in waiting:
                    own[client] += size + INBOX_MESSAGE_BYTES
                free, free_bytes = 12 - len(waiting), 16 * 1024 - held_bytes
                assert largest >= 4 * free or max(own.values()) >= 4 * free_bytes

    asyncio.run(run())


def test_what_waits_does_not_keep_the_event_loop_from_reading_on() -> None:
    async def run() -> None:
        inbox = Inbox(lambda: None)
        for _ in range(4 * TAKEN_AT_ONCE):
            inbox.put(Inbound("a", b""))
        between: list[int] = []
        asyncio.get_running_loop().call_soon(lambda: between.append(len(inbox)))
        stream = inbox.stream()
        for _ in range(2 * TAKEN_AT_ONCE):
            await anext(stream)
        assert between == [3 * TAKEN_AT_ONCE]

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
