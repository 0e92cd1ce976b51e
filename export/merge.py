"""Folding adapters: block weights mu into B, and deltas into a backbone's weights, for graphs without adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from edge_cl.lora import Adapter
from edge_cl.statistics import Array


def merge_adapters(weights: Mapping[str, Tensor], adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Return a timm ViT's weights with `W + up down` in place of every adapted fused qkv weight W.

    Args:
        weights: state dict of a timm vision transformer.
        adapters: of disjoint blocks, such as the shared adapter and one task adapter.

    Returns:
        A new state dict; what no adapter touches is the very same tensor.
    """
    merged = dict(weights)
    for adapter in adapters:
        for block in range(adapter.first, adapter.first + adapter.depth):
            factors = adapter.factors(block)
            assert factors is not None
            down, up = (factor.detach().double() for factor in factors)
            name = f"blocks.{block}.attn.qkv.weight"
            weight = merged[name]
            merged[name] = (weight.double() + up @ down).to(weight.dtype)
    return merged


def weighted(adapter: Adapter) -> dict[str, Array]:
    """Return an adapter's A (L, 2, r, D) and B (L, 2, D, r), the block weights mu multiplied into B."""
    tensors = adapter.to_numpy()
    return {"A": tensors["A"], "B": tensors["B"] * np.exp(tensors["log_mu"])[:, :, None, None]}
