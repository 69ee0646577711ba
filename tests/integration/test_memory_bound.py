"""Models that ask for more memory than they state, in a real worker: refused with a sentence, and the worker lives."""

from __future__ import annotations

import asyncio
import resource
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_agent.base.errors import BackendError, MemoryRefused
from edge_agent.base.limits import MIB
from edge_agent.bundle.catalog import TaskSpec, TrialFigures, Variant
from edge_agent.protocol.worker_messages import LoadMemory, ModelLoaded, NoListener, StepLimits
from edge_agent.worker.memory_bound import MARGIN_BYTES, THREAD_BYTES, UNUSED_BYTES, Allowance, MemoryBound, allowance
from edge_agent.worker.supervisor import SpawnOptions, spawn
from edge_forge.package.build import build
from edge_forge.package.sources import ModelSource, VariantSource
from tests.support import small_graph
from tests.support.agents import AgentProcess, echo_package, running
from tests.support.desk import desk
from tests.support.mosquitto import Mosquitto
from tests.support.mqtt import until
from tests.support.packages import keys, release
from tests.support.small_package import probes, tokenizer

LIMITS = StepLimits(4, 1)
TASK = TaskSpec("embed", max_tokens=16)
FLOATS = 402_653_184  # 1.5 GiB


def bomb(path: Path, kind: str, floats: int = FLOATS) -> Path:
    """An encoder of some hundred bytes whose output adds the sum of a huge tensor that it makes itself."""
    constants = {
        "shape": np.asarray([floats], np.int64),
        "pads": np.asarray([0, floats], np.int64),
        "half": np.asarray([0.5], np.float32),
        "axis": np.asarray([1], np.int64),
        "one": np.ones((1, 8), np.float32),
    }
    value = numpy_helper.from_array(np.asarray([0.5], np.float32), "v")
    big = {
        "filled": helper.make_node("ConstantOfShape", ["shape"], ["big"], value=value),
        "expanded": helper.make_node("Expand", ["half", "shape"], ["big"]),
        "padded": helper.make_node("Pad", ["half", "pads"], ["big"]),
        "tiled": helper.make_node("Tile", ["half", "shape"], ["big"]),
    }[kind]
    nodes = [
        big,
        helper.make_node("ReduceSum", ["big"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["mask", "axis"], ["count"], keepdims=1),
        helper.make_node("Mul", ["count", "one"], ["wide"]),
        helper.make_node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["ids", "axis"], ["total"], keepdims=1),
        helper.make_node("Add", ["wide", "sum"], ["summed"]),
        helper.make_node("Add", ["summed", "total"], ["features"]),
    ]
    given = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "s"]) for n in ("input_ids", "attention_mask")]
    out = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["b", 8])]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "bomb", given, out, tensors), opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    )
    onnx.save(model, path)
    return path


def variant(path: Path, peak_bytes: int = MIB) -> Variant:
    return Variant("sha256:0", "onnx", "fp32", {"model": str(path)}, path.stat().st_size, peak_bytes, options={})


async def loaded(*models: Variant, room_bytes: int | None = None) -> list[ModelLoaded | BackendError]:
    """What one worker says to each of these loads, one after the other; it is the same process for all."""
    worker = await spawn(SpawnOptions(), NoListener())
    room = None if room_bytes is None else LoadMemory(room_bytes)
    found: list[ModelLoaded | BackendError] = []
    try:
        for model in models:
            try:
                found.append(await worker.load(model, TASK, LIMITS, room))
            except BackendError as error:
                found.append(error)
    finally:
        await worker.close()
    return found


@pytest.mark.parametrize("kind", ["filled", "expanded", "padded", "tiled"])
def test_a_graph_that_takes_more_than_it_states_is_refused_and_the_worker_lives(tmp_path: Path, kind: str) -> None:
    path = bomb(tmp_path / "bomb.onnx", kind)
    assert path.stat().st_size < 2000
    good = small_graph.banked(tmp_path / "good.onnx")
    refused, taken = asyncio.run(loaded(variant(path), variant(good)))
    assert isinstance(refused, BackendError) and isinstance(taken, ModelLoaded)
    assert isinstance(refused, MemoryRefused)
    assert str(refused) == (
        "ONNX Runtime got less memory than it asked for; the model may take 274 MiB by what its package states "
        "(it asks for more than it states: build the package again, so that its memory is measured)"
    )


