"""Orders: one at a time, carried out, answered with a status word that says whose fault it was."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from edge_agent.base.causes import Cause
from edge_agent.base.errors import EdgeError, PackageError, ProbeError, SignatureError, StoreError, WorkerError
from edge_agent.protocol.messages import ORDERS, Order
from tests.support.fakes import Plan, a_model
from tests.support.in_process import Device
from tests.support.virtual_time import later, settle


def test_install_remove_and_rollback_are_handed_on_and_reported() -> None:
    async def scenario(device: Device) -> None:
        await device.order("install", {"package": "m.tar"}, "1")
        await settle()
        await device.order("remove", {"model": "m"}, "2")
        await settle()
        await device.order("remove", {"model": "m", "adapter": "a"}, "3")
        await settle()
        await device.order("rollback", {"model": "m"}, "4")
        await settle()
        assert device.transport.statuses() == {number: [200] for number in "1234"}
        assert device.operator.calls == [("install", "m.tar"), ("remove", "m"), ("remove", "m", "a"), ("rollback", "m")]
        await device.order("promote", {"model": "m"}, "5")
        await settle()
        assert device.status("5") == 200 and device.operator.calls[-1] == ("promote", "m")
        assert device.kinds() == [], "the events are those of the store's changes"
        assert device.transport.reply("1")["result"] == {"done": "install"}

    Device.run(scenario, a_model())


def test_a_refused_package_is_422_with_the_sentence_and_an_event() -> None:
    async def scenario(device: Device) -> None:
        device.operator.fault = PackageError("the digest is wrong", "m.tar")
        await device.order("install", {"package": "m.tar"})
        await settle()
        reply = device.transport.reply("order")
        assert (reply["status"], reply["reason"]) == (422, "m.tar: the digest is wrong")
        assert reply["cause"] == "package-refused"
        assert device.kinds() == ["command-failed"]

    Device.run(scenario, a_model())


def test_an_order_that_ends_by_a_bug_is_answered_and_the_next_one_is_carried_out() -> None:
    async def scenario(device: Device) -> None:
        device.operator.fault = ZeroDivisionError()
        await device.order("install", {"package": "m.tar"}, "1")
        await settle()
        reply = device.transport.reply("1")
        assert (reply["status"], reply["reason"]) == (500, "install ended by an error of the agent: ZeroDivisionError")
        assert reply["cause"] == "agent-error"
        device.operator.fault = None
        await device.order("rollback", {"model": "m"}, "2")
        await settle()
        assert device.status("2") == 200

    Device.run(scenario, a_model())


@pytest.mark.parametrize(
    ("fault", "status", "cause"),
    [
        (SignatureError("unsigned"), 422, "signature"),
        (ProbeError("probe 1 is off"), 422, "probes-failed"),
        (StoreError("the disk is too full", cause=Cause.DISK_FULL), 422, "disk-full"),
        (StoreError("read-only"), 422, "store"),
        (StoreError("another install is at work", cause=Cause.BUSY), 429, "busy"),
        (StoreError("no adapter", cause=Cause.UNKNOWN_ADAPTER), 404, "unknown-adapter"),
        (StoreError("no version", cause=Cause.NO_EARLIER_VERSION), 422, "no-earlier-version"),
        (StoreError("no end", cause=Cause.EXPIRED), 408, "expired"),
        (WorkerError("it died"), 500, "worker-failed"),
    ],
)
def test_an_order_that_fails_says_its_cause(fault: EdgeError, status: int, cause: str) -> None:
    async def scenario(device: Device) -> None:
        device.operator.fault = fault
        await device.order("remove", {"model": "m"})
        await settle()
        reply = device.transport.reply("order")
        assert (reply["status"], reply["cause"]) == (status, cause)
        assert str(fault) == reply["reason"]

    Device.run(scenario, a_model())


def test_a_second_order_is_told_to_come_back_and_requests_go_on() -> None:
    async def scenario(device: Device) -> None:
        device.operator.takes_s = 10.0
        await device.order("install", {"package": "m.tar"}, "1")
        await settle()
        await device.order("rollback", {"model": "m"}, "2")
        await device.ask("3")
        await later(1.0)
        assert device.transport.statuses() == {"2": [429], "3": [200]}
        assert device.transport.reply("2")["retry_after_s"] == 5.0
        assert device.transport.reply("2")["cause"] == "busy"
        await later(10.0)
        assert device.status("1") == 200

    Device.run(scenario, a_model())


def test_load_and_unload() -> None:
    async def scenario(device: Device) -> None:
        await device.order("load", {"model": "m"}, "1")
        await settle()
        assert device.spawner.running() == [device.served().worker.process]
        assert device.transport.reply("1")["result"]["footprint_bytes"] > 0
        await device.order("unload", {"model": "m"}, "2")
        await settle()
        assert device.spawner.last.closed
        assert device.spawner.running() == []
        assert device.status("2") == 200

    Device.run(scenario, a_model())


def test_unload_waits_for_what_runs() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("running")
        await settle()
        await device.order("unload", {"model": "m"})
        await settle()
        assert len(device.spawner.running()) == 1
        device.spawner.last.finish()
        await settle()
        assert device.spawner.last.closed
        assert (device.status("running"), device.status("order")) == (200, 200)

    Device.run(scenario, a_model(), plan=Plan(compute_s=None))


def test_attach_and_detach() -> None:
    async def scenario(device: Device) -> None:
        await device.order("attach", {"model": "m", "adapter": "a"}, "1")
        await settle()
        assert device.transport.reply("1")["result"] == {"attached": ["a"]}
        await device.order("detach", {"model": "m", "adapter": "a"}, "2")
        await settle()
        assert device.transport.reply("2")["result"] == {"attached": []}
        assert device.spawner.last.attached == []
        await device.order("detach", {"model": "m", "adapter": "a"}, "3")
        await settle()
        assert device.status("3") == 200, "what is not there is detached already"

    Device.run(scenario, a_model(adapters=["a"]))


@pytest.mark.parametrize("name", ["load", "unload", "attach", "detach"])
def test_an_unknown_model_is_404(name: str) -> None:
    async def scenario(device: Device) -> None:
        body = {"model": "nobody", "adapter": "a"} if "tach" in name else {"model": "nobody"}
        await device.order(name, body)
        await settle()
        assert device.status("order") == 404

    Device.run(scenario, a_model())


def test_an_unknown_adapter_is_404() -> None:
    async def scenario(device: Device) -> None:
        await device.order("attach", {"model": "m", "adapter": "nobody"})
        await settle()
        assert device.status("order") == 404

    Device.run(scenario, a_model())


def test_a_worker_that_dies_under_an_order_is_500_not_the_client_s_fault() -> None:
    async def scenario(device: Device) -> None:
        device.spawner.plan.load_faults.append("die")
        await device.order("load", {"model": "m"})
        await settle()
        assert device.status("order") == 500

    Device.run(scenario, a_model())


def test_an_order_that_cannot_be_decoded_never_reaches_the_store() -> None:
    async def scenario(device: Device) -> None:
        await device.order("install", {"packet": "m.tar"}, "1")
        await device.order("dance", {}, "2")
        await settle()
        assert device.operator.calls == []
        assert device.status("1") == 422
        assert device.status("2") in {404, 422}

    Device.run(scenario, a_model())


@pytest.mark.parametrize(("name", "kind"), ORDERS.items())
def test_every_order_has_a_handler_that_takes_its_body(name: str, kind: type[Order]) -> None:
    known = {"model": "m", "adapter": "a", "package": "m.tar"}
    body = {field.name: known.get(field.name, "a text") for field in msgspec.structs.fields(kind) if field.required}

    async def scenario(device: Device) -> None:
        await device.order(name, body)
        await later(1.0)
        assert device.status("order") == 200

    Device.run(scenario, a_model(adapters=("a",)))


def test_an_order_delivered_twice_is_carried_out_once_and_answered_twice() -> None:
    """A rollback done twice would undo itself."""

    async def scenario(device: Device) -> None:
        for _ in range(2):
            await device.order("rollback", {"model": "m"}, "once")
            await settle()
        assert device.operator.calls == [("rollback", "m")]
        answers = [body for body in device.transport.bodies("/reply/here") if body["id"] == "once"]
        assert len(answers) == 2
        assert answers[0] == answers[1]
        device.transport.published.clear()
        await asyncio.sleep(31.0)
        await device.order("rollback", {"model": "m"}, "once")
        await settle()
        assert len(device.operator.calls) == 2, "after its deadline the id is free again"

    Device.run(scenario, a_model())


def test_a_model_that_the_store_does_not_know_either_is_404() -> None:
    async def scenario(device: Device) -> None:
        for name in ("remove", "rollback"):
            device.operator.fault = StoreError("there is no model 'nobody'")
            await device.order(name, {"model": "nobody"}, name)
            await settle()
            assert device.status(name) == 404
        assert ("remove", "nobody") in device.operator.calls, "a damaged model is not served, yet can be removed"

    Device.run(scenario, a_model())
