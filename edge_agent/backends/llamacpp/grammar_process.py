"""The process in which llguidance runs: grammars in, masks of allowed tokens out.

Whoever may ask may send a grammar, and a grammar is a program. llguidance bounds most of them by its limits, not all:
some compile for minutes, some end the process for want of memory. So it has a process of its own, which the worker
starts for its first such request (`grammar_client`). Every operation has a limit of CPU time, kept by the kernel; a
process that exceeds one is ended by a signal, and the worker knows by which grammar.

Frames are `marshal` of a tuple behind its length (4 bytes, little-endian). In: `(number, operation, ...)`, first the
vocabulary. Out, in the same order: `(number, cpu_s, mask, state, text)`; see `MaskReply`.

A file of its own because it is the program of that process: it imports neither numpy nor llama.cpp.
"""

from __future__ import annotations

import contextlib
import json
import marshal
import os
import re
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from edge_agent.backends.llamacpp.gbnf import LARK, lark_without_settings, plain_gbnf
from edge_agent.backends.llamacpp.json_schema import prepared
from edge_agent.backends.llamacpp.key_repeats import JsonText, NameGuard, Repeated
from edge_agent.backends.llamacpp.schema_refusal import SchemaRefused, located, of_anchors

LENGTH = struct.Struct("<I")
COMPILE_S, TOKEN_S = 2.0, 0.5
"""CPU seconds of one operation. On a machine of the development (x86-64) compiling takes 1 ms in the median of 11,305
real schemas and 230 ms at most, a mask of 150,000 tokens 0.01 ms in the median; boards are five to ten times slower."""
MEMORY_BYTES: Final = 192 << 20
"""Address space beyond what the process takes with its vocabulary."""
LIMITS: Final[Mapping[str, Any]] = {
    "max_lexer_states": 50_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_items_in_row": 2_000,
    "verbose_errors": False,
}
"""llguidance's own limits: states of the lexer (1 to 2 KB each), steps of one mask; without the grammar in messages."""
SLICE = '[^"\\\\\\x00-\\x1F\\x7F]{1,30}'
"""The tokens that any text in quotes may go on with are looked up once. It takes a quarter more memory, and a mask
inside of a text with maxLength takes a third of the time."""
WHITESPACE = r" |\r?\n[ \t]{0,40}"
"""Between two parts of JSON. Without a bound weak models write blanks until max_tokens."""
OPEN_LINES: Final = 1
OPEN = '%llguidance {"no_forcing": true}'
"""Where a text can go on in one way only, the model still chooses its tokens: the vocabulary here has no tokenizer."""
NAMES: Final = 128
"""Names by a pattern that are listed one by one."""
RECEIVED: Final = 1 << 16
"""Bytes that are read at once."""
KEPT = 16
"""Compiled grammars that are kept for the next request with the same text."""
CROWDED_BYTES: Final = MEMORY_BYTES // 3
"""Memory beyond the vocabulary's from which compiled grammars are not kept: the states that answers find stay with
their grammar, up to 60 MiB of them."""
SPECIAL = b"\xff"
"""Before the text of a token that is no text (end of answer, turn marks)."""
WORDS_SHOWN = 160
REGEX_INDENT = 4
"""Blanks before an expression in a message of Rust's reader."""
TOO_DEEP = "is nested too deep"
_SHOWN = re.compile(
    r"^Failed to convert the grammar from GBNF to Lark: |, '.*' \^ '.*$"
    r'|^(?:at )?\d+\(\d+\): (?:invalid regex ".*" \(in regex\): )?'
    r"| (?:; Start )?in regex .*$|(?<= )1 \| %llguidance .*$"
)
"""What llguidance says of the source, of which the client wrote only a part."""
_PLACE = re.compile(r'^(?:at )?(\d+)\((\d+)\): (?:invalid regex ".*" \(in regex\): (?!regex parse error))?')


class State:
    """What a matcher can say besides its mask."""

    GOES, ENDED, REFUSED, COSTLY = 0, 1, 2, 3


class MaskReply(NamedTuple):
    """`mask`: a bit per token, b'' where there is none; `text`: the reason of a refusal."""

    number: int
    cpu_s: float
    mask: bytes
    state: int
    text: str


