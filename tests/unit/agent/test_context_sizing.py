"""A generator's context on a device with little memory: shrunk where the operator lets it, and it stays so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edge_agent.agent.context_sizing import Sizer
from edge_agent.base.limits import MIB
from edge_agent.bundle.catalog import InstalledModel, TaskSpec, TrialFigures
from edge_agent.bundle.gguf_memory import Demand, GeneratorOverrides, GgufHeader, need
from tests.support.fakes import Plan, a_model, a_variant
from tests.support.generator_headers import SMOL
from tests.support.in_process import Device
from tests.support.virtual_time import later

FULL = sum(need(SMOL, Demand(8192, 4)))


def generator(**options: Any) -> InstalledModel:
    variant = replace(a_variant("g", 140, FULL // MIB, "llamacpp"), files={"model": "/blobs/g"}, options=options)
    return replace(a_model(variant=variant), task=TaskSpec("generate", max_tokens=8192))


class Board:
    """A device whose ceiling is set in bytes, and whose workers hold what they were loaded for."""

    def __init__(self, device: Device, ceiling_bytes: int) -> None:
        self.device = device
        self.ceiling(ceiling_bytes)

    def ceiling(self, ceiling_bytes: int) -> None:
        host = self.device.host
        host._budget = replace(host._budget, models_bytes=ceiling_bytes)

    async def ask(self, name: str) -> None:
        await self.device.ask(name, {"prompt": "x"})
        await later(0.1)

    async def leave(self) -> None:
        """Answer everything, and leave memory."""
        worker = self.device.spawner.last
        for name in list(worker.inside):
            worker.end(name, "x")
        await later(0.1)
        await self.device.manager.unload(self.device.served())

    def loaded(self) -> Demand:
        worker = self.device.served().worker
        assert worker is not None
        return Demand(worker.context, worker.sequences)

    def shrunk_events(self) -> list[dict[str, Any]]:
        return [body for body in self.device.transport.bodies("/event") if body["kind"] == "context-shrunk"]


def run(scenario: Any, overrides: GeneratorOverrides, model: InstalledModel | None = None) -> list[str]:
    """Returns the paths whose header was read."""
    reads = []

    async def read(path: str) -> GgufHeader:
        reads.append(path)
        return SMOL

    plan = Plan(compute_s=None, sequences=4, context=8192)
    Device.run(scenario, model or generator(), plan=plan, ports={"sizer": Sizer(overrides, read)})
    return reads


SHRUNK_BYTES = sum(need(SMOL, Demand(4096, 4)))


def test_it_is_shrunk_and_stays_shrunk_until_there_is_room() -> None:
    async def scenario(device: Device) -> None:
        board = Board(device, FULL - 1)
        device.sensors.pss = dict.fromkeys(range(4000, 4010), SHRUNK_BYTES)
        for name in ("1", "2", "3"):
            await board.ask(name)
            assert board.loaded() == Demand(4096, 4)
            assert device.manager.ledger.reserved_bytes == SHRUNK_BYTES
            await board.leave()
        data = board.shrunk_events()[0]["data"]
        assert data == {
            "model": "m", "context": 4096, "sequences": 4, "wanted_context": 8192, "wanted_sequences": 4,
        }  # fmt: skip
        board.ceiling(FULL + MIB)
        await board.ask("4")
        assert board.loaded() == Demand(8192, 4)

    reads = run(scenario, GeneratorOverrides(shrink=True))
    assert reads == ["/blobs/g"], "the header is read once"


def test_figures_of_a_trial_with_a_short_context_do_not_let_the_full_one_in() -> None:
    model = generator()
    tried = replace(model.variant, measured=TrialFigures(10.0, SHRUNK_BYTES, 1.0, 5))

    async def scenario(device: Device) -> None:
        board = Board(device, FULL - 1)
        await board.ask("1")
        assert board.loaded() == Demand(4096, 4)

    run(scenario, GeneratorOverrides(shrink=True), replace(model, variant=tried, variants=(tried,)))


def test_a_worker_that_holds_more_than_predicted_gets_still_less_the_next_time() -> None:
    async def scenario(device: Device) -> None:
        board = Board(device, FULL - 1)
        device.sensors.pss = {4000: FULL + MIB, 4001: FULL // 2}
        await board.ask("1")
        await board.leave()
        await board.ask("2")
        assert board.loaded().context < 4096

    run(scenario, GeneratorOverrides(shrink=True))


def test_the_policy_off_refuses_with_the_arithmetic_and_what_would_fit() -> None:
    async def scenario(device: Device) -> None:
        board = Board(device, FULL - 1)
        await board.ask("1")
        reply = device.transport.reply("1")
        assert reply["status"] == 503 and "retry_after_s" not in reply
        assert "30 layers x 3 kv heads x 64 x 8192 tokens x 4 x 2 bytes, f16)" in reply["reason"]
        assert "would fit (models.context = 7936)" in reply["reason"]
        assert device.spawner.workers == []

    run(scenario, GeneratorOverrides())


def test_what_does_not_fit_however_small_is_refused_with_the_policy_on_too() -> None:
    async def scenario(device: Device) -> None:
        board = Board(device, SMOL.tensor_bytes)
        await board.ask("1")
        assert "no context fits beside its weights" in device.transport.reply("1")["reason"]

    run(scenario, GeneratorOverrides(shrink=True))


def test_settings_reach_the_worker_and_the_claim() -> None:
    async def scenario(device: Device) -> None:
        board = Board(device, FULL)
        await board.ask("1")
        variant = device.spawner.last.variant
        assert variant is not None
        assert variant.options == {"batch": 64, "context": 1024, "sequences": 2, "kv_type": "q8_0"}
        expected = sum(need(SMOL, Demand(1024, 2, "q8_0", 64)))
        assert device.claim().stated_bytes == expected
        assert device.claim().key == ("sha256:g", "context=1024 sequences=2 kv_type=q8_0", False)
        assert board.shrunk_events() == []

    run(scenario, GeneratorOverrides(context=1024, sequences=2, kv_type="q8_0"), generator(batch=64))


def test_models_tell_context_and_sequences_while_it_is_resident() -> None:
    async def scenario(device: Device) -> None:
        board = Board(device, FULL - 1)
        for resident in (False, True):
            device.reporter.report_models()
            (entry,) = device.transport.bodies("/models")[-1]["models"]
            assert (entry["context"], entry["sequences"]) == ((4096, 4) if resident else (None, None))
            await board.ask(f"{resident}")

    run(scenario, GeneratorOverrides(shrink=True))
