"""The request table: which requests are open, and which answers were given, so that a retry is idempotent.

A request is known by (client, request id) until `GRACE_S` after its deadline. The margin is needed because a message
that is delivered again may carry a later deadline: MQTT counts its message expiry in whole seconds. A duplicate of an
open request is ignored, since its answer will be sent. A duplicate of an answered request gets the same answer again
without being computed, while that answer is held; afterwards it is ignored and never computed twice. A refusal that
names a time to ask again is known until that time.

The bytes of held answers and the number of closed keys are bounded. When there are too many, the client that has most
loses the keys that would be forgotten first, whose retries are the least likely to come: one client's requests cannot
make the device forget another's. Deadlines do not arrive in order, so closed keys are in a heap ordered by the time at
which they are forgotten.

This module keeps no queue and decides nothing about order (see `scheduler`).
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, OrderedDict
from enum import Enum

from edge_agent.base.limits import DEDUP_ENTRIES, MIB
from edge_agent.core.job import FINAL, Job

Key = tuple[str, str]
ANSWERS_BYTES = 1 * MIB
GRACE_S = 2.0


class RequestStatus(Enum):
    """What is known of a request key. TAKEN: an open request with other contents has the same key."""

    NEW = "new"
    OPEN = "open"
    ANSWERED = "answered"
    TAKEN = "taken"


class RequestTable:
    """The open jobs by key, and the keys of closed jobs until they are forgotten."""

    def __init__(self, max_entries: int = DEDUP_ENTRIES, max_answer_bytes: int = ANSWERS_BYTES) -> None:
        self._open: dict[Key, Job] = {}
        self._forget_s: dict[Key, float] = {}
        self._by_time: list[tuple[float, Key]] = []
        self._keys_of: dict[str, dict[Key, None]] = {}
        # By client, the oldest first.
        self._answers: dict[str, OrderedDict[Key, bytes]] = {}
        self._answer_bytes_of: Counter[str] = Counter()
        self._max_entries = max_entries
        self._max_answer_bytes = max_answer_bytes
        self._answer_bytes = 0
        self._held_bytes = 0
        self._fingerprints: dict[Key, bytes] = {}

    def status(self, key: Key, now_s: float, fingerprint: bytes = b"") -> RequestStatus:
        """What is known of a request with this key and the fingerprint of its contents.

        An answered key with other contents counts as new: a client never gets the answer to a different request.
        """
        self._forget(now_s)
        job = self._open.get(key)
        if job is not None:
            return RequestStatus.OPEN if job.fingerprint == fingerprint else RequestStatus.TAKEN
        same = key in self._forget_s and self._fingerprints.get(key, b"") == fingerprint
        return RequestStatus.ANSWERED if same else RequestStatus.NEW

    def answer(self, key: Key) -> bytes | None:
        """The answer given under this key; None where it is not held (any longer)."""
        return self._answers[key[0]].get(key) if key[0] in self._answers else None

    def open(self, job: Job) -> None:
        """Add an accepted job. Raises ValueError if its key is open already."""
        if job.key in self._open:
            raise ValueError(f"{job.key} is open already")
        self._open[job.key] = job
        self._held_bytes += job.message_bytes

    def close(self, job: Job, answer: bytes | None, until_s: float = math.inf) -> bool:
        """Close a job in a final state; True exactly once per job. Raises ValueError in any other state.

        `answer` is held for retries; with None only the key is remembered. `until_s`: from then on the same request is
        a new one, although its deadline has not passed.
        """
        if job.state not in FINAL:
            raise ValueError(f"a {job.state.value} job cannot be closed")
        # Compared by identity: another job may have the same key by now.
        if self._open.get(job.key) is not job:
            return False
        del self._open[job.key]
        self._held_bytes -= job.message_bytes
        self.remember(job.key, min(job.deadline_s + GRACE_S, until_s), answer, job.fingerprint)
        return True

    def remember(self, key: Key, forget_s: float, answer: bytes | None, fingerprint: bytes = b"") -> None:
        """Hold an answer until `forget_s`; also for a request that was refused at once and never became a job."""
        self._drop(key)
        client = key[0]
        self._forget_s[key] = forget_s
        self._fingerprints[key] = fingerprint
        self._keys_of.setdefault(client, {})[key] = None
        heapq.heappush(self._by_time, (forget_s, key))
        # A single answer may use an eighth of the bytes, so that one large answer does not push out all others.
        if answer is not None and len(answer) <= self._max_answer_bytes // 8:
            self._answers.setdefault(client, OrderedDict())[key] = answer
            self._count_bytes(client, len(answer))
        while len(self._forget_s) > self._max_entries:
            self._drop_of_largest()
        while self._answer_bytes > self._max_answer_bytes:
            largest, _ = self._answer_bytes_of.most_common(1)[0]
            self._drop_answer(next(iter(self._answers[largest])))
        # Keys that were remembered again leave outdated places in the heap: rebuild it before they outnumber the rest.
        if len(self._by_time) > 2 * self._max_entries:
            self._by_time = [(time_s, known) for known, time_s in self._forget_s.items()]
            heapq.heapify(self._by_time)

    def forget(self, key: Key) -> None:
        """Know nothing of a closed key any more: asked again, the request is decided anew."""
        self._drop(key)

    def get(self, key: Key) -> Job | None:
        """The open job of that key."""
        return self._open.get(key)

    def open_jobs(self) -> tuple[Job, ...]:
        """All open jobs, oldest first."""
        return tuple(self._open.values())

    def open_of(self, client: str) -> tuple[int, int]:
        """(open jobs, bytes of their message bodies) of a client."""
        own = [job.message_bytes for (owner, _), job in self._open.items() if owner == client]
        return len(own), sum(own)

    @property
    def closed_count(self) -> int:
        """Number of closed keys that are still known."""
        return len(self._forget_s)

    @property
    def held_bytes(self) -> int:
        """Bytes of the message bodies of all open jobs."""
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
        # A key that was remembered again has two places in the heap; only the one with its current time counts.
        if self._forget_s.get(key) == forget_s:
            self._drop(key)

    def _drop_of_largest(self) -> None:
        """Forget a sixteenth of the keys of the client that has most: sorting them for each one would cost too much."""
        keys = max(self._keys_of.values(), key=len)
        for key in heapq.nsmallest(max(1, len(keys) // 16), keys, key=self._forget_s.__getitem__):
            self._drop(key)

    def _drop(self, key: Key) -> None:
        client = key[0]
        self._forget_s.pop(key, None)
        self._fingerprints.pop(key, None)
        own = self._keys_of.get(client)
        if own is not None:
            own.pop(key, None)
            if not own:
                del self._keys_of[client]
        self._drop_answer(key)

    def _drop_answer(self, key: Key) -> None:
        client = key[0]
        answers = self._answers.get(client)
        if answers is not None and key in answers:
            self._count_bytes(client, -len(answers.pop(key)))
            if not answers:
                del self._answers[client]

    def _count_bytes(self, client: str, more: int) -> None:
        self._answer_bytes += more
        self._answer_bytes_of[client] += more
        if not self._answer_bytes_of[client]:
            del self._answer_bytes_of[client]
