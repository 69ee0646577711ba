"""The part of a classifier's plan that makes its base smaller: a tuned teacher, and the student cut out of it.

    data, base ─▶ train (teacher) ─▶ distill ─▶ base of the recipe ─▶ train, export ... as on any base

The student is a folder like any base, whose `base_id` is a digest of what it computes (decision 0170). So the recipe's
method, the adapter bank and every export work on it as on its teacher's base.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_agent.base.errors import EdgeError
from edge_forge.data import knowledge_files
from edge_forge.data.classifier_rows import normal
from edge_forge.models import bases
from edge_forge.plan.cache import StepResult
from edge_forge.plan.cost import foretold, host_flops_per_s
from edge_forge.plan.step_runner import StepRunner, plain, with_log
from edge_forge.progress import Phases
from edge_forge.recipe.classifier_recipe import ClassifierRecipe, CompressSection, with_method
from edge_forge.train import settings as presets
from edge_forge.train.methods import FULL, METHODS
from edge_forge.train.settings import INT8, TrainSettings

if TYPE_CHECKING:
    # A training asks its compression for its base, and a compression is of two trainings.
    from edge_forge.plan.classifier_training import ClassifierTraining

_KEPT = ("seed", "threads", "precision", "processes", "report_to", "max_tokens")


def teacher_recipe(recipe: ClassifierRecipe) -> ClassifierRecipe:
    """The recipe of the teacher: the same rows and base, whole, tuned by `compress.teacher` and merged.

    Of `[method]` and `[train]` it takes nothing that one tries values of: runs that are compared, and trials of a
    sweep, have one base (decision 0229).
    """
    section = recipe.compress
    tuned = with_method(recipe, section.teacher, "")
    own = {"epochs": section.teacher_epochs, "learning_rate": section.teacher_learning_rate}
    train = {key: value for key, value in tuned.train.items() if key != "epochs"}
    train |= {key: value for key, value in own.items() if value}
    return msgspec.structs.replace(
        tuned,
        train={**train, "precision": _precision(recipe)},
        compress=CompressSection(),
        export=msgspec.structs.replace(recipe.export, banked=False, merged=True),
        quantize=msgspec.structs.replace(recipe.quantize, litert=(), tensorrt=()),
    )


def _precision(recipe: ClassifierRecipe) -> str:
    """That of teacher and distillation: what INT8 computes is learned by the recipe's own training, which is last."""
    own = recipe.training.precision
    return "auto" if own == INT8 else own


