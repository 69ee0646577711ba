"""A smaller base: cut out of a tuned teacher, taught by it, and a base like any other for adapters and exports."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from edge_agent.base.errors import ConfigError
from edge_forge.evaluate import measure_onnx as measure
from edge_forge.evaluate.predict import predict, predict_with_features
from edge_forge.export.onnx import export_graphs as export
from edge_forge.models import base_check, bases, smaller
from edge_forge.models.encoder import open_encoder
from edge_forge.plan.cache import Cache
from edge_forge.plan.classifier_plan import ClassifierPlan
from edge_forge.progress import Progress
from edge_forge.recipe import classifier_recipe as recipes
from edge_forge.train import classifier_session, distillation_session
from edge_forge.train.checkpoints import RunFolders
from edge_forge.train.classifier_job import ClassifierJob
from edge_forge.train.distillation_job import DistillationJob, DistillationSettings
from edge_forge.train.distilled import relative_distance
from edge_forge.train.frozen_states import encode
from edge_forge.train.settings import settings
from edge_forge.train.trained_encoder import open_trained
from tests.support.tiny_base import LABELS, ROWS, Told, write

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]
QUICK = {
    "epochs": 20, "head_learning_rate_ratio": 1.0, "batch_size": 4, "threads": 1, "micro_batch_tokens": 512,
    "precision": "fp32", "token_dropout": 0.0, "average_decay": 0.0, "early_stopping_patience": 0, "max_tokens": 16,
}  # fmt: skip
CUT = smaller.Cut(layers=2, heads=2, neurons=40)
TEXTS = tuple(text for text, _ in ROWS)


def job_of(base, out, method, **values):
    (out / "work").mkdir(parents=True)
    return ClassifierJob(
        base.directory, base.base_id, out / "run", out / "work", RunFolders(out / "kept", out / "reports"), LABELS,
        ROWS, ROWS, settings(method, values={**QUICK, **values}),
    )  # fmt: skip


def opened(folder):
    return replace(bases.resolve([str(folder)], folder), base_id=base_check.examine(folder)["base_id"])


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """(base, folder of the tuned teacher, job of a distillation that was run into half of the layers, with half of the
    heads and fewer neurons)."""
    place = tmp_path_factory.mktemp("taught")
    base = opened(write(place / "base"))
    classifier_session.run(job_of(base, place / "teacher", "full", learning_rate=2e-3), Told())
    terms = DistillationSettings(place / "teacher" / "run", *CUT, len(ROWS), 2.0, 1.0)
    work = DistillationJob(job_of(base, place / "student", "full", learning_rate=2e-3), terms)
    distillation_session.run(work, Told())
    return base, place / "teacher" / "run", work


def states_of(encoder, ids):
    found = []
    encoder.layer(encoder.layers - 1).register_forward_hook(lambda _, __, output: found.append(output))
    with torch.inference_mode():
        encoder.features(ids, torch.ones_like(ids))
    return found[0][0] if isinstance(found[0], tuple) else found[0]


def test_a_student_of_half_the_layers_comes_near_its_teachers_states(taught):
    base, teacher, work = taught
    student = open_encoder(work.training.out_dir / "base")
    assert student.layers == 2
    assert smaller.shape_of(student, smaller.Cut(0, 1, 1), "compress")[::2] == (2, 40)
    ids = torch.from_numpy(encode(base.directory, [TEXTS[0]], 16)[0][0].astype(np.int64))[None]
    whole = open_trained(base.directory, teacher, merged=True)[0]
    wanted = states_of(whole, ids)
    distances = [relative_distance(states_of(one, ids), wanted, torch.ones_like(ids)) for one in (student, _cut(whole))]
    assert distances[0] < distances[1] / 2, "against the same layers without any training"


def _cut(encoder):
    return smaller.cut_down(encoder, CUT, smaller.shape_of(encoder, CUT, "compress"), None, "compress")


def test_an_adapter_is_trained_on_the_student_and_attached_to_its_bank(taught, tmp_path):
    _, _, work = taught
    small = opened(work.training.out_dir / "base")
    job = job_of(small, tmp_path, "lora", learning_rate=5e-3, rank=4, frozen_share=0.5)
    classifier_session.run(job, Told())
    features, logits = predict_with_features(small.directory, job.out_dir, TEXTS, max_tokens=16)
    assert [LABELS[int(at)] for at in logits.argmax(axis=1)] == [label for _, label in ROWS]
    export.trace_base(base_dir=small.directory, out_dir=tmp_path / "traced", base_id=small.base_id, max_tokens=16)
    export.export_base(
        base_dir=small.directory, traced=tmp_path / "traced" / "encoder.onnx", out_dir=tmp_path,
        bank=export.Bank(rank=8, max_labels=4), texts=TEXTS, max_tokens=16,
    )  # fmt: skip
    attached = measure.OnnxSubject(
        tmp_path / "model.onnx", tmp_path / "tokenizer.json", 16, job.out_dir / "adapter.safetensors", small.base_id,
        threads=1, max_rows=8,
    )  # fmt: skip
    found = measure.outputs(attached, TEXTS)
    np.testing.assert_allclose(found.features, features, atol=1e-3)
    np.testing.assert_allclose(found.logits[:, : len(LABELS)], logits, atol=1e-3)
    assert predict(small.directory, job.out_dir, TEXTS, max_tokens=16, merged=True) == pytest.approx(logits, abs=1e-3)


class _Killed(Told):
    def evaluated(self, scores):
        super().evaluated(scores)
        if len(self.scores) == 3:
            raise KeyboardInterrupt


def test_a_distillation_that_was_killed_ends_with_the_same_bytes(taught, tmp_path):
    base, _, work = taught
    again = DistillationJob(job_of(base, tmp_path, "full", learning_rate=2e-3), work.terms)
    with pytest.raises(KeyboardInterrupt):
        distillation_session.run(again, _Killed())
    assert not (tmp_path / "run" / "base").exists()
    record = distillation_session.run(again, Told())
    assert 0.0 < record.done_before < 1.0
    one, other = (job.training.out_dir / "base" / "model.safetensors" for job in (work, again))
    assert one.read_bytes() == other.read_bytes()


def plan_of(folder, **tables):
    if not (folder / "base").exists():
        write(folder / "base")
        rows = "".join(f"{text}\t{label}\n" for text, label in ROWS)
        (folder / "train.tsv").write_text(f"text\tlabel\n{rows}")
    raw = {
        "name": "small", "base": {"name": "tiny", "source": "./base"}, "task": {"max_tokens": 20},
        "data": {"train": "train.tsv", "validation": "train.tsv"}, "method": {"rank": 4},
        "export": {"bank_rank": 4, "bank_labels": 4, "bank_tokens": 32}, **tables,
    }  # fmt: skip
    quiet = Progress(io.StringIO(), quiet=True)
    return ClassifierPlan(recipes.parse(raw, "r", {}), folder, Cache(folder / "build", quiet), quiet)


@pytest.mark.parametrize(
    ("section", "where", "words"),
    [
        ({"layers": 4}, "compress.layers", "not less than the base's 4"),
        ({"heads": 4}, "compress.heads", "heads = 4 is not less than the 4 of a layer"),
        ({"feed_forward": 64}, "compress.feed_forward", "not less than the 64 of a layer"),
        ({"layers": 2, "unlabelled": "none.tsv"}, "none.tsv", "no such data file"),
        ({"layers": 2, "unlabelled": "empty.tsv"}, "empty.tsv", "no rows"),
        ({"layers": 2, "unlabelled": "other.tsv"}, "other.tsv:1", "there is no text"),
    ],
)
def test_what_cannot_be_cut_or_read_is_said_before_anything_is_trained(section, where, words, tmp_path):
    (tmp_path / "empty.tsv").write_text("text\n")
    (tmp_path / "other.tsv").write_text("words\nlamp on\n")
    plan = plan_of(tmp_path, compress=section)
    with pytest.raises(ConfigError, match=words) as refused:
        plan.prepare()
    assert str(refused.value.where).endswith(where)
    assert not (tmp_path / "build" / "steps" / "train").exists()


def test_unlabelled_texts_that_are_measured_rows_teach_nothing(tmp_path):
    (tmp_path / "more.tsv").write_text(f"text\n{TEXTS[0].upper()}\nanother one\n")
    plan = plan_of(tmp_path, compress={"layers": 2, "unlabelled": "more.tsv"})
    assert [text for text, _ in plan.training.compression.further] == ["another one"]


def test_a_sweep_is_not_told_the_scores_of_teacher_and_distillation(tmp_path, monkeypatch):
    plan, told = plan_of(tmp_path, compress={"layers": 2}), []
    progress, compression = plan.steps.progress, plan.training.compression
    progress.on_evaluation = told.append
    monkeypatch.setattr(compression, "_distilled", lambda: progress.on_evaluation({"epoch": 1.0}))
    _ = compression.distilled
    progress.on_evaluation({"epoch": 2.0})
    assert told == [{"epoch": 2.0}]