class GrammarRefused(Exception):
    """A grammar that cannot be followed, in words. `costly`: it takes more than llguidance's limits."""

    def __init__(self, text: str, costly: bool = False) -> None:
        super().__init__(text)
        self.costly = costly


class _Words:
    """The vocabulary as llguidance reads it. Its texts are never tokenised: no token is forced (`OPEN`)."""

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], ends: Sequence[int]) -> None:
        self.tokens = tokens
        self.eos_token_id = ends[0]
        self.special_token_ids = [token for token, word in enumerate(tokens) if word[:1] == SPECIAL]

    def __call__(self, text: bytes) -> list[int]:
        return []


class Matching:
    """One answer under its grammar. `by_pattern`: its names may follow a pattern; `renewed`: the number of its tokens
    when its grammar was last compiled anew for it, -1 for never."""

    def __init__(self, kind: str, text: str, matcher: Any) -> None:
        self.kind = kind
        self.text = text
        self.matcher = matcher
        self.by_pattern = kind == "json_schema" and "patternProperties" in text
        self.so_far = JsonText() if kind == "json_schema" else None
        self.tokens: list[int] = []
        self.renewed = -1

    def renew(self, matcher: Any) -> None:
        """Follow a newly compiled grammar from now on."""
        self.matcher, self.renewed = matcher, len(self.tokens)

    def write(self, word: bytes) -> None:
        """Follow the JSON text. Raises Repeated."""
        if self.so_far is not None:
            self.so_far = self.so_far.after(word)


