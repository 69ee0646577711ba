"""Jobs of an encoder in micro-batches, whatever runtime computes them: which rows go together, whose results are whose.

    JobQueue            the jobs in order of arrival, and the rows of the next micro-batch
    EncoderSession      adapters by name, batches, results by job
    EncoderGraph        what a runtime adds: a loaded graph that computes rows, each with its adapter

A graph knows nothing of jobs. Only a job with more rows than a batch may have is split: it runs in pieces, one per
step.
"""

from __future__ import annotations

import abc
import os
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from edge_agent.backends.adapter_bank import BankSpec, job_rows, parse_spec
from edge_agent.backends.api import (
    AdapterSource,
    Done,
    Event,
    Failed,
    Footprint,
    Limits,
    Session,
    SessionJob,
    check_ranges,
    checked_options,
    model_file,
)
from edge_agent.base.errors import AdapterRefused, BackendError, MemoryRefused
from edge_agent.base.limits import QUEUE_JOBS


class Piece(NamedTuple):
    """Rows `start` to `stop` of a job; `last` when the job is complete with them."""

    job: SessionJob
    start: int
    stop: int
    last: bool

    @property
    def rows(self) -> Sequence[Sequence[int]]:
        """The piece's rows of token ids."""
        return self.job.rows[self.start : self.stop]


class JobQueue:
    """First in, first out, of at most `QUEUE_JOBS` jobs: the daemon has no more requests open. A job of more rows than
    a step holds goes behind the others after each: it holds nobody up for longer than a step."""

    def __init__(self) -> None:
        self._jobs: deque[SessionJob] = deque(maxlen=QUEUE_JOBS)
        # Of jobs that have begun, by their id.
        self._done_rows: dict[str, int] = {}

    def submit(self, job: SessionJob) -> None:
        """Put a job at the end. Raises BackendError when the queue is full, where a deque would drop its first job."""
        if len(self._jobs) == QUEUE_JOBS:
            raise BackendError(f"{QUEUE_JOBS} jobs wait in this worker already", job.job_id)
        self._jobs.append(job)

    def take(self, max_rows: int, one_adapter: bool = False) -> list[Piece]:
        """The pieces of the next batch, of `max_rows` rows at most; empty when nothing waits.

        With `one_adapter` the batch ends before the first job with another adapter than the first one's.
        """
        pieces: list[Piece] = []
        free = max(1, max_rows)
        while self._jobs:
            job = self._jobs[0]
            start = self._done_rows.pop(job.job_id, 0)
            left = len(job.rows) - start
            unfit = left > free and (pieces or len(job.rows) <= max_rows)
            if unfit or (one_adapter and pieces and job.adapter != pieces[0].job.adapter):
                self._note_done(job, start)
                break
            stop = start + min(left, free)
            pieces.append(Piece(job, start, stop, stop == len(job.rows)))
            free -= stop - start
            self._jobs.popleft()
            if stop < len(job.rows):
                self._note_done(job, stop)
                self._jobs.append(job)
                break
        return pieces

    def _note_done(self, job: SessionJob, rows: int) -> None:
        if rows:
            self._done_rows[job.job_id] = rows

    def cancel(self, job_id: str) -> bool:
        """Forget a job, begun or not; True when it was here."""
        for place, job in enumerate(self._jobs):
            if job.job_id == job_id:
                del self._jobs[place]
                self._done_rows.pop(job_id, None)
                return True
        return False

    def uses(self, adapter: str) -> bool:
        """True while a job with that adapter waits."""
        return any(job.adapter == adapter for job in self._jobs)

    def clear(self) -> None:
        """Forget every job."""
        self._jobs.clear()
        self._done_rows.clear()

    def __len__(self) -> int:
        return len(self._jobs)


INPUTS = ("input_ids", "attention_mask")
"""Of every encoder's graph: int64 [rows, tokens]."""
RANGES: Mapping[str, tuple[int, int]] = {
    "max_rows": (1, 1024),
    "max_tokens": (1, 8192),
    "threads": (0, 256),
    "positions": (0, 1024),
}
"""What the options of a load may be. threads 0: one per core; positions 0: as many of the adapter bank as rows."""
_NO_MEMORY = re.compile(r"bad_alloc|fail\w* to allocate|bfc_arena|out of memory", re.IGNORECASE)
# Characters that are shown of a runtime's text at each of its ends.
_WORDS = 150
# Of the vocabulary; Python refuses to read some thousand digits.
_COUNT_DIGITS = 9


