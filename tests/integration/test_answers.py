"""Extractive answers from their recipe to a device's."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from edge_agent.base.child_python import module_command
from edge_agent.bundle.layout import open_package
from edge_agent.bundle.verify import read_package, read_release
from edge_agent.client import Client, ContextQuestion, InvalidRequest, UsageError
from tests.support import tiny_base
from tests.support.agents import AgentProcess, running
from tests.support.desk import cli, said
from tests.support.mosquitto import Mosquitto
from tests.support.packages import keys

pytestmark = pytest.mark.slow
RECIPE = """
name = "which"
[base]
name = "tiny"
source = "./base"
[task]
kind = "answers"
max_tokens = 18
window_overlap = 4
answer_tokens = 2
[data]
train = "train.json"
validation = "train.json"
[method]
name = "lora"
[train]
epochs = 40
learning_rate = 5e-3
batch_size = 8
precision = "fp32"
threads = 1
token_dropout = 0.0
[export]
bank_tokens = 18
[quantize]
variants = ["fp32"]
"""
THINGS, STATES = ("lamp", "light"), ("on", "off")


def paragraph(number, context):
    """Asked by words of tiny_base's task: what is switched ("the"), to which state ("turn"), and what is not there."""
    words, questions = context.split(), []
    for asked, known in (("the", THINGS), ("turn", STATES)):
        found = next(word for word in words if word in known)
        answers = [{"text": found, "answer_start": context.index(f" {found}") + 1}]
        questions.append({"id": f"{number}-{asked}", "question": asked, "answers": answers, "is_impossible": False})
    questions.append({"id": f"{number}-now", "question": "now", "answers": [], "is_impossible": True})
    return {"context": context, "qas": questions}


CONTEXTS = [text for text in (*tiny_base.ON, *tiny_base.OFF) if not text.startswith(THINGS)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    place = tmp_path_factory.mktemp("which")
    tiny_base.write(place / "base")
    (place / "recipe.toml").write_text(RECIPE)
    paragraphs = [paragraph(at, context) for at, context in enumerate(CONTEXTS)]
    (place / "train.json").write_text(json.dumps({"version": "v2.0", "data": [{"paragraphs": paragraphs}]}))
    done = subprocess.run(
        module_command("edge_forge.cli", "build", str(place), "--build", str(place / "build"), "--json"),
        capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def package_of(path):
    with open_package(path) as package:
        return read_package(package, read_release(package, None, allow_unsigned=True).release)


def test_the_packages_are_base_adapter_and_a_merged_model_whose_task_is_answers(built):
    base, adapter, merged = map(package_of, map(Path, built["packages"]))
    assert base.model.kind == "base" and adapter.adapters[0].config.requires == ("adapter-bank/2",)
    for task in (adapter.adapters[0].config.task, merged.model.task):
        assert (task.kind, task.labels, task.pairs, task.no_answer) == ("answers", (), True, True)
        assert (task.max_tokens, task.window_overlap, task.answer_tokens) == (18, 4, 2)


def test_a_device_answers_by_spans_the_same_alone_and_in_company(built, tmp_path):
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, backends=("onnx",))
        agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), built["trust_root"]))
        for package in built["packages"]:
            agent.install(Path(package))
        with running(agent), Client(f"mqtt://127.0.0.1:{broker.port}", agent.device) as edge:
            asked = [ContextQuestion(one["question"], found["context"])
                     for found in map(paragraph, range(len(CONTEXTS)), CONTEXTS) for one in found["qas"]]  # fmt: skip
            together = edge.ask("which-merged", asked).extracted
            known = {"the": THINGS, "turn": STATES, "now": (None,)}
            right = [found.answer in known[one.question] for one, found in zip(asked, together, strict=True)]
            assert sum(right) >= len(asked) - 2
            of_adapter = edge.ask("tiny", asked, adapter="which").extracted
            assert [(one.answer, one.start) for one in of_adapter] == [(one.answer, one.start) for one in together]
            assert [one.score for one in of_adapter] == pytest.approx([one.score for one in together], abs=1e-3)
            for one, found in list(zip(asked, together, strict=True))[:3]:
                alone = edge.ask("which-merged", one).extraction
                assert (alone.answer, alone.start, alone.windows) == (found.answer, found.start, 1)
                assert alone.score == pytest.approx(found.score, abs=1e-3)
                assert found.answer is None or one.context[found.start : found.end] == found.answer
            # Far longer than the model reads at once, the only thing at its end.
            long = edge.ask(
                "which-merged", ContextQuestion("the", "please now " * 20 + "switch the lamp on")
            ).extraction
            assert long.windows > 3 and (long.answer, long.start) == ("lamp", 231)
            assert edge.ask("which-merged", asked[0], threshold=1.0).extraction.answer is None
            for wrong, sentence in (
                ("lamp", "a question in text and its context in text_pair"),
                (ContextQuestion("please " * 9, "turn the lamp on now please now please now"), "leaves no room"),
                (ContextQuestion("the", "now " * 4000), "take more than 64 windows"),
            ):
                with pytest.raises(InvalidRequest, match=sentence):
                    edge.ask("which-merged", wrong)
            with pytest.raises(UsageError, match="gives a ExtractedAnswer, not a Classification"):
                _ = edge.ask("which-merged", asked[0]).label
            with pytest.raises(InvalidRequest, match="a question in text and its context in text_pair"):
                edge.ask("tiny", "lamp", adapter="which")
            entries = {one.name: one for one in edge.models().models}
            assert (entries["which-merged"].task, entries["which-merged"].pairs) == ("answers", True)
            assert (entries["tiny"].adapters[0].task, entries["tiny"].adapters[0].pairs) == ("answers", True)
            (tmp_path / "note.txt").write_text("turn the lamp on")
            asking = ("infer", "which-merged", "the", "--config", agent.config)
            for context in (("--context", "turn the lamp on"), ("--context-file", tmp_path / "note.txt")):
                assert "lamp  (9-13, " in said(cli(*asking, *context))
            reply = json.loads(said(cli(*asking, "--context", "turn the lamp on", "--json")))
            assert (reply["result"]["start"], reply["result"]["end"]) == (9, 13)
