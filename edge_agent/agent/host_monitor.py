"""The host as the sensors last showed it: memory, temperatures, and the limits that hold now."""

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
    """The operator's settings: bytes that stay free for the host, and bytes of all models. None: the agent decides."""

    reserve_bytes: int | None = None
    models_bytes: int | None = None


NO_BUDGET = Budget()
NO_READING = unavailable("bytes", "NvMapMemUsed", 0.0, "this kernel does not tell")


class HostMonitor:
    """The machine as last sampled. Implements `ports.Host`.

    `decode_threads`: the operator's limit of compute threads for generators while they read no prompt (0: as the
    package says). `daemon_bytes`: returns the resident bytes of this process, None where they are not known.
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
        """Read all sensors."""
        self.readings = self._sensors.sample()

    def reading(self, key: str) -> Reading:
        """The last sample of a sensor, or a reading with the reason why there is none."""
        found = self.readings.get(key)
        return found if found is not None else unavailable("", key, 0.0, f"this board has no {key} sensor")

    def memory(self, mapped_bytes: int = 0) -> HostMemory:
        """Total and available RAM now, within the limit of the control group where there is one.

        `mapped_bytes` are mapped from files by models. The kernel counts them as available because it could drop them,
        and the models would then read their weights from the disk; they are subtracted here. A control group already
        counts them as used.
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
        """The figures for `core.memory_pressure`."""
        memory = self.memory(mapped_bytes)
        return MemorySigns(
            memory.available_bytes,
            memory.reserve_bytes,
            self.reading("memory_pressure_some").value,
            self.reading("memory_pressure_full").value,
            self._counts(),
        )

    def _counts(self) -> FaultCounts | None:
        """The fault counters that replace PSI; None where the kernel has PSI, or has no such counters."""
        faults, swapped = self.reading("major_faults").value, self.reading("swapped_in").value
        if self.reading("memory_pressure_some").value is not None or faults is None or swapped is None:
            return None
        return FaultCounts(faults, swapped, self.reading("refaults").value)

    def process_bytes(self, pid: int) -> tuple[int, int] | None:
        """(PSS of a process, its part that is mapped from files) in bytes; the second is 0 where the kernel has no
        figure.
        """
        held = self._sensors.process_bytes(pid)
        pss, mapped = held["pss"].value, held["mapped"].value
        return None if pss is None else (int(pss), int(mapped or 0.0))

    def gpu_bytes(self) -> int:
        """Bytes that the GPU of a Jetson has mapped (NvMap) for all processes; 0 where the kernel has no figure."""
        return int(self._sensors.sample_memory().get("nvmap_used", NO_READING).value or 0.0)

    def most_rows(self) -> int:
        """Rows of a batch without a thermal limit, for which a worker reserves memory."""
        grant = self._context.grant
        return grant.unlimited_rows or grant.max_rows

    def worker_limits(self) -> StepLimits:
        """The limits granted now; `busy_permille`: duty share of each active generator in permille (0: no step)."""
        grant = self._context.grant
        share = self._context.duty_cycle.set_generator_share(grant, self._context.clock.monotonic_s())
        # At least 1: a share that rounds to 0 would stop the generator.
        permille = max(1, round(1000 * share)) if share > 0.0 else 0
        return StepLimits(grant.max_rows, grant.threads, min(self._decode_threads, grant.threads), permille)
