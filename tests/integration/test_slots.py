"""Slots from their recipe to a device's answers."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edge_agent.bundle.layout import open_package
from edge_agent.bundle.verify import read_package, read_release
from edge_agent.client import Client, InvalidRequest, UsageError
from tests.support import tiny_base, tiny_slots
from tests.support.agents import AgentProcess, running
from tests.support.desk import cli, said
from tests.support.mosquitto import Mosquitto
from tests.support.packages import keys

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return tiny_slots.slots(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def switch(tmp_path_factory, built):
    """An adapter of a classifier on the same base, signed with the same keys."""
    return tiny_slots.classes(tmp_path_factory.mktemp("switch"), out=Path(built["packages"][0]).parent.parent)


def package_of(path):
    with open_package(path) as package:
        return read_package(package, read_release(package, None, allow_unsigned=True).release)


def test_the_packages_are_base_adapter_and_a_merged_model_whose_task_is_slots(built):
    base, adapter, merged = map(package_of, map(Path, built["packages"]))
    assert (base.model.kind, base.model.requires) == ("base", ("adapter-bank/2",))
    (found,) = adapter.adapters
    task = found.config.task
    assert (found.config.name, task.kind, task.labels) == ("parts", "slots", ("state", "thing"))
    assert found.config.requires == ("adapter-bank/2",)
    model = merged.model
    assert (model.name, model.task.kind, model.task.labels) == ("parts-merged", "slots", ("state", "thing"))


def found_spans(answer):
    return [(one.label, one.start, one.end) for one in answer.spans]


def test_a_device_answers_slots_and_classes_by_adapters_of_one_base(built, switch, tmp_path):
    base, adapter, merged = map(Path, built["packages"])
    same_base, other = map(Path, switch["packages"])
    assert same_base.name == base.name, "one base serves both"
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, backends=("onnx",))
        agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), built["trust_root"]))
        for path in (base, adapter, other, merged):
            agent.install(path)
        with running(agent), Client(f"mqtt://127.0.0.1:{broker.port}", agent.device) as edge:
            texts = [*tiny_base.ON, *tiny_base.OFF, "please"]
            of_merged = edge.ask("parts-merged", texts).slots
            of_adapter = edge.ask("tiny", texts, adapter="parts").slots
            for one, merged_one in zip(of_adapter, of_merged, strict=True):
                assert found_spans(one) == found_spans(merged_one)
                assert [span.score for span in one.spans] == pytest.approx(
                    [s.score for s in merged_one.spans], abs=1e-3
                )
            # Several requests at once share batches, each row with its own adapter's head.
            with ThreadPoolExecutor(6) as pool:
                asked = [
                    pool.submit(edge.ask, "tiny", text, adapter=name)
                    for text in texts for name in ("parts", "switch")
                ]  # fmt: skip
                got = [one.result() for one in asked]
            for place, text in enumerate(texts[:-1]):
                assert found_spans(got[2 * place].slots[0]) == found_spans(of_adapter[place]), text
                assert got[2 * place + 1].label == ("on" if text in tiny_base.ON else "off")
            with pytest.raises(InvalidRequest, match="unknown parameter 'top_k'"):
                edge.ask("tiny", "lamp on", adapter="parts", top_k=1)
            entry = next(one for one in edge.models().models if one.name == "tiny")
            tasks = {one.name: (one.task, one.labels) for one in entry.adapters}
            assert tasks == {"parts": ("slots", ["state", "thing"]), "switch": ("classify", ["off", "on"])}
            told = said(cli("infer", "tiny", "lamp on", "--adapter", "parts", "--config", agent.config))
            assert "thing='lamp' (0-4, " in told and "state='on' (5-7, " in told


def test_a_device_answers_spans_the_same_alone_and_in_company(built, tmp_path):
    with Mosquitto(tmp_path) as broker:
        agent = AgentProcess(tmp_path / "device", broker.port, backends=("onnx",))
        agent.config.write_text(agent.config.read_text().replace(str(keys().root_file), built["trust_root"]))
        agent.install(Path(built["packages"][-1]))
        with running(agent), Client(f"mqtt://127.0.0.1:{broker.port}", agent.device) as edge:
            texts = [*tiny_base.ON, *tiny_base.OFF, "please"]
            together = edge.ask("parts-merged", texts).slots
            wanted = [
                {(one["start"], one["end"], one["label"]) for one in tiny_slots.row(text)["spans"]} for text in texts
            ]
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
