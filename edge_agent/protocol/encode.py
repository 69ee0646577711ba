"""Values to messages: the outbound half of the wire. A reply too large to send becomes one that says so."""

from __future__ import annotations

import math

import msgspec

from edge_agent.base.limits import EVENT_BYTES, MESSAGE_BYTES
from edge_agent.base.units import bytes_text
from edge_agent.protocol.envelope import Outbound
from edge_agent.protocol.messages import CommandReply, Event, Reply, Status, StreamChunk, Telemetry
from edge_agent.protocol.topics import ReplyAddress, Topics

REASON_CHARS, REASON_PROPERTY_CHARS = 600, 240
"""Of a reason in the body, which has room for the arithmetic of memory, and in the user property, which has not."""
_encoder = msgspec.json.Encoder()


def reply(
    body: Reply | CommandReply, to: ReplyAddress, remaining_s: float | None, max_bytes: int = MESSAGE_BYTES
) -> Outbound:
    """The message that answers a request; `remaining_s` is the time to its deadline and becomes the expiry: to the
    fraction while it waits here, since an answer sent after its deadline is worse than none."""
    payload = _encoder.encode(body)
    if len(payload) > max_bytes:
        reason = f"the answer has {bytes_text(len(payload))}, more than the {bytes_text(max_bytes)} that fit a message"
        body = _shortened(body, f"{reason}; ask for fewer texts at once")
        payload = _encoder.encode(body)
    user = {"status": str(body.status)}
    if isinstance(body.reason, str):
        user["reason"] = _one_line(body.reason[:REASON_PROPERTY_CHARS])
    return Outbound(to.topic, payload, qos=1, correlation=to.correlation, expiry_s=remaining_s, user=user)


def status_of(message: Outbound) -> int:
    """The status that a reply carries."""
    return int(message.user["status"])


class _Said(msgspec.Struct):
    status: int


_said = msgspec.json.Decoder(_Said)


def again(payload: bytes, to: ReplyAddress, remaining_s: float | None) -> Outbound:
    """The answer that was given before, addressed to the client that repeats its request."""
    user = {"status": str(_said.decode(payload).status)}
    return Outbound(to.topic, payload, qos=1, correlation=to.correlation, expiry_s=remaining_s, user=user)


def refusal(
    status: int,
    reason: str,
    to: ReplyAddress,
    remaining_s: float | None,
    retry_after_s: float | None = None,
    kind: type[Reply] | type[CommandReply] = Reply,
) -> Outbound:
    """An answer without a result; `kind` says whether to a request or to a command."""
    retry: float | msgspec.UnsetType = msgspec.UNSET if retry_after_s is None else round(retry_after_s, 3)
    body = kind(id=to.request_id, status=status, reason=reason[:REASON_CHARS], retry_after_s=retry)
    return reply(body, to, remaining_s)


def chunk(body: StreamChunk, to: ReplyAddress, remaining_s: float | None) -> Outbound:
    """A part of a streamed answer; the last one carries the status as a user property."""
    user = {"status": "200"} if body.done else {}
    return Outbound(
        to.topic,
        _encoder.encode(body),
        correlation=to.correlation,
        expiry_s=remaining_s,
        user=user,
        request_id=to.request_id,
    )


def status(body: Status, topics: Topics) -> Outbound:
    """The retained status; with state 'offline' it is also the last will."""
    return Outbound(topics.status, _encoder.encode(body), qos=1, retain=True, keep="latest")


def retained(topic: str, body: msgspec.Struct) -> Outbound:
    """A retained state: info, models, reported."""
    return Outbound(topic, _encoder.encode(body), qos=1, retain=True, keep="latest")


def telemetry(body: Telemetry, topics: Topics) -> Outbound:
    """The interval's figures: at most once, worthless after three intervals."""
    expiry_s = 3 * body.interval_s
    return Outbound(topics.telemetry, _encoder.encode(body), qos=0, expiry_s=expiry_s, keep="latest")


def event(body: Event, topics: Topics) -> Outbound:
    """Something that happened, kept on disk until the broker has it; one too large loses its data, not itself."""
    payload = _encoder.encode(body)
    if len(payload) > EVENT_BYTES:
        short = msgspec.structs.replace(
            body, message=body.message[:1000], data={"left_out": f"data of {bytes_text(len(payload))}"}
        )
        payload = _encoder.encode(short)
    return Outbound(topics.event, payload, qos=1, user={"kind": body.kind}, keep="disk")


def whole_expiry_s(remaining_s: float | None) -> float | None:
    """A message expiry interval as it is sent: whole seconds (MQTT 5, 3.3.2.3.3), rounded up, since 0 would mean
    'already late'."""
    return None if remaining_s is None else float(max(1, math.ceil(remaining_s)))


def _one_line(text: str) -> str:
    """Without what a broker hangs up on in a property (MQTT 5, 1.5.4); a runtime's error has many lines."""
    return "".join(char if char.isprintable() else " " for char in text)


def _shortened(body: Reply | CommandReply, reason: str) -> Reply | CommandReply:
    return msgspec.structs.replace(body, status=413, reason=reason, result=None)
