"""A frozen timm vision transformer, split into prefix (patch embedding + first blocks) and suffix (the rest)."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edge_cl.lora import AdaptedLinear, Adapter


class Backbone(nn.Module):
    """A frozen vision transformer that runs in two halves; not one of its weights ever changes.

    Token tensors are (B, N, D): B pictures, N tokens (class token, registers, patches), D width.
    """

    def __init__(self, vit: VisionTransformer, split: int) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.split = split
        self.width = int(vit.embed_dim)
        self.has_class_token = vit.cls_token is not None
        self.final_norm: nn.Module = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
        self.blocks: list[Any] = list(vit.blocks)
        self.depth = len(self.blocks)
        for block in self.blocks:
            block.attn.qkv = AdaptedLinear.of(block.attn.qkv)

    @property
    def summaries_per_block(self) -> int:
        """Number of summary vectors a block yields: class token (if there is one) and patch mean."""
        return 1 + self.has_class_token

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: the backbone is frozen, its dropout and drop-path are never active."""
        del mode
        return super().train(False)

    def prefix(self, pixels: Tensor, shared: Adapter | None = None, summaries: list[Tensor] | None = None) -> Tensor:
        """Turn pixels (B, 3, S, S) into prefix tokens (B, N, D); see `run_blocks` for the rest."""
        vit = self.vit
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
        return self.run_blocks(tokens, range(self.split), shared, summaries)

    def suffix(self, tokens: Tensor, adapter: Adapter | None = None, summaries: list[Tensor] | None = None) -> Tensor:
        """Turn prefix tokens (B, N, D) into the last block's tokens (B, N, D), before the final norm."""
        return self.run_blocks(tokens, range(self.split, self.depth), adapter, summaries)

    def run_blocks(
        self, tokens: Tensor, blocks: range, adapter: Adapter | None, summaries: list[Tensor] | None = None
    ) -> Tensor:
        """Run some blocks with an adapter in force.

        Args:
            tokens: (B, N, D).
            blocks: which blocks.
            adapter: low-rank deltas, or None for the bare backbone.
            summaries: if given, each block appends its `summarise` (B, S, D).

        Returns:
            Tokens after the last of the blocks, (B, N, D).
        """
        for i in blocks:
            block = self.blocks[i]
            block.attn.qkv.low_rank = None if adapter is None else adapter.factors(i)
            try:
                tokens = block(tokens)
            finally:
                block.attn.qkv.low_rank = None
            if summaries is not None:
                summaries.append(self.summarise(tokens))
        return tokens

    def summarise(self, tokens: Tensor) -> Tensor:
        """Return class token and patch mean after the final norm: (B, N, D) to (B, S, D), S = 2 or 1."""
        normed = self.final_norm(tokens)
        mean = normed[:, self.vit.num_prefix_tokens :].mean(1)
        return torch.stack((normed[:, 0], mean) if self.has_class_token else (mean,), 1)

    def classify_token(self, tokens: Tensor) -> Tensor:
        """Return the one vector a local classifier sees, (B, D): normed class token, else the patch mean."""
        if self.has_class_token:
            token: Tensor = self.final_norm(tokens[:, 0])
            return token
        return self.summarise(tokens)[:, 0]
