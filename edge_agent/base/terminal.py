"""The terminal's side of both programs: what they print is clean in any encoding, and an error that nobody foresaw is
one line and a file.

`clean_streams` puts a stream in the place of standard output and error that passes text through
`shown_text.many_lines`, so that nothing that came from elsewhere reaches the terminal as an escape sequence, whoever
printed it. `control` writes a sequence of our own past it. An encoding that lacks a character gets a plain one.

A file of its own because both programs need it and nothing in it is about text alone. It writes one temporary file, the
only one of this room.
"""

from __future__ import annotations

import codecs
import contextlib
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, TextIO, cast

from edge_agent import __version__
from edge_agent.base.shown_text import json_text, many_lines, one_line

PLAIN = {
    "°": "deg ", "…": "...", "–": "-", "—": "-", "→": "->", "×": "x", "±": "+-", "µ": "u", "·": ".", "≤": "<=",
    "≥": ">=", "▁": "_", "▂": "_", "▃": "-", "▄": "-", "▅": "=", "▆": "=",
    "▇": "#", "█": "#", "“": '"', "”": '"', "’": "'",
}  # fmt: skip
"""What is printed where the terminal's encoding lacks a character; others become '?'."""
ERRORS = "edge-plain"


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end


class CleanStream:
    """A text stream that cleans what is written to it. Everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """See `TextIO.write`."""
        return self._stream.write(many_lines(text))

    def writelines(self, texts: Sequence[str]) -> None:
        """See `TextIO.writelines`."""
        for text in texts:
            self.write(text)

    def control(self, sequence: str) -> None:
        """Write a control sequence of our own."""
        self._stream.write(sequence)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def control(stream: TextIO, sequence: str) -> None:
    """Write a control sequence of our own to a stream, cleaned or not."""
    write = stream.control if isinstance(stream, CleanStream) else stream.write
    write(sequence)


@contextlib.contextmanager
def clean_streams() -> Iterator[None]:
    """Within it, standard output and error are clean, and no encoding refuses a character; input that is no text in the
    terminal's encoding is read with replacements."""
    codecs.register_error(ERRORS, _plain)
    before = sys.stdout, sys.stderr
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, ERRORS), (sys.stderr, ERRORS)):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            with contextlib.suppress(OSError, ValueError):  # a closed stream
                reconfigure(errors=errors)
    # A stream is None where the program was started with it closed.
    sys.stdout, sys.stderr = (cast(TextIO, stream if stream is None else CleanStream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON on standard output, in ASCII where the terminal has nothing else."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    ascii_only = codecs.lookup(encoding).name not in ("utf-8", "utf-16", "utf-32")
    print(json_text(value, indent, ascii_only))


def system_error(error: OSError) -> str:
    """An error of the operating system that no verb foresaw, in words: which file, and what is wrong with it."""
    said = error.strerror or one_line(error) or type(error).__name__
    return f"{error.filename}: {said}" if error.filename is not None else said


def hang_up() -> None:
    """The reader of our output has gone: close it now, or the interpreter complains at its end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.close()


def last_resort(program: str, error: BaseException, verb: str) -> str:
    """The one line about an error that nobody foresaw. The details go to a file that only this user may read: the
    traceback without values of variables, the version and the verb, and no argument, since that may be a secret."""
    said = one_line(traceback.format_exception_only(type(error), error)[-1].strip())[:300]
    details = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    text = f"{program} {__version__}, verb {verb}, Python {sys.version}\n\n{details}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix=f"{program}-error-", suffix=".txt", delete=False
        ) as file:
            file.write(text)
    except OSError as problem:
        frames = traceback.extract_tb(error.__traceback__)
        at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        return f"{program}: an error of the program itself: {said}{at} (no details: {problem.strerror})"
    return f"{program}: an error of the program itself: {said} (details: {file.name}; please report it with that file)"
