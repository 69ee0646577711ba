"""The plan of a generator's recipe: its parts in order, its figures, and what each command prints of it.

data ─┬─▶ train ─▶ evaluate (PyTorch, base and tuned)
base ─┴─▶ gguf (F16, proven by logits) ─▶ quantize ─▶ measure (llama.cpp) ─▶ gates ─▶ package ─▶ sign ─▶ report
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_forge.export.gguf import ADAPTER_FILE, MODEL_FILE
from edge_forge.plan.cache import Cache
from edge_forge.plan.generator_packages import GeneratorPackages
from edge_forge.plan.generator_training import CODE, GeneratorTraining
from edge_forge.plan.gguf_exports import RUNTIME, GgufExports, GgufVariant
from edge_forge.plan.signing import PACKAGE, PackageSigner
from edge_forge.plan.step_runner import StepRunner
from edge_forge.progress import Progress, size
from edge_forge.recipe.generator_recipe import GeneratorRecipe

Figures = Mapping[str, Any]
LEARNED_PREFERENCES = "pairs preferred rightly"
SEED_SCORES = ("perplexity", "exact_match", "json_match", "preferred", "margin")
"""What is kept of each run of a comparison over seeds."""
_ROUNDS = 6
"""Timings of each file in a comparison: the fewest whose range holds a median's interval of 95 %."""


class GeneratorPlan:
    """One generator's recipe in one build folder."""

    def __init__(self, recipe: GeneratorRecipe, recipe_dir: Path, cache: Cache, progress: Progress) -> None:
        self.recipe = recipe
        self.steps = StepRunner(recipe_dir, cache, progress, CODE)
        self.signer = PackageSigner(recipe, self.steps)
        self.training = GeneratorTraining(recipe, self.steps)
        self.exports = GgufExports(self.training)
        self.packages = GeneratorPackages(self.exports, self.signer)

    def prepare(self) -> None:
        """Raise what is missing here, or wrong with the data or the base, before anything long begins."""
        self.training.check_tools()
        self.training.check_inputs()
        self.packages.check()

    def figures(self, ship: bool) -> dict[str, Any]:
        """Run what is left of the plan and gather its figures; see `report.generator_report` for the keys.

        Without `ship` nothing is packed; `side_by_side` adds how fast what was made is, and what tells runs apart.
        """
        recipe, training, exports = self.recipe, self.training, self.exports
        base = training.base
        outcome = training.outcome
        said = self.signer.require_learned(outcome) if ship else outcome.failed or outcome.weak
        return {
            "outcome": said,
            **(self._shipped() if ship else {"files": list(exports.rows_of(exports.compared))}),
            "kind": "generate",
            "recipe": {"name": recipe.name, "description": recipe.description},
            "data": {"statistics": dict(training.data.statistics), "warnings": list(training.data.warnings)},
            "base": {"name": recipe.base.name, "source": base.source, "base_id": base.base_id,
                     "size_bytes": base.size_bytes},
            "train": dict(training.trained.facts),
            "split": training.data.measured[0],
            "exam": {"rows": self._rows_digest(), "tokenizer": training.tokenizer_digest},
            "scores": {
                who: without_rows(scores)
                for who, scores in training.evaluated.facts.items()
            },
            "task": {"max_tokens": recipe.task.max_tokens, "sequences": recipe.gguf.sequences},
            "adapter": dict(exports.adapter_file.facts) if exports.has_adapter else None,
            "steps": self.steps.timings(),
        }  # fmt: skip

    def _rows_digest(self) -> str:
        """What tells whether two plans are scored on the same rows."""
        name = f"{self.training.data.measured[0]}.jsonl"
        return f"{self.training.data_step.digests(name)[name]}, {len(self.training.scored_rows)}"

    def _shipped(self) -> dict[str, Any]:
        """Files, verdicts and packages."""
        exports = self.exports
        gates, passed = exports.judged
        measured = (*exports.adapter_files, *exports.merged_files)
        bare = () if self.recipe.is_new else (exports.bare,)
        return {
            "files": list(exports.rows_of((*bare, *measured) if measured else exports.base_files)),
            "gates": [{"name": gate.name, "holds": gate.holds, "sentence": gate.sentence} for gate in gates],
            "left_out": [[file.form, file.dtype] for file in measured if file not in passed],
            "packages": [one.as_dict() for one in self.signer.shipped(self.packages.packed, (RUNTIME,))],
        }

    def trial(self) -> Mapping[str, Any]:
        """Train and score alone: minus the perplexity of the measured answers (of preferences the share of pairs in
        which the chosen answer is likelier), and minus the least validation loss; `scores` has them by name."""
        record, scores = self.training.trained.facts, self.training.evaluated.facts["tuned"]
        told = {**scores, **scores.get("answers", {}), **scores.get("preferences", {})}
        found: dict[str, Any] = {"score": told["preferred"] if self.recipe.prefers else -scores["perplexity"]}
        found["scores"] = {key: told[key] for key in SEED_SCORES if told.get(key) is not None}
        found |= {"validation": -min(one["validation_loss"] for one in record["curves"])}
        return found | {key: record[key] for key in ("cpu_s", "wall_s", "peak_bytes")}

    def diagnosis(self) -> Mapping[str, Any]:
        """What training did to the weights, beside its record, what was learned and what is left of the base's
        knowledge."""
        training = self.training
        _ = training.questions
        scores = training.evaluated.facts["tuned"]
        return {
            **training.weights_diagnosed.facts, **training.diagnosed.facts,
            "learned": [LEARNED_PREFERENCES, scores["preferences"]["preferred"]] if self.recipe.prefers
            else ["perplexity", scores["perplexity"]],
            "kept": training.kept, "train": dict(training.trained.facts),
        }  # fmt: skip

    def result(self, verb: str) -> Mapping[str, Any]:
        """Run the plan up to the step of a verb, and what the verb prints."""
        results = {
            "train": self._train,
            "evaluate": self._evaluate,
            "export": self._export,
            "quantize": self._quantize,
            "package": self._package,
        }
        self.packages.check()
        return results[verb]()

    def _train(self) -> Mapping[str, Any]:
        trained = self.training.trained
        facts = {key: trained.facts[key] for key in ("method", "wall_s", "peak_bytes")}
        return {"folder": str(trained.path("run")), **facts}

    def _evaluate(self) -> Mapping[str, Any]:
        found: dict[str, Any] = {"split": self.training.data.measured[0]}
        for who, scores in self.training.evaluated.facts.items():
            found |= {f"{who} perplexity": scores["perplexity"]}
            told = without_rows(scores)
            for part in ("answers", "preferences"):
                found |= {f"{who} {key}": value for key, value in told.get(part, {}).items()}
        return found

    def _export(self) -> Mapping[str, Any]:
        exports, found = self.exports, {}
        if exports.has_adapter or self.recipe.is_new:
            found["base"] = str(exports.base_file.path(MODEL_FILE))
        if exports.has_adapter:
            found["adapter"] = str(exports.adapter_file.path(ADAPTER_FILE))
        if exports.has_merged:
            found["merged"] = str(exports.merged_file.path(MODEL_FILE))
        return found

    def _quantize(self) -> Mapping[str, Any]:
        files = (*self.exports.adapter_files, *self.exports.merged_files) or self.exports.base_files
        return {
            f"{file.form} {file.dtype}": f"{size(file.size_bytes)}, " + ", ".join(
                f"{key} {file.figures[key]:.4g}"
                for key in ("perplexity", "sample_perplexity", "exact_match", "bleu", "rouge_l", "preferred", "margin")
                if file.figures.get(key) is not None
            )
            for file in files
        }  # fmt: skip

    def _package(self) -> Mapping[str, Any]:
        self.signer.require_learned(self.training.outcome)
        return {name: str(entry.path(PACKAGE)) for name, (_, entry) in self.packages.packed.items()}


