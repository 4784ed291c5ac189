from __future__ import annotations

import math

import pytest
import torch

from makeweight_kd.losses import divergence, feature_distance


@pytest.mark.parametrize("temperature", [1.0, 3.0, 10.0])
def test_divergence_is_the_kl_of_the_teacher_from_the_student(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(7, 5, dtype=torch.float32), torch.randn(7, 5)
    reference = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(value / temperature) for value in t]
        q = [math.exp(value / temperature) for value in s]
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        reference += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(divergence(student, teacher, temperature)) == pytest.approx(reference / 7, abs=1e-6)


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


def test_no_gradient_flows_into_the_teacher_or_the_deepest() -> None:
    student, teacher = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    (divergence(student, teacher, 3.0) + feature_distance(student, teacher)).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_feature_distance_is_the_mean_l2_norm() -> None:
    shallow, deepest = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.zeros(2, 2)
    assert float(feature_distance(shallow, deepest)) == pytest.approx((5 + 1) / 2)