class AttachedAdapters(Protocol):
    """The adapters that are resident in a graph's bank."""

    def attach(self, source: AdapterSource) -> int:
        """Read and keep an adapter, in place of one of that name; returns its bytes. Raises AdapterRefused."""
        ...

    def detach(self, name: str) -> None:
        """Forget an adapter; unknown names are no error."""
        ...

    def labels(self, name: str) -> int:
        """The outputs of a resident adapter's head: labels, or classes of every token."""
        ...

    def of_tokens(self, name: str) -> bool:
        """Whether a resident adapter's head reads every token."""
        ...

    def __contains__(self, name: object) -> bool: ...

    @property
    def size_bytes(self) -> int:
        """Bytes that the adapters and the bank take in this process."""
        ...


class EncoderGraph(abc.ABC):
    """A loaded encoder. Used by one thread."""

    path: str
    """The model's file, for messages."""
    base_id: str
    """What adapters must have been trained on; '' where nothing says it."""
    table_rows: int
    """Rows of the table that token ids are looked up in; 0 where nothing says it."""
    adapters: AttachedAdapters | None
    """None: the graph has no bank."""
    computed_by: str = ""
    """See `Session.computed_by`."""

    @property
    def unproven(self) -> bool:
        """See `Session.unproven`."""
        return False

    def judge(self, passed: bool) -> None:
        """See `Session.judge`."""
        return

    @abc.abstractmethod
    def compute(self, rows: Sequence[Sequence[int]], adapters: Sequence[str | None]) -> dict[str, Any]:
        """Arrays by name whose first axis are the rows, in their order: 'features', perhaps 'logits', which may have
        tokens as a second axis; with a bank also 'token_logits', those of the heads that read tokens. Row i uses
        `adapters[i]`, None for the base alone. Raises BackendError where the runtime cannot."""

    @abc.abstractmethod
    def use_threads(self, threads: int) -> None:
        """Compute with so many threads of the processor from now on."""

    @abc.abstractmethod
    def footprint(self) -> Footprint:
        """Bytes held by the graph and its adapters."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free everything."""


def load_encoder(
    backend: str,
    given: tuple[Mapping[str, str], Mapping[str, Any]],
    defaults: Mapping[str, Any],
    load: Callable[[str, Mapping[str, Any]], EncoderGraph],
) -> EncoderSession:
    """What `Backend.load` is for an encoder: `given` are its files and options, checked; `load` is the runtime's."""
    files, options = given
    checked = checked_options(options, defaults, backend)
    check_ranges(checked, RANGES, backend)
    return EncoderSession(load(model_file(files, backend), checked), checked["max_rows"], checked["max_tokens"])


class GraphMetadata(NamedTuple):
    """What `edge-forge export` wrote into a graph, see `EncoderGraph`. `bank` None: it takes no adapters."""

    base_id: str
    table_rows: int
    bank: BankSpec | None


def read_graph_metadata(texts: Mapping[str, str], wanted_base_id: str, path: str) -> GraphMetadata:
    """From the graph's metadata texts. Raises BackendError where it is of another base than wanted ('' for any), or
    describes a bank that is not known here."""
    base_id = texts.get("edge.base_id", "").strip('"')
    if wanted_base_id and base_id and wanted_base_id != base_id:
        raise BackendError(f"the graph is of base {base_id}, {wanted_base_id} was asked for", path)
    rows, bank = texts.get("edge.vocabulary", "0"), texts.get("edge.bank")
    return GraphMetadata(
        wanted_base_id or base_id,
        int(rows) if rows.isdecimal() and len(rows) <= _COUNT_DIGITS else 0,
        None if bank is None else parse_spec(bank),
    )


