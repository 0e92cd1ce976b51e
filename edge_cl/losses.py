"""The terms of CL-LoRA's loss (He, Duan, Zhu, CVPR 2025) and its throw-away cosine classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_cl.lora import Adapter


class CosineClassifier(nn.Module):
    """Local classifier over one task's classes: a learnable scale times the cosine to learnable prototypes.

    Args:
        width: feature width D.
        classes: number of classes C of the task.
        generator: source of the initial prototypes.
        scale: initial scale.
    """

    def __init__(self, width: int, classes: int, generator: torch.Generator, scale: float = 16.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, width, generator=generator) * width**-0.5)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """Turn features (B, D) into logits (B, C)."""
        return self.scale * F.linear(F.normalize(features, dim=-1), F.normalize(self.weight, dim=-1))


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    """Return the early-exit distillation loss (eq. 9): soft cross-entropy of student and detached teacher.

    Args:
        logits: exit logits under the current shared adapter, (B, C).
        teacher_logits: exit logits under the previous shared adapter, (B, C).
        temperature: softens both.

    Returns:
        Mean over the batch, a scalar.
    """
    target = (teacher_logits.detach() / temperature).softmax(-1)
    return -(target * (logits / temperature).log_softmax(-1)).sum(-1).mean()


def feature_distance(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Return one minus the cosine of every summary to the detached teacher's, (..., D) both: their mean, a scalar."""
    return 1 - F.cosine_similarity(features, teacher_features.detach(), dim=-1).mean()


def reassign_gradient(gradient: Tensor, previous_up: Tensor) -> Tensor:
    """Reweight the distillation gradient of shared up projections row by row (eq. 10).

    Row j is multiplied by D w_j / sum(w), with w_j the L2 norm of row j of the previous up projection, so that rows
    which matter to earlier tasks follow the teacher harder. Where the previous projection is zero nothing changes.

    Args:
        gradient: of the distillation loss, (..., D, r).
        previous_up: B of the previous shared adapter, (..., D, r).

    Returns:
        The reweighted gradient, (..., D, r).
    """
    weight = previous_up.norm(dim=-1, keepdim=True)
    total = weight.sum(-2, keepdim=True)
    factor = torch.where(total > 0, weight * weight.shape[-2] / total, torch.ones_like(weight))
    return gradient * factor


def orthogonality_loss(adapter: Adapter, earlier: Sequence[Adapter]) -> Tensor:
    """Return the mean absolute cosine of a task's block weights to those of earlier tasks (eq. 12)."""
    if not earlier:
        return adapter.mu.new_zeros(())
    others = torch.stack([other.mu.detach().flatten() for other in earlier])
    return F.cosine_similarity(adapter.mu.flatten()[None], others).abs().mean()
