"""The worker's side of `grammar_process`: starts it, asks it, and tells which grammar is at fault when it ends.

Nothing here waits for a grammar. What is asked is answered in the order of asking; `pump` reads what has come. A mask
is asked for when a token is taken, so that it is computed while llama.cpp computes the next token. When the process
ends by a limit, the operation that it was in is at fault: that answer fails, the others are opened again in a new
process with the tokens that they have. One grammar is compiled at a time, that of the client whose grammars have cost
least lately, so that others wait behind one compilation and no more.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import select
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from edge_agent.backends.llamacpp.grammar_process import COMPILE_S, LENGTH, MEMORY_BYTES, TOKEN_S, MaskReply, State
from edge_agent.backends.llamacpp.model import LlamaModel
from edge_agent.base.child_python import module_command
from edge_agent.base.errors import BackendError, BackendMissing
from edge_agent.base.limits import MIB

MODULE = "edge_agent.backends.llamacpp.grammar_process"
KINDS = ("json_schema", "regex", "grammar")
HEAD_S = 30.0
"""Wall seconds after which an operation is taken for endless. Its CPU time is limited by the kernel, so most often the
process was stopped, or got no CPU: that is no fault of the grammar."""
LOOK_S = 1.0
"""Wall seconds of an operation after which its process's CPU time is read, to compare it at `HEAD_S`."""
RETRIES = 1
"""Times that a grammar is opened again after its process was ended from outside in one of its operations."""
CLIENT_S, CLIENT_SHARE = 4.0, 0.1
"""CPU seconds that one client's grammars may take to compile in all, and what of it is forgiven per second."""
CLIENTS_KEPT = 256
GRACE_S, PER_TOKEN_S = 2.0, 0.02
"""CPU seconds that one answer's grammar may take in all: `GRACE_S`, and `PER_TOKEN_S` more for each of its tokens."""
COSTLY_S = 0.25
"""CPU seconds from which a grammar that meets one of llguidance's limits is held against its client: a large schema is
refused sooner, and harms nobody."""
START_S = 60.0
"""Wall seconds for a start, with the vocabulary of 150,000 tokens of a board's slow card."""
RECEIVED = 1 << 16
"""Bytes that are read at once: three masks of 150,000 tokens. A larger buffer would be mapped anew for each."""
ASKED = 1024
"""Operations that may wait; each answer has one, and what was cancelled a second."""
ENDING_LOOKS = 20
"""Looks, a millisecond apart, at a process that ends by itself, before it is killed."""


class Phase(Enum):
    """Of a grammar: being compiled, compiled, its mask being computed, its mask there, nothing may follow, refused."""

    CHECKED = 0
    READY = 1
    AWAITED = 2
    GOES = 3
    ENDED = 4
    FAILED = 5


@dataclass(slots=True, eq=False)
class FollowedGrammar:
    """An answer's grammar. `mask`: a bit per token, in phase GOES; `reason`, `costly` and `blamed` in phase FAILED.
    `blamed`: it failed by what it is, and not by what happened to its process."""

    number: int
    kind: str
    text: str
    client: str = ""
    phase: Phase = Phase.CHECKED
    tokens: list[int] = field(default_factory=list)
    mask: bytes = b""
    reason: str = ""
    costly: bool = False
    blamed: bool = True
    cpu_s: float = 0.0
    interrupted: int = 0
    told: bool = False

    def fail(self, reason: str, costly: bool, blamed: bool = True) -> None:
        """Refuse it; the first reason stays."""
        if self.phase is not Phase.FAILED:
            self.phase, self.reason, self.costly, self.mask = Phase.FAILED, reason, costly, b""
            self.blamed = blamed

    def hold_against_client(self, reason: str) -> None:
        """Refuse it as too costly, also where it was refused for less."""
        self.phase, self.reason, self.costly, self.blamed, self.mask = Phase.FAILED, reason, True, True, b""

    def interrupt(self) -> None:
        """Its process was ended from outside, or stopped, in its operation."""
        self.interrupted += 1
        if self.interrupted > RETRIES:
            self.fail(f"the process that follows the {self.kind} was ended from outside", costly=False, blamed=False)

    def is_news(self) -> bool:
        """Whether it is compiled, and this was not asked before."""
        told, self.told = self.told, self.phase is Phase.READY
        return self.told and not told

    def awaits(self, token: int | None = None) -> None:
        """Its next mask is asked for, behind this token."""
        if token is not None:
            self.tokens.append(token)
        self.phase, self.mask = Phase.AWAITED, b""

    def take_reply(self, reply: MaskReply, compiled: bool) -> None:
        """What came of the operation that was asked for; `compiled`: it was only compiled."""
        self.cpu_s += reply.cpu_s
        if self.phase is Phase.FAILED:  # with another grammar of its client, while this was computed
            return
        allowed_s = GRACE_S + PER_TOKEN_S * len(self.tokens)
        if reply.state in (State.REFUSED, State.COSTLY):
            self.fail(reply.text, reply.state == State.COSTLY and self.cpu_s > COSTLY_S)
        elif self.cpu_s > allowed_s:
            took = f"the {self.kind} took {self.cpu_s:.1f} s of computing for {len(self.tokens)} tokens"
            self.fail(f"{took}; {allowed_s:.1f} s are possible", costly=True)
        elif compiled:
            self.phase = Phase.READY
        else:
            self.phase = Phase.ENDED if reply.state == State.ENDED else Phase.GOES
            self.mask = reply.mask


