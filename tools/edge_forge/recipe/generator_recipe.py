"""The recipe of a generator: its sections, and what is checked before anything runs.

`task.kind = "generate"` learns answers or texts, "prefer" which of two answers is better; they differ in a few keys.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from edge_agent.base.errors import ConfigError, UsageError
from edge_agent.base.limits import CONTEXT_TOKENS
from edge_agent.bundle.gguf_memory import SEQUENCES_OPTION
from edge_forge.recipe import schema as recipe_form
from edge_forge.recipe.schema import CommonRecipe, DiagnoseSection, NotNegative, Positive, RecipeSchema, Section, Share
from edge_forge.train.generator_settings import GeneratorSettings
from edge_forge.train.generator_settings import settings as training_settings
from edge_forge.train.methods import ADAPTER, EVERYTHING, LORA, METHODS, name_of
from edge_forge.train.settings import replaced

Dtype = Literal["f16", "q8_0", "q4_k_m", "q4_0"]
KvType = Literal["f16", "q8_0"]
Count = Annotated[int, msgspec.Meta(ge=1)]
NEW = "new:llama"
OF_RECIPE = "recipe:"
PREFER = "prefer"


class GeneratorTaskSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[task]`: what the model answers."""

    kind: Literal["generate", "prefer"]
    max_tokens: Annotated[int, msgspec.Meta(ge=16, le=CONTEXT_TOKENS)] = 1024
    """Context of one sequence, prompt and answer together: the length of training rows, and what devices are told."""
    chat: Literal["auto", "yes", "no"] = "auto"
    """Whether prompts are put into the model's chat template; auto: where it has one."""


class NewModelSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[new]`: the shape of a Llama with random weights and a tokenizer of its own (`base.source = "new:llama"`)."""

    vocabulary: Annotated[int, msgspec.Meta(ge=300, le=65536)] = 2048
    hidden: Annotated[int, msgspec.Meta(ge=32, le=4096, multiple_of=32)] = 256
    layers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    heads: Count = 4
    kv_heads: Count = 2
    feed_forward: Annotated[int, msgspec.Meta(ge=32, le=16384, multiple_of=32)] = 768


class GeneratorDataSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[data]`: local files."""

    train: str
    validation: str = ""
    """Empty: a share of the training rows, drawn by `seed`."""
    test: str = ""
    """Empty: the figures of the report are those of the validation split, and it says so."""
    format: Literal["", "chat", "completion", "text", "sharegpt", "alpaca", "preference"] = ""
    """Empty: .txt is text; .jsonl by the keys of its first line: preference with `chosen` and `rejected`, chat with
    `messages`, sharegpt with `conversations`, alpaca with `instruction` and `output`, text with `text` alone, else
    completion."""
    messages: str = "messages"
    """chat: the key of the list of {role, content}."""
    prompt: str = "prompt"
    completion: str = "completion"
    """completion: the keys of the question and of the wanted answer."""
    chosen: str = "chosen"
    rejected: str = "rejected"
    """preference: the keys of the better and of the worse answer to `prompt` or `messages`."""
    text: str = "text"
    """text: the key of the text, in JSONL. In a .txt file an empty line separates texts."""
    validation_share: Annotated[float, msgspec.Meta(gt=0.0, lt=0.9)] = 0.05
    seed: int = 17
    max_rows: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Use at most so many rows per split; 0: all."""


class GeneratorEvaluateSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[evaluate]`: what is measured of answers."""

    rows: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 200
    """Rows of the measured split that are used, at most."""
    answer_tokens: Annotated[int, msgspec.Meta(ge=1, le=8192)] = 128
    """An answer is cut after so many tokens."""


class GgufSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[gguf]`: which files are made."""

    adapter: bool = True
    """The base, and the adapter beside it (LoRA only)."""
    merged: bool = True
    """Base and adapter in one file."""
    parity_tolerance: Positive = 0.01
    """Largest relative L2 distance of a row of logits between PyTorch in float32 and the F16 file."""
    contexts: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=16, le=CONTEXT_TOKENS)], ...], msgspec.Meta(min_length=1, max_length=16)
    ] = (512, 2048, 4096)
    """Contexts for which the package states the predicted memory; those beyond task.max_tokens are left out."""
    kv_type: KvType = "f16"
    """Number format of the cache that the package recommends."""
    sequences: Annotated[int, msgspec.Meta(ge=SEQUENCES_OPTION[0], le=SEQUENCES_OPTION[1])] = 4
    """Sequences at once that the package recommends."""


class GgufQuantizeSection(Section, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[quantize]`: the number formats that are made, and what they may cost."""

    variants: tuple[Dtype, ...] = ("f16", "q8_0", "q4_k_m", "q4_0")
    max_perplexity_ratio: Annotated[float, msgspec.Meta(ge=1.0)] = 1.1
    """Perplexity of a variant over that of F16; beyond it the variant is not shipped."""
    max_preferred_loss: NotNegative = 1.0
    """Preferences: percentage points of the measured pairs whose chosen answer is no longer the likelier one."""
    max_margin_loss: Share = 0.25
    """Preferences: share of what training added to the margin between both answers that a variant may take back."""
    beyond: Literal["leave-out", "fail"] = "leave-out"


