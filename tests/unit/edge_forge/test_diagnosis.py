"""Diagnosis of tuned weights: intruders against a direct computation and planted ones, rank, repair, report."""

import argparse
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.base.errors import ConfigError, UsageError
from edge_forge import commands
from edge_forge.data.knowledge_files import AlikePair
from edge_forge.evaluate import diagnosis, spectra
from edge_forge.evaluate.forgetting import EncoderQuestions
from edge_forge.models import encoder
from edge_forge.report import diagnosis_report
from edge_forge.report.blocks import page
from edge_forge.train.lora import save_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def weight(seed, shape=(24, 16)):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@given(seed=st.integers(0, 999), rank=st.integers(1, 6), top=st.integers(1, 16), tall=st.booleans())
def test_cosines_are_those_of_the_published_algorithm(seed, rank, top, tall):
    shape = (24, 16) if tall else (16, 24)
    base = weight(seed, shape)
    tuned = base + weight(seed + 1, (shape[0], rank)) @ weight(seed + 2, (rank, shape[1]))

    # Algorithm 1 of Shuttleworth et al. 2024, written out: every pair of vectors, in float64, from the eigenvectors of
    # W W' and so not by the same routine.
    def vectors(matrix):
        values, found = np.linalg.eigh(matrix.astype(np.float64) @ matrix.astype(np.float64).T)
        return found[:, np.argsort(values)[::-1][: min(shape)]]

    known, own = vectors(base), vectors(tuned)
    expected = [max(abs(own[:, j] @ known[:, i]) for i in range(known.shape[1])) for j in range(top)]
    found = spectra.largest_cosines(base, tuned, top)
    assert found == pytest.approx(expected, abs=2e-3)


def test_a_planted_direction_is_the_one_intruder():
    base = np.diag(np.arange(16, 0, -1)).astype(np.float32)
    planted = np.full((16, 1), 0.25, np.float32)
    found = spectra.diagnose("w", base, base + 60 * planted @ planted.T, top=5, threshold=0.5)
    assert found.intruders == (0,) and found.cosines[0] < 0.5 < min(found.cosines[1:])
    assert (found.rank_90, found.full_rank) == (1, 16) and found.effective_rank == pytest.approx(1.0, abs=1e-3)
    assert found.change == pytest.approx(60.0, rel=1e-4) and found.energy[-1] == 1.0
    unchanged = spectra.diagnose("w", base, base, top=5, threshold=0.5)
    assert unchanged.intruders == () and min(unchanged.cosines) == pytest.approx(1.0)
    assert (unchanged.change, unchanged.effective_rank, unchanged.rank_90) == (0.0, 0.0, 0)


@pytest.mark.parametrize(
    ("values", "rank"), [([1.0] * 8, 8.0), ([1.0, 0.0], 1.0), ([0.0], 0.0), ([3.0, 3.0, 0.0], 2.0)]
)
def test_the_effective_rank_counts_equal_directions(values, rank):
    assert spectra.effective_rank(np.asarray(values)) == pytest.approx(rank)


def test_scaling_a_direction_down_changes_that_singular_value_alone():
    tuned = weight(3)
    before = np.linalg.svd(tuned, compute_uv=False)
    after = np.linalg.svd(spectra.scaled_down(tuned, (1,), 0.0), compute_uv=False)
    assert after == pytest.approx(np.sort([*np.delete(before, 1), 0.0])[::-1], abs=1e-4)
    assert spectra.scaled_down(tuned, (0, 2), 1.0) == pytest.approx(tuned, abs=1e-6)


@pytest.fixture
def trained(tiny_base, tmp_path):
    """An adapter with one direction that no weight of the base has, far larger than all of them."""
    name, generator = "encoder.layer.2.intermediate.dense", torch.Generator().manual_seed(3)
    a, b = torch.randn(32, 1, generator=generator), torch.randn(1, 64, generator=generator)
    tensors = {f"{name}.A": a, f"{name}.B": b, "head.weight": torch.eye(32)[:, :2].contiguous()}
    save_adapter(tmp_path / "adapter.safetensors", {**tensors, "head.bias": torch.zeros(2)}, {"base_id": "sha256:00"})
    return tmp_path, name


def test_an_encoders_weights_are_diagnosed_with_the_adapter_folded_in(tiny_base, trained):
    folder, name = trained
    found = {one.name: one for one in diagnosis.of_encoder(tiny_base, folder, 10, 0.5)}
    assert len(found) == 24 and found[name].intruders == (0,)
    assert {one.name for one in found.values() if one.change > 0} == {name}
    assert found[name].rank_90 == 1


