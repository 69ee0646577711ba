"""A model's seat on this device: its queue, its worker if it has one, and what is known of both."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from edge_agent.agent.ports import Worker
from edge_agent.bundle.catalog import InstalledModel, Variant
from edge_agent.bundle.sizing import settings_text
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
    on at once, each ending by itself (0: a model that answers a batch at a time), each in so many tokens of `context`;
    `sized`: the variant with the options to load it with; `budget_bytes`: where only the worker can tell what fits,
    the bytes that it may take (0: it need not shrink). `orders`: orders that wait for it; a generator takes no new
    jobs meanwhile.
    """

    model: InstalledModel
    queue: Queue = field(default_factory=Queue)
    overtaking: Overtaking = field(default_factory=Overtaking)
    phase: Phase = Phase.ABSENT
    gone: bool = False
    worker: Worker | None = None
    mixed: bool = False
    sequences: int = 0
    context: int = 0
    sized: Variant | None = None
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
        """What the byte ledger is asked for: bytes as tried at the install, else as the package says, else by files;
        of a generator whose header was read by that, since the trial may have been made with another context."""
        variant = self.to_load
        if self.budget_bytes:
            return Claim(f"{variant.digest} shrunk", variant.runtime, self.budget_bytes)
        settings = settings_text(variant, self.model.variant)
        tried = variant.measured.peak_bytes if variant.measured and variant.sizing is None and not settings else 0
        stated_bytes = tried or variant.peak_bytes or 2 * variant.size_bytes
        return Claim(f"{variant.digest} {settings}".rstrip(), variant.runtime, stated_bytes)

    @property
    def to_load(self) -> Variant:
        """The current variant with this device's options."""
        variant = self.model.variant
        return self.sized if self.sized is not None and self.sized.digest == variant.digest else variant

    def died(self, now_s: float, quarantine_deaths: int) -> bool:
        """Note a death; True when the model is to be left alone: `quarantine_deaths` in fifteen minutes (0: never)."""
        self.deaths_s.append(now_s)
        recent = sum(1 for death_s in self.deaths_s if now_s - death_s <= QUARANTINE_WINDOW_S)
        return 0 < quarantine_deaths <= recent
