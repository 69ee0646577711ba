"""Changes of an input with its form in mind, for inputs that a change of bytes alone would only make unreadable.

Each takes the input and a source of chance, and returns another input; none fails, whatever it is given. A second
change of bytes follows in a quarter of the cases.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

from edge_agent.bundle import tarform

Change = Callable[[bytes, Random], bytes]

NUMBERS = (
    0, 1, 2, 7, 31, 32, 127, 128, 255, 256, 1023, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53 + 1, 2**63 - 1,
    2**63, 2**64 - 1,
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 1e-320, float("inf"), float("nan"), *NUMBERS,
    10**400, "", "x", "0", "a/b", "..", "/etc/passwd",
    "a\0b", "\ud800", "\U0001f600", "ß" * 300, "x" * 5000, "1e400", "NaN", [], {}, [[]], [None], {"": None},
    "application/x", "sha256:" + "0" * 64, "2026-02-30T00:00:00Z", "9999-12-31T23:59:60Z",
)  # fmt: skip


def by_bytes(data: bytes, chance: Random) -> bytes:
    """A few bytes changed, put in, left out, moved, repeated."""
    found = bytearray(data)
    for _ in range(1 << chance.randrange(4)):
        at = chance.randrange(len(found) + 1)
        length = min(1 << chance.randrange(10), len(found) - at)
        kind = chance.randrange(7)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1 and at < len(found):
            found[at] = chance.randrange(256)
        elif kind == 2:
            found[at:at] = chance.randbytes(1 + chance.randrange(8))
        elif kind == 3:
            del found[at : at + length]
        elif kind == 4:
            found[at:at] = found[at : at + length] * (1 + chance.randrange(3))
        elif kind == 5:
            form = chance.choice(("<B", "<H", "<I", "<Q", ">H", ">I"))
            number = chance.choice(NUMBERS) & (1 << 8 * struct.calcsize(form)) - 1
            found[at : at + struct.calcsize(form)] = struct.pack(form, number)
        else:
            to = chance.randrange(len(found) + 1)
            found[to:to] = found[at : at + length]
    return bytes(found)


def then_bytes(change: Change) -> Change:
    """The change, and a change of bytes behind it or instead of it now and then."""

    @functools.wraps(change)
    def changed(data: bytes, chance: Random) -> bytes:
        kind = chance.randrange(8)
        found = by_bytes(data, chance) if kind == 0 else change(data, chance)
        return by_bytes(found, chance) if kind == 1 else found

    return changed


@then_bytes
def by_json(data: bytes, chance: Random) -> bytes:
    """One JSON document: values exchanged, keys left out, added, written twice, lists repeated, levels added."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return by_bytes(data, chance)
    for _ in range(1 + chance.randrange(3)):
        value = _value(value, chance)
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5)
    if chance.randrange(16) == 0:
        text = text.replace('":', '":0,"x":', 1).replace('"x"', text[text.find('"') :].split(":")[0] or '""', 1)
    return text.encode("utf-8", "surrogatepass")


@then_bytes
def by_msgpack(data: bytes, chance: Random) -> bytes:
    """The same for one value in msgpack."""
    try:
        value = msgspec.msgpack.decode(data)
        return msgspec.msgpack.encode(_value(value, chance))
    except (ValueError, TypeError, RecursionError, OverflowError):
        return by_bytes(data, chance)


def _value(value: Any, chance: Random, depth: int = 0) -> Any:
    """A value with one change somewhere inside of it."""
    inner = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if inner and (depth == 0 or chance.randrange(6) > 0):
        place = chance.choice(inner)
        changed = value.copy()
        kind = chance.randrange(12)
        if kind == 0:
            del changed[place]
        elif kind == 1 and isinstance(changed, dict):
            changed[str(chance.choice(VALUES))[:40]] = changed.pop(place)
        elif kind == 2 and isinstance(changed, list):
            changed[place:place] = [changed[place]] * (1 << chance.randrange(8))
        else:
            changed[place] = _value(value[place], chance, depth + 1)
        return changed
    if isinstance(value, str) and chance.random() < 0.6:
        at = chance.randrange(len(value) + 1)
        return (
            value[:at] + chance.choice(("", "\n", "\0", "é", "0", "a", "/", value)) + value[at + chance.randrange(2) :]
        )
    if isinstance(value, (int, float)) and chance.random() < 0.5:
        return chance.choice((-1, 1)) * chance.choice(NUMBERS)
    return [value] * chance.randrange(4) if chance.randrange(8) == 0 else chance.choice(VALUES)


