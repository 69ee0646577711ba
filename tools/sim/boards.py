"""Boards as thermal plants: resistances, capacities, power, clocks, throttling laws and sensors.

Resistances, capacities and watts are fits to published step responses and power measurements (docs/boards.md). Figures
marked [E] are estimated. All carry an uncertainty of about 25 % in K/W and 40 % in J/K, which is why cases are swept
and nothing is tuned to a single one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Law = Literal["pi5", "pi4", "nano", "orin"]
"""The throttling law of the firmware; see `sim.plant`."""
FLAGGED = frozenset({"pi5", "pi4"})
"""Laws of boards that report throttling by flags."""


@dataclass(frozen=True)
class Fan:
    """Sink-to-air resistance by fan level (first: off), °C at which each level starts, and its hysteresis."""

    k_per_w: tuple[float, ...]
    trips_c: tuple[float, ...]
    hysteresis_c: float
    watts: tuple[float, ...]


@dataclass(frozen=True)
class Sensor:
    """The die's temperature as the kernel shows it: quantum and noise (standard deviation) in °C; one second old."""

    quantum_c: float
    noise_c: float


@dataclass(frozen=True)
class BoardModel:
    """One board with its cooling. Resistances in K/W, capacities in J/K, watts at the board's input, clocks in MHz.

    `volts`: core voltage by clock, interpolated. `row_s`: seconds of one encoder row (MiniLM-L6, 128 tokens, in int8 or
    the faster format) at the full clock in full batches. `token_s`: one decode step of a model with 1 B parameters in 4
    bits. `powered`: relative noise of the power sensor; None without one.
    """

    key: str
    board: str
    name: str
    c1: float
    r1: float
    c2: float
    fan: Fan
    idle_w: float
    full_w: float
    cores: int
    clocks_mhz: tuple[int, ...]
    volts: tuple[tuple[float, float], ...]
    law: Law
    soft_c: float
    hard_c: float
    sensor: Sensor
    powered: float | None
    row_s: float
    token_s: float

    @property
    def clock_shares(self) -> tuple[float, ...]:
        """The clocks that can be set, as shares of the highest."""
        return tuple(clock / self.clocks_mhz[-1] for clock in self.clocks_mhz)


def _still(k_per_w: float) -> Fan:
    return Fan((k_per_w,), (), 0.0, (0.0,))


_PI4_SENSOR, _PI5_SENSOR = Sensor(0.487, 0.6), Sensor(0.55, 0.6)
_PI4_VOLTS = ((600.0, 0.80), (1500.0, 0.86), (1800.0, 0.93))
_PI5_VOLTS = ((1500.0, 0.72), (2000.0, 0.80), (2400.0, 0.91))
_PI5_CLOCKS = tuple(range(1500, 2401, 100))

PI_ZERO_2 = BoardModel(
    # Fitted to reports of more than 60 °C at 1.8 W and 80 °C and more under full load; the least certain plant [E].
    "pi-zero-2", "pi-zero-2", "Pi Zero 2 W, bare", 1.2, 6.0, 12.0, _still(14.0), 0.7, 2.2, 4,
    (600, 700, 800, 900, 1000), ((600.0, 1.20), (1000.0, 1.34)), "pi4", 80.0, 85.0, _PI4_SENSOR, None, 0.55, 0.9,
)  # fmt: skip
PI4 = BoardModel(
    "pi-4", "pi-4", "Pi 4, bare", 1.7, 4.3, 25.0, _still(4.6), 2.7, 4.6, 4,
    tuple(range(600, 1801, 100)), _PI4_VOLTS, "pi4", 80.0, 85.0, _PI4_SENSOR, None, 0.12, 0.25,
)  # fmt: skip
PI5_BARE = BoardModel(
    "pi-5-bare", "pi-5", "Pi 5, bare", 3.5, 2.2, 30.0, _still(6.2), 3.2, 7.5, 4,
    _PI5_CLOCKS, _PI5_VOLTS, "pi5", 80.0, 85.0, _PI5_SENSOR, 0.03, 0.018, 0.088,
)  # fmt: skip
PI5_SINK = BoardModel(
    "pi-5-sink", "pi-5", "Pi 5, passive sink", 3.5, 2.0, 60.0, _still(3.6), 3.2, 7.5, 4,
    _PI5_CLOCKS, _PI5_VOLTS, "pi5", 80.0, 85.0, _PI5_SENSOR, 0.03, 0.018, 0.088,
)  # fmt: skip
PI5_COOLER = BoardModel(
    "pi-5-cooler", "pi-5", "Pi 5, Active Cooler", 3.5, 2.0, 60.0,
    Fan((5.0, 2.4, 2.05, 1.7, 1.4), (50.0, 60.0, 67.5, 75.0), 5.0, (0.0, 0.15, 0.25, 0.35, 0.5)), 3.2, 7.5, 4,
    _PI5_CLOCKS, _PI5_VOLTS, "pi5", 80.0, 85.0, _PI5_SENSOR, 0.03, 0.018, 0.088,
)  # fmt: skip
NANO = BoardModel(
    # A sensor with steps of 0.5 °C and little noise; voltages of the magnitude in the tegra210 tables [E].
    "jetson-nano", "jetson-nano", "Jetson Nano, fanless", 4.0, 1.0, 150.0, _still(4.0), 2.0, 8.0, 4,
    (614, 710, 825, 921, 1036, 1132, 1224, 1326, 1428, 1479), ((614.0, 0.85), (1479.0, 1.15)), "nano", 97.0, 100.5,
    Sensor(0.5, 0.3), 0.01, 0.015, 0.22,
)  # fmt: skip
ORIN_NANO = BoardModel(
    "orin-nano", "orin-nano", "Orin Nano, fan", 5.0, 0.6, 200.0,
    Fan((2.0, 1.7, 1.45, 1.2), (50.0, 65.0, 80.0), 5.0, (0.0, 0.4, 0.8, 1.2)), 5.0, 15.0, 6,
    (729, 883, 1036, 1190, 1344, 1510, 1728), ((729.0, 0.70), (1728.0, 1.0)), "orin", 95.0, 99.0,
    Sensor(0.031, 0.25), 0.01, 0.0015, 0.016,
)  # fmt: skip

BOARDS = {model.key: model for model in (PI_ZERO_2, PI4, PI5_BARE, PI5_SINK, PI5_COOLER, NANO, ORIN_NANO)}
"""All plants by key."""
