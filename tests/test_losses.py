"""The loss terms against hand-computed values, and the gradient that the early exit leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from edge_cl.backbone import Backbone
from edge_cl.lora import Adapter
from edge_cl.losses import CosineClassifier, distillation_loss, orthogonality_loss, reassign_gradient
from edge_cl.training import Optimisation, exit_backward

LN3 = math.log(3)


@pytest.mark.parametrize(
    ("logits", "teacher", "temperature", "loss", "gradient"),
    [  # softmax([0, ln 3]) is [1/4, 3/4]; the gradient is (student - teacher) / temperature / batch
        ([[0, 2 * LN3]], [[0, 0]], 2.0, -(math.log(1 / 4) + math.log(3 / 4)) / 2, [[-1 / 8, 1 / 8]]),
        ([[0, LN3]], [[LN3, 0]], 1.0, -(3 * math.log(1 / 4) + math.log(3 / 4)) / 4, [[-1 / 2, 1 / 2]]),
        ([[0, 0]], [[5, 5]], 2.0, math.log(2), [[0, 0]]),
        (
            [[0, 2 * LN3], [7, 7]],
            [[0, 0], [0, 2 * LN3]],
            2.0,
            (-(math.log(1 / 4) + math.log(3 / 4)) / 2 + math.log(2)) / 2,
            [[-1 / 16, 1 / 16], [1 / 16, -1 / 16]],
        ),
    ],
)
def test_distillation_by_hand(
    logits: list[list[float]],
    teacher: list[list[float]],
    temperature: float,
    loss: float,
    gradient: list[list[float]],
) -> None:
    student, target = (torch.tensor(rows, dtype=torch.float64, requires_grad=True) for rows in (logits, teacher))
    value = distillation_loss(student, target, temperature)
    assert value.item() == pytest.approx(loss, rel=1e-12)
    value.backward()
    torch.testing.assert_close(student.grad, torch.tensor(gradient, dtype=torch.float64))
    assert target.grad is None  # the teacher is never trained


def test_distillation_temperature_is_two() -> None:
    student, teacher = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])
    assert distillation_loss(student, teacher) == distillation_loss(student, teacher, 2.0)
    assert distillation_loss(student, teacher) != distillation_loss(student, teacher, 1.0)


@pytest.mark.parametrize(
    ("previous", "factors"),
    [
        ([[3, 0], [0, 0], [0, 1]], [9 / 4, 0, 3 / 4]),  # norms 3, 0, 1: D w / sum(w)
        ([[3, 4], [5, 0], [0, -5]], [1, 1, 1]),
        ([[0, 0], [0, 0], [0, 0]], [1, 1, 1]),  # nothing learned before: unchanged
    ],
)
def test_reassignment_by_hand(previous: list[list[float]], factors: list[float]) -> None:
    gradient = torch.arange(1.0, 7.0).reshape(3, 2)
    result = reassign_gradient(gradient, torch.tensor(previous, dtype=torch.float32))
    torch.testing.assert_close(result, gradient * torch.tensor(factors)[:, None])


def test_reassignment_treats_every_projection_by_itself() -> None:
    gradient, previous = torch.randn(2, 2, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    previous[1, 0] = 0
    result = reassign_gradient(gradient, previous)
    assert torch.equal(result[1, 0], gradient[1, 0])
    for i in ((0, 0), (0, 1), (1, 1)):
        torch.testing.assert_close(result[i], reassign_gradient(gradient[i], previous[i]))
        assert not torch.allclose(result[i], gradient[i])


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 5))
def test_reassignment_keeps_the_mean_weight_at_one(seed: int, width: int, r: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    previous = torch.randn(width, r, generator=generator, dtype=torch.float64)
    factors = reassign_gradient(torch.ones(width, r, dtype=torch.float64), previous)
    assert factors.mean().item() == pytest.approx(1)
    assert (factors >= 0).all()


def adapter_with_mu(*mu: float) -> Adapter:
    log_mu = torch.tensor(mu, dtype=torch.float64).log().reshape(-1, 2)
    zeros = torch.zeros(len(log_mu), 2, 1, 1, dtype=torch.float64)
    return Adapter(0, zeros, zeros.clone(), log_mu)


@pytest.mark.parametrize(
    ("earlier", "loss"),
    [
        ([], 0.0),
        ([(3, 4)], 1.0),
        ([(4, 3)], 24 / 25),
        ([(4, 3), (30, 40)], (24 / 25 + 1) / 2),
    ],
)
def test_orthogonality_by_hand(earlier: list[tuple[float, float]], loss: float) -> None:
    others = [adapter_with_mu(*mu) for mu in earlier]
    assert orthogonality_loss(adapter_with_mu(3, 4), others).item() == pytest.approx(loss, rel=1e-12)


def test_orthogonality_trains_the_new_task_alone() -> None:
    task, other = adapter_with_mu(3, 4, 1, 2), adapter_with_mu(4, 3, 2, 1)
    orthogonality_loss(task, [other]).backward()
    mu, nu = np.array([3, 4, 1, 2.0]), np.array([4, 3, 2, 1.0])
    # d cos / d mu = nu / |mu||nu| - cos mu / |mu|^2; and d mu / d log mu = mu
    cosine = mu @ nu / np.linalg.norm(mu) / np.linalg.norm(nu)
    gradient = mu * (nu / np.linalg.norm(mu) / np.linalg.norm(nu) - cosine * mu / (mu @ mu))
    assert task.log_mu.grad is not None
    np.testing.assert_allclose(task.log_mu.grad.flatten(), gradient)
    assert other.log_mu.grad is None


@pytest.mark.parametrize(
    ("features", "logits"),
    [([1.0, 1.0], [8 * 2**0.5, -8 * 2**0.5]), ([100.0, 0.0], [16.0, 0.0]), ([0.0, -0.1], [0.0, 16.0])],
)
def test_cosine_classifier_by_hand(features: list[float], logits: list[float]) -> None:
    classifier = CosineClassifier(2, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        classifier.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, -2.0]]))
    torch.testing.assert_close(classifier(torch.tensor([features])), torch.tensor([logits]))


def test_cosine_classifier_learns_prototypes_and_scale() -> None:
    classifier = CosineClassifier(8, 3, torch.Generator().manual_seed(0), scale=4.0)
    assert classifier.weight.shape == (3, 8)
    F.cross_entropy(classifier(torch.ones(2, 8)), torch.tensor([0, 1])).backward()
    assert {name for name, p in classifier.named_parameters() if p.grad is not None} == {"weight", "scale"}
    assert classifier.scale.item() == 4.0


def test_exit_leaves_the_reassigned_gradient_and_the_task_loss_adds_its_own(tiny_backbone: Backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    backbone = tiny_backbone.double()
    teacher, shared = (Adapter.new_shared(3, 64, 4, generator).double() for _ in range(2))
    for adapter in (teacher, shared):
        torch.nn.init.normal_(adapter.B, 0, 0.1, generator=generator)
    torch.nn.init.zeros_(teacher.B[1, 0])
    task = Adapter.new_task(3, 3, 64, 4, generator).double()
    torch.nn.init.normal_(task.B, 0, 0.1, generator=generator)
    classifier = CosineClassifier(64, 3, generator).double()
    pixels = torch.randn(4, 3, 32, 32, generator=generator, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 0])
    settings = Optimisation(distillation=3.0)

    def exit_logits(adapter: Adapter) -> torch.Tensor:
        return classifier(backbone.classify_token(backbone.prefix(pixels, adapter)))

    def task_loss() -> torch.Tensor:
        tokens = backbone.suffix(backbone.prefix(pixels, shared), task)
        return F.cross_entropy(classifier(backbone.classify_token(tokens)), targets)

    # Independently: the soft cross-entropy written out, its gradient reweighted in numpy (eq. 9-10).
    soft = (exit_logits(teacher) / 2).softmax(-1).detach()
    distillation = -3.0 * (soft * (exit_logits(shared) / 2).log_softmax(-1)).sum() / 4
    plain = torch.autograd.grad(distillation, shared.B)[0].numpy()
    expected = plain.copy()
    for i, j in np.ndindex(3, 2):
        norms = np.linalg.norm(teacher.B[i, j].detach().numpy(), axis=1)
        if norms.sum() > 0:
            expected[i, j] *= (64 * norms / norms.sum())[:, None]
    others = [task.A, task.B, task.log_mu, classifier.weight, classifier.scale]
    own, *rest = (g.numpy() for g in torch.autograd.grad(task_loss(), [shared.B, *others]))

    tokens = backbone.prefix(pixels, shared)
    logits = classifier(backbone.classify_token(tokens))
    loss = exit_backward(shared, teacher, logits, exit_logits(teacher), settings.distillation)
    assert loss.item() == pytest.approx(distillation.item(), rel=1e-12)
    assert not loss.requires_grad
    assert shared.B.grad is not None
    np.testing.assert_allclose(shared.B.grad.numpy(), expected, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(shared.B.grad[1, 0].numpy(), plain[1, 0], rtol=1e-9, atol=1e-14)
    assert all(p.grad is None for p in [*others, teacher.B])

    F.cross_entropy(classifier(backbone.classify_token(backbone.suffix(tokens, task))), targets).backward()
    np.testing.assert_allclose(shared.B.grad.numpy(), expected + own, rtol=1e-9, atol=1e-14)
    for parameter, gradient in zip(others, rest, strict=True):
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), gradient, rtol=1e-9, atol=1e-14)
    assert teacher.B.grad is None
