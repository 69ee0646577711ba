"""A backend without a runtime: its answers are computed from the token ids and the adapter's name.

The contract suite, the daemon's tests and installations without a model use it. Its options make it slow, let a job
fail, or end the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.backends.api import (
    AdapterSource,
    Backend,
    Capabilities,
    Done,
    Event,
    Failed,
    Footprint,
    Limits,
    Session,
    SessionJob,
    Unavailable,
    checked_options,
)
from edge_agent.backends.encoder_session import JobQueue, Piece
from edge_agent.base.errors import AdapterRefused, BackendError

HIDDEN = 8
# `hold_mib`: MiB to allocate and to touch, as weights would be.
# `fail_token` and `die_token` are token ids: a row that holds one fails its job, or ends the process.
DEFAULTS: dict[str, Any] = {
    "max_rows": 16,
    "max_tokens": 128,
    "threads": 0,
    "base_id": "",
    "labels": 4,
    "delay_s": 0.0,
    "hold_mib": 0,
    "fail_token": -1,
    "die_token": -1,
}


class EchoBackend(Backend):
    """Always available."""

    def probe(self) -> Capabilities | Unavailable:
        """See `Backend.probe`."""
        return Capabilities("echo", "1", ("cpu",), ("fp32",), adapters=True, mixed_adapters=True, streams=False)

    def load(self, files: Mapping[str, str], options: Mapping[str, Any]) -> Session:
        """See `Backend.load`; `files` are not read."""
        return EchoSession(checked_options(options, DEFAULTS, "echo"))


class EchoSession(Session):
    """Holds names of adapters and a queue of jobs."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._adapters: dict[str, int] = {}
        self._queue = JobQueue()
        self._parts: dict[str, list[dict[str, Any]]] = {}
        self._held = bytearray(b"\x01") * (options["hold_mib"] << 20)

    def attach(self, adapter: AdapterSource) -> int:
        """See `Session.attach`; the base ids must be equal where the session has one."""
        expected = self._options["base_id"]
        if expected and adapter.base_id != expected:
            raise AdapterRefused(
                f"adapter {adapter.name!r} is for base {adapter.base_id[:19]}, this is {expected[:19]}"
            )
        self._adapters[adapter.name] = 1 + sum(adapter.name.encode("utf-8"))
        return 0

    def detach(self, name: str) -> None:
        """See `Session.detach`."""
        self._adapters.pop(name, None)

    def submit(self, job: SessionJob) -> None:
        """See `Session.submit`."""
        if job.adapter is not None and job.adapter not in self._adapters:
            raise AdapterRefused(f"adapter {job.adapter!r} is not attached")
        if not job.rows or not all(0 < len(row) <= self._options["max_tokens"] for row in job.rows):
            raise BackendError(f"rows of 1 to {self._options['max_tokens']} tokens are needed", "echo")
        self._queue.submit(job)

    def step(self, limits: Limits) -> list[Event]:
        """See `Session.step`: the jobs in front that fit into `max_rows` together."""
        pieces = self._queue.take(min(limits.max_rows, self._options["max_rows"]))
        if not pieces:
            return []
        started_s = time.monotonic()
        if self._options["delay_s"]:
            time.sleep(self._options["delay_s"])
        rows = sum(len(piece.rows) for piece in pieces)
        events = [self._answer(piece, started_s, rows) for piece in pieces]
        return [event for event in events if event is not None]

    def cancel(self, job_id: str) -> bool:
        """See `Session.cancel`."""
        self._parts.pop(job_id, None)
        return self._queue.cancel(job_id)

    def footprint(self) -> Footprint:
        """See `Session.footprint`."""
        return Footprint(len(self._held), 0, 0, 0)

    def close(self) -> None:
        """See `Session.close`."""
        self._queue.clear()
        self._held = bytearray()
        self._parts = {}
        self._adapters = {}

    def _answer(self, piece: Piece, started_s: float, batch_rows: int) -> Event | None:
        job = piece.job
        tokens = {token for row in piece.rows for token in row}
        if self._options["die_token"] in tokens:
            os.abort()
        if self._options["fail_token"] in tokens:
            self.cancel(job.job_id)
            return Failed(job.job_id, f"asked to fail by token {self._options['fail_token']}")
        self._parts.setdefault(job.job_id, []).append(self._outputs(job, piece.rows))
        if not piece.last:
            return None
        parts = self._parts.pop(job.job_id)
        outputs = {name: [row for part in parts for row in part[name]] for name in parts[0]}
        return Done(job.job_id, outputs, time.monotonic() - started_s, batch_rows)

    def _outputs(self, job: SessionJob, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
        shift = self._adapters.get(job.adapter, 0) if job.adapter is not None else 0
        features = [_features(row, shift) for row in rows]
        outputs: dict[str, Any] = {"features": features}
        if job.adapter is not None or self._options["labels"]:
            outputs["logits"] = [row[: self._options["labels"]] for row in features]
        return outputs


def _features(row: Sequence[int], shift: int | None) -> list[float]:
    """A vector in (0, 1] that depends on every token, its place, and the adapter."""
    state = 17 + (shift or 0)
    for place, token in enumerate(row):
        state = (state * 31 + (token + 1) * (place + 7)) % 1000003
    return [((state * (index + 3)) % 997 + 1) / 998.0 for index in range(HIDDEN)]
