"""A classifier of pairs from its recipe to a device's answers, beside single texts on the same base."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from edge_agent.base.child_python import module_command
from edge_agent.bundle.contents import read_probes
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.verify import fetcher, read_package, read_release
from edge_agent.client import Client, InvalidRequest, TextPair
from tests.support import tiny_base
from tests.support.agents import AgentProcess, running
from tests.support.desk import cli, said
from tests.support.mosquitto import Mosquitto
from tests.support.packages import keys

pytestmark = pytest.mark.slow
RECIPE = """
name = "same"
[base]
name = "tiny"
source = "./base"
[task]
max_tokens = 20
[data]
train = "train.tsv"
validation = "train.tsv"
text_pair = "text_pair"
[method]
rank = 4
frozen_share = 0.0
[train]
epochs = 20
learning_rate = 5e-3
batch_size = 8
precision = "fp32"
threads = 1
[export]
bank_rank = 4
bank_labels = 4
bank_tokens = 32
[quantize]
variants = ["fp32"]
"""
FIRST = ("lamp on", "lamp off", "light on", "light off")
PAIRS = [(one, other) for one in FIRST for other in FIRST]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    place = tmp_path_factory.mktemp("same")
    tiny_base.write(place / "base")
    (place / "recipe.toml").write_text(RECIPE)
    rows = [(*pair, "same" if pair[1].split()[1] == "on" else "different") for pair in PAIRS]
    (place / "train.tsv").write_text("text\ttext_pair\tlabel\n" + "".join("\t".join(row) + "\n" for row in rows))
    done = subprocess.run(
        module_command("edge_forge.cli", "build", str(place), "--build", str(place / "build"), "--json"),
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_package_and_probes_say_that_the_task_takes_pairs(built):
    told = []
    for path in map(Path, built["packages"]):
        with open_package(path) as package:
            contents = read_package(package, read_release(package, None, allow_unsigned=True).release)
            item = contents.items[0]
            task = item.config.task if hasattr(item, "config") else item.model.task
            texts = read_probes(item, fetcher(package)).texts
        told.append((task.pairs, {isinstance(text, tuple) for text in texts}))
    assert told == [(False, {False}), (True, {True}), (True, {True})], "the base, the adapter, the merged model"


def test_a_device_answers_pairs_beside_single_texts(built, tmp_path):
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(
            tmp_path / "device", broker.port, extra='[models]\nprefer = ["unmerged"]\n', backends=("onnx",)
        )
        agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), built["trust_root"]))
        for path in built["packages"]:
            agent.install(Path(path))
        with running(agent), Client(f"mqtt://127.0.0.1:{broker.port}", agent.device) as edge:
            pairs = [TextPair(*pair) for pair in PAIRS]
            banked = edge.ask("tiny", pairs, adapter="same").classifications
            merged = edge.ask("same-merged", pairs).classifications
            assert [one.label for one in banked] == [one.label for one in merged]
            assert [one.score for one in banked] == pytest.approx([one.score for one in merged], abs=1e-3)
            alone = [edge.ask("tiny", pair, adapter="same").score for pair in pairs[:4]]
            assert alone == pytest.approx([one.score for one in banked[:4]], abs=1e-3)
            assert len(edge.ask("tiny", "lamp on").embedding) == 32
            entry = next(one for one in edge.models().models if one.name == "tiny")
            assert (entry.pairs, [adapter.pairs for adapter in entry.adapters]) == (False, [True])
            for model, question, adapter, sentence in (
                ("tiny", "lamp on", "same", "adapter 'same' of model 'tiny' takes pairs"),
                ("same-merged", ["lamp on"], None, "model 'same-merged' takes pairs"),
                ("tiny", pairs[0], None, "model 'tiny' takes one text"),
            ):
                with pytest.raises(InvalidRequest, match=sentence) as refused:
                    edge.ask(model, question, adapter=adapter)
                assert refused.value.cause.value == "text-pair"
            common = ("--adapter", "same", "--json", "--config", agent.config)
            reply = json.loads(said(cli("infer", "tiny", "lamp on", "--pair", "light off", *common)))
            assert reply["result"]["label"] == banked[PAIRS.index(("lamp on", "light off"))].label
            wrong = cli("infer", "tiny", "lamp on", "lamp off", "--pair", "light off", *common)
            assert "2 texts and 1 --pair: each text needs one" in wrong.stderr
