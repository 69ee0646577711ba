"""With what a model is loaded: for a generator the operator's settings, and what memory leaves of its context.

What was held with one context says nothing about another one. The memory ledger therefore knows each set of settings by
a name of its own, so that a model that was shrunk once is not taken for one that fits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from edge_agent.base.runtimes import traits
from edge_agent.bundle.catalog import InstalledModel, Variant
from edge_agent.bundle.gguf_memory import GeneratorOverrides, GgufHeader
from edge_agent.bundle.variant_sizing import explained, settings_text, sized
from edge_agent.core.memory_ledger import MemoryClaim, MemoryLedger
from edge_agent.core.residency import HostMemory

ReadHeader = Callable[[str], Awaitable[GgufHeader | None]]
HEADERS_KEPT = 16


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """With what a model is loaded.

    `packaged`: the variant as installed; `variant`: the same with this device's options. `budget_bytes`: where only
    the worker can tell what fits, the bytes that it may take (0: it need not shrink itself). `room_bytes`: what the
    device has for the load, whatever the package states (0: not looked up yet).
    """

    packaged: Variant
    variant: Variant
    budget_bytes: int = 0
    room_bytes: int = 0

    @property
    def claim(self) -> MemoryClaim:
        """What the memory ledger is asked for: the bytes measured at the install, else the package's, else the files'.

        For a generator whose header was read the header's figure counts: the install may have measured another context.
        """
        variant = self.variant
        if self.budget_bytes:
            return MemoryClaim(variant.digest, variant.runtime, self.budget_bytes, bounded=True)
        settings = settings_text(variant, self.packaged)
        tried = variant.measured.peak_bytes if variant.measured and variant.sizing is None and not settings else 0
        stated_bytes = tried or variant.peak_bytes or 2 * variant.size_bytes
        return MemoryClaim(variant.digest, variant.runtime, stated_bytes, settings)

    @property
    def is_shrunk(self) -> bool:
        """Whether the model gets less than was asked for, or may have to."""
        return bool(self.budget_bytes) or (self.variant.sizing is not None and self.variant.sizing.shrunk)

    def explained(self, needed_bytes: int, memory: HostMemory) -> str:
        """Where a generator's bytes go and what would fit, as the end of a sentence; empty where that is not known."""
        if not needed_bytes:
            return ""
        text = explained(self.variant, self.variant.peak_bytes * memory.ceiling_bytes / needed_bytes)
        return f": {text}" if text else ""


async def no_header(_path: str) -> GgufHeader | None:
    """For a device without files."""
    return None


class Sizer:
    """Plans the load of a model. `read` reads the header of a file without blocking the event loop."""

    def __init__(self, wanted: GeneratorOverrides | None = None, read: ReadHeader = no_header) -> None:
        self._wanted = wanted or GeneratorOverrides()
        self._read = read
        self._headers: dict[str, GgufHeader | None] = {}

    async def look(self, model: InstalledModel) -> None:
        """Read the header of the model's file, once for each variant; only generators have one."""
        variant = model.variant
        if not _shrinks(model) or variant.digest in self._headers:
            return
        header = await self._read(variant.files.get("model", ""))
        if header is None:
            return  # it may be readable the next time
        self._headers[variant.digest] = header
        while len(self._headers) > HEADERS_KEPT:
            del self._headers[next(iter(self._headers))]

    def plan(self, model: InstalledModel, ledger: MemoryLedger, memory: HostMemory) -> tuple[LoadPlan, int]:
        """With what the model is to be loaded, and the bytes that it needs then."""
        full = self._sized(model, replace(self._wanted, shrink=False), None)
        needed_bytes, ceiling_bytes = ledger.predict(full.claim), memory.ceiling_bytes
        if needed_bytes <= ceiling_bytes or not self._wanted.shrink or not _shrinks(model):
            return full, needed_bytes
        if full.variant.sizing is None:
            return replace(full, budget_bytes=ceiling_bytes), ceiling_bytes
        plan, predicted_bytes = full, needed_bytes
        while True:
            # The ledger has measured by how much the formula is off: allow the formula so much more or less.
            allowed_bytes = plan.variant.peak_bytes * ceiling_bytes / predicted_bytes
            plan = self._sized(model, self._wanted, allowed_bytes)
            if plan.variant.sizing is None or not plan.variant.sizing.shrunk:
                return full, needed_bytes
            predicted_bytes = ledger.predict(plan.claim)
            if predicted_bytes <= ceiling_bytes:
                return plan, predicted_bytes

    def _sized(self, model: InstalledModel, wanted: GeneratorOverrides, allowed_bytes: float | None) -> LoadPlan:
        header = self._headers.get(model.variant.digest)
        return LoadPlan(model.variant, sized(model.variant, model.task, header, wanted, allowed_bytes))


def _shrinks(model: InstalledModel) -> bool:
    """Whether the model has a context that can be made smaller."""
    return model.task.kind == "generate" and traits(model.variant.runtime).context_sized
