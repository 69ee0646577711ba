"""Runs golden probes in a worker that is loaded. A file of its own because two parts of the agent do: the schedule
(`canary`), and whoever lets a worker take over (`engine_builds`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from edge_agent.agent.ports import Worker
from edge_agent.bundle.probes import MISSING, ProbeFile, ProbeOutputs, company, judge
from edge_agent.protocol.worker_messages import CompanyTexts

NO_PROBES = "the package has no golden probes for this variant"


def _go_on() -> None:
    """Between two parts of a probe, where nothing waits for its end."""


async def verdict(
    worker: Worker,
    file: ProbeFile | None,
    variant: str,
    adapter: str | None,
    inside: Sequence[str | None],
    between: Callable[[], None] = _go_on,
) -> tuple[bool | None, str]:
    """Whether the probes of the model (None) or of one adapter hold, and the sentence; None where there are none.

    `variant`: its name; `inside`: what shares the worker with it. `between` is called between two parts and may raise,
    so that a request waits for one part at most. Raises BackendError, WorkerError.
    """
    if file is None:
        return None, NO_PROBES
    own = await _measure(worker, adapter, file)
    between()
    # An adapter that silently does nothing gives what the model gives without it.
    base = None if adapter is None else await _measure(worker, None, file)
    between()
    others = [CompanyTexts(*one) for one in company(adapter, inside)]
    own = replace(own, company=await _measure(worker, adapter, file, others))
    found = judge(file, variant, own, base)
    return None if found.code == MISSING else found.code is None, found.reason


async def _measure(
    worker: Worker, adapter: str | None, file: ProbeFile, others: Sequence[CompanyTexts] = ()
) -> ProbeOutputs:
    answer = await worker.measure(adapter, file.texts, others)
    return ProbeOutputs(answer.features, answer.logits)
