"""Checks of what goes over MQTT: a real agent at the brokers of others, and asked by the clients of others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edge_agent.base.errors import EdgeError
from edge_agent.client import Client
from tests.conformance.outcome import ROOT, Absent, Outcome, Places, program, until, version
from tests.integration.test_mqtt_amqtt import BROKER as AMQTT
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.mosquitto import Mosquitto, free_port

DEVICE, TEXT = "pi", "it is dark in here"
START_S = 120.0
AEDES = """
const net = require('net');
require('aedes').Aedes.createBroker().then(
  broker => net.createServer(broker.handle).listen(+process.argv[2], '127.0.0.1'));
"""
MQTT_JS = """
const client = require('mqtt').connect('mqtt://127.0.0.1:' + process.argv[2], {protocolVersion: 5});
const mine = 'edge/v1/client/mqttjs/reply';
client.on('message', (topic, payload) => { console.log(payload.toString()); client.end(); });
const body = JSON.stringify({text: process.argv[3]});
client.subscribe(mine, {qos: 1}, () => client.publish('edge/v1/pi/infer/echo', body, {
  qos: 1, properties: {responseTopic: mine, correlationData: Buffer.from('1'), messageExpiryInterval: 20}}));
"""
AIOMQTT = """
import asyncio, json, sys, aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

async def run():
    mine, properties = "edge/v1/client/aiomqtt/reply", Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic, properties.CorrelationData, properties.MessageExpiryInterval = mine, b"1", 20
    async with aiomqtt.Client("127.0.0.1", int(sys.argv[1]), protocol=aiomqtt.ProtocolVersion.V5) as client:
        await client.subscribe(mine, qos=1)
        await client.publish("edge/v1/pi/infer/echo", json.dumps({"text": sys.argv[2]}), qos=1, properties=properties)
        async for message in client.messages:
            print(message.payload.decode())
            return

asyncio.run(run())
"""
GMQTT = """
import asyncio, json, sys, gmqtt

async def run():
    mine, got = "edge/v1/client/gmqtt/reply", asyncio.get_running_loop().create_future()
    client = gmqtt.Client("gmqtt-try")
    client.on_message = lambda client, topic, payload, qos, properties: got.set_result(payload.decode()) or 0
    client.on_subscribe = lambda client, mid, qos, properties: client.publish(
        "edge/v1/pi/infer/echo", json.dumps({"text": sys.argv[2]}), qos=1,
        response_topic=mine, correlation_data=b"1", message_expiry_interval=20)
    await client.connect("127.0.0.1", int(sys.argv[1]), version=5)
    client.subscribe(mine, qos=1)
    print(await asyncio.wait_for(got, 20))
    await client.disconnect()

asyncio.run(run())
"""
PAHO_C = """
#include <stdio.h>
#include <string.h>
#include <MQTTClient.h>

