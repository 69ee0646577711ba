"""`edge-agent top` and `record`: what a device says of itself over MQTT, live in a terminal or as a table on disk."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import io
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.app.ask import CONNECT_S, DeviceTarget, target
from edge_agent.base.errors import UsageError
from edge_agent.base.named_file import open_named
from edge_agent.base.shown_text import csv_cell, one_line
from edge_agent.base.terminal import control
from edge_agent.base.units import bytes_text, duration_text
from edge_agent.client.device_feed import hear
from edge_agent.client.request_client import UNREADABLE
from edge_agent.protocol.messages import Event, Status, Telemetry

Report = Mapping[str, Any]
HISTORY = 60
EVENTS = 6
BARS = "▁▂▃▄▅▆▇█"
MODELS_SHOWN = 8
COLUMNS = (
    "time", "device", "interval_s", "model", "requests", "failed", "p50_ms", "p95_ms", "p99_ms", "compute_p50_ms",
    "batch_mean", "model_joules", "confidence_mean", "confidence_psi", "fragmentation_psi", "out_of_vocabulary",
    "held_bytes", "queue_jobs", "refused", "expired",
    "temperature_c", "forecast_c", "headroom_c", "governor_level", "busy_share", "power_w", "joules", "energy_method",
    "ram_available_bytes", "memory_stage", "rss_bytes",
)  # fmt: skip
"""Of the table that `edge-agent record` writes: one row per report and model; a device without work has one row."""


@dataclass(slots=True)
class DeviceView:
    """The messages received from a device so far. `heard_s` is when the last report came, monotonic."""

    device: str
    status: Report | None = None
    report: Report | None = None
    heard_s: float | None = None
    events: deque[Report] = field(default_factory=lambda: deque(maxlen=EVENTS))
    temperature: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY))
    rate: deque[float | None] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def take(self, kind: str, body: Report, now_s: float) -> None:
        """A message of the device: status, telemetry or event; other kinds are no concern of this view."""
        if kind == "status":
            self.status = body
        elif kind == "event":
            self.events.append(body)
        elif kind == "telemetry":
            self.report, self.heard_s = body, now_s
            self.temperature.append(_sensor(body, "temperature"))
            self.rate.append(sum(model["requests"] for model in body["models"].values()) / body["interval_s"])


def lines(seen: DeviceView, now_s: float, width: int = 80) -> list[str]:
    """One screen, no line longer than `width`."""
    report = seen.report
    if report is None or seen.heard_s is None:
        return [_cut(line, width) for line in (_head(seen, None), "waiting for the next report ...")]
    found = [
        _head(seen, now_s - seen.heard_s),
        "",
        _heat(report),
        *_heat_why(report),
        _memory(report),
        _energy(report),
        "",
    ]
    found += [f"  °C  {spark(seen.temperature)}", f"  1/s {spark(seen.rate)}", ""]
    found += [*_models(report), "", _refusals(report)]
    if seen.events:
        found += ["", "events", *(f"  {event['severity']:<8}{event['message']}" for event in seen.events)]
    return [_cut(line, width) for line in found]


def spark(values: Sequence[float | None]) -> str:
    """A row of bars from the least to the largest value, with both; a gap where there was none."""
    known = [value for value in values if value is not None]
    if not known:
        return "no value"
    low, high = min(known), max(known)
    span = high - low or 1.0
    bars = "".join(" " if value is None else BARS[min(7, int(8 * (value - low) / span))] for value in values)
    return f"{bars}  {low:.1f} to {high:.1f}, now {known[-1]:.1f}"


def rows(device: str, report: Report) -> Iterator[dict[str, Any]]:
    """One report as rows of `COLUMNS`; what is not known stays empty."""
    governor, memory = report["governor"], report["memory"]
    shared = {
        "time": report["ts"],
        "device": device,
        "interval_s": report["interval_s"],
        "queue_jobs": report["queue_jobs"],
        "refused": sum(report["refusals"].values()),
        "expired": report["expired"],
        "temperature_c": _sensor(report, "temperature"),
        "forecast_c": governor["forecast_c"],
        "headroom_c": governor["headroom_c"],
        "governor_level": governor["level"],
        "busy_share": governor["busy_share"],
        "power_w": _sensor(report, "power"),
        "joules": report["energy"]["joules"],
        "energy_method": report["energy"]["method"],
        "ram_available_bytes": _sensor(report, "ram_available"),
        "memory_stage": memory["stage"],
        "rss_bytes": report["rss_bytes"],
    }
    for name, model in (report["models"] or {"": None}).items():
        yield shared | {"model": name} | (_model_row(model, memory["models"].get(name)) if model is not None else {})


def _model_row(model: Report, account: Report | None) -> dict[str, Any]:
    total, compute = model["total_ms"] or {}, model["compute_ms"] or {}
    return {
        "requests": model["requests"],
        "failed": model["failed"],
        "p50_ms": total.get("p50"),
        "p95_ms": total.get("p95"),
        "p99_ms": total.get("p99"),
        "compute_p50_ms": compute.get("p50"),
        "batch_mean": model["batch_mean"],
        "model_joules": model["joules"],
        "confidence_mean": model["confidence_mean"],
        **{key: _worst(model, key) for key in ("confidence_psi", "fragmentation_psi", "out_of_vocabulary")},
        "held_bytes": account["held_bytes"] if account else None,
    }


def _head(seen: DeviceView, age_s: float | None) -> str:
    state = seen.status["state"] if seen.status else "no status yet"
    if seen.status and state != "online":
        state += f" ({seen.status['reason']})"
    late = "" if age_s is None else f"   report {duration_text(age_s)} old"
    up = "" if seen.report is None else f"   up {duration_text(seen.report['uptime_s'])}"
    return f"{seen.device}   {state}{up}{late}"


def _heat(report: Report) -> str:
    governor, celsius = report["governor"], _sensor(report, "temperature")
    shown = "no temperature" if celsius is None else f"{celsius:.1f} °C"
    forecast = "" if governor["forecast_c"] is None else f", {governor['forecast_c']:.1f} in ten seconds"
    room = "" if governor["headroom_c"] is None else f", {governor['headroom_c']:.1f} to the soft limit"
    busy = f"busy {governor['busy_share']:.0%} of the time at most"
    limits = f"{governor['max_rows']} rows, {governor['threads']} threads, {busy}"
    return f"heat    {shown}{forecast}{room}   governor {governor['level']}: {limits}"


def _heat_why(report: Report) -> list[str]:
    """The reason where heat, or a sensor that is taken for faulty, limits what runs."""
    governor = report["governor"]
    why = governor["derated"] or governor["disagree"] or (governor["why"] if governor["level"] != "normal" else "")
    return [f"        because: {why}"] if why else []


def _memory(report: Report) -> str:
    memory = report["memory"]
    if memory["available_bytes"] is None:
        return "memory  not known"
    held = sum(one["held_bytes"] for one in memory["models"].values())
    free, kept = bytes_text(memory["available_bytes"]), bytes_text(memory["reserve_bytes"] or 0)
    models = f"models hold {bytes_text(held)}, {bytes_text(memory['outstanding_bytes'])} more promised"
    return f"memory  {memory['stage']}: {free} available, {kept} stay free; {models}"


def _energy(report: Report) -> str:
    power, joules = _sensor(report, "power"), report["energy"]["joules"]
    shown = "no power sensor" if power is None else f"{power:.1f} W"
    used = "" if joules is None else f"; requests took {joules:.2f} J in {report['interval_s']:.0f} s"
    return f"power   {shown}{used} ({report['energy']['method']})"


def _models(report: Report) -> list[str]:
    found = [f"{'model':<24}{'req/s':>8}{'p50':>10}{'p99':>10}{'batch':>7}{'drift':>8}{'probes':>8}"]
    busiest = sorted(report["models"].items(), key=lambda item: -item[1]["requests"])
    for name, model in busiest[:MODELS_SHOWN]:
        found.append(_model_line(name, model["requests"], model["total_ms"], report["interval_s"], model["batch_mean"])
                     + _drift_text(model) + _canary_text(report["canaries"].get(name)))  # fmt: skip
        adapters = sorted(model["adapters"].items(), key=lambda item: -item[1]["requests"])[:MODELS_SHOWN]
        probes = (report["canaries"].get(name) or {}).get("adapters", {})
        found += [_model_line(f"  + {one}", of["requests"], of["total_ms"], report["interval_s"], None)
                  + f"{'':>8}" + _canary_text(probes.get(one)) for one, of in adapters]  # fmt: skip
    # In memory, and nothing was finished in this interval; a long answer may be under way.
    idle = sorted(set(report["memory"]["models"]) - set(report["models"]))
    found += [f"{name:<24}{0.0:>8.1f}{'':>35}" + _canary_text(report["canaries"].get(name)) for name in idle]
    return found if len(found) > 1 else [*found, "no requests in this interval"]


def _model_line(name: str, requests: int, total_ms: Report | None, interval_s: float, batch: float | None) -> str:
    p50, p99 = (f"{total_ms[at]:.1f} ms" if total_ms else "-" for at in ("p50", "p99"))
    return f"{name:<24}{requests / interval_s:>8.1f}{p50:>10}{p99:>10}{'' if batch is None else f'{batch:.1f}':>7}"


def _drift_text(model: Report) -> str:
    """The larger of both indices, of the adapter where it is largest: they are read on the same scale."""
    known = [index for key in ("confidence_psi", "fragmentation_psi") if (index := _worst(model, key)) is not None]
    return f"{max(known):>8.2f}" if known else f"{'-':>8}"


def _worst(model: Report, key: str) -> float | None:
    """The largest figure of drift among a model's adapters; an older agent does not know every one."""
    known = [value for one in model["drift"].values() if (value := one.get(key)) is not None]
    return max(known, default=None)


