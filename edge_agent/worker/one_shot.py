"""Short-lived workers that answer a question: what runs here, and what does a new model compute.

Used by installs and by `doctor`, outside the daemon's loop; each call runs a child from start to end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.base.errors import WorkerError
from edge_agent.base.reading import Reading
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.core.energy import TextEnergy, enough_samples, per_text
from edge_agent.protocol.worker_messages import BackendsProbed, LoadMemory, ProbeBackends, RuntimeReport, StepLimits
from edge_agent.sensors.memory import read_pss
from edge_agent.worker.supervisor import SpawnOptions, WorkerProcess, spawn

PROBE_TIMEOUT_S = 60.0
TIMED_RUNS, TIMED_MS = 20, 2000.0
SAMPLE_S = 0.05
Power = Callable[[], Reading]


@dataclass(frozen=True, slots=True)
class RawOutputs:
    """Raw outputs of a list of texts, one row per text; `logits` is None without a classifier."""

    features: Sequence[Sequence[float]]
    logits: Sequence[Sequence[float]] | None


@dataclass(frozen=True, slots=True)
class TrialRun:
    """What a model did in a worker of its own: outputs per question, seconds to load, bytes held, and time and energy
    of one text by itself, of so many bytes. `adapters`: (milliseconds, bytes) of one text with each of them."""

    outputs: tuple[RawOutputs, ...]
    load_s: float
    peak_bytes: int
    latency_ms: float
    text_bytes: int
    energy: TextEnergy
    adapters: Mapping[str, tuple[float, int]]


async def ask_backends(options: SpawnOptions, names: Sequence[str]) -> Mapping[str, RuntimeReport]:
    """What each named backend says of itself on this machine. Raises WorkerError when no child can be started."""
    worker = await _spawn(options)
    try:
        return (await worker.call(ProbeBackends(backends=names), BackendsProbed, PROBE_TIMEOUT_S)).backends
    finally:
        await worker.close()


def available_backends(options: SpawnOptions, names: Sequence[str]) -> Mapping[str, RuntimeReport]:
    """`ask_backends` for who runs no event loop."""
    return asyncio.run(ask_backends(options, names))


def trial_run(
    options: SpawnOptions,
    model: InstalledModel,
    questions: Sequence[tuple[str | None, Sequence[str]]],
    limits: StepLimits,
    power: Power,
    memory: LoadMemory | None = None,
) -> TrialRun:
    """Load a model in a fresh worker and run (adapter, texts) questions; `memory` as in `WorkerProcess.load`.

    `power` reads the whole board's power. Raises BackendError, WorkerError.
    """

    async def run() -> TrialRun:
        worker = await _spawn(options)
        try:
            loaded = await worker.load(model.variant, model.task, limits, memory)
            return await _run(worker, model, questions, power, loaded.load_ms / 1000.0)
        finally:
            await worker.close()

    return asyncio.run(run())


async def _run(
    worker: WorkerProcess,
    model: InstalledModel,
    questions: Sequence[tuple[str | None, Sequence[str]]],
    power: Power,
    load_s: float,
) -> TrialRun:
    for wanted in dict.fromkeys(name for name, _ in questions if name is not None):
        adapter = model.adapter(wanted)
        if adapter is None:
            raise WorkerError(f"the model has no adapter {wanted!r}", model.name)
        await worker.attach(adapter)
    outputs = []
    for name, asked in questions:
        answer = await worker.measure(name, asked)
        outputs.append(RawOutputs(answer.features, answer.logits))
    text = questions[0][1][0]
    latency_ms = await _latency_ms(worker, text)
    own = {name: asked[0] for name, asked in questions if name is not None}
    adapters = {name: (await _latency_ms(worker, one, name), len(one.encode())) for name, one in own.items()}
    energy = await text_energy(lambda: worker.measure(None, [text]), power)
    held = await worker.footprint()
    # What the process holds is what the device must find; where the kernel does not tell, what the runtime says.
    peak_bytes = int(read_pss(Path("/"), worker.pid, 0.0).value or held.total_bytes)
    return TrialRun(tuple(outputs), load_s, peak_bytes, latency_ms, len(text.encode()), energy, adapters)


async def _latency_ms(worker: WorkerProcess, text: str, adapter: str | None = None) -> float:
    """The median compute time of one text by itself; a slow board is asked less often."""
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
    return await spawn(options, lambda _event: None, lambda _death: None)
