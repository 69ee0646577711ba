"""Frames: whole, bounded in both directions, and nothing but a WorkerError or an end for whatever else arrives."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.base.causes import Cause
from edge_agent.base.errors import WorkerError
from edge_agent.base.limits import FRAME_BYTES
from edge_agent.protocol.worker_messages import (
    Accepted,
    AnyAnswer,
    AnyEvent,
    AnyRequest,
    CallRefused,
    CancelJob,
    CloseWorker,
    DetachAdapter,
    GrammarCompiled,
    Heartbeat,
    JobCancelled,
    JobFailed,
    JobWork,
    MeasureTexts,
    ReadFootprint,
    SetStepLimits,
    StepLimits,
    SubmitJobs,
    TextChunk,
    WorkerAnswer,
    WorkerEvent,
    WorkerRequest,
)
from edge_agent.worker.wire import HEADER, Channel, UnknownRequest, check_length, pack, unpack_answer, unpack_request

NAMES = st.text(max_size=8)
CALLS = st.none() | st.integers(0, 2**63 - 1)
PARAMS = st.dictionaries(NAMES, st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | NAMES)
WORK = st.builds(
    JobWork, NAMES, st.none() | NAMES, PARAMS, texts=st.lists(NAMES, max_size=3), client=NAMES, stream=st.booleans(),
    left_s=st.none() | st.floats(0, 99),
)  # fmt: skip
REQUESTS = st.one_of(
    st.builds(SubmitJobs, call=CALLS, jobs=st.lists(WORK, max_size=3)),
    st.builds(CancelJob, call=CALLS, id=NAMES),
    st.builds(SetStepLimits, call=CALLS, limits=st.builds(StepLimits, st.integers(1, 9), st.integers(1, 9))),
    st.builds(MeasureTexts, call=CALLS, adapter=st.none() | NAMES, texts=st.lists(NAMES, max_size=3)),
    st.builds(DetachAdapter, call=CALLS, name=NAMES),
    st.builds(ReadFootprint, call=CALLS),
    st.just(CloseWorker()),
)
ANSWERS = st.one_of(
    st.builds(Accepted, call=CALLS),
    st.builds(CallRefused, call=CALLS, error=NAMES, reason=NAMES),
    st.builds(JobCancelled, call=CALLS, cancelled=st.booleans()),
    st.builds(TextChunk, NAMES, NAMES),
    st.builds(GrammarCompiled, NAMES),
    st.builds(JobFailed, NAMES, st.integers(400, 503), st.sampled_from(Cause), NAMES, st.booleans()),
    st.just(Heartbeat()),
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


@settings(max_examples=50)
@given(REQUESTS)
def test_a_request_that_is_packed_comes_out_again(request: AnyRequest) -> None:
    frame = pack(request)
    (length,) = HEADER.unpack(frame[: HEADER.size])
    assert length == len(frame) - HEADER.size
    assert unpack_request(frame[HEADER.size :]) == request


@settings(max_examples=50)
@given(ANSWERS)
def test_what_a_worker_says_comes_out_again(message: AnyAnswer | AnyEvent) -> None:
    assert unpack_answer(pack(message)[HEADER.size :]) == message


def test_every_message_has_a_tag_of_its_own_and_crosses_as_a_map() -> None:
    for union in (AnyRequest, AnyAnswer | AnyEvent):
        tags = [one.__struct_config__.tag for one in get_args(union)]
        assert len(set(tags)) == len(tags)
        assert not any(one.__struct_config__.array_like for one in get_args(union))


@given(body=st.binary(max_size=200))
def test_garbage_is_a_message_or_a_worker_error(body: bytes) -> None:
    try:
        assert isinstance(unpack_request(body), (WorkerRequest, UnknownRequest))
    except WorkerError as error:
        assert str(error).startswith("worker channel: a frame ")
    try:
        assert isinstance(unpack_answer(body), (WorkerAnswer, WorkerEvent))
    except WorkerError as error:
        assert str(error).startswith("worker channel: a frame ")


@pytest.mark.parametrize(
    ("fields", "unknown"),
    [
        ({"op": "dance", "n": 7}, UnknownRequest(7, "unknown operation 'dance'")),
        ({"n": 7}, UnknownRequest(7, "unknown operation None")),
        ({"op": ["x"], "n": "7"}, UnknownRequest(None, "unknown operation ['x']")),
        (
            {"op": "cancel", "n": 7},
            UnknownRequest(7, "operation 'cancel' is malformed: Object missing required field `id`"),
        ),
    ],
)
def test_an_unknown_request_keeps_its_number_so_that_it_can_be_refused(
    fields: dict[str, Any], unknown: UnknownRequest
) -> None:
    assert unpack_request(msgspec.msgpack.encode(fields)) == unknown


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "a frame with ev None and n None is no event"),
        ({"ev": "dance"}, "a frame with ev 'dance' and n None is no event"),
        ({"ev": "ok", "n": []}, "a frame with ev 'ok' and n [] is no event"),
        ({"ev": "x" * 99}, f"a frame with ev '{'x' * 39} and n None is no event"),
    ],
)
def test_a_map_that_is_no_event_is_named_in_part(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(WorkerError, match=re.escape(says)):
        unpack_answer(msgspec.msgpack.encode(fields))


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
    for unpack in (unpack_request, unpack_answer):
        with pytest.raises(WorkerError, match="is not msgpack"):
            unpack(body)


@pytest.mark.parametrize(("body", "kind"), [(b"\xc0", "NoneType"), (b"\x90", "list"), (b"\x01", "int")])
def test_only_a_map_is_a_message(body: bytes, kind: str) -> None:
    for unpack in (unpack_request, unpack_answer):
        with pytest.raises(WorkerError, match=f"a frame holds a {kind}, a map is needed"):
            unpack(body)


def test_the_bound_holds_on_the_way_out() -> None:
    overhead = len(pack(CancelJob(id="x" * 2**16))) - HEADER.size - 2**16
    largest = FRAME_BYTES - overhead
    assert len(pack(CancelJob(id="x" * largest))) == FRAME_BYTES + HEADER.size
    with pytest.raises(WorkerError, match=f"a frame of {FRAME_BYTES + 1} bytes is over the limit of {FRAME_BYTES}"):
        pack(CancelJob(id="x" * (largest + 1)))


def test_the_bound_holds_on_the_way_in_before_anything_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(HEADER.pack(FRAME_BYTES + 1))
    with pytest.raises(WorkerError, match="over the limit"):
        Channel(theirs).receive(None)
    assert check_length(FRAME_BYTES) == FRAME_BYTES


def test_a_frame_crosses_a_channel(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(pack(ReadFootprint(call=1)))
    assert Channel(theirs).receive(None) == ReadFootprint(call=1)


def test_nothing_there_is_none_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    assert Channel(pair[1]).receive(0.0) is None


def test_frames_sent_in_pieces_arrive_whole(pair: tuple[socket.socket, socket.socket]) -> None:
    """The poll between two steps may find one byte of a frame; it then waits for the rest."""
    ours, theirs = pair
    frame = pack(CancelJob(id="x" * 300)) + pack(ReadFootprint(call=2))
    ours.sendall(frame[:1])

    def rest() -> None:
        for position in range(1, len(frame)):
            ours.sendall(frame[position : position + 1])

    sender = threading.Thread(target=rest)
    sender.start()
    channel = Channel(theirs)
    assert channel.receive(0.0) == CancelJob(id="x" * 300)
    assert channel.receive(None) == ReadFootprint(call=2)
    sender.join()


def test_a_large_answer_after_an_empty_poll_waits_for_a_slow_reader(pair: tuple[socket.socket, socket.socket]) -> None:
    """Between steps the child polls without waiting; its next answer may still be larger than the socket's buffer."""
    ours, theirs = pair
    child = Channel(theirs)
    assert child.receive(0.0) is None
    message = TextChunk("1", "x" * 2_000_000)
    received: list[bytes] = []

    def read_slowly() -> None:
        with ours.makefile("rb") as stream:
            received.append(stream.read())

    reader = threading.Thread(target=read_slowly)
    reader.start()
    try:
        child.send(message)
    finally:
        theirs.close()
        reader.join()
    assert received == [pack(message)]


@settings(max_examples=50)
@given(REQUESTS, st.data())
def test_a_cut_frame_is_an_end_not_a_message(request: AnyRequest, data: st.DataObject) -> None:
    frame = pack(request)
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
                assert isinstance(channel.receive(None), (WorkerRequest, UnknownRequest))
            except (EOFError, WorkerError):
                return
