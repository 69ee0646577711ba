"""The TensorRT host as a process, under the Pythons of the boards, with a stand-in for TensorRT and pycuda.

Each interpreter gets a virtual environment with NumPy and ONNX Runtime under `build/pythons`. Where an interpreter or
its packages are absent, its tests are skipped and say so; this interpreter itself is always tested.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_agent.backends.tensorrt.host_client import PROGRAM, EngineHost
from edge_agent.base.errors import BackendError, BackendMissing
from edge_forge.export.onnx.tensorrt_form import FP32_PREFIX, for_tensorrt
from tests.support import small_graph

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = ROOT / "tests" / "support" / "fake_gpu"
PYENV = Path.home() / ".pyenv" / "versions"
ROWS, LONGEST, POSITIONS = 4, 12, 6
# The newest NumPy and ONNX Runtime that each Python has.
NEEDS = {"3.6": ["numpy==1.19.5", "onnxruntime==1.10.0"], "3.8": ["numpy", "onnxruntime"],
         "3.10": ["numpy", "onnxruntime"], "3.12": ["numpy", "onnxruntime"]}  # fmt: skip
GIVEN = ("input_ids", "attention_mask")
ADAPTERS = [small_graph.adapter(seed, labels=small_graph.MAX_LABELS, rank=rank) for seed, rank in
            ((1, 4), (2, 4), (3, 2), (4, 1), (5, 4), (6, 3))]  # fmt: skip
TEXTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7], [9]]


@dataclass(frozen=True)
class Board:
    """An interpreter with numpy and onnxruntime, and the generation of TensorRT that it stands in for."""

    python: str
    generation: str
    folder: Path

    @property
    def typed(self) -> bool:
        """Whether the graph's own types rule there."""
        return self.generation.startswith("10")

    def host(self, **settings: str) -> EngineHost:
        """A host with the stand-in; `settings` are its environment variables in lower case."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EDGE_"))}
        env |= {"PYTHONPATH": str(STAND_IN), "EDGE_FAKE_TENSORRT": self.generation}
        return EngineHost(self.python, env={**env, **{f"EDGE_FAKE_{k.upper()}": v for k, v in settings.items()}})

    @property
    def onnx(self) -> str:
        """The small encoder with a bank of rank 4, in the form for TensorRT."""
        path = self.folder / "banked.onnx"
        if not path.exists():
            small_graph.banked(self.folder / "open.onnx", of_tokens=False)
            onnx.save(for_tensorrt(onnx.load(self.folder / "open.onnx"), small_graph.RANK), path)
        return str(path)

    def profile(self) -> dict[str, list[list[int]]]:
        """Rows from 1 to ROWS, tokens from 1 to LONGEST."""
        found = {}
        for given in onnx.load(self.onnx).graph.input:
            rest = [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:]
            low, high = ([1], [LONGEST]) if given.name in GIVEN else (rest, rest)
            found[given.name] = [[1, *low], [ROWS, *high], [ROWS, *high]]
        return found

    def build(self, host: EngineHost, plan: str = "engine.plan", **more: object) -> dict[str, object]:
        """An engine of the small encoder."""
        request = {"onnx": self.onnx, "profile": self.profile(), **more}
        return dict(host.build(plan=str(self.folder / plan), **request))

    def loaded(self, **settings: str) -> EngineHost:
        """A host with the engine, all six adapters resident and in their positions."""
        if not (self.folder / "engine.plan").exists():
            host = self.host()
            self.build(host)
            host.close()
        host = self.host(**settings)
        try:
            host.load(str(self.folder / "engine.plan"), self.bank, POSITIONS, len(ADAPTERS))
            for number, adapter in enumerate(ADAPTERS):
                host.put(number, in_bank_form(adapter))
                host.write(number, number)
        except BackendError:
            host.close()
            raise
        return host

    @property
    def bank(self) -> list[str]:
        """The bank's inputs."""
        return [name for name in self.profile() if name not in GIVEN]


def interpreter(version: str) -> str | None:
    for candidate in sorted(PYENV.glob(f"{version}.*/bin/python"), reverse=True):
        answer = subprocess.run([candidate, "-c", "print(1)"], capture_output=True, check=False)
        if answer.returncode == 0:
            return str(candidate)
    return None


