"""Training on preferences by TRL's DPO: the tokens it is given, its reference, its resume, and what was learned."""

import json

import pytest

from edge_agent.base.errors import EdgeError
from edge_forge.data.chat_tokenizer import ChatTokenizer
from edge_forge.data.generator_rows import REJECTED, Turn
from edge_forge.evaluate.generator_scores import EvaluationSet, by_torch
from edge_forge.evaluate.preferences import rewarded
from edge_forge.train import generator_settings
from edge_forge.train.checkpoints import RunFolders
from edge_forge.train.generator_job import GeneratorJob
from edge_forge.train.generator_session import run
from tests.support import tiny_generators
from tests.support.needs import need
from tests.support.tiny_base import Told

# What the libraries deprecate among themselves is not the subject.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
ROWS = [
    (Turn("user", f"{thing} {state}"), Turn("assistant", f"It's {state}."), Turn(REJECTED, f"{thing}? 12345 {state}"))
    for thing in ("lamp", "window", "kitchen") for state in ("on", "open", "please", "close")
]  # fmt: skip
BASE_ID = "sha256:" + "56" * 32
VALUES = {"batch_size": 4, "rows_at_once": 2, "max_tokens": 64, "threads": 1, "precision": "fp32", "rank": 4}


class StoppingAt(Told):
    """Ends the run at an evaluation, counted from 1, before its checkpoint is written."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def evaluated(self, scores):
        super().evaluated(scores)
        if len(self.scores) == self.number:
            raise EdgeError("stopped", "test")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    need("trl")
    return tiny_generators.write(tmp_path_factory.mktemp("base"))


def trained(base, out, told=None, folders=None, method="lora", **values):
    given = {key: value for key, value in VALUES.items() if key != "rank" or method != "full"}
    chosen = generator_settings.settings(method, False, {**given, **values}, "test", preferences=True)
    (out / "work").mkdir(parents=True)
    folders = folders or RunFolders(out / "kept", out / "reports")
    held = (tuple(ROWS[:8]), tuple(ROWS[8:]))
    return run(GeneratorJob(base, BASE_ID, out, out / "work", folders, "auto", *held, chosen), told or Told())


def scores(base, folder, adapter=None):
    asked = EvaluationSet(ChatTokenizer(base, "auto"), ROWS[8:], 64, 4)
    return by_torch(asked, folder, adapter)["preferences"]


@pytest.mark.parametrize(("method", "rate"), [("lora", 1e-2), ("pissa", 2e-3), ("full", 1e-3)])
def test_the_chosen_answers_gain_on_the_rejected_ones_against_the_base(base, tmp_path, method, rate):
    told = Told()
    record = trained(base, tmp_path / "run", told, method=method, learning_rate=rate, epochs=6)
    before = scores(base, base)
    tuned = (base, tmp_path / "run" / "peft") if method != "full" else (tmp_path / "run" / "model", None)
    after = scores(base, *tuned)
    found = rewarded(after["pair_margins"], before["pair_margins"], 0.1)
    assert found["rewarded"] == 1.0 and after["margin"] > before["margin"] + 1.0
    # TRL's own figures, with the reference that it asked, are those of the forge's scores, with the base's folder.
    best = min(record.curves, key=lambda one: one["validation_loss"])
    assert best["margin"] == pytest.approx(found["reward_margin"], abs=2e-3) and best["accuracy"] == 1.0
    assert ("reference", 1.0) in told.shares
    assert not list((tmp_path / "run" / "kept").rglob("README.md"))
    if method == "full":
        held = [json.loads((place / "config.json").read_text()) for place in (base, tmp_path / "run" / "model")]
        keys = ("pad_token_id", "eos_token_id", "bos_token_id")
        assert [held[0][key] for key in keys] == [held[1][key] for key in keys], "TRL and Trainer write them"


def test_a_prompt_is_tokenised_alone_and_both_answers_follow_it(base):
    tokenizer = ChatTokenizer(base, "auto")
    for row in ROWS:
        pair = tokenizer.encode_pair(row)
        good = tokenizer.encode(row[:-1])
        assert pair.prompt == tokenizer.encode((row[0], Turn("assistant", "other"))).ids[: good.answer]
        assert pair.chosen == good.ids[good.answer :] and tokenizer.ends[0] in pair.chosen
        assert pair.rejected != pair.chosen and tokenizer.ends[0] in pair.rejected


def test_the_weight_of_chosen_answers_keeps_them_likely(base, tmp_path):
    """Beside a strong push apart: without the weight the likelihood of chosen answers falls or rises less."""
    found = {}
    for weight in (0.0, 5.0):
        trained(base, tmp_path / f"{weight}", learning_rate=1e-2, epochs=6, beta=2.0, chosen_weight=weight)
        asked = EvaluationSet(ChatTokenizer(base, "auto"), ROWS[8:], 64, 4)
        found[weight] = by_torch(asked, base, tmp_path / f"{weight}" / "peft")["perplexity"]
    assert found[5.0] < found[0.0]


def test_a_stopped_run_goes_on_to_the_same_bytes(base, tmp_path):
    values = {"learning_rate": 1e-2, "epochs": 5}
    whole, kept = trained(base, tmp_path / "whole", **values), RunFolders(tmp_path / "kept", tmp_path / "reports")
    with pytest.raises(EdgeError, match="stopped"):
        trained(base, tmp_path / "first", StoppingAt(3), kept, **values)
    record = trained(base, tmp_path / "second", Told(), kept, **values)
    assert record.done_before == pytest.approx(0.4) and record.curves == whole.curves
    (weights,) = (tmp_path / "whole" / "peft").rglob("*.safetensors")
    assert weights.read_bytes() == (tmp_path / "second" / weights.relative_to(tmp_path / "whole")).read_bytes()
