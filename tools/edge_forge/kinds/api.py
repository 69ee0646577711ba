"""The parts of a kind of recipe: its recipe, its plan, its reports. The commands use nothing else of a kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edge_forge.models.bases import Base
from edge_forge.plan.cache import Cache, StepResult
from edge_forge.plan.cost import TrainingWork
from edge_forge.plan.signing import PackageSigner
from edge_forge.plan.step_runner import StepRunner
from edge_forge.progress import Progress
from edge_forge.recipe.schema import CommonRecipe, RecipeSchema
from edge_forge.report.blocks import Block, Table

Figures = Mapping[str, Any]
"""What a build measured, as JSON values."""


class RecipePlan(Protocol):
    """The steps of one recipe in one build folder, composed of training, exports and packages of its kind."""

    @property
    def recipe(self) -> CommonRecipe:
        """The recipe."""

    @property
    def steps(self) -> StepRunner:
        """The runner of the steps; it holds the build folder and the progress lines."""

    @property
    def signer(self) -> PackageSigner:
        """What signs the packages."""

    @property
    def training(self) -> TrainingPart:
        """The part that trains."""

    def prepare(self) -> None:
        """Raise what is missing or wrong before anything long begins."""

    def figures(self, ship: bool) -> dict[str, Any]:
        """Run every step (without `ship`: up to the measured variants) and gather what was measured."""

    def trial(self) -> Mapping[str, Any]:
        """Train and score alone: `score` on the measured split and `validation`, both better where larger, `cpu_s`,
        `wall_s`, `peak_bytes`."""

    def diagnosis(self) -> Mapping[str, Any]:
        """Train, and what training did to the weights and to what the base knew: the figures that
        `report.diagnosis_report` shows."""

    def result(self, verb: str) -> Mapping[str, Any]:
        """Run the plan up to the step of a verb, and what the verb prints."""


class TrainingPart(Protocol):
    """The part of a plan that trains."""

    @property
    def steps(self) -> StepRunner:
        """The runner of the steps."""

    @property
    def data(self) -> Any:
        """The checked rows of each split, of the kind's own class."""

    @property
    def data_step(self) -> StepResult:
        """The checked rows."""

    @property
    def base(self) -> Base:
        """The base model where it is on this machine."""

    @property
    def trained(self) -> StepResult:
        """The trained result; its facts are those of a `TrainRecord`."""

    @property
    def weights_diagnosed(self) -> StepResult:
        """What training did to each weight: `weights`, `spectra.WeightDiagnosis` as plain values."""

    @property
    def work_ahead(self) -> TrainingWork:
        """What the training will read and compute."""

    @property
    def questions(self) -> Any:
        """What the recipe asks of the base's knowledge (`evaluate.forgetting.Questions`). Raises ConfigError."""

    @property
    def kept(self) -> Mapping[str, Mapping[str, float]]:
        """{before, after, lost} by question; empty where the recipe asks none."""

    def check_inputs(self) -> None:
        """Raise what is wrong with the data or the base before anything long begins."""

    @property
    def made_base(self) -> Path:
        """The folder of a base with what was trained folded into its weights."""

    def remembered_by(self, later: Any) -> Mapping[str, float]:
        """Scores by name, the most telling one first, on this task's measured rows of the model that `later` made, a
        training of the same family that began with what this one made, or this one itself."""


@dataclass(frozen=True)
class Score:
    """By what trainings of a kind are compared with each other: an entry of `TrainRecord.curves`."""

    key: str
    title: str
    maximise: bool
    step: str
    """The name of the training step."""
    error: Callable[[Mapping[str, float], int], float]
    """(entry, validation rows) -> its standard error by the number of rows; 0 where it is not known."""


@dataclass(frozen=True)
class RecipeParts:
    """How a recipe of a kind is read and changed."""

    schema: RecipeSchema
    parse: Callable[[Mapping[str, Any], str, Mapping[str, str]], Any]
    """(parsed TOML, where it stands, environment) -> the recipe. Raises ConfigError."""
    with_method: Callable[[Any, str, str], Any]
    """(recipe, method, preset or '') -> the recipe by that method. Raises ConfigError, UsageError."""
    check_sequence: Callable[[Any], None]
    """Raises UsageError where a recipe cannot be one of several that are trained one after another."""
    template: str
    """The file of `recipe/templates` that `edge-forge init` fills."""
    sample: str
    """The file of `recipe/templates` with a few rows that build."""
    defaults: Any
    """The settings that the template shows."""


@dataclass(frozen=True)
class ReportParts:
    """The reports of a kind: of one build, and of several runs side by side."""

    report: Callable[[Figures], list[Block]]
    score_lines: Callable[[Figures], list[str]]
    comparison: Callable[[Mapping[str, Figures]], list[Block]]
    comparison_tables: Callable[[Mapping[str, Figures]], Sequence[Table]]
    recommendation: Callable[[Mapping[str, Figures]], str]
    """Which run to take and why, in a sentence or more; '' where nothing can be said."""


@dataclass(frozen=True)
class Kind:
    """One kind of recipe. `name` is the value of `task.kind`, and the verb that says what its models do."""

    name: str
    recipe: RecipeParts
    plan: Callable[[Any, Path, Cache, Progress], RecipePlan]
    """(recipe, its folder, build folder, progress) -> its plan, which names the loader, trainer and exports."""
    report: ReportParts
    score: Score
    family: str
    """What its bases are: tasks of one family may be trained one after another on one base."""
    question: Callable[[Any], Sequence[str]]
    """(`TrainingPart.data`) -> a question out of the measured rows, as words behind the model of `edge-agent infer`."""
    side_by_side: Callable[[Mapping[str, Any], Mapping[str, Figures]], Mapping[str, Figures]]
    """(plans by run, figures by run) -> the figures with what only all runs together tell: speeds that were measured in
    turns over all of them, and how runs differ row by row."""
