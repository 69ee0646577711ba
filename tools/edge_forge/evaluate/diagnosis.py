"""Opens a base and what was trained on it, and diagnoses every linear layer (`spectra`); scores the repair.

The repair scales intruder dimensions down (Shuttleworth et al. 2024, section 5) and asks the measured rows what that
costs, and the questions of `forgetting` what it brings back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.base.texts import Text
from edge_forge.evaluate import spectra
from edge_forge.evaluate.forgetting import EncoderQuestions, GeneratorQuestions, encoder_scores, generator_scores
from edge_forge.evaluate.generator_scores import EvaluationSet
from edge_forge.evaluate.predict import logits_of
from edge_forge.models.encoder import Encoder, open_encoder
from edge_forge.train.trained_encoder import open_trained

FACTORS = (0.75, 0.5, 0.25, 0.0)
"""What intruders' singular values are multiplied by when the repair is tried."""


def of_encoder(base_dir: Path, trained_dir: Path, top: int, threshold: float) -> list[spectra.WeightDiagnosis]:
    """Every linear layer of a trained encoder, in the model's order, with adapters folded in."""
    base, (tuned, _, _) = open_encoder(base_dir), open_trained(base_dir, trained_dir, merged=True)
    return [spectra.diagnose(name, one, other, top, threshold) for name, one, other in _weights(base, tuned)]


def of_generator(
    base_dir: Path, tuned_dir: Path, adapter: Path | None, top: int, threshold: float
) -> list[spectra.WeightDiagnosis]:
    """Every linear layer of a tuned generator, in the model's order, with an adapter folded in."""
    from edge_forge.models.causal_lm import open_model, target_names

    base, tuned = open_model(base_dir), open_model(tuned_dir, adapter)
    tuned = tuned if adapter is None else tuned.merge_and_unload()
    found = []
    for name in target_names(base, ("all",)):
        one, other = (model.get_submodule(name).weight.detach().numpy() for model in (base, tuned))
        found.append(spectra.diagnose(name, one, other, top, threshold))
    return found


def _weights(base: Encoder, tuned: Encoder) -> Iterator[tuple[str, spectra.Matrix, spectra.Matrix]]:
    trained = {name: module for name, _, module in tuned.linears()}
    for name, _, module in base.linears():
        yield name, module.weight.detach().numpy(), trained[name].weight.detach().numpy()


def repaired_encoder(
    folders: tuple[Path, Path],
    intruders: Mapping[str, Sequence[int]],
    rows: tuple[Sequence[Text], Sequence[int]],
    max_tokens: int,
    asked: EncoderQuestions,
) -> list[dict[str, Any]]:
    """What a trained encoder has learned and kept with all intruders scaled by 1 and by each of `FACTORS`.

    `folders` are the base's and the result's, `rows` (texts, labels' places). Each entry is {factor, learned, kept}:
    `learned` the accuracy on `rows`, `kept` the scores of `forgetting.encoder_scores`.
    """
    (base_dir, trained_dir), (texts, gold) = folders, rows
    found = []
    for factor in (1.0, *FACTORS):
        encoder, weight, bias = open_trained(base_dir, trained_dir, merged=True)
        scale_intruders({name: module for name, _, module in encoder.linears()}, intruders, factor)
        _, logits = logits_of(encoder, base_dir, (weight, bias), texts, max_tokens)
        right = logits.argmax(axis=1) == np.asarray(gold)
        kept = encoder_scores(encoder, base_dir, asked)
        found.append({"factor": factor, "learned": float(right.mean()), "kept": kept})
    return found


def repaired_generator(
    folders: tuple[Path, Path | None],
    intruders: Mapping[str, Sequence[int]],
    measured: EvaluationSet,
    asked: GeneratorQuestions,
) -> list[dict[str, Any]]:
    """The same of a generator: `folders` are the tuned model's and its adapter's, `learned` is the perplexity of the
    measured answers, or of preferences the share of pairs whose chosen answer is likelier."""
    from edge_forge.evaluate.generator_scores import learned_by
    from edge_forge.models.causal_lm import losses, open_model

    found = []
    for factor in (1.0, *FACTORS):
        model = open_model(*folders)
        model = model if folders[1] is None else model.merge_and_unload()
        scale_intruders({name: model.get_submodule(name) for name in intruders}, intruders, factor)
        learned = learned_by(measured, partial(losses, model))
        kept = generator_scores(model, measured.tokenizer, asked)
        found.append({"factor": factor, "learned": learned, "kept": kept})
    return found


def scale_intruders(modules: Mapping[str, Any], intruders: Mapping[str, Sequence[int]], factor: float) -> None:
    """Scale the intruders of linear modules by name, in place; `intruders` are places of singular values by name."""
    import torch

    for name, places in intruders.items():
        if places and factor != 1.0:
            weight = modules[name].weight
            made = spectra.scaled_down(weight.detach().numpy(), tuple(places), factor)
            with torch.no_grad():
                weight.copy_(torch.from_numpy(made))
