"""The page of the study says what its results hold: what is done, what is left, and what the figures tell."""

from __future__ import annotations

from typing import Any

import pytest

from bench import study_page


def run(seed: int, rate: float, score: float, **values: Any) -> dict[str, Any]:
    return {
        "seed": seed, "learning_rate": rate, "score": score, "accuracy": score, "quality": score, "validation": score,
        "cpu_s": 50.0, "peak_bytes": 600 << 20, "trainable_parameters": 1000, "file_bytes": 700 << 10,
        "is_adapter": True, "method": "lora", "adapter_rank": 8, "code": "c", "wall_s": 200.0, **values,
    }  # fmt: skip


def full(seed: int, rate: float, score: float) -> dict[str, Any]:
    own: dict[str, Any] = {"method": "full", "adapter_rank": 0, "is_adapter": False, "file_bytes": 90 << 20}
    return run(seed, rate, score, cpu_s=100.0, peak_bytes=1000 << 20, **own)


def content(**runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Two tasks, of which the second was not begun."""
    conditions = {"epochs": 3, "measure": "accuracy", "most_rows": 1000}
    named = {name.replace("_", " "): {str(at): one for at, one in enumerate(found)} for name, found in runs.items()}
    rows = {"train": 1000, "validation": 500, "test": 1000}
    wanted = {"tasks": ["rte", "sst2"], "runs": ["full", "lora r8"], "seeds": 2, "factors": [0.3, 1.0], "graphs": True}
    return {
        "conditions": {"base": "b", "settings": {"precision": "fp32"}, "first_seed": 17, "host": "h"},
        "wanted": wanted,
        "tasks": {
            "rte": {"conditions": conditions, "rows": rows, "runs": named, "graphs": {}},
            "sst2": {"conditions": conditions, "rows": {}, "runs": {}, "graphs": {}},
        },
    }  # fmt: skip


WHOLE = content(
    full=[full(17, 1e-5, 0.70), full(17, 1e-4, 0.80), full(18, 1e-4, 0.82)],
    lora_r8=[run(17, 1e-4, 0.80), run(17, 1e-3, 0.798), run(18, 1e-4, 0.82)],
)


def test_what_is_left_is_counted_by_runs_and_graphs() -> None:
    assert study_page.state_lines(WHOLE) == ["rte: 6 of 8 done, 2 left", "sst2: 0 of 8 done, 8 left"]
    begun = content(full=[full(17, 1e-5, 0.7)])
    assert study_page.state_lines(begun)[0] == "rte: 1 of 8 done, 7 left"
    begun["tasks"]["rte"]["graphs"]["full"] = {}
    assert study_page.state_lines(begun)[0] == "rte: 2 of 8 done, 6 left"


def test_lora_is_set_beside_full_at_the_best_step_size_of_each() -> None:
    said = study_page.page(WHOLE)
    assert "lora r8 beside full: 50 % of the processor time, 60 % of the peak memory, +0.0 points" in said
    assert "(at most 60 % of the time and 65 % of the memory at no more than 0.3 points less) is met." in said
    dear = content(full=[full(17, 1e-4, 0.8)], lora_r8=[run(17, 1e-3, 0.8, cpu_s=61.0)])
    assert "is not met. One seed proves neither." in study_page.page(dear)
    once = study_page.page(content(full=[full(17, 1e-4, 0.6)], lora_r8=[run(17, 1e-3, 0.8)]))
    assert "the points are not judged, since one step size alone was tried" in once and "is met" not in once
    assert "No method is recommended: of one of them a single step size was tried." in once
    assert "Take lora r8" not in once


def test_the_page_says_what_it_cannot_tell() -> None:
    said = study_page.page(WHOLE)
    assert "Nothing is said of sst2: no run was made." in said and "Not run." in said
    assert "full on rte (largest), lora r8 on rte (smallest)" in said
    assert "One step size alone" not in said
    begun = study_page.page(content(full=[full(17, 1e-4, 0.8)]))
    assert "One step size alone was tried, which is not known to be the best, for full on rte:" in begun
    assert "Rows were cut: rte (1,000 training and 1,000 test rows)" in said
    assert "Some methods have 2 seeds" in said
    assert "A training had 25 to 50 % of a core." in said  # other programs ran
    assert said.count("not run") >= 6  # losses and forgetting, of which no graph was made


def test_the_recommendation_is_that_of_a_comparison() -> None:
    assert "**Take lora r8** (LoRA, rank 8), attached to a shared base: its mean accuracy, 0.8100" in study_page.page(
        WHOLE
    )


def test_methods_are_compared_by_equal_counts_of_seeds() -> None:
    uneven = content(full=[full(17, 1e-4, 0.80), full(18, 1e-4, 0.90)], lora_r8=[run(17, 1e-3, 0.80)])
    assert {name: len(one["seeds"]) for name, one in study_page.as_runs(uneven, "rte").items()} == {
        "full": 1,
        "lora r8": 1,
    }


def test_seeds_of_one_number_are_paired_where_another_run_failed() -> None:
    failed = {"seed": 18, "learning_rate": 1e-4, "failed": "the loss is no number"}
    gap = content(
        full=[full(seed, 1e-4, score) for seed, score in ((17, 0.8), (18, 0.6), (19, 0.9))],
        lora_r8=[run(17, 1e-4, 0.8), failed, run(19, 1e-4, 0.9)],
    )
    found = study_page.as_runs(gap, "rte").values()
    assert [[one["seed"] for one in runs["seeds"]] for runs in found] == [[17, 19], [17, 19]]
    assert "60 % of the peak memory, +0.0 points of accuracy, 2 seeds." in study_page.page(gap)


def test_a_run_that_failed_is_told_with_its_reason_and_is_never_the_best() -> None:
    failed = {"seed": 17, "learning_rate": 1e-3, "failed": "the loss is no number"}
    said = study_page.page(content(lora_r8=[run(17, 1e-4, 0.7), failed]))
    assert "0.0001: 0.700, 0.001: failed (the loss is no number)" in said
    assert "| lora r8 | 0.0001 |" in said


def test_intervals_of_one_seed_are_wilsons_over_the_rows() -> None:
    found = study_page.page(content(full=[full(17, 1e-4, 0.8)]))
    assert "| 0.8000 | 0.774 to 0.824 | 1 |" in found


@pytest.mark.parametrize("runs", [{}, {"full": [{"seed": 17, "learning_rate": 1e-4, "failed": "x"}]}])
def test_without_a_figure_nothing_is_told(runs: dict[str, Any]) -> None:
    assert "Nothing was run yet." in study_page.page(content(**runs))
