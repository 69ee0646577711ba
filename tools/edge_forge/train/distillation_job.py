"""A distillation: the job file, the caller that starts the worker (`distill`), and the worker's entry.

`python -m edge_forge.train.distillation_job JOB` runs one job, in a process of its own as every training. The caller's
side imports no tensor library.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_agent.base.texts import Text
from edge_forge.models.bases import Base
from edge_forge.train.checkpoints import RunFolders
from edge_forge.train.classifier_job import ClassifierJob
from edge_forge.train.record import TrainRecord
from edge_forge.train.settings import TrainSettings
from edge_forge.train.worker_process import Report, follow, launched, serve


@dataclass(frozen=True)
class DistillationSettings:
    """How the student is made and taught: layers, heads and feed-forward neurons that stay (0: all), `temperature` of
    the logits and weight of the hidden states in the loss.

    `teacher_dir` is what the training of the teacher wrote; the first `labelled` training rows have labels of their
    own, by which heads and neurons are scored.
    """

    teacher_dir: Path
    layers: int
    heads: int
    feed_forward: int
    labelled: int
    temperature: float
    hidden: float


@dataclass(frozen=True)
class DistillationJob:
    """A training whose model is cut out of a teacher. The rows' labels are read in validation, and where heads and
    neurons are scored."""

    training: ClassifierJob
    terms: DistillationSettings

    def write(self, path: Path) -> None:
        """Write as JSON, beside the file of its training."""
        inner = path.with_suffix(".training.json")
        self.training.write(inner)
        told = {"training": str(inner), "terms": asdict(self.terms)}
        path.write_text(json.dumps(told, default=str), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> DistillationJob:
        """Read what `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        terms = {**found["terms"], "teacher_dir": Path(found["terms"]["teacher_dir"])}
        return DistillationJob(ClassifierJob.read(Path(found["training"])), DistillationSettings(**terms))


_WORKER = "edge_forge.train.distillation_job"


def distill(
    *,
    base: Base,
    rows: tuple[Sequence[tuple[Text, str]], Sequence[tuple[Text, str]]],
    labels: Sequence[str],
    settings: TrainSettings,
    terms: DistillationSettings,
    places: tuple[Path, RunFolders],
    progress: Report,
) -> TrainRecord:
    """Cut the student out of the teacher and teach it; writes `base/` (the student's folder), train.log and record.json
    into the first of `places`. A run that was killed goes on from what it left in the second's folders.

    Raises ConfigError for a base that cannot be cut so, EdgeError when the worker fails.
    """
    out_dir, folders = places[0].resolve(), places[1]
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=out_dir) as folder:
        training = ClassifierJob(
            base_dir=base.directory.resolve(), base_id=base.base_id, out_dir=out_dir, work_dir=Path(folder),
            folders=folders, labels=tuple(labels), train=tuple(rows[0]), validation=tuple(rows[1]), settings=settings,
        )  # fmt: skip
        DistillationJob(training, terms).write(Path(folder) / "job.json")
        follow(launched(_WORKER, settings.processes, str(Path(folder) / "job.json")), out_dir / "train.log", progress)
    return TrainRecord.read(out_dir / "record.json")


def main(arguments: list[str]) -> int:
    """Run the job file named by the one argument; 0 done, 1 failed."""
    return serve(lambda report: _run(Path(arguments[0]), report))


def _run(job: Path, report: Report) -> None:
    from edge_forge.train.distillation_session import run
    from edge_forge.train.resumable_trainer import report_below

    asked = DistillationJob.read(job)
    report_below(asked.training.folders.reports)
    run(asked, report)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
