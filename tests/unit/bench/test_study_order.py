"""The study's order of runs where one of them fails."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import study
from edge_agent.base.errors import EdgeError
from edge_forge.plan.cache import Cache
from edge_forge.progress import Progress


def test_a_seed_that_fails_ends_neither_the_other_runs_nor_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(plan: Any, _: str) -> dict[str, Any]:
        training = plan.recipe.training
        if (training.method, training.seed) == ("full", study.FIRST_SEED + 1):
            raise EdgeError("the loss is no number", "train")
        return {"validation": 0.8, "score": 0.8}

    rows = SimpleNamespace(splits={"train": [1]})
    monkeypatch.setattr(study, "measured", measured)
    monkeypatch.setattr(
        study, "ClassifierPlan", lambda recipe, *_: SimpleNamespace(recipe=recipe, training=SimpleNamespace(data=rows))
    )
    wanted = study.StudyWish(tmp_path, ("rte",), ("full", "lora r8"), seeds=3, factors=(1.0,), graphs=False)
    results, quiet = study.StudyResults(tmp_path / "study.json", wanted), Progress(io.StringIO(), quiet=True)
    assert study.MethodStudy(wanted, results, Cache(tmp_path / "build", quiet), quiet, float("inf")).run()
    runs = results.content["tasks"]["rte"]["runs"]
    failed = {name: [one["seed"] for one in found.values() if "failed" in one] for name, found in runs.items()}
    assert failed == {"full": [study.FIRST_SEED + 1], "lora r8": []}
    assert {name: len(found) for name, found in runs.items()} == {"full": 3, "lora r8": 3}
