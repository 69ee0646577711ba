"""Slots from their recipe to a device's answers."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from edge_agent.base.child_python import module_command
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.verify import read_package, read_release
from edge_agent.client import Client, InvalidRequest, UsageError
from tests.support import tiny_base
from tests.support.agents import AgentProcess, running
from tests.support.desk import cli, said
from tests.support.mosquitto import Mosquitto
from tests.support.packages import keys

pytestmark = pytest.mark.slow
RECIPE = """
name = "parts"
[base]
name = "tiny"
source = "./base"
[task]
kind = "slots"
max_tokens = 12
[data]
train = "train.jsonl"
validation = "train.jsonl"
[method]
name = "METHOD"
[train]
epochs = 30
learning_rate = 5e-3
batch_size = 8
precision = "fp32"
threads = 1
token_dropout = 0.0
[quantize]
variants = ["fp32"]
"""
THINGS = {"lamp", "light"}
STATES = {"on", "off"}


def row(text):
    """The words of tiny_base's task: what is switched, and to which state."""
    spans, at = [], 0
    for word in text.split():
        for label, known in (("thing", THINGS), ("state", STATES)):
            if word in known:
                spans.append({"start": at, "end": at + len(word), "label": label})
        at += len(word) + 1
    return {"text": text, "spans": spans}


def build(place, method):
    tiny_base.write(place / "base")
    (place / "recipe.toml").write_text(RECIPE.replace("METHOD", method))
    rows = [row(text) for text in (*tiny_base.ON, *tiny_base.OFF, "please", "now please")]
    (place / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    done = subprocess.run(
        module_command("edge_forge.cli", "build", str(place), "--build", str(place / "build"), "--json"),
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("parts"), "lora")


def test_the_package_is_one_merged_model_whose_task_is_slots(built):
    (path,) = map(Path, built["packages"])
    with open_package(path) as package:
        model = read_package(package, read_release(package, None, allow_unsigned=True).release).model
    assert (model.name, model.task.kind, model.task.labels) == ("parts-merged", "slots", ("state", "thing"))


def test_a_device_answers_spans_the_same_alone_and_in_company(built, tmp_path):
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, backends=("onnx",))
        agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), built["trust_root"]))
        agent.install(Path(built["packages"][0]))
        with running(agent), Client(f"mqtt://127.0.0.1:{broker.port}", agent.device) as edge:
            texts = [*tiny_base.ON, *tiny_base.OFF, "please"]
            together = edge.ask("parts-merged", texts).slots
            wanted = [{(one["start"], one["end"], one["label"]) for one in row(text)["spans"]} for text in texts]
            found = [{(one.start, one.end, one.label) for one in answer.spans} for answer in together]
            assert sum(one == other for one, other in zip(found, wanted, strict=True)) >= len(texts) - 1
            for text, answer in list(zip(texts, together, strict=True))[:4]:
                alone = edge.ask("parts-merged", text).spans
                assert [(one.label, one.start, one.end) for one in alone] == [
                    (one.label, one.start, one.end) for one in answer.spans
                ]
                assert [one.score for one in alone] == pytest.approx([one.score for one in answer.spans], abs=1e-3)
                assert all(text[one.start : one.end] == one.text for one in alone)
            cut = edge.ask("parts-merged", "now " * 20 + "lamp on").slots[0]
            assert cut.truncated and all(one.end <= 40 for one in cut.spans)
            with pytest.raises(InvalidRequest, match="unknown parameter 'top_k'"):
                edge.ask("parts-merged", "lamp on", top_k=1)
            with pytest.raises(UsageError, match="gives a Slots, not a Classification"):
                _ = edge.ask("parts-merged", "lamp on").label
            entry = next(one for one in edge.models().models if one.name == "parts-merged")
            assert (entry.task, entry.labels) == ("slots", ["state", "thing"])
            told = said(cli("infer", "parts-merged", "lamp on", "--config", agent.config))
            assert "thing='lamp' (0-4, " in told and "state='on' (5-7, " in told
            reply = json.loads(said(cli("infer", "parts-merged", "lamp on", "--json", "--config", agent.config)))
            assert [one["text"] for one in reply["result"]["spans"]] == ["lamp", "on"]
