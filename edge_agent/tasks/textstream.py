"""Bytes of tokens to text that may be shown: no character is cut, and nothing of a stop string ever gets out. Pure.

A token holds any bytes, perhaps half a character; and what may be the beginning of a stop string is held back until it
is clear that it is none.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Takes bytes, gives text. `complete` turns true when a stop string was met; what follows it is dropped."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = tuple(stops)
        self._held = ""
        self.complete = False

    def take(self, data: bytes) -> str:
        """The text that is certain with these bytes; '' while it is not."""
        if self.complete:
            return ""
        text = self._held + self._decoder.decode(data)
        place = min((found for found in map(text.find, self._stops) if found >= 0), default=-1)
        if place >= 0:
            self.complete, self._held = True, ""
            return text[:place]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, now that nothing follows. A character whose last bytes never came is left out."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins, less than all of it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