def without_rows(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores of an evaluation set without what they hold of single rows."""
    found = {key: value for key, value in scores.items() if key not in ("row_losses", "row_matches")}
    if "preferences" in found:
        kept = {key: value for key, value in found["preferences"].items() if key != "pair_margins"}
        found["preferences"] = kept
    return found


def side_by_side(plans: Mapping[str, GeneratorPlan], runs: Mapping[str, Figures]) -> Mapping[str, Figures]:
    """The runs with speeds in turns, and with `beside`: by the name of each other run on the same rows in the same
    tokens, how it differs (`report.generator_methods`)."""
    timed = timed_in_turns(plans, runs)
    scores = {name: plan.training.evaluated.facts["tuned"] for name, plan in plans.items()}
    return {
        name: {
            **figures,
            "beside": {
                other: _beside(scores[name], scores[other])
                for other in timed if other != name and timed[other]["exam"] == figures["exam"]
            },
        }
        for name, figures in timed.items()
    }  # fmt: skip


def _beside(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    from edge_forge.evaluate.paired import compare_losses

    counts = [count for _, count in own["row_losses"]]
    sums = [[nats for nats, _ in one["row_losses"]] for one in (own, other)]
    found: dict[str, Any] = {"perplexity": compare_losses(sums[0], sums[1], counts).as_dict()}
    if "preferences" in own:
        shares = [[margin > 0.0 for margin in one["preferences"]["pair_margins"]] for one in (own, other)]
        found["preferred"] = _gain(shares[0], shares[1])
    if "row_matches" in own:
        found["exact_match"] = _gain(own["row_matches"], other["row_matches"])
    return found


def _gain(own: Sequence[bool], other: Sequence[bool]) -> dict[str, float]:
    """By how much the other's share is larger, with its interval (Tango's)."""
    from edge_forge.evaluate.paired import difference_interval

    more = sum(one and not mine for mine, one in zip(own, other, strict=True))
    fewer = sum(mine and not one for mine, one in zip(own, other, strict=True))
    interval = difference_interval(len(own), more, fewer)
    return {"gain": (more - fewer) / len(own), "gain_low": interval.low, "gain_high": interval.high}


def timed_in_turns(plans: Mapping[str, GeneratorPlan], runs: Mapping[str, Figures]) -> Mapping[str, Figures]:
    """The runs with speeds (`speed` of each file) that were measured in turns over all files of all plans: medians and
    intervals of first token and tokens/s, and the ratio of tokens/s to the first file's."""
    keyed = {
        name: [(plan.exports.timing_key(file), file) for file in plan.exports.compared] for name, plan in plans.items()
    }
    owners: dict[str, tuple[GgufExports, GgufVariant]] = {}
    for name, files in keyed.items():
        for key, file in files:
            owners.setdefault(key, (plans[name].exports, file))

    def work(_: Path) -> Mapping[str, Any]:
        from edge_forge.evaluate.measure_gguf import speeds_in_turns
        from edge_forge.evaluate.paired import speeds

        asked = [exports.asked(file) for exports, file in owners.values()]
        return speeds(dict(zip(owners, speeds_in_turns(asked, _ROUNDS), strict=True)))

    steps = next(iter(plans.values())).steps
    inputs = {f"{place}": key for place, key in enumerate(owners)}
    facts = steps.run("gguf-speed", inputs, {"rounds": _ROUNDS}, work, "speed of all in turns").facts
    return {
        name: {
            **figures,
            "files": [
                {**one, "speed": facts[key]} for one, (key, _) in zip(figures["files"], keyed[name], strict=True)
            ],
        }
        for name, figures in runs.items()
    }
