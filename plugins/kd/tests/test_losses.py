"""Each loss against a scalar reference written after the paper's formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from makeweight_kd.losses import divergence, feature_distance, log_mean_probability


def softmax(logits: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def kl(student: Tensor, teachers: list[Tensor], temperature: float) -> float:
    """KL(p ‖ q) averaged over the examples; p is the mean of the teachers' softened probabilities."""
    reference = 0.0
    for row, q in enumerate(softmax(logits, temperature) for logits in student.tolist()):
        each = [softmax(teacher[row].tolist(), temperature) for teacher in teachers]
        p = [sum(column) / len(each) for column in zip(*each, strict=True)]
        reference += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return reference / len(student)


@pytest.mark.parametrize("temperature", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("count", [1, 3])
def test_divergence_is_the_kl_from_the_student_to_the_teachers_mean_probability(temperature: float, count: int) -> None:
    torch.manual_seed(0)
    student, *teachers = torch.randn(1 + count, 7, 5).mul(3).unbind()
    expected = kl(student, teachers, temperature)
    assert float(divergence(student, teachers, temperature)) == pytest.approx(expected, abs=1e-6)
    if count == 1:
        assert float(divergence(student, teachers[0], temperature)) == pytest.approx(expected, abs=1e-6)
        assert abs(expected - kl(teachers[0], [student], temperature)) > 1e-4  # the direction matters


def test_an_ensemble_predicts_the_mean_probability_of_its_members() -> None:
    logits = [torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[math.log(9.0), 0.0]])]
    assert log_mean_probability(logits).exp().tolist() == [pytest.approx([(1 / 4 + 9 / 10) / 2, (3 / 4 + 1 / 10) / 2])]


def test_an_ensemble_of_equal_members_predicts_as_each_member() -> None:
    logits = torch.randn(4, 10)
    assert torch.allclose(log_mean_probability([logits] * 3), logits.log_softmax(1), atol=1e-6)


def test_hintons_gradient_tends_to_the_difference_of_logits_at_high_temperature() -> None:
    """Hinton et al. 2015, eq. 4: with zero-mean logits dC/dz_i tends to (z_i - v_i) / (N T²) for each case."""
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 10, dtype=torch.float64), torch.randn(1, 10, dtype=torch.float64)
    student, teacher = (student - student.mean()).requires_grad_(), teacher - teacher.mean()
    temperature = 200.0
    divergence(student, teacher, temperature).backward()
    expected = (student.detach() - teacher) / (10 * temperature**2)
    assert student.grad is not None
    assert torch.allclose(student.grad, expected, rtol=0.05, atol=1e-7)


def test_teacher_and_deepest_features_get_no_gradient() -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    (divergence(student, [teacher, teacher], 3.0) + feature_distance(student, teacher)).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_feature_distance_is_the_mean_l2_norm() -> None:
    shallow, deepest = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.zeros(2, 2)
    assert float(feature_distance(shallow, deepest)) == pytest.approx((5 + 1) / 2)
