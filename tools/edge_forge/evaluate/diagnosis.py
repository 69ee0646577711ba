"""Opens a base and what was trained on it, and diagnoses every linear layer (`spectra`); scores the repair.

The repair scales intruder dimensions down (Shuttleworth et al. 2024, section 5) and asks the measured rows what that
costs or brings.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_forge.evaluate import spectra
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


def repaired(
    base_dir: Path,
    trained_dir: Path,
    intruders: Mapping[str, Sequence[int]],
    rows: tuple[Sequence[str], Sequence[int]],
    max_tokens: int,
) -> list[dict[str, Any]]:
    """{factor, accuracy} on `rows` (texts, labels' places) with all intruders scaled by 1 and by each of `FACTORS`."""
    texts, gold = rows
    found = []
    for factor in (1.0, *FACTORS):
        encoder, weight, bias = open_trained(base_dir, trained_dir, merged=True)
        scale_intruders(encoder, intruders, factor)
        _, logits = logits_of(encoder, base_dir, (weight, bias), texts, max_tokens)
        right = logits.argmax(axis=1) == np.asarray(gold)
        found.append({"factor": factor, "accuracy": float(right.mean())})
    return found


def scale_intruders(encoder: Encoder, intruders: Mapping[str, Sequence[int]], factor: float) -> None:
    """Scale the intruders of an encoder's weights, in place; `intruders` are places of singular values by module."""
    import torch

    for name, _, module in encoder.linears():
        places = tuple(intruders.get(name, ()))
        if places and factor != 1.0:
            made = spectra.scaled_down(module.weight.detach().numpy(), places, factor)
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(made))
