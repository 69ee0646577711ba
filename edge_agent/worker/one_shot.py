"""Workers that run once, from start to end: to list the backends that work here, and to try a new model.

Used by installs and by `doctor`, outside the daemon's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edge_agent.base.errors import WorkerError
from edge_agent.base.reading import Reading
from edge_agent.base.runtimes import RUNTIME_CRASH_REMEDY, traits
from edge_agent.base.texts import Text, size_bytes
from edge_agent.base.units import duration_text
from edge_agent.bundle.catalog import InstalledModel, TrialFigures
from edge_agent.bundle.gguf_header import header_at
from edge_agent.bundle.gguf_memory import GeneratorOverrides
from edge_agent.bundle.probes import ProbeOutcome, ProbeOutputs, ProbeRequest, company
from edge_agent.bundle.variant_sizing import sized
from edge_agent.core.energy import TextEnergy, UtilisationModel, enough_samples, estimated, per_text
from edge_agent.core.paired_times import PairedTimes
from edge_agent.protocol.worker_messages import (
    AnyEvent,
    BackendsProbed,
    CompanyTexts,
    LoadMemory,
    LoadProgress,
    NoListener,
    ProbeBackends,
    RuntimeReport,
    RuntimeUnavailable,
    StepLimits,
)
from edge_agent.sensors.memory import read_meminfo, read_pss
from edge_agent.worker.supervisor import SpawnOptions, WorkerProcess, spawn

PROBE_TIMEOUT_S = 60.0
"""Without any work; an import from a slow card takes minutes."""
PROBE_LONGEST_S = 600.0
TIMED_RUNS, TIMED_MS = 20, 2000.0
SAMPLE_S = 0.05
# Turns in which variants are timed: as many as an interval wants (31 leave out the seven smallest and largest ratios),
# at least what has one of 99 % at all, and of a slow generator what two minutes allow.
TURNS, FEWEST_TURNS, TOGETHER_S, LONGEST_S = 31, 9, 15.0, 120.0
# Variants that do not fit into memory together: loads of each, and the time for all of them.
APART_TURNS, APART_S = 3, 180.0
PROGRESS_SAID_S = 15.0
"""The progress of a load is logged at this interval."""
log = logging.getLogger("edge_agent.worker")
Power = Callable[[], Reading]


async def ask_backends(options: SpawnOptions, names: Sequence[str]) -> Mapping[str, RuntimeReport]:
    """What each named backend says of itself on this machine, each in a child of its own: a runtime that crashes when
    it is imported says nothing about the others. Raises WorkerError when no child can be started."""
    # One after another: two runtimes at once are too much for a board with 512 MB.
    return {name: await _ask_backend(options, name) for name in names}


async def _ask_backend(options: SpawnOptions, name: str) -> RuntimeReport:
    worker = await _spawn(options)
    try:
        answer = await worker.call(ProbeBackends(backends=[name]), BackendsProbed, PROBE_LONGEST_S, PROBE_TIMEOUT_S)
    except WorkerError as error:
        return RuntimeUnavailable(f"it crashed when it was asked: {error.what}", RUNTIME_CRASH_REMEDY, crashed=True)
    finally:
        await worker.close()
    return answer.backends[name]


def available_backends(options: SpawnOptions, names: Sequence[str]) -> Mapping[str, RuntimeReport]:
    """`ask_backends` for callers without an event loop."""
    return asyncio.run(ask_backends(options, names))


class WorkerProber:
    """Runs a model that is not active yet in a worker of its own. Implements `store.install_plan.Prober`.

    The worker gets the same limits and overrides as the daemon's will. `power` reads the whole board's power;
    `estimate` stands in for it on a board without a sensor whose power is known. `ram_bytes`: what one model may take
    in all; None: not known.
    """

    def __init__(
        self,
        options: SpawnOptions,
        limits: StepLimits,
        overrides: GeneratorOverrides,
        power: Power,
        estimate: UtilisationModel | None = None,
        ram_bytes: int | None = None,
    ) -> None:
        self._options = options
        self._limits = limits
        self._overrides = overrides
        self._power = power
        self._estimate = estimate
        self._ram_bytes = ram_bytes

    def probe(self, model: InstalledModel, requests: Sequence[ProbeRequest]) -> ProbeOutcome:
        """Load the model, run the requests, measure a text and end the worker. Raises BackendError, WorkerError."""
        return asyncio.run(self._run(*self._sized(model), requests))

    def compare_times(self, models: Sequence[InstalledModel], text: Text) -> PairedTimes:
        """Time one text with each model in turns. Raises BackendError, WorkerError.

        They are in memory together where what their trials measured fits; else each turn loads one after the other, as
        often as APART_S allows. Ends after TURNS, or where time is short after FEWEST_TURNS, in about TOGETHER_S.
        """
        needed = sum(one.variant.measured.peak_bytes for one in models if one.variant.measured is not None)
        available = [self._ram_bytes, _available_bytes()]
        fits = all(limit is None or needed <= limit for limit in available)
        return asyncio.run(self._together(models, text) if fits else self._apart(models, text))

    def _sized(self, model: InstalledModel) -> tuple[InstalledModel, LoadMemory | None]:
        """The model as the daemon would load it."""
        header = header_at(model.variant.files.get("model", "")) if model.task.kind == "generate" else None
        variant = sized(model.variant, model.task, header, self._overrides, self._ram_bytes)
        memory = self._room()
        generator = model.task.kind == "generate" and traits(variant.runtime).context_sized
        if variant.sizing is None and generator and self._overrides.shrink and self._ram_bytes:
            memory = LoadMemory(self._ram_bytes, shrink=True)
        return replace(model, variant=variant), memory

    def _room(self) -> LoadMemory | None:
        """What this board has for a model in trial: what is free now, and not more than one model may take in all."""
        free = read_meminfo(Path("/"), 0.0)["ram_available"].value
        known = [int(one) for one in (free, self._ram_bytes) if one is not None]
        return LoadMemory(min(known)) if known else None

    async def _load(self, worker: WorkerProcess, model: InstalledModel, text: Text) -> None:
        """Load a model and let it compute the text once, which the first run of a shape is slower for."""
        sized_model, memory = self._sized(model)
        await worker.load(sized_model.variant, sized_model.task, self._limits, memory, trial=True)
        await worker.measure(None, [text])

    async def _together(self, models: Sequence[InstalledModel], text: Text) -> PairedTimes:
        workers: list[WorkerProcess] = []
        times: list[list[float]] = [[] for _ in models]
        loop = asyncio.get_running_loop()
        try:
            for model in models:
                workers.append(await _spawn(self._options))
                await self._load(workers[-1], model, text)
            started_s = loop.time()
            while not _enough(len(times[0]), loop.time() - started_s):
                # There and back, so that a drift over a turn favours none.
                places = range(len(models)) if len(times[0]) % 2 == 0 else range(len(models) - 1, -1, -1)
                for place in places:
                    times[place].append((await workers[place].measure(None, [text])).compute_ms)
        finally:
            await asyncio.gather(*(worker.close() for worker in workers))
        return PairedTimes({model.variant.digest: found for model, found in zip(models, times, strict=True)})

    async def _apart(self, models: Sequence[InstalledModel], text: Text) -> PairedTimes:
        times: dict[str, list[float]] = {model.variant.digest: [] for model in models}
        loop = asyncio.get_running_loop()
        started_s, turn = loop.time(), 0
        while turn < APART_TURNS and (turn == 0 or (loop.time() - started_s) * (turn + 1) / turn <= APART_S):
            for model in models if turn % 2 == 0 else reversed(models):
                worker = await _spawn(self._options)
                try:
                    await self._load(worker, model, text)
                    times[model.variant.digest].append(await _latency_ms(worker, text))
                finally:
                    await worker.close()
            turn += 1
        return PairedTimes(times, apart=True)

    async def _run(
        self, model: InstalledModel, memory: LoadMemory | None, requests: Sequence[ProbeRequest]
    ) -> ProbeOutcome:
        worker = await _spawn(self._options)
        try:
            loaded = await worker.load(model.variant, model.task, self._limits, memory, trial=True)
            await _attach(worker, model, requests)
            outputs = []
            attached = {one.adapter for one in requests}
            for request in requests:
                answer = await worker.measure(request.adapter, request.texts)
                shared = None
                if request.company:
                    others = [CompanyTexts(*one) for one in company(request.adapter, attached)]
                    beside = await worker.measure(request.adapter, request.texts, others)
                    shared = ProbeOutputs(beside.features, beside.logits)
                outputs.append(ProbeOutputs(answer.features, answer.logits, shared))
            text = requests[0].texts[0]
            latency_ms = await _latency_ms(worker, text)
            own = {one.adapter: one.texts[0] for one in requests if one.adapter is not None}
            adapters = {
                name: TrialFigures(await _latency_ms(worker, one, name), 0, 0.0, size_bytes(one))
                for name, one in own.items()
            }
            # Last, because adapters and a while of work belong to what the worker holds.
            figures = await self._figures(worker, text, latency_ms, loaded.load_ms / 1000.0)
            return ProbeOutcome(tuple(outputs), figures, adapters)
        finally:
            await worker.close()

    async def _figures(self, worker: WorkerProcess, text: Text, latency_ms: float, load_s: float) -> TrialFigures:
        """The figures of the model; measures the energy of one text by itself, and then the memory."""
        energy = await text_energy(lambda: worker.measure(None, [text]), self._power)
        if energy.joules is None and self._estimate is not None:
            energy = estimated(self._estimate, self._limits.threads, latency_ms / 1000.0)
        held = await worker.footprint()
        # The memory of the process is what the device must have free; where the kernel does not report it, the
        # runtime's own figure stands in.
        peak_bytes = int(read_pss(Path("/"), worker.pid, 0.0).value or held.total_bytes)
        return TrialFigures(
            latency_ms, peak_bytes, load_s, size_bytes(text), energy.joules, energy.method, energy.estimated
        )


def _enough(turns: int, taken_s: float) -> bool:
    """Whether variants were timed often enough, or for too long."""
    return turns >= TURNS or taken_s >= LONGEST_S or (turns >= FEWEST_TURNS and taken_s >= TOGETHER_S)


def _available_bytes() -> int | None:
    """What the kernel says can be taken without swapping, less a fifth; None where it does not say."""
    found = read_meminfo(Path("/"), 0.0)["ram_available"].value
    return None if found is None else int(0.8 * found)


async def _attach(worker: WorkerProcess, model: InstalledModel, requests: Sequence[ProbeRequest]) -> None:
    """Attach every adapter that the requests name, once."""
    for name in dict.fromkeys(one.adapter for one in requests if one.adapter is not None):
        adapter = model.adapter(name)
        if adapter is None:
            raise WorkerError(f"the model has no adapter {name!r}", model.name)
        await worker.attach(adapter)


async def _latency_ms(worker: WorkerProcess, text: Text, adapter: str | None = None) -> float:
    """The median compute time of one text alone, in milliseconds, of at most TIMED_RUNS runs and about TIMED_MS."""
    times: list[float] = []
    while len(times) < TIMED_RUNS and sum(times) < TIMED_MS:
        times.append((await worker.measure(adapter, [text])).compute_ms)
    return sorted(times)[len(times) // 2]


async def text_energy(compute: Callable[[], Awaitable[object]], power: Power) -> TextEnergy:
    """Energy of one `compute()`, which is called over and over while `power` is sampled; at once None where there is no
    sensor. Raises what `compute` raises."""
    first = power()
    if first.value is None:
        return per_text([first], 0.0, 0)
    loop = asyncio.get_running_loop()
    samples, started_s, texts = [first], loop.time(), 0
    sampling = asyncio.create_task(_sample(samples, power), name="power")
    try:
        while not enough_samples(samples, loop.time() - started_s):
            await compute()
            texts += 1
    finally:
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
    return per_text(samples, loop.time() - started_s, texts)


async def _sample(samples: list[Reading], power: Power) -> None:
    """Until it is cancelled. A read takes about a millisecond of this loop, which has nothing else to do meanwhile."""
    while True:
        await asyncio.sleep(SAMPLE_S)
        samples.append(power())


async def _spawn(options: SpawnOptions) -> WorkerProcess:
    return await spawn(options, LoadReporter())


class LoadReporter(NoListener):
    """Logs how far a load is that takes minutes. Implements `WorkerListener`."""

    def __init__(self) -> None:
        self._said_s = -math.inf

    def on_event(self, event: AnyEvent) -> None:
        """Of all events a worker without jobs sends `LoadProgress` alone."""
        now_s = time.monotonic()
        if isinstance(event, LoadProgress) and now_s - self._said_s >= PROGRESS_SAID_S:
            self._said_s = now_s
            share = "" if event.share is None else f", {event.share:.0%} of it"
            last = "" if event.expected_s is None else f"; the last build here took {duration_text(event.expected_s)}"
            log.info("an engine is built for this device, which takes minutes (%s%s)%s", event.stage, share, last)