class Grammars:
    """Everything in this process: the vocabulary, compiled grammars, and the answers that follow one."""

    def __init__(
        self, tokens: Sequence[bytes], ends: Sequence[int], on_token: Callable[[], object] = lambda: None
    ) -> None:
        """`on_token` is called before each token that an answer has already and that is followed once more."""
        import llguidance

        self._on_token = on_token
        self._library: Any = llguidance
        self._words = tokens
        self._vocabulary = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Words(tokens, ends)), eos_token=list(ends), slices=[SLICE]
        )
        self._limits = llguidance.LLParserLimits(**LIMITS)
        self._guard = NameGuard(tokens)
        self._compiled: dict[tuple[str, str], Any] = {}
        self._open: dict[int, Matching] = {}
        self._escapes = [token for token, word in enumerate(tokens) if (len(word) - len(word.rstrip(b"\\"))) % 2]
        self._bytes: Any = None
        self._bytes_at_start = _held_bytes()

    def check(self, kind: str, text: str) -> None:
        """Compile a grammar. Raises GrammarRefused."""
        self._compile(kind, text)

    def open(self, number: int, kind: str, text: str, taken: Sequence[int]) -> None:
        """Begin an answer, or go on with one that has these tokens. Raises GrammarRefused."""
        self._open[number] = matching = Matching(kind, text, self._compile(kind, text).deep_copy())
        for token in taken:
            self._on_token()
            self._mask_of(matching)
            self.take(number, token)

    def take(self, number: int, token: int) -> None:
        """Take a token into an answer. Raises GrammarRefused."""
        matching = self._open[number]
        try:
            matching.write(self._words[token])
        except Repeated as error:
            raise GrammarRefused(f"the answer gives {error}") from error
        fits = matching.matcher.consume_token(token)
        if not fits and self._renew(matching):
            matching.matcher.compute_bitmask()
            fits = matching.matcher.consume_token(token)
        if not fits:
            self._raise(matching.matcher, "the token that was drawn does not fit")
        matching.tokens.append(token)

    def mask(self, number: int) -> tuple[bytes, int]:
        """(mask, state) of what may follow. Raises GrammarRefused where the grammar costs too much."""
        matching = self._open[number]
        if matching.matcher.is_stopped() and not matching.matcher.is_error():
            return b"", State.ENDED
        kept = bytearray(self._mask_of(matching))
        if matching.so_far is not None:
            for token in self._guard.barred(matching.so_far):
                kept[token >> 3] &= ~(1 << (token & 7))
            if matching.by_pattern and matching.so_far.named and matching.so_far.text is not None:
                self._bar_escapes(matching, kept)
        if not kept.lstrip(b"\0"):  # `any` would take 0.2 ms where only the last of 150,000 tokens are allowed
            raise GrammarRefused("no text fits behind what the answer has")
        return bytes(kept), State.GOES

    def _mask_of(self, matching: Matching) -> bytes:
        """llguidance's mask, which also gives the next token its fuel. Raises GrammarRefused."""
        found = matching.matcher.compute_bitmask()
        if matching.matcher.is_error() and self._renew(matching):
            found = matching.matcher.compute_bitmask()
        if matching.matcher.is_error():
            self._raise(matching.matcher, "no text fits behind what the answer has")
        return bytes(found)

    def _renew(self, matching: Matching) -> bool:
        """Whether an answer whose grammar met a limit follows a newly compiled one now. States belong to a compiled
        grammar, and other answers may have used them up; what one answer needs may still be too much. An answer gets
        another only when it has twice the tokens, so that each is followed again twice at most, on average."""
        costly = _costly(matching.matcher.get_error())
        if costly:
            self._compiled.pop((matching.kind, matching.text), None)
        if not costly or len(matching.tokens) < 2 * matching.renewed or matching.renewed == 0:
            return False
        matching.renew(self._compile(matching.kind, matching.text).deep_copy())
        for token in matching.tokens:
            self._on_token()
            matching.matcher.compute_bitmask()
            if not matching.matcher.consume_token(token):
                return False
        return True

    def _bar_escapes(self, matching: Matching, kept: bytearray) -> None:
        r"""Take out tokens that begin an escape in a name by a pattern, where only \u could follow."""
        for token in (one for one in self._escapes if kept[one >> 3] >> (one & 7) & 1):
            after = matching.matcher.deep_copy()
            after.consume_token(token)
            found = bytearray(after.compute_bitmask())
            for barred in self._guard.barred(JsonText(named=True, text=b"\\")):
                found[barred >> 3] &= ~(1 << (barred & 7))
            if not any(found):
                kept[token >> 3] &= ~(1 << (token & 7))

    def fits(self, kind: str, text: str, tokens: Sequence[int]) -> bool:
        """Whether these tokens are a whole answer under a grammar. Raises GrammarRefused."""
        matcher = self._compile(kind, text).deep_copy()
        for token in tokens:
            matcher.compute_bitmask()  # as answers are drawn: the mask gives the token its fuel
            if not matcher.try_consume_tokens([token]):
                return False
        if not matcher.is_accepting():
            return False
        if kind != "json_schema":
            return True
        try:
            JsonText().after(b"".join(self._words[token] for token in tokens))
        except Repeated:
            return False
        return True

    def close(self, number: int) -> None:
        """Forget an answer."""
        self._open.pop(number, None)

    def _compile(self, kind: str, text: str) -> Any:
        key = (kind, text)
        if _held_bytes() - self._bytes_at_start > CROWDED_BYTES:
            self._compiled.clear()
        found = self._compiled.pop(key, None)
        if found is None:
            found = self._compile_new(kind, text)
        self._compiled[key] = found
        while len(self._compiled) > KEPT:
            del self._compiled[next(iter(self._compiled))]
        return found

    def _compile_new(self, kind: str, text: str) -> Any:
        if kind == "json_schema":
            return self._schema(json.loads(text))
        source = f"start: /{self._library.regex_to_lark(text, 'd')}/" if kind == "regex" else self._lark(text)
        matcher = self._matcher(f"{OPEN}\n{source}")
        if matcher.is_error():
            self._raise(matcher, f"the {kind} does not parse", lines=kind == "grammar" and _is_lark(text))
        return self._begun(matcher, f"the {kind}")

    def _lark(self, grammar: str) -> str:
        try:
            if _is_lark(grammar):
                return lark_without_settings(grammar)
            return str(self._library.grammar_from("gbnf", plain_gbnf(grammar)))
        except (ValueError, RecursionError) as error:
            if isinstance(error, RecursionError) or isinstance(error.__context__, RecursionError):
                raise GrammarRefused(f"the grammar {TOO_DEEP}") from error
            raise GrammarRefused(f"the grammar does not parse: {_line(str(error))}") from error

    def _begun(self, matcher: Any, what: str) -> Any:
        """The matcher, where at least one token can begin an answer. Raises GrammarRefused."""
        first = matcher.deep_copy()
        found = bytes(first.compute_bitmask())
        if first.is_error() and _costly(first.get_error()):
            self._raise(first, "")
        if first.is_error() or not any(found):
            raise GrammarRefused(f"{what}: no text fits it")
        return matcher

    def _schema(self, schema: dict[str, Any]) -> Any:
        try:
            wanted = prepared(schema, self._names_of)
        except RecursionError as error:
            raise GrammarRefused(f"json_schema: it {TOO_DEEP}") from error
        except SchemaRefused as error:
            raise GrammarRefused(str(error)) from error
        matcher = self._matcher(self._source(wanted))
        if not matcher.is_error():
            return self._begun(matcher, "json_schema")
        wrong = matcher.get_error()
        if _costly(wrong):
            self._raise(matcher, "")
        raise GrammarRefused(str(located(wanted, wrong, lambda one: str(self._matcher(self._source(one)).get_error()))))

    def _names_of(self, pattern: str) -> list[str] | None:
        """The names that fit a pattern, None for more than `NAMES`."""
        if self._bytes is None:
            words = [*(bytes([number]) for number in range(256)), SPECIAL]
            self._bytes = self._library.LLTokenizer(self._library.TokenizerWrapper(_Words(words, [256])), slices=[])
        source = self._source({"type": "string", "pattern": pattern})
        return listed_names(self._library.LLMatcher(self._bytes, source, log_level=0, limits=self._limits))

    def _source(self, schema: Mapping[str, Any]) -> str:
        switches = {"whitespace_pattern": WHITESPACE, "lenient": False, "coerce_one_of": False}
        body = {"name": "json", "json_schema": {**schema, "x-guidance": switches}}
        return json.dumps({"grammars": [{"lark_grammar": f"{OPEN}\nstart: @json"}, body]})

    def _matcher(self, source: str) -> Any:
        return self._library.LLMatcher(self._vocabulary, source, log_level=0, limits=self._limits)

    def _raise(self, matcher: Any, otherwise: str, lines: bool = False) -> None:
        """Raises GrammarRefused. `lines`: the source's lines are the client's."""
        wrong = _line(matcher.get_error(), lines)
        if _costly(wrong):
            raise GrammarRefused(f"it takes more steps than are possible ({wrong})", costly=True)
        raise GrammarRefused(": ".join(part for part in (otherwise, wrong) if part))


