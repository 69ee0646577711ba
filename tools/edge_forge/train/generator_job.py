"""What one training run of a generator is given, as a file between the caller and the worker process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_forge.data.generator_rows import Row, as_json, from_json
from edge_forge.train.generator_settings import GenerateSettings


@dataclass(frozen=True)
class Job:
    """Inputs of a run. `chat` as in the recipe's task; `work_dir` is for working files, and the caller removes it."""

    base_dir: Path
    base_id: str
    out_dir: Path
    work_dir: Path
    chat: str
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    settings: GenerateSettings

    def write(self, path: Path) -> None:
        """Write as JSON."""
        rows = {"train": list(map(as_json, self.train)), "validation": list(map(as_json, self.validation))}
        path.write_text(json.dumps({**asdict(self), **rows}, default=str), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Job:
        """Read what `write` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        return Job(
            base_dir=Path(found["base_dir"]),
            base_id=found["base_id"],
            out_dir=Path(found["out_dir"]),
            work_dir=Path(found["work_dir"]),
            chat=found["chat"],
            train=tuple(map(from_json, found["train"])),
            validation=tuple(map(from_json, found["validation"])),
            settings=GenerateSettings(**{**found["settings"], "targets": tuple(found["settings"]["targets"])}),
        )