def environment(version: str) -> str:
    """The Python of a virtual environment with what the stand-in needs. Skips where there is none."""
    base = interpreter(version)
    if base is None:
        pytest.skip(f"there is no Python {version} here: the TensorRT host was not tested on it")
    folder = ROOT / "build" / "pythons" / f"host-{version}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        clean = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        steps = [
            [base, "-m", "venv", str(folder)],
            [*pip, "--upgrade", "pip<22" if version == "3.6" else "pip"],
            [*pip, *NEEDS[version]],
        ]
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, timeout=600, check=False, env=clean)
            if done.returncode:
                pytest.skip(f"Python {version} gets no packages here: {done.stderr[-300:]}")
        (folder / "ready").touch()
    return str(python)


@pytest.fixture(
    scope="module",
    params=["own 8.2", "own 8.6", "own 10.3", "3.6 8.2", "3.8 8.6", "3.10 10.3", "3.12 10.16"],
    ids=lambda name: name.replace(" ", "-trt"),
)
def board(request, tmp_path_factory) -> Board:
    version, generation = request.param.split()
    python = sys.executable if version == "own" else environment(version)
    return Board(python, generation, tmp_path_factory.mktemp("board"))


@pytest.fixture
def own(tmp_path) -> Board:
    return Board(sys.executable, "8.6", tmp_path)


def in_bank_form(adapter):
    """An adapter file's tensors as the bank's inputs of rank 4."""
    rank = small_graph.RANK
    found = {"head.weight": adapter["head.weight"], "head.bias": adapter["head.bias"]}
    for place, module in enumerate(small_graph.MODULES):
        for part, axis in (("A", 1), ("B", 0)):
            value = adapter[f"{module}.{part}"]
            room = [(0, rank - value.shape[axis]) if one == axis else (0, 0) for one in range(2)]
            found[f"lora.{place}.{part}.0"] = np.pad(value, room)
    return found


def batch(texts):
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    mask = np.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def check_rows(host, texts, start, adapters):
    outputs, seconds = host.run(batch(texts), len(texts), start)
    assert seconds > 0
    for row, (text, adapter) in enumerate(zip(texts, adapters, strict=True)):
        features, logits = small_graph.reference([text], adapter)
        assert outputs["features"][row] == pytest.approx(features[0], abs=1e-5)
        if adapter is not None:
            assert outputs["logits"][row] == pytest.approx(logits[0], abs=1e-5)


def test_probe_names_the_generation(board):
    host = board.host()
    found = host.probe()
    assert found["api"] == ("bindings" if board.generation == "8.2" else "tensors")
    assert found["strongly_typed"] == board.typed
    assert found["compute_capability"] == "8.7" and found["fast_fp16"] and found["fast_int8"]
    assert host.alive
    host.close()
    assert not host.alive


def test_each_row_of_a_batch_uses_its_own_adapter(board):
    host = board.loaded()
    check_rows(host, TEXTS, 0, ADAPTERS[:4])
    check_rows(host, TEXTS[:3], 3, ADAPTERS[3:])
    for start in range(POSITIONS):  # windows whose addresses are not aligned, too
        check_rows(host, [TEXTS[2]], start, [ADAPTERS[start]])
    host.write(1, None)
    host.write(2, 5)
    check_rows(host, TEXTS, 0, [ADAPTERS[0], None, ADAPTERS[5], ADAPTERS[3]])
    host.write(1, 1)
    check_rows(host, TEXTS[:2], 0, ADAPTERS[:2])
    found = host.footprint()
    assert found["bank_bytes"] > 0 and found["taken_bytes"] >= found["bank_bytes"] + found["buffers_bytes"]
    host.close()


def test_integers_have_the_type_that_this_tensorrt_gives_them(board):
    host = board.loaded()
    assert host.tensors["input_ids"].dtype == ("int64" if board.typed else "int32")
    host.close()


def test_a_build_tells_how_far_it_is(board):
    host, events = board.host(), []
    cache = str(board.folder / "timings")
    Path(cache).unlink(missing_ok=True)
    first = board.build(host, "first.plan", progress=events.append, timing_cache=cache)
    stages = [event["stage"] for event in events]
    assert stages[0] == "parse" and stages[-1] == "write"
    phases = [(event["done"], event["total"]) for event in events if "phase" in event]
    assert phases == ([(step, 4) for step in (1, 2, 3, 4)] if board.typed else [])
    assert not first["timing_cache_used"]
    assert first["plan_bytes"] == (board.folder / "first.plan").stat().st_size
    assert board.build(host, "second.plan", timing_cache=cache)["timing_cache_used"]
    Path(cache).write_bytes(b"timings of another version")
    assert not board.build(host, "third.plan", timing_cache=cache)["timing_cache_used"]
    host.close()


