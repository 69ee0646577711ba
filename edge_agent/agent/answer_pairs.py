"""One request that two versions of a model compute: what is kept of it, and what both answers have in common.

A file of its own because it knows neither workers nor the course of a trial (`trial_run`).
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edge_agent.core.job import Job
from edge_agent.core.version_trial import Pair
from edge_agent.protocol.worker_messages import JobWork

COPIES = 16
"""Requests of each kind that wait to be computed by the other version; the oldest of the client that holds most is
dropped first."""
CLIENTS = 256
"""Of so many it is known how much of theirs was compared; then all begin anew."""
SAME_COSINE = 0.99
"""Embeddings that agree: retrieval ranks hardly differ above it (cosine of the two versions' vectors)."""


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """A request that one version has answered, with its answer; `alone`: nothing else was computed meanwhile. `heat_c`:
    the board's temperature then."""

    client: str
    work: JobWork = field(repr=False)
    rows: int
    results: Sequence[Mapping[str, Any]] = field(repr=False)
    compute_ms: float
    alone: bool
    joules: float | None
    heat_c: float | None


class WaitingCopies:
    """At most `COPIES` requests, shared between clients as the queue is: a client that asks without pause would
    otherwise decide alone what the new version is judged by. Clients are told apart by their reply topics."""

    def __init__(self) -> None:
        self._waiting: deque[Copy] = deque(maxlen=COPIES + 1)
        self._taken: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, copy: Copy) -> None:
        """One more; of more than `COPIES` one is dropped."""
        self._waiting.append(copy)
        if len(self._waiting) > COPIES:
            held = Counter(one.client for one in self._waiting)
            self._waiting.remove(max(self._waiting, key=lambda one: held[one.client]))  # of equal ones the oldest

    def has_room(self, client: str, others: int = 0) -> bool:
        """Whether one more of this client drops none of its own, nor of who holds as few; `others`: that will come."""
        if len(self._waiting) + others < COPIES:
            return True
        held = Counter(one.client for one in self._waiting)
        return held[client] + 1 < max(held.values(), default=0)

    def take(self) -> Copy:
        """The oldest of the client of which least was taken. Raises ValueError where there is none."""
        copy = min(self._waiting, key=lambda one: self._taken[one.client])
        self._waiting.remove(copy)
        if len(self._taken) > CLIENTS:
            self._taken.clear()
        self._taken[copy.client] += 1
        return copy

    def clear(self) -> None:
        """Forget all: they hold texts."""
        self._waiting.clear()


def compare(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> bool:
    """Whether two answers to one request say the same: of every text the label, the spans, the text, or nearly the
    vector."""
    return len(old) == len(new) and all(_same(one, other) for one, other in zip(old, new, strict=True))


def _same(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if "embedding" in old:
        one, other = old["embedding"], new.get("embedding", ())
        return len(one) == len(other) and sum(map(float.__mul__, map(float, one), map(float, other))) >= SAME_COSINE
    if "spans" in old:
        return _places(old) == _places(new)
    return all(old.get(key) == new.get(key) for key in ("label", "text", "answer", "start") if key in old)


def _places(answer: Mapping[str, Any]) -> list[tuple[Any, ...]] | None:
    """The labelled places of a text, without their scores; None for an answer that has none."""
    spans = answer.get("spans")
    return None if spans is None else [(span["label"], span["start"], span["end"]) for span in spans]


def score(results: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean top score of an answer; None for a task without scores."""
    found = [float(one["score"]) for one in results if isinstance(one.get("score"), (int, float))]
    return sum(found) / len(found) if found else None


def pair(old: Copy, new: Copy) -> Pair:
    """Both answers to one request."""
    return Pair(
        None,
        compare(old.results, new.results),
        old.compute_ms if old.alone and new.alone else None,
        new.compute_ms,
        score(old.results),
        score(new.results),
        old.joules if old.alone and new.alone else None,
        new.joules,
        old.heat_c,
        new.heat_c,
    )


def is_comparable(job: Job) -> bool:
    """Sampled text differs by chance, and of a stream only the rest of the text is here."""
    return not job.params.get("temperature") and not job.stream


def draw(job: Job) -> float:
    """A number from 0 to 1 that depends on the request's key alone: a repeated request meets the same version."""
    digest = hashlib.blake2b("\0".join(job.key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def work_of(job: Job) -> JobWork:
    """The request as it crosses to a child, in one piece. It is its client's there, too: what a worker bounds by client
    (grammars) would else be used up by one for all."""
    texts = () if job.messages else job.texts
    return JobWork(job.job_id, job.adapter, job.params, texts, job.messages, job.key[0])
