"""`edge-forge build` with variants for LiteRT: made, measured and packed as those for ONNX Runtime, and served."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.bundle.layout import open_package
from edge_agent.bundle.verify import read_package, read_release
from tests.integration.test_build import RECIPE, environment
from tests.support import tiny_base
from tests.support.agents import AgentProcess
from tests.support.desk import cli, said
from tests.support.mosquitto import Mosquitto
from tests.support.needs import need
from tests.support.packages import keys

pytestmark = pytest.mark.slow
MORE = 'litert = ["fp32", "int8"]\nmin_agreement = 0.0\nmax_logit_error = 1.0\n'


def forge(*arguments):
    command = [sys.executable, "-m", "edge_forge.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    need("litert_torch", "ai_edge_quantizer", "ai_edge_litert")
    place = tmp_path_factory.mktemp("lamps")
    tiny_base.write(place / "base")
    rows = "".join(f"{text}\t{label}\n" for text, label in tiny_base.ROWS)
    (place / "train.tsv").write_text("text\tlabel\n" + rows)
    (place / "recipe.toml").write_text(RECIPE.replace("bank_tokens = 32", "banked = false") + MORE)
    return place


@pytest.fixture(scope="module")
def built(folder):
    """What `build` prints as JSON, and what it says beside it."""
    done = forge("build", folder, "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def test_the_package_holds_both_runtimes_measured_alike(built):
    (path,) = built[0]["packages"]
    with open_package(Path(path)) as package:
        contents = read_package(package, read_release(package, None, allow_unsigned=True).release)
    variants = {f"{one.info.runtime}/{one.info.dtype}": one.info for one in contents.variants}
    assert set(variants) == {"onnx/fp32", "onnx/fp16", "onnx/int8", "litert/fp32", "litert/int8"}
    for name, info in variants.items():
        assert {"accuracy", "latency_ms", "peak_bytes"} <= set(info.metrics), name
        assert "judged_on_cpu" not in info.metrics
        assert ("parity" in info.metrics) == name.endswith("/fp32")
        assert ("accuracy_loss_high" in info.metrics) == (name != "onnx/fp32")
    assert variants["litert/fp32"].metrics["parity"] < 1e-4
    assert variants["litert/fp32"].metrics["accuracy"] == variants["onnx/fp32"].metrics["accuracy"]


def test_report_inspect_and_the_line_of_cost_tell_of_them(built, folder):
    found, told = built
    report = Path(found["report"][0]).read_text()
    for words in ("merged litert int8", "merged litert fp32 differs from PyTorch", "Variants for LiteRT have no bank"):
        assert words in report, words
    assert "LiteRT form of merged" in told
    (cost,) = (line for line in told.splitlines() if line.startswith("cost:"))
    assert "LiteRT" in cost, cost
    shown = forge("inspect", found["packages"][0]).stdout
    assert "litert/int8" in shown and "litert/fp32" in shown, shown
    quantized = forge("quantize", folder, "--build", folder / "build", "--json")
    assert {"merged litert fp32", "merged litert int8"} <= set(json.loads(quantized.stdout)), quantized.stderr


def test_another_process_writes_the_same_files(built, folder):
    """The training's results are kept, so that the conversion alone is done again."""
    old = list((folder / "build" / "steps").glob("litert-form*/**/*.tflite"))
    assert len(old) == 2
    kept = {path: path.read_bytes() for path in old}
    for path in old:
        path.unlink()
    done = forge("quantize", folder, "--build", folder / "build", "--json")
    assert done.returncode == 0, done.stderr
    assert "train: cached" in done.stderr and "LiteRT form of merged: cached" not in done.stderr, done.stderr
    assert {path: path.read_bytes() for path in old} == kept


def test_a_device_with_both_serves_by_the_one_that_is_preferred(built, tmp_path):
    """Without ONNX Runtime there is LiteRT; with both, each was measured."""
    answers, asked = {}, (tiny_base.ROWS[0], tiny_base.ROWS[-1])
    with Mosquitto(tmp_path) as broker:
        for backends in (("litert",), ("litert", "onnx")):
            name = "+".join(backends)
            agent = AgentProcess(tmp_path / name, broker.port, backends=backends)
            agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), built[0]["trust_root"]))
            agent.install(Path(built[0]["packages"][0]))
            told = said(cli("models", "--why", "--config", agent.config))
            assert "litert/int8" in told and "not measured" not in told, told
            agent.start()
            answers[name] = [
                json.loads(said(cli("infer", "lamps-merged", text, "--json", "--config", agent.config)))
                for text, _ in asked
            ]
            assert agent.stop() == 0
    for found in answers.values():
        assert [one["result"]["label"] for one in found] == [label for _, label in asked] == ["on", "off"]