def listed_names(matcher: Any) -> list[str] | None:
    r"""The texts that a matcher of JSON strings over single bytes takes, without those that are written with \u; None
    for more than `NAMES`."""
    found: set[str] = set()
    begun = [(b"", matcher)]
    while begun:
        longer = []
        for text, one in begun:
            mask = one.compute_bitmask()
            if one.is_error():
                return None
            for byte in (byte for byte in range(256) if mask[byte >> 3] >> (byte & 7) & 1):
                if text[-1:] == b"\\" and byte == 0x75 and (len(text) - len(text.rstrip(b"\\"))) % 2:
                    continue
                if byte == 0x22 and text and (len(text) - len(text.rstrip(b"\\"))) % 2 == 0:
                    found.add(json.loads(text + b'"'))
                    continue
                after = one.deep_copy()
                after.consume_token(byte)
                longer.append((text + bytes([byte]), after))
                if len(longer) + len(found) > 2 * NAMES:
                    return None
        begun = longer
    return sorted(found) if len(found) <= NAMES else None


def _is_lark(grammar: str) -> bool:
    return LARK.search(grammar) is not None


def _costly(wrong: str) -> bool:
    # llguidance has no other word for which of its limits a grammar met.
    return "Token range end" not in wrong and any(
        words in wrong for words in ("fuel", "too many", "items; max", "too complex", "too large", "limit")
    )


def _line(wrong: str, lines: bool = False) -> str:
    """llguidance's message in a line, without what it shows of the source, of which the client wrote only a part;
    `lines`: with the place."""
    wrong = _PLACE.sub(_place, wrong) if lines else wrong
    words = " ".join(_of_regex(wrong).replace("<non-verbose/>", "").replace("NoExtensionBias", "").split())
    return of_anchors(_SHOWN.sub("", words)).strip()[:WORDS_SHOWN]


def _place(found: re.Match[str]) -> str:
    return f"line {int(found[1]) - OPEN_LINES}, character {found[2]}: "


