"""`edge-agent service`, `doctor` and `power-mode`: the operator's side of this machine.

A file of its own because no other verb loads the doctor and the units of the service.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from edge_agent.actuators.power_mode import read_modes, set_mode
from edge_agent.app import wiring
from edge_agent.base.clock import SystemClock
from edge_agent.base.errors import BrokerError, EdgeError, WorkerError
from edge_agent.base.terminal import print_json
from edge_agent.config.load import DEFAULT_PATH, check, default_exists
from edge_agent.config.settings import Settings
from edge_agent.lifecycle import doctor as verdicts
from edge_agent.lifecycle import service as units
from edge_agent.lifecycle.doctor_facts import BrokerProbe, RuntimeProbe, runtime_probes, survey
from edge_agent.lifecycle.service import IMAGE_PYTHON, ServiceTarget, status
from edge_agent.mqtt.transport import MqttTransport
from edge_agent.protocol.envelope import Inbound, LinkChange, LinkListener, Outbound
from edge_agent.protocol.topics import Subscription
from edge_agent.store.state_folder import running_code
from edge_agent.worker.one_shot import available_backends

BROKER_S = 5.0
ROUND_TRIPS = 15
RETURN_S = 3.0


def service(action: str, root: Path | None, python: str | None, drop_ins: Sequence[str] | None, purge: bool) -> int:
    """Install, uninstall or look at the systemd service, here or in an image. Raises UsageError, EdgeError."""
    place = ServiceTarget(
        root or Path("/"),
        python or (sys.executable if root is None else IMAGE_PYTHON),
        running=running_code,
    )
    if action == "status":
        found = status(place)
        print("\n".join(found.lines()))
        return 0 if found.healthy else 1
    done = units.install(place, drop_ins) if action == "install" else units.uninstall(place, purge)
    print("\n".join(done))
    return 0


def doctor(config: Path | None, as_json: bool) -> int:
    """Look at everything that the agent needs here; exit code 1 when something does not work."""
    wiring.quiet_rooms()
    settings, problems = check(config)
    source = str(config if config is not None else DEFAULT_PATH if default_exists() else "defaults")
    facts = survey(
        settings,
        problems,
        source,
        SystemClock(),
        runtimes=_runtimes(settings),
        broker=_broker(settings, wiring.operator_environment(config)),
        service=status(ServiceTarget(Path("/"), sys.executable, running=running_code)),
    )
    checks = verdicts.examine(facts)
    if as_json:
        print_json([asdict(found) for found in checks], 2)
    else:
        print("\n".join([*(found.line() for found in checks), verdicts.summary(checks)]))
    return 1 if verdicts.failed(checks) else 0


def power_mode(config: Path | None, wanted: str | None) -> int:
    """List the board's power modes, or set one. Raises UsageError, EdgeError (see `actuators.power_mode`)."""
    settings, _ = check(config)
    root = settings.sensors.sysroot
    if wanted is not None:
        print(set_mode(root, wanted))
        if "tensorrt" in settings.worker.backends:
            print("engines of TensorRT belong to a power mode: at its next load a model's is built for this one")
        return 0
    modes = read_modes(root)
    if modes is None:
        print("this machine has no power modes: they are those of a Jetson with nvpmodel")
        return 1
    for mode in modes.listed:
        print(f"{'*' if mode == modes.current else ' '} {mode}")
    if modes.current is None:
        print(f"which one is set is not known: {modes.reason}")
    return 0


def _runtimes(settings: Settings) -> tuple[RuntimeProbe, ...]:
    names = settings.worker.backends
    try:
        found = available_backends(wiring.spawn_options(settings), names)
    except WorkerError as error:
        return tuple(RuntimeProbe(name, None, reason=str(error), remedy=error.remedy or "") for name in names)
    return runtime_probes(found)


def _broker(settings: Settings, env: Mapping[str, str]) -> BrokerProbe:
    address = f"{settings.mqtt.host}:{settings.mqtt.broker_port}"
    try:
        return asyncio.run(_round_trips(settings, address, env))
    except EdgeError as error:
        return BrokerProbe(address, None, reason=error.what, remedy=error.remedy or "")


async def _round_trips(settings: Settings, address: str, env: Mapping[str, str]) -> BrokerProbe:
    """Messages to ourselves, in the one place where any client may speak and listen."""
    name = f"doctor-{secrets.token_hex(4)}"
    topic = f"{settings.mqtt.prefix}/client/{name}/reply/ping"
    own_topics = wiring.topics(settings).self_checks()
    said: list[LinkChange] = []
    wanted = [Subscription(one) for one in (topic, *own_topics)]
    transport = MqttTransport(wiring.mqtt_options(settings, name, env), wanted)
    await transport.start(LinkListener(said.append))
    try:
        for _ in range(round(BROKER_S / 0.02)):
            if transport.connected or any(change.kind == "permanent" for change in said):
                break
            await asyncio.sleep(0.02)
        if not transport.connected:
            # The finding names the address itself.
            raise BrokerError(said[-1].detail if said else "no answer")
        arriving = transport.messages()
        medians = [await _median_ms(transport, arriving, topic, qos) for qos in (0, 1)]
        version = "5" if said[-1].version == 5 else "3.1.1"
        deaf = "; ".join(transport.troubles) or await _deaf(transport, arriving, own_topics)
        return BrokerProbe(address, version, qos0_ms=medians[0], qos1_ms=medians[1], deaf=deaf)
    finally:
        await transport.stop([])


async def _deaf(transport: MqttTransport, arriving: AsyncIterator[Inbound], topics: Sequence[str]) -> str | None:
    """Messages to ourselves where the device takes requests and orders: a sentence where they do not come back. Their
    arrival at a running daemon does nothing."""
    awaited = set(topics)
    for topic in topics:
        transport.publish(Outbound(topic, b"{}", content_type=None, expiry_s=RETURN_S))
    loop = asyncio.get_running_loop()
    until_s = loop.time() + RETURN_S
    try:
        while awaited:
            message = await asyncio.wait_for(anext(arriving), until_s - loop.time())
            transport.ack(message)
            awaited.discard(message.topic)
    except asyncio.TimeoutError:
        return f"a message to ourselves does not come back on {', '.join(sorted(awaited))}"
    return None


async def _median_ms(transport: MqttTransport, arriving: AsyncIterator[Inbound], topic: str, qos: int) -> float:
    loop = asyncio.get_running_loop()
    taken_ms = []
    for _ in range(ROUND_TRIPS):
        started_s = loop.time()
        transport.publish(Outbound(topic, b"{}", qos=qos))
        try:
            transport.ack(await asyncio.wait_for(anext(arriving), BROKER_S))
        except asyncio.TimeoutError:
            raise BrokerError("a message to ourselves does not come back", remedy="check the access list") from None
        taken_ms.append((loop.time() - started_s) * 1000.0)
    return statistics.median(taken_ms)
