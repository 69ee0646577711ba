"""The recipe of a classifier: its sections, and what is checked before anything runs.

Every key has a type, bounds and a default. An unknown key is an error that names the file, the key and the nearest
known one, so that a typing error never falls back to a default. `docs/recipe.md` lists the keys; `edge-forge init`
writes a commented recipe. This module loads no runtime.

Values that name places (`base.source`, the files of `data`, `package.keys`) may hold `${NAME}` or `${NAME:-default}`.
Relative paths start at the recipe's folder; those that a variable brings start at the current folder.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edge_agent.base.errors import ConfigError, UsageError
from edge_agent.base.limits import ANSWER_TOKENS, LABELS
from edge_forge.data.text_files import one_label
from edge_forge.recipe import schema as recipe_form
from edge_forge.recipe.schema import (
    CommonRecipe,
    DiagnoseSection,
    NotNegative,
    Positive,
    RecipeSchema,
    Section,
    Share,
)
from edge_forge.train import settings as presets
from edge_forge.train.methods import ADAPTER, FULL, LORA, MERGED, METHODS, name_of
from edge_forge.train.settings import TrainSettings, replaced

Dtype = Literal["fp32", "fp16", "int8"]
LiteRtDtype = Literal["fp32", "int8"]
BANK_RANK = 64
"""The largest rank that a bank can be made for."""


class ClassifierTaskSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[task]`: what the model answers."""

    kind: Literal["classify", "slots", "answers"] = "classify"
    """What has a label: the text, or spans of it; `answers`: a question is answered by a span of its context."""
    labels: tuple[str, ...] = ()
    """The order of the classes; empty: the sorted labels of the training data."""
    max_tokens: Annotated[int, msgspec.Meta(ge=8, le=512)] = 64
    """A longer text is cut, and the answer says so; a longer context of a question is read in windows."""
    window_overlap: Annotated[int, msgspec.Meta(ge=0, le=256)] = 64
    """Of answers: tokens of a long context that neighbouring windows share."""
    answer_tokens: Annotated[int, msgspec.Meta(ge=1, le=ANSWER_TOKENS)] = 30
    """Of answers: the longest answer."""
    threshold: Share = 0.0
    """Below this probability the answer is `out_of_scope`."""
    out_of_scope: str | None = None
    """The label that stands for 'none of these'; with a threshold no row needs to have it."""

    def __post_init__(self) -> None:
        # Labels are compared, counted and answered in one form; the rows' labels are brought to it as they are read.
        msgspec.structs.force_setattr(self, "labels", tuple(map(one_label, self.labels)))
        if self.out_of_scope is not None:
            msgspec.structs.force_setattr(self, "out_of_scope", one_label(self.out_of_scope))


class ClassifierDataSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[data]`: local files, or a hub data set by id."""

    train: str = ""
    validation: str = ""
    """Empty: a stratified share of the training rows, drawn by `seed`."""
    test: str = ""
    """Empty: the figures of the report are those of the validation split, and it says so."""
    hub: str = ""
    """A data set id (with `datasets` installed); `hub_config` and the splits' names as below."""
    hub_config: str = ""
    hub_splits: Mapping[str, str] = {}
    """Where the hub names its splits otherwise: `{validation = "dev"}`; an empty name: the split is not used."""
    format: Literal["", "tsv", "csv", "jsonl", "squad"] = ""
    """Empty: by the file's suffix."""
    columns: tuple[str, ...] = ()
    """The columns' names in a TSV or CSV file without a header row; empty: the first row is the header."""
    text: str = "text"
    """The column (or JSON key) that holds the text."""
    text_pair: str = ""
    """The column (or JSON key) of the second text, where the task takes pairs of texts; empty: it takes one text."""
    label: str = "label"
    """The column (or JSON key) that holds the label."""
    label_names: Mapping[str, str] = {}
    """Names for raw labels, such as `0 = "negative"`."""
    validation_share: Annotated[float, msgspec.Meta(gt=0.0, lt=0.9)] = 0.15
    seed: int = 17
    max_rows: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Use at most so many rows per split, drawn with the classes' shares kept, but one of each class; 0: all.
    For trying a recipe out."""


class CompressSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[compress]`: a smaller encoder, cut out of a tuned teacher and taught by it, is the base of this recipe."""

    layers: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    """So many layers stay, at even distances; 0: all."""
    heads: Annotated[int, msgspec.Meta(ge=0, le=1024)] = 0
    """So many attention heads of every layer stay, the most important ones; 0: all."""
    feed_forward: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0
    """So many feed-forward neurons of every layer stay, the most important ones; 0: all."""
    teacher: str = FULL.name
    """The method by which the teacher is tuned on the training rows (one of `METHODS` that can be merged)."""
    teacher_epochs: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    """Passes of the teacher; 0: those of its preset."""
    teacher_learning_rate: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    """Step size of the teacher; 0: that of its preset."""
    temperature: Annotated[float, msgspec.Meta(gt=0.0, le=100.0)] = 2.0
    """Of the logits that are compared."""
    hidden: NotNegative = 1.0
    """Weight of the distance between hidden states, relative to their size; 0: logits alone."""
    epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    learning_rate: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 2e-4
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 32
    unlabelled: str = ""
    """A file of further texts (column or key `text`, of pairs also `text_pair`), which the teacher answers too."""

    @property
    def wanted(self) -> bool:
        """Whether anything is cut."""
        return self.layers > 0 or self.heads > 0 or self.feed_forward > 0


class OnnxExportSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[export]`: which ONNX graphs are made."""

    banked: bool = True
    """The base with the adapter bank as inputs, and the adapter beside it (LoRA only)."""
    merged: bool = True
    """Base and adapter folded into one graph."""
    bank_rank: Annotated[int, msgspec.Meta(ge=1, le=BANK_RANK)] = 16
    bank_labels: Annotated[int, msgspec.Meta(ge=2, le=LABELS)] = 256
    """The most labels of an adapter of this base. Devices pay for the labels that adapters have, not for this bound."""
    bank_tokens: Annotated[int, msgspec.Meta(ge=8, le=512)] = 128
    """The longest text of the base and of any adapter on it, in tokens; it sets the memory that a device needs."""
    parity_tolerance: Positive = 1e-3
    """Largest absolute difference of logits and features against PyTorch, FP32 on both sides."""


class OnnxQuantizeSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[quantize]`: the number formats that are tried, and what they may cost."""

    variants: tuple[Dtype, ...] = ("fp32", "fp16", "int8")
    tensorrt: tuple[Dtype, ...] = ()
    """Formats of further variants for TensorRT on a Jetson, with the same adapters; empty: none. INT8 is not for a
    Nano. They are judged by an emulation on this host; the golden probes decide on the device."""
    tensorrt_engines: str = ""
    """A folder of engines that devices built from those variants and proved (KEY.plan, KEY.proven); a package carries
    them to devices of the same kind."""
    litert: tuple[LiteRtDtype, ...] = ()
    """Formats of further variants of the merged model for LiteRT, which has no adapters; empty: none."""
    max_loss_points: NotNegative = 0.5
    """Accuracy that a variant may lose against FP32, in percentage points of the test split."""
    min_agreement: Share = 0.95
    """Share of the texts that a variant must answer as FP32 does."""
    max_logit_error: NotNegative = 0.25
    """Root mean square difference of its logits from FP32's, over the root mean square of FP32's."""
    beyond: Literal["leave-out", "fail"] = "leave-out"
    """What happens to a variant whose interval of one of these lies beyond its limit."""


class ClassifierDiagnoseSection(DiagnoseSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[diagnose]` of an encoder: also what shows whether it forgets."""

    similarity: str = ""
    """A file of sentence pairs with scores (text_a, text_b, score): Spearman's correlation with the cosines of the
    embeddings, before and after."""
    earlier: tuple[str, ...] = ()
    """Recipes of other tasks: a linear probe of each on the features, by the base's and by those of what was tuned."""


