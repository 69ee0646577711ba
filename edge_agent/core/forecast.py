"""How long a new request will take: the work ahead of it, the more urgent work that will overtake it, and its own
batch.

Pure: `admission` decides with these figures; `agent.intake` and the workload simulation ask for them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_agent.base.limits import ANSWER_TURN_S, ANSWER_WINDOWS, ANSWERS_BEYOND, DEADLINE_MAX_S
from edge_agent.base.texts import Text, parts_of, size_bytes
from edge_agent.core.job import Job
from edge_agent.core.latency import CostModel
from edge_agent.core.scheduler import Queue

LEAST_DUTY_SHARE = 0.01
"""Bounds the predicted pauses where the duty share is nearly 0."""
LOAD_TIME_CONSTANT_S = 2.0
"""Time constant of the rates in `PriorityLoad`: a burst shows after a second and has no effect after a few."""
RATES_KEPT = 256
"""Where there are more, the smaller half is dropped: those of clients that have gone."""
HIGHEST_LOAD = 0.8
"""A request can count on a fifth of the worker's time whatever the more urgent load is: its priority rises while it
waits (`scheduler.AGEING_S`)."""
_SHORTEST_S = 1e-3


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker as a new request finds it.

    `key` names model and variant for the cost model. `max_rows`, `threads`: the governor's grant; `duty_share`: the
    fraction of the time in which the model may compute. `running_s`: seconds until the current batch ends, 0 without
    one. `load_s`: seconds until the model is in memory, 0 where it is.
    """

    key: Hashable
    max_rows: int
    threads: int
    duty_share: float = 1.0
    running_s: float = 0.0
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class GeneratorLoad:
    """A generator's worker as a new request finds it.

    `first_key`, `whole_key`, `token_key` name the time to the first token, of a whole answer and of one token of it for
    the cost model.
    `sequences`: answers that it computes at once, each ending by itself. `threads`, `duty_share`, `load_s` as in
    `WorkerLoad`.
    """

    first_key: Hashable
    whole_key: Hashable
    token_key: Hashable
    sequences: int
    threads: int
    duty_share: float = 1.0
    load_s: float = 0.0


BYTES_PER_TOKEN = 4
"""Of English in the vocabulary of a BERT, in UTF-8; scripts that take three bytes a character have about a token for
each. What a question really took is charged afterwards (`Queue.charge`)."""


