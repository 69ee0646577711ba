"""NVIDIA's own parser and builder take every graph that is meant for TensorRT.

TensorRT-RTX builds engines without a GPU. It stands in for TensorRT on a Jetson and proves nothing about its versions.
Its packages (95 MB, x86-64) are installed once under `build/pythons`; where that cannot be done the test is skipped
and says so. No engine is run here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny_base

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
def graphs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    base = tiny_base.write(folder)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tools")))}
    command = [sys.executable, "-m", "tests.device.prepare", str(base), str(folder)]
    subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, timeout=120)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["banked", "banked-int8", "base"])
def test_a_graph_is_parsed_and_built_with_its_bank(library: Path, graphs: Path, name: str) -> None:
    import onnx

    command = [sys.executable, "-c", PROGRAM, str(library), str(graphs / f"{name}.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parsed"] and found["bytes"] > 0 and found["errors"] == []
    # Inputs that a parser can fold away would leave an engine without adapters.
    assert found["inputs"] == [given.name for given in onnx.load(graphs / f"{name}.onnx").graph.input]
