"""The second part of a generator's plan: GGUF files, their number formats, and the figures of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_agent.base.errors import EdgeError
from edge_forge.evaluate import gates
from edge_forge.export.gguf import ADAPTER_FILE, MODEL_FILE
from edge_forge.plan.cache import StepResult
from edge_forge.plan.generator_training import GeneratorTraining
from edge_forge.train.methods import ADAPTER, METHODS

RUNTIME = "llamacpp"
_PROMPTS = 8


@dataclass(frozen=True, slots=True)
class GgufVariant:
    """One GGUF model and what was measured of it. `form`: 'base' (alone), 'adapter' (base with it), or 'merged'."""

    form: str
    dtype: str
    path: Path
    digest: str
    figures: Mapping[str, Any]

    @property
    def variant(self) -> str:
        """The variant's name in a package: 'llamacpp/q8_0'."""
        return f"{RUNTIME}/{self.dtype}"

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size


class GgufExports:
    """From a trained generator to measured GGUF files."""

    def __init__(self, training: GeneratorTraining) -> None:
        self.training = training
        self.recipe = training.recipe
        self.steps = training.steps
        self._measurements: dict[tuple[str, str], StepResult] = {}

    @property
    def has_adapter(self) -> bool:
        """True when the adapter is made beside the base: full fine-tuning has none."""
        return self.recipe.gguf.adapter and METHODS[self.recipe.training.method].exportable_to(ADAPTER)

    @property
    def has_merged(self) -> bool:
        """True when base and adapter are made one file; a new model is no merged one."""
        return self.recipe.gguf.merged and not self.recipe.is_new

    @cached_property
    def base_folder(self) -> tuple[Path, str]:
        """(folder, base_id) of what the base's package holds: the base, or the new model when it is trained."""
        if not self.recipe.is_new:
            return self.training.base.directory, self.training.base.base_id
        from edge_forge.models.base_identity import language_id

        return self.training.tuned_folder, language_id(self.training.tuned_folder)

    @property
    def base_name(self) -> str:
        """The base's model name on the device."""
        return self.recipe.base.name

    @cached_property
    def base_file(self) -> StepResult:
        """f16.gguf of the base. Of no recipe's own."""
        folder, base_id = self.base_folder
        return self._converted(
            "base", folder, base_id, None, {"base": base_id, "tokenizer": self.training.tokenizer_digest}
        )

    @cached_property
    def merged_file(self) -> StepResult:
        """f16.gguf of the tuned model in one."""
        inputs = {
            "base": self.training.base.base_id,
            "tokenizer": self.training.tokenizer_digest,
            **self.training.trained_digests,
        }
        return self._converted("merged", self.training.tuned_folder, "", self.training.adapter_folder, inputs)

    def _converted(
        self, form: str, folder: Path, base_id: str, adapter: Path | None, inputs: Mapping[str, str]
    ) -> StepResult:
        name = self.base_name if form == "base" else self.recipe.merged_name
        tolerance = self.recipe.gguf.parity_tolerance

        def work(out: Path) -> Mapping[str, Any]:
            from edge_forge.export.gguf.convert import convert_model

            return convert_model(folder, out, name, base_id, tolerance, adapter)

        settings = {"name": name, "tolerance": tolerance, "form": form}
        return self.steps.run("gguf", inputs, settings, work, f"gguf of {form}")

    @cached_property
    def adapter_file(self) -> StepResult:
        """adapter.gguf, its parity and its effect."""
        base, (folder, base_id), tolerance = self.base_file, self.base_folder, self.recipe.gguf.parity_tolerance
        adapter = self.training.adapter_folder
        assert adapter is not None  # noqa: S101 - asked for only where there is one

        def work(out: Path) -> Mapping[str, Any]:
            from edge_forge.export.gguf.convert import convert_adapter

            return convert_adapter(folder, adapter, base.path(MODEL_FILE), out, self.recipe.name, base_id, tolerance)

        inputs = {
            **base.digests(MODEL_FILE),
            "tokenizer": self.training.tokenizer_digest,
            **self.training.trained_digests,
        }
        return self.steps.run("gguf", inputs, {"form": "adapter", "tolerance": tolerance}, work, "gguf of adapter")

    def _formats(self, form: str, entry: StepResult) -> Iterator[GgufVariant]:
        """An F16 file and its other number formats, unmeasured."""
        parity = {"parity": entry.facts["parity"]}
        for dtype in self.recipe.quantize.variants:
            if dtype == "f16":
                yield GgufVariant(form, dtype, entry.path(MODEL_FILE), entry.digests(MODEL_FILE)[MODEL_FILE], parity)
                continue
            made = self._quantized(form, entry, dtype)
            name = f"{dtype}.gguf"
            yield GgufVariant(form, dtype, made.path(name), made.digests(name)[name], dict(made.facts))

    def _quantized(self, form: str, entry: StepResult, dtype: str) -> StepResult:
        def work(out: Path) -> Mapping[str, Any]:
            from edge_forge.export.gguf.convert import quantize

            return quantize(entry.path(MODEL_FILE), out, dtype)

        return self.steps.run(
            "gguf-quantize", entry.digests(MODEL_FILE), {"dtype": dtype}, work, f"quantize {form} {dtype}"
        )

    @cached_property
    def base_files(self) -> tuple[GgufVariant, ...]:
        """The base in all formats, with predicted memory; figures of no recipe's own."""
        return tuple(self._sampled(self._predicted(file)) for file in self._formats("base", self.base_file))

    @cached_property
    def adapter_files(self) -> tuple[GgufVariant, ...]:
        """The base's files with this recipe's adapter attached, measured."""
        if not self.has_adapter:
            return ()
        adapter = self.adapter_file
        return tuple(self._measured(replace(file, form="adapter"), adapter) for file in self.base_files)

    @cached_property
    def merged_files(self) -> tuple[GgufVariant, ...]:
        """The merged model in all formats, measured."""
        if not self.has_merged:
            return ()
        files = (self._predicted(file) for file in self._formats("merged", self.merged_file))
        return tuple(self._measured(file, None) for file in files)

    @cached_property
    def bare(self) -> GgufVariant:
        """The base in F16, measured on this recipe's rows: what the adapter is to improve."""
        return self._measured(self.base_files[0], None)

    def _predicted(self, file: GgufVariant) -> GgufVariant:
        section, task = self.recipe.gguf, self.recipe.task
        contexts = sorted({*(one for one in section.contexts if one < task.max_tokens), task.max_tokens})

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate.measure_gguf import predicted

            return predicted(file.path, contexts, section.sequences)

        settings = {"contexts": contexts, "sequences": section.sequences}
        title = f"memory of {file.form} {file.dtype}"
        found = self.steps.run("gguf-memory", {"model": file.digest}, settings, work, title).facts
        wanted = f"ctx{task.max_tokens}.kv_{section.kv_type}"
        if wanted not in found:
            raise EdgeError(
                f"a cache of {section.kv_type} does not fit the heads of this model", "gguf.kv_type", 'use "f16"'
            )
        return replace(file, figures={**file.figures, "peak_bytes": found[wanted], "memory": dict(found)})

    def _sampled(self, file: GgufVariant) -> GgufVariant:
        """The file with its perplexity on sentences that come with the forge: the base belongs to no recipe's data."""

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.export.gguf.convert import sample_perplexity

            return {"sample_perplexity": sample_perplexity(self.base_folder[0], file.path)}

        inputs = {"model": file.digest, "tokenizer": self.training.tokenizer_digest}
        title = f"perplexity of {file.form} {file.dtype}"
        found = self.steps.run("gguf-measure", inputs, {"what": "sample"}, work, title)
        return replace(file, figures={**file.figures, **found.facts})

    def _measured(self, file: GgufVariant, adapter: StepResult | None) -> GgufVariant:
        inputs = {
            "model": file.digest, "tokenizer": self.training.tokenizer_digest,
            **self.training.data_step.digests("validation.jsonl", "test.jsonl"),
        }  # fmt: skip
        if adapter is not None:
            inputs |= adapter.digests(ADAPTER_FILE)

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate.generator_scores import by_llama

            evaluation_set = self.training.evaluation_set(self.training.base.directory)
            return by_llama(evaluation_set, file.path, None if adapter is None else adapter.path(ADAPTER_FILE))

        title = f"measure {file.form} {file.dtype}"
        entry = self.steps.run("gguf-measure", inputs, self.training.evaluation_settings, work, title)
        self._measurements[file.form, file.dtype] = entry
        facts = entry.facts
        preferred = {key: one for key, one in facts.get("preferences", {}).items() if key != "pair_margins"}
        figures = {"perplexity": facts["perplexity"], **facts.get("answers", {}), **preferred}
        return replace(file, figures={**file.figures, **figures, "samples": facts.get("samples", [])})

    @cached_property
    def compared(self) -> tuple[GgufVariant, ...]:
        """What a comparison sets side by side, measured: the base alone in F16, and all that was made."""
        if self.recipe.is_new:
            return tuple(self._measured(file, None) for file in self.base_files)
        return (self.bare, *self.adapter_files, *self.merged_files)

    def timing_key(self, file: GgufVariant) -> str:
        """What tells whether two files are one when they are timed: the digests of model, adapter and prompts."""
        section, split = self.recipe.gguf, self.training.data.measured[0]
        parts = [
            file.digest, self.training.tokenizer_digest, self.training.data_step.digests(f"{split}.jsonl"),
            self.training.evaluation_settings, section.kv_type, section.sequences,
            self.adapter_file.digests(ADAPTER_FILE) if file.form == ADAPTER else {},
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def asked(self, file: GgufVariant) -> Any:
        """The file as it is timed (`measure_gguf.Asked`): it answers the first of the scored rows."""
        from edge_forge.data.chat_tokenizer import to_score
        from edge_forge.evaluate.measure_gguf import Asked, GgufSubject

        task, section, answer_tokens = self.recipe.task, self.recipe.gguf, self.recipe.evaluate.answer_tokens
        evaluation_set = self.training.evaluation_set(self.training.base.directory)
        encoded = to_score(evaluation_set.tokenizer, evaluation_set.rows, task.max_tokens)[1]
        # Of a text its beginning is the prompt.
        prompts = [one.ids[: one.answer or max(1, len(one.ids) // 2)] for one in encoded[:_PROMPTS]]
        options = {"max_tokens": task.max_tokens, "kv_type": section.kv_type, "sequences": section.sequences}
        adapter = self.adapter_file.path(ADAPTER_FILE) if file.form == ADAPTER else None
        served = GgufSubject(file.path, self.base_folder[1] if adapter else "", adapter, options)
        return Asked(served, [ids[: task.max_tokens - answer_tokens] for ids in prompts], answer_tokens)

    def beside_f16(self, file: GgufVariant) -> dict[str, Any]:
        """What a measured number format loses beside the F16 file of its form, on the same rows: `paired`
        (`PairedLosses`), and of preferences `paired_preferences` (`PairedPreferences`). Nothing of F16 itself."""
        held = self._measurements
        if file.dtype == "f16" or not {(file.form, file.dtype), (file.form, "f16")} <= held.keys():
            return {}
        reference, variant = (held[file.form, dtype].facts for dtype in ("f16", file.dtype))
        losses = {"reference": reference["row_losses"], "variant": variant["row_losses"]}

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate.paired import compare_losses

            sums = {name: [nats for nats, _ in found] for name, found in losses.items()}
            counts = [count for _, count in losses["variant"]]
            return compare_losses(sums["reference"], sums["variant"], counts).as_dict()

        title = f"compare {file.form} {file.dtype} with f16"
        found = {"paired": self.steps.run("gguf-paired", {}, losses, work, title).facts}
        if self.recipe.prefers:
            found["paired_preferences"] = self._paired_preferences(title, reference, variant)
        return found

    def _paired_preferences(
        self, title: str, reference: Mapping[str, Any], variant: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        _ = self.bare
        measured = (reference, variant, self._measurements["base", "f16"].facts)
        margins = [facts["preferences"]["pair_margins"] for facts in measured]

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate.preferences import compare_preferences

            return compare_preferences(*margins).as_dict()

        return self.steps.run("gguf-paired", {}, {"margins": margins}, work, f"{title}, by preferences").facts

    def verdicts(self, file: GgufVariant) -> list[gates.Gate]:
        """What the recipe's limits say of a measured number format; nothing of F16."""
        section, beside = self.recipe.quantize, self.beside_f16(file)
        found = []
        if "paired" in beside:
            found.append(gates.perplexity(file.form, file.dtype, beside["paired"], section.max_perplexity_ratio))
        if "paired_preferences" in beside:
            limits = gates.PreferenceLimits(section.max_preferred_loss, section.max_margin_loss)
            found.append(gates.preferences(file.form, file.dtype, beside["paired_preferences"], limits))
        return found

    @cached_property
    def judged(self) -> tuple[tuple[gates.Gate, ...], tuple[GgufVariant, ...]]:
        """Verdicts on what number formats lose, and the files that pass. Raises EdgeError where one stops the build."""
        verdicts: list[gates.Gate] = []
        passed = []
        for file in (*self.adapter_files, *self.merged_files):
            own = self.verdicts(file)
            verdicts += own
            # The base belongs to no recipe: what it loses for this adapter is said, not left out (decision 0023).
            if all(gate.holds for gate in own) or file.form == "adapter":
                passed.append(file)
        broken = [gate.sentence for gate in verdicts if not gate.holds]
        if broken and self.recipe.quantize.beyond == "fail":
            raise EdgeError("; ".join(broken), "gates", "leave the format out of quantize.variants, or allow more")
        for sentence in broken:
            self.steps.progress.warn(sentence)
        return tuple(verdicts), tuple(passed)

    def rows_of(self, files: Sequence[GgufVariant]) -> Iterator[dict[str, Any]]:
        """The files as the report wants them: plain values, with what each loses beside F16."""
        for file in files:
            own = self.verdicts(file)
            yield {
                "form": file.form, "dtype": file.dtype, "size_bytes": file.size_bytes, **file.figures,
                **self.beside_f16(file), **({"holds": all(gate.holds for gate in own)} if own else {}),
            }  # fmt: skip
