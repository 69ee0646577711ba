"""When Home Assistant is told of the device."""

from __future__ import annotations

from dataclasses import replace

from edge_agent.agent.report import Identity, Reporter
from tests.support.fakes import a_model
from tests.support.in_process import Device

IDENTITY = Identity("dev", "boot", "0.1", "a board", "3.11", {}, heartbeat_s=60.0, interval_s=10.0)


def test_home_assistant_is_told_on_connection_and_only_where_wanted() -> None:
    async def scenario(device: Device) -> None:
        device.reporter.link_changed(True, "connected")
        assert not device.transport.bodies("/config")
        told = Reporter(replace(IDENTITY, home_assistant=True), device.context.topics, device.clock)
        told.connect(device.transport, lambda: (0, 0))
        told.link_changed(False, "gone")
        assert not device.transport.bodies("/config")
        told.link_changed(True, "connected")
        (config,) = device.transport.bodies("/config")
        assert config["dev"]["mdl"] == "a board"

    Device.run(scenario, a_model())