class GeneratorDiagnoseSection(DiagnoseSection, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[diagnose]` of a generator: also what shows whether it forgets."""

    text: str = ""
    """A file of texts (.txt with empty lines between them, or .jsonl with `text`): perplexity before and after."""
    pairs: str = ""
    """A file of good and bad sentences (good, bad): the share of pairs in which the good one is likelier."""
    exact: tuple[str, ...] = ()
    """Sets of questions with one right answer each: "maths", "code", or files (.jsonl with `prompt` and `answer`)."""


class GeneratorRecipe(CommonRecipe, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole recipe of a generator."""

    task: GeneratorTaskSection
    data: GeneratorDataSection
    new: NewModelSection = NewModelSection()
    method: Mapping[str, Any] = {}
    """`[method]`: `name` (of a method with a GGUF form), and those keys of `GeneratorSettings` in `METHOD_KEYS`."""
    train: Mapping[str, Any] = {}
    """`[train]`: the other keys of `GeneratorSettings`."""
    evaluate: GeneratorEvaluateSection = GeneratorEvaluateSection()
    diagnose: GeneratorDiagnoseSection = GeneratorDiagnoseSection()
    gguf: GgufSection = GgufSection()
    quantize: GgufQuantizeSection = GgufQuantizeSection()

    @property
    def is_new(self) -> bool:
        """True when the base is made here, from random weights."""
        return NEW in self.base.sources

    @property
    def prefers(self) -> bool:
        """True when it is trained on preferences."""
        return self.task.kind == PREFER

    @property
    def training(self) -> GeneratorSettings:
        """The settings of the training run."""
        return _training(self, "recipe")


METHOD_KEYS = ("rank", "alpha", "targets", "frozen_share", "lora_plus_ratio")
PREFERENCE_KEYS = ("beta", "chosen_weight")
PREFERENCE_LIMITS = ("max_preferred_loss", "max_margin_loss")
_NOT_TRAIN = ("method", "preset", "max_tokens", *METHOD_KEYS)
_TRAIN = tuple(one.name for one in dataclasses.fields(GeneratorSettings) if one.name not in _NOT_TRAIN)


def _schema(
    train_without: tuple[str, ...], data_without: tuple[str, ...], quantize_without: tuple[str, ...]
) -> RecipeSchema:
    return RecipeSchema(
        GeneratorRecipe,
        {
            "method": ("name", *METHOD_KEYS),
            "train": tuple(key for key in _TRAIN if key not in train_without),
            "data": tuple(key for key in GeneratorDataSection.__struct_fields__ if key not in data_without),
            "quantize": tuple(key for key in GgufQuantizeSection.__struct_fields__ if key not in quantize_without),
        },
    )


SCHEMA = _schema(PREFERENCE_KEYS, ("chosen", "rejected"), PREFERENCE_LIMITS)
PREFERENCE_SCHEMA = _schema((), ("format", "completion", "text"), ())
"""Of `task.kind = "prefer"`."""


def load(path: Path, environment: Mapping[str, str] | None = None) -> GeneratorRecipe:
    """The recipe in a file. Raises ConfigError that names the file and the key."""
    return parse(recipe_form.read(path), str(path), os.environ if environment is None else environment)


def parse(raw: Mapping[str, Any], where: str, environment: Mapping[str, str]) -> GeneratorRecipe:
    """The recipe in a parsed TOML document; `where` names the file in errors."""
    task = raw.get("task")
    schema = PREFERENCE_SCHEMA if isinstance(task, dict) and task.get("kind") == PREFER else SCHEMA
    recipe = recipe_form.convert(raw, where, environment, schema, GeneratorRecipe)
    _check_relations(recipe, where, "new" in raw)
    return recipe


def with_method(recipe: GeneratorRecipe, method: str, preset: str = "") -> GeneratorRecipe:
    """The recipe by another method. Raises ConfigError where it has no schema, UsageError for a preset.

    [method] belongs to the one it was written for. [train] stays, since presets differ in the step size alone, and a
    step size keeps its ratio to the preset's: how far it is from usual depends on the base, not on the method.
    """
    if preset:
        wanted = f"{method}:{preset}"
        raise UsageError(f"{wanted!r}: generators have no presets", "--methods", f"use {', '.join(METHODS)}")
    own = recipe.training
    train = dict(recipe.train)
    if "learning_rate" in train:
        usual = [usual_step_size(name, recipe) for name in (own.method, method)]
        train["learning_rate"] = float(f"{own.learning_rate / usual[0] * usual[1]:.6g}")
    changed = msgspec.structs.replace(recipe, method={"name": method}, train=train)
    _check_relations(changed, f"{recipe.name} by method {method}", has_new=False)
    return changed


def check_sequence(recipe: GeneratorRecipe) -> None:
    """Raise UsageError where the task cannot be one of several that are trained one after another."""
    if recipe.is_new:
        raise UsageError(
            f"{recipe.name} makes a base of its own, so it follows on no other task", "sequence",
            'name it as the base of the others: source = "recipe:PLACE"',
        )  # fmt: skip


def usual_step_size(method: str, recipe: GeneratorRecipe) -> float:
    """The step size that a method has where a recipe like this one names none."""
    return training_settings(method, recipe.is_new, {}, "method", recipe.prefers).learning_rate


def _check_relations(recipe: GeneratorRecipe, where: str, has_new: bool) -> None:
    """What no single key shows to be wrong."""

    def wrong(key: str, what: str, remedy: str | None = None) -> ConfigError:
        return ConfigError(what, f"{where}: {key}", remedy)

    training = _training(recipe, where)
    method = METHODS[training.method]
    if has_new and not recipe.is_new:
        raise wrong("new", 'a [new] table belongs to base.source = "new:llama"')
    if recipe.is_new and len(recipe.base.sources) > 1:
        raise wrong("base.source", "'new:llama' stands alone")
    if method.no_generator:
        raise wrong("method.name", f"{method.title} is not for generators: {method.no_generator}", "use another method")
    if recipe.prefers and method.no_preferences:
        raise wrong(
            "method.name", f"{method.title} is not for preferences: {method.no_preferences}", "use lora or full"
        )
    if recipe.prefers and recipe.is_new:
        raise wrong(
            "base.source", "random weights have no answers to choose between",
            'train them first, with task.kind = "generate", and name that recipe: "recipe:../FOLDER"',
        )  # fmt: skip
    if recipe.prefers and recipe.training.processes > 1:
        raise wrong(
            "train.processes", "preferences are trained in one process: TRL keeps the reference in a file of each",
            "set processes = 1",
        )  # fmt: skip
    if recipe.is_new and method.scope != EVERYTHING:
        raise wrong("method.name", "random weights are trained as a whole", 'set [method] name = "full"')
    new = recipe.new
    if new.hidden % new.heads or (new.hidden // new.heads) % 2 or new.heads % new.kv_heads:
        raise wrong("new.heads", "hidden / heads must be an even number, and heads a multiple of kv_heads")
    if not (method.exportable_to(ADAPTER) or recipe.gguf.merged or recipe.is_new):
        raise wrong("gguf.merged", f"{method.title} is shipped {method.on_devices}", "set gguf.merged = true")
    if not (recipe.gguf.merged or recipe.gguf.adapter):
        raise wrong("gguf", "both forms are switched off: nothing would be made")
    if "f16" not in recipe.quantize.variants:
        raise wrong("quantize.variants", "f16 must be among them: the others are measured against it")
    if recipe.evaluate.answer_tokens >= recipe.task.max_tokens:
        raise wrong("evaluate.answer_tokens", f"it leaves no room for a prompt in {recipe.task.max_tokens} tokens")


def _training(recipe: GeneratorRecipe, where: str) -> GeneratorSettings:
    method = dict(recipe.method)
    name = name_of(method.pop("name", LORA.name), f"{where}: method")
    start = training_settings(name, recipe.is_new, method, f"{where}: method", recipe.prefers)
    return replaced(start, {**recipe.train, "max_tokens": recipe.task.max_tokens}, f"{where}: train")
