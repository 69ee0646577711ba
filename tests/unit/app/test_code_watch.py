"""A daemon under which the code changed says so, once the files have come to rest."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from edge_agent.app.code_watch import CONDITION, LOOK_S, CodeWatch
from tests.support.fakes import a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later


def test_other_code_on_the_disk_degrades_the_status_until_it_is_the_same_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stamps = ["1+a", "1+half", OSError(), "2+b", "2+b", "2+b", "1+a", "1+a"]

    def on_disk() -> str:
        found = stamps.pop(0) if len(stamps) > 1 else stamps[0]
        if isinstance(found, OSError):
            raise found
        return str(found)

    async def scenario(device: Device) -> None:
        task = asyncio.create_task(CodeWatch(device.context, "1+a", on_disk).run())
        await later(LOOK_S / 2)  # between two looks
        seen = []
        for _ in range(9):
            await later(LOOK_S)
            seen.append(device.context.conditions.get(CONDITION))
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        text = "the daemon runs 1+a, on the disk is 2+b: restart the service"
        assert seen == [None, None, None, None, text, text, text, None, None]

    Device.run(scenario, a_model())
    assert caplog.text.count("restart the service") == 1
    assert caplog.text.count("again") == 1
