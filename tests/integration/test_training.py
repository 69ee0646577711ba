"""Training in its worker process, on a tiny real encoder: what it writes, what it records, how it fails and ends."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from edge_agent.base.errors import ConfigError, EdgeError
from edge_forge.data.generator_rows import Turn
from edge_forge.evaluate.classifier_metrics import evaluate
from edge_forge.evaluate.predict import predict, predict_with_features
from edge_forge.models import bases
from edge_forge.models.new_model import make
from edge_forge.recipe.generator_recipe import NewModelSection
from edge_forge.train import generator_job, generator_settings
from edge_forge.train.checkpoints import RunFolders
from edge_forge.train.classifier_job import train
from edge_forge.train.record import TrainRecord
from edge_forge.train.settings import settings
from tests.support.needs import need
from tests.support.tiny_base import LABELS, ROWS, Told, write

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")]
QUICK = {
    "epochs": 20, "learning_rate": 5e-3, "head_learning_rate_ratio": 1.0, "batch_size": 4, "threads": 1,
    "precision": "fp32", "token_dropout": 0.0, "average_decay": 0.0, "early_stopping_patience": 0, "frozen_share": 0.0,
}  # fmt: skip
TEXTS = [text for text, _ in ROWS]
BASE_ID = "sha256:" + "56" * 32


def found(folder):
    return dataclasses.replace(bases.resolve([str(folder)], folder), base_id=BASE_ID)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write(tmp_path_factory.mktemp("base"))


def trained(base, out_dir, progress=None, rows=ROWS, validation=ROWS, folders=None, **values):
    return train(
        base=found(base),
        rows=(rows, validation),
        labels=LABELS,
        settings=settings(values={**QUICK, **values}),
        out_dir=out_dir,
        progress=progress or Told(),
        folders=folders,
    )


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    out_dir, told = tmp_path_factory.mktemp("lora"), Told()
    record = trained(base, out_dir, told, rank=4, first_layer=2, precision="auto")
    return out_dir, record, told


def scores_of(base, trained_dir):
    logits = predict(base, trained_dir, [text for text, _ in ROWS], max_tokens=16)
    return evaluate(logits, [label for _, label in ROWS], LABELS)


def test_an_adapter_learns_and_is_written_in_the_devices_form(base, lora):
    out_dir, record, _ = lora
    with safe_open(out_dir / "adapter.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "edge-adapter/1"
        assert file.metadata()["base_id"] == record.base_id == BASE_ID
        names = set(file.keys())
    modules = set(record.adapted_modules)
    assert len(modules) == 12 and all(name.startswith(("encoder.layer.2.", "encoder.layer.3.")) for name in modules)
    assert names == {f"{name}.{part}" for name in modules for part in "AB"} | {"head.weight", "head.bias"}
    scores = scores_of(base, out_dir)
    assert scores.accuracy == 1.0 and scores.confusion == ((5, 0), (0, 5))


def test_merged_and_unmerged_give_the_same_logits(base, lora):
    plain = predict(base, lora[0], TEXTS)
    np.testing.assert_allclose(predict(base, lora[0], TEXTS, merged=True), plain, atol=1e-4)
    assert np.ptp(plain) > 0.5


def test_peft_loads_what_was_trained(base, lora):
    from peft import PeftModel
    from transformers import AutoModel

    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base), lora[0] / "peft").eval()
    ids = torch.tensor([[2, 4, 5, 6, 3]])
    from edge_forge.models.encoder import open_encoder
    from edge_forge.train.lora import apply_adapter, load_adapter

    ours = open_encoder(base)
    apply_adapter(ours, load_adapter(lora[0] / "adapter.safetensors"), merged=False)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(input_ids=ids).last_hidden_state, ours.model(input_ids=ids).last_hidden_state, atol=1e-5, rtol=1e-4
        )
    assert load_file(lora[0] / "peft" / "head.safetensors").keys() == {"head.weight", "head.bias"}


def test_the_record_states_what_was_measured(lora):
    out_dir, record, _ = lora
    assert record == TrainRecord.read(out_dir / "record.json")
    assert 0 < record.baseline_bytes < record.peak_bytes and record.cpu_s > 0 and record.wall_s > 0
    expected = 2 * (4 * 4 * (32 + 32) + 2 * 4 * (32 + 64)) + 32 * 2 + 2
    assert record.trainable_parameters == expected < record.total_parameters
    assert record.choice["precision"] in ("fp32", "bf16") and record.choice["measured_ms"]
    assert len(record.curves) == 20 and record.curves[-1]["train_loss"] < record.curves[0]["train_loss"]
    assert record.kept_states["size_bytes"] > 0 and not record.kept_states["on_disk"]
    assert record.rows == {"train": 10, "validation": 10}
    assert set(record.files) >= {"adapter.safetensors", "peft/adapter_config.json", "peft/adapter_model.safetensors"}
    assert not list(out_dir.glob(".work-*"))


def test_progress_is_told_by_phase(lora):
    phases = list(dict.fromkeys(phase for phase, _ in lora[2].shares))
    assert phases == ["open", "keep", "measure", "train", "save"]
    shares = [share for phase, share in lora[2].shares if phase == "train"]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_every_evaluation_is_told_when_it_is_made(lora):
    _, record, told = lora
    costs = [entry.pop("cpu_s") for entry in told.scores]
    assert told.scores == record.curves and len(told.scores) == 20
    assert costs[0] > 0 and costs == sorted(costs) and costs[-1] <= record.cpu_s + 0.1


def test_who_is_told_may_end_the_run(base, tmp_path):
    class Enough(Exception):
        pass

    class Ends(Told):
        def evaluated(self, scores):
            super().evaluated(scores)
            raise Enough

    told = Ends()
    with pytest.raises(Enough):
        trained(base, tmp_path, told, epochs=1000, rank=4)
    assert len(told.scores) == 1 and not (tmp_path / "record.json").exists()
    assert not [one for one in psutil.Process().children(recursive=True) if str(tmp_path) in " ".join(one.cmdline())]


def test_kept_states_change_cost_and_not_the_result(base, lora, tmp_path):
    # The same adapters on the whole network, with the frozen part computed in every step, by peft's own arithmetic.
    trained(base, tmp_path, rank=4, first_layer=2, micro_batch_tokens=4096)
    found, kept = predict(base, tmp_path, TEXTS), predict(base, lora[0], TEXTS)
    np.testing.assert_allclose(found, kept, atol=0.05)


def test_full_fine_tuning_writes_a_hugging_face_folder_and_a_head(base, tmp_path):
    from transformers import AutoModel

    record = trained(base, tmp_path, method="full", learning_rate=2e-3, average_decay=0.9)
    assert scores_of(base, tmp_path).accuracy == 1.0
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in before if not name.startswith("pooler.")} - changed <= {"embeddings.position_ids"}
    assert not {name for name in changed if name.startswith("pooler.")}
    model = AutoModel.from_pretrained(tmp_path)
    head = load_file(tmp_path / "head.safetensors")
    features, logits = predict_with_features(base, tmp_path, TEXTS)
    np.testing.assert_allclose(logits, features @ head["head.weight"].numpy() + head["head.bias"].numpy(), atol=1e-5)
    assert record.trainable_parameters == sum(
        value.numel() for name, value in model.named_parameters() if not name.startswith("pooler.")
    ) + sum(value.numel() for value in head.values())
    assert record.adapted_modules == [] and record.kept_states == {"size_bytes": 0, "on_disk": False}


def test_the_same_seed_gives_the_same_adapter(base, tmp_path):
    for name in ("one", "two", "other"):
        trained(base, tmp_path / name, epochs=2, seed=3 if name != "other" else 4, micro_batch_tokens=256, rank=2)
    files = [tmp_path / name / "adapter.safetensors" for name in ("one", "two", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    one, other = load_file(files[0]), load_file(files[2])
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["full", "head"])
def test_two_trainings_write_the_same_bytes(base, tmp_path, method):
    for name in ("one", "two"):
        trained(base, tmp_path / name, method=method, epochs=2, seed=3)
    one, two = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).glob("*.safetensors"))}
        for name in ("one", "two")
    )
    assert one and one == two


def test_training_stops_when_validation_no_longer_improves(base, tmp_path):
    contrary = tuple((text, LABELS[1 - LABELS.index(label)]) for text, label in ROWS)
    record = trained(base, tmp_path, validation=contrary, early_stopping_patience=2, epochs=60)
    assert record.stopped_early and len(record.curves) < 60
    ranks = [(entry["validation_macro_f1"], -entry["validation_loss"]) for entry in record.curves]
    best = ranks.index(max(ranks))
    assert record.best_epoch == record.curves[best]["epoch"] and len(record.curves) == best + 3


def test_class_weights_rescue_a_rare_label(base, tmp_path):
    rows = tuple(row for row in ROWS if row[1] == "off") * 6 + (ROWS[0],)
    for weights in ("none", "balanced"):
        trained(base, tmp_path / weights, rows=rows, class_weights=weights, epochs=4, learning_rate=1e-3)
    none, balanced = (predict(base, tmp_path / weights, TEXTS) for weights in ("none", "balanced"))
    assert (balanced[:, 1] - balanced[:, 0]).mean() > (none[:, 1] - none[:, 0]).mean() + 0.03


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"targets": ["no_such"]}, "names 'no_such'"),
        ({"first_layer": 9}, "first_layer = 9 is outside the base's 4 layers"),
    ],
)
def test_what_only_the_worker_can_know_comes_back_as_a_named_error(base, tmp_path, values, said):
    with pytest.raises(ConfigError, match=said):
        trained(base, tmp_path, **values)
    assert not (tmp_path / "record.json").exists()


@pytest.mark.parametrize(
    ("rows", "labels", "said"),
    [
        ((), LABELS, "no training rows"),
        (ROWS[:3], LABELS, "same label"),
        (ROWS, ("on", "off", "off"), "2 different|labels"),
        ((*ROWS, ("lamp", "dim")), LABELS, "unknown label 'dim'"),
    ],
)
def test_rows_that_cannot_be_learnt_are_named_before_anything_starts(base, tmp_path, rows, labels, said):
    with pytest.raises(ConfigError, match=said):
        train(
            base=found(base), rows=(rows, ROWS), labels=labels,
            settings=settings(), out_dir=tmp_path, progress=Told(),
        )  # fmt: skip


def workers():
    names = {"edge_forge.train.classifier_job", "edge_forge.train.generator_job"}
    return [child for child in psutil.Process().children(recursive=True) if names & set(child.cmdline())]


def test_a_killed_worker_is_told_with_its_log(base, tmp_path):
    def kill(phase, share):
        for worker in workers() if phase == "train" else ():
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(EdgeError, match=r"signal 9.*train\.log"):
        trained(base, tmp_path, kill, epochs=500)
    assert not (tmp_path / "record.json").exists()


class KillingAt(Told):
    """Kills the worker without a word at an evaluation, counted from 1."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def evaluated(self, scores):
        super().evaluated(scores)
        if len(self.scores) == self.number:
            for worker in workers():
                os.kill(worker.pid, signal.SIGKILL)


