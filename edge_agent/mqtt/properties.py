"""The MQTT 5 properties of a PUBLISH, to bytes and back (MQTT 5, 2.2.2 and 3.3.2.3).

paho does this too, at some 0.2 ms a direction on a fast desktop, which is more than all the rest of a request's way
through the agent (docs/decisions/0052). Both are tested against paho's.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from edge_agent.protocol.envelope import Outbound

USER_PROPERTIES = 16

_FORMAT, _EXPIRY, _CONTENT_TYPE, _RESPONSE, _CORRELATION = 0x01, 0x02, 0x03, 0x08, 0x09
_SUBSCRIPTION, _ALIAS, _USER = 0x0B, 0x23, 0x26


_Value = int | str | bytes | tuple[str, str]


class PublishProperties(NamedTuple):
    """What a PUBLISH of MQTT 5 says beside topic and body; absent ones are None."""

    content_type: str | None = None
    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_s: float | None = None
    user: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple's default; never written to


class PackedProperties:
    """Properties in the form that paho asks for: something that packs itself."""

    def __init__(self, message: Outbound) -> None:
        self._bytes = pack(message)

    def pack(self) -> bytes:
        """Length and properties."""
        return self._bytes


def pack(message: Outbound) -> bytes:
    """The property length and the properties of a message."""
    parts: list[bytes] = []
    if message.expiry_s is not None:
        parts.append(struct.pack("!BI", _EXPIRY, math.ceil(max(1.0, message.expiry_s))))
    if message.content_type is not None:
        parts.append(b"\x03" + _string(message.content_type))
    if message.response_topic is not None:
        parts.append(b"\x08" + _string(message.response_topic))
    if message.correlation is not None:
        parts.append(struct.pack("!BH", _CORRELATION, len(message.correlation)) + message.correlation)
    parts.extend(b"\x26" + _string(key) + _string(value) for key, value in message.user.items())
    body = b"".join(parts)
    return _varint(len(body)) + body


def unpack(data: bytes) -> tuple[PublishProperties, int]:
    """Properties at the start of `data`, and how many bytes they take. Raises ValueError for what makes no sense."""
    length, at = _read_varint(data, 0)
    end = at + length
    if end > len(data):
        raise ValueError("the properties are longer than the packet")
    found: dict[int, _Value] = {}
    user: dict[str, str] = {}
    while at < end:
        kind = data[at]
        value, at = _read(kind, data, at + 1)
        if isinstance(value, tuple):
            if len(user) < USER_PROPERTIES:
                user[value[0]] = value[1]
        elif kind in found and kind != _SUBSCRIPTION:
            raise ValueError("a property stands twice")
        else:
            found[kind] = value
    if at != end:
        raise ValueError("a property is cut off")
    expiry = found.get(_EXPIRY)
    known = (found.get(_CONTENT_TYPE), found.get(_RESPONSE), found.get(_CORRELATION))
    return PublishProperties(*known, None if expiry is None else float(expiry), user), end  # type: ignore[arg-type]


def _read(kind: int, data: bytes, at: int) -> tuple[_Value, int]:
    try:
        if kind in (_CONTENT_TYPE, _RESPONSE):
            return _read_string(data, at)
        if kind == _EXPIRY:
            return struct.unpack_from("!I", data, at)[0], at + 4
        if kind == _CORRELATION:
            end = at + 2 + struct.unpack_from("!H", data, at)[0]
            return data[at + 2 : end], end
        if kind == _USER:
            key, at = _read_string(data, at)
            value, at = _read_string(data, at)
            return (key, value), at
        if kind == _FORMAT:
            return data[at], at + 1
        if kind == _ALIAS:
            return struct.unpack_from("!H", data, at)[0], at + 2
        if kind == _SUBSCRIPTION:
            return _read_varint(data, at)
    except (struct.error, IndexError) as error:
        raise ValueError("a property is cut off") from error
    raise ValueError(f"a PUBLISH has no property 0x{kind:02X}")


def _read_string(data: bytes, at: int) -> tuple[str, int]:
    end = at + 2 + int(struct.unpack_from("!H", data, at)[0])
    return data[at + 2 : end].decode(), end


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("!H", len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a length makes no sense")