def test_half_precision_keeps_sums_in_full(board):
    host = board.host()
    types = dict.fromkeys(board.bank, "float16")
    board.build(host, "half.plan", precision="fp16", fp32_names=[FP32_PREFIX], input_types=types)
    header = json.loads((board.folder / "half.plan").read_bytes().split(b"\n")[1])
    typed = board.typed
    assert header["fp32"] == ([] if typed else ["attention", "fp32:square"])
    host.load(str(board.folder / "half.plan"), board.bank, 2, 1)
    assert {host.tensors[name].dtype for name in board.bank} == {"float32" if typed else "float16"}
    host.put(0, in_bank_form(ADAPTERS[0]))
    host.write(1, 0)
    outputs, _ = host.run(batch(TEXTS[:1]), 1, 1)
    assert outputs["logits"][0] == pytest.approx(small_graph.reference(TEXTS[:1], ADAPTERS[0])[1][0], abs=2e-2)
    host.close()


def test_wrong_requests_are_refused_in_words_and_the_host_goes_on(board):
    host = board.loaded()
    words = batch([[1] * LONGEST])
    for call, said in (
        (lambda: host.run(batch([[1] * (LONGEST + 1)]), 1), "input_ids has the shape"),
        (lambda: host.run({"other": words["input_ids"]}, 1), "no input 'other'"),
        (lambda: host.run({"input_ids": words["input_ids"]}, 1), "shapes of attention_mask, input_ids are needed"),
        (lambda: host.run(words, 1, POSITIONS), "not in the bank"),
        (lambda: host.run(words, 0, 0), "not in the bank"),
        (lambda: host.write(POSITIONS, 0), "positions 0 to 5, not 6"),
        (lambda: host.write(0, len(ADAPTERS)), "no resident adapter 6"),
        (lambda: host.put(len(ADAPTERS), in_bank_form(ADAPTERS[0])), "no place 6"),
        (lambda: host.put(0, {}), "must fill"),
        (lambda: host.load(str(board.folder / "engine.plan")), "loaded already"),
        (lambda: host._call({"op": "dance"}, 5.0), "no operation 'dance'"),
    ):  # fmt: skip
        with pytest.raises(BackendError, match=said):
            call()
    with pytest.raises(BackendError, match="bank takes"):
        host.put(0, {**in_bank_form(ADAPTERS[0]), "head.bias": np.zeros(1, np.float32)})
    check_rows(host, TEXTS, 0, ADAPTERS[:4])
    host.close()


def test_files_that_are_no_engine_of_this_device_are_refused(board):
    (board.folder / "engine.plan").unlink(missing_ok=True)
    board.loaded().close()
    good = (board.folder / "engine.plan").read_bytes()
    (board.folder / "bad.plan").write_bytes(b"no plan")
    (board.folder / "old.plan").write_bytes(good.replace(b'"version": "', b'"version": "7.', 1))
    host = board.host()
    for plan, said in (("bad.plan", "kMAGIC_TAG"), ("old.plan", "not compatible with this version"),
                       ("absent.plan", "No such file")):  # fmt: skip
        with pytest.raises(BackendError, match=re.escape(said)):
            host.load(str(board.folder / plan), board.bank)
    with pytest.raises(BackendError, match=r"no input 'lora\.9\.A\.0'"):
        host.load(str(board.folder / "engine.plan"), ["lora.9.A.0"])
    with pytest.raises(BackendError, match="no engine is loaded"):
        host.run({}, 1)
    host.close()


