"""A request's trace: it stands in the answer, and where its time went is told when it was sampled and the setting is
on."""

from __future__ import annotations

import msgspec
import pytest

from edge_agent.agent.trace_reports import BURST, CLIENT_SHARE, CLIENTS_KEPT
from edge_agent.protocol.messages import RequestTrace
from tests.support.fakes import Plan, a_model
from tests.support.in_process import NAME, PREFIX, Device
from tests.support.virtual_time import later, settle

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SILENT = SAMPLED[:-1] + "0"


def reports(device: Device) -> list[RequestTrace]:
    sent = [message for message in device.transport.published if message.topic == f"{PREFIX}/{NAME}/trace"]
    assert all(message.qos == 0 and message.expendable and message.client for message in sent)
    return [msgspec.json.decode(message.payload, type=RequestTrace) for message in sent]


def answered_with(device: Device) -> list[str | None]:
    answers = [message for message in device.transport.published if message.topic.endswith("reply/here")]
    return [message.user.get("traceparent") for message in answers]


@pytest.mark.parametrize("traces", [True, False])
def test_an_answer_and_a_refusal_carry_the_trace_of_their_request(traces: bool) -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", user={"traceparent": SAMPLED, "tracestate": "a=1"})
        await later(1.0)
        await device.ask("2", {"text": "x", "adapter": "nobody"}, user={"traceparent": SAMPLED})
        await device.ask("3", {"text": ""}, user={"traceparent": SILENT})
        await device.ask("4", {"text": "y"}, user={"traceparent": SAMPLED.upper()})
        await later(1.0)
        assert answered_with(device) == [SAMPLED, SAMPLED, SILENT, None]
        assert [one.id for one in reports(device)] == (["1", "2"] if traces else [])

    Device.run(scenario, a_model(), traces=traces)


def test_the_report_says_where_the_time_went() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", user={"traceparent": SAMPLED, "tracestate": "a=1"})
        await later(1.0)
        told = reports(device)[-1]
        reply = device.transport.reply("1")
        assert (told.traceparent, told.tracestate) == (SAMPLED, "a=1")
        assert (told.model, told.operation, told.status, told.batch) == ("m", "classify", 200, 1)
        assert told.total_ms == pytest.approx(reply["timing"]["total_ms"], abs=1.0) == pytest.approx(250.0, abs=20.0)
        timing = reply["timing"]
        assert [told.queue_ms, told.tokenize_ms, told.compute_ms] == [
            timing["queue_ms"], timing["tokenize_ms"], timing["compute_ms"]
        ]  # fmt: skip
        assert told.ts == pytest.approx(device.clock.wall_s() - 0.75, abs=0.01)

    Device.run(scenario, a_model(), plan=Plan(compute_s=0.25), traces=True)


def test_a_request_that_expires_or_is_withdrawn_is_told_with_its_cause() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("kept", user={"traceparent": SAMPLED}, deadline_s=60.0)
        await settle()
        await device.ask("gone", user={"traceparent": SAMPLED}, deadline_s=2.0)
        await device.cancel("kept")
        await later(2.5)
        device.spawner.last.finish()
        await settle()
        told = {one.id: one for one in reports(device)}
        assert (told["kept"].status, told["kept"].cause) == (499, "cancelled")
        assert (told["gone"].status, told["gone"].cause) == (408, "expired")
        assert told["gone"].compute_ms is None and told["gone"].total_ms == pytest.approx(2500.0, abs=10.0)

    Device.run(scenario, a_model(), plan=Plan(compute_s=None), traces=True)


def test_a_client_that_marks_everything_is_told_of_its_share_and_takes_nobody_elses() -> None:
    async def scenario(device: Device) -> None:
        share = int(CLIENT_SHARE * BURST)
        for number in range(share + 50):
            await device.ask(str(number), model="nobody", user={"traceparent": SAMPLED})
        assert len(reports(device)) == share
        assert device.context.take_dropped()["trace-rate"] == 50
        await device.ask("other", model="nobody", user={"traceparent": SAMPLED}, client="other")
        assert reports(device)[-1].id == "other"
        await later(2.0)
        await device.ask("later", model="nobody", user={"traceparent": SAMPLED})
        assert reports(device)[-1].id == "later"

    Device.run(scenario, a_model(), traces=True)


def test_all_clients_together_are_told_of_a_burst() -> None:
    async def scenario(device: Device) -> None:
        for number in range(int(BURST) + 50):
            await device.ask(
                str(number), model="nobody", user={"traceparent": SAMPLED}, client=f"client-{number % 100}"
            )
        assert len(reports(device)) == int(BURST)
        assert device.context.take_dropped()["trace-rate"] == 50
        assert len(device.context.traces._clients) <= CLIENTS_KEPT  # type: ignore[union-attr]

    Device.run(scenario, a_model(), traces=True)
