"""What one training run is given, as a file between the caller and the worker process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_forge.train.settings import TrainSettings


@dataclass(frozen=True)
class Job:
    """Inputs of a run; `train` and `validation` hold (text, label) rows, `labels` the order of the classes.

    `work_dir` is for working files; the caller removes it, however the worker ends.
    """

    base_dir: Path
    base_id: str
    out_dir: Path
    work_dir: Path
    labels: tuple[str, ...]
    train: tuple[tuple[str, str], ...]
    validation: tuple[tuple[str, str], ...]
    settings: TrainSettings

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), default=str), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Job:
        """Read what `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = {**found["settings"], "targets": tuple(found["settings"]["targets"])}
        return Job(
            base_dir=Path(found["base_dir"]),
            base_id=found["base_id"],
            out_dir=Path(found["out_dir"]),
            work_dir=Path(found["work_dir"]),
            labels=tuple(found["labels"]),
            train=tuple((text, label) for text, label in found["train"]),
            validation=tuple((text, label) for text, label in found["validation"]),
            settings=TrainSettings(**settings),
        )
