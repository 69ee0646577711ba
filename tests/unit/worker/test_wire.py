"""Frames: whole, bounded in both directions, and nothing but a WorkerError or an end for whatever else arrives."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.base.errors import WorkerError
from edge_agent.base.limits import FRAME_BYTES
from edge_agent.worker.wire import HEADER, Channel, check_length, pack, unpack

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=8),
)
LISTS = SCALARS | st.lists(SCALARS, max_size=3)
VALUES = LISTS | st.dictionaries(st.sampled_from(["", "a", "é", "labels"]), LISTS, max_size=2)
MESSAGES = st.dictionaries(st.sampled_from(["op", "n", "id", "texts", "params"]), VALUES, max_size=3)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@settings(max_examples=50)
@given(MESSAGES)
def test_what_is_packed_comes_out_again(message: dict[str, Any]) -> None:
    frame = pack(message)
    (length,) = HEADER.unpack(frame[: HEADER.size])
    assert length == len(frame) - HEADER.size
    assert unpack(frame[HEADER.size :]) == message


@given(body=st.binary(max_size=200))
def test_garbage_is_a_map_or_a_worker_error(body: bytes) -> None:
    try:
        message = unpack(body)
    except WorkerError as error:
        assert str(error).startswith("worker channel: a frame ")
    else:
        assert isinstance(message, dict)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x81",
        b"\xa2\xff\xfe",
        b"\x80\x80",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 50_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ],
    ids=["empty", "reserved", "cut", "no utf-8", "trailing", "deep lists", "deep maps", "huge list", "huge bytes"],
)
def test_hostile_bodies_are_worker_errors(body: bytes) -> None:
    with pytest.raises(WorkerError, match="is not msgpack"):
        unpack(body)


@pytest.mark.parametrize(("body", "kind"), [(b"\xc0", "NoneType"), (b"\x90", "list"), (b"\x01", "int")])
def test_only_a_map_is_a_message(body: bytes, kind: str) -> None:
    with pytest.raises(WorkerError, match=f"a frame holds a {kind}, a map is needed"):
        unpack(body)


def test_the_bound_holds_on_the_way_out() -> None:
    overhead = len(pack({"x": bytes(2**16)})) - HEADER.size - 2**16
    largest = FRAME_BYTES - overhead
    assert len(pack({"x": bytes(largest)})) == FRAME_BYTES + HEADER.size
    with pytest.raises(WorkerError, match=f"a frame of {FRAME_BYTES + 1} bytes is over the limit of {FRAME_BYTES}"):
        pack({"x": bytes(largest + 1)})


def test_the_bound_holds_on_the_way_in_before_anything_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(HEADER.pack(FRAME_BYTES + 1))
    with pytest.raises(WorkerError, match="over the limit"):
        Channel(theirs).receive(None)
    assert check_length(FRAME_BYTES) == FRAME_BYTES


def test_a_frame_crosses_a_channel(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    Channel(ours).send({"op": "footprint", "n": 1})
    assert Channel(theirs).receive(None) == {"op": "footprint", "n": 1}


def test_nothing_there_is_none_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    assert Channel(pair[1]).receive(0.0) is None


def test_frames_sent_in_pieces_arrive_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    """The poll between two steps may find one byte of a frame; it then waits for the rest."""
    ours, theirs = pair
    frame = pack({"text": "x" * 300}) + pack({"n": 2})
    ours.sendall(frame[:1])

    def rest() -> None:
        for position in range(1, len(frame)):
            ours.sendall(frame[position : position + 1])

    sender = threading.Thread(target=rest)
    sender.start()
    channel = Channel(theirs)
    assert channel.receive(0.0) == {"text": "x" * 300}
    assert channel.receive(None) == {"n": 2}
    sender.join()


def test_a_large_answer_after_an_empty_poll_waits_for_a_slow_reader(pair: tuple[socket.socket, socket.socket]) -> None:
    """Between steps the child polls without waiting; its next answer may still be larger than the socket's buffer."""
    ours, theirs = pair
    child = Channel(theirs)
    assert child.receive(0.0) is None
    message = {"results": "x" * 2_000_000}
    received: list[Any] = []
    reader = threading.Thread(target=lambda: received.append(Channel(ours).receive(None)))
    reader.start()
    try:
        child.send(message)
    finally:
        theirs.close()
        reader.join()
    assert received == [message]


@settings(max_examples=50)
@given(MESSAGES, st.data())
def test_a_cut_frame_is_an_end_not_a_message(message: dict[str, Any], data: st.DataObject) -> None:
    frame = pack(message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frame[:cut])
        ours.close()
        with pytest.raises(EOFError, match="closed the channel"):
            Channel(theirs).receive(None)


@given(st.binary(max_size=64))
def test_any_bytes_on_the_channel_end_in_a_message_a_refusal_or_an_end(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(data)
        ours.close()
        channel = Channel(theirs)
        while True:
            try:
                assert isinstance(channel.receive(None), dict)
            except (EOFError, WorkerError):
                return


def test_tuples_cross_as_lists() -> None:
    assert unpack(pack({"texts": ("a", "b")})[HEADER.size :]) == {"texts": ["a", "b"]}
