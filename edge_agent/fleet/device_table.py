"""The devices of a broker as one table: what each says of itself, trouble first. No socket, no clock.

Names, boards and reasons come from whoever may publish on the broker: names are checked before they are kept, texts are
cleaned and cut where a line is made, figures that no terminal can show are left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from edge_agent.base.limits import DEVICES_WATCHED
from edge_agent.base.shown_text import one_line
from edge_agent.client.device_feed import read_said
from edge_agent.core.governor import GovernorLevel
from edge_agent.protocol.messages import Info, ModelEntry, Models, Reported, ReportedTrial, Status, Telemetry

Said = Status | Info | Models | Reported | Telemetry
KINDS: Mapping[str, type[Said]] = {
    "status": Status,
    "info": Info,
    "models": Models,
    "reported": Reported,
    "telemetry": Telemetry,
}
UP = ("online", "degraded", "starting")
LOST_HEARTBEATS = 2
WRONG_CLOCK_S = 86400.0
"""A status that is so far in the future was written by a clock that is wrong; one before 2020 was, too (boards without
a battery begin in 1970). Its age is then not known."""
YEAR_2020_S = 1_577_836_800.0
LEVELS = frozenset(level.name.lower() for level in GovernorLevel)
MODELS_SHOWN = 3
FIGURES_SHOWN = 32
HEADS = ("device", "state", "age", "board", "agent", "models", "desired", "heat", "refused")
WIDEST = (24, 10, 8, 20, 10, 44, 14, 16, 8)
"""Columns are as wide as what stands in them, so many characters at most; longer texts are cut."""


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device as it is now. `age_s`: seconds since its last status, None where its clock is wrong. `trials`: of
    versions on requests, those under way and the last of each model. `heat_c`, `level`, `refused` (of its last report)
    and `requests` are None until a report was heard. `trouble` says what is wrong, in sentences; empty: nothing is."""

    device: str
    state: str
    age_s: float | None
    board: str | None
    agent: str | None
    models: tuple[Mapping[str, Any], ...]
    desired: Mapping[str, Any] | None
    trials: tuple[Mapping[str, Any], ...]
    heat_c: float | None
    level: str | None
    requests: int | None
    refused: int | None
    trouble: tuple[str, ...]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        lists = {"models": list(self.models), "trials": list(self.trials), "trouble": list(self.trouble)}
        return {**fields, **lists}


@dataclass(slots=True)
class DeviceSaid:
    """The newest of each kind that a device has said."""

    status: Status | None = None
    live_s: float | None = None  # when a status came that was not retained before, monotonic
    info: Info | None = None
    models: Models | None = None
    reported: Reported | None = None
    telemetry: Telemetry | None = None

    def take(self, body: Said, now_s: float) -> None:
        """A message of the device."""
        if isinstance(body, Status):
            before = self.status
            if before is not None and (before.boot_id, before.seq) != (body.boot_id, body.seq):
                self.live_s = now_s
            self.status = body
        elif isinstance(body, Info):
            self.info = body
        elif isinstance(body, Models):
            self.models = body
        elif isinstance(body, Reported):
            self.reported = body
        else:
            self.telemetry, self.live_s = body, now_s


