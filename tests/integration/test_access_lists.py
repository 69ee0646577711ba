"""The access lists of docs/mqtt.md and docs/fleet.md at a real mosquitto: who may write and read what."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_agent.protocol.topics import RESERVED
from tests.support.mosquitto import Mosquitto

DOCS = Path(__file__).parents[2] / "docs"
ROLLOUT = ("group/rollout/state", "group/rollout/device/pi", "group/rollout/abort", "group/rollout/sync/x")
OWN = ("status", "info", "models", "reported", "telemetry", "event", "trace")
ORDERS = ("desired", "cmd/install", "cmd/remove", "cmd/rollback", "cmd/load")
NOT_AUTHORIZED = 0x87
USERS = ("pi", "me", "you", "operator", "rollout", "hall-1", *sorted(RESERVED))


def lists() -> str:
    """The access lists as the pages have them: each line of a block of code that is one."""
    blocks = []
    for page in ("mqtt.md", "fleet.md"):
        text = (DOCS / page).read_text(encoding="utf-8")
        found = re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        blocks += [block for block in found if re.match(r"(user|pattern|topic) ", block)]
    assert len(blocks) == 3
    return "\n".join(sorted(blocks, key=lambda block: block.startswith("pattern")))


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    users = dict.fromkeys(USERS, "secret")
    with Mosquitto(tmp_path_factory.mktemp("acl"), users=users, acl=lists()) as started:
        yield started


class Person:
    """A connected client of MQTT 5."""

    def __init__(self, broker: Mosquitto, name: str) -> None:
        self.heard: list[str] = []
        self._codes: dict[int, int] = {}
        self._told = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2, f"{name}-test", protocol=paho.MQTTv5)
        self._client.username_pw_set(name, "secret")
        self._client.on_connect = self._client.on_subscribe = lambda *_: self._told.set()
        self._client.on_publish = self._published
        self._client.on_message = lambda _client, _data, message: self.heard.append(message.topic)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        assert self._told.wait(20)

    def _published(self, _client: Any, _data: Any, number: int, code: Any, _properties: Any) -> None:
        self._codes[number] = code.value

    def may_write(self, *topics: str) -> list[bool]:
        """Whether the broker takes what is published there."""
        sent = [self._client.publish(f"edge/v1/{topic}", b"{}", qos=1) for topic in topics]
        for one in sent:
            one.wait_for_publish(20)
        return [self._codes[one.mid] != NOT_AUTHORIZED for one in sent]

    def subscribe(self, topic: str) -> None:
        """And wait until it is answered."""
        self._told.clear()
        self._client.subscribe(topic, qos=1)
        assert self._told.wait(20)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(scope="module")
def people(broker: Mosquitto) -> Iterator[Callable[[str], Person]]:
    known: dict[str, Person] = {}

    def person(name: str) -> Person:
        if name not in known:
            known[name] = Person(broker, name)
        return known[name]

    yield person
    for one in known.values():
        one.close()


def of(device: str, kinds: Sequence[str]) -> list[str]:
    return [f"{device}/{kind}" for kind in kinds]


def test_a_client_asks_and_cancels_and_nothing_else(people: Callable[[str], Person]) -> None:
    me = people("me")
    assert all(me.may_write("pi/infer/minilm", "pi/cancel"))
    assert not any(me.may_write(*of("pi", [*OWN, *ORDERS]), *ROLLOUT, "client/you/other", "pi/infer"))


def test_a_device_owns_its_topics_alone(people: Callable[[str], Person]) -> None:
    """Nothing of a rollout either, of which the names of devices are a part: its record says what brings it back."""
    pi = people("pi")
    assert all(pi.may_write(*of("pi", [*OWN, *ORDERS]), "client/me/reply/1"))
    assert not any(pi.may_write(*of("hall-1", [*OWN, *ORDERS]), *ROLLOUT, "group/rollout/device/hall-1"))


def test_the_operator_decides_what_devices_hold_and_the_reader_reads(people: Callable[[str], Person]) -> None:
    operator, rollout = people("operator"), people("rollout")
    assert not any(operator.may_write(*of("pi", [*OWN, *ORDERS]), *ROLLOUT))
    assert all(rollout.may_write("pi/desired", "hall-1/desired", *ROLLOUT, "group/rollout/device/hall-1"))
    assert not any(rollout.may_write(*of("pi", [*OWN, "cmd/install"])))


def test_names_that_no_account_may_have(people: Callable[[str], Person]) -> None:
    """docs/mqtt.md says so: an account owns the topics of its name, whatever they mean to others."""
    text = (DOCS / "mqtt.md").read_text(encoding="utf-8")
    for name, topics in {"group": ROLLOUT, "client": ("client/me/reply/1", "client/x"), "pool": ("pool/x",)}.items():
        assert all(people(name).may_write(*topics))
        assert name in RESERVED and f"`{name}`" in text
    assert all(people("me").may_write("me/status", "me/reported")), "and passes for a device of that name"


def test_who_hears_what(people: Callable[[str], Person]) -> None:
    """Everybody asks for everything; what arrives is what the lists give."""
    names = ("me", "you", "operator", "rollout", "hall-1")
    for name in names:
        people(name).subscribe("edge/v1/#")
    pi, rollout = people("pi"), people("rollout")
    pi.may_write(*of("pi", OWN), "client/me/reply/1", "client/you/reply/1")
    rollout.may_write("pi/desired", "hall-1/desired", *ROLLOUT)
    rollout.may_write("group/rollout/sync/last")
    for _ in range(1000):
        if "edge/v1/group/rollout/sync/last" in people("rollout").heard:
            break
        time.sleep(0.01)
    time.sleep(0.3)
    heard = {name: {topic.removeprefix("edge/v1/") for topic in people(name).heard} for name in names}
    assert heard["me"] == {"pi/status", "client/me/reply/1"}
    assert heard["you"] == {"pi/status", "client/you/reply/1"}
    assert heard["hall-1"] == {"pi/status", "hall-1/desired"}
    assert heard["operator"] == set(of("pi", ("status", "info", "models", "reported", "telemetry")))
    assert heard["rollout"] >= {*of("pi", ("status", "reported", "telemetry", "desired")), *ROLLOUT}
    assert not heard["rollout"] & {"client/me/reply/1", "pi/event", "pi/trace"}
