"""Where the answer to a message goes, found before anything else about it is judged, so that a refusal arrives too.

MQTT 5 clients name it in the response topic, 3.1.1 clients as `reply_to` in the body. A topic outside the
allow-list gets nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from edge_agent.base.limits import CORRELATION_BYTES, JSON_DEPTH
from edge_agent.protocol.envelope import Inbound
from edge_agent.protocol.json_guard import too_deep
from edge_agent.protocol.topics import ReplyDenied, Topics


@dataclass(frozen=True, slots=True)
class ReplyAddress:
    """Where the answer to a request goes, already checked against the allow-list, and what it must carry.

    `protocol` is 'v5' (response topic and correlation data) or 'v311' (id and reply_to in the body).
    """

    topic: str
    request_id: str
    client: str
    correlation: bytes | None
    protocol: str


class _Fields(Struct):
    """The part of any body that says where an answer goes, whatever else is wrong with it."""

    id: Raw | UnsetType = UNSET
    reply_to: Raw | UnsetType = UNSET


_fields = msgspec.json.Decoder(_Fields)
_string = msgspec.json.Decoder(str)


def find_address(inbound: Inbound, topics: Topics, max_bytes: int) -> ReplyAddress | ReplyDenied | None:
    """The checked reply address of a message, why it may not be used, or None where there is none."""
    fields = _lenient(inbound.payload, max_bytes)
    topic = inbound.response_topic or _text(fields.reply_to)
    if topic is None:
        return None
    allowed = topics.reply_allowed(topic)
    if isinstance(allowed, ReplyDenied):
        return allowed
    correlation = inbound.correlation
    if correlation is not None and not 0 < len(correlation) <= CORRELATION_BYTES:
        correlation = None
    request_id = _text(fields.id)
    if request_id is None or not fit_id(request_id):
        request_id = correlation_id(correlation) if correlation else _fresh_id(inbound, topic)
    protocol = "v5" if inbound.response_topic else "v311"
    return ReplyAddress(topic, request_id, allowed.client, correlation, protocol)


def correlation_id(correlation: bytes) -> str:
    """A request's id as text: its correlation data when that is printable ASCII without spaces, else in hex."""
    if all(0x21 <= byte <= 0x7E for byte in correlation):
        return correlation.decode("ascii")
    return correlation.hex()


def fit_id(request_id: str) -> bool:
    """Whether an id from a body may be used: not empty, printable, within the size of correlation data."""
    return request_id.isprintable() and 0 < len(request_id.encode()) <= CORRELATION_BYTES


def _lenient(payload: bytes, max_bytes: int) -> _Fields:
    if not payload or len(payload) > max_bytes or too_deep(payload, JSON_DEPTH):
        return _Fields()
    try:
        return _fields.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _Fields()


def _text(raw: Raw | UnsetType) -> str | None:
    if isinstance(raw, UnsetType):
        return None
    try:
        return _string.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _fresh_id(inbound: Inbound, topic: str) -> str:
    """An id for a request without one: it can be answered, but not cancelled, and a repetition is not recognised."""
    seed = b"\0".join((topic.encode(), repr(inbound.received_s).encode(), inbound.payload))
    return "anon-" + hashlib.blake2b(seed, digest_size=8).hexdigest()
