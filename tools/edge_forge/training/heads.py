"""Class weights, and a head that starts from what the base already knows instead of zeros."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from edge_forge.training.batches import RowDataset, collate
from edge_forge.training.classifier import SequenceClassifier
from edge_forge.training.features import by_length

_TOKENS_PER_BATCH = 1024
# Share of the spherical covariance mixed into the measured one: few rows give a singular one.
_SHRINKAGE = 0.1


def class_weights(targets: NDArray[np.int64], labels: int) -> torch.Tensor:
    """Balanced weights [labels]: n / (labels * n_k), as scikit-learn's "balanced"; their mean over the rows is 1.

    A label without a row weighs 0.
    """
    counts = np.bincount(targets, minlength=labels).astype(np.float64)
    present = int((counts > 0).sum())
    weights = np.divide(len(targets), present * counts, out=np.zeros(labels), where=counts > 0)
    return torch.from_numpy(weights.astype(np.float32))


def features(model: SequenceClassifier, data: RowDataset) -> NDArray[np.float32]:
    """Features [rows, hidden] of every row, in the data's order, without a graph."""
    found = np.zeros((len(data), model.head.in_features), dtype=np.float32)
    device = model.head.weight.device
    with torch.inference_mode():
        for batch in by_length(data.rows.lengths, _TOKENS_PER_BATCH):
            inputs = {name: value.to(device) for name, value in collate([data[int(row)] for row in batch]).items()}
            inputs.pop("labels")
            found[batch] = model.features(**inputs).cpu().numpy()
    return found


def start(model: SequenceClassifier, data: RowDataset) -> None:
    """Set the head to Fisher's linear discriminant of the features as they are now (Hastie et al., ESL 4.3).

    W = S^-1 mu_k, b = log pi_k - mu_k' S^-1 mu_k / 2, with S the shrunk within-class covariance.
    """
    weight, bias = discriminant(features(model, data), data.rows.targets, model.head.out_features)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(weight))
        model.head.bias.copy_(torch.from_numpy(bias))


def discriminant(
    rows: NDArray[np.float32], targets: NDArray[np.int64], labels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(weight [labels, hidden], bias [labels]) of the linear discriminant of rows [n, hidden]."""
    x = rows.astype(np.float64)
    counts = np.bincount(targets, minlength=labels).astype(np.float64)
    means = np.zeros((labels, x.shape[1]))
    np.add.at(means, targets, x)
    means /= np.maximum(counts, 1)[:, None]
    within = x - means[targets]
    covariance = within.T @ within / len(x)
    sphere = np.trace(covariance) / x.shape[1]
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * sphere * np.eye(x.shape[1])
    weight = np.linalg.solve(shrunk, (means - x.mean(axis=0)).T).T
    prior = np.log(np.maximum(counts, 0.5) / len(x))
    bias = prior - 0.5 * ((means + x.mean(axis=0)) * weight).sum(axis=1)
    return weight.astype(np.float32), bias.astype(np.float32)
