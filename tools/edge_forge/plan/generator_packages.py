"""The last part of a generator's plan: golden probes and unsigned packages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_forge.data.generator_rows import chosen
from edge_forge.evaluate import probes
from edge_forge.export.gguf import ADAPTER_FILE
from edge_forge.package import preflight
from edge_forge.package.release import merged_id
from edge_forge.package.sources import AdapterPackageSource, ModelSource, ReleaseSource, VariantSource
from edge_forge.plan.cache import StepResult, write_json
from edge_forge.plan.gguf_exports import RUNTIME, GgufExports, GgufVariant
from edge_forge.plan.signing import PACKAGE, PackageSigner
from edge_forge.recipe.generator_recipe import GeneratorRecipe

PROBES = "probes.json"
_SCORES = ("perplexity", "sample_perplexity", "exact_match", "json_match", "bleu", "rouge_l", "preferred", "margin")


class GeneratorPackages:
    """From measured GGUF files to unsigned packages."""

    def __init__(self, exports: GgufExports, signer: PackageSigner) -> None:
        self.exports = exports
        self.signer = signer
        self.training = exports.training
        self.recipe = exports.recipe
        self.steps = exports.steps

    def check(self) -> None:
        """Raise ConfigError for what a device would refuse of the packages, before anything is trained."""
        recipe, exports, task = self.recipe, self.exports, task_of(self.recipe)
        version = recipe.package.version
        products = [(exports.base_name, recipe.base.version)] if exports.has_adapter or recipe.is_new else []
        products += [(recipe.name, version)] if exports.has_adapter else []
        products += [(recipe.merged_name, version)] if exports.has_merged else []
        preflight.check_documents(recipe, products, task, task)
        if exports.has_adapter:
            preflight.check_adapter_document(recipe.name, recipe.training.rank, recipe.training.alpha, task)

    @cached_property
    def packed(self) -> dict[str, tuple[str, StepResult]]:
        """The unsigned packages: file name to (what it is, step), in the order of installation."""
        found, recipe = {}, self.recipe
        if self.exports.has_adapter or recipe.is_new:
            digest = self.base_package.facts["index"].removeprefix("sha256:")[:8]
            found[f"{self.exports.base_name}-{digest}.tar"] = ("base", self.base_package)
        if self.exports.has_adapter:
            found[f"{recipe.name}-v{recipe.package.version}.tar"] = ("adapter", self.adapter_package)
        if self.exports.has_merged:
            found[f"{recipe.merged_name}-v{recipe.package.version}.tar"] = ("merged model", self.merged_package)
        return found

    @cached_property
    def base_package(self) -> StepResult:
        """The base in its formats: of no recipe's own."""
        files, recipe = self.exports.base_files, self.recipe
        base_id = self.exports.base_folder[1]
        golden = self._probes("base", files, probes.BASE_TEXTS, base_id)

        def pack(folder: Path, release: ReleaseSource) -> Any:
            from edge_forge.package.build import build_base_package

            return build_base_package(
                folder / PACKAGE, self._model(self.exports.base_name, base_id, files, golden), release
            )

        settings = {**self._settings(files), "licence": ""}
        inputs = _inputs(files, golden)
        return self.signer.packaged_base(self.exports.base_name, recipe.base.version, inputs, settings, pack)

    @cached_property
    def adapter_package(self) -> StepResult:
        """The adapter alone; its subject is the base's package."""
        recipe, files, entry = self.recipe, self.exports.adapter_files, self.exports.adapter_file
        base_id, base = self.exports.base_folder[1], self.base_package
        golden = self._probes("adapter", files, self._texts(), base_id, entry)

        def pack(folder: Path, release: ReleaseSource) -> Any:
            from edge_forge.package.build import build_adapter_package

            source = AdapterPackageSource(
                name=recipe.name,
                base_id=base_id,
                weights=entry.path(ADAPTER_FILE),
                rank=entry.facts["rank"],
                alpha=entry.facts["alpha"],
                targets=entry.facts["modules"],
                task=task_of(recipe),
                probes=golden.path(PROBES),
                dtype="float16",
                accuracy=files[0].figures.get("exact_match"),
                metrics={f"{key}.{file.dtype}": value for file in files for key, value in scores(file).items()},
                licences=[recipe.package.licence] if recipe.package.licence else (),
            )
            return build_adapter_package(folder / PACKAGE, [source], base.path(PACKAGE), release)

        inputs = {**_inputs(files, golden), **entry.digests(ADAPTER_FILE), "subject": base.facts["index"]}
        settings = {**self._settings(files), "licence": recipe.package.licence}
        return self.signer.packaged(recipe.name, recipe.package.version, inputs, settings, pack)

    @cached_property
    def merged_package(self) -> StepResult:
        """Base and adapter in one file, in the formats that pass the gates."""
        recipe, name = self.recipe, self.recipe.merged_name
        files = tuple(file for file in self.exports.judged[1] if file.form == "merged")
        merged_from = {"base": self.training.base.base_id}
        weights = {
            Path(key).name: value
            for key, value in self.training.trained_digests.items()
            if key.endswith(".safetensors")
        }
        merged_from |= dict(sorted(weights.items()))
        if self.training.adapter_folder is not None:
            # The adapter as devices have it: by this one knows that the two do the same.
            merged_from |= self.exports.adapter_file.digests(ADAPTER_FILE)
        base_id = merged_id(merged_from)
        golden = self._probes("merged", files, self._texts(), "")

        def pack(folder: Path, release: ReleaseSource) -> Any:
            from edge_forge.package.build import build_merged_package

            model = self._model(name, base_id, files, golden, merged_from, recipe.package.licence)
            return build_merged_package(folder / PACKAGE, model, release)

        settings = {**self._settings(files), "merged_from": merged_from, "licence": recipe.package.licence}
        return self.signer.packaged(name, recipe.package.version, _inputs(files, golden), settings, pack)

    def _model(
        self, name: str, base_id: str, files: Sequence[GgufVariant], golden: StepResult,
        merged_from: Mapping[str, str] | None = None, licence: str = "",
    ) -> ModelSource:  # fmt: skip
        return ModelSource(
            name=name,
            base_id=base_id,
            task=task_of(self.recipe),
            variants=[self._variant(file) for file in files],
            probes=golden.path(PROBES),
            architecture=str(self.training.base.config.get("model_type", "")),
            merged_from=merged_from or {},
            licences=[licence] if licence else (),
        )

    def _variant(self, file: GgufVariant) -> VariantSource:
        section = self.recipe.gguf
        return VariantSource(
            weights=file.path,
            runtime=RUNTIME,
            dtype=file.dtype,
            peak_bytes=file.figures["peak_bytes"],
            accuracy=file.figures.get("exact_match"),
            options={"kv_type": section.kv_type, "sequences": section.sequences},
            metrics=numbers(file),
        )

    def _texts(self) -> tuple[str, ...]:
        """Questions (or beginnings of texts) of the measured rows, as probes."""
        found: list[str] = []
        for row in self.training.data.measured[1]:
            asked = chosen(row)
            text = (asked[-2] if len(asked) > 1 else asked[-1]).text[:400].strip()
            if text not in found:
                found.append(text)
        return tuple(found[: self.recipe.package.probes])

    def _probes(
        self,
        what: str,
        files: Sequence[GgufVariant],
        texts: Sequence[str],
        base_id: str,
        adapter: StepResult | None = None,
    ) -> StepResult:
        """`probes.json` for files with the same texts, by the backend that devices run."""
        inputs = {file.variant: file.digest for file in files}
        if adapter is not None:
            inputs |= adapter.digests(ADAPTER_FILE)

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate.measure_gguf import features

            def run(path: Path | None) -> dict[str, probes.VariantOutputs]:
                return {
                    file.variant: probes.VariantOutputs(features(file.path, texts, base_id, path)) for file in files
                }

            bare = None if adapter is None else run(None)
            document = probes.document(texts, run(None if adapter is None else adapter.path(ADAPTER_FILE)), bare)
            write_json(folder / PROBES, document)
            names = ("features_tolerance", "min_effect")
            return {name: {key: one.get(key) for key in names} for name, one in document["expected"].items()}

        settings = {"texts": list(texts), "base_id": base_id, "what": what}
        return self.steps.run("gguf-probes", inputs, settings, work, f"golden probes of {what}")

    def _settings(self, files: Sequence[GgufVariant]) -> dict[str, Any]:
        section = self.recipe.gguf
        return {
            "task": task_of(self.recipe), "options": [section.kv_type, section.sequences],
            "figures": [{**numbers(file), **scores(file)} for file in files],
        }  # fmt: skip


def task_of(recipe: GeneratorRecipe) -> dict[str, Any]:
    """The generator's task for the device."""
    return {"kind": "generate", "max_tokens": recipe.task.max_tokens}


def scores(file: GgufVariant) -> dict[str, float]:
    """Scores of a file, rounded so that they read well."""
    return {key: float(f"{file.figures[key]:.6g}") for key in _SCORES if file.figures.get(key) is not None}


def numbers(file: GgufVariant) -> dict[str, float]:
    """The figures of a file that travel in its package: scores, parity, size, predicted bytes per context and cache."""
    memory = {f"peak_bytes.{name}": float(value) for name, value in file.figures["memory"].items()}
    parity = {"parity": float(f"{file.figures['parity']:.3g}")} if "parity" in file.figures else {}
    return {**scores(file), **parity, "size_bytes": float(file.size_bytes), **memory}


def _inputs(files: Sequence[GgufVariant], golden: StepResult) -> dict[str, str]:
    return {file.variant: file.digest for file in files} | golden.digests(PROBES)
