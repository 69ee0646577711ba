"""A generator as an encoder: the logits of the next token behind each row, for golden probes and for comparisons."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.backends.api import Done, Event, Failed, feature_ids
from edge_agent.backends.llamacpp.llama_context import Context, Part
from edge_agent.backends.llamacpp.sequence_slots import Slots
from edge_agent.backends.llamacpp.step_schedule import Strand, plan
from edge_agent.backends.queue import Piece
from edge_agent.base.errors import BackendError


class FeatureRun:
    """Computes micro-batches of rows from their beginnings: no cached prefix, so that the numbers are reproducible."""

    def __init__(self, context: Callable[[], Context], slots: Slots) -> None:
        self._context = context
        self._slots = slots
        self._parts: dict[str, list[npt.NDArray[np.float32]]] = {}

    def run(self, pieces: list[Piece], batch: int) -> list[Event]:
        """The jobs that are complete with these pieces, or failed."""
        started_s = time.monotonic()
        strands = []
        for piece in pieces:
            for row in piece.rows:
                # A prefix under an owner that nobody has: whatever the slot held is overwritten.
                place = self._slots.take(-1, row)
                self._slots.clear(place.slot)
                strands.append(Strand(piece.job.job_id, piece.job.adapter, place.slot, list(row), len(row), 0))
        try:
            rows = self._compute(strands, batch)
        except BackendError as error:
            self._parts.clear()
            return [Failed(piece.job.job_id, error.what) for piece in pieces]
        finally:
            for strand in strands:
                self._slots.leave(strand.slot)
            self._slots.sweep(self._context().cut)
        return self._events(pieces, rows, time.monotonic() - started_s)

    def forget(self, job_id: str) -> None:
        """A job was cancelled between its pieces."""
        self._parts.pop(job_id, None)

    def _compute(self, strands: list[Strand], batch: int) -> list[npt.NDArray[np.float32]]:
        context = self._context()
        found: dict[int, npt.NDArray[np.float32]] = {}
        for strand in strands:
            context.cut(strand.slot, 0)
        while len(found) < len(strands):
            portions = plan([strand for strand in strands if strand.pending], batch, batch)
            parts = [
                Part(one.strand.slot, one.strand.cached, one.strand.tokens[one.strand.cached : one.stop], one.last)
                for one in portions
            ]
            context.decode(parts)
            place = -1
            for portion, part in zip(portions, parts, strict=True):
                place += len(part.tokens)
                portion.strand.cached = portion.stop
                if portion.last:
                    logits = context.logits(place)
                    ids = feature_ids(len(logits))
                    found[portion.strand.slot] = logits[ids.start : ids.stop : ids.step].copy()
        return [found[strand.slot] for strand in strands]

    def _events(self, pieces: list[Piece], rows: list[npt.NDArray[np.float32]], compute_s: float) -> list[Event]:
        events: list[Event] = []
        at = 0
        for piece in pieces:
            stop = at + len(piece.rows)
            held = self._parts.setdefault(piece.job.job_id, [])
            held.extend(rows[at:stop])
            at = stop
            if piece.last:
                outputs: dict[str, Any] = {"features": np.stack(self._parts.pop(piece.job.job_id))}
                events.append(Done(piece.job.job_id, outputs, compute_s, len(rows)))
        return events
