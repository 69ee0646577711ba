"""The module that Trainer sees: encoder, pooling, one linear layer, and the loss."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from edge_forge.models.encoder import Encoder

IGNORED = -100
"""The label of a token that begins no word; transformers' Trainer pads with it, too."""
PADDED = -1e4
"""The logit of padding where tokens compete with each other."""


class SequenceClassifier(nn.Module):
    """logits [rows, labels] = pooling(encoder(x)) @ head.weight.T + head.bias, and the cross-entropy.

    `answered` says what the logits are of. With "slots" there is no pooling: logits [rows, tokens, classes] of every
    token, and the loss of a row is the mean over its words, which are the tokens whose label is not `IGNORED`. With
    "answers" there is none either: logits [rows, tokens, 2] of an answer's start and end, `labels` [rows, 2] are the
    places of both, and the loss of a row is the mean of both cross-entropies over its tokens.
    `class_weight` [labels] has mean 1 over the training rows, so micro-batches add up to the batch's loss.
    """

    # Trainer would otherwise hand its row count to any forward that takes **inputs, and not scale summed micro-batches.
    accepts_loss_kwargs = False

    def __init__(
        self,
        encoder: Encoder,
        labels: int,
        *,
        class_weight: torch.Tensor | None = None,
        label_smoothing: float = 0.0,
        token_dropout: float = 0.0,
        consistency: float = 0.0,
        answered: Literal["text", "slots", "answers"] = "text",
    ) -> None:
        super().__init__()
        self.encoder = encoder.model
        self.pooling = encoder.pooling
        self.slots, self.answers = answered == "slots", answered == "answers"
        self.of_tokens = self.slots or self.answers
        self.head = nn.Linear(encoder.hidden if self.of_tokens else encoder.width, labels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        weight = torch.ones(labels) if class_weight is None else class_weight
        self.register_buffer("class_weight", weight, persistent=False)
        self.label_smoothing = label_smoothing
        self.token_dropout = token_dropout
        self.consistency = consistency

    def features(self, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """Features [rows, width] of `input_ids` or of kept states given as `inputs_embeds`; where tokens have logits
        the states [rows, tokens, hidden]."""
        states: torch.Tensor = self.encoder(attention_mask=attention_mask, **inputs).last_hidden_state
        if self.of_tokens:
            return states
        features: torch.Tensor = self.pooling(states, attention_mask)
        return features

    def forward(
        self, attention_mask: torch.Tensor, labels: torch.Tensor | None = None, **inputs: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """{"loss" (with labels), "logits"}; the loss is the mean over rows of weighted, smoothed cross-entropy.

        With `consistency` every row is computed twice in training, with other tokens hidden each time, and the distance
        of the two answers is added: + consistency * (KL(p|q) + KL(q|p)) / 2 (R-Drop, Liang et al. 2021).
        """
        twice = self.training and self.consistency > 0.0 and labels is not None
        if twice:
            attention_mask = torch.cat([attention_mask, attention_mask])
            inputs = {name: torch.cat([value, value]) for name, value in inputs.items()}
        whole = attention_mask
        if self.training and self.token_dropout:
            attention_mask = self._thinned(attention_mask)
        logits = self.head(self.features(attention_mask, **inputs)).float()
        if self.answers:  # padding is no place of an answer
            logits = logits.masked_fill((whole == 0)[..., None], PADDED)
        if labels is None:
            return {"logits": logits}
        targets = torch.cat([labels, labels]) if twice else labels
        loss = self._losses(logits, targets).mean()
        if twice:
            loss = loss + self.consistency * _divergence(*logits.chunk(2))
        return {"loss": loss, "logits": logits}

    def _losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of each row, in nats."""
        if self.answers:
            each = functional.cross_entropy(logits, targets, reduction="none")
            return each.mean(dim=1)
        weight: torch.Tensor = self.class_weight  # type: ignore[assignment]
        known = targets.clamp(min=0)
        each = functional.cross_entropy(
            logits.flatten(0, -2), known.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        each = each.view(known.shape) * weight[known]
        if not self.slots:
            return each
        words = (targets != IGNORED).to(each.dtype)
        return (each * words).sum(dim=1) / words.sum(dim=1).clamp(min=1.0)

    def _thinned(self, mask: torch.Tensor) -> torch.Tensor:
        """The mask with a share of its tokens hidden; the first token always stays, so no row is empty."""
        kept = torch.rand(mask.shape, device=mask.device) >= self.token_dropout
        kept[:, 0] = True
        return mask * kept


def _divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Mean over rows of (KL(p|q) + KL(q|p)) / 2 of two sets of logits [rows, labels], in nats."""
    p, q = functional.log_softmax(one, dim=-1), functional.log_softmax(other, dim=-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=-1).mean() / 2


def class_weights(targets: NDArray[np.int64], labels: int) -> torch.Tensor:
    """Balanced weights [labels]: n / (labels * n_k), as scikit-learn's "balanced"; their mean over the rows is 1.

    A label without a row weighs 0.
    """
    counts = np.bincount(targets, minlength=labels).astype(np.float64)
    present = int((counts > 0).sum())
    weights = np.divide(len(targets), present * counts, out=np.zeros(labels), where=counts > 0)
    return torch.from_numpy(weights.astype(np.float32))
