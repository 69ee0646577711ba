"""Every change of the store is an event, whoever made it."""

from __future__ import annotations

import pytest

from edge_agent.agent.store_changes import StoreChanges, changes
from edge_agent.bundle.catalog import InstalledState
from tests.support.fakes import NothingAnnounced, a_model
from tests.support.in_process import Device
from tests.support.virtual_time import settle

ONE = InstalledState(1, "sha256:a")
TWO = InstalledState(2, "sha256:b", ("x", "y"))


@pytest.mark.parametrize(
    ("before", "after", "kinds"),
    [
        ({}, {"m": ONE}, ["installed"]),
        ({"m": ONE}, {"m": TWO}, ["installed"]),
        ({"m": TWO}, {"m": ONE}, ["rolled-back"]),
        ({"m": TWO}, {"m": InstalledState(3, "sha256:b", ("x",))}, ["removed"]),
        ({"m": TWO}, {"m": InstalledState(3, "sha256:b", ("x", "y", "z"))}, ["installed"]),
        ({"m": ONE}, {}, ["removed"]),
        ({"m": ONE, "n": TWO}, {"m": ONE, "o": ONE}, ["removed", "installed"]),
        ({"m": ONE}, {"m": ONE}, []),
    ],
)
def test_a_change_has_a_kind(
    before: dict[str, InstalledState], after: dict[str, InstalledState], kinds: list[str]
) -> None:
    assert [change.kind for change in changes(before, after)] == kinds


def test_a_removed_adapter_is_named() -> None:
    (change,) = changes({"m": TWO}, {"m": InstalledState(3, "sha256:b", ("x",))})
    assert change.text == "adapter y of model 'm' was removed"
    assert change.data["removed"] == ["y"]


def test_a_command_on_the_board_is_an_event_within_a_second() -> None:
    async def scenario(device: Device) -> None:
        device.watch.tick()
        assert device.kinds() == [], "what is there at the first start is no change"
        device.library.install(a_model("second"))
        device.watch.tick()
        await settle()
        device.library.remove("second")
        device.watch.tick()
        assert device.kinds() == ["installed", "removed"]

    Device.run(scenario, a_model())


def test_what_changed_while_no_daemon_ran_is_announced_by_the_next_one() -> None:
    async def scenario(device: Device) -> None:
        announced = NothingAnnounced()
        announced.write({"gone": ONE, "m": InstalledState(7, "sha256:old")})
        StoreChanges(device.context, device.library, announced).announce()
        assert device.kinds() == ["removed", "rolled-back"]
        StoreChanges(device.context, device.library, announced).announce()
        assert device.kinds() == ["removed", "rolled-back"], "once"

    Device.run(scenario, a_model())
