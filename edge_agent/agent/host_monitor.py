"""The machine that the agent runs on, as the sensors last showed it: memory, temperatures, the limits that hold now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edge_agent.agent.context import Context
from edge_agent.agent.ports import Sensors
from edge_agent.base.reading import Reading, unavailable
from edge_agent.core.memory_pressure import FaultCounts, MemorySigns
from edge_agent.core.residency import HostMemory
from edge_agent.protocol.worker_messages import StepLimits


@dataclass(frozen=True, slots=True)
class Budget:
    """What the operator has set: bytes to leave to the host, bytes for all models together. None: the agent decides."""

    reserve_bytes: int | None = None
    models_bytes: int | None = None


NO_BUDGET = Budget()
NO_READING = unavailable("bytes", "NvMapMemUsed", 0.0, "this kernel does not tell")


class HostMonitor:
    """The machine as last sampled. Implements `ports.Host`.

    `decode_threads`: the operator's limit of compute threads for generators while they read no prompt (0: as the
    package says). `daemon_bytes`: tells the resident bytes of this process, None where the kernel does not tell.
    """

    def __init__(
        self,
        context: Context,
        sensors: Sensors,
        budget: Budget = NO_BUDGET,
        decode_threads: int = 0,
        daemon_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._context = context
        self._sensors = sensors
        self._budget = budget
        self._decode_threads = decode_threads
        self.daemon_bytes = daemon_bytes
        self.readings: Mapping[str, Reading] = {}
        self.last_memory: HostMemory | None = None

    def sample(self) -> None:
        """One round over all sensors."""
        self.readings = self._sensors.sample()

    def reading(self, key: str) -> Reading:
        """The last sample of a sensor, or why there is none."""
        found = self.readings.get(key)
        return found if found is not None else unavailable("", key, 0.0, f"this board has no {key} sensor")

    def memory(self, mapped_bytes: int = 0) -> HostMemory:
        """Total and available RAM as of now, within the control group's limit where there is one.

        `mapped_bytes` are mapped from files by models: the kernel could drop them, so it counts them as available; the
        models would then run from the disk. A control group counts them as used already.
        """
        self.readings = {**self.readings, **self._sensors.sample_memory()}
        total, available = self.reading("ram_total").value or 0.0, self.reading("ram_available").value or 0.0
        available -= mapped_bytes
        limit, used = self.reading("cgroup_limit").value, self.reading("cgroup_used").value
        if limit is not None and used is not None and limit < total:
            total, available = limit, min(available, limit - used)
        found = HostMemory(int(total), int(available), self._budget.reserve_bytes, self._budget.models_bytes)
        self.last_memory = found
        return found

    def signs(self, mapped_bytes: int) -> MemorySigns:
        """How short memory is, for `core.memory_pressure`."""
        memory = self.memory(mapped_bytes)
        return MemorySigns(
            memory.available_bytes,
            memory.reserve_bytes,
            self.reading("memory_pressure_some").value,
            self.reading("memory_pressure_full").value,
            self._counts(),
        )

    def _counts(self) -> FaultCounts | None:
        """What stands in for the pressure figures; None where the kernel has them, or has neither."""
        faults, swapped = self.reading("major_faults").value, self.reading("swapped_in").value
        if self.reading("memory_pressure_some").value is not None or faults is None or swapped is None:
            return None
        return FaultCounts(faults, swapped, self.reading("refaults").value)

    def process_bytes(self, pid: int) -> tuple[int, int] | None:
        """PSS of a process, and the part of it mapped from files (0 where the kernel does not tell)."""
        held = self._sensors.process_bytes(pid)
        pss, mapped = held["pss"].value, held["mapped"].value
        return None if pss is None else (int(pss), int(mapped or 0.0))

    def gpu_bytes(self) -> int:
        """HostMemory that a Jetson's GPU has mapped (NvMap), of all processes; 0 where the kernel does not tell."""
        return int(self._sensors.sample_memory().get("nvmap_used", NO_READING).value or 0.0)

    def most_rows(self) -> int:
        """Rows of a batch while nothing is wrong: what a worker makes room for."""
        grant = self._context.grant
        return grant.unlimited_rows or grant.max_rows

    def worker_limits(self) -> StepLimits:
        """What the governor grants now; `busy_permille` is a generator's part of the time (0: no step at all)."""
        grant = self._context.grant
        share = self._context.duty_cycle.set_generator_share(grant, self._context.clock.monotonic_s())
        permille = max(1, round(1000 * share)) if share > 0.0 else 0
        return StepLimits(grant.max_rows, grant.threads, min(self._decode_threads, grant.threads), permille)
