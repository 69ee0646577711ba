"""Requests for an adapter that is installed merged as well run where `core.adapter_routing` says, and are answered
alike.
"""

from __future__ import annotations

from dataclasses import replace

from edge_agent.agent.model_manager import NO_ROOM_S
from edge_agent.base.limits import GIB, MIB
from edge_agent.bundle.catalog import InstalledModel, TrialFigures
from edge_agent.core.adapter_routing import RoutingPolicy
from tests.support.fakes import Plan, a_model, a_variant, an_adapter
from tests.support.in_process import Device
from tests.support.virtual_time import later


def both() -> tuple[InstalledModel, InstalledModel]:
    adapters = tuple(
        replace(an_adapter(name), file_digest=f"sha256:{name}{name}", measured=TrialFigures(9.0, 0, 0.0, 20))
        for name in ("a", "b")
    )
    variant = replace(a_variant("merged", 400, 400), measured=TrialFigures(3.0, 0, 0.0, 20))
    merged = replace(a_model("a-merged", variant), kind="merged", merged_from={"base": "sha256:base", "x": "aa"})
    return replace(a_model("m"), adapters=adapters), merged


def test_the_faster_merged_model_answers_for_the_adapter() -> None:
    async def scenario(device: Device) -> None:
        for name, adapter in (("1", "a"), ("2", "b"), ("3", None)):
            await device.ask(name, {"text": "x", "adapter": adapter} if adapter else {"text": "x"})
            await later(0.5)
        replies = [device.transport.reply(name) for name in ("1", "2", "3")]
        assert [(one["status"], one["model"], one["adapter"], one.get("merged")) for one in replies] == [
            (200, "m", "a", "a-merged"),
            (200, "m", "b", None),
            (200, "m", None, None),
        ]
        by_hand = device.manager.served_models["a-merged"].model.name
        await device.ask("4", model=by_hand)
        await later(0.5)
        reply = device.transport.reply("4")
        assert (reply["model"], reply["adapter"], reply.get("merged")) == ("a-merged", None, None)

    Device.run(scenario, *both())


def test_a_quarantined_merged_model_is_passed_by_and_a_cancel_finds_the_job() -> None:
    async def scenario(device: Device) -> None:
        await device.ask("1", {"text": "x", "adapter": "a"})
        await later(0.5)
        assert [job.model for job in device.context.requests.open_jobs()] == ["a-merged"]
        await device.cancel("1")
        await later(0.5)
        assert device.status("1") == 499
        device.spawner.last.die("killed by SIGSEGV")
        assert device.served("a-merged").lifecycle.published == "quarantined"
        await device.ask("2", {"text": "x", "adapter": "a"})
        await later(0.5)
        assert [job.model for job in device.context.requests.open_jobs()] == ["m"]

    Device.run(scenario, *both(), plan=Plan(compute_s=None), quarantine_deaths=1)


def test_while_memory_is_short_the_base_that_is_there_answers() -> None:
    """A merged model that found no memory is passed by for a while; who asked it already waits for it, or is told."""

    async def scenario(device: Device) -> None:
        device.sensors.set(ram_total=float(GIB), ram_available=700.0 * MIB)
        await device.ask("base", {"text": "x"}, deadline_s=300.0)
        await later(0.5)
        await device.ask("1", {"text": "x", "adapter": "a"}, deadline_s=5.0)
        await later(4.6)
        assert device.transport.reply("1")["reason"].startswith("no memory for model 'a-merged': needs 400.0 MiB")
        await device.ask("2", {"text": "x", "adapter": "a"}, deadline_s=300.0)
        await later(0.5)
        assert [job.model for job in device.context.requests.open_jobs()] == ["m", "m"]
        await device.cancel("base")
        await device.cancel("2")
        device.sensors.set(ram_available=1000.0 * MIB)
        await later(NO_ROOM_S)
        await device.ask("3", {"text": "x", "adapter": "a"})
        await later(0.5)
        assert [job.model for job in device.context.requests.open_jobs()] == ["a-merged"]

    one, other = both()
    Device.run(scenario, replace(one, variant=a_variant("m", 400, 400)), other, plan=Plan(compute_s=None))


def test_the_choice_follows_what_is_installed() -> None:
    async def scenario(device: Device) -> None:
        base = device.manager.served_models["m"]
        assert device.manager.route(base, "a").name == "a-merged"
        device.library.remove("a-merged")
        device.manager.sync()
        assert device.manager.route(base, "a") is base

    Device.run(scenario, *both())


def test_the_choice_follows_what_the_operator_prefers() -> None:
    async def scenario(device: Device) -> None:
        base = device.manager.served_models["m"]
        assert device.manager.route(base, "a") is base

    Device.run(scenario, *both(), ports={"routing": RoutingPolicy(prefer=("unmerged",))})
