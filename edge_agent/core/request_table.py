"""Who asked what, and what was said: every request is answered exactly once or expires, and a retry is idempotent.

Requests are known by (client, request id) until a little after their deadline: a message that is delivered again may
carry a later one, since MQTT counts its expiry in whole seconds. A duplicate of an open request changes nothing: its
answer is on the way. A duplicate of an answered one gets the same answer again, without work, as long as that answer
is still held (the answers held are bounded in bytes); after that it is ignored, never executed twice.

Deadlines do not come in order, so closed keys lie in a heap by the time at which they are forgotten. When there are
too many, the one nearest to its deadline leaves: its retry is the least likely still to come.

The ledger keeps no queue and decides nothing about order: see `scheduler`.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from enum import Enum

from edge_agent.base.limits import DEDUP_ENTRIES, MIB
from edge_agent.core.job import FINAL, Job

Key = tuple[str, str]
ANSWERS_BYTES = 1 * MIB
GRACE_S = 2.0


class RequestStatus(Enum):
    """What is known of a request key."""

    NEW = "new"
    OPEN = "open"
    ANSWERED = "answered"
    TAKEN = "taken"


class RequestTable:
    """The open jobs by key, and the keys of closed ones until they are forgotten."""

    def __init__(self, max_entries: int = DEDUP_ENTRIES, max_answer_bytes: int = ANSWERS_BYTES) -> None:
        self._open: dict[Key, Job] = {}
        self._forget_s: dict[Key, float] = {}
        self._by_time: list[tuple[float, Key]] = []
        self._answers: OrderedDict[Key, bytes] = OrderedDict()
        self._max_entries = max_entries
        self._max_answer_bytes = max_answer_bytes
        self._answer_bytes = 0
        self._held_bytes = 0
        self._fingerprints: dict[Key, bytes] = {}

    def seen(self, key: Key, now_s: float, fingerprint: bytes = b"") -> RequestStatus:
        """Whether a request with this key and contents is new, open, or already answered; TAKEN: the key is that of
        an open request with other contents. Nobody gets the answer to a question that he did not ask."""
        self._forget(now_s)
        job = self._open.get(key)
        if job is not None:
            return RequestStatus.OPEN if job.fingerprint == fingerprint else RequestStatus.TAKEN
        same = key in self._forget_s and self._fingerprints.get(key, b"") == fingerprint
        return RequestStatus.ANSWERED if same else RequestStatus.NEW

    def answer(self, key: Key) -> bytes | None:
        """The answer given under this key, when it is still held."""
        return self._answers.get(key)

    def open(self, job: Job) -> None:
        """Take responsibility for a job. Raises ValueError when its key is open already."""
        if job.key in self._open:
            raise ValueError(f"{job.key} is open already")
        self._open[job.key] = job
        self._held_bytes += job.message_bytes

    def close(self, job: Job, answer: bytes | None) -> bool:
        """A job reached a final state; True exactly once per job. `answer` is kept for retries, None keeps the key."""
        if job.state not in FINAL:
            raise ValueError(f"a {job.state.value} job cannot be closed")
        if self._open.get(job.key) is not job:
            return False
        del self._open[job.key]
        self._held_bytes -= job.message_bytes
        self.note(job.key, job.deadline_s + GRACE_S, answer, job.fingerprint)
        return True

    def note(self, key: Key, forget_s: float, answer: bytes | None, fingerprint: bytes = b"") -> None:
        """Remember an answer, also one given at once without a job (a refusal)."""
        self._drop(key)
        self._forget_s[key] = forget_s
        self._fingerprints[key] = fingerprint
        heapq.heappush(self._by_time, (forget_s, key))
        if answer is not None and len(answer) <= self._max_answer_bytes // 8:
            self._answers[key] = answer
            self._answer_bytes += len(answer)
        while len(self._forget_s) > self._max_entries:
            self._drop_first()
        while self._answer_bytes > self._max_answer_bytes:
            self._answer_bytes -= len(self._answers.popitem(last=False)[1])
        if len(self._by_time) > 2 * self._max_entries:
            self._by_time = [(time_s, known) for known, time_s in self._forget_s.items()]
            heapq.heapify(self._by_time)

    def get(self, key: Key) -> Job | None:
        """The open job of that key."""
        return self._open.get(key)

    def open_jobs(self) -> tuple[Job, ...]:
        """All jobs not yet answered, oldest first."""
        return tuple(self._open.values())

    def open_of(self, client: str) -> tuple[int, int]:
        """How many open jobs belong to a client, and the bytes of the messages that they came in."""
        own = [job.message_bytes for (owner, _), job in self._open.items() if owner == client]
        return len(own), sum(own)

    @property
    def closed_count(self) -> int:
        """Keys of closed requests that are still known."""
        return len(self._forget_s)

    @property
    def held_bytes(self) -> int:
        """Bytes of the bodies that the open jobs came in."""
        return self._held_bytes

    @property
    def answer_bytes(self) -> int:
        """Bytes of the answers held for retries."""
        return self._answer_bytes

    def __len__(self) -> int:
        return len(self._open)

    def _forget(self, now_s: float) -> None:
        while self._by_time and self._by_time[0][0] <= now_s:
            self._drop_first()

    def _drop_first(self) -> None:
        forget_s, key = heapq.heappop(self._by_time)
        # A key that was noted anew has a second place in the heap; only the one with its present time counts.
        if self._forget_s.get(key) == forget_s:
            self._drop(key)

    def _drop(self, key: Key) -> None:
        self._forget_s.pop(key, None)
        self._fingerprints.pop(key, None)
        self._answer_bytes -= len(self._answers.pop(key, b""))
