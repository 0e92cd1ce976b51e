"""A frozen timm vision transformer, split into prefix (patch embedding + first blocks) and suffix (the rest)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edge_cl.lora import AdaptedLinear, Adapter


class Backbone(nn.Module):
    """A frozen vision transformer that runs in two halves; not one of its weights ever changes.

    Token tensors are (B, N, D): B pictures, N tokens (class token, registers, patches), D width.

    Args:
        vit: the transformer.
        split: number of blocks in the prefix.
        positions: position embeddings as pretrained, (1, N', D), before they were resampled to the input; None if
            not known.
    """

    def __init__(self, vit: VisionTransformer, split: int, positions: Tensor | None = None) -> None:
        super().__init__()
        self.vit = vit.eval().requires_grad_(False)
        self.split = split
        self.positions = positions
        self.width = int(vit.embed_dim)
        self.patch = int(vit.patch_embed.patch_size[0])
        self.has_class_token = vit.cls_token is not None
        self.final_norm: nn.Module = vit.fc_norm if isinstance(vit.norm, nn.Identity) else vit.norm
        self.blocks: list[Any] = list(vit.blocks)
        self.depth = len(self.blocks)
        self._recompute = self._reduced = False
        for block in self.blocks:
            block.attn.qkv = AdaptedLinear.of(block.attn.qkv)

    @property
    def summaries_per_block(self) -> int:
        """Number of summary vectors a block yields: class token (if there is one) and patch mean."""
        return 1 + self.has_class_token

    @property
    def fixed_tokens(self) -> int:
        """Number of tokens before the patches: class token and registers."""
        return int(self.vit.num_prefix_tokens)

    @property
    def tokens(self) -> int:
        """Number of tokens of a picture, N."""
        return self.fixed_tokens + int(self.vit.patch_embed.num_patches)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode: the backbone is frozen, its dropout and drop-path are never active."""
        del mode
        return super().train(False)

    def prefix(self, pixels: Tensor, shared: Adapter | None = None, summaries: list[Tensor] | None = None) -> Tensor:
        """Turn pixels (B, 3, S, S) into prefix tokens (B, N, D); see `run_blocks` for the rest."""
        return self.run_blocks(self.embed(pixels), range(self.split), shared, summaries)

    def embed(self, pixels: Tensor) -> Tensor:
        """Turn pixels (B, 3, S, S) into the tokens before the first block, (B, N, D)."""
        vit = self.vit
        tokens: Tensor = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
        return tokens

    def suffix(self, tokens: Tensor, adapter: Adapter | None = None, summaries: list[Tensor] | None = None) -> Tensor:
        """Turn prefix tokens (B, N, D) into the last block's tokens (B, N, D), before the final norm."""
        return self.run_blocks(tokens, range(self.split, self.depth), adapter, summaries)

    def run_blocks(
        self,
        tokens: Tensor,
        blocks: range,
        adapter: Adapter | None,
        summaries: list[Tensor] | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Run some blocks with an adapter in force.

        Args:
            tokens: (B, N, D).
            blocks: which blocks.
            adapter: low-rank deltas, or None for the bare backbone.
            summaries: if given, each block appends its `summarise` (B, S, D).
            rows: of which pictures, (B',); None: of all.

        Returns:
            Tokens after the last of the blocks, (B, N, D).
        """
        for i in blocks:
            if self._recompute and torch.is_grad_enabled():
                tokens = checkpoint(self._run_block, i, tokens, adapter, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = self._run_block(i, tokens, adapter)
            if summaries is not None:
                summaries.append(self.summarise(tokens if rows is None else tokens[rows]))
        return tokens

    def _run_block(self, i: int, tokens: Tensor, adapter: Adapter | None) -> Tensor:
        with self._adapted(i, adapter) as block, self._precision(tokens):
            after: Tensor = block(tokens)
        return after.to(tokens.dtype)

    def _precision(self, tokens: Tensor) -> torch.autocast:
        return torch.autocast(tokens.device.type, torch.bfloat16, enabled=self._reduced)

    @contextmanager
    def _adapted(self, i: int, adapter: Adapter | None) -> Iterator[Any]:
        """Put an adapter in force in one block."""
        block = self.blocks[i]
        block.attn.qkv.low_rank = None if adapter is None else adapter.factors(i)
        try:
            yield block
        finally:
            block.attn.qkv.low_rank = None

    def exit(self, tokens: Tensor, blocks: range, adapter: Adapter | None) -> Tensor:
        """Run some blocks for the one vector a local classifier sees after them, `classify_token`: (B, D).

        Of the last block's MLP, two thirds of its work, only the class token's share is done.
        """
        last = self.blocks[blocks[-1]]
        if not self.has_class_token or type(last) is not Block:
            return self.classify_token(self.run_blocks(tokens, blocks, adapter))
        tokens, dtype = self.run_blocks(tokens, blocks[:-1], adapter), tokens.dtype
        with self._adapted(blocks[-1], adapter) as block, self._precision(tokens):
            tokens = (tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens)))))[:, :1]
            tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
        return self.classify_token(tokens.to(dtype))

    @contextmanager
    def run_mode(self, *, recompute: bool = False, reduced: bool) -> Iterator[None]:
        """Run the blocks in another way for a while.

        Args:
            recompute: save the blocks' inputs alone, and run each block again on the way back.
            reduced: take matrix products in bfloat16. On a CPU the attention is then written out: the fused kernel,
                above all its way back, is slow in that precision.
        """
        attentions = [block.attn for block in self.blocks if hasattr(block.attn, "fused_attn")]
        fused = [attention.fused_attn for attention in attentions]
        plain = reduced and next(self.vit.parameters()).device.type == "cpu"
        self._recompute, self._reduced = recompute, reduced
        try:
            for attention in attentions if plain else []:
                attention.fused_attn = False
            yield
        finally:
            self._recompute = self._reduced = False
            for attention, was in zip(attentions, fused, strict=True):
                attention.fused_attn = was

    def summarise(self, tokens: Tensor) -> Tensor:
        """Return class token and patch mean after the final norm: (B, N, D) to (B, S, D), S = 2 or 1."""
        normed = self.final_norm(tokens).float()
        mean = normed[:, self.fixed_tokens :].mean(1)
        return torch.stack((normed[:, 0], mean) if self.has_class_token else (mean,), 1)

    def classify_token(self, tokens: Tensor) -> Tensor:
        """Return the one vector a local classifier sees, (B, D): normed class token, else the patch mean."""
        if self.has_class_token:
            token: Tensor = self.final_norm(tokens[:, 0])
            return token
        return self.summarise(tokens)[:, 0]
