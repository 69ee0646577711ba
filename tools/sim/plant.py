"""Two-node thermal models of many boards at once, with fans, firmware throttling and imperfect sensors.

    C1 dT1/dt = P - (T1 - T2) / R1          C2 dT2/dt = (T1 - T2) / R1 - (T2 - Tamb) / R2(fan)
    P = P_idle + P_fan + P_full * share * (f / fmax) * (V(f) / V(fmax))^2 * (1 + 0.004 (T1 - 60))

The firmware decides once a second on its own sensor. Its laws are unpublished; these are fitted to reported behaviour
(docs/boards.md):
- pi5: fmax * (1 - 0.02 (T - 80)) from 80 to 85 °C, then linear to 62.5 % at 88 °C. In that range it overrides the clock
  cap of the user in both directions (raspberrypi/rpi-eeprom issue 518: 2256 MHz at 82.9 °C with a cap of 2000 MHz).
- pi4: fmax * (1 - 0.069 (T - 80)) to 85 °C, the lowest clock above; it ignores a lower cap there as well
  (raspberrypi/linux issue 5875).
- nano: one clock step down every half second from 97 °C, up again below; half speed from 100.5 °C; off at 102 °C.
- orin: one clock step every second from 99 °C; off at 104.5 °C.
Lanes are vectorised; all random numbers come from the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sim.boards import FLAGGED, BoardModel

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
LEAK_PER_C = 0.004
OFF_C = {"pi5": 200.0, "pi4": 200.0, "nano": 102.0, "orin": 104.5}


class Plants:
    """The lanes. `t1`, `t2`: °C of die and board. `clock`: real share of the highest clock. `power_w`: at the board's
    input.

    `sensor_c`: what the kernel shows. `second_c`: the same sample from a Raspberry Pi's firmware, in steps of 0.1 °C.
    """

    def __init__(self, boards: Sequence[BoardModel], ambient_c: Floats, cooling: Floats, seed: int) -> None:
        """`cooling` multiplies the resistance from sink to air. Every lane starts settled at idle power."""
        self.boards = tuple(boards)
        count = len(self.boards)
        self._random = np.random.default_rng(seed)
        self.ambient_c, self._cooling = ambient_c.astype(float), cooling.astype(float)
        self._c1, self._r1, self._c2 = (self._each(name) for name in ("c1", "r1", "c2"))
        self._idle_w, self.full_w = self._each("idle_w"), self._each("full_w")
        self._law = np.array([board.law for board in self.boards])
        self._flagged = np.array([board.law in FLAGGED for board in self.boards])
        self._quantum = np.array([board.sensor.quantum_c for board in self.boards])
        self._noise = np.array([board.sensor.noise_c for board in self.boards])
        self._lowest = np.array([board.clock_shares[0] for board in self.boards])
        self._prepare_voltages()
        self._prepare_fans()
        self._off_c = np.array([OFF_C[board.law] for board in self.boards])
        self.clock, self.firmware_cap = np.ones(count), np.ones(count)
        self._stepped = np.ones(count)
        self.off = np.zeros(count, dtype=bool)
        self.power_w = self._idle_w.copy()
        self.t2 = ambient_c + self._idle_w * self._sink()
        self.t1 = self.t2 + self._idle_w * self._r1
        self._settle_idle()
        self._shown = self._read()
        self.sensor_c, self.second_c = self._shown, self._second

    def _each(self, name: str) -> Floats:
        values: Floats = np.array([getattr(board, name) for board in self.boards], dtype=np.float64)
        return values

    def _prepare_voltages(self) -> None:
        """(V / Vmax)^2 by clock share on a common grid of 101 points per lane."""
        self._grid = np.linspace(0.0, 1.0, 101)
        rows = []
        for board in self.boards:
            clocks, volts = zip(*board.volts, strict=True)
            at = np.interp(self._grid * board.clocks_mhz[-1], clocks, volts)
            rows.append((at / at[-1]) ** 2)
        self._volts2 = np.array(rows)
        self._lane = np.arange(len(self.boards))

    def volts2(self, clock: Floats) -> Floats:
        """(V / Vmax)^2 at the given clock shares."""
        place = np.clip(clock, 0.0, 1.0) * 100.0
        low = np.minimum(place.astype(int), 99)
        part = place - low
        table: Floats = self._volts2
        found: Floats = table[self._lane, low] * (1.0 - part) + table[self._lane, low + 1] * part
        return found

    def _prepare_fans(self) -> None:
        levels = max(len(board.fan.k_per_w) for board in self.boards)
        self._sinks = np.array([_padded(board.fan.k_per_w, levels) for board in self.boards])
        self._fan_w = np.array([_padded(board.fan.watts, levels) for board in self.boards])
        trips = [board.fan.trips_c + (1e9,) * (levels - len(board.fan.trips_c)) for board in self.boards]
        self._trips = np.array(trips)
        self._fan_hysteresis = np.array([board.fan.hysteresis_c for board in self.boards])
        self.fan = np.zeros(len(self.boards), dtype=int)

    def _sink(self) -> Floats:
        found: Floats = self._sinks[self._lane, self.fan] * self._cooling
        return found

    def _settle_idle(self) -> None:
        for _ in range(20):
            self._turn_fan(self.t1)
            watts = self._idle_w + self._fan_w[self._lane, self.fan]
            self.t2 = self.ambient_c + watts * self._sink()
            self.t1 = self.t2 + watts * self._r1
        self.power_w = self._idle_w + self._fan_w[self._lane, self.fan]

    def _turn_fan(self, shown_c: Floats) -> None:
        up = (shown_c[:, None] >= self._trips).sum(axis=1)
        keep = (shown_c[:, None] >= self._trips - self._fan_hysteresis[:, None]).sum(axis=1)
        self.fan = np.minimum(np.where(up > self.fan, up, np.minimum(self.fan, keep)), self._sinks.shape[1] - 1)

    def _read(self) -> Floats:
        noisy = self.t1 + self._noise * self._random.standard_normal(len(self.boards))
        self._second = np.round(noisy, 1)
        shown: Floats = np.round(noisy / self._quantum) * self._quantum
        return shown

    def second(self) -> None:
        """Once a second: sample the sensor (the value shown is a second old), switch the fan, decide the firmware's
        cap.
        """
        self.second_c = self._second
        self.sensor_c, self._shown = self._shown, self._read()
        self._turn_fan(self._shown)
        self.firmware_cap = self._firmware(self._shown)

    @property
    def flags(self) -> npt.NDArray[np.int64]:
        """Throttle words of Raspberry Pis by the shown temperature: bit 3 from 80 °C, bits 1 and 2 from 85 °C; else 0.

        From the documentation of get_throttled, and 0x80008 observed at 82 °C (raspberrypi/documentation issue 2546).
        """
        hot = np.where(self.sensor_c >= 85.0, 0b1110, np.where(self.sensor_c >= 80.0, 0b1000, 0))
        words: npt.NDArray[np.int64] = np.where(self._flagged, hot, 0)
        return words

    def _firmware(self, shown_c: Floats) -> Floats:
        over = shown_c - 80.0
        pi5 = np.where(over < 5.0, 1.0 - 0.02 * over, 0.90 - (0.90 - 0.625) * (over - 5.0) / 3.0)
        pi5 = np.clip(pi5, 0.625, 1.0)
        pi4 = np.where(over < 5.0, np.clip(1.0 - 0.069 * over, self._lowest, 1.0), self._lowest)
        nano = (self._law == "nano") & (shown_c >= 97.0)
        orin = (self._law == "orin") & (shown_c >= 99.0)
        hot = nano | orin
        step = np.where(self._law == "nano", 0.12, 0.06)
        self._stepped = np.clip(self._stepped + np.where(hot, -step, step), self._lowest, 1.0)
        heavy = np.where((self._law == "nano") & (shown_c >= 100.5), 0.5, 1.0)
        stepped = self._stepped * heavy
        return np.where(self._law == "pi5", pi5, np.where(self._law == "pi4", pi4, stepped))

    def step(self, share: Floats, user_cap: Floats, dt_s: float) -> None:
        """Advance by `dt_s` with this share of dynamic power (without the clock's part) and the user's clock cap."""
        pi = (self._law == "pi5") | (self._law == "pi4")
        overridden = pi & (self.firmware_cap < 1.0)
        wanted = np.where(overridden, self.firmware_cap, np.minimum(user_cap, self.firmware_cap))
        self.clock += (wanted - self.clock) * min(1.0, dt_s / 1.0)
        self.power_w = np.where(self.off, 0.0, self.watts(share, self.clock, self.t1))
        flow = (self.t1 - self.t2) / self._r1
        self.t2 = self.t2 + dt_s * (flow - (self.t2 - self.ambient_c) / self._sink()) / self._c2
        self.t1 = self.t1 + dt_s * (self.power_w - flow) / self._c1
        self.off |= self.t1 >= self._off_c

    def watts(self, share: Floats, clock: Floats, t1: Floats) -> Floats:
        """Watts of the board at this share of dynamic power, clock and die temperature."""
        leak = 1.0 + LEAK_PER_C * (t1 - 60.0)
        fan_w = self._fan_w[self._lane, self.fan]
        watts: Floats = self._idle_w + fan_w + self.full_w * share * clock * self.volts2(clock) * leak
        return watts

    def settled_c(self, share: Floats, user_cap: Floats) -> Floats:
        """Steady-state die temperature under constant limits, without firmware; the fan level is found by iteration."""
        kept = self.fan.copy()
        t1 = np.full(len(self.boards), 60.0)
        self.fan = np.zeros_like(self.fan)
        for _ in range(60):
            watts = self.watts(share, user_cap, np.minimum(t1, 150.0))
            t1 = self.ambient_c + watts * (self._sink() + self._r1)
            self.fan = np.maximum(
                self.fan, np.minimum((t1[:, None] >= self._trips).sum(axis=1), self._sinks.shape[1] - 1)
            )
        self.fan = kept
        return t1


def _padded(values: tuple[float, ...], count: int) -> list[float]:
    return [*values, *([values[-1]] * (count - len(values)))]
