"""The loss of a distillation: its two parts by hand, and that labels do not count."""

import numpy as np
import pytest
import torch

from edge_forge.models.encoder import open_encoder
from edge_forge.train.distilled import DistilledClassifier, Teacher, relative_distance, softened_divergence

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
STUDENT = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]
TEACHER = [[2.0, 0.0, -1.0], [0.5, 0.5, 4.0]]


def softened(logits, temperature):
    found = np.exp(np.asarray(logits) / temperature)
    return found / found.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_the_divergence_is_from_teacher_to_student_and_keeps_its_size(temperature):
    own, wanted = softened(STUDENT, temperature), softened(TEACHER, temperature)
    by_hand = temperature**2 * (wanted * np.log(wanted / own)).sum(axis=1).mean()
    found = softened_divergence(torch.tensor(STUDENT), torch.tensor(TEACHER), temperature)
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


def test_the_distance_of_states_is_relative_and_without_padding():
    student, teacher = torch.zeros(1, 3, 2), torch.tensor([[[3.0, 4.0], [0.0, 5.0], [100.0, 100.0]]])
    student[0, 0] = torch.tensor([3.0, 4.0])
    assert float(relative_distance(student, teacher, torch.tensor([[1, 1, 0]]))) == pytest.approx(25 / 50)


def test_a_student_that_is_its_teacher_has_no_loss_and_labels_do_not_count(tiny_base):
    student, whole = open_encoder(tiny_base), open_encoder(tiny_base)
    generator = torch.Generator().manual_seed(1)
    teacher = Teacher(whole, torch.randn(student.width, 2, generator=generator), torch.tensor([0.5, -0.5]))
    model = DistilledClassifier(student, teacher, tuple(range(student.layers)), temperature=2.0, hidden=1.0).eval()
    ids, mask = torch.arange(8).reshape(2, 4) + 2, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

    def loss(labels):
        return float(model(mask, torch.tensor(labels), input_ids=ids)["loss"].detach())

    assert loss([0, 1]) == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        model.head.bias.add_(torch.tensor([1.0, 0.0]))
    logits_alone = loss([0, 1])
    assert logits_alone > 1e-3 and loss([1, 0]) == logits_alone
    with torch.no_grad():
        student.model.get_submodule("encoder.layer.0.output.LayerNorm").weight.mul_(2.0)
    both = loss([0, 1])
    model.hidden = 0.0
    assert both > loss([0, 1]) + 1e-3
    assert not any(name.startswith("teacher") for name, _ in model.named_parameters())
