"""When Home Assistant is told of the device."""

from __future__ import annotations

import pytest

from edge_agent.protocol.envelope import LinkChange
from tests.support.fakes import a_model
from tests.support.in_process import Device


@pytest.mark.parametrize("wanted", [True, False])
def test_home_assistant_is_told_on_connection_and_only_where_wanted(wanted: bool) -> None:
    async def scenario(device: Device) -> None:
        device.agent.link_changed(LinkChange(False, "transient", "gone"))
        assert not device.transport.bodies("/config")
        device.agent.link_changed(LinkChange(True, "connected", "connected", 5))
        assert [config["dev"]["mdl"] for config in device.transport.bodies("/config")] == ["no board"] * wanted

    Device.run(scenario, a_model(), home_assistant=wanted)