class _Asked(NamedTuple):
    """An operation that is not answered yet; `grammar` is None for the vocabulary and for closing."""

    number: int
    operation: str
    grammar: FollowedGrammar | None


def grammar_of(params: Mapping[str, Any]) -> tuple[str, str] | None:
    """(kind, text) of a job's grammar; a schema as JSON text."""
    for kind in KINDS:
        if kind in params:
            value = params[kind]
            return kind, value if isinstance(value, str) else _json(value)
    return None


def _json(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)


class GrammarClient:
    """The grammars of one session, and the process that follows them while there are any."""

    def __init__(self, model: LlamaModel) -> None:
        self._model = model
        self._channel: socket.socket | None = None
        self._pid = 0
        self._numbers = 0
        self._grammars: dict[int, FollowedGrammar] = {}
        self._asked: deque[_Asked] = deque(maxlen=2 * ASKED)
        self._out = bytearray()
        self._in = bytearray()
        self._head_s = 0.0
        self._head_cpu_s: float | None = None
        self._spent: dict[str, tuple[float, float]] = {}
        self._words: bytes | None = None
        self._reader: threading.Thread | None = None

    @property
    def process(self) -> int:
        """The process's id; 0 while there is none."""
        return self._pid if self._channel is not None else 0

    def begin(self, kind: str, text: str, client: str = "") -> FollowedGrammar:
        """Have a grammar of a client compiled. Raises BackendMissing where llguidance is not installed, BackendError
        when too much waits."""
        if self._channel is None and importlib.util.find_spec("llguidance") is None:
            raise BackendMissing(
                "this worker follows no json_schema, regex or grammar: llguidance cannot be imported",
                "llamacpp",
                "install edge-agent with its extra llamacpp",
            )
        if len(self._asked) >= ASKED or len(self._grammars) >= ASKED:
            raise BackendError(f"{ASKED} operations of grammars wait in this worker already", kind)
        self._numbers += 1
        grammar = FollowedGrammar(self._numbers, kind, text, client)
        self._grammars[grammar.number] = grammar
        self._compile_next()
        return grammar

    def open(self, grammar: FollowedGrammar) -> None:
        """Begin the answer of a compiled grammar; its first mask comes."""
        grammar.awaits()
        self._ask("open", grammar, grammar.number, grammar.kind, grammar.text, list(grammar.tokens))

    def take(self, grammar: FollowedGrammar, token: int) -> None:
        """Take a token into the answer; the next mask comes."""
        grammar.awaits(token)
        self._ask("take", grammar, grammar.number, token)

    def close(self, grammar: FollowedGrammar) -> None:
        """Forget a grammar."""
        if self._grammars.pop(grammar.number, None) is not None and self._channel is not None:
            self._ask("close", None, grammar.number)

    def end(self) -> None:
        """End the process; what was open is forgotten."""
        self._grammars.clear()
        self._bury()
        if self._reader is not None:
            self._reader.join()  # it reads the model, which is freed next

    def pump(self, wait_s: float) -> None:
        """Send what waits and read what has come, waiting at most so many seconds for something to come."""
        if not self._asked:
            return
        if self._channel is None:
            self._start(wait_s)
            if self._channel is None:
                return
        if self._moved(wait_s):
            while self._asked and self._moved(0.0):
                pass
        elif self._asked and time.monotonic() - self._head_s > (START_S if self._starting() else HEAD_S):
            self._died(endless=True)
        elif self._head_cpu_s is None and time.monotonic() - self._head_s > min(LOOK_S, HEAD_S / 2):
            self._head_cpu_s = _cpu_s(self._pid)

    def _starting(self) -> bool:
        return self._asked[0].operation == "vocabulary"

    def _ask(self, operation: str, grammar: FollowedGrammar | None, *values: Any) -> None:
        self._numbers += 1
        if not self._asked:
            self._head_s, self._head_cpu_s = time.monotonic(), None
        self._asked.append(_Asked(self._numbers, operation, grammar))
        if self._channel is not None:
            self._post(self._numbers, operation, *values)
            self._sent(self._channel)

    def _compile_next(self) -> None:
        """Have the next grammar compiled, unless one is."""
        if any(one.operation == "check" for one in self._asked):
            return
        waiting = [one for one in self._grammars.values() if one.phase is Phase.CHECKED]
        if waiting:
            now_s = time.monotonic()
            grammar = min(waiting, key=lambda one: (self._spent_s(one.client, now_s), one.number))
            self._ask("check", grammar, grammar.kind, grammar.text)

    def _spent_s(self, client: str, now_s: float) -> float:
        spent_s, at_s = self._spent.get(client, (0.0, now_s))
        return max(0.0, spent_s - CLIENT_SHARE * (now_s - at_s))

    def _charge(self, grammar: FollowedGrammar, cpu_s: float) -> None:
        """Hold the cost of compiling against the client, also where each of its grammars alone is cheap enough."""
        now_s = time.monotonic()
        spent_s = self._spent_s(grammar.client, now_s) + cpu_s
        self._spent.pop(grammar.client, None)
        self._spent[grammar.client] = (spent_s, now_s)
        while len(self._spent) > CLIENTS_KEPT:
            del self._spent[min(self._spent, key=lambda client: self._spent_s(client, now_s))]
        if grammar.client and spent_s > CLIENT_S:
            took = f"grammars of this client took {spent_s:.1f} s of computing lately"
            grammar.hold_against_client(f"{took}; {CLIENT_S:g} s are possible")

    def _bar(self, guilty: FollowedGrammar) -> None:
        """End what else a client follows, when one of its grammars cost too much."""
        if guilty.costly and guilty.client:
            for one in self._grammars.values():
                if one.client == guilty.client:
                    one.fail("another grammar of this client cost too much", costly=False)

    def _post(self, *frame: Any) -> None:
        data = marshal.dumps(frame)
        self._out += LENGTH.pack(len(data)) + data

    def _moved(self, wait_s: float) -> bool:
        """Whether something was sent or read."""
        channel = self._channel
        if channel is None:
            return False
        if wait_s > 0.0:
            select.select([channel], [channel] if self._out else [], [], wait_s)
        moved = bool(self._out) and self._sent(channel)
        try:
            data = channel.recv(RECEIVED)
        except BlockingIOError:
            return moved
        except OSError:
            data = b""
        if not data:
            self._died()
            return True
        self._in += data
        while (frame := self._frame()) is not None:
            self._answered(MaskReply(*frame))
        return True

    def _sent(self, channel: socket.socket) -> bool:
        try:
            count = channel.send(self._out)
        except OSError:  # full, or closed, which reading tells
            return False
        del self._out[:count]
        return count > 0

    def _frame(self) -> tuple[Any, ...] | None:
        if len(self._in) < LENGTH.size:
            return None
        stop = LENGTH.size + LENGTH.unpack_from(self._in)[0]
        if len(self._in) < stop:
            return None
        found = marshal.loads(bytes(self._in[LENGTH.size : stop]))  # noqa: S302 (from the process that this one started)
        del self._in[:stop]
        return tuple(found)

    def _answered(self, reply: MaskReply) -> None:
        asked = self._asked.popleft()
        self._head_s, self._head_cpu_s = time.monotonic(), None
        grammar = asked.grammar
        if grammar is not None:
            if grammar.number in self._grammars:
                grammar.take_reply(reply, compiled=asked.operation == "check")
            if asked.operation == "check":  # not "open": after another's fault that is no cost of this client
                self._charge(grammar, reply.cpu_s)
            self._bar(grammar)
        if asked.operation == "check":  # the only operation that the next one to compile waits for
            self._compile_next()

    def _start(self, wait_s: float) -> None:
        """Start the process. The vocabulary is read by a thread: that takes a second on a board."""
        if self._words is None:
            if self._reader is None:
                self._reader = threading.Thread(target=self._read_words, name="vocabulary", daemon=True)
                self._reader.start()
            self._reader.join(wait_s)
            if self._words is None:
                return
        ours, theirs = socket.socketpair()
        command = module_command(MODULE, str(theirs.fileno()))
        theirs.set_inheritable(True)
        try:
            self._pid = os.posix_spawn(command[0], command, os.environ)
        except OSError as error:
            ours.close()
            self._fail_all(f"the process for grammars cannot be started: {error.strerror}")
            return
        finally:
            theirs.close()
        ours.setblocking(False)
        self._channel = ours
        self._out, self._in, self._head_s = bytearray(self._words), bytearray(), time.monotonic()
        self._head_cpu_s = None
        self._asked.clear()
        self._asked.append(_Asked(0, "vocabulary", None))
        self._open_again()

    def _read_words(self) -> None:
        tokens, ends = self._model.words()
        data = marshal.dumps((0, "vocabulary", tokens, ends))
        self._words = LENGTH.pack(len(data)) + data

    def _open_again(self) -> None:
        for grammar in list(self._grammars.values()):
            if grammar.phase in (Phase.AWAITED, Phase.GOES):
                self.open(grammar)
        self._compile_next()

    def _died(self, endless: bool = False) -> None:
        """The process has ended, or has to because it answers no more: the operation that it was in is at fault, unless
        somebody else ended or stopped it."""
        starting = bool(self._asked) and self._starting()
        guilty, operation = (self._asked[0].grammar, self._asked[0].operation) if self._asked else (None, "")
        before_s, now_cpu_s = self._head_cpu_s, _cpu_s(self._pid) if endless else None
        busy = before_s is not None and now_cpu_s is not None and now_cpu_s - before_s > COMPILE_S
        code = self._bury()
        if starting:
            self._fail_all(f"the process for grammars does not start ({_ending(code)})")
            return
        if guilty is not None and guilty.number in self._grammars:
            if busy:
                guilty.fail(f"the {guilty.kind} does not end", costly=True)
            elif endless or code in (-signal.SIGKILL, -signal.SIGTERM):
                guilty.interrupt()
            else:
                guilty.fail(f"the {guilty.kind} {_blame(code, operation)}", costly=True)
            self._bar(guilty)
        if any(one.phase in (Phase.CHECKED, Phase.AWAITED, Phase.GOES) for one in self._grammars.values()):
            self._start(0.0)

    def _fail_all(self, reason: str) -> None:
        self._asked.clear()
        for grammar in self._grammars.values():
            grammar.fail(reason, costly=False, blamed=False)

    def _bury(self) -> int:
        """Take the process away; its exit code, negative for a signal."""
        self._asked.clear()
        channel, self._channel = self._channel, None
        if channel is None:
            return 0
        channel.close()
        try:
            for _ in range(ENDING_LOOKS):  # with its channel closed it is ending, or was between two operations
                ended, status = os.waitpid(self._pid, os.WNOHANG)
                if ended:
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.001)
            os.kill(self._pid, signal.SIGKILL)
            _, status = os.waitpid(self._pid, 0)
        except OSError as error:
            raise BackendError(f"the process for grammars is lost: {error}", "llamacpp") from error
        return os.waitstatus_to_exitcode(status)


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _cpu_s(pid: int) -> float | None:
    """CPU seconds that a process has used; None where it cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 (pathlib costs memory for one line)
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _blame(code: int, operation: str) -> str:
    """What the grammar did, by the way in which its process ended."""
    if code == -signal.SIGPROF:
        limit = f"{TOKEN_S:g} s of computing for one token" if operation == "take" else f"{COMPILE_S:g} s to compile"
        return f"takes more than {limit}"
    if code == -signal.SIGABRT:
        return f"takes more than {MEMORY_BYTES // MIB} MiB, or breaks its parser"
    return f"breaks its parser ({_ending(code)})"
