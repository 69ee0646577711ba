"""What the steps that make number formats are known by in the cache."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_forge.plan.onnx_exports import OnnxExports
from edge_forge.recipe import classifier_recipe

RECIPE = {
    "name": "r", "base": {"name": "b", "source": "./b"}, "quantize": {"tensorrt": ["fp16"]},
    "export": {"bank_rank": 16},
}  # fmt: skip


def settings(step: str, max_tokens: int, seed: int = 17, prompt: str = "") -> Any:
    """Of a step on the same float graph, which texts of `max_tokens` tokens at most calibrate."""
    recipe = classifier_recipe.parse({**RECIPE, "data": {"train": "t.tsv", "seed": seed}}, "r", {})
    found: list[Any] = []

    def run(_: str, inputs: Any, settings: Any, *__: Any) -> None:
        found.append((inputs, settings))

    def digests(*names: str) -> dict[str, str]:
        return dict.fromkeys(names, "same")

    training: Any = SimpleNamespace(
        recipe=recipe, steps=SimpleNamespace(run=run, recipe_dir=Path()), data_step=SimpleNamespace(digests=digests),
        prompt=prompt,
    )  # fmt: skip
    exports = OnnxExports(training)
    entry = SimpleNamespace(digests=digests, facts={"max_tokens": max_tokens, "modules": []})
    vars(exports).update(base_export=entry, merged_export=entry)
    getattr(exports, step)
    return found


@pytest.mark.parametrize("step", ["base_formats", "merged_formats", "base_for_tensorrt", "merged_for_tensorrt"])
def test_how_the_texts_that_calibrate_are_read_is_part_of_the_key(step: str) -> None:
    assert settings(step, 128) == settings(step, 128) != settings(step, 512)
    assert settings(step, 128) != settings(step, 128, prompt="query: ")


def test_the_sample_of_texts_that_fp16_must_hold_is_part_of_the_key() -> None:
    assert settings("merged_formats", 128) != settings("merged_formats", 128, seed=18)
    assert settings("base_formats", 128) == settings("base_formats", 128, seed=18), "of no recipe's own"