class DeviceTable:
    """Keeps the newest messages of the devices whose names fit one of the patterns (`*` and `?`; none: all)."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self._patterns = tuple(patterns)
        self._devices: dict[str, DeviceSaid] = {}
        self.unreadable = 0

    def take(self, device: str, kind: str, payload: bytes, now_s: float) -> Said | None:
        """A message, at a monotonic time, as its type. What is none of this version is counted and left aside; an
        empty one takes back what was retained, and changes nothing."""
        if self._patterns and not any(fnmatchcase(device, pattern) for pattern in self._patterns):
            return None
        if not payload:
            return None
        body = read_said(KINDS, device, kind, payload)
        if body is None or (device not in self._devices and len(self._devices) >= DEVICES_WATCHED):
            self.unreadable += 1
            return None
        self._devices.setdefault(device, DeviceSaid()).take(body, now_s)
        return body

    def forget(self, device: str) -> None:
        """Leave a device out until it says something again."""
        self._devices.pop(device, None)

    def said(self) -> Mapping[str, DeviceSaid]:
        """By device, what was heard of it."""
        return self._devices

    def up(self, now_s: float, wall_s: float) -> Collection[str]:
        """Devices that say so, and have said it lately."""
        return [name for name, one in self._devices.items() if _state(one, now_s, wall_s) in UP]

    def unheard(self, now_s: float, wall_s: float) -> Collection[str]:
        """Devices that are there and whose next report was not heard yet."""
        return [name for name in self.up(now_s, wall_s) if self._devices[name].telemetry is None]

    def rows(self, now_s: float, wall_s: float) -> list[DeviceRow]:
        """Every device, those in trouble first, then by name."""
        found = [_row(name, one, now_s, wall_s) for name, one in self._devices.items()]
        return sorted(found, key=lambda row: (not row.trouble, row.device))


def _age_s(one: DeviceSaid, now_s: float, wall_s: float) -> float | None:
    if one.live_s is not None:
        return max(0.0, now_s - one.live_s)
    if one.status is None or not YEAR_2020_S <= one.status.ts <= wall_s + WRONG_CLOCK_S:
        return None
    return max(0.0, wall_s - one.status.ts)


def _state(one: DeviceSaid, now_s: float, wall_s: float) -> str:
    """What the device says of itself, or 'lost' where it has not said it for two heartbeats: its will did not come, as
    the broker was gone, too."""
    if one.status is None:
        return "silent"
    age_s = _age_s(one, now_s, wall_s)
    late = age_s is not None and age_s > LOST_HEARTBEATS * one.status.heartbeat_s
    return "lost" if late and one.status.state != "offline" else one.status.state


def _row(name: str, one: DeviceSaid, now_s: float, wall_s: float) -> DeviceRow:
    telemetry, state = one.telemetry, _state(one, now_s, wall_s)
    heat = None if telemetry is None else telemetry.sensors.get("temperature")
    level = None if telemetry is None else telemetry.governor.get("level")
    level = level if level is None or (isinstance(level, str) and level in LEVELS) else "?"
    return DeviceRow(
        device=name,
        state=state,
        age_s=_age_s(one, now_s, wall_s),
        board=None if one.info is None else one.info.board,
        agent=None if one.info is None else one.info.agent,
        models=() if one.models is None else tuple(_model(entry) for entry in one.models.models),
        desired=_desired(one.reported),
        trials=() if one.reported is None else tuple(_trial(trial) for trial in one.reported.trials),
        heat_c=None if heat is None else _number(heat.value),
        level=level,
        requests=None if telemetry is None else _count(sum(one.requests for one in telemetry.models.values())),
        refused=None if telemetry is None else _count(sum(telemetry.refusals.values())),
        trouble=tuple(_troubles(one, state, level)),
    )


def _model(entry: ModelEntry) -> dict[str, Any]:
    chosen = next((one for one in entry.variants if one.digest == entry.variant), None)
    return {
        "model": entry.name,
        "version": _count(entry.version),
        "variant": None if chosen is None else f"{chosen.runtime}/{chosen.dtype}",
        "resident": entry.resident,
        "adapters": {one.name: one.version for one in entry.adapters},
    }


def _desired(reported: Reported | None) -> dict[str, Any] | None:
    if reported is None or reported.version is None:
        return None
    return {"version": _count(reported.version), "state": reported.state}


def _trial(trial: ReportedTrial) -> dict[str, Any]:
    figures = {name: _number(value) for name, value in list(trial.figures.items())[:FIGURES_SHOWN]}
    version, spent_s = _count(trial.version), _number(trial.spent_s)
    return {
        "model": trial.model,
        "version": version,
        "state": trial.state,
        "sure": trial.sure,
        "spent_s": spent_s,
        "reason": trial.reason,
        "figures": figures,
    }


def _troubles(one: DeviceSaid, state: str, level: str | None) -> Iterable[str]:
    if one.status is None:
        yield "it has published no status"
    elif state != "online":
        yield one.status.reason or f"it is {state}"
    if (reported := one.reported) is not None:
        for item in reported.items:
            if item.state in ("refused", "rolled-back"):
                what = item.model if item.adapter is None else f"{item.model} + {item.adapter}"
                yield f"{what} {item.state}: {item.reason or 'without a reason'}"
        if reported.not_taken is not None:
            yield f"desired not taken: {reported.not_taken.reason}"
    if level not in (None, "normal"):
        yield f"heat: {level}"
    for name, canary in () if one.telemetry is None else one.telemetry.canaries.items():
        failed = [adapter for adapter, probe in canary.adapters.items() if probe.ok is False]
        if canary.ok is False or failed:
            yield f"golden probes fail: {' + '.join([name, *failed[:1]])}"


def _number(value: Any) -> float | None:
    """A reading that can be shown; JSON has numbers of any size."""
    try:
        return float(value) if value is not None and math.isfinite(value) else None
    except (OverflowError, TypeError):
        return None


def _count(value: int) -> int | None:
    """A whole number that is one: Python refuses to write one of 5,000 digits."""
    return value if abs(value) < 2**63 else None


def table_text(rows: Sequence[DeviceRow], width: int | None = None) -> list[str]:
    """Lines for people, each at most `width` characters (None: as long as it is), and what is wrong below each device
    that is in trouble."""
    cells = [_cells(row) for row in rows]
    wide = [
        min(most, max(len(head), *(len(line[at]) for line in cells))) if cells else len(head)
        for at, (head, most) in enumerate(zip(HEADS, WIDEST, strict=True))
    ]
    found = [_line(HEADS, wide)]
    for row, line in zip(rows, cells, strict=True):
        found.append(_line(line, wide))
        found += [f"    {one_line(said)}" for said in row.trouble[:4]]
        if len(row.trouble) > 4:
            found.append(f"    and {len(row.trouble) - 4} more")
    return [_cut(line.rstrip(), width) for line in found]


def summary_text(rows: Sequence[DeviceRow], unreadable: int = 0) -> str:
    """One line about all of them, and how many messages on topics of devices were none."""
    states: dict[str, int] = {}
    for row in rows:
        states[row.state] = states.get(row.state, 0) + 1
    listed = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    troubled = sum(bool(row.trouble) for row in rows)
    others = f"; {unreadable} message{'' if unreadable == 1 else 's'} could not be read" if unreadable else ""
    return f"{len(rows)} device{'' if len(rows) == 1 else 's'}: {listed or 'none'}; {troubled} in trouble{others}"


def age_text(age_s: float | None) -> str:
    """An age in its largest unit: '12 s', '5 min', '3 h', '9 d'."""
    if age_s is None:
        return "?"
    for unit, size_s in (("d", 86400), ("h", 3600), ("min", 60)):
        if age_s >= 2 * size_s:
            return f"{age_s / size_s:.0f} {unit}"
    return f"{age_s:.0f} s"


def _cells(row: DeviceRow) -> tuple[str, ...]:
    trials = {one["model"]: one for one in row.trials if one["state"] == "running"}
    models = [_model_text(one, trials.get(one["model"])) for one in row.models[:MODELS_SHOWN]]
    if len(row.models) > MODELS_SHOWN:
        models.append(f"+{len(row.models) - MODELS_SHOWN}")
    heat = "-" if row.level is None else row.level if row.heat_c is None else f"{row.heat_c:.0f} °C {row.level}"
    desired = "-" if row.desired is None else f"{row.desired['version']} {row.desired['state']}"
    texts = (
        row.device, row.state, age_text(row.age_s), row.board or "-", row.agent or "-", ", ".join(models) or "-",
        desired, heat, "-" if row.refused is None else str(row.refused),
    )  # fmt: skip
    return tuple(one_line(text) for text in texts)


def _model_text(one: Mapping[str, Any], trial: Mapping[str, Any] | None) -> str:
    """With the version that is on trial beside it, and how many requests that has been compared on."""
    adapters = "".join(f"+{name}" for name in list(one["adapters"])[:1])
    more = f"+{len(one['adapters']) - 1}" if len(one["adapters"]) > 1 else ""
    variant = "" if one["variant"] is None else f" {one['variant']}"
    seen = None if trial is None else trial["figures"].get("requests")
    beside = "" if trial is None else f" (trial of {trial['version']}: {0 if seen is None else seen:.0f})"
    return f"{one['model']}{adapters}{more} {one['version']}{variant}{beside}"


def _line(cells: Sequence[str], wide: Sequence[int]) -> str:
    return "  ".join(_cut(cell, size).ljust(size) for cell, size in zip(cells, wide, strict=True))


def _cut(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else text[: max(0, width - 1)] + "…"
