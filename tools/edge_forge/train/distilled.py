"""Distillation: a smaller encoder learns to answer and to represent texts as the tuned teacher that it was cut from.

    loss = T^2 KL(teacher / T || student / T) + hidden * mean over layers of |h_student - h_teacher|^2 / |h_teacher|^2

The first part is that of Hinton et al. 2015 on the logits; the second compares each layer of the student with the last
of the teacher's layers that it stands for (as TinyBERT, Jiao et al. 2020, without a projection: widths are equal),
over the tokens of the text and relative to the teacher's size, so that the weight means the same for every base. No
label is read: rows without one teach as well. Both see the same tokens where some are hidden (`token_dropout`), so the
teacher is computed in every step and not once for each text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edge_forge.models.encoder import Encoder
from edge_forge.models.sequence_classifier import SequenceClassifier


@dataclass(frozen=True)
class Teacher:
    """A tuned encoder with its head's weight [hidden, labels] and bias [labels]; it is never trained.

    A plain object, so that the student's parameters are the only ones of the module that holds it.
    """

    encoder: Encoder
    weight: torch.Tensor
    bias: torch.Tensor


class _Outputs:
    """The outputs [rows, tokens, hidden] of some layers of an encoder, of its last forward pass."""

    def __init__(self, encoder: Encoder, layers: tuple[int, ...]) -> None:
        self._found: dict[int, torch.Tensor] = {}
        self._layers = layers
        for index in layers:
            encoder.layer(index).register_forward_hook(self._keep(index))

    def _keep(self, index: int) -> Any:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            self._found[index] = output[0] if isinstance(output, tuple) else output

        return keep

    def take(self) -> list[torch.Tensor]:
        """The outputs in order of the layers; they are let go of."""
        return [self._found.pop(index) for index in self._layers]


class DistilledClassifier(SequenceClassifier):
    """The student with the teacher's head; `stands_for[i]` is the teacher's layer that layer i is compared with."""

    def __init__(
        self,
        student: Encoder,
        teacher: Teacher,
        stands_for: tuple[int, ...],
        *,
        temperature: float,
        hidden: float,
        token_dropout: float = 0.0,
    ) -> None:
        super().__init__(student, int(teacher.bias.shape[0]), token_dropout=token_dropout)
        with torch.no_grad():
            self.head.weight.copy_(teacher.weight.t())
            self.head.bias.copy_(teacher.bias)
        teacher.encoder.model.requires_grad_(False)
        self.teacher = teacher
        self.temperature, self.hidden = temperature, hidden
        self._own = _Outputs(student, tuple(range(student.layers)))
        self._shown = _Outputs(teacher.encoder, stands_for)

    def forward(
        self, attention_mask: torch.Tensor, labels: torch.Tensor | None = None, **inputs: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """{"loss" (with labels, whose values are not read), "logits"}; the loss is the mean over rows."""
        if self.training and self.token_dropout:
            attention_mask = self._thinned(attention_mask)
        logits = self.head(self.features(attention_mask, **inputs)).float()
        own = self._own.take()
        if labels is None:
            return {"logits": logits}
        wanted, shown = self._taught(attention_mask, **inputs)
        loss = softened_divergence(logits, wanted, self.temperature)
        if self.hidden:
            parts = [relative_distance(one, other, attention_mask) for one, other in zip(own, shown, strict=True)]
            loss = loss + self.hidden * torch.stack(parts).mean()
        return {"loss": loss, "logits": logits}

    @torch.no_grad()
    def _taught(self, attention_mask: torch.Tensor, **inputs: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        teacher, device = self.teacher, attention_mask.device
        model, pooling = teacher.encoder.model.to(device), teacher.encoder.pooling.to(device)
        features = pooling(model(attention_mask=attention_mask, **inputs).last_hidden_state, attention_mask)
        logits = functional.linear(features.float(), teacher.weight.t().to(device), teacher.bias.to(device))
        return logits, self._shown.take()


def softened_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(teacher / T || student / T), the mean over rows of logits [rows, labels], in nats. The factor keeps the
    gradient's size at every temperature."""
    own = functional.log_softmax(student / temperature, dim=-1)
    wanted = functional.log_softmax(teacher.float() / temperature, dim=-1)
    return temperature**2 * functional.kl_div(own, wanted, reduction="batchmean", log_target=True)


def relative_distance(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """|student - teacher|^2 / |teacher|^2 over the tokens of `mask` [rows, tokens]; states [rows, tokens, hidden]."""
    kept = mask.bool()
    own, wanted = student[kept].float(), teacher[kept].float()
    return (own - wanted).square().sum() / wanted.square().sum().clamp_min(1e-12)
