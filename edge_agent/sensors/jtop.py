"""jtop (jetson-stats) as an additional source on a Jetson: temperature, board power and NvMap without root permissions.

The only module that imports jetson-stats, and only once `JtopSource.open` is called. It is optional because its licence
is AGPL-3.0-or-later, and because it brings threads and a multiprocessing manager into the daemon. sysfs has precedence
wherever it can be read (docs/decisions/0120).

jetson-stats breaks with new JetPacks, locales, boards and versions of its service, with exceptions of every kind and
with values of other types. So each access to the client is a boundary: what it raises becomes the reason of a reading,
and the next read, or the next `open`, tries again.

The jtop client returns the last sample for ever when its service hangs or has ended. Every sample contains the uptime
of the service at which it was taken. A sample whose uptime has not increased is not new: it keeps the time at which it
was first seen, and has no value after `STALE_S`. This module owns no clock: the time is an argument.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from edge_agent.base.reading import Reading, unavailable

INTERVAL_S = 1.0
STALE_S = 5.0
"""Up to four samples late: without other clients the service samples every three seconds, and less on a busy board."""
OFFLINE_C = -256.0
HIGHEST_W = 200.0
HIGHEST_NVMAP_KIB = 1 << 34
"""16 TiB. More is no memory of a board but a broken figure."""
REASON_CHARS = 200
SOURCE = "jtop"


class JtopSource:
    """A client of the jtop service at `socket`. Nothing raises; a reading says why it has no value."""

    def __init__(self, socket: Path, zones: Sequence[str] = ()) -> None:
        """`zones`: the board's thermal zones by their names in sysfs; empty: all."""
        self._socket = socket
        self._names = frozenset(short_name(zone) for zone in zones)
        self._client: Any = None
        self._trouble: str | None = "not asked yet"
        self._uptime: object = None
        self._new_s = 0.0

    @property
    def lost(self) -> bool:
        """True when `open` should be called: never opened, failed, or no new sample for too long."""
        return self._trouble is not None

    def open(self) -> None:
        """Connect or reconnect. Call it in its own thread: the client waits for its service without a time limit."""
        trouble = _raised_by(self._connect)
        self._trouble = None if trouble is None else f"{self._socket}: {trouble}"

    def _connect(self) -> None:
        import jtop
        import jtop.service

        # The client reads this module variable; a simulated board has its socket elsewhere.
        jtop.service.JTOP_PIPE = str(self._socket)
        client = jtop.jtop(interval=INTERVAL_S)
        client.start()
        before, self._client = self._client, client
        if before is not None:
            _raised_by(before.close)  # what an old client says at its end is no concern of the new one

    def read(self, now_s: float) -> Mapping[str, Reading]:
        """`temperature_jtop`, `power_jtop` and `nvmap_jtop` of the newest sample, with the time at which it was first
        seen.
        """
        client = self._client
        if client is not None:
            self._trouble = _raised_by(lambda: self._look_at_age(client, now_s)) or self._aged(now_s)
        if self._trouble is not None:
            return {key: unavailable(unit, SOURCE, now_s, self._trouble) for key, unit in _UNITS.items()}
        taken_s = self._new_s
        return {
            "temperature_jtop": _read("celsius", taken_s, lambda: self._temperature(client)),
            "power_jtop": _read("watts", taken_s, lambda: parse_power(client.power, taken_s)),
            "nvmap_jtop": _read("bytes", taken_s, lambda: parse_nvmap(client.memory, taken_s)),
        }

    def _temperature(self, client: Any) -> Reading:
        return parse_temperatures(client.temperature, self._names, self._new_s)

    def _look_at_age(self, client: Any, now_s: float) -> None:
        uptime = client.uptime
        # A NaN would be new at every look.
        if not isinstance(uptime, timedelta) and _number(uptime) is None:
            raise ValueError(f"its uptime is {_shown(uptime)}")
        if uptime != self._uptime:
            self._uptime, self._new_s = uptime, now_s

    def _aged(self, now_s: float) -> str | None:
        age_s = now_s - self._new_s
        return None if age_s <= STALE_S else f"the service gave nothing new for {age_s:.0f} s"