def _canary_text(canary: Report | None) -> str:
    """Of a model: it fails, too, where one of its adapters does, which may be among those not shown."""
    words = {True: "hold", False: "FAIL", None: "-"}
    known = [] if canary is None else [canary, *canary.get("adapters", {}).values()]
    failed = any(one["ok"] is False for one in known)
    return f"{words[False if failed else canary['ok'] if canary else None]:>8}"


def _refusals(report: Report) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report["refusal_reasons"].items()))
    return f"open {report['queue_jobs']}   refused {reasons or 'none'}   expired {report['expired']}"


def _sensor(report: Report, key: str) -> float | None:
    sensor = report["sensors"].get(key)
    return sensor["value"] if sensor else None


def _cut(line: str, width: int) -> str:
    """The text, without what a device could do to the terminal, in `width` characters."""
    line = one_line(line)
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"


HEADER_CHARS = 4096
"""Longer than the line of the column names."""
KINDS: Mapping[str, type[Status] | type[Telemetry] | type[Event]] = {
    "status": Status,
    "telemetry": Telemetry,
    "event": Event,
}
ONCE_S = 60.0
"""How long `--once` waits for a report, where `--seconds` is not given."""
CLEAR, HIDE, SHOW = "\x1b[H\x1b[2J", "\x1b[?25l", "\x1b[?25h"