def _of_regex(wrong: str) -> str:
    """The reason at the end of what Rust's reader of regular expressions says behind the whole expression, and the
    place, which it marks by `^` below the expression; any other message as it is."""
    head, found, tail = wrong.rpartition("\nerror: ")
    if not found or "regex parse error:" not in head:
        return wrong
    marks = head.rpartition("\n")[2]
    place = "" if marks.strip(" ^") else f", at character {len(marks) - len(marks.lstrip()) - REGEX_INDENT + 1}"
    return head.partition("invalid regex")[0] + tail.partition("\n")[0] + place


class Server:
    """The loop: read an operation, do it within its time, answer."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._in = bytearray()
        self._grammars: Grammars | None = None

    def run(self) -> None:
        """Serve until the worker closes the channel."""
        while (frame := self._read()) is not None:
            number, operation, *rest = frame
            # It goes on while this process waits, which takes no CPU time: no call to stop it.
            signal.setitimer(signal.ITIMER_PROF, TOKEN_S if operation == "take" else COMPILE_S)
            # The process's clock stands still between two ticks of the kernel while such a timer runs.
            began_s = time.thread_time()
            mask, state, text = self._do(operation, rest)
            data = marshal.dumps((number, time.thread_time() - began_s, mask, state, text))
            self._channel.sendall(LENGTH.pack(len(data)) + data)

    def _do(self, operation: str, rest: list[Any]) -> tuple[bytes, int, str]:
        if self._grammars is None:
            signal.setitimer(signal.ITIMER_PROF, 0.0)  # a large vocabulary takes seconds on a board
            tokens, ends = rest
            self._grammars = Grammars(tokens, ends, _token_time)
            _limit_memory()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what Rust writes when it ends by a limit
            return b"", State.GOES, ""
        try:
            mask, state = _OPERATIONS[operation](self._grammars, rest)
        except GrammarRefused as error:
            return b"", State.COSTLY if error.costly else State.REFUSED, str(error)
        except MemoryError:
            return b"", State.COSTLY, "it takes more memory than is possible"
        except RecursionError:
            return b"", State.REFUSED, f"it {TOO_DEEP}"
        except ValueError as error:
            return b"", State.REFUSED, f"llguidance cannot follow it: {_line(str(error))}"
        return mask, state, ""

    def _read(self) -> tuple[Any, ...] | None:
        while True:
            stop = LENGTH.size + LENGTH.unpack_from(self._in)[0] if len(self._in) >= LENGTH.size else LENGTH.size
            if len(self._in) >= stop > LENGTH.size:
                data = bytes(self._in[LENGTH.size : stop])
                del self._in[:stop]
                found: tuple[Any, ...] = marshal.loads(data)  # noqa: S302 (from the worker that started this process)
                return found
            part = self._channel.recv(RECEIVED)
            if not part:
                return None
            self._in += part


def _check(grammars: Grammars, rest: list[Any]) -> tuple[bytes, int]:
    grammars.check(*rest)
    return b"", State.GOES


def _open(grammars: Grammars, rest: list[Any]) -> tuple[bytes, int]:
    grammars.open(*rest)
    return grammars.mask(rest[0])


def _take(grammars: Grammars, rest: list[Any]) -> tuple[bytes, int]:
    grammars.take(*rest)
    return grammars.mask(rest[0])


def _close(grammars: Grammars, rest: list[Any]) -> tuple[bytes, int]:
    grammars.close(*rest)
    return b"", State.GOES


_OPERATIONS: Mapping[str, Callable[[Grammars, list[Any]], tuple[bytes, int]]] = {
    "check": _check,
    "open": _open,
    "take": _take,
    "close": _close,
}


def _held_bytes() -> int:
    """Address space of this process."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (pathlib costs memory for one line)
        return int(file.read().split()[0]) * resource.getpagesize()


def _token_time() -> None:
    """Each token has its own time: an answer that is followed once more has paid for it before."""
    signal.setitimer(signal.ITIMER_PROF, TOKEN_S)


def _limit_memory() -> None:
    """Let an allocation beyond the limit fail, which ends this process and no other."""
    held = _held_bytes()
    with contextlib.suppress(OSError, ValueError):  # a unit may forbid the call; then its own memory limit remains
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY_BYTES, held + MEMORY_BYTES))


def main(arguments: list[str]) -> int:
    """`python -m edge_agent.backends.llamacpp.grammar_process FD`, started by `grammar_client`."""
    # Its end by a signal is expected: no traceback of Rust, no core file.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Server(socket.socket(fileno=int(arguments[0]))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