def test_graphs_that_cannot_be_built_are_refused(board):
    host = board.host()
    (board.folder / "no.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"cannot parse the graph: node 0.*: the file is no graph.*Mish.*\(export"):
        host.build(onnx=str(board.folder / "no.onnx"), plan=str(board.folder / "x.plan"), profile={})
    with pytest.raises(BackendError, match="no optimization profile covers them"):
        host.build(onnx=board.onnx, plan=str(board.folder / "x.plan"), profile={})
    with pytest.raises(BackendError, match="no input 'nothing'"):
        board.build(host, "x.plan", profile={"nothing": [[1], [1], [1]]})
    with pytest.raises(BackendError, match="precision 'fp7' is none of"):
        board.build(host, "x.plan", precision="fp7")
    host.close()
    host = board.host(build="memory")
    with pytest.raises(BackendError, match=r"out of memory.*\(free memory"):
        board.build(host, "x.plan")
    assert not (board.folder / "x.plan").exists()
    host.close()


@pytest.mark.parametrize("moment", ["build", "run"])
def test_a_killed_host_is_an_error_here_and_leaves_nothing(own, moment):
    host = own.host(build_s="30") if moment == "build" else own.loaded(run_s="30")
    threading.Timer(1.5, host.kill).start()
    started_s = time.monotonic()
    with pytest.raises(BackendError, match=f"engine host was ended during '{moment}'"):
        own.build(host, "killed.plan") if moment == "build" else host.run(batch(TEXTS), 4)
    assert time.monotonic() - started_s < 10
    assert not host.alive and not (own.folder / "killed.plan").exists()


def test_an_execution_that_hangs_ends_with_the_host(own):
    host = own.loaded(run_s="30")
    with pytest.raises(BackendError, match="did not answer 'run' within 1 s and was ended"):
        host.run(batch(TEXTS), 4, timeout_s=1.0)
    assert not host.alive


def test_an_error_of_the_device_ends_the_host(own):
    host = own.loaded(cuda="fault")
    with pytest.raises(BackendError, match="illegal memory access"):
        host.run(batch(TEXTS), 4)
    assert not host.alive
    with pytest.raises(BackendError):
        host.run(batch(TEXTS), 4)


def test_a_device_without_room_is_said(own):
    own.loaded().close()
    with pytest.raises(BackendError, match=r"the device has no \d+ bytes for .*\(free memory"):
        own.loaded(cuda="5000")


@pytest.mark.parametrize(
    ("cuda", "said"), [("absent", "CUDA cannot be started.*driver is loaded"), ("none", "there is no CUDA device 0")]
)
def test_a_board_without_a_device_says_so(own, cuda, said):
    host = own.host(cuda=cuda)
    with pytest.raises(BackendMissing, match=said):
        host.probe()
    host.close()


def test_an_interpreter_without_tensorrt_says_what_to_install(tmp_path):
    host = EngineHost(sys.executable, env={"PATH": os.environ["PATH"]})
    with pytest.raises(BackendMissing, match=r"cannot import tensorrt: .*python3-libnvinfer"):
        host.probe()
    host.close()
    (tmp_path / "tensorrt.py").write_text("")
    host = EngineHost(sys.executable, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)})
    with pytest.raises(BackendMissing, match=r"cannot import pycuda.driver: .*\(install pycuda"):
        host.probe()
    host.close()
    with pytest.raises(BackendMissing, match="cannot be started: No such file"):
        EngineHost(str(tmp_path / "python9"))


CLIENT = """
import os, sys
sys.path.insert(0, sys.argv[1])
from edge_agent.backends.tensorrt.host_client import EngineHost
host = EngineHost(sys.executable)
host.probe()
print(host.pid, flush=True)
import threading
threading.Timer(1.0, os._exit, (0,)).start()
host.build(onnx=sys.argv[2], plan=sys.argv[3], profile={})
"""


def test_a_host_ends_when_its_client_dies_in_mid_build(own):
    profile = {"profile={}": "profile=" + repr(own.profile())}
    program = CLIENT.replace("profile={}", profile["profile={}"])
    env = {**os.environ, "PYTHONPATH": str(STAND_IN), "EDGE_FAKE_BUILD_S": "60"}
    client = subprocess.run([sys.executable, "-c", program, str(ROOT), own.onnx, str(own.folder / "x.plan")],
                            env=env, capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    pid = int(client.stdout)
    until_s = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < until_s:
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        assert not Path(f"/proc/{pid}").exists(), "the host lives on without its client"
    assert not (own.folder / "x.plan").exists()


def test_the_program_needs_nothing_of_the_agent():
    for path in PROGRAM.glob("*.py"):
        tree = ast.parse(path.read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        named = [
            getattr(node, "module", None) or node.names[0].name for node in imports if not getattr(node, "level", 0)
        ]
        assert {name.split(".")[0] for name in named} <= set(sys.stdlib_module_names) | {"numpy"}, path
