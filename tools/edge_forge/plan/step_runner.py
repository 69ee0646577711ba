"""Run the steps of a plan through the cache, and what several plans do in the same way around a step."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edge_agent.base.errors import ConfigError, EdgeError
from edge_forge.plan.cache import BuildStep, Cache, StepResult, file_digest
from edge_forge.plan.code_version import code_version
from edge_forge.progress import Progress

Code = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""By step: its entry modules, and the distributions whose versions change its result."""


class StepRunner:
    """Runs named steps for one recipe in one build folder. `entries` holds the finished ones by title."""

    def __init__(self, recipe_dir: Path, cache: Cache, progress: Progress, code: Code) -> None:
        self.recipe_dir = recipe_dir
        self.cache = cache
        self.progress = progress
        self.code = code
        self.entries: dict[str, StepResult] = {}

    def run(
        self,
        name: str,
        inputs: Mapping[str, str],
        settings: Mapping[str, Any],
        work: Callable[[Path], Mapping[str, Any]],
        title: str = "",
    ) -> StepResult:
        """Run a step unless the cache has its result; `inputs` are digests, `settings` JSON values, both in its key."""
        modules, distributions = self.code[name]
        entry = self.cache.run(
            BuildStep(name, inputs, settings, code_version(modules, distributions), work, title or name)
        )
        self.entries[title or name] = entry
        return entry

    def timings(self) -> list[dict[str, Any]]:
        """The finished steps in order: their titles, seconds, and whether the result was there already."""
        return [
            {"name": name, "took_s": entry.record["took_s"], "cached": entry.cached}
            for name, entry in self.entries.items()
        ]


def quiet() -> None:
    """No progress bars of transformers within a step: the forge has its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def digest_of_data(path: Path) -> str:
    """sha256 of a data file. Raises ConfigError that names it."""
    try:
        return file_digest(path)
    except OSError as error:
        raise ConfigError(
            f"the data file cannot be read: {error.strerror}", str(path), "see [data] of the recipe"
        ) from error


def with_log(error: EdgeError, log: Path, build: Path) -> EdgeError:
    """The same error, with the training log kept where the step's own folder does not take it away."""
    if not log.is_file():
        return error
    kept = build / "logs" / "train.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(log, kept)
    if error.remedy is not None:
        error.remedy = error.remedy.replace(str(log.resolve()), str(kept))
    return error


def plain(section: Any) -> dict[str, Any]:
    """A section of the recipe as JSON values."""
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(section)
    return found
