"""Once a second: read the sensors, ask the governor, hand out its limits, notice what died, fell silent or changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from edge_agent.agent.context import Context
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.ports import Clocks, Library, Sensors
from edge_agent.agent.serving import ModelServer
from edge_agent.base.reading import Reading, unavailable
from edge_agent.base.runtimes import traits
from edge_agent.core import governor, sensor_validation, variants
from edge_agent.core.memory_pressure import FaultCounts, MemorySigns
from edge_agent.core.residency import HostMemory
from edge_agent.protocol.messages import Severity
from edge_agent.protocol.worker_messages import StepLimits

PERIOD_S = 1.0
"""Runtimes whose steps wait for memory rather than compute: token generation."""
# Zones of an Orin go to sleep with what they measure; only what decides something is worth an event when it is lost.
WATCHED = ("temperature", "temperature_firmware", "temperature_jtop", "throttle", "power", "ram_available")


@dataclass(frozen=True, slots=True)
class Budget:
    """What the operator has set: bytes to leave to the host, bytes for all models together. None: the agent decides."""

    reserve_bytes: int | None = None
    models_bytes: int | None = None


NO_BUDGET = Budget()
NO_READING = unavailable("bytes", "NvMapMemUsed", 0.0, "this kernel does not tell")


class HostMonitor:
    """The machine as last sampled. Implements `ports.Host`.

    `decode_threads`: the operator's, of generators that read no prompt (0: as the package says).
    """

    def __init__(self, context: Context, sensors: Sensors, budget: Budget = NO_BUDGET) -> None:
        self._context = context
        self._sensors = sensors
        self._budget = budget
        self.readings: Mapping[str, Reading] = {}
        self.last_memory: HostMemory | None = None
        self.decode_threads = 0

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
        return StepLimits(grant.max_rows, grant.threads, min(self.decode_threads, grant.threads), permille)


class GovernorLoop:
    """The agent's look at its board and its store."""

    def __init__(
        self,
        context: Context,
        config: governor.GovernorConfig,
        host: HostMonitor,
        library: Library,
        manager: ModelManager,
        server: ModelServer,
        clocks: Clocks | None = None,
    ) -> None:
        self._context = context
        self._clocks = clocks
        self._config = config if clocks is None else replace(config, clocks=clocks.shares)
        self._host = host
        self._library = library
        self._manager = manager
        self._server = server
        self._state = governor.GovernorState()
        self._generation = -1
        self._had: set[str] = set()
        self._lost: set[str] = set()
        self._doubted = False
        self._clock = 1.0
        self._throttle = sensor_validation.ThrottleState()
        self.changed = False

    def tick(self) -> None:
        """One look. Sets `changed` when the installed models are not what they were."""
        self._host.sample()
        self._note_lost_sensors()
        self._note_held_clock()
        self._govern()
        self._server.overdue.look()
        self._manager.measure()
        self.refresh_models()

    def refresh_models(self) -> None:
        """Take over what was installed, removed or rolled back since the last look."""
        generation = self._library.generation()
        if generation == self._generation:
            return
        new, _ = self._manager.sync()
        # Not before: a store that could not be read is read again at the next look.
        self._generation = generation
        for served in self._manager.served_models.values():
            for variant in served.model.variants:
                expected = variants.expected_row(served.model, variant)
                if expected is not None:
                    self._context.costs.expect((served.name, variant.digest), *expected)
        for served in new:
            self._server.start(served)
        self.changed = True

    def _govern(self) -> None:
        now_s = self._context.clock.monotonic_s()
        observed = self._observe(now_s)
        temperature = self._host.reading("temperature")
        grant, self._state = governor.decide(self._config, temperature, self._state, now_s, observed)
        before, self._context.grant = self._context.grant, grant
        self._manager.tell_limits()
        self._note_doubts(before, grant)
        self._set_clock(grant.clock)
        self._manager.take_tier(grant.tier, grant.why)
        if before.level is not grant.level:
            text = f"governor {before.level.name.lower()} -> {grant.level.name.lower()}: {grant.why}"
            severity: Severity = "info" if grant.level < before.level else "warning"
            self._context.announce("throttled", text, {"level": grant.level.name.lower()}, severity)

    def _set_clock(self, share: float) -> None:
        """Where the board refuses, the governor goes on without a clock: it must not count on a cap that is none."""
        if self._clocks is None or not self._config.clocks or share == self._clock:
            return
        self._clock = share
        refused = self._clocks.set(share)
        if refused is not None:
            self._config = replace(self._config, clocks=())
            self._clocks.restore()  # it may have been taken by some domains, and nobody counts on a cap any more
            self._context.announce("clock-refused", f"the clock cannot be set: {refused}", {})

    def close(self) -> None:
        """Give back what was changed on the board."""
        if self._clocks is not None:
            self._clocks.restore()

    def _observe(self, now_s: float) -> governor.Observation:
        duty_cycle = self._context.duty_cycle
        running = [served for served in self._manager.served_models.values() if served.running]
        power, grant = self._host.reading("power"), self._context.grant
        self._context.energy.sample(power, now_s, max(1, len(running)) * grant.threads, grant.clock)
        return governor.Observation(
            busy_share=duty_cycle.take_busy_share(now_s),
            row_s=duty_cycle.row_s(),
            power=power,
            second=self._host.readings.get("temperature_second"),
            throttle_word=int(self._host.reading("throttle").value or 0),
            bandwidth_bound=any(traits(served.model.variant.runtime).bandwidth_bound for served in running),
        )

    def _note_doubts(self, before: governor.ComputeGrant, grant: governor.ComputeGrant) -> None:
        """A temperature that is there and not believed, or two that contradict each other: when it begins and ends."""
        if grant.derated is None and self._doubted:
            self._doubted = False
            self._say_sensor("sensor-lost", "temperature", "the temperature is believed again", lost=False)
        elif grant.derated is not None and before.derated is None and self._has("temperature"):
            self._doubted = True
            text = f"the temperature is not believed, limits are those of a lost sensor: {grant.derated}"
            self._say_sensor("sensor-lost", "temperature", text, lost=True)
        if grant.disagree is not None and before.disagree is None:
            text = f"two temperatures disagree, the hotter one counts: {grant.disagree}"
            self._say_sensor("sensors-disagree", "temperature", text, disagree=True)
        elif grant.disagree is None and before.disagree is not None:
            text = "the two temperatures agree again, or one of them is gone"
            self._say_sensor("sensors-disagree", "temperature", text, disagree=False)

    def _note_lost_sensors(self) -> None:
        have = {key for key in WATCHED if self._has(key)}
        for key in sorted(self._had - have):
            text = f"sensor {key!r} is lost: {self._host.reading(key).reason}"
            self._say_sensor("sensor-lost", key, text, lost=True)
        for key in sorted(self._lost & have):
            self._say_sensor("sensor-lost", key, f"sensor {key!r} is back", lost=False)
        self._lost = (self._lost | self._had) - have
        self._had = have

    def _has(self, key: str) -> bool:
        return self._host.reading(key).value is not None

    def _say_sensor(self, kind: str, key: str, text: str, **state: bool) -> None:
        """`state` tells a reader of events whether it begins or ends."""
        self._context.announce(kind, text, {"sensor": key, **state}, "warning" if any(state.values()) else "info")

    def _note_held_clock(self) -> None:
        """The firmware holds the clock below what the kernel asks for, or has let go of it."""
        real, requested = self._host.reading("cpu_clock"), self._host.reading("cpu_clock_requested")
        before = self._throttle.throttled
        self._throttle = sensor_validation.detect_throttling(
            real.value, requested.value, self._throttle, self._context.clock.monotonic_s()
        )
        if self._throttle.throttled is before or real.value is None or requested.value is None:
            return
        megahertz = f"{real.value / 1e6:.0f} MHz, {requested.value / 1e6:.0f} MHz are requested"
        data = {"real_hz": real.value, "requested_hz": requested.value, "held": not before}
        if before:
            self._context.announce("clock-held", f"the firmware has let go of the clock: {megahertz}", data, "info")
        else:
            self._context.announce("clock-held", f"the firmware holds the clock down: {megahertz}", data)
