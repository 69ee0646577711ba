"""What the verbs of `edge-forge` say of a generator's plan, and the figures of a whole build."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edge_forge.export.gguf import ADAPTER_FILE, MODEL_FILE
from edge_forge.plan.generator_packages import GeneratePlan
from edge_forge.plan.gguf_exports import rows_of
from edge_forge.plan.signing import PACKAGE
from edge_forge.progress import size


def gather(plan: GeneratePlan, ship: bool = True) -> dict[str, Any]:
    """Run what is left of the plan and gather its figures; see `generate.report` for the keys.

    Without `ship` nothing is judged or packed, and what was made is timed.
    """
    recipe, base = plan.recipe, plan.base
    return {
        **(_shipped(plan) if ship else {"files": list(rows_of(plan.compared))}),
        "kind": "generate",
        "recipe": {"name": recipe.name, "description": recipe.description},
        "data": {"statistics": dict(plan.data.statistics), "warnings": list(plan.data.warnings)},
        "base": {"name": recipe.base.name, "source": base.source, "base_id": base.base_id,
                 "size_bytes": base.size_bytes},
        "train": dict(plan.trained.facts),
        "split": plan.data.measured[0],
        "exam": {"rows": _rows_digest(plan), "tokenizer": plan.tokenizer_digest},
        "scores": dict(plan.evaluated.facts),
        "task": {"max_tokens": recipe.task.max_tokens, "sequences": recipe.gguf.sequences},
        "adapter": dict(plan.adapter_file.facts) if plan.has_adapter else None,
        "steps": [
            {"name": name, "took_s": entry.record["took_s"], "cached": entry.cached}
            for name, entry in plan.entries.items()
        ],
    }  # fmt: skip


def _rows_digest(plan: GeneratePlan) -> str:
    """What tells whether two plans are scored on the same rows."""
    name = f"{plan.data.measured[0]}.jsonl"
    return f"{plan.data_step.digests(name)[name]}, {len(plan.scored_rows)}"


def _shipped(plan: GeneratePlan) -> dict[str, Any]:
    """Files, verdicts and packages."""
    gates, passed = plan.judged
    measured = (*plan.adapter_files, *plan.merged_files)
    bare = () if plan.recipe.is_new else (plan.bare,)
    return {
        "files": list(rows_of((*bare, *measured) if measured else plan.base_files)),
        "gates": [{"name": gate.name, "holds": gate.holds, "sentence": gate.sentence} for gate in gates],
        "left_out": [[file.form, file.dtype] for file in measured if file not in passed],
        "packages": [
            {"file": one.file.name, "what": one.what, "size_bytes": one.size_bytes, "digest": one.digest}
            for one in plan.shipped()
        ],
    }


def _train(plan: GeneratePlan) -> Mapping[str, Any]:
    facts = plan.trained.facts
    return {"folder": str(plan.trained.path("run")), **{key: facts[key] for key in ("method", "wall_s", "peak_bytes")}}


def _evaluate(plan: GeneratePlan) -> Mapping[str, Any]:
    found: dict[str, Any] = {"split": plan.data.measured[0]}
    for who, scores in plan.evaluated.facts.items():
        found |= {f"{who} perplexity": scores["perplexity"]}
        found |= {f"{who} {key}": value for key, value in scores.get("answers", {}).items()}
    return found


def _export(plan: GeneratePlan) -> Mapping[str, Any]:
    found = {}
    if plan.has_adapter or plan.recipe.is_new:
        found["base"] = str(plan.base_file.path(MODEL_FILE))
    if plan.has_adapter:
        found["adapter"] = str(plan.adapter_file.path(ADAPTER_FILE))
    if plan.has_merged:
        found["merged"] = str(plan.merged_file.path(MODEL_FILE))
    return found


def _quantize(plan: GeneratePlan) -> Mapping[str, Any]:
    files = (*plan.adapter_files, *plan.merged_files) or plan.base_files
    return {
        f"{file.form} {file.dtype}": f"{size(file.size_bytes)}, " + ", ".join(
            f"{key} {file.figures[key]:.4g}"
            for key in ("perplexity", "sample_perplexity", "exact_match", "bleu", "rouge_l")
            if file.figures.get(key) is not None
        )
        for file in files
    }  # fmt: skip


def _package(plan: GeneratePlan) -> Mapping[str, Any]:
    return {name: str(entry.path(PACKAGE)) for name, (_, entry) in plan.packed.items()}


RESULTS: Mapping[str, Callable[[GeneratePlan], Mapping[str, Any]]] = {
    "train": _train,
    "evaluate": _evaluate,
    "export": _export,
    "quantize": _quantize,
    "package": _package,
}
