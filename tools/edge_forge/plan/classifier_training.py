"""The first part of a classifier's plan: data, base, training, scores by PyTorch.

Every step is a property that asks for the steps before it; asking runs each once, through the cache. A step states its
inputs, its settings and its outputs here. The modules that do the work are imported when the step runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_agent.base.errors import ConfigError, EdgeError
from edge_agent.base.limits import PROBE_CHARACTERS
from edge_agent.base.texts import Text
from edge_forge.data import answer_rows, knowledge_files, slot_rows
from edge_forge.data import classifier_rows as data
from edge_forge.data.classifier_rows import SPLITS, ClassifierData
from edge_forge.evaluate import probes
from edge_forge.evaluate.forgetting import EncoderQuestions, LabelledTask, Questions, compared, encoder_scores
from edge_forge.evaluate.training_outcome import TrainingOutcome, of_answers, of_classifier, of_threshold
from edge_forge.export.litert_converter import lengths
from edge_forge.models import bases
from edge_forge.package import classifier_sources as sources
from edge_forge.package import preflight
from edge_forge.plan.cache import StepResult, file_digest
from edge_forge.plan.classifier_code import CODE
from edge_forge.plan.compression import Compression
from edge_forge.plan.cost import TrainingWork, foretold, host_flops_per_s
from edge_forge.plan.step_runner import Once, StepRunner, digest_of_data, plain, with_log
from edge_forge.plan.token_rows import TokenRows
from edge_forge.progress import Phases, size
from edge_forge.recipe import classifier_recipe
from edge_forge.recipe.classifier_recipe import ClassifierRecipe, CompressSection
from edge_forge.train import settings as presets
from edge_forge.train.lint import lint
from edge_forge.train.methods import ADAPTER, HEAD, METHODS

# A head on so many texts is trained in the seconds that tracing the base takes.
SMALL_ROWS = 4000


class ClassifierTraining:
    """From data and base to a trained and scored classifier.

    `teacher`: the training that a recipe with [compress] takes its base from.
    """

    def __init__(self, recipe: ClassifierRecipe, steps: StepRunner, teacher: ClassifierTraining | None = None) -> None:
        self.recipe = recipe
        self.steps = steps
        self.tokens = TokenRows(self)
        self.compression = None if teacher is None else Compression(recipe, teacher, steps)

    @property
    def at_hand(self) -> ClassifierTraining:
        """Whose rows and base are known before anything is trained. A compressed base has the tokenizer, positions and
        width of its teacher's."""
        return self if self.compression is None else self.compression.teacher

    def check_inputs(self) -> None:
        """Run the data step and find the base, so that what is wrong with either is raised before anything long.

        What a device would refuse of the packages is raised too (`package.preflight`). Raises ConfigError.
        """
        preflight.check_converter(self.recipe.quantize.litert)
        _ = (self.data_step, self.at_hand.base, self.bank_tokens)
        self._check_steps()
        recipe, labels = self.recipe, self.data.labels
        banked = self.has_adapter_package
        if banked and not recipe.of_tokens:
            preflight.check_bank(labels, recipe.export.bank_labels, f"[data] of {recipe.name}")
        task = sources.task_of(recipe, labels, self.prompt)
        products = [(recipe.base.name, recipe.base.version), (recipe.name, recipe.package.version)] if banked else []
        products += [(recipe.merged_name, recipe.package.version)] if recipe.export.merged else []
        preflight.check_documents(recipe, products, sources.base_task(self.bank_tokens, self.prompt), task)
        settings = recipe.training
        method = METHODS[settings.method]
        preflight.check_adapter_document(recipe.name, method.bank_rank(settings.rank), settings.alpha, task)
        card = self.steps.recipe_dir / "card.md"
        files = {"tokenizer": self.at_hand.base.directory / "tokenizer.json"} | (
            {"card": card} if card.is_file() else {}
        )
        section = recipe.quantize
        variants = len((*section.variants, *section.tensorrt, *section.litert))
        logits = recipe.task.max_tokens * len(self.classes) if recipe.of_tokens else len(labels)
        shape = preflight.ProbeShape(int(self.at_hand.examined.facts["width"]), logits, variants)
        preflight.check_files(files, recipe.package.probes, shape)
        split = self.data.measured[0]
        if not self.probe_texts(1):
            raise ConfigError(
                f"every {split} text has more than {PROBE_CHARACTERS} characters, so none can be a golden probe",
                f"data.{split}", "add a shorter one",
            )  # fmt: skip
        _ = self.token_lengths
        if self.compression is not None:
            self.compression.check_inputs()
        _ = self._method_said
        for warning in self.tokens.warnings():
            self.steps.progress.warn(warning)

    @property
    def classes(self) -> tuple[str, ...]:
        """What a logit stands for: the labels, of slots the classes of a word, of answers start and end."""
        labels = self.data.labels
        if self.recipe.answers:
            return ("start", "end")
        if not self.recipe.slots:
            return labels
        from edge_forge.train.word_rows import class_names

        return class_names(labels)

    def probe_texts(self, count: int) -> tuple[Text, ...]:
        """Texts of the measured rows for golden probes, the labels in turn."""
        rows, labels = self.data.measured[1], self.data.labels
        if self.recipe.slots:
            rows, labels = tuple(slot_rows.each_span(rows)), (*labels, "")
        if self.recipe.answers:
            rows = tuple(map(answer_rows.by_answer, rows))
        return probes.choose_texts(rows, labels, count)

    @cached_property
    def _method_said(self) -> bool:
        """Says once what the method trains, how devices take it, and what of its settings is unusual."""
        settings, rows = self.recipe.training, len(self.data.train)
        method = METHODS[settings.method]
        self.steps.progress.say(method.said())
        if not self.recipe.compress.wanted and self.recipe.compress != CompressSection():
            self.steps.progress.warn("compress.layers is 0: nothing is cut, and [compress] has no effect")
        known = self.at_hand
        width = int(known.examined.facts["width"])
        inner = int(known.base.config.get("intermediate_size") or 4 * width)
        layers = self.recipe.compress.layers or int(known.examined.facts["layers"])
        weights = layers * (8 * width + 2 * (width + inner))
        bits = rows * math.log2(len(self.classes))
        usual = presets.settings(settings.method).learning_rate
        for sentence in lint(method, settings, usual, bits, weights):
            self.steps.progress.warn(sentence)
        return True

    def _check_steps(self) -> None:
        """Refuse a run whose only step has the step size 0: the first one of a warm-up. Raises ConfigError."""
        settings, rows = self.recipe.training, len(self.data.train)
        steps = settings.epochs * -(-rows // settings.batch_size)
        if steps == 1 and settings.warmup_fraction > 0.0:
            raise ConfigError(
                f"{rows} rows, batch_size = {settings.batch_size} and epochs = {settings.epochs} make one step, whose "
                "step size is 0 at the beginning of the warm-up: nothing would be learned",
                "train.epochs",
                "raise epochs, lower batch_size, or set warmup_fraction = 0",
            )

    @property
    def has_adapter_package(self) -> bool:
        """True when the base with its bank and the adapter are packages of their own: not in full fine-tuning."""
        return self.recipe.export.banked and METHODS[self.recipe.training.method].exportable_to(ADAPTER)

    @cached_property
    def bank_tokens(self) -> int:
        """The longest text of the base's own package: `export.bank_tokens`, or fewer where the base has no more."""
        wanted, longest = self.recipe.export.bank_tokens, int(self.at_hand.examined.facts["positions"])
        if wanted <= longest:
            return wanted
        if self.has_adapter_package:
            by = self.at_hand.examined.facts["bounded_by"]
            most = f"reads {longest} tokens at most ({by})" if by else f"has positions for {longest} tokens"
            self.steps.progress.warn(f"the base {most}: bank_tokens is {longest}, not {wanted}")
        return longest

    @cached_property
    def data_step(self) -> StepResult:
        """Splits as JSONL (`train.jsonl` ...) and their statistics."""
        if self.compression is not None:
            return self.compression.teacher.data_step
        section, task = self.recipe.data, self.recipe.task
        files = data.files(section, self.steps.recipe_dir)
        inputs = {split: digest_of_data(path) for split, path in files.items()}
        # Paths, not only contents: the suffix says how a file is read, and warnings name it.
        settings = plain(section) | {split: str(path.resolve()) for split, path in files.items()}
        # With a threshold the label of out-of-scope texts needs no rows.
        settings |= {"labels": list(task.labels), "out_of_scope": task.out_of_scope, "threshold": task.threshold > 0}
        settings |= {"kind": task.kind} if self.recipe.of_tokens else {}

        def work(folder: Path) -> Mapping[str, Any]:
            load = {"slots": slot_rows.load, "answers": answer_rows.load}.get(task.kind, data.load)
            loaded = load(section, task, self.steps.recipe_dir)
            for split, rows in loaded.splits.items():
                data.write_rows(folder / f"{split}.jsonl", rows)
            return {
                "labels": list(loaded.labels),
                "statistics": dict(loaded.statistics),
                "warnings": list(loaded.warnings),
                "notes": list(loaded.notes),
            }

        entry = self.steps.run("data", inputs, settings, work)
        for note in entry.facts["notes"]:
            self.steps.progress.say(note)
        for warning in entry.facts["warnings"]:
            self.steps.progress.warn(warning)
        return entry

    @cached_property
    def data(self) -> ClassifierData:
        """The checked rows."""
        entry = self.data_step
        splits = {split: tuple(data.read_rows(entry.path(f"{split}.jsonl"))) for split in SPLITS}
        facts = entry.facts
        return ClassifierData(
            tuple(facts["labels"]), splits["train"], splits["validation"], splits["test"],
            facts["statistics"], tuple(facts["warnings"]), tuple(facts["notes"]),
        )  # fmt: skip

    @cached_property
    def base(self) -> bases.Base:
        """The base model where it is on this machine."""
        base, facts = self._resolved, self.examined.facts
        longest, by = facts["positions"], facts["bounded_by"]
        if self.recipe.task.max_tokens > longest:
            raise ConfigError(
                f"{self.recipe.task.max_tokens} tokens are more than the base "
                + (f"reads ({by} is {longest})" if by else f"has positions for ({longest})"),
                "task.max_tokens",
                f"set max_tokens = {longest} at most, or take another base"
                + (f", or raise {by} if the model was trained with longer texts" if by else ""),
            )
        key = "task.kind" if self.recipe.answers else "data.text_pair"
        if self.recipe.pairs and not facts["joins"]:
            raise ConfigError(
                "the base's tokenizer puts nothing between the two texts of a pair", key,
                "take a base whose tokenizer.json has a template for pairs, such as BERT or MiniLM",
            )  # fmt: skip
        if self.recipe.pairs and (written := facts["separator_in_texts"]) is not None:
            raise ConfigError(
                f"the base's tokenizer reads {written!r} with the token that separates the two texts of a pair, so a "
                "text could move the border between them", key,
                "take a base whose vocabulary splits it, such as BERT or MiniLM",
            )  # fmt: skip
        base = dataclasses.replace(base, base_id=facts["base_id"])
        self.steps.progress.say(f"base: {base.source} ({size(base.size_bytes)}, {base.base_id[:19]}...)")
        if unused := bases.about_beside(base.directory):
            self.steps.progress.warn(unused)
        return base

    @cached_property
    def _resolved(self) -> bases.Base:
        if self.compression is not None:
            return self.compression.base
        return bases.resolve(self.recipe.base.sources, self.steps.recipe_dir)

    @cached_property
    def examined(self) -> StepResult:
        """What `base_check.examine` finds, by the digests of the base's files."""
        base = self._resolved

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.models.base_check import examine

            return examine(base.directory)

        files = {str(path.relative_to(base.directory)): file_digest(path) for path in bases.listed(base.directory)}
        return self.steps.run("base", files, {}, work)

    @property
    def prompt(self) -> str:
        """What the base wants before every text; '' for most."""
        found: str = self.at_hand.examined.facts["prompt"]
        return found

    @cached_property
    def tokenizer_digest(self) -> str:
        """sha256 of the base's tokenizer.json."""
        return file_digest(self.at_hand.base.directory / "tokenizer.json")

    @Once
    def trained(self) -> StepResult:
        """`run/`: adapter.safetensors and peft/, or a model folder with head.safetensors, or bottleneck.safetensors, by
        the form that the method's result has."""
        self.check_inputs()
        settings, base, rows = self.recipe.training, self.base, self.data
        if settings.precision == presets.INT8:
            tokens = self.bank_tokens if self.has_adapter_package else settings.max_tokens
            settings = dataclasses.replace(settings, calibration_tokens=tokens)
        inputs = {
            "base": base.base_id, "tokenizer": self.tokenizer_digest,
            **self.data_step.digests("train.jsonl", "validation.jsonl"),
        }  # fmt: skip
        key = {"labels": list(self.classes), **dataclasses.asdict(settings), "report_to": []}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.train.classifier_job import train

            signatures = len(lengths(settings.max_tokens)) if self.recipe.quantize.litert else 0
            self.steps.progress.say(foretold(self.work_ahead, host_flops_per_s(), signatures))
            folders = self.steps.run_folders(folder)
            phases = Phases(self.steps.progress, "train")
            phases("start", 0.0)  # the worker's first report comes when its libraries are loaded
            try:
                record = train(
                    base=base,
                    rows=(rows.train, rows.validation),
                    labels=self.classes,
                    settings=settings,
                    out_dir=folder / "run",
                    progress=phases,
                    folders=folders,
                )
            except EdgeError as error:
                raise with_log(error, folder / "run" / "train.log", self.steps.cache.root) from error
            finally:
                phases.done()
            return dataclasses.asdict(record)

        return self.steps.run("train", inputs, key, work)

    @property
    def takes_seconds(self) -> bool:
        """Whether the training computes each text of a small set once: a head on the frozen base."""
        return METHODS[self.recipe.training.method].scope == HEAD and int(self.token_lengths["rows"]) <= SMALL_ROWS

    @property
    def work_ahead(self) -> TrainingWork:
        """What the training will read and compute, from the data step and the base's facts."""
        facts, lengths, settings = self.examined.facts, self.token_lengths, self.recipe.training
        layers = int(facts["layers"])
        first = settings.first_layer % layers or int(layers * settings.frozen_share)
        table = int(facts["vocabulary"]) * int(facts["width"])
        weights = max(1, self.base.size_bytes // 4 - table)
        method = METHODS[settings.method]
        frozen = first / layers if method.freezes_below else float(method.scope == HEAD)
        return TrainingWork(
            int(lengths["rows"]), int(lengths["kept"]), settings.epochs, weights, frozen, self.base.size_bytes
        )

    @cached_property
    def trained_digests(self) -> dict[str, str]:
        """Digests of what training made, without its logs and records."""
        return {
            name: digest for name, digest in self.trained.digests("run").items()
            if name.endswith((".safetensors", "config.json", "tokenizer.json"))
        }  # fmt: skip

    @cached_property
    def evaluated(self) -> StepResult:
        """Scores by PyTorch on the validation and test splits, and the logits they come from (`<split>.npy`)."""
        rows, base = self.data, self.base
        inputs = {
            "base": base.base_id,
            **self.trained_digests,
            **self.data_step.digests("validation.jsonl", "test.jsonl"),
        }
        settings = {"max_tokens": self.recipe.task.max_tokens, "labels": list(rows.labels), **self.tokens.settings}

        def work(folder: Path) -> Mapping[str, Any]:
            import numpy

            from edge_forge.evaluate.classifier_metrics import evaluate
            from edge_forge.evaluate.predict import predict

            facts: dict[str, Any] = {}
            for split in ("validation", "test"):
                gold = rows.splits[split]
                if gold and self.recipe.of_tokens:
                    facts[split] = self._tokens_evaluated(split, folder)
                elif gold:
                    texts = [row.text for row in gold]
                    logits = predict(
                        base.directory, self.trained.path("run"), texts, max_tokens=self.recipe.task.max_tokens
                    )
                    numpy.save(folder / f"{split}.npy", logits)
                    facts[split] = evaluate(logits, [row.label for row in gold], rows.labels).as_dict()
            return facts

        return self.steps.run("evaluate", inputs, settings, work)

    def _tokens_evaluated(self, split: str, folder: Path) -> Mapping[str, Any]:
        """Scores of a split of slots or answers by PyTorch; its logits (`TokenRows.scored`) go to `<split>.npy`."""
        import numpy

        from edge_forge.evaluate.predict import predict_tokens, predict_windows

        run, most = self.trained.path("run"), self.recipe.task.max_tokens
        if self.recipe.answers:
            of_tokens = predict_windows(self.base.directory, run, self.tokens.windows(split).ids)
        else:
            texts = [row.text for row in self.data.splits[split]]
            of_tokens = predict_tokens(self.base.directory, run, texts, max_tokens=most)[1]
        logits, scores = self.tokens.scored(split, of_tokens)
        numpy.save(folder / f"{split}.npy", logits)
        return scores

    @cached_property
    def made_base(self) -> Path:
        """The folder of a base with what was trained folded into its weights."""

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.train.merged_base import write_merged

            write_merged(self.base.directory, self.trained.path("run"), folder / "base")
            return {}

        inputs = {"base": self.base.base_id, "tokenizer": self.tokenizer_digest, **self.trained_digests}
        return self.steps.run("merge", inputs, {}, work, "what was trained as a base").path("base")

    def remembered_by(self, later: ClassifierTraining) -> Mapping[str, float]:
        """Accuracy on the measured rows by this task's own head on the model that `later` made, which began with it."""
        (split, measured), labels, most = self.data.measured, self.data.labels, self.recipe.task.max_tokens
        inputs = {
            **{f"head {name}": digest for name, digest in self.trained_digests.items()},
            **{f"model {name}": digest for name, digest in later.trained_digests.items()},
            "head's base": self.base.base_id, "model's base": later.base.base_id, "tokenizer": self.tokenizer_digest,
            **self.data_step.digests(f"{split}.jsonl"),
        }  # fmt: skip

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate.predict import logits_of
            from edge_forge.train.trained_encoder import open_trained

            head = open_trained(self.base.directory, self.trained.path("run"), merged=False)[1:]
            encoder = open_trained(later.base.directory, later.trained.path("run"), merged=True)[0]
            texts = [row.text for row in measured]
            logits = logits_of(encoder, later.base.directory, head, texts, most)[1]
            right = [labels[int(at)] == row.label for at, row in zip(logits.argmax(axis=1), measured, strict=True)]
            return {"accuracy": sum(right) / len(right)}

        title = f"what is known of {self.recipe.name}"
        return self.steps.run("remembered", inputs, {"max_tokens": most, "labels": list(labels)}, work, title).facts

    @cached_property
    def kept(self) -> Mapping[str, Mapping[str, float]]:
        """{before, after, lost} of each question that [diagnose] asks; empty where it asks none."""
        asked = self.questions
        if not any(asked.named):
            return {}
        base = self.base.directory

        def work(trained: Path | None) -> Mapping[str, Any]:
            from edge_forge.models.encoder import open_encoder
            from edge_forge.train.trained_encoder import open_trained

            encoder = open_encoder(base) if trained is None else open_trained(base, trained, merged=True)[0]
            return encoder_scores(encoder, base, asked.named)

        held = {"base": self.base.base_id, "tokenizer": self.tokenizer_digest, **asked.digests}
        tuned = held | self.trained_digests
        before = self.steps.run("forgetting", held, {}, lambda _: work(None), "what the base knows").facts
        run = self.trained.path("run")
        after = self.steps.run("forgetting", tuned, {}, lambda _: work(run), "what is left of it").facts
        return compared(before, after)

    @cached_property
    def questions(self) -> Questions[EncoderQuestions]:
        """What [diagnose] asks of the base's knowledge. Raises ConfigError for a file or recipe that cannot be read."""
        section, place = self.recipe.diagnose, self.steps.recipe_dir
        pairs: list[knowledge_files.AlikePair] = []
        digests: dict[str, str] = {}
        if section.similarity:
            path = place / Path(section.similarity).expanduser()
            digests["similarity"] = f"{digest_of_data(path, 'diagnose')} {section.rows}"
            pairs = knowledge_files.spread_over(knowledge_files.alike_pairs(path), section.rows)
        earlier: dict[str, LabelledTask] = {}
        for file in self._earlier_files:
            other = classifier_recipe.load(file)
            if other.of_tokens:
                raise ConfigError(
                    f"a linear probe asks for classes of texts, and these are {other.task.kind}",
                    f"diagnose.earlier: {file}", "leave it out",
                )  # fmt: skip
            steps = StepRunner(file.parent, self.steps.cache, self.steps.progress, CODE)
            found = ClassifierTraining(other, steps)
            split, measured = found.data.measured
            # Rows at even distances could be of one label alone: files often hold the labels in turns.
            parts = (data.sample(rows, section.rows, other.data.seed) for rows in (found.data.train, measured))
            # Recipes of one name are asked all: the later ones are told apart by their folders.
            name = f"{other.name} of {file.parent}" if other.name in earlier else other.name
            earlier[name] = LabelledTask(*parts)
            rows_digests = found.data_step.digests("train.jsonl", f"{split}.jsonl").values()
            digests[f"earlier {name}"] = f"{'-'.join(rows_digests)} {section.rows} seed {other.data.seed}"
        return Questions(EncoderQuestions(pairs, earlier), digests)

    @property
    def _earlier_files(self) -> list[Path]:
        """The files of the recipes that [diagnose] names, each once."""
        named = [self.steps.recipe_dir / Path(name).expanduser() for name in self.recipe.diagnose.earlier]
        return list(dict.fromkeys((one / "recipe.toml" if one.is_dir() else one).resolve() for one in named))

    @cached_property
    def weights_diagnosed(self) -> StepResult:
        """`weights`: what training did to each (`spectra.WeightDiagnosis`)."""
        section = self.recipe.diagnose

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate import diagnosis

            found = diagnosis.of_encoder(self.base.directory, self.trained.path("run"), section.top, section.cosine)
            return {"weights": [one.as_dict() for one in found]}

        inputs = {"base": self.base.base_id, **self.trained_digests}
        return self.steps.run("diagnose-weights", inputs, {"top": section.top, "cosine": section.cosine}, work)

    @cached_property
    def diagnosed(self) -> StepResult:
        """What a repair of the weights would cost and bring: `repair`, what is learned and kept with intruders scaled
        down, where there are any; `split`, `rows`."""
        section, (split, measured), rows = self.recipe.diagnose, self.data.measured, self.data
        asked, weights = self.questions, self.weights_diagnosed.facts["weights"]
        inputs = {"base": self.base.base_id, **self.trained_digests, **self.data_step.digests(f"{split}.jsonl")}
        most = self.recipe.task.max_tokens
        settings = {"top": section.top, "cosine": section.cosine, "max_tokens": most, "labels": list(rows.labels)}

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate import diagnosis

            base, run = self.base.directory, self.trained.path("run")
            # What a repair keeps is measured by classes of texts.
            intruders = {
                one["name"]: one["intruders"] for one in weights if one["intruders"] and not self.recipe.of_tokens
            }
            texts = [row.text for row in measured], [rows.labels.index(row.label) for row in measured]
            repair = diagnosis.repaired_encoder((base, run), intruders, texts, most, asked.named) if intruders else []
            return {"repair": repair, "split": split, "rows": len(measured)}

        return self.steps.run("diagnose", {**inputs, **asked.digests}, settings, work)

    @property
    def outcome(self) -> TrainingOutcome:
        """Whether the run led anywhere, by its answers to all measured rows, without and with the threshold."""
        found, task = self.evaluated.facts, self.recipe.task
        if self.recipe.answers:
            return of_answers(found[self.data.measured[0]])
        shown = found[self.data.measured[0]]["labels"]
        by_class = of_classifier(_sum([found[split]["confusion"] for split in found]), shown)
        if by_class.failed or not task.threshold or task.out_of_scope is None:
            return by_class
        scope = self.scope
        by_threshold = of_threshold(scope["at"], task.out_of_scope, scope["proposed"])
        return TrainingOutcome(by_threshold.failed, "; ".join(filter(None, (by_class.weak, by_threshold.weak))))

    @cached_property
    def scope(self) -> Mapping[str, Any]:
        """Scores in and out of scope on the measured rows: `curve` by threshold, `at` the recipe's own; `proposed` is
        the threshold that the validation rows propose. Empty for slots and answers."""
        if self.recipe.of_tokens:
            return {}
        import numpy

        from edge_forge.evaluate import thresholds

        task, data = self.recipe.task, self.data

        def rows_of(split: str) -> tuple[Any, list[str], tuple[str, ...], str | None]:
            gold = [row.label for row in data.splits[split]]
            return numpy.load(self.evaluated.path(f"{split}.npy")), gold, data.labels, task.out_of_scope

        measured = rows_of(data.measured[0])
        return {
            "label": task.out_of_scope,
            "threshold": task.threshold,
            "at": thresholds.scope_scores(*measured, task.threshold),
            "curve": thresholds.curve(*measured),
            "proposed": thresholds.proposed(thresholds.curve(*rows_of("validation"))),
        }

    @cached_property
    def token_lengths(self) -> Mapping[str, Any]:
        """Tokens of the training texts: `cut` of `rows` have more than `max_tokens`, `kept` are left; `p95`, `max`."""
        if self.compression is not None:
            return self.compression.teacher.token_lengths
        most = self.recipe.task.max_tokens
        inputs = {"tokenizer": self.tokenizer_digest, **self.data_step.digests("train.jsonl")}
        if self.recipe.answers:
            return self.tokens.window_lengths(inputs)

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate.measure_onnx import token_counts

            texts = [row.text for row in self.data.train]
            lengths = sorted(token_counts(self.at_hand.base.directory / "tokenizer.json", texts, self.prompt))
            cut = sum(length > most for length in lengths)
            kept = sum(min(length, most) for length in lengths)
            p95 = lengths[len(lengths) * 95 // 100]
            return {"rows": len(lengths), "cut": cut, "kept": kept, "p95": p95, "max": lengths[-1]}

        facts = self.steps.run("tokens", inputs, {"max_tokens": most, "counts": "kept"}, work, "count tokens").facts
        if facts["cut"]:
            self.steps.progress.warn(
                f"{facts['cut']} of {facts['rows']} training texts ({facts['cut'] / facts['rows']:.1%}) are longer "
                f"than max_tokens = {most} and are cut; 95 % fit in {facts['p95']} tokens, all in {facts['max']}"
            )
        return facts


def _sum(matrices: Sequence[Sequence[Sequence[int]]]) -> list[list[int]]:
    return [[sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