def by_json_lines(data: bytes, chance: Random) -> bytes:
    """Lines of JSON documents, one of them changed; or lines exchanged, repeated, left out."""
    lines = data.split(b"\n")
    at, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    kind = chance.randrange(10)
    if kind == 0:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 1:
        lines[at:at] = [lines[other]]
    elif kind == 2:
        del lines[at]
    else:
        lines[at] = by_json(lines[at], chance)
    return b"\n".join(lines)


def by_text(*words: str) -> Change:
    """Lines and words exchanged, repeated and left out, and `words` of the language put in."""

    @then_bytes
    def changed(data: bytes, chance: Random) -> bytes:
        lines = data.split(b"\n")
        for _ in range(1 + chance.randrange(4)):
            at = chance.randrange(len(lines)) if lines else 0
            kind = chance.randrange(6)
            if kind == 0 and lines:
                del lines[at]
            elif kind == 1 and lines:
                lines[at:at] = [lines[chance.randrange(len(lines))]] * (1 << chance.randrange(6))
            elif lines:
                line = lines[at]
                place = chance.randrange(len(line) + 1)
                behind = place + chance.choice((0, 0, 1, 4))
                lines[at] = line[:place] + chance.choice(words).encode("utf-8", "surrogatepass") + line[behind:]
        return b"\n".join(lines)

    return changed


@then_bytes
def by_safetensors(data: bytes, chance: Random) -> bytes:
    """The header changed as JSON, its length put right; or blanks and length changed."""
    length = int.from_bytes(data[:8], "little")
    head, rest = data[8 : 8 + length], data[8 + length :]
    head = by_json(head, chance) + b" " * chance.choice((0, 0, 1, 8))
    return struct.pack("<Q", max(0, len(head) + chance.choice((0, 0, 0, 0, -1, 1)))) + head + rest


@then_bytes
def by_tar(data: bytes, chance: Random) -> bytes:
    """Blocks exchanged, repeated, left out; a byte of a header changed and its checksum put right."""
    blocks = [data[at : at + tarform.BLOCK] for at in range(0, len(data), tarform.BLOCK)] or [b""]
    at = chance.randrange(len(blocks))
    headers = [place for place, block in enumerate(blocks) if block[257:262] == b"ustar"]
    kind = chance.randrange(6)
    if kind == 0:
        del blocks[at]
    elif kind == 1:
        blocks[at:at] = [chance.choice(blocks)]
    elif kind == 2:
        other = chance.randrange(len(blocks))
        blocks[at], blocks[other] = blocks[other], blocks[at]
    elif headers:
        at = chance.choice(headers)
        block = bytearray(blocks[at])
        for _ in range(1 + chance.randrange(3)):
            place = chance.choice((chance.randrange(512), chance.randrange(100), 124 + chance.randrange(12), 156))
            if place < len(block):
                block[place] = chance.choice((0, 32, 47, 48, 49, 55, 56, 128, 255, chance.randrange(256)))
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % (sum(block) % 8**6)
        blocks[at] = bytes(block)
    return b"".join(blocks)


