"""jtop (jetson-stats) as an additional source on a Jetson: temperature, board power and NvMap without root permissions.

The only module that imports jetson-stats, and only once `JtopSource.open` is called. It is optional because its licence
is AGPL-3.0-or-later, and because it brings threads and a multiprocessing manager into the daemon. sysfs has precedence
wherever it can be read (docs/decisions/0120).

The jtop client returns the last sample for ever when its service hangs or has ended. Every sample contains the uptime
of the service at which it was taken. A sample whose uptime has not increased is not new: it keeps the time at which it
was first seen, and has no value after `STALE_S`. This module owns no clock: the time is an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_agent.base.reading import Reading, unavailable

INTERVAL_S = 1.0
STALE_S = 5.0
"""Up to four samples late: without other clients the service samples every three seconds, and less on a busy board."""
OFFLINE_C = -256.0
HIGHEST_W = 200.0
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
        try:
            import jtop
            import jtop.service

            # The client reads this module variable; a simulated board has its socket elsewhere.
            jtop.service.JTOP_PIPE = str(self._socket)
            client = jtop.jtop(interval=INTERVAL_S)
            client.start()
        except ImportError:
            self._trouble = "jetson-stats is not installed (install edge-agent with its extra jetson)"
        except (jtop.JtopException, OSError, ValueError, KeyError, EOFError) as error:
            self._trouble = f"{self._socket}: {str(error).strip() or type(error).__name__}"[:200].replace("\n", " ")
        else:
            before, self._client, self._trouble = self._client, client, None
            if before is not None:
                before.close()

    def read(self, now_s: float) -> Mapping[str, Reading]:
        """`temperature_jtop`, `power_jtop` and `nvmap_jtop` of the newest sample, with the time at which it was first
        seen.
        """
        client = self._client
        if client is not None:
            self._trouble = self._aged(client.uptime, now_s)
        if self._trouble is not None:
            return {key: unavailable(unit, SOURCE, now_s, self._trouble) for key, unit in _UNITS.items()}
        return {
            "temperature_jtop": parse_temperatures(client.temperature, self._names, self._new_s),
            "power_jtop": parse_power(client.power, self._new_s),
            "nvmap_jtop": parse_nvmap(client.memory, self._new_s),
        }

    def _aged(self, uptime: object, now_s: float) -> str | None:
        if uptime != self._uptime:
            self._uptime, self._new_s = uptime, now_s
        age_s = now_s - self._new_s
        return None if age_s <= STALE_S else f"the service gave nothing new for {age_s:.0f} s"


_UNITS = {"temperature_jtop": "celsius", "power_jtop": "watts", "nvmap_jtop": "bytes"}


def short_name(zone: str) -> str:
    """The name that jtop gives a thermal zone: its type up to the first '-' or '_', in lower case."""
    return zone.replace("_", "-").split("-")[0].lower()


def parse_temperatures(zones: Mapping[str, Any], wanted: frozenset[str], taken_s: float) -> Reading:
    """The hottest online zone (-256 °C means offline), of the `wanted` zones where there is any of them."""
    found: dict[str, float] = {}
    for name, zone in zones.items():
        value = zone.get("temp") if isinstance(zone, Mapping) else None
        if isinstance(value, int | float) and zone.get("online", True) and -40.0 < value < 150.0:
            found[str(name)] = float(value)
    counted = {name: value for name, value in found.items() if short_name(name) in wanted} or found
    if not counted:
        return unavailable("celsius", SOURCE, taken_s, "no zone is on line")
    name = max(counted, key=lambda one: counted[one])
    return Reading(counted[name], "celsius", f"{SOURCE} {name}", taken_s)


def parse_power(power: Mapping[str, Any], taken_s: float) -> Reading:
    """Board power: jtop's total in mW, which is the input rail where the board has one, else the sum of its rails."""
    total = power.get("tot", {})
    value = total.get("power") if isinstance(total, Mapping) else None
    if not isinstance(value, int | float) or not 0 < value <= 1000.0 * HIGHEST_W:
        return unavailable("watts", SOURCE, taken_s, f"its total is {value!r:.40}")
    return Reading(value / 1000.0, "watts", f"{SOURCE} {total.get('name', 'total')}", taken_s)


def parse_nvmap(memory: Mapping[str, Any], taken_s: float) -> Reading:
    """Memory that the GPU holds: jtop's `shared` is NvMapMemUsed in KiB."""
    ram = memory.get("RAM", {})
    value = ram.get("shared") if isinstance(ram, Mapping) else None
    if not isinstance(value, int | float) or value < 0:
        return unavailable("bytes", SOURCE, taken_s, "it shows no shared memory")
    return Reading(value * 1024.0, "bytes", SOURCE, taken_s)
