"""What restarts of the daemon in the whole-agent simulation led to, each as a scenario of its own."""

from __future__ import annotations

import asyncio

import pytest

from edge_agent.base.errors import StoreError
from edge_agent.bundle.catalog import InstalledModel
from tests.support.fakes import FakeLibrary, Plan, RecordingNotifier, a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle


class HalfReadable(FakeLibrary):
    """Its number can be read while its content cannot, as when the record is damaged on its way from the card."""

    unreadable = False

    def active(self) -> tuple[InstalledModel, ...]:
        """See `ports.Library`."""
        if self.unreadable:
            raise StoreError("Input/output error", "record.json")
        return super().active()


def test_a_change_that_could_not_be_read_is_read_at_the_next_look() -> None:
    """The number was taken for read before the content was: the new model was never served."""
    library = HalfReadable(a_model("old"))

    async def scenario(device: Device) -> None:
        library.install(a_model("new"))
        library.unreadable = True
        with pytest.raises(StoreError):
            device.watch.tick()
        library.unreadable = False
        device.watch.tick()
        await device.ask("1", model="new")
        await later(1.0)
        assert device.status("1") == 200

    Device.run(scenario, ports={"library": library})


def test_an_orderly_stop_leaves_nothing_in_the_queues() -> None:
    """Seed 3: what was answered with 503 still stood in its queue while the workers were being ended."""

    async def scenario(device: Device) -> None:
        running = asyncio.create_task(device.agent.run(RecordingNotifier()))
        for name in ("1", "2", "3"):
            await device.ask(name)
        await later(0.5)
        device.agent.stop("restart")
        await running
        assert [device.status(name) for name in ("1", "2", "3")] == [503, 503, 503]
        assert not len(device.served().queue)

    Device.run(scenario, a_model(), plan=Plan(compute_s=None), max_rows=1)


def test_an_order_under_way_is_answered_by_an_orderly_stop() -> None:
    """It was acknowledged when it began: without an answer its sender waited for the whole deadline."""

    async def scenario(device: Device) -> None:
        device.operator.takes_s = 60.0
        running = asyncio.create_task(device.agent.run(RecordingNotifier()))
        await settle()
        await device.order("install", {"package": "p.tar"})
        await later(0.5)
        device.agent.stop("restart")
        await running
        assert device.status("order") == 503

    Device.run(scenario, a_model())