def expected_windows(texts: Sequence[Text], max_tokens: int, overlap: int) -> int:
    """The rows in which questions about contexts are read (`base.context_windows`), as far as bytes tell."""
    rows = 0
    for question, context in map(parts_of, texts):
        room = max(1, max_tokens - size_bytes(question) // BYTES_PER_TOKEN - 3)
        step = room - min(overlap, room // 2)
        rows += 1 + max(0, -(-(size_bytes(context) // BYTES_PER_TOKEN - room) // step))
    return min(rows, max(len(texts), ANSWER_WINDOWS))


def rows_computed(results: Sequence[Mapping[str, Any]]) -> int:
    """The rows that a worker computed for an answer."""
    return sum(int(one.get("windows", 1)) for one in results)


def wait_and_compute_s(
    queue: Queue, job: Job, costs: CostModel, load: WorkerLoad, now_s: float
) -> tuple[float | None, float | None]:
    """(seconds until the job's batch begins, seconds that this batch takes); None for both while nothing was measured.

    Ahead are the current batch and whole batches of queued rows; the job shares its own batch with jobs that wait
    beside it. More urgent jobs that arrive later are not included (see `PriorityLoad`).
    """
    row_bytes = max(1, job.size_bytes // job.rows)
    # The job's own batch is filled from the queue, so its time is that of a larger batch than the job alone.
    own_rows = min(load.max_rows, job.rows + queue.rows)
    compute_s = costs.predict_s(load.key, own_rows, own_rows * row_bytes, load.threads)
    full_s = costs.predict_s(load.key, load.max_rows, load.max_rows * row_bytes, load.threads)
    if compute_s is None or full_s is None:
        return None, None
    full_s /= max(LEAST_DUTY_SHARE, load.duty_share)  # the pauses between steps
    wait_s = queue.rows_ahead(job, now_s) // load.max_rows * full_s + load.running_s + load.load_s
    return wait_s, compute_s * max(1, -(-job.rows // load.max_rows))


def work_s(job: Job, costs: CostModel, load: WorkerLoad) -> float:
    """Seconds of the worker's time that a job uses: its share of full batches; 0 while nothing was measured."""
    row_bytes = max(1, job.size_bytes // job.rows)
    full_s = costs.predict_s(load.key, load.max_rows, load.max_rows * row_bytes, load.threads) or 0.0
    return full_s / load.max_rows * job.rows / max(LEAST_DUTY_SHARE, load.duty_share)


def generator_wait_and_first_token_s(
    queue: Queue, job: Job, running: Collection[Job], costs: CostModel, load: GeneratorLoad, now_s: float
) -> tuple[float | None, float | None]:
    """(seconds until the job gets a sequence, seconds until its first token from there); None where nothing was
    measured.

    Sequences end one by one: as many answers as are ahead of the job, less the free sequences, must end first, and
    `sequences` of them end in the time of a whole answer. A client that has no request here may wait for turns instead,
    see `_turns_s`.
    """
    first_s = costs.predict_s(load.first_key, 1, job.size_bytes, load.threads)
    whole_s = costs.predict_s(load.whole_key, 1, job.size_bytes, load.threads)
    if whole_s is None:
        return None, first_s
    # Jobs whose adapter is in use already go first.
    adapters = frozenset(inside.adapter for inside in running)
    ends = max(0, queue.rows_ahead(job, now_s, adapters) + len(running) - load.sequences + 1)
    whole_s /= max(LEAST_DUTY_SHARE, load.duty_share)
    wait_s = ends / load.sequences * whole_s
    turns_s = _turns_s(queue, job, running, costs, load, now_s)
    wait_s = wait_s if turns_s is None else min(wait_s, turns_s)
    return wait_s + load.load_s, first_s


def _turns_s(
    queue: Queue, job: Job, running: Collection[Job], costs: CostModel, load: GeneratorLoad, now_s: float
) -> float | None:
    """Seconds until a client that has no request here has its first turn (`backends.llamacpp.answer_turns`): each other
    one reads its prompt, where no part of its answer was sent (without a stream none is), and writes for a turn.

    None where it does not come in that way, or where its answer, in turn with the others, would not end in time: then
    another would only be late with it.
    """
    others = {other.key[0]: other for other in (*queue.jobs(), *running)}
    # Clients that wait take the places before it.
    inside = len(running) + len(others.keys() - {other.key[0] for other in running})
    if job.key[0] in others or inside >= load.sequences + ANSWERS_BEYOND:
        return None
    duty = max(LEAST_DUTY_SHARE, load.duty_share)
    first_s = [
        costs.predict_s(load.first_key, 1, other.size_bytes, load.threads) or 0.0
        for other in others.values()
        if not other.parts
    ]
    turns_s = (math.fsum(first_s) + len(others) * ANSWER_TURN_S) / load.sequences / duty
    share = max(1.0, (len(others) + 1) / load.sequences)
    in_time = turns_s + share * _answer_s(job, costs, load) / duty <= job.deadline_s - now_s
    return turns_s if in_time else None


def _answer_s(job: Job, costs: CostModel, load: GeneratorLoad) -> float:
    """Seconds of a whole answer: as long as those before, and not longer than its tokens take."""
    whole_s = costs.predict_s(load.whole_key, 1, job.size_bytes, load.threads) or 0.0
    first_s = costs.predict_s(load.first_key, 1, job.size_bytes, load.threads)
    token_s = costs.predict_s(load.token_key, 1, 1, load.threads)
    most = job.params.get("max_tokens")
    if first_s is None or token_s is None or not isinstance(most, int):
        return whole_s
    return min(whole_s, first_s + most * token_s)


def tokens_written(results: Sequence[Mapping[str, Any]]) -> int:
    """The tokens of a generated answer."""
    return sum(int(one.get("usage", {}).get("completion_tokens", 0)) for one in results)


def generator_work_s(job: Job, costs: CostModel, load: GeneratorLoad) -> float:
    """Seconds of the worker's time that an answer uses: its share of them; 0 while nothing was measured."""
    whole_s = costs.predict_s(load.whole_key, 1, job.size_bytes, load.threads) or 0.0
    return whole_s / load.sequences / max(LEAST_DUTY_SHARE, load.duty_share)


def batch_s(costs: CostModel, load: WorkerLoad, rows: int, row_bytes: int) -> float | None:
    """Predicted seconds of a batch of `rows`, the longest of `row_bytes`; None while nothing was measured."""
    return costs.predict_s(load.key, rows, rows * row_bytes, load.threads)


def remaining_s(
    running: Collection[Job],
    costs: CostModel,
    load: WorkerLoad,
    now_s: float,
    client: str | None = None,
    rows_ahead: int = 0,
) -> float:
    """Predicted seconds until the current batch ends; 0 without a batch or without a measurement. For a request of
    another `client` than a job of several steps has, with `rows_ahead` queued before it, only the job's steps that come
    between count: one before each batch that is computed beside it, and what runs beside it now."""
    if not running:
        return 0.0
    rows, row_bytes = sum(job.rows for job in running), max(job.size_bytes // job.rows for job in running)
    step_rows = min(rows, load.max_rows)
    step_s = costs.predict_s(load.key, step_rows, step_rows * row_bytes, load.threads) or 0.0
    began_s = min(job.started_s if job.started_s is not None else now_s for job in running)
    left_s = max(0.0, step_s * max(1, -(-rows // load.max_rows)) - (now_s - began_s))
    # Between paced steps nothing is computed beside, see `ModelServer`.
    shared = load.duty_share >= 1.0 and any(job.rows > load.max_rows and job.key[0] != client for job in running)
    between = 2.0 + rows_ahead // load.max_rows
    return min(left_s, between * step_s) if shared and client is not None else left_s


def least_s(batch: Sequence[Job], costs: CostModel, load: WorkerLoad) -> float:
    """The shortest measured time of a recent batch of this size; 0 without a measurement."""
    if not batch:
        return 0.0
    rows, row_bytes = sum(job.rows for job in batch), max(job.size_bytes // job.rows for job in batch)
    return costs.least_s(load.key, rows, rows * row_bytes, load.threads) or 0.0


def take_hopeless(queue: Queue, costs: CostModel, load: WorkerLoad, begins_s: float) -> list[tuple[Job, float]]:
    """Remove and return the jobs that a batch beginning at `begins_s` cannot answer in time, with its seconds.

    A job runs in a batch with the jobs that wait beside it, so the time of a batch of that size is compared.
    """
    # The shortest measured time is used here and a quantile for admission: a waiting job is only given up when it is
    # hopeless.
    beside = min(load.max_rows, queue.rows)

    def needed(job: Job) -> float:
        rows = max(min(job.rows, load.max_rows), beside)
        return costs.least_s(load.key, rows, rows * (job.size_bytes // job.rows), load.threads) or 0.0

    needs = {job.key: needed(job) for job in queue.jobs()}
    gone = queue.take(lambda job: begins_s + needs[job.key] > job.deadline_s)
    return [(job, needs[job.key]) for job in gone]


Urgency = tuple[int, int]
"""Priority, and the time left at admission as a power of two of seconds; the smaller one goes first."""


class PriorityLoad:
    """The load of higher priority of one worker: how much longer a request waits because others overtake it.

    While more urgent work arrives at a rate of u seconds of work a second, the w seconds ahead of a request are done
    after w / (1 - u) on average: the delay cycle of the M/G/1 queue (Conway, Maxwell and Miller, Theory of Scheduling,
    1967, chapter 8). u is measured from the requests admitted recently, per priority and magnitude of the time left,
    which gives at most ten priorities times about twenty magnitudes.

    What a client asks beyond its turn overtakes its own requests alone (`scheduler`), so it is counted for it alone.
    """

    def __init__(self) -> None:
        self._rates: dict[tuple[Urgency, str | None], tuple[float, float]] = {}

    def note(self, priority: int, left_s: float, work_s: float, now_s: float, only: str | None = None) -> None:
        """Count a request that was admitted `left_s` before its deadline and takes `work_s` of the worker's time; with
        `only` for that client alone."""
        key = _urgency(priority, left_s), only
        self._rates[key] = (self._rate(key, now_s) + work_s / LOAD_TIME_CONSTANT_S, now_s)
        if len(self._rates) > RATES_KEPT:
            largest = sorted(self._rates, key=lambda one: self._rate(one, now_s))[-RATES_KEPT // 2 :]
            self._rates = {one: self._rates[one] for one in largest}

    def wait_s(self, priority: int, left_s: float, ahead_s: float, now_s: float, client: str | None = None) -> float:
        """Seconds until a request of `client` with `ahead_s` of work before it, and `left_s` to its deadline, is
        reached.

        It is overtaken by requests of a higher priority, and of the same priority with clearly nearer deadlines.
        """
        own = _urgency(priority, left_s)
        load = math.fsum(self._rate(key, now_s) for key in self._rates if key[0] < own and key[1] in (None, client))
        return ahead_s / (1.0 - min(HIGHEST_LOAD, load))

    def _rate(self, key: tuple[Urgency, str | None], now_s: float) -> float:
        rate, noted_s = self._rates.get(key, (0.0, now_s))
        return rate * math.exp((noted_s - now_s) / LOAD_TIME_CONSTANT_S)


def _urgency(priority: int, left_s: float) -> Urgency:
    return priority, round(math.log2(min(DEADLINE_MAX_S, max(_SHORTEST_S, left_s))))
