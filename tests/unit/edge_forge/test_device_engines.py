"""Engines that were copied from a device: which are taken into a package, and what is said of the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edge_agent.backends.tensorrt.engine_cache import EngineCache
from edge_agent.base.clock import ManualClock
from edge_agent.base.errors import ConfigError, PackageError
from edge_agent.base.runtimes import ENGINE_ROLE
from edge_agent.bundle.engine_files import engine_origin, engine_path, key_of_path
from edge_agent.store.install_plan import InstallContext
from edge_agent.store.model_store import ModelStore
from edge_agent.store.variant_selection import Hardware
from edge_forge.package import device_engines
from edge_forge.package.build import build_base_package
from edge_forge.package.sources import ModelSource
from tests.support import packages as tiny

DEVICE = {
    "tensorrt": "8.6.1",
    "cuda": "12000",
    "device": "Orin",
    "compute_capability": "8.7",
    "power_mode": "pmode:0002",
}
GRAPH = "ab" * 32


def proven(folder: Path, graph: str = GRAPH) -> Path:
    """An engine as a device leaves it after its golden probes held."""
    origin = engine_origin(graph, DEVICE, {"precision": "fp16"})
    cache = EngineCache(folder)
    path = cache.engine(origin)
    path.write_bytes(b"plan of " + graph.encode())
    cache.judge(path, True, origin)
    return path


def test_an_engine_goes_with_the_graph_that_it_was_built_from(tmp_path: Path) -> None:
    path = proven(tmp_path)
    (found,) = device_engines.read(tmp_path)
    assert (found.key, found.graph, found.made_for) == (path.stem, GRAPH, "'Orin, TensorRT 8.6.1'")
    assert device_engines.of_graph([found], f"sha256:{GRAPH}") == {engine_path(path.stem): path}
    assert device_engines.of_graph([found], "cd" * 32) == {}
    device_engines.check_used([found], [f"sha256:{GRAPH}", "cd" * 32])
    with pytest.raises(ConfigError, match="built from another graph than this recipe makes"):
        device_engines.check_used([found], ["cd" * 32])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.with_suffix(".proven").unlink(), "golden probes have not held on a device"),
        (lambda path: path.with_suffix(".proven").write_text(""), "does not say what the engine was built from"),
        (lambda path: path.with_suffix(".proven").write_text("[1]"), "does not say what the engine was built from"),
        (lambda path: path.with_suffix(".proven").write_text('{"graph": 1}'), "does not say what the engine"),
        (lambda path: path.rename(path.with_name("0" * 32 + ".plan")), "golden probes have not held"),
        (lambda path: path.unlink(), "there is no engine"),
    ],
)
def test_other_files_are_refused_with_the_remedy(tmp_path: Path, harm, said: str) -> None:
    harm(proven(tmp_path))
    with pytest.raises(ConfigError, match=said):
        device_engines.read(tmp_path)


def test_a_proof_of_another_engine_is_no_proof(tmp_path: Path) -> None:
    path, other = proven(tmp_path), proven(tmp_path, "cd" * 32)
    path.with_suffix(".proven").write_text(other.with_suffix(".proven").read_text())
    with pytest.raises(ConfigError, match="not the engine that"):
        device_engines.read(tmp_path)
    for number in range(device_engines.MOST):
        proven(tmp_path, f"{number:064x}")
    with pytest.raises(ConfigError, match="34 engines, 32 are taken"):
        device_engines.read(tmp_path)


def source(folder: Path, runtime: str, engine: Path) -> ModelSource:
    """A model whose INT8 variant is for `runtime` and carries an engine."""
    model = tiny.model_source(folder)
    plain, other = model.variants
    probes = json.loads(model.probes.read_text())
    probes["expected"][f"{runtime}/int8"] = probes["expected"]["onnx/int8"]
    model.probes.write_text(json.dumps(probes))
    carried = replace(other, runtime=runtime, engines={engine_path(engine.stem): engine})
    return replace(model, variants=[plain, carried])


def test_only_a_board_that_runs_the_variant_keeps_its_engines(tmp_path: Path) -> None:
    engine = proven(tmp_path)
    model = source(tmp_path / "m", "tensorrt", engine)
    package = build_base_package(tmp_path / "p.tar", model, tiny.release("tiny"), keys=[tiny.keys().release_key])
    for runtimes, expected in ((("onnx",), set()), (("tensorrt", "onnx"), {ENGINE_ROLE + engine.stem})):
        context = InstallContext(
            prober=tiny.TinyProber(), hardware=Hardware(names=("test-board",), runtimes=runtimes), trust=tiny.trust(),
            clock=ManualClock(wall_s=tiny.WALL_S), reserve_bytes=0,
        )  # fmt: skip
        store = ModelStore(tmp_path / runtimes[0], context)
        store.install(package.path)
        (active,) = store.active()
        roles = {role for role in active.variant.files if role.startswith(ENGINE_ROLE)}
        blobs = [path.read_bytes() for path in (tmp_path / runtimes[0]).rglob("*") if path.is_file()]
        assert roles == expected and (engine.read_bytes() in blobs) == bool(expected)
        assert store.scrub() == () and store.collect() == 0
        for role in roles:  # one that is lost costs a build, not the model
            Path(active.variant.files[role]).unlink()
            assert set(ModelStore(tmp_path / runtimes[0], context).active()[0].variant.files) == {"model", "tokenizer"}


def test_a_runtime_that_compiles_nothing_carries_no_engine(tmp_path: Path) -> None:
    model = source(tmp_path / "m", "echo", proven(tmp_path))
    with pytest.raises(PackageError, match="echo compiles no engines"):
        build_base_package(tmp_path / "p.tar", model, tiny.release("tiny"))


def test_engines_have_one_place_in_a_package() -> None:
    assert key_of_path(engine_path("0f" * 16)) == "0f" * 16
    for path in (
        "engines/x.plan",
        "engine/" + "0f" * 16 + ".plan",
        engine_path("0F" * 16),
        engine_path("0f" * 16) + "x",
    ):
        assert key_of_path(path) is None
