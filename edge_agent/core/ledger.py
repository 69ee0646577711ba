"""Who asked what, and what was said: every request is answered exactly once or expires, and a retry is idempotent.

Requests are known by (client, request id) until their deadline. A duplicate of an open request changes nothing: its
answer is on the way. A duplicate of an answered one gets the same answer again, without work, as long as that answer
is still held (the answers held are bounded in bytes); after that it is ignored, never executed twice.

The ledger keeps no queue and decides nothing about order: see `scheduler`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from edge_agent.base.limits import DEDUP_ENTRIES, MIB
from edge_agent.core.job import FINAL, Job

Key = tuple[str, str]
ANSWERS_BYTES = 1 * MIB


class Seen(Enum):
    """What is known of a request key."""

    NEW = "new"
    OPEN = "open"
    ANSWERED = "answered"


@dataclass(slots=True)
class _Closed:
    forget_s: float
    answer: bytes | None


class Ledger:
    """The open jobs by key, and the keys of closed ones until they are forgotten."""

    def __init__(self, max_entries: int = DEDUP_ENTRIES, max_answer_bytes: int = ANSWERS_BYTES) -> None:
        self._open: dict[Key, Job] = {}
        self._closed: OrderedDict[Key, _Closed] = OrderedDict()
        self._max_entries = max_entries
        self._max_answer_bytes = max_answer_bytes
        self._answer_bytes = 0

    def seen(self, key: Key, now_s: float) -> Seen:
        """Whether a request with this key is new, open, or already answered."""
        self._forget(now_s)
        if key in self._open:
            return Seen.OPEN
        return Seen.ANSWERED if key in self._closed else Seen.NEW

    def answer(self, key: Key) -> bytes | None:
        """The answer given under this key, when it is still held."""
        closed = self._closed.get(key)
        return closed.answer if closed else None

    def open(self, job: Job) -> None:
        """Take responsibility for a job. Raises ValueError when its key is open already."""
        if job.key in self._open:
            raise ValueError(f"{job.key} is open already")
        self._open[job.key] = job

    def close(self, job: Job, answer: bytes | None) -> bool:
        """A job reached a final state; True exactly once per job. `answer` is kept for retries, None keeps the key."""
        if job.state not in FINAL:
            raise ValueError(f"a {job.state.value} job cannot be closed")
        if self._open.get(job.key) is not job:
            return False
        del self._open[job.key]
        self.note(job.key, job.deadline_s, answer)
        return True

    def note(self, key: Key, forget_s: float, answer: bytes | None) -> None:
        """Remember an answer, also one given at once without a job (a refusal)."""
        if answer is not None and len(answer) > self._max_answer_bytes // 8:
            answer = None
        self._drop(key)
        self._closed[key] = _Closed(forget_s, answer)
        self._answer_bytes += len(answer or b"")
        while len(self._closed) > self._max_entries:
            self._drop(next(iter(self._closed)))
        while self._answer_bytes > self._max_answer_bytes:
            self._strip_oldest()

    def get(self, key: Key) -> Job | None:
        """The open job of that key."""
        return self._open.get(key)

    def open_jobs(self) -> tuple[Job, ...]:
        """All jobs not yet answered, oldest first."""
        return tuple(self._open.values())

    def __len__(self) -> int:
        return len(self._open)

    def _forget(self, now_s: float) -> None:
        while self._closed:
            key, closed = next(iter(self._closed.items()))
            if closed.forget_s > now_s:
                break
            self._drop(key)

    def _drop(self, key: Key) -> None:
        closed = self._closed.pop(key, None)
        if closed is not None:
            self._answer_bytes -= len(closed.answer or b"")

    def _strip_oldest(self) -> None:
        for closed in self._closed.values():
            if closed.answer is not None:
                self._answer_bytes -= len(closed.answer)
                closed.answer = None
                return
