"""A classifier's training run: the job file, the caller that starts the worker (`train`), and the worker's entry.

`python -m edge_forge.train.classifier_job JOB` runs one job (also under `accelerate launch -m`). A run has a process
of its own, so that its peak memory, threads and environment are its own and ending the process ends everything.
The caller's side imports no tensor library.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_agent.base import errors
from edge_agent.base.texts import Text
from edge_forge.models.bases import Base
from edge_forge.train.checkpoints import RunFolders
from edge_forge.train.record import TrainRecord
from edge_forge.train.settings import TrainSettings, check
from edge_forge.train.worker_process import Report, follow, launched, serve


@dataclass(frozen=True)
class ClassifierJob:
    """Inputs of a run; `train` and `validation` hold (text or pair, label) rows, `labels` the order of the classes.

    `work_dir` is for working files; the caller removes it, however the worker ends. `folders` stay where the
    worker is killed.
    """

    base_dir: Path
    base_id: str
    out_dir: Path
    work_dir: Path
    folders: RunFolders
    labels: tuple[str, ...]
    train: tuple[tuple[Text, str], ...]
    validation: tuple[tuple[Text, str], ...]
    settings: TrainSettings

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> ClassifierJob:
        """Read what `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = {**found["settings"], **{key: tuple(found["settings"][key]) for key in ("targets", "report_to")}}
        return ClassifierJob(
            base_dir=Path(found["base_dir"]),
            base_id=found["base_id"],
            out_dir=Path(found["out_dir"]),
            work_dir=Path(found["work_dir"]),
            folders=RunFolders(*map(Path, found["folders"])),
            labels=tuple(found["labels"]),
            train=tuple(_row(*row) for row in found["train"]),
            validation=tuple(_row(*row) for row in found["validation"]),
            settings=TrainSettings(**settings),
        )


def _row(text: str | list[str], label: str) -> tuple[Text, str]:
    """A row out of JSON, which has lists for pairs."""
    return (text if isinstance(text, str) else (text[0], text[1])), label


_WORKER = "edge_forge.train.classifier_job"


def train(
    *,
    base: Base,
    rows: tuple[Sequence[tuple[Text, str]], Sequence[tuple[Text, str]]],
    labels: Sequence[str],
    settings: TrainSettings,
    out_dir: Path,
    progress: Report,
    folders: RunFolders | None = None,
) -> TrainRecord:
    """Train on (training, validation) `rows` of (text, label) and write the result into `out_dir`; `progress` is told
    of each phase and evaluation. A run that was killed goes on from what it left in `folders`, which are its own.

    Writes adapter.safetensors and peft/ (LoRA) or model.safetensors, head.safetensors, config and tokenizer (full),
    train.log, and record.json last. Raises ConfigError for bad settings, rows or base, EdgeError when the worker
    fails, KeyboardInterrupt after the worker was ended.
    """
    check(settings, "train")
    if not (settings.slots or settings.answers):
        _check_rows(*rows, labels)
    out_dir = out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=out_dir) as folder:
        job = ClassifierJob(
            base_dir=base.directory.resolve(),
            base_id=base.base_id,
            out_dir=out_dir,
            work_dir=Path(folder),
            folders=folders or RunFolders(Path(folder) / "checkpoints", Path(folder) / "reports"),
            labels=tuple(labels),
            train=tuple((text, label) for text, label in rows[0]),
            validation=tuple((text, label) for text, label in rows[1]),
            settings=settings,
        )
        job.write(Path(folder) / "job.json")
        follow(launched(_WORKER, settings.processes, str(Path(folder) / "job.json")), out_dir / "train.log", progress)
    return TrainRecord.read(out_dir / "record.json")


def _check_rows(
    train_rows: Sequence[tuple[Text, str]], validation_rows: Sequence[tuple[Text, str]], labels: Sequence[str]
) -> None:
    if len(set(labels)) != len(labels) or len(labels) < 2:
        raise errors.ConfigError(f"{len(set(labels))} different labels", "data", "a classifier needs at least two")
    for name, rows in (("training", train_rows), ("validation", validation_rows)):
        if not rows:
            raise errors.ConfigError(f"there are no {name} rows", "data", "give the split at least one row")
        unknown = sorted({label for _, label in rows} - set(labels))
        if unknown:
            raise errors.ConfigError(f"{name} rows have the unknown label {unknown[0]!r}", "data", "add it to labels")
    if len({label for _, label in train_rows}) < 2:
        raise errors.ConfigError("all training rows have the same label", "data", "add rows of another label")


def main(arguments: list[str]) -> int:
    """Run the job file named by the one argument; 0 done, 1 failed."""
    return serve(lambda report: _run(Path(arguments[0]), report))


def _run(job: Path, report: Report) -> None:
    from edge_forge.train.classifier_session import run
    from edge_forge.train.resumable_trainer import report_below

    asked = ClassifierJob.read(job)
    report_below(asked.folders.reports)
    run(asked, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