def test_the_repair_brings_the_weights_back_towards_the_base(tiny_base, trained):
    folder, name = trained
    texts = ["turn the lamp on", "lamp off", "the light on now"]
    pairs = [
        AlikePair("lamp on", "light on", 5.0),
        AlikePair("lamp on", "switch off", 1.0),
        AlikePair("on", "off", 2.0),
    ]
    asked = EncoderQuestions(pairs, {})
    found = diagnosis.repaired_encoder((tiny_base, folder), {name: (0,)}, (texts, [0, 1, 0]), 16, asked)
    assert [one["factor"] for one in found] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert all(0.0 <= one["learned"] <= 1.0 and set(one["kept"]) == {"similarity"} for one in found)
    opened, _, _ = diagnosis.open_trained(tiny_base, folder, merged=True)
    base = encoder.open_encoder(tiny_base).model.get_submodule(name).weight
    far = (opened.model.get_submodule(name).weight - base).norm().item()
    diagnosis.scale_intruders({name: opened.model.get_submodule(name)}, {name: (0,)}, 0.0)
    assert (opened.model.get_submodule(name).weight - base).norm().item() < 0.2 * far


def figures():
    base = weight(1)
    tuned = {"low": base + 9 * weight(2, (24, 1)) @ weight(3, (1, 16)), "wide": base + 0.1 * weight(4)}
    return {
        name: {
            "weights": [spectra.diagnose("encoder.layer.3.output.dense", base, one, 10, 0.5).as_dict()],
            "repair": [
                {"factor": 1.0, "learned": 0.9, "kept": {"similarity": 0.6}},
                {"factor": 0.0, "learned": 0.85, "kept": {"similarity": 0.75}},
            ] if name == "low" else [],
            "learned": ["accuracy", 0.9],
            "kept": {"similarity": {"before": 0.8, "after": 0.6, "lost": 0.2}},
            "split": "test", "rows": 40, "train": {"settings": {"rank": 4}, "adapted_modules": ["x"]},
        }
        for name, one in tuned.items()
    }  # fmt: skip


def test_the_report_says_how_many_and_what_the_repair_costs():
    runs = figures()
    text = page("t", diagnosis_report.blocks_of(runs, 0.5))
    rows = {row[0]: row for row in diagnosis_report.table(runs).rows}
    assert int(rows["low"][2]) == diagnosis_report.count(runs["low"]["weights"]) >= 1 and rows["wide"][2] == "0"
    assert float(rows["low"][5]) < 1.1 and float(rows["wide"][5]) > 8
    assert "encoder.layer.3.output.dense" in text and "-5.00" in text and text.count("<svg") == 3
    assert "0.7500 (lost 5.00)" in text, "the repair's effect on what the base knew stands beside that on the task"
    assert re.search(r"low: 1 intruder\b", text) and re.search(r"wide: 0 intruders", text)
    assert diagnosis_report.beyond(runs, 0) == "low has 1 intruder dimensions; the recipe takes 0"
    assert diagnosis_report.beyond(runs, 1) == ""


RECIPE = """
name = "lamps"
[base]
name = "tiny"
source = "./base"
[data]
train = "train.tsv"
[method]
rank = 4
alpha = 12.0
[export]
bank_rank = 8
"""


def diagnosed(folder, **options):
    """The runs of `edge-forge diagnose` with these options, planned and not made."""
    (folder / "recipe.toml").write_text(RECIPE)
    given = {"recipe": folder, "build": folder / "build", "overlay": [], "quiet": True, "ranks": "", "methods": ""}
    return commands._diagnosed(argparse.Namespace(**{**given, **options}))


def test_every_rank_is_a_run_of_its_own_at_the_recipes_scale(tmp_path):
    runs = diagnosed(tmp_path, ranks="1, 8,1")
    assert list(runs) == ["lamps lora rank 1", "lamps lora rank 8"]
    assert [(one.plan.recipe.training.rank, one.plan.recipe.training.alpha) for one in runs.values()] == [
        (1, 3.0), (8, 24.0),
    ]  # fmt: skip


def test_every_method_is_a_run_of_its_own(tmp_path):
    runs = diagnosed(tmp_path, methods="lora,full,lora")
    assert list(runs) == ["lamps lora", "lamps full", "lamps lora (2)"]
    assert [one.plan.recipe.training.method for one in runs.values()] == ["lora", "full", "lora"]


def test_ranks_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(UsageError, match="'a' are no ranks"):
        diagnosed(tmp_path, ranks="a")
    with pytest.raises(UsageError, match="method full trains no adapter"):
        diagnosed(tmp_path, ranks="1", overlay=["method={name='full'}"])
    with pytest.raises(ConfigError) as caught:
        diagnosed(tmp_path, ranks="100000")
    assert caught.value.where == "--ranks 100000"
