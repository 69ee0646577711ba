"""`edge-agent top` and `record`: what a device says of itself over MQTT, live in a terminal or as a table on disk."""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import secrets
import shutil
import sys
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.app import top_view
from edge_agent.app.ask import CONNECT_S, DeviceTarget, target
from edge_agent.base.errors import BrokerError, UsageError
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.envelope import LinkChange, LinkListener
from edge_agent.protocol.messages import Event, Status
from edge_agent.protocol.telemetry import Telemetry
from edge_agent.protocol.topics import Subscription

KINDS: Mapping[str, type[Status] | type[Telemetry] | type[Event]] = {
    "status": Status,
    "telemetry": Telemetry,
    "event": Event,
}
REDRAW_S = 1.0
ONCE_S = 60.0
"""So long `--once` waits for a report, where nobody says how long."""
CLEAR, HIDE, SHOW = "\x1b[H\x1b[2J", "\x1b[?25l", "\x1b[?25h"


async def _hear(place: DeviceTarget) -> AsyncIterator[tuple[str, Any]]:
    """(kind, body) of the device's messages; ('', None) about every second without one. Raises BrokerError."""
    said: list[LinkChange] = []
    own = f"{place.prefix}/{place.device}"
    link = MqttTransport(
        replace(place.options, client_id=f"top-{secrets.token_hex(6)}", session_expiry_s=0),
        [Subscription(f"{own}/{kind}", qos=0 if kind == "telemetry" else 1, replay=kind == "status") for kind in KINDS],
    )
    coming: asyncio.Future[Any] | None = None
    await link.start(LinkListener(said.append))
    try:
        until_s = time.monotonic() + CONNECT_S
        while not link.connected:
            await asyncio.sleep(0.01)
            if time.monotonic() > until_s:
                raise BrokerError(said[-1].text if said else "no answer from the broker")
        stream = link.messages().__aiter__()
        coming = asyncio.ensure_future(stream.__anext__())
        while True:
            await asyncio.wait({coming}, timeout=REDRAW_S)
            if not coming.done():
                yield "", None
                continue
            message = coming.result()
            link.ack(message)
            coming = asyncio.ensure_future(stream.__anext__())
            kind = message.topic.rsplit("/", 1)[-1]
            if message.payload and is_report(kind, message.payload):
                yield kind, json.loads(message.payload)
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await link.stop([])


def is_report(kind: str, payload: bytes) -> bool:
    """Whether a message is what a device of this version says under that topic: anybody may publish where no access
    list forbids it, and what is none must not end a recording of weeks."""
    try:
        msgspec.json.decode(payload, type=KINDS[kind])
    except (msgspec.MsgspecError, KeyError, RecursionError):
        return False
    return True


def top(arguments: argparse.Namespace) -> int:
    """Show the device until Ctrl-C, or with `once` until its first report. Exit code 1 when none came in `seconds`."""
    place = target(arguments)
    live = sys.stdout.isatty() and not arguments.once
    seen = top_view.DeviceView(place.device)

    async def show() -> int:
        seconds = arguments.seconds or (ONCE_S if arguments.once else None)
        until_s = time.monotonic() + seconds if seconds else None
        async for kind, body in _hear(place):
            now_s = time.monotonic()
            if body is not None:
                seen.take(kind, body, now_s)
            if live:
                size = shutil.get_terminal_size()
                screen = top_view.lines(seen, now_s, size.columns)[: size.lines - 1]
                print(CLEAR + "\n".join(screen), end="", flush=True)
            elif kind == "telemetry":
                print("\n".join(top_view.lines(seen, now_s, 120)), flush=True)
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
            print(HIDE, end="")
        return asyncio.run(show())
    finally:
        if live:
            print(SHOW)


def record(arguments: argparse.Namespace) -> int:
    """Write a row per report and model to a CSV file for so many seconds; what is there is kept, so that a recording
    can be taken up again. Exit code 1 when no report came."""
    place = target(arguments)
    path: Path = arguments.file
    if not 0 < arguments.seconds <= 31 * 86_400:
        raise UsageError(f"--seconds is {arguments.seconds:g}; more than 0 and at most a month are possible")

    async def write() -> int:
        until_s = time.monotonic() + arguments.seconds
        count = 0
        with path.open("a", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, top_view.COLUMNS, restval="")
            if file.tell() == 0:
                table.writeheader()
            else:
                _check_columns(path)
            async for kind, body in _hear(place):
                if kind == "telemetry":
                    table.writerows(top_view.rows(place.device, body))
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
    with path.open(newline="", encoding="utf-8") as file:
        found = next(csv.reader(file), [])
    if found != list(top_view.COLUMNS):
        raise UsageError(f"{path} has other columns than this version writes", "record", "name a new file")
