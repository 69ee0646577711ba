"""How large a generator's context is on this device: the operator's settings, and what memory leaves of them.

What was held with one context says nothing of another one: the byte ledger knows each by its settings, so that a model
that was shrunk once is not taken for one that fits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

from edge_agent.agent.served_model import ServedModel
from edge_agent.base.runtimes import traits
from edge_agent.bundle.catalog import Variant
from edge_agent.bundle.gguf_memory import GeneratorOverrides, GgufHeader
from edge_agent.bundle.variant_sizing import explained, sized
from edge_agent.core.memory_ledger import MemoryLedger
from edge_agent.core.residency import HostMemory

ReadHeader = Callable[[str], Awaitable[GgufHeader | None]]
HEADERS_KEPT = 16


async def no_header(_path: str) -> GgufHeader | None:
    """For who has no files."""
    return None


class Sizer:
    """Decides with what a generator is loaded. `read` reads the head of a file without holding up the loop."""

    def __init__(self, wanted: GeneratorOverrides | None = None, read: ReadHeader = no_header) -> None:
        self.wanted = wanted or GeneratorOverrides()
        self._read = read
        self._headers: dict[str, GgufHeader | None] = {}

    async def look(self, served: ServedModel) -> None:
        """Read the head of the served model's file, once for each variant; what is no generator has none."""
        variant = served.model.variant
        if not _shrinks(served) or variant.digest in self._headers:
            return
        header = await self._read(variant.files.get("model", ""))
        if header is None:
            return  # it may be there the next time
        self._headers[variant.digest] = header
        while len(self._headers) > HEADERS_KEPT:
            del self._headers[next(iter(self._headers))]

    def decide(self, served: ServedModel, ledger: MemoryLedger, memory: HostMemory) -> int:
        """Set what the served model's model is to be loaded with, and return the bytes that it needs then."""
        served.budget_bytes = 0
        served.sized = full = self._sized(served, replace(self.wanted, shrink=False), None)
        needed_bytes, ceiling_bytes = ledger.predict(served.claim), memory.ceiling_bytes
        if needed_bytes <= ceiling_bytes or not self.wanted.shrink or not _shrinks(served):
            return needed_bytes
        if full.sizing is None:
            served.budget_bytes = ceiling_bytes
            return ceiling_bytes
        predicted_bytes = needed_bytes
        while served.sized.sizing is not None:
            # The ledger knows better than the formula by how much that is off.
            allowed_bytes = served.sized.peak_bytes * ceiling_bytes / predicted_bytes
            served.sized = self._sized(served, self.wanted, allowed_bytes)
            if served.sized.sizing is None or not served.sized.sizing.shrunk:
                break
            predicted_bytes = ledger.predict(served.claim)
            if predicted_bytes <= ceiling_bytes:
                return predicted_bytes
        served.sized = full
        return needed_bytes

    def explained(self, served: ServedModel, needed_bytes: int, memory: HostMemory) -> str:
        """Where a generator's bytes go and what would fit, as the end of a sentence; empty where that is not known."""
        if served.sized is None or not needed_bytes:
            return ""
        text = explained(served.sized, served.sized.peak_bytes * memory.ceiling_bytes / needed_bytes)
        return f": {text}" if text else ""

    def _sized(self, served: ServedModel, wanted: GeneratorOverrides, allowed_bytes: float | None) -> Variant:
        header = self._headers.get(served.model.variant.digest)
        return sized(served.model.variant, served.model.task, header, wanted, allowed_bytes)


def _shrinks(served: ServedModel) -> bool:
    """Whether the served model's model has a context that can be made smaller."""
    return served.generates and traits(served.model.variant.runtime).context_sized