int main(int count, char **words) {
  char address[64], body[256], *topic; int length; MQTTClient client; MQTTClient_message *message = 0;
  MQTTClient_createOptions made = MQTTClient_createOptions_initializer;
  MQTTClient_connectOptions options = MQTTClient_connectOptions_initializer5;
  MQTTProperties properties = MQTTProperties_initializer;
  MQTTProperty one;
  const char *mine = "edge/v1/client/pahoc/reply";
  snprintf(address, sizeof address, "tcp://127.0.0.1:%s", words[1]);
  snprintf(body, sizeof body, "{\\"text\\": \\"%s\\"}", words[2]);
  made.MQTTVersion = MQTTVERSION_5;
  if (MQTTClient_createWithOptions(&client, address, "pahoc", MQTTCLIENT_PERSISTENCE_NONE, 0, &made)) return 2;
  if (MQTTClient_connect5(client, &options, 0, 0).reasonCode) return 3;
  MQTTClient_subscribe5(client, mine, 1, 0, 0);
  one.identifier = MQTTPROPERTY_CODE_RESPONSE_TOPIC;
  one.value.data.data = (char *)mine; one.value.data.len = strlen(mine);
  MQTTProperties_add(&properties, &one);
  one.identifier = MQTTPROPERTY_CODE_CORRELATION_DATA;
  one.value.data.data = "1"; one.value.data.len = 1;
  MQTTProperties_add(&properties, &one);
  one.identifier = MQTTPROPERTY_CODE_MESSAGE_EXPIRY_INTERVAL; one.value.integer4 = 20;
  MQTTProperties_add(&properties, &one);
  MQTTClient_publish5(client, "edge/v1/pi/infer/echo", strlen(body), body, 1, 0, &properties, 0);
  if (MQTTClient_receive(client, &topic, &length, &message, 20000) || !message) return 4;
  printf("%.*s\\n", message->payloadlen, (char *)message->payload);
  MQTTClient_disconnect5(client, 1000, MQTTREASONCODE_SUCCESS, 0);
  return 0;
}
"""


@contextlib.contextmanager
def _process(command: list[str | Path], folder: Path, port: int, env: Mapping[str, str] | None = None) -> Iterator[int]:
    """A broker as a process of its own group, once it listens on `port`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(word) for word in command], stdout=log, stderr=log, cwd=folder,
            env={**os.environ, **(env or {})}, start_new_session=True,
        )  # fmt: skip

    def listens() -> bool:
        assert process.poll() is None, (folder / "log").read_text(errors="replace")[-800:]
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(f"{command[0]} listens", listens, START_S)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def _mosquitto(folder: Path, places: Places) -> Iterator[tuple[int, str]]:
    found = version(program("mosquitto", "mosquitto"), "-h")
    with Mosquitto(folder) as broker:
        yield broker.port, found


@contextlib.contextmanager
def _amqtt(folder: Path, places: Places) -> Iterator[tuple[int, str]]:
    from importlib.metadata import version as of

    port = free_port()
    with _process([sys.executable, "-c", AMQTT, str(port)], folder, port):
        yield port, of("amqtt")


@contextlib.contextmanager
def _aedes(folder: Path, places: Places) -> Iterator[tuple[int, str]]:
    _, found = places.npm_package("aedes")
    port = free_port()
    script = places.npm / "aedes-broker.js"
    script.write_text(AEDES)
    with _process(["node", script, str(port)], folder, port):
        yield port, found


@contextlib.contextmanager
def _rabbitmq(folder: Path, places: Places) -> Iterator[tuple[int, str]]:
    server = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    if not server.exists():
        raise Absent("apt install rabbitmq-server")
    port, amqp, dist = free_port(), free_port(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plugins").write_text("[rabbitmq_mqtt].\n")
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{amqp}\nmqtt.listeners.tcp.1 = 127.0.0.1:{port}\nmqtt.allow_anonymous = true\n"
        "mqtt.default_user = guest\nmqtt.default_pass = guest\n"
        "mqtt.retained_message_store = rabbit_mqtt_retained_msg_store_ets\n"
    )
    names = {
        "RABBITMQ_NODENAME": "edge-try@localhost", "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
        "RABBITMQ_LOG_BASE": f"{folder}/logs", "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
        "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf", "RABBITMQ_DIST_PORT": str(dist), "HOME": str(folder),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
    }  # fmt: skip
    found = version("dpkg-query", "-W", "rabbitmq-server")
    with _own_epmd(names), _process([server], folder, port, names):
        yield port, found


@contextlib.contextmanager
def _own_epmd(names: dict[str, str]) -> Iterator[None]:
    """Erlang's name server, which detaches itself, on a port of its own for the length of the block."""
    names["ERL_EPMD_PORT"] = str(free_port())
    try:
        yield
    finally:
        subprocess.run(["epmd", "-port", names["ERL_EPMD_PORT"], "-kill"], capture_output=True, timeout=20, check=False)


