"""Values to messages: the outbound half of the wire. A reply too large to send becomes one that says so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import msgspec

from edge_agent.base.causes import Cause
from edge_agent.base.errors import RequestError
from edge_agent.base.limits import EVENT_BYTES, MESSAGE_BYTES
from edge_agent.base.units import bytes_text
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.messages import CommandReply, Event, Reply, RequestTrace, Status, StreamChunk, Telemetry
from edge_agent.protocol.topics import ReplyAddress, Topics
from edge_agent.protocol.trace_context import TRACEPARENT

REASON_CHARS, REASON_PROPERTY_CHARS = 600, 240
"""Of a reason in the body, which has room for the arithmetic of memory, and in the user property, which has not."""
TRACE_S = 30.0
"""For so long a broker may keep what is said of a trace; collectors take what is late, and tables of spans in time
order are better without."""
_encoder = msgspec.json.Encoder()


PayloadLimit = Callable[[Outbound], int]
"""Bytes of body that a message may have, which depends on its topic and properties (`Transport.payload_limit`)."""


def _limit(_message: Outbound) -> int:
    return MESSAGE_BYTES


def reply(
    body: Reply | CommandReply, to: ReplyAddress, remaining_s: float | None, limit: PayloadLimit = _limit
) -> Outbound:
    """The message that answers a request; `remaining_s` is the time to its deadline and becomes the expiry: to the
    fraction while it waits here, since an answer sent after its deadline is worse than none."""
    message = _reply(body, to, remaining_s)
    size, most = len(message.payload), limit(message)
    if size > most:
        reason = f"the answer has {bytes_text(size)}, more than the {bytes_text(most)} that fit a message"
        return _fitting(_shortened(body, f"{reason}; ask for fewer texts at once"), to, remaining_s, limit)
    return message


def _reply(body: Reply | CommandReply, to: ReplyAddress, remaining_s: float | None) -> Outbound:
    user = {"status": str(body.status)}
    if isinstance(body.reason, str):
        user["reason"] = _one_line(body.reason[:REASON_PROPERTY_CHARS])
    return _addressed(_encoder.encode(body), to, remaining_s, user)


def _addressed(payload: bytes, to: ReplyAddress, remaining_s: float | None, user: dict[str, str]) -> Outbound:
    if to.trace is not None:
        user[TRACEPARENT] = to.trace.traceparent
    return Outbound(
        to.topic,
        payload,
        qos=1,
        correlation=to.correlation,
        expiry_s=remaining_s,
        user=user,
        request_id=to.request_id,
        client=to.client,
    )


def _fitting(body: Reply | CommandReply, to: ReplyAddress, remaining_s: float | None, limit: PayloadLimit) -> Outbound:
    """A refusal; where the broker's packets are too small for its sentence, without it, in the body or at all."""
    message = _reply(body, to, remaining_s)
    if len(message.payload) > limit(message):
        message = replace(message, user={"status": str(body.status)})
    if len(message.payload) > limit(message):
        message = replace(message, payload=_encoder.encode(type(body)(id=body.id, status=body.status)))
    return message


def expendable(message: Outbound, to: ReplyAddress) -> Outbound:
    """A refusal at the door, or an answer that was given before: it gives way to answers, and is sent as surely as its
    request was (at QoS 0 to one of QoS 0)."""
    return replace(message, qos=to.qos, expendable=True)


def status_of(message: Outbound) -> int:
    """The status that a reply carries."""
    return int(message.user["status"])


class _Said(msgspec.Struct):
    status: int


_said = msgspec.json.Decoder(_Said)


def again(payload: bytes, to: ReplyAddress, remaining_s: float | None) -> Outbound:
    """The answer that was given before, addressed to the client that repeats its request."""
    return _addressed(payload, to, remaining_s, {"status": str(_said.decode(payload).status)})


def refusal(
    error: RequestError,
    to: ReplyAddress,
    remaining_s: float | None,
    kind: type[Reply] | type[CommandReply] = Reply,
    limit: PayloadLimit = _limit,
) -> Outbound:
    """An answer without a result; `kind` says whether to a request or to a command."""
    retry = msgspec.UNSET if error.retry_after_s is None else round(error.retry_after_s, 3)
    body = kind(
        id=to.request_id,
        status=error.status,
        reason=error.reason[:REASON_CHARS],
        cause=error.cause.value,
        retry_after_s=retry,
    )
    return _fitting(body, to, remaining_s, limit)


def chunk(body: StreamChunk, to: ReplyAddress, remaining_s: float | None) -> Outbound:
    """A part of a streamed answer; the last one carries the status as a user property."""
    user = {"status": "200"} if body.done else {}
    if body.done and to.trace is not None:
        user[TRACEPARENT] = to.trace.traceparent
    return Outbound(
        to.topic,
        _encoder.encode(body),
        correlation=to.correlation,
        expiry_s=remaining_s,
        user=user,
        request_id=to.request_id,
        client=to.client,
    )


def status(body: Status, topics: Topics) -> Outbound:
    """The retained status; with state 'offline' it is also the last will."""
    return Outbound(topics.status, _encoder.encode(body), qos=1, retain=True, keep="latest")


def retained(topic: str, body: msgspec.Struct) -> Outbound:
    """A retained state: info, models, reported."""
    return Outbound(topic, _encoder.encode(body), qos=1, retain=True, keep="latest")


def withdrawal(topic: str) -> Outbound:
    """The empty retained message with which the broker forgets what it retains on a topic (MQTT 5, 3.3.1.3)."""
    return Outbound(topic, b"", qos=1, retain=True, content_type=None, keep="latest")


def telemetry(body: Telemetry, topics: Topics) -> Outbound:
    """The interval's figures: at most once, worthless after three intervals."""
    expiry_s = 3 * body.interval_s
    return Outbound(topics.telemetry, _encoder.encode(body), qos=0, expiry_s=expiry_s, keep="latest")


def trace(body: RequestTrace, topics: Topics, client: str) -> Outbound:
    """Where the time of a request went: at most once, in its client's share of what gives way to answers."""
    payload = _encoder.encode(body)
    return Outbound(topics.trace, payload, qos=0, expiry_s=TRACE_S, client=client, expendable=True)


def event(body: Event, topics: Topics, limit: PayloadLimit = _limit) -> Outbound:
    """Something that happened, kept on disk until the broker has it; one too large loses its data, then the end of its
    sentence, not itself."""
    message = Outbound(topics.event, _encoder.encode(body), qos=1, user={"kind": body.kind}, keep="disk")
    size, most = len(message.payload), min(EVENT_BYTES, limit(message))
    if size <= most:
        return message
    for chars in (1000, 100):
        left_out = {"left_out": f"data of {bytes_text(size)}"}
        short = _encoder.encode(msgspec.structs.replace(body, message=body.message[:chars], data=left_out))
        if len(short) <= most:
            break
    return replace(message, payload=short)


def whole_expiry_s(remaining_s: float | None) -> float | None:
    """A message expiry interval as it is sent: whole seconds (MQTT 5, 3.3.2.3.3), rounded up, since 0 would mean
    'already late'."""
    return None if remaining_s is None else float(max(1, math.ceil(remaining_s)))


def _one_line(text: str) -> str:
    """Without what a broker hangs up on in a property (MQTT 5, 1.5.4); a runtime's error has many lines."""
    return "".join(char if char.isprintable() else " " for char in text)


def _shortened(body: Reply | CommandReply, reason: str) -> Reply | CommandReply:
    return msgspec.structs.replace(body, status=413, reason=reason, cause=Cause.TOO_LARGE.value, result=None)