def bomb_package(folder: Path) -> Path:
    """A signed package with such a graph, which states 1 MiB; its probes are those of an honest encoder."""
    model = ModelSource(
        name="bomb",
        base_id=small_graph.BASE_ID,
        task={"kind": "embed", "max_tokens": 16},
        variants=[VariantSource(bomb(folder / "bomb.onnx", "filled"), "onnx", "fp32", peak_bytes=MIB)],
        probes=probes(folder, ["onnx/fp32"], small_graph.banked(folder / "good.onnx"), None),
        tokenizer=tokenizer(folder / "tokenizer.json"),
        licences=("Apache-2.0",),
    )
    return build(folder / "bomb.tar", release("bomb"), model, [], None, [keys().release_key]).path


def test_an_install_of_one_is_refused_and_the_device_serves_on(tmp_path: Path) -> None:
    package = bomb_package(tmp_path)

    async def run(broker: Mosquitto, agent: AgentProcess) -> None:
        async with desk(broker) as table:
            assert (await table.ask("before", {"text": "x"}))["status"] == 200
            await until(lambda: len(agent.workers()) == 1)  # the child that asked which runtimes exist has ended
            serving = agent.workers()
            refused = await table.order("install", "install", {"package": package.name})
            assert refused["status"] == 422, refused
            assert "the model may take 2" in refused["reason"] and "MiB by what its package states" in refused["reason"]
            assert (await table.ask("after", {"text": "x"}))["status"] == 200
            assert agent.workers() == serving
            assert {model["name"] for model in table.bodies("models")[-1]["models"]} == {"echo"}

    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, backends=("echo", "onnx"))
        agent.install(echo_package(tmp_path))
        with running(agent):
            shutil.copy(package, agent.folder / "state" / "inbox")
            asyncio.run(run(broker, agent))


def test_what_the_device_has_bounds_a_load_whatever_its_package_states(tmp_path: Path) -> None:
    """A small board with 300 MiB for a model, and a package that states nearly all of 512 MiB."""
    path = bomb(tmp_path / "bomb.onnx", "filled", 100 * MIB)  # takes 800 MiB
    stated = variant(path, 480 * MIB)
    (taken,) = asyncio.run(loaded(stated))
    assert isinstance(taken, ModelLoaded)
    (refused,) = asyncio.run(loaded(stated, room_bytes=300 * MIB))
    assert isinstance(refused, MemoryRefused)
    assert "the model may take 412 MiB: the device has no more for it" in refused.what


def test_what_a_package_states_is_allowed(tmp_path: Path) -> None:
    (found,) = asyncio.run(loaded(variant(bomb(tmp_path / "bomb.onnx", "filled"), 4 * FLOATS)))
    assert isinstance(found, ModelLoaded)


def test_the_allowance_follows_what_is_stated_and_what_was_measured(tmp_path: Path) -> None:
    model = variant(small_graph.banked(tmp_path / "good.onnx"), 100 * MIB)
    rest = MARGIN_BYTES + 4 * THREAD_BYTES
    assert allowance(model, 4, 16) == allowance(model, 4, 1) == (200 * MIB + rest, False)
    assert allowance(model, 4, 64).total_bytes == 800 * MIB + rest
    measured = TrialFigures(1.0, 300 * MIB, 1.0, 5)
    tried = Variant(model.digest, "onnx", "fp32", model.files, 900 * MIB, 100 * MIB, options={}, measured=measured)
    assert allowance(tried, 4, 16).total_bytes == 1800 * MIB + rest
    room = 100 * MIB + UNUSED_BYTES + 4 * THREAD_BYTES
    assert allowance(model, 4, 16, 100 * MIB) == (room, True)
    assert allowance(model, 4, 16, 4096 * MIB) == allowance(model, 4, 16)
    assert allowance(variant(Path(model.files["model"]), 0), 0, 1).total_bytes >= MARGIN_BYTES


def test_an_adapter_raises_the_bound_while_it_is_attached() -> None:
    def soft() -> int:
        return resource.getrlimit(resource.RLIMIT_DATA)[0]

    before = resource.getrlimit(resource.RLIMIT_DATA)
    try:
        bound = MemoryBound()
        bound.allow_adapter("early", MIB)
        bound.forget_adapter("early")
        bound.set(Allowance(0, by_board=False))
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
        bound.set(Allowance(4096 * MIB, by_board=False))
        first = soft()
        for _ in range(3):
            bound.allow_adapter("a", MIB)
            bound.allow_adapter("b", 2 * MIB)
            assert soft() - first == 3 * 24 * MIB
            bound.forget_adapter("a")
            bound.forget_adapter("b")
            assert soft() == first
        assert "4096 MiB" in bound.explained(MemoryRefused("no room", "model")).what
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
