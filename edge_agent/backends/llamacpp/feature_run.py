"""Outputs of rows for golden probes: computed without the prefix cache, in slots of their own.

A file of its own because nothing else of a session knows of rows that are measured and not continued.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.backends.api import Done, Event, Failed, feature_ids
from edge_agent.backends.encoder_session import Piece
from edge_agent.backends.llamacpp.llama_context import DecodeInput, LlamaContext
from edge_agent.backends.llamacpp.sequence_slots import SequenceSlots
from edge_agent.backends.llamacpp.step_schedule import TokenSequence, schedule_chunks
from edge_agent.base.errors import BackendError, MemoryRefused


class FeatureRun:
    """Computes micro-batches of rows without the prefix cache, so that the numbers are reproducible."""

    def __init__(self, context: Callable[[], LlamaContext], slots: SequenceSlots, cells: int) -> None:
        self._context = context
        self._slots = slots
        self._cells = cells
        self._parts: dict[str, list[npt.NDArray[np.float32]]] = {}

    def run(self, pieces: list[Piece], batch: int) -> list[Event]:
        """The jobs that are complete with these pieces, or failed."""
        started_s = time.monotonic()
        sequences = []
        for piece in pieces:
            for row in piece.rows:
                # No adapter has the owner -1, so no cached prefix is found and the slot is overwritten.
                place = self._slots.take(-1, row)
                self._slots.clear(place.slot)
                job = piece.job
                sequences.append(TokenSequence(job.job_id, job.adapter, "", place.slot, list(row), len(row), 0))
        try:
            rows = self._compute(sequences, batch)
        except BackendError as error:
            self._parts.clear()
            short = isinstance(error, MemoryRefused)
            return [Failed(piece.job.job_id, error.what, short_of_memory=short) for piece in pieces]
        finally:
            for sequence in sequences:
                self._slots.leave(sequence.slot)
            self._slots.sweep(self._context().cut)
        return self._events(pieces, rows, time.monotonic() - started_s)

    def forget(self, job_id: str) -> None:
        """Drop the rows of a job that was cancelled between its pieces."""
        self._parts.pop(job_id, None)

    def _compute(self, sequences: list[TokenSequence], batch: int) -> list[npt.NDArray[np.float32]]:
        context = self._context()
        found: dict[int, npt.NDArray[np.float32]] = {}
        for sequence in sequences:
            context.cut(sequence.slot, 0)
        self._slots.make_room(sum(len(sequence.tokens) for sequence in sequences), self._cells, context.cut)
        while len(found) < len(sequences):
            chunks = schedule_chunks([sequence for sequence in sequences if sequence.pending], batch, batch)
            parts = [
                DecodeInput(
                    one.sequence.slot,
                    one.sequence.cached,
                    one.sequence.tokens[one.sequence.cached : one.stop],
                    one.last,
                )
                for one in chunks
            ]
            context.decode(parts)
            place = -1
            for chunk, part in zip(chunks, parts, strict=True):
                place += len(part.tokens)
                chunk.sequence.cached = chunk.stop
                if chunk.last:
                    logits = context.logits(place)
                    ids = feature_ids(len(logits))
                    found[chunk.sequence.slot] = logits[ids.start : ids.stop : ids.step].copy()
        return [found[sequence.slot] for sequence in sequences]

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
