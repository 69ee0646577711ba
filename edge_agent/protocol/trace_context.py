"""The trace that a request belongs to, as its user properties `traceparent` and `tracestate` say (W3C Trace Context,
3.2 and 3.3; W3C's draft for MQTT takes these names for user properties). What is malformed counts as absent, as the
standard says: the request itself is none the worse for it.

A file of its own because the client library, the intake and the exporter of spans read it, each for its side.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

TRACEPARENT, TRACESTATE = "traceparent", "tracestate"
STATE_CHARS = 512
"""What a sender of tracestate may rely on (3.3.1.5); a longer one is left out."""
_VERSION_0 = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?", re.ASCII)
_STATE = re.compile(r"[ -~\t]+", re.ASCII)
SAMPLED, RANDOM = 0x01, 0x02


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Which trace (32 hex digits), which span of the one who asks (16), its flags, and what tracing systems have noted
    (empty: nothing)."""

    trace_id: str
    span_id: str
    flags: int = 0
    state: str = ""

    @property
    def sampled(self) -> bool:
        """Whether the one who asks records this trace, and wants others to."""
        return bool(self.flags & SAMPLED)

    @property
    def traceparent(self) -> str:
        """As it is sent: in version 00, with the flags that it knows."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags & (SAMPLED | RANDOM):02x}"


def trace_context(user: Mapping[str, str]) -> TraceContext | None:
    """The trace that these user properties name; None where there is none, or a malformed one.

    A later version is read by what it has in common with 00 (3.2.4). A property that came twice stands joined by commas
    (`mqtt.packets.unpack`), so that two of `traceparent` are malformed and two of `tracestate` are one list.
    """
    given = user.get(TRACEPARENT)
    found = _VERSION_0.fullmatch(given) if given is not None else None
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == "ff" or (version == "00" and more is not None) or not (int(trace_id, 16) and int(span_id, 16)):
        return None
    state = user.get(TRACESTATE, "")
    kept = state if len(state) <= STATE_CHARS and _STATE.fullmatch(state) else ""
    return TraceContext(trace_id, span_id, int(flags, 16), kept)
