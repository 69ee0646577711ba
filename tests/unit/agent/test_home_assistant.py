"""When Home Assistant is told of the device, and what the broker is to forget of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edge_agent.protocol import encode
from edge_agent.protocol.envelope import LinkChange
from tests.support.fakes import a_model
from tests.support.in_process import NAME, PREFIX, Device


@pytest.mark.parametrize("wanted", [True, False])
def test_home_assistant_is_told_on_connection_and_only_where_wanted(wanted: bool) -> None:
    async def scenario(device: Device) -> None:
        device.agent.link_changed(LinkChange(False, "transient", "gone"))
        assert not device.transport.bodies("/config")
        device.agent.link_changed(LinkChange(True, "connected", "connected", 5))
        assert [config["dev"]["mdl"] for config in device.transport.bodies("/config")] == ["no board"] * wanted

    Device.run(scenario, a_model(), home_assistant=wanted)


def test_a_model_that_comes_or_goes_changes_the_buttons() -> None:
    async def scenario(device: Device) -> None:
        def change() -> None:
            device.watch.tick()
            if device.watch.take_changed():
                device.reporter.report_models()

        def names() -> list[list[str]]:
            return [
                sorted(part["name"] for part in config["cmps"].values() if part["p"] == "button" and "name" in part)
                for config in device.transport.bodies("/config")
            ]

        device.library.install(a_model("before"))
        change()
        assert names() == [], "nothing is announced before there is a connection"
        device.agent.link_changed(CONNECTED)
        device.reporter.report_models()
        assert names() == [["Load before", "Load m", "Roll back before", "Roll back m"]]
        device.library.remove("before")
        change()
        assert names()[1:] == [["Load m", "Roll back m"]]
        # Home Assistant keeps what is left out, and removes what has its platform alone.
        gone = {key: part for key, part in device.transport.bodies("/config")[-1]["cmps"].items() if "before" in key}
        assert gone == {
            "model_before": {"p": "update"},
            "load_before": {"p": "button"},
            "rollback_before": {"p": "button"},
        }
        device.library.install(a_model("before"))
        change()
        assert names()[2:] == [["Load before", "Load m", "Roll back before", "Roll back m"]]

    Device.run(scenario, a_model(), home_assistant=True)


class Retained:
    """What a state folder remembers."""

    def __init__(self, *topics: str) -> None:
        self.topics: tuple[str, ...] = topics

    def read(self) -> Sequence[str]:
        return self.topics

    def write(self, topics: Sequence[str]) -> None:
        self.topics = tuple(topics)


CONFIG = f"homeassistant/device/{NAME}/config"
OLD = "homeassistant/device/old-name/config"
STATE = tuple(f"{PREFIX}/{NAME}/{tail}" for tail in ("status", "info", "models", "reported"))
OLD_STATE = tuple(f"{PREFIX}/old-name/{tail}" for tail in ("status", "info", "models"))
CONNECTED = LinkChange(True, "connected", "connected", 5)


def sent(device: Device) -> list[tuple[str, bool]]:
    """Discovery topics in order, and whether each was announced (True) or withdrawn."""
    found = [message for message in device.transport.published if message.topic.endswith("/config")]
    assert all(message.retain for message in found)
    return [(message.topic, bool(message.payload)) for message in found]


@pytest.mark.parametrize(
    ("wanted", "known", "expected", "kept"),
    [
        (True, (), [(CONFIG, True)], (CONFIG,)),
        (True, (CONFIG,), [(CONFIG, True)], (CONFIG,)),
        (True, (OLD,), [(OLD, False), (CONFIG, True)], (CONFIG,)),
        (False, (CONFIG, OLD), [(CONFIG, False), (OLD, False)], ()),
        (False, (), [], ()),
    ],
)
def test_what_is_not_wanted_any_more_is_withdrawn_and_then_forgotten(
    wanted: bool, known: tuple[str, ...], expected: list[tuple[str, bool]], kept: tuple[str, ...]
) -> None:
    async def scenario(device: Device) -> None:
        device.agent.link_changed(CONNECTED)
        assert sorted(sent(device)) == sorted(expected)
        assert set(retained.topics) == {*known, *STATE, *([CONFIG] if wanted else [])}, "forgotten when it is delivered"
        device.publisher.forget_withdrawn()
        assert set(retained.topics) == {*STATE, *kept}

    retained = Retained(*known)
    Device.run(scenario, a_model(), home_assistant=wanted, ports={"retained": retained})


def test_the_state_under_an_earlier_name_is_withdrawn_before_the_own_is_published() -> None:
    async def scenario(device: Device) -> None:
        device.transport.published.clear()
        device.agent.link_changed(CONNECTED)
        found = [(one.topic, bool(one.payload)) for one in device.transport.published if one.retain]
        assert sorted(found[:3]) == [(topic, False) for topic in sorted(OLD_STATE)]
        # `reported` is published by the keeper of the desired state, once a second where something has changed.
        assert sorted(found[3:]) == [(topic, True) for topic in sorted(STATE) if not topic.endswith("/reported")]
        device.publisher.forget_withdrawn()
        assert retained.topics == STATE
        device.transport.published.clear()
        device.agent.link_changed(CONNECTED)
        assert all(one.payload for one in device.transport.published if one.retain), "once"

    retained = Retained(*OLD_STATE)
    Device.run(scenario, a_model(), ports={"retained": retained})


def test_a_withdrawal_that_the_broker_refuses_is_tried_again() -> None:
    async def scenario(device: Device) -> None:
        device.agent.link_changed(CONNECTED)
        device.agent.undelivered(encode.withdrawal(OLD), "Not authorized")
        device.publisher.forget_withdrawn()
        assert OLD in retained.topics
        device.agent.link_changed(CONNECTED)
        assert sent(device) == [(OLD, False)] * 2

    retained = Retained(OLD)
    Device.run(scenario, a_model(), ports={"retained": retained})