def padded(rows: Sequence[Sequence[int]], order: Sequence[int]) -> dict[str, Any]:
    """The inputs of a batch whose row i is `rows[order[i]]`, each as long as the longest."""
    import numpy

    shape = (len(rows), max(len(row) for row in rows))
    ids, mask = numpy.zeros(shape, numpy.int64), numpy.zeros(shape, numpy.int64)
    for place, row in enumerate(order):
        ids[place, : len(rows[row])] = rows[row]
        mask[place, : len(rows[row])] = 1
    return dict(zip(INPUTS, (ids, mask), strict=True))


def in_order_of_rows(outputs: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Copies of a batch's outputs in the order of the rows, where batch row i is row `order[i]`."""
    import numpy

    back = numpy.empty(len(order), numpy.int64)
    back[list(order)] = numpy.arange(len(order))
    return {name: value[back] for name, value in outputs.items()}


def runtime_error(runtime: str, what: str, error: BaseException, path: str) -> BackendError:
    """A runtime's exception as ours: "<runtime> <what>: <its words>".

    The runtimes have no class for a failed allocation. Their words and those of C++ are the sign, and say nothing that
    the reader of the error could use. LiteRT's texts pile up, the newest is the last.
    """
    words = " ".join(str(error).split())
    if isinstance(error, MemoryError) or _NO_MEMORY.search(words):
        return MemoryRefused(f"{runtime} got less memory than it asked for")
    if len(words) > 2 * _WORDS:
        words = f"{words[:_WORDS]} ... {words[-_WORDS:]}"
    return BackendError(f"{runtime} {what}: {words}", path)


def cores() -> int:
    """Of the processor, that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_bytes() -> int:
    """Resident bytes of this process; 0 where the kernel does not tell."""
    try:
        with open("/proc/self/statm") as stream:  # noqa: PTH123 (pathlib costs memory for one line)
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


class EncoderSession(Session):
    """One graph and the jobs inside it. `max_rows` and `max_tokens` are the largest batch."""

    def __init__(self, graph: EncoderGraph, max_rows: int, max_tokens: int) -> None:
        self._graph = graph
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self.computed_by = graph.computed_by
        self._queue = JobQueue()
        self._parts: dict[str, list[Done]] = {}

    def attach(self, adapter: AdapterSource) -> int:
        """See `Session.attach`."""
        if self._graph.adapters is None:
            raise AdapterRefused(
                "this model takes no adapters: its graph has no bank",
                adapter.name,
                "use the base's package, or a merged model of its own",
            )
        if self._graph.base_id and adapter.base_id != self._graph.base_id:
            raise AdapterRefused(
                f"adapter {adapter.name!r} was trained on base {adapter.base_id or '(none)'}, "
                f"this is {self._graph.base_id}",
                adapter.path,
                "train it on this base",
            )
        if not adapter.name or self._queue.uses(adapter.name):
            raise AdapterRefused("an adapter needs a name that no queued job uses", adapter.name)
        return self._graph.adapters.attach(adapter)

    def detach(self, name: str) -> None:
        """See `Session.detach`."""
        if self._graph.adapters is not None:
            self._graph.adapters.detach(name)

    def submit(self, job: SessionJob) -> None:
        """See `Session.submit`."""
        if job.adapter is not None and (self._graph.adapters is None or job.adapter not in self._graph.adapters):
            raise AdapterRefused(f"adapter {job.adapter!r} is not attached", self._graph.path)
        if not job.rows:
            raise BackendError("a job without rows cannot run", job.job_id)
        for row in job.rows:
            if not 0 < len(row) <= self._max_tokens:
                raise BackendError(
                    f"a row has {len(row)} tokens, 1 to {self._max_tokens} are possible",
                    job.job_id,
                )
            if self._graph.table_rows and not 0 <= max(row) < self._graph.table_rows:
                raise BackendError(
                    f"the tokenizer gave id {max(row)}, the model's table has {self._graph.table_rows} rows", job.job_id
                )
        self._queue.submit(job)

    def step(self, limits: Limits) -> list[Event]:
        """See `Session.step`: one micro-batch."""
        pieces = self._queue.take(min(limits.max_rows, self._max_rows))
        if not pieces:
            return []
        self._graph.use_threads(limits.threads)
        try:
            return self._computed(pieces)
        except BackendError as error:
            if len(pieces) > 1:
                return [event for piece in pieces for event in self._alone(piece)]
            return [self._failed(pieces[0], error)]

    def _computed(self, pieces: Sequence[Piece]) -> list[Event]:
        """Run a batch. Raises BackendError where the runtime cannot."""
        started_s = time.monotonic()
        rows = [row for piece in pieces for row in piece.rows]
        names = job_rows([piece.job.adapter for piece in pieces], [len(piece.rows) for piece in pieces])
        outputs = self._graph.compute(rows, names)
        return self._events(pieces, outputs, time.monotonic() - started_s)

    def _alone(self, piece: Piece) -> list[Event]:
        """Run one piece of a batch that failed. The runtime names no row, so the pieces are tried one by one."""
        try:
            return self._computed([piece])
        except BackendError as error:
            return [self._failed(piece, error)]

    def _failed(self, piece: Piece, error: BackendError) -> Failed:
        self.cancel(piece.job.job_id)
        return Failed(piece.job.job_id, error.what, short_of_memory=isinstance(error, MemoryRefused))

    def cancel(self, job_id: str) -> bool:
        """See `Session.cancel`."""
        self._parts.pop(job_id, None)
        return self._queue.cancel(job_id)

    @property
    def unproven(self) -> bool:
        """See `Session.unproven`."""
        return self._graph.unproven

    def judge(self, passed: bool) -> None:
        """See `Session.judge`."""
        self._graph.judge(passed)

    def footprint(self) -> Footprint:
        """See `Session.footprint`."""
        return self._graph.footprint()

    def close(self) -> None:
        """See `Session.close`."""
        self._queue.clear()
        self._parts.clear()
        self._graph.close()

    def _events(self, pieces: Sequence[Piece], outputs: Mapping[str, Any], compute_s: float) -> list[Event]:
        events: list[Event] = []
        total = sum(len(piece.rows) for piece in pieces)
        first = 0
        for piece in pieces:
            rows = slice(first, first + len(piece.rows))
            first = rows.stop
            found = self._of_job(piece.job, {name: value[rows] for name, value in outputs.items()})
            if "logits" in found and found["logits"].ndim == 3:
                found["logits"] = _of_tokens(found["logits"], piece.rows)
            done = Done(piece.job.job_id, found, compute_s, total)
            if not all(_finite(value) for value in found.values()):
                self.cancel(piece.job.job_id)
                events.append(Failed(piece.job.job_id, "the model gave values that are not finite"))
            elif not piece.last:
                self._parts.setdefault(piece.job.job_id, []).append(done)
            else:
                events.append(_joined([*self._parts.pop(piece.job.job_id, []), done]))
        return events

    def _of_job(self, job: SessionJob, outputs: dict[str, Any]) -> dict[str, Any]:
        """Logits of the adapter's head, cut to its labels; the base alone of a banked graph has none."""
        adapters = self._graph.adapters
        if adapters is not None:
            logits, of_tokens = outputs.pop("logits"), outputs.pop("token_logits", None)
            if job.adapter is not None:
                own = of_tokens if adapters.of_tokens(job.adapter) else logits
                outputs["logits"] = own[..., : adapters.labels(job.adapter)]
        return outputs


def _finite(value: Any) -> bool:
    """Whether all numbers of an array, or of a list of arrays, are finite."""
    import numpy

    return all(map(_finite, value)) if isinstance(value, list) else bool(numpy.isfinite(value).all())


def _of_tokens(logits: Any, rows: Sequence[Sequence[int]]) -> list[Any]:
    """Logits of the tokens of each row [its tokens, classes]: those of padding depend on the other rows."""
    return [logits[place, : len(row)] for place, row in enumerate(rows)]


def _joined(parts: Sequence[Done]) -> Done:
    """One Done from the pieces of a job."""
    if len(parts) == 1:
        return parts[0]
    import numpy

    names = parts[0].outputs
    outputs = {
        name: [row for part in parts for row in part.outputs[name]] if isinstance(parts[0].outputs[name], list)
        else numpy.concatenate([part.outputs[name] for part in parts])
        for name in names
    }  # fmt: skip
    compute_s, rows = sum(part.compute_s for part in parts), max(part.batch_rows for part in parts)
    return Done(parts[0].job_id, outputs, compute_s, rows, len(parts))
