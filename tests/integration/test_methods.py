"""Every training method: trained, exported in each of its forms, and computed by the device's code."""

import numpy as np
import onnx
import pytest
from safetensors import safe_open

from edge_forge.evaluate import measure_onnx as measure
from edge_forge.evaluate.classifier_metrics import evaluate
from edge_forge.evaluate.predict import predict, predict_with_features
from edge_forge.export.onnx import export_graphs as export
from edge_forge.export.onnx import quantize
from edge_forge.export.onnx.graph import metadata
from edge_forge.export.onnx.inject import KEY
from edge_forge.models import bases
from edge_forge.train.checkpoints import RunFolders
from edge_forge.train.classifier_job import ClassifierJob
from edge_forge.train.classifier_session import run
from edge_forge.train.methods import ADAPTER, METHODS
from edge_forge.train.settings import settings
from tests.support.tiny_base import LABELS, ROWS, Told, write

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]
QUICK = {
    "epochs": 20, "head_learning_rate_ratio": 1.0, "batch_size": 4, "threads": 1, "micro_batch_tokens": 512,
    "precision": "fp32", "token_dropout": 0.0, "average_decay": 0.0, "early_stopping_patience": 0,
}  # fmt: skip
RATES = {"full": 2e-3, "half": 5e-3, "head": 0.1, "adalora": 2e-2}
TEXTS = tuple(text for text, _ in ROWS)
BANK = export.Bank(rank=8, max_labels=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    return bases.resolve([str(write(folder))], folder)


@pytest.fixture(scope="module")
def banked(base, tmp_path_factory):
    """The base's graph with its bank, that every adapter is attached to."""
    folder = tmp_path_factory.mktemp("banked")
    export.trace_base(base_dir=base.directory, out_dir=folder / "traced", base_id=base.base_id, max_tokens=16)
    export.export_base(base_dir=base.directory, traced=folder / "traced" / "encoder.onnx", out_dir=folder, bank=BANK,
                       texts=TEXTS, max_tokens=16)  # fmt: skip
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_learned_is_computed_alike_by_pytorch_and_by_the_device(name, base, banked, tmp_path):
    values = {**QUICK, "learning_rate": RATES.get(name, 5e-3), "rank": 4, "frozen_share": 0.5}
    (tmp_path / "work").mkdir()
    job = ClassifierJob(
        base.directory, base.base_id, tmp_path / "run", tmp_path / "work",
        RunFolders(tmp_path / "kept", tmp_path / "reports"), LABELS, ROWS, ROWS,
        settings(name, values=values),
    )  # fmt: skip
    record = run(job, Told())
    features, logits = predict_with_features(base.directory, tmp_path / "run", TEXTS, max_tokens=16)
    scores = evaluate(logits, [label for _, label in ROWS], LABELS)
    assert scores.accuracy >= (0.7 if name == "head" else 1.0)
    folded = predict(base.directory, tmp_path / "run", TEXTS, max_tokens=16, merged=True)
    np.testing.assert_allclose(folded, logits, atol=1e-3)
    made = export.export_merged(
        base_dir=base.directory, trained_dir=tmp_path / "run", out_dir=tmp_path / "merged", base_id=base.base_id,
        texts=TEXTS, max_tokens=16,
    )  # fmt: skip
    assert made.parity["merged"]["logits"] < 1e-3
    assert METHODS[name].exportable_to(ADAPTER) == bool(record.adapter_rank)
    if record.adapter_rank:
        attached = measure.OnnxSubject(
            banked / "model.onnx", banked / "tokenizer.json", 16, tmp_path / "run" / "adapter.safetensors",
            base.base_id, threads=1, max_rows=8,
        )  # fmt: skip
        found = measure.outputs(attached, TEXTS)
        np.testing.assert_allclose(found.features, features, atol=1e-3)
        np.testing.assert_allclose(found.logits[:, : len(LABELS)], logits, atol=1e-3)
        with safe_open(tmp_path / "run" / "adapter.safetensors", framework="pt") as file:
            ranks = [file.get_tensor(key).shape[1] for key in file.keys() if key.endswith(".A")]  # noqa: SIM118
        assert max(ranks, default=1) == record.adapter_rank <= METHODS[name].bank_rank(4)


def test_a_training_in_int8_is_scored_by_what_the_banked_int8_graph_answers(base, banked, tmp_path):
    (tmp_path / "work").mkdir()
    values = {**QUICK, "epochs": 6, "learning_rate": 1e-2, "rank": 4, "precision": "int8"}
    job = ClassifierJob(
        base.directory, base.base_id, tmp_path / "run", tmp_path / "work",
        RunFolders(tmp_path / "kept", tmp_path / "reports"), LABELS, ROWS, ROWS, settings("lora", values=values),
    )  # fmt: skip
    record = run(job, Told())
    assert record.choice["precision"] == "int8"
    modules = [site["module"] for site in metadata(onnx.load(banked / "model.onnx"), KEY)["sites"]]
    made = quantize.make(
        encoder_path=banked / "traced" / "encoder.onnx", out_dir=tmp_path / "int8", formats=[quantize.INT8],
        tokenizer_path=banked / "tokenizer.json", reading=quantize.TokenCut(16), bank=(BANK, modules),
    )  # fmt: skip
    losses = []
    for path in (made.paths["int8"], banked / "model.onnx"):
        attached = measure.OnnxSubject(
            path, banked / "tokenizer.json", 16, tmp_path / "run" / "adapter.safetensors", base.base_id, threads=1,
            max_rows=8,
        )  # fmt: skip
        logits = measure.outputs(attached, TEXTS).logits[:, : len(LABELS)]
        losses.append(evaluate(logits, [label for _, label in ROWS], LABELS).nll)
    told = next(one["validation_loss"] for one in record.curves if one["epoch"] == record.best_epoch)
    assert told == pytest.approx(losses[0], abs=2e-4)
    assert abs(told - losses[0]) < abs(told - losses[1]) / 3, "nearer than FP32's answers"