@contextlib.contextmanager
def _ejabberd(folder: Path, places: Places) -> Iterator[tuple[int, str]]:
    program("ejabberdctl", "ejabberd")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ejabberd.yml").write_text(
        "hosts: [localhost]\nauth_method: anonymous\nallow_multiple_connections: true\nanonymous_protocol: both\n"
        f"listen:\n  - {{port: {port}, ip: '127.0.0.1', module: mod_mqtt, backlog: 100}}\n"
        "acl: {local: {user_regexp: ''}}\naccess_rules: {local: {allow: local}}\n"
        "modules:\n  mod_mqtt: {}\n"
    )
    code = next(Path("/usr/lib").glob("*/ejabberd/ebin"), None) or next(Path("/usr/lib").glob("**/ejabberd*/ebin"))
    more = [word for place in code.parent.parent.glob("*/ebin") for word in ("-pa", str(place))]
    command: list[str | Path] = [
        "erl", "-noinput", "-sname", "edge-try-e@localhost", "-pa", code, *more,
        "-mnesia", "dir", f'"{folder}/mnesia"', "-ejabberd", "config", f'"{folder}/ejabberd.yml"', "-s", "ejabberd",
    ]  # fmt: skip
    names = {"EJABBERD_CONFIG_PATH": f"{folder}/ejabberd.yml", "HOME": str(folder)}
    with _own_epmd(names), _process(command, folder, port, names):
        yield port, version("dpkg-query", "-W", "ejabberd")


@contextlib.contextmanager
def _paho(folder: Path, places: Places) -> Iterator[tuple[int, str]]:
    clone, commit = places.suite("paho", "interoperability")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "broker.conf"
    # By default it takes packets of 256 bytes, which hold neither telemetry nor an answer.
    settings.write_text(f"maximum_packet_size 300000\nlistener {port} 127.0.0.1\n")
    program = clone / "interoperability" / "startbroker.py"
    with _process([sys.executable, program, "-c", settings], folder, port):
        yield port, commit


BROKERS = {
    "mosquitto": _mosquitto, "aedes": _aedes, "RabbitMQ": _rabbitmq, "ejabberd": _ejabberd, "amqtt": _amqtt,
    "paho's test broker": _paho,
}  # fmt: skip
USERS = {"ejabberd": "pi:any"}
"""Names and passwords where a broker takes nobody without."""
STEPS = ("an answer", "a hundred answers", "an order", "what is retained", "the last will")


def brokers(places: Places) -> Iterator[Outcome]:
    """A real agent at each broker: asked, ordered, killed."""
    for name, start in BROKERS.items():
        folder = places.work / f"broker-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        done: list[str] = []
        found = "?"
        try:
            with start(folder / "broker", places) as (port, found):
                done.extend(_at_broker(folder, port, USERS.get(name, "")))
        except Absent as error:
            yield Outcome("an agent at a broker", name, note=str(error))
        except (AssertionError, OSError, EdgeError, subprocess.SubprocessError) as error:
            failed = STEPS[min(len(done), len(STEPS) - 1)]
            yield Outcome("an agent at a broker", name, found, len(STEPS), (f"{failed}: {str(error)[:300]}",))
        else:
            spoken = "MQTT 5" if "with MQTT 5" in (folder / "agent" / "log").read_text() else "MQTT 3.1.1"
            yield Outcome("an agent at a broker", name, found, len(STEPS), (), f"{spoken}; " + ", ".join(STEPS))


def _at_broker(folder: Path, port: int, user: str) -> Iterator[str]:
    """Each step as it is done. Raises what went wrong."""
    agent, address = AgentProcess(folder / "agent", port, DEVICE), f"127.0.0.1:{port}"
    if user:
        name, _, password = user.partition(":")
        (folder / "password").write_text(password)
        (folder / "password").chmod(0o600)
        more = f'[mqtt]\nusername = "{name}"\npassword_file = "{folder / "password"}"\n'
        agent.config.write_text(agent.config.read_text().replace("[mqtt]\n", more))
        address = f"mqtt://{user}@{address}"
    agent.install(echo_package(folder))
    with running(agent):
        with Client(address, DEVICE) as edge:
            first = edge.ask("echo", TEXT)
            yield STEPS[0]
            many = [edge.ask("echo", TEXT) for _ in range(100)]
            assert {one.label for one in many} == {first.label}
            yield STEPS[1]
            edge.order("load", model="echo")
            yield STEPS[2]
        with Client(address, DEVICE) as edge:
            assert [model.name for model in edge.models().models] == ["echo"]
            yield STEPS[3]
            agent.stop(signal.SIGKILL)
            until("the last will", lambda: _state(edge) == "offline")
            yield STEPS[4]


