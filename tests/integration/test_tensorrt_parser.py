"""NVIDIA's own parser and builder take every graph that `edge-forge` writes for TensorRT.

TensorRT-RTX builds engines without a GPU. It stands in for TensorRT on a Jetson and proves nothing about its versions;
its Python interface is that of TensorRT 11 (types by the graph alone, no flag for explicit batch). The engine host
itself asks it. What the source of older parsers refuses is `tests.support.tensorrt_rules`.
Its packages (95 MB, x86-64) are installed once under `build/pythons`; where that cannot be done the test is skipped
and says so. No engine is run here. `make tensorrt-parser` takes every family of encoders, this test one.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from edge_forge.export.onnx.export_graphs import Bank, trace_base
from edge_forge.export.onnx.quantize import TokenCut
from edge_forge.export.onnx.tensorrt_form import FP32_PREFIX, make
from edge_forge.models.encoder import open_encoder, target_names
from tests.support import tiny_encoders as tiny
from tests.support.tensorrt_rules import quantisation, refusals

FAMILIES = tiny.ENCODERS if os.environ.get("EDGE_TENSORRT_FAMILIES") == "whole" else ("bert",)
FORMATS = ("fp32", "fp16", "int8")
TOKENS = 40
ROOT = Path(__file__).resolve().parents[2]
VERSION = "1.7.1.116"
PACKAGES = (f"tensorrt_rtx_cu12_bindings=={VERSION}", f"tensorrt_rtx_cu12_libs=={VERSION}")
HOST = ROOT / "edge_agent" / "backends" / "tensorrt"
# The engine host's own code builds. Compute capability 8.9 is the nearest to an Orin's 8.7 that the library builds for.
PROGRAM = """
import ctypes, glob, json, sys
sys.path[:0] = sys.argv[1:3]
for path in sorted(glob.glob(sys.argv[1] + "/tensorrt_rtx_libs/*.so*")):
    ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
import tensorrt_rtx_bindings as trt
from engine_host.build_engine import build
from engine_host.device_access import HostFailure

class Builder(trt.Builder):
    def create_builder_config(self):
        config = super().create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM89, 0)
        return config

trt.Builder = Builder
events = []
try:
    found = build(trt, json.loads(sys.argv[3]), events.append)
except HostFailure as failure:
    found = {"failed": failure.what}
stages = list(dict.fromkeys(event["stage"] for event in events))
shares = [event["done"] / event["total"] for event in events if event.get("total")]
print(json.dumps(dict(found, stages=stages, shares=[len(shares), max(shares, default=0.0)])))
"""


@pytest.fixture(scope="module")
def library() -> Path:
    folder = ROOT / "build" / "pythons" / f"tensorrt-rtx-{VERSION}-{sys.version_info[0]}.{sys.version_info[1]}"
    if not (folder / "ready").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *PACKAGES]
        clean = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            pytest.skip(f"TensorRT-RTX cannot be installed here, no graph was parsed: {done.stderr[-300:]}")
        (folder / "ready").touch()
    return folder


@pytest.fixture(scope="module")
def graphs(tmp_path_factory) -> Callable[[str], Path]:
    """The folder with what `edge-forge` packs for TensorRT of a family's tiny encoder: `<format>.onnx` with a bank,
    `merged/fp16.onnx` without one."""

    @functools.cache
    def made(family: str) -> Path:
        folder = tmp_path_factory.mktemp(family)
        base = tiny.write(folder / "base", family)
        trace_base(base_dir=base, out_dir=folder, base_id="sha256:" + "34" * 32, max_tokens=TOKENS)
        given = {
            "encoder_path": folder / "encoder.onnx",
            "tokenizer_path": base / "tokenizer.json",
            "texts": tiny.TEXTS,
            "reading": TokenCut(TOKENS),
        }
        bank = (Bank(rank=16, max_labels=8), target_names(open_encoder(base), ("all",), 0))
        make(out_dir=folder, formats=FORMATS, bank=bank, **given)
        make(out_dir=folder / "merged", formats=["fp16"], **given)
        return folder

    return made


def built(library: Path, graph: Path, plan: Path, **request: object) -> dict[str, Any]:
    """What the engine host answers to a build of that graph with all its inputs, under TensorRT-RTX."""
    profile = {}
    for given in onnx.load(graph).graph.input:
        best = [dim.dim_value or 16 for dim in given.type.tensor_type.shape.dim][1:]
        least = [dim.dim_value or 1 for dim in given.type.tensor_type.shape.dim][1:]
        profile[given.name] = [[1, *least], [8, *best], [8, *best]]
    asked = json.dumps({"onnx": str(graph), "plan": str(plan), "profile": profile, **request})
    command = [sys.executable, "-c", PROGRAM, str(library), str(HOST), asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FORMATS, "merged/fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_is_parsed_and_built_with_its_bank(
    library: Path, graphs, tmp_path: Path, family: str, name: str
) -> None:
    """By the engine host's own code, with the library's own progress monitor. Inputs that a parser can fold away would
    leave an engine without adapters: `set_profile` refuses an input that the parsed network does not have."""
    path, plan = graphs(family) / f"{name}.onnx", tmp_path / "engine.plan"
    found = built(library, path, plan, precision=name.rpartition("/")[2], fp32_names=[FP32_PREFIX])
    assert "failed" not in found, found
    assert found["plan_bytes"] == plan.stat().st_size > 0
    assert found["stages"] == ["parse", "build", "write"] and found["shares"][0] > 10 and found["shares"][1] <= 1.0
    print(f"{family} {name}: parsed, an engine of {found['plan_bytes']} bytes")


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_keeps_the_rules_of_older_parsers_and_of_quantisation(graphs, family: str, name: str) -> None:
    model = onnx.load(graphs(family) / f"{name}.onnx")
    assert refusals(model) == []
    assert quantisation(model) == []
    pairs = sum(node.op_type == "DequantizeLinear" for node in model.graph.node)
    assert (pairs > 0) == (name == "int8")


@pytest.mark.slow
def test_what_the_library_does_not_take_is_said(library: Path, graphs, tmp_path: Path) -> None:
    """Else the tests above could not fail."""
    model = onnx.load(graphs(FAMILIES[0]) / "fp32.onnx")
    onnx.save(model, tmp_path / "whole.onnx")
    assert (
        "no input 'folded'"
        in built(library, tmp_path / "whole.onnx", tmp_path / "x.plan", profile={"folded": []})["failed"]
    )
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Softerfmax"
    onnx.save(model, tmp_path / "odd.onnx")
    failed = built(library, tmp_path / "odd.onnx", tmp_path / "x.plan")["failed"]
    assert "cannot parse the graph: node" in failed and "Softerfmax" in failed
    assert not (tmp_path / "x.plan").exists()


@pytest.mark.slow
def test_a_second_build_takes_the_librarys_timing_cache(library: Path, graphs, tmp_path: Path) -> None:
    request = {"timing_cache": str(tmp_path / "timings"), "workspace_bytes": 1 << 28, "without_tactics": ["CUDNN"]}
    path = graphs(FAMILIES[0]) / "fp32.onnx"
    found = [built(library, path, tmp_path / "x.plan", **request)["timing_cache_used"] for _ in range(2)]
    assert found == [False, True]
    # It says that it takes any file; what counts is that a damaged one does no harm.
    (tmp_path / "timings").write_bytes(b"of another version")
    assert built(library, path, tmp_path / "x.plan", **request)["plan_bytes"] > 0
