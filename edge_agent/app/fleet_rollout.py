"""`edge-agent fleet rollout`: reads the plan, connects `fleet.rollout_driver` to a broker, prints what it says."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.app.ask import CONNECT_S, DeviceTarget, target
from edge_agent.base.errors import UsageError
from edge_agent.base.terminal import print_json
from edge_agent.client.device_feed import connecting
from edge_agent.client.request_client import RECONNECT_CAP_S
from edge_agent.config.load import read_table
from edge_agent.fleet.rollout_driver import CLAIM_S, Intent, RolloutDriver, subscriptions
from edge_agent.fleet.rollout_plan import check_plan
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.envelope import LinkChange, LinkListener, Outbound
from edge_agent.protocol.messages import DesiredModel, DesiredSource
from edge_agent.protocol.rollout_messages import RolloutClaim, RolloutPlan, RolloutState
from edge_agent.protocol.topics import RolloutTopics, Subscription

TICK_S = 0.1
LEAST_SYNC_S, LONGEST_SYNC_S = 0.5, 5.0
"""A message to oneself comes behind what the broker retains; brokers that do not keep this order have the least time
more, and those that do not deliver it are not waited for any longer."""


def rollout(arguments: argparse.Namespace) -> int:
    """Begin a rollout, take one up, return it or show it. 0 where it is done (or was returned by `--abort`), 1 where it
    stopped. Raises UsageError."""
    intent = next(
        (one for one in (Intent.RESUME, Intent.ABORT, Intent.SHOW) if getattr(arguments, f"do_{one.value}")),
        Intent.BEGIN,
    )
    plan = None
    if intent is Intent.BEGIN:
        plan = plan_of(arguments)
    elif arguments.plan is not None or arguments.give:
        raise UsageError("--resume, --abort and --status take no plan: it is at the broker", "rollout")
    place = target(arguments)
    host = os.uname().nodename.split(".")[0]
    claim = RolloutClaim(by=secrets.token_hex(8), who=f"{_user()}@{host}")
    driver = RolloutDriver(place.prefix, intent, claim, plan, CLAIM_S)
    try:
        asyncio.run(_drive(place, driver, arguments.json))
    finally:
        _print_notes(driver, arguments.json)
    return _tell(driver, intent, arguments.json)


def plan_of(arguments: argparse.Namespace) -> RolloutPlan:
    """The plan's file, with what the command line names in its place. Raises UsageError and ConfigError."""
    path: Path | None = arguments.plan
    if path is None and not arguments.give:
        raise UsageError("what is to be rolled out? name a plan, or --give MODEL=sha256:...", "rollout")
    table: dict[str, Any] = {} if path is None else read_table(path)
    if arguments.give:
        table["models"] = msgspec.to_builtins([_given(text) for text in arguments.give])
    if arguments.source:
        table["sources"] = msgspec.to_builtins([_source(text) for text in arguments.source])
    for key in ("devices", "waves"):
        if getattr(arguments, key):
            table[key] = [one.strip() for one in getattr(arguments, key).split(",")]
    for key in ("within_s", "watch_s"):
        if getattr(arguments, key) is not None:
            table[key] = getattr(arguments, key)
    try:
        plan = msgspec.convert(table, type=RolloutPlan)
    except msgspec.ValidationError as error:
        raise UsageError(str(error), "plan" if path is None else str(path), "docs/fleet.md lists its keys") from error
    check_plan(plan)
    return plan


def _given(text: str) -> DesiredModel:
    name, equals, package = text.partition("=")
    if not equals:
        raise UsageError(f"--give {text}: MODEL=sha256:HEX is needed, or MODEL=none to remove it", "rollout")
    return DesiredModel(model=name, package=None if package == "none" else package)


def _source(text: str) -> DesiredSource:
    package, equals, url = text.partition("=")
    if not equals:
        raise UsageError(f"--source {text}: sha256:HEX=URL is needed", "rollout")
    return DesiredSource(package=package, url=url)


def _user() -> str:
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return str(os.getuid())


async def _drive(place: DeviceTarget, driver: RolloutDriver, quiet: bool) -> None:
    me = f"rollout-{secrets.token_hex(6)}"
    own = replace(
        place.options,
        client_id=me,
        session_expiry_s=0,
        reconnect_cap_s=min(place.options.reconnect_cap_s, RECONNECT_CAP_S),
    )
    sync = RolloutTopics(place.prefix).sync(me)
    said: list[LinkChange] = []
    transport = MqttTransport(own, [*subscriptions(place.prefix), Subscription(sync)])
    await transport.start(LinkListener(said.append))
    synced = asyncio.Event()
    reading = asyncio.create_task(_read(transport, driver, sync, synced))
    try:
        await connecting(transport, CONNECT_S, said)
        transport.publish(Outbound(sync, b"{}"))
        await asyncio.sleep(LEAST_SYNC_S)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(synced.wait(), LONGEST_SYNC_S)
        while not driver.ended:
            if transport.connected:
                for message in driver.tick(time.monotonic(), time.time()):
                    transport.publish(message)
            _print_notes(driver, quiet)
            if reading.done():
                reading.result()
            await asyncio.sleep(TICK_S)
    finally:
        await transport.stop(driver.release(time.time()))
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _read(transport: MqttTransport, driver: RolloutDriver, sync: str, synced: asyncio.Event) -> None:
    async for message in transport.messages():
        transport.ack(message)
        if message.topic == sync:
            synced.set()
        else:
            driver.take(message.topic, message.payload, time.monotonic(), time.time())


def _print_notes(driver: RolloutDriver, quiet: bool) -> None:
    """With --json they go to standard error, so that standard output is one object."""
    while driver.notes:
        print(driver.notes.popleft(), file=sys.stderr if quiet else sys.stdout, flush=True)


def _tell(driver: RolloutDriver, intent: Intent, as_json: bool) -> int:
    state = driver.state
    if driver.failure is not None:
        raise UsageError(driver.failure, "rollout")
    if state is None:
        raise UsageError("the broker holds no rollout", "rollout")
    if as_json:
        print_json(_plain(driver, state))
    elif intent is Intent.SHOW:
        print("\n".join(_lines(driver, state)))
    good = {Intent.ABORT: ("returned", "returning"), Intent.SHOW: ("rolling", "returning", "done", "returned")}
    return 0 if state.phase in good.get(intent, ("done",)) else 1


def _plain(driver: RolloutDriver, state: RolloutState) -> dict[str, Any]:
    devices = {} if driver.look is None else driver.look.devices
    plain: dict[str, Any] = msgspec.to_builtins(state)
    return {**plain, "devices": {name: {"state": how.value, "reason": why} for name, (how, why) in devices.items()}}


def _lines(driver: RolloutDriver, state: RolloutState) -> Sequence[str]:
    who = "nobody carries it out now" if state.claim is None else f"claimed by {state.claim.who}"
    found = [f"rollout {state.rollout}: {state.phase}, wave {state.wave + 1} of {len(state.waves)}; {who}"]
    if state.reason:
        found.append(f"reason: {state.reason}")
    for name, (how, why) in sorted({} if driver.look is None else driver.look.devices.items()):
        found.append(f"  {name:<24}{how.value}{': ' if why else ''}{why}")
    return found
