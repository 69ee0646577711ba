"""`edge-agent fleet`: the devices of a broker as a table.

A file of its own because its verb waits for many devices, where others ask one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import time

from edge_agent.app.ask import CONNECT_S, target
from edge_agent.base.errors import UsageError
from edge_agent.base.terminal import control, print_json
from edge_agent.client.device_feed import hear
from edge_agent.fleet.device_table import KINDS, DeviceTable, summary_text, table_text

QUIET_S = 1.0
"""Retained messages come right after the subscription: when so long nothing has come, all have."""
WATCH_S = 2.0
CLEAR = "\x1b[H\x1b[2J"


def status(arguments: argparse.Namespace) -> int:
    """Print the table once, or again and again with `watch`. 1 where no device was heard whose name was asked
    for; `trouble` and `model` leave lines out and do not count."""
    if not 0 <= arguments.seconds <= 3600:
        raise UsageError(f"--seconds is {arguments.seconds:g}; 0 to 3600 are possible")
    place, table = target(arguments), DeviceTable(arguments.devices)
    live = arguments.watch and sys.stdout.isatty()

    async def run() -> None:
        begun_s = shown_s = heard_s = time.monotonic()
        async with contextlib.aclosing(hear(place.options, place.prefix, "+", tuple(KINDS), CONNECT_S)) as feed:
            async for heard in feed:
                now_s = time.monotonic()
                if heard.kind:
                    if heard.kind == "status" and not heard.payload:
                        table.forget(heard.device)
                    table.take(heard.device, heard.kind, heard.payload, now_s)
                    if heard.kind != "telemetry":
                        heard_s = now_s
                if arguments.watch:
                    if now_s - shown_s >= WATCH_S:
                        shown_s = now_s
                        _show(table, arguments, live)
                    continue
                complete = now_s - heard_s >= QUIET_S and not table.unheard(now_s, time.time())
                if complete or now_s - begun_s >= max(QUIET_S, arguments.seconds):
                    return

    asyncio.run(run())
    return _show(table, arguments, False)


def _show(table: DeviceTable, arguments: argparse.Namespace, live: bool) -> int:
    wall_s = time.time()
    rows = table.rows(time.monotonic(), wall_s)
    shown = [row for row in rows if row.trouble] if arguments.trouble else rows
    if arguments.model is not None:
        shown = [row for row in shown if any(one["model"] == arguments.model for one in row.models)]
    if arguments.json:
        devices = [row.plain() for row in shown]
        print_json({"as_of": wall_s, "devices": devices, "unreadable_messages": table.unreadable})
    else:
        size = shutil.get_terminal_size() if sys.stdout.isatty() else None
        lines = [*table_text(shown, None if size is None else size.columns), summary_text(rows, table.unreadable)]
        if live and size is not None:
            control(sys.stdout, CLEAR)
            lines = lines[: size.lines - 1]
        print("\n".join(lines), flush=True)
        if not rows:
            print("no device was heard: is it the right broker, and may this user read its topics?", file=sys.stderr)
    return 0 if rows else 1
