"""NVIDIA's own parser and builder take every graph that `edge-forge` writes for TensorRT.

TensorRT-RTX builds engines without a GPU. It stands in for TensorRT on a Jetson and proves nothing about its versions.
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

import onnx
import pytest

from edge_forge.export.onnx.export_graphs import Bank, trace_base
from edge_forge.export.onnx.quantize import TokenCut
from edge_forge.export.onnx.tensorrt_form import make
from edge_forge.models.encoder import open_encoder, target_names
from tests.support import tiny_encoders as tiny

FAMILIES = tiny.ENCODERS if os.environ.get("EDGE_TENSORRT_FAMILIES") == "whole" else ("bert",)
FORMATS = ("fp32", "fp16", "int8")
TOKENS = 40
ROOT = Path(__file__).resolve().parents[2]
VERSION = "1.7.1.116"
PACKAGES = (f"tensorrt_rtx_cu12_bindings=={VERSION}", f"tensorrt_rtx_cu12_libs=={VERSION}")
# Compute capability 8.9 is the nearest to an Orin's 8.7 that the library builds for.
PROGRAM = """
import ctypes, glob, json, sys
sys.path.insert(0, sys.argv[1])
for path in sorted(glob.glob(sys.argv[1] + "/tensorrt_rtx_libs/*.so*")):
    ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
import tensorrt_rtx_bindings as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, message):
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(message)

log = Log()
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
found = {"parsed": parser.parse_from_file(sys.argv[2])}
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
profile = builder.create_optimization_profile()
found["inputs"] = []
for place in range(network.num_inputs):
    tensor = network.get_input(place)
    found["inputs"].append(tensor.name)
    rest = [length if length > 0 else 16 for length in tensor.shape][1:]
    profile.set_shape(tensor.name, (1, *rest), (8, *rest), (8, *rest))
config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
found["bytes"] = plan.nbytes if plan is not None else 0
found["errors"] = log.errors
print(json.dumps(found))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FORMATS, "merged/fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_is_parsed_and_built_with_its_bank(library: Path, graphs, family: str, name: str) -> None:
    path = graphs(family) / f"{name}.onnx"
    command = [sys.executable, "-c", PROGRAM, str(library), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parsed"] and found["bytes"] > 0 and found["errors"] == []
    # Inputs that a parser can fold away would leave an engine without adapters.
    wanted = [given.name for given in onnx.load(path).graph.input]
    assert found["inputs"] == wanted and ("head.weight" in wanted) == ("/" not in name)
    print(f"{family} {name}: parsed, an engine of {found['bytes']} bytes")


@pytest.mark.slow
def test_the_parser_says_what_it_does_not_take(library: Path, graphs, tmp_path: Path) -> None:
    """Else the tests above could not fail."""
    model = onnx.load(graphs(FAMILIES[0]) / "fp32.onnx")
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Softerfmax"
    onnx.save(model, tmp_path / "odd.onnx")
    command = [sys.executable, "-c", PROGRAM, str(library), str(tmp_path / "odd.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    found = json.loads(done.stdout.splitlines()[-1])
    assert not found["parsed"] and "Softerfmax" in " ".join(found["errors"])
