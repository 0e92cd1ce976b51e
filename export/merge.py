"""Folding low-rank deltas into a backbone's weights, for graphs and engines without adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from edge_cl.lora import Adapter


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