async def _hear(place: DeviceTarget) -> AsyncIterator[tuple[str, Any]]:
    """(kind, body) of the device's messages; ('', None) about every second without one. Raises BrokerError."""
    async with contextlib.aclosing(hear(place.options, place.prefix, place.device, tuple(KINDS), CONNECT_S)) as feed:
        async for heard in feed:
            if not heard.kind:
                yield "", None
            elif is_report(heard.kind, heard.payload):
                yield heard.kind, json.loads(heard.payload)


def is_report(kind: str, payload: bytes) -> bool:
    """Whether a message on that topic has the type that a device of this version publishes. Without an access list any
    client may publish there, and a malformed message must not end a recording of weeks."""
    try:
        msgspec.json.decode(payload, type=KINDS[kind])
    except (*UNREADABLE, KeyError):
        return False
    return True


def top(arguments: argparse.Namespace) -> int:
    """Show the device until Ctrl-C, or with `once` until its first report. Exit code 1 when none came in `seconds`."""
    place = target(arguments)
    live = sys.stdout.isatty() and not arguments.once
    seen = DeviceView(place.device)

    async def show() -> int:
        seconds = arguments.seconds or (ONCE_S if arguments.once else None)
        until_s = time.monotonic() + seconds if seconds else None
        async for kind, body in _hear(place):
            now_s = time.monotonic()
            if body is not None:
                seen.take(kind, body, now_s)
            if live:
                size = shutil.get_terminal_size()
                screen = lines(seen, now_s, size.columns)[: size.lines - 1]
                control(sys.stdout, CLEAR)
                print("\n".join(screen), end="", flush=True)
            elif kind == "telemetry":
                print("\n".join(lines(seen, now_s, 120)), flush=True)
            if arguments.once and seen.status is not None and seen.status["state"] == "offline":
                break  # no report will come
            if (arguments.once and seen.report is not None) or (until_s is not None and now_s >= until_s):
                break
        if seen.report is None and seen.status is not None and seen.status["state"] == "offline":
            print(f"{place.device} is offline: {seen.status['reason']}", file=sys.stderr)
        elif seen.report is None:
            print(f"nothing heard from {place.device!r}: is the name right, and does it run?", file=sys.stderr)
        return 0 if seen.report is not None else 1

    try:
        if live:
            control(sys.stdout, HIDE)
        return asyncio.run(show())
    finally:
        if live:
            control(sys.stdout, SHOW)
            print()


def record(arguments: argparse.Namespace) -> int:
    """Write a row per report and model to a CSV file for so many seconds; what is there is kept, so that a recording
    can be taken up again. Exit code 1 when no report came."""
    place = target(arguments)
    path: Path = arguments.file
    if not 0 < arguments.seconds <= 31 * 86_400:
        raise UsageError(f"--seconds is {arguments.seconds:g}; more than 0 and at most a month are possible")

    if path.exists() and not path.is_file():  # a named pipe without a reader would wait for one for ever
        raise UsageError(f"{path} cannot be written: it is no file", "record", "name a file")

    async def write() -> int:
        until_s = time.monotonic() + arguments.seconds
        count = 0
        with path.open("a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS, restval="")
            if file.tell() == 0:
                table.writeheader()
            else:
                _check_columns(path)
            async for kind, body in _hear(place):
                if kind == "telemetry":
                    table.writerows(
                        {name: csv_cell(value) for name, value in row.items()} for row in rows(place.device, body)
                    )
                    file.flush()
                    count += 1
                if time.monotonic() >= until_s:
                    break
        return count

    try:
        count = asyncio.run(write())
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
    print(f"{count} reports of {place.device} in {path}")
    return 0 if count else 1


def _check_columns(path: Path) -> None:
    try:
        with open_named(path) as raw, io.TextIOWrapper(raw, encoding="utf-8", newline="") as file:
            found = next(csv.reader([file.readline(HEADER_CHARS)]), [])
    except (UnicodeError, csv.Error) as error:
        raise UsageError(f"{path} is no table: {error}", "record", "name a new file") from error
    if found != list(COLUMNS):
        raise UsageError(f"{path} has other columns than this version writes", "record", "name a new file")
