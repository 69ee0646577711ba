"""What must hold of a JSON body before a decoder may see it: size, UTF-8, depth, parts. And afterwards: no key twice.

Costs are linear in the body's size, and the size is bounded first. A string that never ends is taken to the end of the
text, so that no search begins anew at each quote in it: such a text is no JSON, which the decoder then says.
"""

from __future__ import annotations

import re
from itertools import accumulate

_STRINGS = re.compile(rb'"(?:[^"\\]+|\\.)*"?', re.DOTALL)
_KEYS = re.compile(rb'"((?:[^"\\]|\\.)*)"(\s*:)?', re.DOTALL)
_BRACKETS = b"[{]}"
_STEPS = bytes.maketrans(_BRACKETS, b"\x01\x01\xff\xff")
_OTHERS = bytes(byte for byte in range(256) if byte not in _BRACKETS)


def too_deep(payload: bytes, max_depth: int) -> bool:
    """Whether brackets nest deeper than `max_depth` outside of strings."""
    steps = _STRINGS.sub(b"", payload).translate(_STEPS, _OTHERS)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > max_depth


def too_many_parts(payload: bytes, most: int) -> bool:
    """Whether a body has more than `most` texts, or more than `most` commas and opening brackets outside of them.

    A decoder makes up to 60 bytes of an empty list of three. For bodies that are much larger than a message: nothing
    here takes more than a few copies of the body.
    """
    # Backslashes in pairs first: what is left before a quote then escapes it.
    plain = payload.replace(b"\\\\", b"").replace(b'\\"', b"")
    if plain.count(b'"') > 2 * most:
        return True
    outside = plain.split(b'"')[::2]
    return sum(part.count(mark) for part in outside for mark in (b",", b"[", b"{")) > most


def repeated_key(payload: bytes) -> str | None:
    """A key that stands twice in one object of a valid JSON text, or None.

    Decoders take the last one, other parsers the first: what a filter in front of us saw may not be what we see.
    """
    keys = [key for key, colon in _KEYS.findall(payload) if colon]
    if len(set(keys)) == len(keys) and not any(b"\\" in key for key in keys):
        return None
    import json

    found: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> None:
        known: set[str] = set()
        for name, _ in pairs:
            if name in known:
                found.append(name)
            known.add(name)

    json.loads(payload, object_pairs_hook=look)
    return found[0] if found else None


def quoted(text: str, max_chars: int = 120) -> str:
    """Remote text for an error message: printable ASCII, at most `max_chars`, the cut shown."""
    shown = ascii(text[: max_chars + 1])[1:-1]
    return shown if len(shown) <= max_chars else shown[: max_chars - 3] + "..."
