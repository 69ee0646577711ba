"""`edge-agent infer` and orders: ask a running agent over MQTT, as any client would."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.app import wiring
from edge_agent.base.errors import RequestError, UsageError
from edge_agent.base.limits import DEADLINE_MAX_S
from edge_agent.config.load import device_id, load
from edge_agent.mqtt.client import RequestClient
from edge_agent.mqtt.options import MqttOptions
from edge_agent.protocol.topics import NAME

CONNECT_S = 4.0
ORDER_S = 120.0
"""A large model takes its time to load."""


@dataclass(frozen=True, slots=True)
class DeviceTarget:
    """Which broker, which device."""

    options: MqttOptions
    prefix: str
    device: str


def target(arguments: argparse.Namespace) -> DeviceTarget:
    """The settings' broker and device, unless the command line names others. Raises UsageError for impossible names."""
    wiring.quiet_rooms()
    config: Path | None = arguments.config
    settings = load(config)
    options = wiring.mqtt_options(settings, "")
    if arguments.host is not None:
        options = replace(options, host=arguments.host)
    if arguments.port is not None:
        options = replace(options, port=arguments.port)
    if arguments.protocol is not None:
        options = replace(options, protocol=wiring.PROTOCOLS[arguments.protocol])
    device = arguments.device or device_id(settings)
    for what, name in (("the model's", arguments.model), ("the device's", device)):
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be {what} name: letters, digits and . _ : @ - are taken, at most 64")
    return DeviceTarget(options, settings.mqtt.prefix, device)


@contextlib.asynccontextmanager
async def connected(place: DeviceTarget) -> AsyncIterator[RequestClient]:
    """A client of that broker. Raises BrokerError sooner than a daemon would mind: a person waits at the terminal."""
    client = RequestClient(place.options, place.prefix, [place.device])
    await client.connect(CONNECT_S)
    try:
        yield client
    finally:
        await client.close()


def check_deadline(deadline_s: float) -> None:
    """Raise UsageError for a deadline that no agent keeps."""
    if not 0 < deadline_s <= DEADLINE_MAX_S:
        raise UsageError(f"--deadline is {deadline_s:g}; seconds from 0 to {DEADLINE_MAX_S:g} are needed")


def ask(arguments: argparse.Namespace, model: str, body: Mapping[str, Any], deadline_s: float) -> dict[str, Any]:
    """One request; the reply as plain values. No answer becomes a reply of status 408 or 503 with the reason."""
    check_deadline(deadline_s)
    place = target(arguments)

    async def run() -> dict[str, Any]:
        async with connected(place) as client:
            reply = await client.infer(place.device, model, body, deadline_s)
            fields: dict[str, Any] = msgspec.to_builtins(reply)
            return fields

    try:
        return asyncio.run(run())
    except RequestError as error:
        return {"status": error.status, "reason": error.reason}


def order(arguments: argparse.Namespace, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """One command to the device (`cmd/{name}`); its reply as plain values, also where none came."""
    place = target(arguments)

    async def run() -> dict[str, Any]:
        async with connected(place) as client:
            return await client.command(place.device, name, body, ORDER_S)

    try:
        return asyncio.run(run())
    except RequestError as error:
        return {"status": error.status, "reason": error.reason}
