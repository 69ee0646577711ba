"""Checkpoints of a training run: written whole, sealed by this user, found again by the run that takes it up.

    FOLDER/choice-R.json            how process R computes steps, as the run that began measured it
    FOLDER/checkpoint-N/            after step N: Trainer's optimizer, schedule, random states and trainer_state.json,
                                    trained.safetensors (the weights that are trained), best.safetensors (those of the
                                    best evaluation), extra.safetensors and extra.json (what a trainer adds)
    FOLDER/checkpoint-N/seal.json   digests of all of them under the seal of this user, written last

Files of optimizers and random states are pickles, and a build folder may come with a recipe (decision 0201): without
this user's seal nothing of a checkpoint is opened. A checkpoint that was being written when the run was killed has no
seal, and the one before it is taken.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from edge_forge.plan.cache import canonical, describe, write_json
from edge_forge.user_state import UserState

TRAINED: Final = "trained.safetensors"
BEST: Final = "best.safetensors"
EXTRA_TENSORS: Final = "extra.safetensors"
EXTRA: Final = "extra.json"
_SEAL = "seal.json"
_SEAL_BYTES = 1 << 20


class RunFolders(NamedTuple):
    """Folders that outlast a training process: its checkpoints, and what it reports elsewhere."""

    checkpoints: Path
    reports: Path


class Checkpoints:
    """The folder of one training run's checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._state = UserState.of(os.environ)

    def newest(self) -> Path | None:
        """The last whole checkpoint that this user made here; None where there is none."""
        return next((path for path in reversed(self._folders()) if self._is_whole(path)), None)

    def remove_others(self, kept: Path | None) -> None:
        """Remove all but one. Trainer counts those that are not whole, and would remove a whole one for them."""
        for path in self._folders():
            if path != kept:
                shutil.rmtree(path)

    def _folders(self) -> list[Path]:
        numbered = []
        for path in self.folder.glob("checkpoint-*"):
            number = path.name.removeprefix("checkpoint-")
            if number.isdecimal() and path.is_dir() and not path.is_symlink():
                numbered.append((int(number), path))
        return [path for _, path in sorted(numbered)]

    def seal(self, checkpoint: Path) -> None:
        """Say that a checkpoint is whole."""
        files = describe(checkpoint)
        write_json(checkpoint / _SEAL, {"files": files, "seal": self._state.seal(self._named(checkpoint.name, files))})

    def choice(self, measure: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        """How steps are computed: what the run that began measured, or what `measure` says now.

        A run that goes on with another precision or other threads would end with other weights. Of several processes
        each measures, and what the first one found is taken by all: they train one model.
        """
        path = self.folder / f"choice-{os.environ.get('RANK', '0')}.json"
        found = _read(path)
        if found and self._state.is_sealed(self._named(path.name, found.get("choice")), found.get("seal")):
            choice: Mapping[str, Any] = found["choice"]
            return _of_the_first(choice)
        measured = dict(measure())
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"choice": measured, "seal": self._state.seal(self._named(path.name, measured))})
        return _of_the_first(measured)

    def _named(self, name: str, content: Any) -> bytes:
        """What a seal is made over: the content, and whose it is, so that no other run's is taken for this one's."""
        return canonical([self.folder.name, name, json.loads(canonical(content))])

    def _is_whole(self, checkpoint: Path) -> bool:
        found = _read(checkpoint / _SEAL)
        if not found or not self._state.is_sealed(self._named(checkpoint.name, found.get("files")), found.get("seal")):
            return False
        if any(path.is_symlink() or not (path.is_file() or path.is_dir()) for path in checkpoint.rglob("*")):
            return False
        held = {name: entry for name, entry in describe(checkpoint).items() if name != _SEAL}
        return bool(held == found["files"])


def _read(path: Path) -> dict[str, Any] | None:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _SEAL_BYTES:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        canonical(found)  # no NaN, which the json module reads
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _of_the_first(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the first of the processes that train together chose; alone, the choice itself."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return choice
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available())  # transformers' Trainer finds the same group later
    found: Mapping[str, Any] = broadcast_object_list([choice])[0]
    return found
