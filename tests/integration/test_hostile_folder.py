"""Modules in the current folder are never imported, whatever command is typed there."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.app.daemon import StoreProcess, find_runtimes
from edge_agent.base.errors import StoreError
from edge_agent.worker.supervisor import SpawnOptions
from edge_forge.models.bases import resolve
from edge_forge.train.classifier_job import train
from edge_forge.train.settings import settings
from tests.support.desk import write_config
from tests.support.tiny_base import LABELS, ROWS, write

NAMES = (
    "msgspec",
    "numpy",
    "torch",
    "accelerate",
    "onnxruntime",
    "psutil",
    "runpy",
    "tomllib",
    "tokenizers",
    "edge_forge",
)
HOSTILE = "import pathlib\npathlib.Path(__file__).with_suffix('.ran').touch()\nraise SystemExit('hostile')\n"


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    folder = tmp_path / "hostile"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(HOSTILE)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return folder


def test_the_doctor_and_its_worker(hostile, tmp_path):
    """`doctor` asks every runtime in a worker process."""
    command = [str(Path(sys.executable).with_name("edge-agent")), "doctor", "--json"]
    command += ["--config", str(write_config(tmp_path, 1))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert not list(hostile.glob("*.ran")), done.stderr
    assert "hostile" not in done.stdout + done.stderr
    assert json.loads(done.stdout)


def test_a_store_command_of_the_daemon(hostile, tmp_path):
    store = StoreProcess(write_config(tmp_path, 1), tmp_path)
    with pytest.raises(StoreError, match="no-such"):
        asyncio.run(store.remove("no-such", None))
    for options in (SpawnOptions(), SpawnOptions(python=sys.executable)):
        (found,) = asyncio.run(find_runtimes(options, ["echo"]))
        assert found.version, found.reason
    assert not list(hostile.glob("*.ran"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_training_in_one_process_and_under_torchrun(hostile, tmp_path, processes):
    values = {"epochs": 1, "batch_size": 4, "threads": 1, "precision": "fp32", "rank": 2, "processes": processes}
    out_dir = tmp_path / "out"
    train(
        base=resolve([str(write(tmp_path / "base"))], tmp_path), train_rows=ROWS, validation_rows=ROWS, labels=LABELS,
        settings=settings(values=values), out_dir=out_dir, progress=lambda phase, share: None,
    )  # fmt: skip
    assert (out_dir / "adapter.safetensors").is_file()
    assert not list(hostile.glob("*.ran"))