class Compression:
    """The smaller base of a recipe, and the training of the teacher that it comes from."""

    def __init__(self, recipe: ClassifierRecipe, teacher: ClassifierTraining, steps: StepRunner) -> None:
        self.recipe = recipe
        self.teacher = teacher
        self.steps = steps

    def check_inputs(self) -> None:
        """Raise what is wrong with the teacher's inputs or the cut before anything long. Raises ConfigError."""
        section, facts = self.recipe.compress, self.foretold.facts
        self.steps.progress.say(
            f"compress: a teacher is tuned first ({METHODS[section.teacher].title}), then {self.kept} are taught by "
            f"it: {facts['smaller']:,} weights of {facts['parameters']:,}"
        )
        self.teacher.check_inputs()
        _ = self.further

    @cached_property
    def foretold(self) -> StepResult:
        """Layers, heads, neurons and weights by cutting the untuned base."""
        base, section = self.teacher.base, self.recipe.compress
        cut = [section.layers, section.heads, section.feed_forward]

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.models.smaller import Cut, foretell

            return foretell(base.directory, Cut(*cut), "compress")

        return self.steps.run("cut", {"base": base.base_id}, {"cut": cut}, work, "cut of the base")

    @property
    def kept(self) -> str:
        """What stays, for people: '3 of 6 layers, 6 of 12 heads'."""
        section, facts = self.recipe.compress, self.foretold.facts
        parts = (
            (section.layers, facts["layers"], "layers"), (section.heads, facts["heads"], "heads of a layer"),
            (section.feed_forward, facts["neurons"], "feed-forward neurons of a layer"),
        )  # fmt: skip
        return ", ".join(f"{stay} of {has} {what}" for stay, has, what in parts if stay)

    @cached_property
    def further(self) -> list[tuple[Any, str]]:
        """The texts of `compress.unlabelled` as rows; the label is a stand-in that no loss reads.

        Texts of validation and test rows are left out: a student that was taught on them would be scored too well.
        """
        name, data = self.recipe.compress.unlabelled, self.teacher.data
        if not name:
            return []
        path = self.steps.recipe_dir / Path(name).expanduser()
        found = knowledge_files.texts(path, bool(self.recipe.data.text_pair))
        measured = {normal(row.text) for split in ("validation", "test") for row in data.splits[split]}
        kept = [text for text in found if normal(text) not in measured]
        if len(kept) < len(found):
            self.steps.progress.warn(
                f"{path}: {len(found) - len(kept)} of {len(found)} texts are validation or test rows; they are left out"
            )
        return [(text, data.labels[0]) for text in kept]

    @property
    def settings(self) -> TrainSettings:
        """How the student is trained: every weight, with the recipe's own seed, threads and processes."""
        section, own = self.recipe.compress, self.recipe.training
        values: dict[str, object] = {key: getattr(own, key) for key in _KEPT}
        values |= {"precision": _precision(self.recipe)}
        values |= {"epochs": section.epochs, "learning_rate": section.learning_rate, "batch_size": section.batch_size}
        return presets.settings(FULL.name, "best", {**values, "head_learning_rate_ratio": 1.0}, "compress")

    @cached_property
    def distilled(self) -> StepResult:
        """`run/base/`: the student's folder."""
        with self.steps.progress.unwatched():
            return self._distilled()

    def _distilled(self) -> StepResult:
        teacher, section, settings = self.teacher, self.recipe.compress, self.settings
        base, rows = teacher.base, teacher.data
        inputs = {
            "base": base.base_id, "tokenizer": teacher.tokenizer_digest, **teacher.trained_digests,
            **teacher.data_step.digests("train.jsonl", "validation.jsonl"),
        }  # fmt: skip
        if section.unlabelled:
            inputs["unlabelled"] = hashlib.sha256(json.dumps(self.further).encode()).hexdigest()
        terms = {**plain(section), "unlabelled": "", "teacher": "", "teacher_epochs": 0, "teacher_learning_rate": 0}
        key = {"labels": list(rows.labels), **dataclasses.asdict(settings), "report_to": [], "lesson": terms}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.train.distillation_job import DistillationSettings, distill

            self.steps.progress.say(self._cost())
            phases = Phases(self.steps.progress, "distill")
            phases("start", 0.0)
            try:
                record = distill(
                    base=base,
                    rows=((*rows.train, *self.further), rows.validation),
                    labels=rows.labels,
                    settings=settings,
                    terms=DistillationSettings(
                        teacher.trained.path("run"),
                        section.layers,
                        section.heads,
                        section.feed_forward,
                        len(rows.train),
                        section.temperature,
                        section.hidden,
                    ),
                    places=(folder / "run", self.steps.run_folders(folder)),
                    progress=phases,
                )
            except EdgeError as error:
                raise with_log(error, folder / "run" / "train.log", self.steps.cache.root) from error
            finally:
                phases.done()
            return dataclasses.asdict(record)

        return self.steps.run("distill", inputs, key, work)

    def _cost(self) -> str:
        """What the distillation will cost: its steps compute the student forward and backward, the teacher forward."""
        facts, ahead = self.foretold.facts, self.teacher.work_ahead
        share = facts["smaller"] / facts["parameters"] + 1 / 3
        rows = ahead.rows + len(self.further)
        return foretold(
            ahead._replace(
                rows=rows, tokens=ahead.tokens * rows // ahead.rows, epochs=self.recipe.compress.epochs,
                weights=round(ahead.weights * share), frozen_share=0.0,
            ),
            host_flops_per_s(),
        )  # fmt: skip

    @cached_property
    def base(self) -> bases.Base:
        """The student."""
        found = bases.resolve([f"dir:{self.distilled.path('run/base').absolute()}"], self.steps.recipe_dir)
        return dataclasses.replace(found, source=f"{self.kept} of {self.teacher.base.source}, distilled")

    def figures(self) -> dict[str, Any]:
        """What the cut is and what it cost: `kept` in words, `parameters`, and time and memory of both trainings."""
        facts, record, taught = self.foretold.facts, self.distilled.facts, self.teacher.trained.facts
        return {
            "kept": self.kept,
            "parameters": [facts["parameters"], facts["smaller"]],
            "teacher": {key: taught[key] for key in ("method", "cpu_s", "wall_s", "peak_bytes")},
            "distill": {key: record[key] for key in ("cpu_s", "wall_s", "peak_bytes", "curves", "best_epoch")},
        }
