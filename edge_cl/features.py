"""From pixels to features: the backbone's summaries under the adapters in force."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edge_cl.backbone import Backbone
from edge_cl.lora import Adapter
from edge_cl.preprocess import Pixels, Preprocess
from edge_cl.statistics import Array

BATCH_SIZE = 32
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Encoding:
    """What the prefix and one branch make of a batch of pictures.

    Attributes:
        tokens: prefix tokens, (B, N, D).
        prefix: summaries of the prefix blocks, (B, L, S, D).
        features: summaries of all blocks, each of unit length, laid out flat: (B, F).
        last: the class token (or patch mean) of the last block after the final norm, (B, D).
    """

    tokens: Tensor
    prefix: Tensor
    features: Array
    last: Array

    def select(self, rows: Sequence[int]) -> Encoding:
        """Return the encoding of some of the pictures."""
        i = list(rows)
        return Encoding(self.tokens[i], self.prefix[i], self.features[i], self.last[i])


@dataclass(frozen=True)
class Encoder:
    """The frozen backbone with the shared adapter and the base adapter.

    Attributes:
        backbone: frozen.
        preprocess: from pixels to input.
        shared: adapter of the prefix, or None.
        base: adapter of the base branch, or None for the bare suffix.
        device: where it runs.
    """

    backbone: Backbone
    preprocess: Preprocess
    shared: Adapter | None = None
    base: Adapter | None = None
    device: torch.device = CPU

    @property
    def width(self) -> int:
        """Number of features, F."""
        return self.backbone.depth * self.backbone.summaries_per_block * self.backbone.width

    def input(self, pixels: Pixels) -> Tensor:
        """Turn (B, S, S, 3) uint8 into network input (B, 3, S, S)."""
        return torch.from_numpy(self.preprocess.normalise(pixels)).to(self.device)

    @torch.no_grad()
    def encode(self, pixels: Pixels) -> Encoding:
        """Run prefix and base branch on (B, S, S, 3) uint8."""
        summaries: list[Tensor] = []
        tokens = self.backbone.prefix(self.input(pixels), self.shared, summaries)
        return self.branch(tokens, torch.stack(summaries, 1), self.base)

    @torch.no_grad()
    def branch(self, tokens: Tensor, prefix: Tensor, adapter: Adapter | None) -> Encoding:
        """Run one branch on prefix tokens (B, N, D) and the prefix summaries (B, L, S, D)."""
        summaries: list[Tensor] = []
        after = self.backbone.suffix(tokens, adapter, summaries)
        every = torch.cat((prefix, torch.stack(summaries, 1)), 1)
        features = F.normalize(every, dim=-1).flatten(1).float().cpu().numpy()
        last = self.backbone.classify_token(after).float().cpu().numpy()
        return Encoding(tokens, prefix, features, last)

    def batches(self, pixels: Sequence[Pixels]) -> Iterator[Encoding]:
        """Encode pictures (S, S, 3), a batch at a time."""
        for start in range(0, len(pixels), BATCH_SIZE):
            yield self.encode(np.stack(pixels[start : start + BATCH_SIZE]))