class ClassifierRecipe(CommonRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole recipe of an encoder."""

    task: ClassifierTaskSection = ClassifierTaskSection()
    diagnose: ClassifierDiagnoseSection = ClassifierDiagnoseSection()
    data: ClassifierDataSection = ClassifierDataSection()
    method: Mapping[str, Any] = {}
    """`[method]`: `name` (one of `METHODS`), `preset`, and those keys of `TrainSettings` in `METHOD_KEYS`."""
    train: Mapping[str, Any] = {}
    """`[train]`: the other keys of `TrainSettings`; what is absent is the preset's."""
    compress: CompressSection = CompressSection()
    export: OnnxExportSection = OnnxExportSection()
    quantize: OnnxQuantizeSection = OnnxQuantizeSection()

    @property
    def slots(self) -> bool:
        """Whether spans of a text have labels, and not the text."""
        return self.task.kind == "slots"

    @property
    def answers(self) -> bool:
        """Whether questions are answered by spans of a context."""
        return self.task.kind == "answers"

    @property
    def of_tokens(self) -> bool:
        """Whether tokens have logits, and not the text."""
        return self.slots or self.answers

    @property
    def pairs(self) -> bool:
        """Whether a row has two texts."""
        return self.answers or bool(self.data.text_pair)

    @property
    def training(self) -> TrainSettings:
        """The settings of the training run: the preset, overlaid with `[method]` and `[train]`."""
        return _training(self, "recipe")


# The keys of TrainSettings that say what is adapted; the others say how it is optimised and stand in [train].
METHOD_KEYS = ("rank", "alpha", "targets", "first_layer", "frozen_share", "lora_plus_ratio")
# Keys of [train] that are no choice of values for one method.
_OF_EVERY_METHOD = ("epochs", "seed", "threads", "precision", "processes", "report_to", "class_weights")
_TABLES: Mapping[str, tuple[str, ...]] = {
    "method": ("name", "preset", *METHOD_KEYS),
    "train": tuple(
        field.name
        for field in dataclasses.fields(TrainSettings)
        if field.name
        not in (
            "method",
            "preset",
            "max_tokens",
            "slots",
            "answers",
            "window_overlap",
            "calibration_tokens",
            *METHOD_KEYS,
        )
    ),
}
SCHEMA = RecipeSchema(ClassifierRecipe, _TABLES)


def load(path: Path, environment: Mapping[str, str] | None = None) -> ClassifierRecipe:
    """The recipe in a file. Raises ConfigError that names the file and the key."""
    return parse(recipe_form.read(path), str(path), os.environ if environment is None else environment)


def parse(raw: Mapping[str, Any], where: str, environment: Mapping[str, str]) -> ClassifierRecipe:
    """The recipe in a parsed TOML document; `where` names the file in errors."""
    recipe = recipe_form.convert(raw, where, environment, SCHEMA, ClassifierRecipe)
    _check_relations(recipe, where)
    return recipe


def with_method(recipe: ClassifierRecipe, method: str, preset: str) -> ClassifierRecipe:
    """The recipe by another method or preset ('' is the usual one).

    Of [train] those keys stay that concern every method; the others say nothing about another method, which starts from
    its preset.
    """
    train = {key: value for key, value in recipe.train.items() if key in _OF_EVERY_METHOD}
    return msgspec.structs.replace(recipe, method={"name": method, "preset": preset or "best"}, train=train)


def check_sequence(recipe: ClassifierRecipe) -> None:
    """Raise UsageError where the task cannot be one of several that are trained one after another."""
    if recipe.of_tokens:
        raise UsageError(
            f"{recipe.name}: a sequence asks what is left of classes of texts, and these are {recipe.task.kind}",
            "sequence", "name recipes of classifiers",
        )  # fmt: skip
    if recipe.compress.wanted:
        raise UsageError(
            f"{recipe.name} makes a base of its own, so no other task can follow on it", "sequence",
            "leave its compression out: --set compress.layers=0",
        )  # fmt: skip


def _check_relations(recipe: ClassifierRecipe, where: str) -> None:
    """What no single key shows to be wrong."""
    data, task = recipe.data, recipe.task

    def wrong(key: str, what: str, remedy: str | None = None) -> ConfigError:
        return ConfigError(what, f"{where}: {key}", remedy)

    if bool(data.train) == bool(data.hub):
        raise wrong("data.train", "exactly one of data.train and data.hub is needed")
    wanted = [data.text, *filter(None, [data.text_pair]), data.label]
    if data.columns and not set(wanted) <= set(data.columns):
        raise wrong("data.columns", f"it must hold {' and '.join(map(repr, wanted))}")
    if len(set(wanted)) < len(wanted):
        raise wrong("data.text_pair" if data.text_pair else "data.label", f"two of {', '.join(wanted)} are one column")
    if len(set(task.labels)) != len(task.labels):
        raise wrong("task.labels", "a label is named twice")
    if recipe.slots:
        _check_slots(recipe, wrong)
    _check_answers(recipe, wrong)
    if len(task.labels) == 1 and not recipe.of_tokens:
        raise wrong("task.labels", "a classifier needs at least two labels")
    if task.out_of_scope is not None and task.labels and task.out_of_scope not in task.labels and not task.threshold:
        raise wrong(
            "task.out_of_scope",
            f"{task.out_of_scope!r} is not among task.labels, and without task.threshold nothing else leads to it",
            "add it to task.labels and rows with it, or set task.threshold",
        )
    if task.threshold > 0.0 and task.out_of_scope is None:
        raise wrong(
            "task.threshold", "a threshold needs task.out_of_scope: the label that is answered below it",
            'set out_of_scope = "unsure"; no row needs to have that label',
        )  # fmt: skip
    _check_compression(recipe, wrong)
    training = _training(recipe, where)
    method = METHODS[training.method]
    if not (method.exportable_to(ADAPTER) or recipe.export.merged):
        raise wrong("export.merged", f"{method.title} is shipped {method.on_devices}", "set export.merged = true")
    if not (recipe.export.merged or recipe.export.banked):
        raise wrong("export", "both forms are switched off: nothing would be made")
    banked = recipe.export.banked and method.exportable_to(ADAPTER)
    needed = method.bank_rank(training.rank)
    if needed > recipe.export.bank_rank and banked:
        raise wrong(
            "export.bank_rank", f"the bank holds rank {recipe.export.bank_rank}, the method's is {needed}",
            f"set bank_rank = {needed}" if needed <= BANK_RANK
            else f"set rank = {BANK_RANK // method.rank_factor} at most",
        )  # fmt: skip
    if banked and task.max_tokens > recipe.export.bank_tokens:
        raise wrong(
            "export.bank_tokens", f"the base takes {recipe.export.bank_tokens} tokens, the task {task.max_tokens}",
            f"set bank_tokens = {task.max_tokens}, or banked = false",
        )  # fmt: skip
    _check_formats(recipe, wrong)


def _check_formats(recipe: ClassifierRecipe, wrong: Callable[..., ConfigError]) -> None:
    if "fp32" not in recipe.quantize.variants:
        raise wrong("quantize.variants", "fp32 must be among them: the others are measured against it")
    if recipe.quantize.tensorrt_engines and not recipe.quantize.tensorrt:
        raise wrong(
            "quantize.tensorrt_engines", "there are no variants for TensorRT that they could belong to",
            'set tensorrt = ["fp16"], or leave tensorrt_engines out',
        )  # fmt: skip
    if recipe.quantize.litert and not recipe.export.merged:
        raise wrong(
            "quantize.litert", "LiteRT takes no adapters: its variants are of the merged model, which is switched off",
            "set export.merged = true, or litert = []",
        )  # fmt: skip


def _check_compression(recipe: ClassifierRecipe, wrong: Callable[..., ConfigError]) -> None:
    section = recipe.compress
    if section.teacher not in METHODS:
        raise wrong(
            "compress.teacher", f"the method {section.teacher!r} is not known", f"use one of {', '.join(METHODS)}"
        )
    teacher = METHODS[section.teacher]
    if not teacher.exportable_to(MERGED):
        raise wrong(
            "compress.teacher", f"{teacher.title} cannot be folded into the weights that the student is cut out of",
            'use "full" or "lora"',
        )  # fmt: skip


def _check_slots(recipe: ClassifierRecipe, wrong: Callable[[str, str, str | None], ConfigError]) -> None:
    """What belongs to classifiers of whole texts alone."""
    data, task, start = recipe.data, recipe.task, ClassifierDataSection()
    for key in ("hub", "columns", "text_pair", "label"):
        if getattr(data, key) != getattr(start, key):
            raise wrong(f"data.{key}", "slots have rows of JSONL with text and spans", f"leave {key} out")
    if data.format not in ("", "jsonl"):
        raise wrong("data.format", "rows of slots are JSONL", 'set format = "jsonl"')
    if task.out_of_scope is not None or task.threshold:
        key = "task.threshold" if task.threshold else "task.out_of_scope"
        raise wrong(key, "it belongs to a classifier: a text may have no span", "leave it out; requests have params")
    for key in ("litert", "tensorrt"):
        if getattr(recipe.quantize, key):
            raise wrong(f"quantize.{key}", "slots run on ONNX Runtime alone", f"set {key} = []")
    if recipe.compress.wanted:
        raise wrong("compress", "a smaller base is made for classifiers of whole texts", "leave [compress] out")
    if recipe.training.precision == "int8":
        raise wrong("train.precision", "training in INT8 is for classifiers of whole texts", 'set precision = "auto"')
    if recipe.training.consistency:
        raise wrong("train.consistency", "it compares answers to whole texts", "set consistency = 0")


def _check_answers(recipe: ClassifierRecipe, wrong: Callable[[str, str, str | None], ConfigError]) -> None:
    """What belongs to classifiers alone, or to answers, and how windows have to be."""
    if not recipe.answers:
        _check_no_answers(recipe, wrong)
        return
    data, task, start = recipe.data, recipe.task, ClassifierDataSection()
    for key in ("hub", "columns", "text", "text_pair", "label", "label_names"):
        if getattr(data, key) != getattr(start, key):
            raise wrong(f"data.{key}", "answers have questions and contexts in SQuAD's form", f"leave {key} out")
    if data.format not in ("", "squad", "jsonl"):
        raise wrong("data.format", "rows of answers are SQuAD's JSON or JSONL", 'set format = "squad"')
    for key in ("labels", "out_of_scope", "threshold"):
        if getattr(task, key) != getattr(ClassifierTaskSection(), key):
            raise wrong(f"task.{key}", "it belongs to a classifier", f"leave {key} out; requests have params.threshold")
    if 2 * task.window_overlap > task.max_tokens:
        raise wrong(
            "task.max_tokens", f"windows of {task.max_tokens} tokens that share {task.window_overlap} read little",
            f"set max_tokens = {max(256, 2 * task.window_overlap)}, or a smaller window_overlap",
        )  # fmt: skip
    unfit = {
        "quantize.litert": (bool(recipe.quantize.litert), "answers run on ONNX Runtime alone", "[]"),
        "quantize.tensorrt": (bool(recipe.quantize.tensorrt), "answers run on ONNX Runtime alone", "[]"),
        "train.precision": (recipe.training.precision == "int8", "int8 is for classifiers", '"auto"'),
        "train.class_weights": (recipe.training.class_weights != "none", "they are for classifiers", '"none"'),
        "train.consistency": (recipe.training.consistency > 0, "it compares answers to whole texts", "0"),
        "train.label_smoothing": (recipe.training.label_smoothing > 0, "it is for classifiers", "0"),
        "compress.layers": (recipe.compress.wanted, "a smaller base is made for classifiers of whole texts", "0"),
    }
    for where, (found, what, value) in unfit.items():
        if found:
            raise wrong(where, what, f"set {where.rpartition('.')[2]} = {value}")


def _check_no_answers(recipe: ClassifierRecipe, wrong: Callable[[str, str, str | None], ConfigError]) -> None:
    if recipe.data.format == "squad":
        raise wrong("data.format", "SQuAD's form is of answers", 'set task.kind = "answers"')
    for key in ("window_overlap", "answer_tokens"):
        if getattr(recipe.task, key) != getattr(ClassifierTaskSection(), key):
            raise wrong(f"task.{key}", "it belongs to answers", f'leave {key} out, or set task.kind = "answers"')


def _training(recipe: ClassifierRecipe, where: str) -> TrainSettings:
    method = dict(recipe.method)
    name, preset = name_of(method.pop("name", LORA.name), f"{where}: method"), str(method.pop("preset", "best"))
    start = presets.settings(name, preset, method, f"{where}: method")
    found = replaced(start, {**recipe.train, "max_tokens": recipe.task.max_tokens}, f"{where}: train")
    overlap = recipe.task.window_overlap if recipe.answers else 0
    return dataclasses.replace(found, slots=recipe.slots, answers=recipe.answers, window_overlap=overlap)