def varint(value: int, extra: int = 0) -> bytes:
    """A number in protobuf's form, `extra` bytes longer than needed."""
    parts = [value >> 7 * place & 0x7F for place in range(max(1, -(-value.bit_length() // 7)) + extra)]
    return bytes(part | 0x80 for part in parts[:-1]) + bytes(parts[-1:])


def fields(data: bytes) -> list[tuple[int, int, bytes]] | None:
    """(field number, wire type, its bytes without key and length) of a protobuf message; None where it is none."""
    found, at = [], 0
    while at < len(data):
        key, at = _number(data, at)
        number, wire = key >> 3, key & 7
        begin = at
        if wire == 0:
            at = _number(data, at)[1]
        elif wire == 2:
            length, begin = _number(data, at)
            at = begin + length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            return None
        if at > len(data) or number == 0:
            return None
        found.append((number, wire, data[begin:at]))
    return found


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(data):
            break
        value |= (data[at + place] & 0x7F) << 7 * place
        if data[at + place] < 0x80:
            return value, at + place + 1
    return 0, len(data) + 1


def field(number: int, wire: int, body: bytes, extra: int = 0) -> bytes:
    """A field with its key and, for bytes, its length, both `extra` bytes longer than needed."""
    return varint(number << 3 | wire, extra) + (varint(len(body), extra) if wire == 2 else b"") + body


NOISE: Sequence[bytes] = (
    field(100, 2, b"noise"), field(100, 0, b"\1"), varint(100 << 3 | 3) + varint(100 << 3 | 4),
    varint(5 << 3 | 3) + field(13, 2, b"x") + varint(5 << 3 | 4), varint(1 << 32 | 5 << 3 | 2) + b"\0",
    varint(7), varint(4), b"\x80" * 9 + b"\1", field(2**29 - 1, 0, b"\1"),
)  # fmt: skip


@then_bytes
def by_protobuf(data: bytes, chance: Random) -> bytes:
    """A message with one change somewhere inside of it, its lengths put right: a field repeated, split into parts that
    protobuf merges, packed or unpacked, of another number or wire type, with longer keys, or noise beside it."""
    parts = fields(data)
    if not parts:
        return by_bytes(data, chance)
    return _message(parts, chance)


def _message(parts: list[tuple[int, int, bytes]], chance: Random) -> bytes:
    out = [field(*part) for part in parts]
    at = chance.randrange(len(parts))
    number, wire, body = parts[at]
    inner = fields(body) if wire == 2 else None
    kind = chance.randrange(20) if inner else chance.randrange(10)
    if kind == 0:
        del out[at]
    elif kind == 1:
        out[at:at] = [chance.choice(out)] * (1 << chance.randrange(4))
    elif kind == 2:
        out[at] = field(number, wire, body, 1 + chance.randrange(5))
    elif kind == 3:
        out[at:at] = [chance.choice(NOISE)]
    elif kind == 4:
        out[at] = field(chance.choice((1 + chance.randrange(25), number)), chance.choice((wire, 0, 1, 2, 5)), body)
    elif kind == 5 and wire == 0:  # one number as a packed list
        out[at] = field(number, 2, body * (1 + chance.randrange(3)))
    elif kind == 5 and wire == 2:  # a packed list as numbers one by one
        out[at] = b"".join(field(number, 0, bytes([byte & 0x7F])) for byte in body[:16])
    elif kind == 6 and inner is not None and len(inner) > 1:  # one message in two parts
        cut = 1 + chance.randrange(len(inner) - 1)
        halves = (b"".join(field(*one) for one in half) for half in (inner[:cut], inner[cut:]))
        out[at : at + 1] = [field(number, 2, half) for half in halves]
    elif kind == 7:
        chance.shuffle(out)
    elif inner:
        out[at] = field(number, 2, _message(inner, chance))
    else:
        out[at] = field(number, wire, by_bytes(body, chance) if wire == 2 else varint(chance.choice(NUMBERS)))
    return b"".join(out)


_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_NAMES = (
    "",
    "a\0b",
    "x" * 63,
    "x" * 64,
    "general.alignment",
    "general.architecture",
    "é",
    "blk.0.attn_q.weight.lora_a",
)


@then_bytes
def by_gguf(data: bytes, chance: Random) -> bytes:
    """Names, types and values of keys, names, extents, formats and places of tensors; the data of as many bytes."""
    try:
        keys, tensors, rest = _gguf_parts(data)
    except (struct.error, ValueError, IndexError, KeyError, OverflowError, MemoryError):
        return by_bytes(data, chance)
    for _ in range(1 + chance.randrange(2)):
        listed: list[Any] = chance.choice((keys, tensors))
        at = chance.randrange(len(listed)) if listed else 0
        kind = chance.randrange(8)
        if not listed or kind == 0:
            listed[at:at] = [chance.choice(keys)] if keys and listed is keys else []
        elif kind == 1:
            del listed[at]
        elif kind == 2:
            listed[at][0] = chance.choice(_NAMES).encode()
        elif kind == 3:
            listed.append(listed.pop(at))
        elif listed is keys:
            number = chance.choice((4, 4, 5, 10, 7, 0))
            value = chance.choice((0, 1, 8, 16, 24, 32, 64, 128, 4096, 8192, 255))
            form = _SCALARS[number]
            keys[at][1:] = [number, struct.pack(form, value & 0xFF if struct.calcsize(form) == 1 else value)]
        else:
            _change_tensor(tensors[at], chance)
    head = b"GGUF" + struct.pack("<IQQ", chance.choice((3, 3, 3, 2)), len(tensors), len(keys))
    head += b"".join(_gguf_text(name) + struct.pack("<I", number) + value for name, number, value in keys)
    for name, shape, number, offset in tensors:
        head += _gguf_text(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", extent % 2**64) for extent in shape) + struct.pack(
            "<IQ", number, offset % 2**64
        )
    return head + bytes(-len(head) % 32) + rest


def _change_tensor(tensor: list[Any], chance: Random) -> None:
    kind = chance.randrange(4)
    if kind == 0:
        tensor[1] = [*tensor[1], chance.choice((0, 1, 2, 2**63))][: chance.randrange(6)]
    elif kind == 1 and tensor[1]:
        tensor[1][chance.randrange(len(tensor[1]))] = chance.choice((0, 1, 31, 32, 33, 64, 256, 2**62, 2**63, *NUMBERS))
    elif kind == 2:
        tensor[2] = chance.choice((0, 1, 2, 3, 4, 5, 8, 12, 14, 24, 26, 30, 31, 39, 40, 100, 2**31))
    else:
        tensor[3] += chance.choice((-32, -1, 1, 8, 32, 64))


def _gguf_text(name: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name


def _gguf_parts(data: bytes) -> tuple[list[list[Any]], list[list[Any]], bytes]:
    """[name, type, bytes of its value] of each key, [name, shape, format, place] of each tensor, and the data."""
    _, tensor_count, key_count = struct.unpack_from("<IQQ", data, 4)
    at = 24

    def text(at: int) -> tuple[bytes, int]:
        length = struct.unpack_from("<Q", data, at)[0]
        if at + 8 + length > len(data):
            raise ValueError
        return data[at + 8 : at + 8 + length], at + 8 + length

    def end_of(kind: int, at: int) -> int:
        if kind == 8:
            return text(at)[1]
        if kind == 9:
            inner, count = struct.unpack_from("<IQ", data, at)
            at += 12
            for _ in range(min(count, len(data))):
                at = end_of(inner, at)
            return at
        return at + struct.calcsize(_SCALARS[kind])

    keys: list[list[Any]] = []
    for _ in range(min(key_count, 100)):
        name, at = text(at)
        kind = struct.unpack_from("<I", data, at)[0]
        end = end_of(kind, at + 4)
        keys.append([name, kind, data[at + 4 : end]])
        at = end
    tensors: list[list[Any]] = []
    for _ in range(min(tensor_count, 100)):
        name, at = text(at)
        dimensions = struct.unpack_from("<I", data, at)[0]
        shape = list(struct.unpack_from(f"<{min(dimensions, 8)}Q", data, at + 4))
        kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * len(shape))
        tensors.append([name, shape, kind, offset])
        at += 16 + 8 * len(shape)
    return keys, tensors, data[-(-at // 32) * 32 :]
