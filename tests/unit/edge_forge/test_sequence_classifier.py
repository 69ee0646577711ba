"""The loss of the classifier, on an encoder that hands its input through."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from edge_agent.base.errors import ConfigError
from edge_forge.models.pooling_layers import SentencePooling
from edge_forge.models.sequence_classifier import SequenceClassifier
from edge_forge.train.settings import TrainSettings, replaced


class Through(nn.Module):
    def forward(self, attention_mask: torch.Tensor, inputs_embeds: torch.Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=inputs_embeds)


def model(**settings: float) -> SequenceClassifier:
    torch.manual_seed(1)
    encoder: Any = SimpleNamespace(model=Through(), pooling=SentencePooling(), width=4)
    made = SequenceClassifier(encoder, 3)
    nn.init.normal_(made.head.weight)
    for name, value in settings.items():
        setattr(made, name, value)
    return made.train()


def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {
        "attention_mask": torch.ones(5, 7, dtype=torch.int64),
        "inputs_embeds": torch.randn(5, 7, 4),
        "labels": torch.tensor([0, 1, 2, 1, 0]),
    }


def test_two_equal_answers_cost_what_one_costs() -> None:
    plain = model()(**batch())["loss"].item()
    assert model(consistency=1.0)(**batch())["loss"].item() == pytest.approx(plain, rel=1e-5)


def test_answers_that_differ_cost_more_and_only_while_training() -> None:
    torch.manual_seed(3)
    apart = model(token_dropout=0.5)(**batch())["loss"].item()
    together = []
    for weight in (1e-9, 4.0):
        held = model(consistency=weight, token_dropout=0.5)
        torch.manual_seed(3)
        together.append(held(**batch())["loss"].item())
    assert together[1] > together[0]
    assert apart > 0
    resting = model(consistency=4.0, token_dropout=0.5).eval()
    assert resting(**batch())["logits"].shape == (5, 3)


def test_the_gradient_of_the_divergence_draws_answers_together() -> None:
    from edge_forge.models.sequence_classifier import _divergence

    one, other = torch.tensor([[2.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 2.0]])
    far = _divergence(one, other)
    far.backward()
    near = _divergence(one.detach() - 0.5 * one.grad, other)
    assert 0 < near < far
    assert _divergence(other, other).item() == 0.0


def test_consistency_without_dropout_is_refused() -> None:
    with pytest.raises(ConfigError, match="the same without dropout"):
        replaced(TrainSettings(), {"consistency": 1.0}, "recipe.toml: [train]")
    assert replaced(TrainSettings(), {"consistency": 1.0, "token_dropout": 0.1}, "x").consistency == 1.0
