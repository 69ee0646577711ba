"""Start a training run of a generator in a worker process and follow it. This side imports no tensor library."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_forge.data.generator_rows import Row
from edge_forge.train.follow import follow
from edge_forge.train.generator_job import Job
from edge_forge.train.generator_settings import GenerateSettings
from edge_forge.train.record import TrainRecord

_WORKER = "edge_forge.train.generator_worker"


def train(
    base: tuple[Path, str],
    rows: tuple[Sequence[Row], Sequence[Row]],
    chat: str,
    settings: GenerateSettings,
    out_dir: Path,
    progress: Callable[[str, float], None],
) -> TrainRecord:
    """Train on (training, validation) rows from `base` (folder, base_id); write the result into `out_dir`.

    Writes peft/ (LoRA) or model/ (full: a Hugging Face folder with the tokenizer), train.log, and record.json last.
    Raises ConfigError for rows that do not fit, EdgeError when the worker fails.
    """
    out_dir = out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=out_dir) as folder:
        job = Job(base[0].resolve(), base[1], out_dir, Path(folder), chat, tuple(rows[0]), tuple(rows[1]), settings)
        job.write(Path(folder) / "job.json")
        follow([sys.executable, "-m", _WORKER, str(Path(folder) / "job.json")], out_dir / "train.log", progress)
    return TrainRecord.read(out_dir / "record.json")
