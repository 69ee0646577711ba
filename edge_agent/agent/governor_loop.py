"""The once-a-second loop: read the sensors, ask the governor, pass its limits on, and report what was lost or changed.

The decisions are in `core.governor` and `core.sensor_validation`; `host_monitor` holds the samples.
"""

from __future__ import annotations

from dataclasses import replace

from edge_agent.agent.context import Context
from edge_agent.agent.host_monitor import HostMonitor
from edge_agent.agent.model_manager import ModelManager
from edge_agent.agent.ports import Clocks
from edge_agent.agent.serving import ModelServer
from edge_agent.agent.store_changes import StoreChanges
from edge_agent.base.runtimes import traits
from edge_agent.core import governor, sensor_validation, variants
from edge_agent.protocol.messages import Severity

PERIOD_S = 1.0
# The thermal zones of an Orin disappear while the part that they measure is powered off, so only sensors on which a
# decision depends are reported when they are lost.
WATCHED = ("temperature", "temperature_firmware", "temperature_jtop", "throttle", "power", "ram_available")


class GovernorLoop:
    """Runs once a second. `clocks` caps the clock, where the operator permits it."""

    def __init__(
        self,
        context: Context,
        config: governor.GovernorConfig,
        host: HostMonitor,
        changes: StoreChanges,
        manager: ModelManager,
        server: ModelServer,
        clocks: Clocks | None = None,
    ) -> None:
        self._context = context
        self._clocks = clocks
        self._config = config if clocks is None else replace(config, clocks=clocks.shares)
        self._host = host
        self._manager = manager
        self._server = server
        self._changes = changes
        self._state = governor.GovernorState()
        self._generation = -1
        self._had: set[str] = set()
        self._lost: set[str] = set()
        self._doubted = False
        self._clock = 1.0
        self._throttle = sensor_validation.ThrottleState()
        self._changed = False

    def tick(self) -> None:
        """One look at the board, the workers and the store."""
        self._host.sample()
        self._report_lost_sensors()
        self._report_throttling()
        self._govern()
        self._server.deadlines.look()
        self._manager.measure()
        self._manager.retry_engines()
        self.refresh_models()

    def refresh_models(self) -> None:
        """Apply what was installed, removed or rolled back since the last round."""
        generation = self._changes.generation()
        if generation == self._generation:
            return
        new = self._manager.sync()
        self._changes.announce()
        # Set after the sync: a store that could not be read is read again in the next round.
        self._generation = generation
        for served in self._manager.served_models.values():
            for variant in served.model.variants:
                expected = variants.expected_row(served.model, variant)
                if expected is not None:
                    self._context.costs.expect((served.name, variant.digest), *expected)
        for served in new:
            self._server.start(served)
        self._server.want_resident()
        self._changed = True

    def take_changed(self) -> bool:
        """Whether the installed models are not what they were at the last call."""
        changed, self._changed = self._changed, False
        return changed

    def _govern(self) -> None:
        now_s = self._context.clock.monotonic_s()
        observed = self._observe(now_s)
        temperature = self._host.reading("temperature")
        grant, self._state = governor.decide(self._config, temperature, self._state, now_s, observed)
        before = self._context.replace_grant(grant)
        self._manager.tell_limits()
        self._report_doubts(before, grant)
        self._set_clock(grant.clock)
        self._manager.take_tier(grant.tier, grant.why)
        if before.level is not grant.level:
            text = f"governor {before.level.name.lower()} -> {grant.level.name.lower()}: {grant.why}"
            severity: Severity = "info" if grant.level < before.level else "warning"
            self._context.announce("throttled", text, {"level": grant.level.name.lower()}, severity)

    def _set_clock(self, share: float) -> None:
        """Apply the clock cap. A board that refuses it is governed without clocks from then on."""
        if self._clocks is None or not self._config.clocks or share == self._clock:
            return
        self._clock = share
        refused = self._clocks.set(share)
        if refused is not None:
            self._config = replace(self._config, clocks=())
            # Some clock domains may have accepted the cap, which the governor no longer takes into account.
            self._clocks.restore()
            self._context.announce("clock-refused", f"the clock cannot be set: {refused}", {})

    def close(self) -> None:
        """Restore the clocks that were set."""
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

    def _report_doubts(self, before: governor.ComputeGrant, grant: governor.ComputeGrant) -> None:
        """Report the start and the end of a temperature that is not believed, and of two that disagree."""
        if grant.derated is None and self._doubted:
            self._doubted = False
            self._announce_sensor("sensor-lost", "temperature", "the temperature is believed again", lost=False)
        elif grant.derated is not None and before.derated is None and self._has("temperature"):
            self._doubted = True
            text = f"the temperature is not believed, limits are those of a lost sensor: {grant.derated}"
            self._announce_sensor("sensor-lost", "temperature", text, lost=True)
        if grant.disagree is not None and before.disagree is None:
            text = f"two temperatures disagree, the hotter one counts: {grant.disagree}"
            self._announce_sensor("sensors-disagree", "temperature", text, disagree=True)
        elif grant.disagree is None and before.disagree is not None:
            text = "the two temperatures agree again, or one of them is gone"
            self._announce_sensor("sensors-disagree", "temperature", text, disagree=False)

    def _report_lost_sensors(self) -> None:
        have = {key for key in WATCHED if self._has(key)}
        for key in sorted(self._had - have):
            text = f"sensor {key!r} is lost: {self._host.reading(key).reason}"
            self._announce_sensor("sensor-lost", key, text, lost=True)
        for key in sorted(self._lost & have):
            self._announce_sensor("sensor-lost", key, f"sensor {key!r} is back", lost=False)
        self._lost = (self._lost | self._had) - have
        self._had = have

    def _has(self, key: str) -> bool:
        return self._host.reading(key).value is not None

    def _announce_sensor(self, kind: str, key: str, text: str, **state: bool) -> None:
        """Send an event; `state` says whether the condition begins (True) or ends."""
        self._context.announce(kind, text, {"sensor": key, **state}, "warning" if any(state.values()) else "info")

    def _report_throttling(self) -> None:
        """Report when the firmware starts or stops to hold the clock below the one that the kernel requests."""
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
            remedy = (
                "cool the board or give it a stronger supply; on a Jetson a power mode of fewer watts helps as well"
            )
            text = f"the firmware holds the clock down: {megahertz} ({remedy})"
            self._context.announce("clock-held", text, data)
