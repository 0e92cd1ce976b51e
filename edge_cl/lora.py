"""Low-rank adapters (LoRA) on the query and value projections of consecutive transformer blocks.

An adapter of rank r adds `mu * B A` to a frozen projection (CL-LoRA, CVPR 2025, eq. 2 and 11); here, as in PEFT,
A is the down projection (r, D) and B the up projection (D, r).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

QUERY, VALUE = 0, 1


class Adapter(nn.Module):
    """Low-rank deltas for blocks `first` .. `first + L - 1`, held as three stacked tensors.

    Attributes:
        A: down projections, (L, 2, r, D); index 1 is query, value.
        B: up projections, (L, 2, D, r), zero at the start, so that a new adapter changes nothing.
        log_mu: logarithms of the block weights mu, (L, 2): mu stays positive whatever the optimiser does.
    """

    def __init__(self, first: int, A: Tensor, B: Tensor, log_mu: Tensor, *, shared: bool = False) -> None:
        super().__init__()
        self.first = first
        self.shared = shared
        self.A = nn.Parameter(A, requires_grad=not shared)
        self.B = nn.Parameter(B)
        self.log_mu = nn.Parameter(log_mu, requires_grad=not shared)

    @classmethod
    def new_shared(cls, depth: int, width: int, r: int, generator: torch.Generator) -> Adapter:
        """Return a shared adapter for blocks 0 .. depth-1: fixed random A with orthonormal rows (eq. 6-7)."""
        gaussian = torch.randn(depth, 2, width, r, generator=generator, dtype=torch.float64)
        A = torch.linalg.qr(gaussian).Q.mT.float().contiguous()
        return cls(0, A, torch.zeros(depth, 2, width, r), torch.zeros(depth, 2), shared=True)

    @classmethod
    def new_task(cls, first: int, depth: int, width: int, r: int, generator: torch.Generator) -> Adapter:
        """Return a task adapter for `depth` blocks from `first`: A uniform as in PEFT, mu from U(0.5, 1.5)."""
        bound = width**-0.5
        A = (torch.rand(depth, 2, r, width, generator=generator) * 2 - 1) * bound
        log_mu = torch.log(0.5 + torch.rand(depth, 2, generator=generator))
        return cls(first, A, torch.zeros(depth, 2, width, r), log_mu)

    @property
    def depth(self) -> int:
        """Number of blocks adapted."""
        return self.A.shape[0]

    @property
    def r(self) -> int:
        """Rank."""
        return self.A.shape[2]

    @property
    def mu(self) -> Tensor:
        """Positive block weights, (L, 2)."""
        return self.log_mu.exp()

    def factors(self, block: int) -> tuple[Tensor, Tensor] | None:
        """Return the joint factors of one block's fused qkv projection, or None outside the adapted blocks.

        Args:
            block: index of the block in the whole backbone.

        Returns:
            down (2r, D) and up (3D, 2r): the delta of the fused weight is `up @ down`; its key rows are zero.
        """
        i = block - self.first
        if not 0 <= i < self.depth:
            return None
        q, v = self.mu[i, QUERY] * self.B[i, QUERY], self.mu[i, VALUE] * self.B[i, VALUE]
        zero = torch.zeros_like(q)
        up = torch.cat((torch.cat((q, zero), 1), torch.cat((zero, zero), 1), torch.cat((zero, v), 1)))
        return self.A[i].flatten(0, 1), up

    def to_numpy(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the tensors as they are stored."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self.named_parameters()}

    @classmethod
    def from_numpy(cls, first: int, tensors: Mapping[str, npt.NDArray[np.float32]], *, shared: bool = False) -> Adapter:
        """Rebuild an adapter from what `to_numpy` gave."""
        A, B, log_mu = (torch.from_numpy(np.array(tensors[name])) for name in ("A", "B", "log_mu"))
        return cls(first, A, B, log_mu, shared=shared)


class AdaptedLinear(nn.Linear):
    """A frozen linear layer with an optional low-rank delta; its weight keeps its place and name.

    `low_rank` is (down, up) with down (R, in) and up (out, R), or None.
    """

    low_rank: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, linear: nn.Linear) -> AdaptedLinear:
        """Return a layer that holds the very parameters of `linear`."""
        layer = cls(1, 1, bias=linear.bias is not None)
        layer.in_features, layer.out_features = linear.in_features, linear.out_features
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer

    def forward(self, input: Tensor) -> Tensor:
        """Return `input (W + up down)^T + b`: by one product in inference mode, by three in training and in graphs."""
        if self.low_rank is None:
            return super().forward(input)
        down, up = self.low_rank
        if torch.is_inference_mode_enabled():
            return F.linear(input, torch.addmm(self.weight, up, down), self.bias)
        return super().forward(input) + input @ down.mT @ up.mT
