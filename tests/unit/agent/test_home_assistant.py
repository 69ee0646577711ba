"""When Home Assistant is told of the device."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edge_agent.protocol import home_assistant
from edge_agent.protocol.envelope import LinkChange
from tests.support.fakes import a_model
from tests.support.in_process import NAME, Device


@pytest.mark.parametrize("wanted", [True, False])
def test_home_assistant_is_told_on_connection_and_only_where_wanted(wanted: bool) -> None:
    async def scenario(device: Device) -> None:
        device.agent.link_changed(LinkChange(False, "transient", "gone"))
        assert not device.transport.bodies("/config")
        device.agent.link_changed(LinkChange(True, "connected", "connected", 5))
        assert [config["dev"]["mdl"] for config in device.transport.bodies("/config")] == ["no board"] * wanted

    Device.run(scenario, a_model(), home_assistant=wanted)


class Announced:
    """What a state folder remembers."""

    def __init__(self, *topics: str) -> None:
        self.topics: tuple[str, ...] = topics

    def read(self) -> Sequence[str]:
        return self.topics

    def write(self, topics: Sequence[str]) -> None:
        self.topics = tuple(topics)


CONFIG = f"homeassistant/device/{NAME}/config"
OLD = "homeassistant/device/old-name/config"
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
        assert set(announced.topics) == {*known, *([CONFIG] if wanted else [])}, "not forgotten before it is delivered"
        device.publisher.forget_withdrawn()
        assert announced.topics == kept

    announced = Announced(*known)
    Device.run(scenario, a_model(), home_assistant=wanted, ports={"announced": announced})


def test_a_withdrawal_that_the_broker_refuses_is_tried_again() -> None:
    async def scenario(device: Device) -> None:
        device.agent.link_changed(CONNECTED)
        device.agent.undelivered(home_assistant.withdrawal(OLD), "Not authorized")
        device.publisher.forget_withdrawn()
        assert announced.topics == (OLD,)
        device.agent.link_changed(CONNECTED)
        assert sent(device) == [(OLD, False)] * 2

    announced = Announced(OLD)
    Device.run(scenario, a_model(), ports={"announced": announced})
