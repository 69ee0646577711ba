"""The life of a request on this device, as one transition table.

Rules of the table:
- A job is answered when it becomes DONE, FAILED, REFUSED or CANCELLED, and only then. EXPIRED sends no answer: after
  the deadline the client no longer waits for one.
- RUNNING returns to QUEUED only when the worker died, and only once (`MAX_ATTEMPTS`), or when a version on trial did
  not answer it, which does not count.
- A final state has no transition.

This module does not decide when a transition happens; `admission`, `scheduler` and the agent do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from edge_agent.base.texts import Text, characters


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
# A job inside two workers that died is answered with 500, because it may be the cause.
MAX_ATTEMPTS = 2


@dataclass(slots=True, eq=False)
class Job:
    """An accepted request.

    `key`: (client, request id). Times are monotonic seconds. `message_bytes`: size of the message body. `fingerprint`:
    digest of the contents, to recognise other contents under the same key. `wire_chars`: approximate characters in a
    frame to the worker (texts, parameters, names), computed once because the scheduler asks often. `messages`: a
    conversation; its text is also in `texts`. `parts`: parts of a streamed answer that were sent; a job with parts is
    not computed again. `again`: distinguishes the job from an earlier one with the same key that the worker has not
    dropped yet. `windows`: of a question about a long context, the rows that it is expected to be read in. `origin`:
    the request as it arrived, for the answer; `core` does not read it.
    """

    key: tuple[str, str]
    model: str
    adapter: str | None
    texts: Sequence[Text] = field(repr=False)
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
    windows: int = 0

    def __post_init__(self) -> None:
        self.wire_chars = self.size_bytes + len(str(self.params)) + len(self.job_id) + 64

    @property
    def rows(self) -> int:
        """What a worker computes for it: one for each text or pair, or its windows."""
        return self.windows or len(self.texts)

    @property
    def size_bytes(self) -> int:
        """Characters of all texts; the cost model takes them for bytes."""
        return sum(map(characters, self.texts))

    @property
    def job_id(self) -> str:
        """The job's name towards a worker, unique among the jobs inside it (see `again`)."""
        name = f"{self.key[0]}/{self.key[1]}"
        return f"{name} ({self.again})" if self.again else name

    def to(self, state: JobState) -> None:
        """Change to `state`. Raises ValueError for a transition that is not in the table."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"a {self.state.value} job cannot become {state.value}")
        self.state = state

    def start(self, now_s: float) -> None:
        """The job is submitted to a worker at `now_s`."""
        self.to(JobState.RUNNING)
        self.attempts += 1
        self.started_s = now_s

    def give_back(self) -> None:
        """A version on trial did not answer the job: it waits for the version before as if it had never been taken."""
        self.to(JobState.QUEUED)
        self.attempts -= 1
        self.started_s = None

    def rename(self) -> None:
        """An earlier job of the same key is still inside the worker: this one gets the next name, see `again`."""
        self.again += 1

    def sent_part(self) -> None:
        """A part of the streamed answer was sent."""
        self.parts += 1
