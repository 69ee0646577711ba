"""A generator's training run: the job file, the caller that starts the worker (`train`), and the worker's entry.

`python -m edge_forge.train.generator_job JOB` runs one job. The caller's side imports no tensor library.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_forge.data.generator_rows import Row, as_json, from_json
from edge_forge.train.checkpoints import RunFolders
from edge_forge.train.generator_settings import GeneratorSettings
from edge_forge.train.record import TrainRecord
from edge_forge.train.worker_process import Report, follow, launched, serve


@dataclass(frozen=True)
class GeneratorJob:
    """Inputs of a run. `chat` as in the recipe's task; `work_dir` is for working files, and the caller removes it;
    `folders` stay where the worker is killed."""

    base_dir: Path
    base_id: str
    out_dir: Path
    work_dir: Path
    folders: RunFolders
    chat: str
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    settings: GeneratorSettings

    def write(self, path: Path) -> None:
        """Write as JSON."""
        rows = {"train": list(map(as_json, self.train)), "validation": list(map(as_json, self.validation))}
        path.write_text(json.dumps({**asdict(self), **rows}, default=str), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> GeneratorJob:
        """Read what `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        return GeneratorJob(
            base_dir=Path(found["base_dir"]),
            base_id=found["base_id"],
            out_dir=Path(found["out_dir"]),
            work_dir=Path(found["work_dir"]),
            folders=RunFolders(*map(Path, found["folders"])),
            chat=found["chat"],
            train=tuple(map(from_json, found["train"])),
            validation=tuple(map(from_json, found["validation"])),
            settings=GeneratorSettings(
                **{**found["settings"], **{key: tuple(found["settings"][key]) for key in ("targets", "report_to")}}
            ),
        )


_WORKER = "edge_forge.train.generator_job"


def train(
    base: tuple[Path, str],
    rows: tuple[Sequence[Row], Sequence[Row]],
    chat: str,
    settings: GeneratorSettings,
    out_dir: Path,
    progress: Report,
    folders: RunFolders | None = None,
) -> TrainRecord:
    """Train on (training, validation) rows from `base` (folder, base_id); write the result into `out_dir`. A run that
    was killed goes on from what it left in `folders`, which are its own.

    Writes peft/ (LoRA) or model/ (full: a Hugging Face folder with the tokenizer), train.log, and record.json last.
    Raises ConfigError for rows that do not fit, EdgeError when the worker fails.
    """
    out_dir = out_dir.resolve()
    out_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=out_dir) as folder:
        beside = folders or RunFolders(Path(folder) / "checkpoints", Path(folder) / "reports")
        held = tuple(rows[0]), tuple(rows[1])
        job = GeneratorJob(base[0].resolve(), base[1], out_dir, Path(folder), beside, chat, *held, settings)
        job.write(Path(folder) / "job.json")
        follow(launched(_WORKER, settings.processes, str(Path(folder) / "job.json")), out_dir / "train.log", progress)
    return TrainRecord.read(out_dir / "record.json")


def main(arguments: list[str]) -> int:
    """Run the job file named by the one argument; 0 done, 1 failed."""

    def run(report: Report) -> None:
        from edge_forge.train import generator_session as session
        from edge_forge.train.resumable_trainer import report_below

        asked = GeneratorJob.read(Path(arguments[0]))
        report_below(asked.folders.reports)
        session.run(asked, report)

    return serve(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