def _raised_by(action: Callable[[], object]) -> str | None:
    """What a call into jetson-stats raised, in one line; None when it returned. A module that ends the interpreter
    (SystemExit) counts as well: it would end the thread that tries again."""
    try:
        action()
    except (Exception, SystemExit) as error:  # noqa: BLE001
        if isinstance(error, ModuleNotFoundError) and error.name == "jtop":
            return "jetson-stats is not installed (install edge-agent with its extra jetson)"
        # Not str(error), which may raise as well.
        said = " ".join(traceback.format_exception_only(type(error), error)[-1].split())
        return f"jetson-stats failed: {said}"[:REASON_CHARS]
    return None


def _read(unit: str, taken_s: float, parse: Callable[[], Reading]) -> Reading:
    """The reading that `parse` makes of one property, or one with the reason why it could not."""
    found: list[Reading] = []
    trouble = _raised_by(lambda: found.append(parse()))
    return found[0] if trouble is None else unavailable(unit, SOURCE, taken_s, trouble)


_UNITS = {"temperature_jtop": "celsius", "power_jtop": "watts", "nvmap_jtop": "bytes"}


def short_name(zone: str) -> str:
    """The name that jtop gives a thermal zone: its type up to the first '-' or '_', in lower case."""
    return zone.replace("_", "-").split("-")[0].lower()


def parse_temperatures(zones: object, wanted: frozenset[str], taken_s: float) -> Reading:
    """The hottest online zone (-256 °C means offline), of the `wanted` zones where there is any of them."""
    if not isinstance(zones, Mapping):
        return unavailable("celsius", SOURCE, taken_s, f"its temperatures are {_shown(zones)}")
    found: dict[str, float] = {}
    for name, zone in zones.items():
        value = _number(zone.get("temp")) if isinstance(zone, Mapping) and zone.get("online", True) else None
        if value is not None and -40.0 < value < 150.0:
            found[str(name)] = value
    counted = {name: value for name, value in found.items() if short_name(name) in wanted} or found
    if not counted:
        return unavailable("celsius", SOURCE, taken_s, "no zone is on line")
    name = max(counted, key=lambda one: counted[one])
    return Reading(counted[name], "celsius", f"{SOURCE} {name}", taken_s)


def parse_power(power: object, taken_s: float) -> Reading:
    """Board power: jtop's total in mW, which is the input rail where the board has one, else the sum of its rails."""
    total = power.get("tot") if isinstance(power, Mapping) else None
    if not isinstance(total, Mapping):
        return unavailable("watts", SOURCE, taken_s, f"it has no total but {_shown(power)}")
    value = _number(total.get("power"))
    if value is None or not 0 < value <= 1000.0 * HIGHEST_W:
        return unavailable("watts", SOURCE, taken_s, f"its total is {_shown(total.get('power'))}")
    return Reading(value / 1000.0, "watts", f"{SOURCE} {total.get('name', 'total')}", taken_s)


def parse_nvmap(memory: object, taken_s: float) -> Reading:
    """Memory that the GPU holds: jtop's `shared` is NvMapMemUsed in KiB."""
    ram = memory.get("RAM") if isinstance(memory, Mapping) else None
    value = _number(ram.get("shared")) if isinstance(ram, Mapping) else None
    if value is None or not 0 <= value <= HIGHEST_NVMAP_KIB:
        return unavailable("bytes", SOURCE, taken_s, "it shows no shared memory")
    return Reading(value * 1024.0, "bytes", SOURCE, taken_s)


def _number(value: object) -> float | None:
    """A finite number of jtop's as a float; None for anything else, truth values included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _shown(value: object) -> str:
    return repr(value)[:40]
