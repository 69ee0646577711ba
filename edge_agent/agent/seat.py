"""A model's seat on this device: its queue, its worker if it has one, and what is known of both."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from edge_agent.agent.ports import Worker
from edge_agent.bundle.catalog import InstalledModel
from edge_agent.core.footprints import Claim
from edge_agent.core.job import Job
from edge_agent.core.overtaking import Overtaking
from edge_agent.core.residency import Popularity
from edge_agent.core.scheduler import Queue

QUARANTINE_WINDOW_S = 900.0


class Phase(Enum):
    """Whether the model is in memory."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    QUARANTINED = "quarantined"


@dataclass(slots=True, eq=False)
class Seat:
    """One installed model.

    `overtaking`: what was admitted to it lately. `gone` is set for good when it was removed from the device. `wake`
    is set when there is something to do, `idle` when the worker has answered everything, `settled` when the first
    load was tried; `lock` is held while the worker is in use. `loaded_s`: since when it is in memory;
    `short_of_room`: it waits for memory; `yielding`: it lets a waiting model in between two batches; `spared`: its
    worker is ended for the sake of the host, which is no fault of its own. `sequences`: jobs that a generator works
    on at once, each ending by itself (0: a model that answers a batch at a time); `budget_bytes`: what its context
    has to shrink to (0: it need not). `orders`: orders that wait for it; a generator takes no new jobs meanwhile.
    `limits`: what its worker was told last.
    """

    model: InstalledModel
    queue: Queue = field(default_factory=Queue)
    overtaking: Overtaking = field(default_factory=Overtaking)
    phase: Phase = Phase.ABSENT
    gone: bool = False
    worker: Worker | None = None
    mixed: bool = False
    sequences: int = 0
    budget_bytes: int = 0
    running: dict[str, Job] = field(default_factory=dict)
    attached: OrderedDict[str, str] = field(default_factory=OrderedDict)
    footprint_bytes: int = 0
    load_s: float = 1.0
    loaded_s: float = 0.0
    last_used_s: float = 0.0
    uses: Popularity = field(default_factory=Popularity)
    short_of_room: bool = False
    yielding: bool = False
    spared: bool = False
    orders: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)
    heard_s: float = 0.0
    loaded_digest: str | None = None
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    wanted: bool = False
    deaths_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    deaths_in_a_row: int = 0
    canary_ok: bool | None = None
    canary_reason: str = "not probed since it was loaded"
    canary_s: float | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    task: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def generates(self) -> bool:
        """Whether the model continues prompts."""
        return self.model.task.kind == "generate"

    @property
    def cost_key(self) -> tuple[str, str]:
        """What compute times depend on: the model and its variant."""
        return self.model.name, self.model.variant.digest

    @property
    def whole_cost_key(self) -> tuple[str, str]:
        """The same of whole answers of a generator, whose `cost_key` is for the time to the first token."""
        return self.model.name, f"{self.model.variant.digest} whole"

    @property
    def claim(self) -> Claim:
        """What the byte ledger is asked for: bytes as tried at the install, else as the package says, else by files."""
        variant = self.model.variant
        tried = variant.measured.peak_bytes if variant.measured is not None else 0
        return Claim(variant.digest, variant.runtime, tried or variant.peak_bytes or 2 * variant.size_bytes)

    def died(self, now_s: float, quarantine_deaths: int) -> bool:
        """Note a death; True when the model is to be left alone: `quarantine_deaths` in fifteen minutes (0: never)."""
        self.deaths_s.append(now_s)
        recent = sum(1 for death_s in self.deaths_s if now_s - death_s <= QUARANTINE_WINDOW_S)
        return 0 < quarantine_deaths <= recent
