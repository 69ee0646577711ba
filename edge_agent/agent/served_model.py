"""A model's served on this device: its queue, its worker if it has one, and what is known of both."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum

from edge_agent.agent.ports import Worker
from edge_agent.bundle.catalog import InstalledModel, Variant
from edge_agent.bundle.variant_sizing import settings_text
from edge_agent.core.forecast import PriorityLoad, WorkerLoad
from edge_agent.core.governor import ComputeGrant
from edge_agent.core.grammar_bans import GrammarBans
from edge_agent.core.job import Job
from edge_agent.core.memory_ledger import MemoryClaim
from edge_agent.core.residency import Popularity
from edge_agent.core.scheduler import Queue
from edge_agent.protocol.worker_messages import StepLimits

QUARANTINE_WINDOW_S = 900.0


class Phase(Enum):
    """Whether the model is in memory."""

    ABSENT = "absent"
    LOADING = "loading"
    READY = "ready"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Probed:
    """How the golden probes last went. `subject` is what was probed, by digest: another version is another subject.
    `ok` is None where they could not be run or there are none; `at_s` is monotonic."""

    subject: str
    ok: bool | None
    reason: str
    at_s: float


@dataclass(slots=True, eq=False)
class ServedModel:
    """One installed model.

    `overtaking`: what was admitted to it lately; `suspects`: whose grammars ended its workers. `gone` is set for good
    when it was removed from the device. `wake` is set when there is something to do, `idle` when the worker has
    answered everything, `settled` when the first load was tried; `lock` is held while the worker is in use. `load_s`:
    how long a load takes, `loading_s`: when the last one began, `loaded_s`: since when it is in memory;
    `short_of_room`: it waits for memory; `no_room_s`: when it last found none; `yielding`: it lets a waiting model in
    between two batches; `spared`: its worker is ended for the sake of the host, which is no fault of its own.
    `sequences`: jobs that a generator works on at once, each ending by itself (0: a model
    that answers a batch at a time), each in so many tokens of `context`; `sized`: the variant with the options to load
    it with; `budget_bytes`: where only the worker can tell what fits, the bytes that it may take (0: it need not
    shrink). `wanted`: it is to be loaded although nobody waits, and `resident`: so it is whenever its worker dies;
    `demanded_s`: when it was last loaded for requests that could not wait for it; `told_failed_s`: when a failed load
    was last told in an event. `orders`: orders that wait for it; a generator takes no new jobs meanwhile. `probed`:
    golden probes of the model (None) and its adapters. `learned`: rows and compute seconds of the batch whose cost was
    learned last, None when another is handed over. `limits`: what its worker was told last.
    """

    model: InstalledModel
    queue: Queue = field(default_factory=Queue)
    overtaking: PriorityLoad = field(default_factory=PriorityLoad)
    suspects: GrammarBans = field(default_factory=GrammarBans)
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
    loading_s: float = 0.0
    loaded_s: float = 0.0
    last_used_s: float = 0.0
    uses: Popularity = field(default_factory=Popularity)
    short_of_room: bool = False
    no_room_s: float = -math.inf
    yielding: bool = False
    spared: bool = False
    orders: int = 0
    limits: StepLimits | None = None
    learned: tuple[int, float] | None = None
    heard_s: float = 0.0
    loaded_digest: str | None = None
    wanted: bool = False
    resident: bool = False
    demanded_s: float = -math.inf
    told_failed_s: float = -math.inf
    deaths_s: deque[float] = field(default_factory=lambda: deque(maxlen=64))
    deaths_in_a_row: int = 0
    probed: dict[str | None, Probed] = field(default_factory=dict)
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

    def subject(self, adapter: str | None) -> str | None:
        """What the golden probes of the model or of one adapter are about; None for an adapter that it has not."""
        if adapter is None:
            return self.model.variant.digest
        found = self.model.adapter(adapter)
        return None if found is None else f"{self.model.variant.digest} {found.digest}"

    def last_probed(self, adapter: str | None) -> Probed | None:
        """How the probes of what is installed now went; None where they have not been run since it was."""
        found = self.probed.get(adapter)
        return found if found is not None and found.subject == self.subject(adapter) else None

    def in_worker(self) -> tuple[str | None, ...]:
        """What the worker holds in the version that is installed: the model (None) and its adapters; often nothing."""
        if self.worker is None or self.loaded_digest != self.model.variant.digest:
            return ()
        current = {adapter.name: adapter.digest for adapter in self.model.adapters}
        return (None, *(name for name, digest in self.attached.items() if current.get(name) == digest))

    @property
    def cost_key(self) -> tuple[str, str]:
        """What compute times depend on: the model and its variant."""
        return self.model.name, self.model.variant.digest

    @property
    def whole_cost_key(self) -> tuple[str, str]:
        """The same of whole answers of a generator, whose `cost_key` is for the time to the first token."""
        return self.model.name, f"{self.model.variant.digest} whole"

    def station(self, grant: ComputeGrant, duty_share: float = 1.0) -> WorkerLoad:
        """The worker as a request finds it under this grant, in its part of the time; a generator reads one prompt."""
        return WorkerLoad(self.cost_key, 1 if self.generates else grant.max_rows, grant.threads, duty_share)

    def load_left_s(self, now_s: float) -> float:
        """Seconds until it is in memory, as far as is known: all of a load, or what is left of the one under way."""
        if self.phase is Phase.READY:
            return 0.0
        return max(0.0, self.load_s - (now_s - self.loading_s)) if self.phase is Phase.LOADING else self.load_s

    @property
    def claim(self) -> MemoryClaim:
        """What the byte ledger is asked for: bytes as tried at the install, else as the package says, else by files;
        of a generator whose header was read by that, since the trial may have been made with another context."""
        variant = self.to_load
        if self.budget_bytes:
            return MemoryClaim(variant.digest, variant.runtime, self.budget_bytes, bounded=True)
        settings = settings_text(variant, self.model.variant)
        tried = variant.measured.peak_bytes if variant.measured and variant.sizing is None and not settings else 0
        stated_bytes = tried or variant.peak_bytes or 2 * variant.size_bytes
        return MemoryClaim(variant.digest, variant.runtime, stated_bytes, settings)

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