RESUMED = {
    "lora": {"rank": 4, "token_dropout": 0.2, "average_decay": 0.9, "first_layer": 2},
    "full": {"method": "full", "learning_rate": 1e-3, "dropout": 0.1},
    "pissa": {"method": "pissa", "rank": 4, "learning_rate": 1e-3},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_goes_on_from_its_checkpoint_to_the_same_bytes(base, tmp_path, name):
    values = {**RESUMED[name], "epochs": 6}
    whole = trained(base, tmp_path / "whole", **values)
    kept = RunFolders(tmp_path / "kept", tmp_path / "reports")
    with pytest.raises(EdgeError, match="signal 9"):
        trained(base, tmp_path / "first", KillingAt(4), folders=kept, **values)
    told = Told()
    record = trained(base, tmp_path / "second", told, folders=kept, **values)
    assert record.done_before == pytest.approx(3 / 6, abs=0.01), "the fourth pass had no checkpoint yet"
    assert len(told.scores) == 6, "who follows is told of what the first process found, too"
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        again = tmp_path / "second" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == again.read_bytes(), path.name
    assert record.curves == whole.curves and record.best_epoch == whole.best_epoch
    assert whole.done_before == 0.0 and not list((tmp_path / "whole").glob("checkpoint*"))
    # A run that had ended but for its result is not trained again.
    once_more = trained(base, tmp_path / "third", folders=kept, **values)
    assert once_more.done_before == 1.0 and once_more.curves == whole.curves


def test_a_generators_killed_run_goes_on_to_the_same_bytes(tmp_path):
    texts = [f"the lamp number {place} is {'on' if place % 2 else 'off'} in the room" for place in range(60)]
    rows = [(Turn("text", text),) for text in texts]
    shape = NewModelSection(vocabulary=300, hidden=32, layers=2, heads=2, kv_heads=1, feed_forward=64)
    make(tmp_path / "base", rows, shape, 64, 3)
    values = {"epochs": 5, "batch_size": 4, "rows_at_once": 2, "max_tokens": 64, "threads": 1, "precision": "fp32"}
    chosen = generator_settings.settings("lora", False, {**values, "learning_rate": 1e-3}, "test")

    def run(name, progress, folders=None):
        base, held = (tmp_path / "base", BASE_ID), (rows[:50], rows[50:])
        return generator_job.train(base, held, "no", chosen, tmp_path / name, progress, folders)

    whole, kept = run("whole", Told()), RunFolders(tmp_path / "kept", tmp_path / "reports")
    with pytest.raises(EdgeError, match="signal 9"):
        run("first", KillingAt(3), kept)
    record = run("second", Told(), kept)
    assert record.done_before == pytest.approx(0.4) and record.curves == whole.curves
    (weights,) = (tmp_path / "whole").rglob("*.safetensors")
    assert weights.read_bytes() == (tmp_path / "second" / weights.relative_to(tmp_path / "whole")).read_bytes()


def test_an_interrupt_ends_the_worker_and_leaves_no_record(base, tmp_path):
    def interrupt(phase, share):
        if phase == "train":
            raise KeyboardInterrupt

    start_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        trained(base, tmp_path, interrupt, epochs=500)
    assert workers() == [] and time.monotonic() - start_s < 120
    assert not (tmp_path / "record.json").exists() and not list(tmp_path.glob(".work-*"))


def test_trainer_reports_where_the_recipe_says(base, tmp_path):
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folders = RunFolders(tmp_path / "kept", tmp_path / "reports")
    record = trained(base, tmp_path / "run", folders=folders, epochs=3, report_to=("tensorboard",))
    told = EventAccumulator(str(folders.reports))
    told.Reload()
    scores = [event.value for event in told.Scalars("eval/accuracy")]
    assert scores == pytest.approx([one["validation_accuracy"] for one in record.curves], abs=1e-5)


def test_two_processes_train_one_adapter_and_go_on_after_a_kill(base, tmp_path):
    """Under `accelerate launch`, by gloo."""
    values = {"processes": 2, "epochs": 10, "first_layer": 2}
    folders = RunFolders(tmp_path / "kept", tmp_path / "reports")
    with pytest.raises(EdgeError):
        trained(base, tmp_path / "first", KillingAt(6), folders=folders, **values)
    tmp_path = tmp_path / "second"
    record = trained(base, tmp_path, folders=folders, **values)
    assert record.done_before == pytest.approx(0.5, abs=0.11)
    assert record.processes == 2
    assert record.curves[-1]["train_loss"] < record.curves[0]["train_loss"]
    assert (tmp_path / "adapter.safetensors").is_file()


CHOOSING = """
import os, sys
from pathlib import Path
from edge_forge.train.checkpoints import Checkpoints
rank = os.environ["RANK"]
print(rank, dict(Checkpoints(Path(sys.argv[1])).choice(lambda: {"precision": "fp32" if rank == "0" else "bf16"})))
"""


def test_processes_that_train_together_compute_as_the_first_one_chose(tmp_path):
    """Each measures for itself, and under load they find different precisions."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(sys.path)
    for _ in range(2):  # the second time the choice is read from the files that each of them left
        started = [
            subprocess.Popen(
                [sys.executable, "-c", CHOOSING, str(tmp_path / "kept")], stdout=subprocess.PIPE, text=True,
                env={**os.environ, **shared, "PYTHONPATH": path, "RANK": rank, "LOCAL_RANK": rank},
            )
            for rank in ("0", "1")
        ]  # fmt: skip
        said = [process.communicate(timeout=300)[0].strip() for process in started]
        assert said == ["0 {'precision': 'fp32'}", "1 {'precision': 'fp32'}"]