def _state(edge: Client) -> str:
    return str(edge.status().state)


def clients(places: Places) -> Iterator[Outcome]:
    """Programs that ask with the client libraries of others."""
    folder = places.work / "clients"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with Mosquitto(folder) as broker:
        agent = AgentProcess(folder / "agent", broker.port, DEVICE)
        agent.install(echo_package(folder))
        with running(agent):
            with Client(f"127.0.0.1:{broker.port}", DEVICE) as edge:
                expected = edge.ask("echo", TEXT)
            for name in ("mqtt.js", "aiomqtt", "gmqtt", "paho C"):
                try:
                    command, found, where = _client(name, places)
                except Absent as error:
                    yield Outcome("an agent asked with MQTT 5", name, note=str(error))
                    continue
                words = [*command, str(broker.port), TEXT]
                done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False, cwd=where)
                answer: Any = json.loads(done.stdout) if done.returncode == 0 else {}
                right = answer.get("status") == 200 and answer["result"]["label"] == expected.label
                failed = () if right else (f"{done.returncode}: {(done.stdout + done.stderr)[-300:]}",)
                yield Outcome("an agent asked with MQTT 5", name, found, 1, failed)


def _client(name: str, places: Places) -> tuple[list[str], str, Path]:
    """The command that asks, the library's version, and where it runs. Raises Absent."""
    if name == "mqtt.js":
        _, found = places.npm_package("mqtt")
        script = places.npm / "ask.js"
        script.write_text(MQTT_JS)
        return ["node", str(script)], found, places.npm
    if name == "paho C":
        compiler = program("cc", "gcc")
        source, out = places.work / "ask.c", places.work / "ask-c"
        source.write_text(PAHO_C)
        done = subprocess.run(
            [compiler, str(source), "-o", str(out), "-lpaho-mqtt3c"], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Absent(f"apt install libpaho-mqtt-dev ({done.stderr.strip().splitlines()[0][-120:]})")
        return [str(out)], version("dpkg-query", "-W", "libpaho-mqtt-dev"), places.work
    shown = f"from importlib.metadata import version; print(version({name!r}))"
    if not places.python.exists():
        raise Absent(f"pip install {name} for {places.python}")
    done = subprocess.run([str(places.python), "-c", shown], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Absent(f"pip install {name} for {places.python}")
    return [str(places.python), "-c", AIOMQTT if name == "aiomqtt" else GMQTT], done.stdout.strip(), places.work


def houses(places: Places) -> Iterator[Outcome]:
    """Home Assistant and Node-RED."""
    for name, module, path, how in (
        ("Home Assistant", "home_assistant", places.hass, "make home-assistant"),
        ("Node-RED", "node_red", places.npm / "node_modules" / ".bin" / "node-red", "make node-red"),
    ):
        if not path.exists():
            yield Outcome("entities, orders, examples", name, note=f"not installed: {how} does it and runs it alone")
            continue
        done = subprocess.run(
            [sys.executable, "-m", f"tests.conformance.{module}", str(path)],
            capture_output=True, text=True, timeout=600, check=False, cwd=ROOT,
        )  # fmt: skip
        steps = [line.strip() for line in done.stdout.splitlines() if line.startswith("  ")]
        failed = () if done.returncode == 0 else (done.stderr.strip().splitlines()[-1][:300],)
        found = version(str(path), "--version") if name == "Home Assistant" else places.npm_package("node-red")[1]
        yield Outcome("entities, orders, examples", name, found, len(steps) + len(failed), failed)
