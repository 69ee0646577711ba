"""The life of a request on this device, as one transition table.

Rules for whoever changes it:
- A job is answered on the way into DONE, FAILED, REFUSED or CANCELLED, and only there; EXPIRED is silent, because
  an answer after the deadline is worse than none (the client has given up).
- RUNNING may return to QUEUED only when its worker died, and only once: see `MAX_ATTEMPTS`.
- Nothing leaves a final state.

This file does not decide when a transition happens; `admission`, `scheduler` and the agent do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class JobState(Enum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


FINAL = frozenset({JobState.DONE, JobState.FAILED, JobState.REFUSED, JobState.CANCELLED, JobState.EXPIRED})
TRANSITIONS: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset(
        {JobState.RUNNING, JobState.FAILED, JobState.REFUSED, JobState.CANCELLED, JobState.EXPIRED}
    ),
    JobState.RUNNING: frozenset(
        {JobState.DONE, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.QUEUED}
    ),
    **{state: frozenset() for state in FINAL},
}
# A job that was inside two workers when they died is answered with 500: it may be what kills them.
MAX_ATTEMPTS = 2


@dataclass(slots=True, eq=False)
class Job:
    """A request that was accepted.

    `key` is (client, request id); times are monotonic seconds; `message_bytes` is the body it came in, `fingerprint`
    tells its contents from others under the same key, `wire_chars` about what it takes in a frame to the worker: texts,
    parameters and names (counted once: a queue asks often). `messages` is a conversation, whose words also stand in the
    one text. `parts` counts what was sent of a streamed answer: such a job cannot begin anew. `again` tells it from an
    earlier job of the same key that its worker has not dropped yet. `origin` is what the answer needs (the request as
    it arrived); nothing in `core` looks into it.
    """

    key: tuple[str, str]
    model: str
    adapter: str | None
    texts: Sequence[str] = field(repr=False)
    params: Mapping[str, object] = field(repr=False)
    priority: int
    deadline_s: float
    received_s: float
    message_bytes: int = 0
    fingerprint: bytes = b""
    wire_chars: int = field(init=False, repr=False)
    origin: Any = field(repr=False, default=None)
    state: JobState = JobState.QUEUED
    attempts: int = 0
    started_s: float | None = None
    messages: Sequence[Mapping[str, str]] = field(repr=False, default=())
    stream: bool = False
    parts: int = 0
    again: int = 0

    def __post_init__(self) -> None:
        self.wire_chars = self.size_bytes + len(str(self.params)) + len(self.job_id) + 64

    @property
    def rows(self) -> int:
        """Texts in it."""
        return len(self.texts)

    @property
    def size_bytes(self) -> int:
        """Length of all texts, in characters, which stand for bytes: what the cost model goes by."""
        return sum(map(len, self.texts))

    @property
    def job_id(self) -> str:
        """The name of this job towards a worker; unique among the jobs inside it (see `again`)."""
        name = f"{self.key[0]}/{self.key[1]}"
        return f"{name} ({self.again})" if self.again else name

    def to(self, state: JobState) -> None:
        """Move to `state`. Raises ValueError for a move that the table does not have."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"a {self.state.value} job cannot become {state.value}")
        self.state = state

    def start(self, now_s: float) -> None:
        """It is handed to a worker."""
        self.to(JobState.RUNNING)
        self.attempts += 1
        self.started_s = now_s
