"""The first part of a generator's plan: data, base, training, scores by PyTorch.

Every step is a property that asks for the steps before it; asking runs each once, through the cache.

A base is a folder or a hub model (`bases`), one with random weights that is made here ("new:llama"), or what another
recipe trains ("recipe:PLACE"), which is built first, in the same build folder.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_agent.base.errors import BackendMissing, ConfigError, EdgeError
from edge_forge.data import generator_rows as data
from edge_forge.data import knowledge_files
from edge_forge.data.classifier_rows import SPLITS
from edge_forge.data.generator_rows import GeneratorData, Row
from edge_forge.evaluate.forgetting import (
    GeneratorQuestions,
    Questions,
    compared,
    exact_intervals,
    generator_scores,
)
from edge_forge.evaluate.training_outcome import TrainingOutcome, of_generator, of_preferences
from edge_forge.export.gguf import engine
from edge_forge.models import bases
from edge_forge.models.base_identity import with_language_id
from edge_forge.plan.cache import StepResult, file_digest
from edge_forge.plan.cost import TrainingWork, foretold_training, host_flops_per_s
from edge_forge.plan.step_runner import Code, Once, StepRunner, digest_of_data, plain, with_log
from edge_forge.progress import Phases, size
from edge_forge.recipe import generator_recipe as recipe
from edge_forge.recipe.generator_recipe import NEW, OF_RECIPE, GeneratorRecipe
from edge_forge.train.lint import lint
from edge_forge.train.methods import ADAPTER, BASE, METHODS

_TORCH = ("torch", "transformers", "tokenizers")
_LLAMA = ("llama_cpp_python", "gguf", "numpy")
# Started as a program, so no import leads there.
_NATIVE = "edge_forge.export.gguf.llama_process"
_COUNTED_ROWS = 200
_SCORES = ("sacrebleu", "rouge-score", "jinja2")
CODE: Code = {
    "generate-data": (("edge_forge.data.generator_rows",), ()),
    "new-base": (("edge_forge.models.new_model",), _TORCH),
    "generate-train": (
        ("edge_forge.train.generator_job",),
        (*_TORCH, "peft", "accelerate", "jinja2"),
    ),
    "generate-diagnose-weights": (("edge_forge.evaluate.diagnosis",), (*_TORCH, "peft", "numpy")),
    "generate-diagnose": (("edge_forge.evaluate.diagnosis",), (*_TORCH, "peft", "numpy", "jinja2")),
    "generate-forgetting": (("edge_forge.evaluate.forgetting",), (*_TORCH, "peft", "numpy")),
    "prefer-train": (
        ("edge_forge.train.generator_job", "edge_forge.train.preference_trainer"),
        (*_TORCH, "peft", "accelerate", "jinja2", "trl", "datasets"),
    ),
    "generate-evaluate": (
        ("edge_forge.evaluate.generator_scores", "edge_forge.models.causal_lm"),
        (*_TORCH, "peft", *_SCORES, "scipy"),
    ),
    "generate-remembered": (
        ("edge_forge.evaluate.generator_scores", "edge_forge.models.causal_lm"),
        (*_TORCH, "peft", *_SCORES, "scipy"),
    ),
    "generate-merge": (("edge_forge.train.merged_base", "edge_forge.models.causal_lm"), (*_TORCH, "peft")),
    "gguf-check": (
        ("edge_forge.export.gguf.convert", "edge_forge.evaluate.measure_gguf", "edge_agent.backends.llamacpp.model"),
        (*_TORCH, *_LLAMA, "jinja2"),
    ),
    "gguf": (("edge_forge.export.gguf.convert", _NATIVE), (*_TORCH, "peft", *_LLAMA)),
    "gguf-quantize": (("edge_forge.export.gguf.convert", _NATIVE), _LLAMA),
    "gguf-measure": (
        ("edge_forge.evaluate.generator_scores", "edge_forge.export.gguf.convert", _NATIVE),
        (*_LLAMA, *_SCORES, "tokenizers", "scipy"),
    ),
    "gguf-paired": (("edge_forge.evaluate.paired", "edge_forge.evaluate.preferences"), ("numpy", "scipy")),
    "gguf-speed": (
        (
            "edge_forge.evaluate.measure_gguf",
            "edge_forge.evaluate.paired",
            "edge_forge.data.chat_tokenizer",
            "edge_agent.backends.llamacpp.backend",
        ),
        (*_LLAMA, "tokenizers", "scipy"),
    ),
    "gguf-memory": (
        ("edge_forge.evaluate.measure_gguf", "edge_agent.backends.gguf", "edge_agent.bundle.gguf_memory"),
        (),
    ),
    "gguf-probes": (
        ("edge_forge.evaluate.measure_gguf", "edge_forge.evaluate.probes", "edge_agent.backends.llamacpp.backend"),
        _LLAMA,
    ),
    "package": (("edge_forge.package.base_reuse", "edge_forge.plan.generator_packages"), ()),
    "trial": (("edge_forge.package.package_trial", "edge_agent.app.packages", "edge_agent.worker.child"), ()),
    "sign": (("edge_forge.package.keys",), ()),
}


class GeneratorTraining:
    """From data and base to a trained and scored generator. `above`: folders of the recipes whose base this makes."""

    def __init__(self, recipe: GeneratorRecipe, steps: StepRunner, above: tuple[Path, ...] = ()) -> None:
        self.recipe = recipe
        self.steps = steps
        self.above = above

    def check_inputs(self) -> None:
        """Run the data step and find the base, so that what is wrong with either is raised before anything long.

        Raises ConfigError.
        """
        _ = self.data_step
        if self.data.preferences != self.recipe.prefers:
            raise ConfigError(
                f"the rows are {self.data.statistics['kind']}, which task.kind = {self.recipe.task.kind!r} does not "
                "learn from", "task.kind",
                'set task.kind = "prefer"' if self.data.preferences
                else f"give rows with {self.recipe.data.chosen!r} and {self.recipe.data.rejected!r}",
            )  # fmt: skip
        _ = self._form
        if self.recipe.prefers:
            self._say_too_long()
        if (exact := self.questions.named.exact) and not self.recipe.is_new:
            from edge_forge.data.chat_tokenizer import ChatTokenizer
            from edge_forge.evaluate import exact_answers

            tokenizer = ChatTokenizer(self.base.directory, self.recipe.task.chat)
            for questions in exact.values():
                exact_answers.prompts(tokenizer, questions, self._positions)
        settings = self.recipe.training
        method = METHODS[settings.method]
        self.steps.progress.say(method.said())
        usual = recipe.usual_step_size(settings.method, self.recipe)
        for sentence in lint(method, settings, usual, 0.0, 0):
            self.steps.progress.warn(sentence)

    def _say_too_long(self) -> None:
        """Name the file and the line of pairs that do not fit into a sequence: they are left out."""
        from edge_forge.data.chat_tokenizer import ChatTokenizer

        tokenizer, most = ChatTokenizer(self.base.directory, self.recipe.task.chat), self.recipe.task.max_tokens
        for path in data.files(self.recipe.data, self.steps.recipe_dir).values():
            lengths = (
                (where, tokenizer.encode_pair(row).length) for where, row in data.with_places(path, self.recipe.data)
            )
            long = [(where, length) for where, length in lengths if length > most]
            if long:
                where, length = long[0]
                self.steps.progress.warn(
                    f"{where}: the pair has {length} tokens, task.max_tokens is {most}; it is left out"
                    + (f", and {len(long) - 1} more of this file" if len(long) > 1 else "")
                )

    @cached_property
    def data_step(self) -> StepResult:
        """Splits as JSON lines (`train.jsonl` ...) and their statistics."""
        section = self.recipe.data
        files = data.files(section, self.steps.recipe_dir)
        inputs = {split: digest_of_data(path) for split, path in files.items()}
        # Paths, not only contents: the suffix says how a file is read, and warnings name it.
        settings = plain(section) | {split: str(path.resolve()) for split, path in files.items()}

        def work(folder: Path) -> Mapping[str, Any]:
            loaded = data.load(section, self.steps.recipe_dir)
            for split, rows in loaded.splits.items():
                lines = (json.dumps(data.as_json(row), ensure_ascii=False) + "\n" for row in rows)
                (folder / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
            return {
                "statistics": dict(loaded.statistics),
                "warnings": list(loaded.warnings),
                "notes": list(loaded.notes),
            }

        entry = self.steps.run("generate-data", inputs, settings, work, "data")
        for note in entry.facts["notes"]:
            self.steps.progress.say(note)
        for warning in entry.facts["warnings"]:
            self.steps.progress.warn(warning)
        return entry

    @cached_property
    def data(self) -> GeneratorData:
        """The checked rows."""
        entry = self.data_step
        splits = {
            split: tuple(
                data.from_json(json.loads(line))
                # Not splitlines: a text may hold U+2028, which ends a line there.
                for line in entry.path(f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
                if line
            )
            for split in SPLITS
        }
        facts = entry.facts
        return GeneratorData(
            **splits,
            statistics=facts["statistics"],
            warnings=tuple(facts["warnings"]),
            notes=tuple(facts["notes"]),
        )

    @cached_property
    def base(self) -> bases.Base:
        """The base model where it is on this machine, made before where the recipe says so."""
        sources = self.recipe.base.sources
        if self.recipe.is_new:
            base = bases.resolve([f"dir:{self._new_base.path('base').absolute()}"], self.steps.recipe_dir)
            base = dataclasses.replace(with_language_id(base), source=NEW)
        elif sources[0].startswith(OF_RECIPE):
            base = self._other(sources[0])
        else:
            base = with_language_id(bases.resolve(sources, self.steps.recipe_dir))
        longest = _context(base)
        if longest is not None and self.recipe.task.max_tokens > longest:
            raise ConfigError(
                f"{self.recipe.task.max_tokens} tokens are more than the base takes ({longest})", "task.max_tokens"
            )
        self.steps.progress.say(f"base: {base.source} ({size(base.size_bytes)}, {base.base_id[:19]}...)")
        if unused := bases.about_beside(base.directory):
            self.steps.progress.warn(unused)
        return base

    @property
    def _positions(self) -> int:
        """The most tokens that are asked of the base at once."""
        return _context(self.base) or self.recipe.task.max_tokens

    @cached_property
    def _new_base(self) -> StepResult:
        """`base/`: a Hugging Face folder with random weights and a tokenizer trained on the training rows."""
        shape, task, seed = self.recipe.new, self.recipe.task, self.recipe.training.seed

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.models.new_model import make

            make(folder / "base", self.data.train, shape, task.max_tokens, seed)
            return {}

        settings = {**plain(shape), "context": task.max_tokens, "seed": seed}
        return self.steps.run("new-base", self.data_step.digests("train.jsonl"), settings, work)

    def _other(self, source: str) -> bases.Base:
        """The model that another recipe trains."""
        place = self.steps.recipe_dir / source.removeprefix(OF_RECIPE)
        file = place / "recipe.toml" if place.is_dir() else place
        found = recipe.load(file)
        if not METHODS[found.training.method].exportable_to(BASE):
            raise ConfigError("it trains an adapter, which is no base", str(file), "name a recipe of method full")
        folder = file.resolve().parent
        if folder in (self.steps.recipe_dir, *self.above):
            raise ConfigError("a recipe cannot be its own base, not by way of others either", str(file))
        self.steps.progress.say(f"base: made by {file.parent.name} ...")
        steps = StepRunner(folder, self.steps.cache, self.steps.progress, CODE)
        other = GeneratorTraining(found, steps, (self.steps.recipe_dir, *self.above))
        with self.steps.progress.unwatched():
            made = other.tuned_folder.absolute()
        base = bases.resolve([f"dir:{made}"], self.steps.recipe_dir)
        return dataclasses.replace(with_language_id(base), source=source)

    @cached_property
    def tokenizer_digest(self) -> str:
        """sha256 of the base's tokenizer and template."""
        names = (
            "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json",
            "generation_config.json",
        )  # fmt: skip
        found = [self.base.directory / name for name in names]
        return "-".join(file_digest(path)[:32] for path in found if path.is_file())

    @cached_property
    def _form(self) -> StepResult:
        """That the base can become a GGUF file: nothing is kept of it."""
        folder = self.base.directory

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.export.gguf.convert import check_form

            check_form(folder)
            return {}

        inputs = {
            "base": self.base.base_id,
            "tokenizer": self.tokenizer_digest,
            "config": file_digest(folder / "config.json"),
        }
        return self.steps.run("gguf-check", inputs, {}, work, "check the base")

    @Once
    def trained(self) -> StepResult:
        """`run/`: peft/ (LoRA), or model/ (full)."""
        settings, base, rows, chat = self.recipe.training, self.base, self.data, self.recipe.task.chat
        inputs = {
            "base": base.base_id, "tokenizer": self.tokenizer_digest,
            **self.data_step.digests("train.jsonl", "validation.jsonl"),
        }  # fmt: skip

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.train.generator_job import train

            self.steps.progress.say(foretold_training(self.work_ahead, host_flops_per_s()))
            folders = self.steps.run_folders(folder)
            phases = Phases(self.steps.progress, "train")
            phases("start", 0.0)  # the worker's first report comes when its libraries are loaded
            place, held = (base.directory, base.base_id), (rows.train, rows.validation)
            try:
                record = train(place, held, chat, settings, folder / "run", phases, folders)
            except EdgeError as error:
                raise with_log(error, folder / "run" / "train.log", self.steps.cache.root) from error
            finally:
                phases.done()
            return dataclasses.asdict(record)

        return self.steps.run(
            "prefer-train" if self.recipe.prefers else "generate-train",
            inputs, {"chat": chat, **dataclasses.asdict(settings), "report_to": []}, work, "train",
        )  # fmt: skip

    @property
    def work_ahead(self) -> TrainingWork:
        """What the training will read and compute: rows packed without a gap, the tokens of some counted for all. Of
        preferences also the reference, which is asked once for the rows of both splits."""
        from edge_forge.data.chat_tokenizer import ChatTokenizer, tokens_of_pair, tokens_of_row

        base, rows, settings = self.base, self.data.train, self.recipe.training
        tokenizer = ChatTokenizer(base.directory, self.recipe.task.chat)
        some = rows[:: max(1, len(rows) // _COUNTED_ROWS)]
        count = tokens_of_pair if self.recipe.prefers else tokens_of_row
        tokens = sum(count(tokenizer, row) for row in some) * len(rows) // max(1, len(some))
        bytes_a_weight = 4 if base.config.get("dtype", base.config.get("torch_dtype", "float32")) == "float32" else 2
        asked = len(rows) + len(self.data.validation) if self.recipe.prefers else 0
        return TrainingWork(
            len(rows), tokens, settings.epochs, base.size_bytes // bytes_a_weight, 0.0, base.size_bytes,
            asked / max(1, len(rows)),
        )  # fmt: skip

    @cached_property
    def trained_digests(self) -> dict[str, str]:
        """Digests of what training made, without its logs and records."""
        return self.trained.digests("run/peft", "run/model")

    @property
    def _trained_adapter(self) -> bool:
        return METHODS[self.recipe.training.method].exportable_to(ADAPTER)

    @property
    def adapter_folder(self) -> Path | None:
        """peft's folder, or None where every weight was trained."""
        return self.trained.path("run/peft") if self._trained_adapter else None

    @property
    def tuned_folder(self) -> Path:
        """The folder whose weights the tuned model has, beside `adapter_folder` where there is one."""
        return self.base.directory if self._trained_adapter else self.trained.path("run/model")

    @cached_property
    def scored_rows(self) -> tuple[Row, ...]:
        """The rows of the measured split that scores are taken on."""
        return self.data.measured[1][: self.recipe.evaluate.rows]

    def evaluation_set(self, folder: Path) -> Any:
        """What is asked for scores (`generator_scores.EvaluationSet`), in the tokens of a model folder."""
        from edge_forge.data.chat_tokenizer import ChatTokenizer
        from edge_forge.evaluate.generator_scores import EvaluationSet

        task = self.recipe.task
        return EvaluationSet(
            ChatTokenizer(folder, task.chat), self.scored_rows, task.max_tokens, self.recipe.evaluate.answer_tokens
        )

    @property
    def evaluation_settings(self) -> dict[str, Any]:
        """What an exam depends on beside rows and model."""
        return {**plain(self.recipe.evaluate), **plain(self.recipe.task), "split": self.data.measured[0]}

    @cached_property
    def evaluated(self) -> StepResult:
        """Scores by PyTorch: {base, tuned}; a base of random weights has none."""
        inputs = {
            "base": self.base.base_id, "tokenizer": self.tokenizer_digest, **self.trained_digests,
            **self.data_step.digests("validation.jsonl", "test.jsonl"),
        }  # fmt: skip

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate.generator_scores import by_torch

            evaluation_set = self.evaluation_set(self.base.directory)
            facts = {"tuned": by_torch(evaluation_set, self.tuned_folder, self.adapter_folder)}
            if not self.recipe.is_new:
                facts["base"] = by_torch(evaluation_set, self.base.directory, None)
            if self.recipe.prefers:
                from edge_forge.evaluate.preferences import rewarded

                margins = [facts[who]["preferences"]["pair_margins"] for who in ("tuned", "base")]
                facts["tuned"]["preferences"] |= rewarded(margins[0], margins[1], beta)
            return facts

        beta = self.recipe.training.beta
        settings = {**self.evaluation_settings, **({"beta": beta} if self.recipe.prefers else {})}
        return self.steps.run("generate-evaluate", inputs, settings, work, "evaluate")

    @cached_property
    def made_base(self) -> Path:
        """The folder of a base with what was trained folded into its weights."""
        base, adapter = self.base.directory, self.adapter_folder
        if adapter is None:
            return self.tuned_folder

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.train.merged_base import write_merged_generator

            write_merged_generator(base, adapter, folder / "base")
            return {}

        inputs = {"base": self.base.base_id, "tokenizer": self.tokenizer_digest, **self.trained_digests}
        return self.steps.run("generate-merge", inputs, {}, work, "what was trained as a base").path("base")

    def remembered_by(self, later: GeneratorTraining) -> Mapping[str, float]:
        """Scores on the measured rows of the model that `later` made: of preferences the share of pairs, of dialogues
        the answers that are right to the letter, and the perplexity."""
        split = self.data.measured[0]
        inputs = {
            "base": later.base.base_id, "tokenizer": self.tokenizer_digest, **later.trained_digests,
            **self.data_step.digests(f"{split}.jsonl"),
        }  # fmt: skip

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate.generator_scores import by_torch

            asked = self.evaluation_set(self.base.directory)
            return by_torch(asked, later.tuned_folder, later.adapter_folder)

        title = f"what is known of {self.recipe.name}"
        facts = self.steps.run("generate-remembered", inputs, self.evaluation_settings, work, title).facts
        told = {**facts, **facts.get("answers", {}), **facts.get("preferences", {})}
        return {key: told[key] for key in ("preferred", "exact_match", "perplexity") if told.get(key) is not None}

    @cached_property
    def kept(self) -> Mapping[str, Mapping[str, float]]:
        """{before, after, lost} of each question that [diagnose] asks of what the base knew; empty where it asks none,
        and of random weights."""
        asked = self.questions
        if self.recipe.is_new or asked.named.none:
            return {}
        chat = self.recipe.task.chat

        def work(folder: Path, adapter: Path | None) -> Mapping[str, Any]:
            from edge_forge.data.chat_tokenizer import ChatTokenizer
            from edge_forge.models.causal_lm import open_model

            marks: dict[str, list[bool]] = {}
            tokenizer = ChatTokenizer(self.base.directory, chat)
            scores = generator_scores(open_model(folder, adapter), tokenizer, asked.named, marks)
            return {"scores": scores, "marks": marks}

        held = {"base": self.base.base_id, "tokenizer": self.tokenizer_digest, **asked.digests}
        settings, base = {"max_tokens": asked.named.max_tokens, "chat": chat}, self.base.directory
        before = self.steps.run(
            "generate-forgetting", held, settings, lambda _: work(base, None), "what the base knows"
        )
        tuned, place = held | self.trained_digests, (self.tuned_folder, self.adapter_folder)
        after = self.steps.run("generate-forgetting", tuned, settings, lambda _: work(*place), "what is left of it")
        found = compared(before.facts["scores"], after.facts["scores"])
        return exact_intervals(found, before.facts["marks"], after.facts["marks"])

    @cached_property
    def questions(self) -> Questions[GeneratorQuestions]:
        """What [diagnose] asks of the base's knowledge. Raises ConfigError for a file that cannot be read."""
        section, place = self.recipe.diagnose, self.steps.recipe_dir
        texts: list[Row] = []
        pairs: list[knowledge_files.SentencePair] = []
        digests: dict[str, str] = {}
        if section.text:
            path = place / Path(section.text).expanduser()
            digests["text"] = f"{digest_of_data(path, 'diagnose')} {section.rows}"
            texts = knowledge_files.spread_over(
                list(data.read(path, recipe.GeneratorDataSection(train="", format="text"))), section.rows
            )
        if section.pairs:
            path = place / Path(section.pairs).expanduser()
            digests["pairs"] = f"{digest_of_data(path, 'diagnose')} {section.rows}"
            pairs = knowledge_files.spread_over(knowledge_files.sentence_pairs(path), section.rows)
        exact: dict[str, list[knowledge_files.ExactQuestion]] = {}
        for name in section.exact:
            path = knowledge_files.exact_file(name, place)
            if path.stem in exact:
                raise ConfigError(f"two sets of questions are named {path.stem!r}", "diagnose.exact", "rename one file")
            exact[path.stem] = knowledge_files.exact_questions(path)
            digests[f"exact {path.stem}"] = digest_of_data(path, "diagnose")
        return Questions(
            GeneratorQuestions(
                texts,
                pairs,
                self.recipe.task.max_tokens,
                exact,
                self._positions if exact and not self.recipe.is_new else 0,
            ),
            digests,
        )

    @cached_property
    def weights_diagnosed(self) -> StepResult:
        """`weights`: what training did to each (`spectra.WeightDiagnosis`)."""
        section = self.recipe.diagnose

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate import diagnosis

            tuned = self.tuned_folder, self.adapter_folder
            found = diagnosis.of_generator(self.base.directory, *tuned, section.top, section.cosine)
            return {"weights": [one.as_dict() for one in found]}

        inputs = {"base": self.base.base_id, **self.trained_digests}
        settings = {"top": section.top, "cosine": section.cosine}
        return self.steps.run("generate-diagnose-weights", inputs, settings, work, "diagnose-weights")

    @cached_property
    def diagnosed(self) -> StepResult:
        """What a repair of the weights would cost and bring: `repair`, what is learned and kept with intruders scaled
        down, where there are any; `split`, `rows`."""
        section, asked = self.recipe.diagnose, self.questions
        split, weights = self.data.measured[0], self.weights_diagnosed.facts["weights"]
        inputs = {
            "base": self.base.base_id, "tokenizer": self.tokenizer_digest, **self.trained_digests, **asked.digests,
            **self.data_step.digests(f"{split}.jsonl"),
        }  # fmt: skip

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate import diagnosis

            tuned = self.tuned_folder, self.adapter_folder
            intruders = {one["name"]: one["intruders"] for one in weights if one["intruders"]}
            measured = self.evaluation_set(self.base.directory)
            repair = diagnosis.repaired_generator(tuned, intruders, measured, asked.named) if intruders else []
            return {"repair": repair, "split": split, "rows": len(measured.rows)}

        settings = {"top": section.top, "cosine": section.cosine, **self.evaluation_settings}
        return self.steps.run("generate-diagnose", inputs, settings, work, "diagnose")

    @property
    def outcome(self) -> TrainingOutcome:
        """Whether the run led anywhere, by the perplexity of the measured answers."""
        found = self.evaluated.facts
        if self.recipe.prefers:
            return of_preferences(found["tuned"], found["base"])
        return of_generator(found["tuned"]["perplexity"], found["base"]["perplexity"] if "base" in found else None)

    def check_tools(self) -> None:
        """Raise what is missing on this machine before anything long begins."""
        engine.require()
        if self.recipe.prefers and importlib.util.find_spec("trl") is None:
            raise BackendMissing(
                "TRL is not installed", "task.kind", "the extra forge-prefer; `make prefer` in the clone"
            )


def _context(base: bases.Base) -> int | None:
    """The most tokens that a base takes, of some families the sliding window; None where it has no bound."""
    from edge_forge.export.gguf.families import context

    return context(base.config) if isinstance(base.config.get("max_position_embeddings"), int) else None
