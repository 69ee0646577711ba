"""The last part of a classifier's plan: golden probes and unsigned packages.

The packages of a recipe, in the order of their installation: the base's (LoRA), the adapter's (LoRA), the merged one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.base.texts import Text
from edge_forge.evaluate import probes
from edge_forge.package import classifier_sources as sources
from edge_forge.package import device_engines
from edge_forge.package.classifier_sources import MERGED_FORM, MULTI_ADAPTER, GraphVariant
from edge_forge.package.sources import ReleaseSource
from edge_forge.plan.cache import StepResult, file_digest, write_json
from edge_forge.plan.onnx_exports import OnnxExports
from edge_forge.plan.signing import PACKAGE, PackageSigner
from edge_forge.plan.step_runner import runtime_versions

if TYPE_CHECKING:
    from edge_forge.evaluate.measure_onnx import ModelOutputs

PROBES = "probes.json"


class ClassifierPackages:
    """From measured graphs to unsigned packages."""

    def __init__(self, exports: OnnxExports, signer: PackageSigner) -> None:
        self.exports = exports
        self.signer = signer
        self.training = exports.training
        self.recipe = exports.recipe
        self.steps = exports.steps

    @cached_property
    def base_package(self) -> StepResult:
        """The base with its bank: of no recipe's own."""
        graphs = tuple(self._sized(graph) for graph in self.exports.bare_graphs)
        subjects = {graph.variant: self._subject(graph, None, self.training.bank_tokens) for graph in graphs}
        golden = self._probes("base", graphs, subjects, probes.BASE_TEXTS)
        base, recipe = self.training.base, self.recipe

        def pack(folder: Path, release: ReleaseSource) -> Any:
            from edge_forge.package.build import build_base_package

            files = {"probes": golden.path(PROBES), "tokenizer": self.exports.base_export.path("tokenizer.json")}
            model = sources.base_model(
                recipe, base.base_id, base.config, graphs, files, self.training.bank_tokens, self.training.prompt
            )
            return build_base_package(folder / PACKAGE, model, release)

        settings = {
            "name": recipe.base.name,
            "max_tokens": self.training.bank_tokens,
            **sources.with_prompt(self.training.prompt),
        }
        return self._package(recipe.base.name, recipe.base.version, (graphs, golden), settings, pack)

    @cached_property
    def adapter_package(self) -> StepResult:
        """The adapter alone; its subject is the base's package."""
        graphs = tuple(graph for graph in self.exports.judged[1] if graph.form == MULTI_ADAPTER)
        texts = self.training.probe_texts(self.recipe.package.probes)
        file = self.training.trained.path("run/adapter.safetensors")
        # A device cuts a text at the adapter's own limit with it, at the base's without it; so do the probes.
        own, tokens = self.recipe.task.max_tokens, self.training.bank_tokens
        subjects = {graph.variant: self._subject(graph, file, own) for graph in graphs}
        bare = {graph.variant: self._subject(graph, None, tokens) for graph in graphs}
        golden = self._probes("adapter", graphs, subjects, texts, bare)
        base_package = self.base_package

        def pack(folder: Path, release: ReleaseSource) -> Any:
            from edge_forge.package.build import build_adapter_package

            files = {"probes": golden.path(PROBES), "adapter": file, **self.signer.card}
            source = sources.adapter(
                self.recipe, self.training.data.labels, self.training.trained.facts, files, graphs, self.training.prompt
            )
            return build_adapter_package(folder / PACKAGE, [source], base_package.path(PACKAGE), release)

        settings = {
            "task": sources.task_of(self.recipe, self.training.data.labels, self.training.prompt),
            "adapter": self.training.trained_digests["run/adapter.safetensors"],
            "base": base_package.facts["index"],
            "licence": self.recipe.package.licence,
        }
        return self._package(self.recipe.name, self.recipe.package.version, (graphs, golden), settings, pack)

    @cached_property
    def merged_package(self) -> StepResult:
        """Base and adapter in one graph, in the variants that pass the gates."""
        graphs = tuple(graph for graph in self.exports.judged[1] if graph.form == MERGED_FORM)
        texts = self.training.probe_texts(self.recipe.package.probes)
        subjects = {graph.variant: self._subject(graph, None, self.recipe.task.max_tokens) for graph in graphs}
        golden = self._probes("merged", graphs, subjects, texts)
        weights = [
            name for name in self.training.trained_digests if name.count("/") == 1 and name.endswith(".safetensors")
        ]
        merged_from = {"base": self.training.base.base_id}
        merged_from |= {Path(name).name: self.training.trained_digests[name] for name in sorted(weights)}

        def pack(folder: Path, release: ReleaseSource) -> Any:
            from edge_forge.package.build import build_merged_package

            files = {
                "probes": golden.path(PROBES),
                "tokenizer": self.exports.merged_export.path("tokenizer.json"),
                **self.signer.card,
            }
            model = sources.merged_model(
                self.recipe, self.training.data.labels, merged_from, graphs, files, self.training.prompt
            )
            return build_merged_package(folder / PACKAGE, model, release)

        settings = {
            "task": sources.task_of(self.recipe, self.training.data.labels, self.training.prompt),
            "merged_from": merged_from,
            "licence": self.recipe.package.licence,
        }
        name = self.recipe.merged_name
        return self._package(name, self.recipe.package.version, (graphs, golden), settings, pack)

    @cached_property
    def packed(self) -> dict[str, tuple[str, StepResult]]:
        """The unsigned packages: file name to (what it is, step), in the order of installation."""
        recipe, found = self.recipe, {}
        self._check_engines()
        if self.exports.has_multi_adapter:
            digest = self.base_package.facts["index"].removeprefix("sha256:")[:8]
            found[f"{recipe.base.name}-{digest}.tar"] = ("base", self.base_package)
            found[f"{recipe.name}-v{recipe.package.version}.tar"] = ("adapter", self.adapter_package)
        if recipe.export.merged:
            name = f"{recipe.merged_name}-v{recipe.package.version}.tar"
            found[name] = ("merged model", self.merged_package)
        return found

    def _check_engines(self) -> None:
        """Refuse engines that no package of the recipe would carry."""
        exports = self.exports
        if exports.engines:
            made = (*(exports.bare_graphs if exports.has_multi_adapter else ()), *exports.merged_graphs)
            device_engines.check_used(exports.engines, [graph.digest for graph in made])

    def _subject(self, graph: GraphVariant, adapter: Path | None, max_tokens: int) -> Any:
        from edge_forge.evaluate.measure_onnx import OnnxSubject

        entry = self.exports.base_export if graph.form == MULTI_ADAPTER else self.exports.merged_export
        base_id = self.training.base.base_id if graph.form == MULTI_ADAPTER else ""
        return OnnxSubject(
            graph.path, entry.path("tokenizer.json"), max_tokens, adapter, base_id, prompt=self.training.prompt,
            backend=graph.measured_by,
        )  # fmt: skip

    def _sized(self, graph: GraphVariant) -> GraphVariant:
        """A graph of the base with its memory, which no recipe has a part in."""
        if not graph.runs_here:
            return graph
        tokens = self.training.bank_tokens

        def work(_: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate import measure_onnx as measure

            return {"memory": measure.memory(self._subject(graph, None, tokens))._asdict()}

        settings = {"max_tokens": tokens, "what": "memory"}
        entry = self.steps.run(
            "measure", {"model": graph.digest}, settings, work, f"measure memory of base {graph.dtype}"
        )
        figures = {"parity": (graph.figures or {}).get("parity"), "peak_bytes": entry.facts["memory"]["peak_bytes"]}
        return dataclasses.replace(graph, figures=figures)

    def _probes(
        self, what: str, graphs: Sequence[GraphVariant], subjects: Mapping[str, Any], texts: Sequence[Text],
        bare: Mapping[str, Any] | None = None,
    ) -> StepResult:  # fmt: skip
        """`probes.json` for graphs with the same texts."""
        inputs = {graph.variant: graph.digest for graph in graphs} | {"tokenizer": self.training.tokenizer_digest}
        first = next(iter(subjects.values()))
        if first.adapter is not None:
            inputs |= {"adapter": self.training.trained_digests["run/adapter.safetensors"]}

        def work(folder: Path) -> Mapping[str, Any]:
            from edge_forge.evaluate.measure_onnx import golden
            from edge_forge.export.onnx.scored import scored

            def computed(variant: str, subject: Any) -> Any:
                runtime, dtype = variant.split("/")
                if runtime == subject.backend:
                    return golden(subject, texts)
                with scored(subject, dtype, runtime) as true:
                    return golden(true, texts)

            def run(found: Mapping[str, Any]) -> dict[str, probes.VariantOutputs]:
                results = {name: computed(name, subject) for name, subject in found.items()}
                labels = 0 if what == "base" else len(self.training.data.labels)
                classes = len(self.training.classes) if self.recipe.of_tokens and labels else None
                return {
                    name: probes.VariantOutputs(
                        one.features.tolist(),
                        _logits(one, labels),
                        classes,
                        self.recipe.answers and classes is not None,
                    )
                    for name, one in results.items()
                }

            document = probes.document(texts, run(subjects), None if bare is None else run(bare))
            write_json(folder / PROBES, document)
            names = ("features_tolerance", "logits_tolerance", "min_effect")
            return {name: {key: one.get(key) for key in names} for name, one in document["expected"].items()}

        settings = {"texts": list(texts), "max_tokens": first.max_tokens, "what": what,
                    **runtime_versions(graph.runtime for graph in graphs)}  # fmt: skip
        return self.steps.run("probes", inputs, settings, work, f"golden probes of {what}")

    def _package(
        self,
        product: str,
        counter: int,
        parts: tuple[Sequence[GraphVariant], StepResult],
        settings: Mapping[str, Any],
        pack: Any,
    ) -> StepResult:
        graphs, golden = parts
        inputs = {graph.variant: graph.digest for graph in graphs} | golden.digests(PROBES)
        inputs |= {"tokenizer": self.training.tokenizer_digest}
        inputs |= {name: file_digest(path) for graph in graphs for name, path in graph.engines.items()}
        card = {} if product == self.recipe.base.name else {k: file_digest(v) for k, v in self.signer.card.items()}
        figures = [sources.numbers(graph) | sources.drift_reference(graph) for graph in graphs]
        packaged = self.signer.packaged_base if product == self.recipe.base.name else self.signer.packaged
        return packaged(product, counter, inputs, {**settings, "figures": figures, "card": card}, pack)


def _logits(outputs: ModelOutputs, labels: int) -> list[list[float]] | None:
    """A row for each text: the logits of its `labels`, of slots and answers those of its tokens one after
    another; None for 0."""
    if outputs.of_tokens is not None:
        return [one.ravel().tolist() for one in outputs.of_tokens]
    found: list[list[float]] | None = None
    if outputs.logits is not None and labels:
        found = outputs.logits[:, :labels].tolist()
    return found
