"""From pixels to features: the backbone's summaries under the adapters in force."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edge_cl.backbone import Backbone
from edge_cl.backend import BASE, BATCH_SIZE, Backend, Encoding, prefix_encoding
from edge_cl.lora import Adapter
from edge_cl.preprocess import Pixels, Preprocess
from edge_cl.statistics import Array
from edge_cl.version import canonical_json

CPU = torch.device("cpu")


@dataclass(frozen=True)
class CompiledGraphs:
    """Prefix and base branch, compiled with certain adapters.

    Attributes:
        name: of the runtime that runs them.
        backend: runs them.
        digest: SHA-256 of all that decides what they give: graphs, weights, adapters and runtime.
        shared: the shared adapter that they were compiled with.
        base: the base adapter, likewise.
    """

    name: str
    backend: Backend
    digest: str
    shared: Adapter | None
    base: Adapter | None

    def encode(self, pixels: Pixels, device: torch.device) -> Encoding:
        """Run prefix and base branch on (B, S, S, 3) uint8; the tokens are a tensor on a device."""
        encoding = self.backend.encode(pixels)
        tokens = torch.from_numpy(np.asarray(encoding.tokens, np.float32)).to(device)
        return Encoding(tokens, encoding.features, encoding.last)


@dataclass(frozen=True)
class Encoder:
    """The frozen backbone with the shared adapter and the base adapter.

    Attributes:
        backbone: frozen.
        preprocess: from pixels to input.
        shared: adapter of the prefix, or None.
        base: adapter of the base branch, or None for the bare suffix.
        device: where it runs.
        batch_size: most pictures that it encodes at once.
        compiled: graphs that encode in the place of torch, as long as these adapters are those they were compiled with.
    """

    backbone: Backbone
    preprocess: Preprocess
    shared: Adapter | None = None
    base: Adapter | None = None
    device: torch.device = CPU
    batch_size: int = BATCH_SIZE
    compiled: CompiledGraphs | None = None

    @property
    def graphs(self) -> CompiledGraphs | None:
        """The compiled graphs of the adapters in force; None where torch encodes."""
        same = self.compiled and self.compiled.shared is self.shared and self.compiled.base is self.base
        return self.compiled if same else None

    @property
    def runtime(self) -> str:
        """Name of what encodes pictures."""
        return self.graphs.name if self.graphs else "torch"

    @property
    def width(self) -> int:
        """Number of features, F."""
        return self.backbone.depth * self.backbone.summaries_per_block * self.backbone.width

    @property
    def prefix_width(self) -> int:
        """Number of features that come from the prefix; they are the first."""
        return self.backbone.split * self.backbone.summaries_per_block * self.backbone.width

    def input(self, pixels: Pixels) -> Tensor:
        """Turn (B, S, S, 3) uint8 into network input (B, 3, S, S)."""
        return torch.from_numpy(self.preprocess.normalise(pixels)).to(self.device)

    def warm_up(self) -> None:
        """Have CUDA load what a learn needs: over a gigabyte of libraries, which no prediction from shapes can know."""
        if self.device.type == "cuda":
            side = self.preprocess.image_size
            pixels = np.zeros((2, side, side, 3), np.uint8)
            replace(self, compiled=None).encode(pixels)
            tokens = self.backbone.embed(self.input(pixels)).requires_grad_()
            self.backbone.run_blocks(tokens, range(1), None).sum().backward()  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def encode(self, pixels: Pixels) -> Encoding:
        """Run prefix and base branch on (B, S, S, 3) uint8."""
        if self.graphs:
            return self.graphs.encode(pixels, self.device)
        encoding = self.prefix(pixels)
        return self.branch(encoding.tokens, encoding.features, self.base)

    @torch.inference_mode()
    def prefix(self, pixels: Pixels) -> Encoding:
        """Run the prefix alone on (B, S, S, 3) uint8, in torch."""
        summaries: list[Tensor] = []
        tokens = self.backbone.prefix(self.input(pixels), self.shared, summaries)
        return prefix_encoding(tokens, _features(summaries))

    @torch.no_grad()
    def summaries(self, input: Tensor) -> Tensor:
        """Return the summaries (B, blocks, summaries, D) of network input (B, 3, S, S) by prefix and base branch."""
        backbone, found = self.backbone, list[Tensor]()
        backbone.suffix(backbone.prefix(input, self.shared, found), self.base, found)
        return torch.stack(found, 1)

    @torch.inference_mode()
    def branch(self, tokens: Tensor, features: Array, adapter: Adapter | None) -> Encoding:
        """Run one branch on prefix tokens.

        Args:
            tokens: (B, N, D).
            features: of the same pictures in any branch, or of the prefix alone, (B, F or `prefix_width`).
            adapter: the branch's.
        """
        summaries: list[Tensor] = []
        after = self.backbone.suffix(tokens, adapter, summaries)
        every = np.concatenate((features[:, : self.prefix_width], _features(summaries)), 1)
        return Encoding(tokens, every, self.backbone.classify_token(after).float().cpu().numpy())

    def prefix_digest(self) -> str:
        """Return the SHA-256 of all that decides a picture's prefix tokens: weights, adapter, input, runtime."""
        backbone, digest = self.backbone, hashlib.sha256()
        later = tuple(f"blocks.{i}." for i in range(backbone.split, backbone.depth))
        heads = [block.attn.num_heads for block in backbone.blocks]
        digest.update(canonical_json([self.preprocess.to_json(), str(self.device), heads, repr(backbone.vit)]))
        for name, value in sorted(backbone.vit.state_dict().items()):
            if not name.startswith((*later, "norm.", "fc_norm.")):
                digest.update(name.encode() + value.cpu().numpy().tobytes())
        for name, value in sorted((self.shared.to_numpy() if self.shared else {}).items()):
            digest.update(name.encode() + value.tobytes())
        digest.update(self.graphs.digest.encode() if self.graphs else b"")
        return digest.hexdigest()

    def batches(self, pixels: Sequence[Pixels], *, reduced: bool = False) -> Iterator[Encoding]:
        """Encode pictures (S, S, 3), a batch at a time; `reduced`: in bfloat16, where torch does it."""
        for start in range(0, len(pixels), self.batch_size):
            with self.backbone.run_mode(reduced=reduced):
                encoding = self.encode(np.stack(pixels[start : start + self.batch_size]))
            yield encoding


def _features(summaries: Sequence[Tensor]) -> Array:
    """Scale summaries (B, S, D) of some blocks to unit length and lay them out flat: (B, F)."""
    return F.normalize(torch.stack(list(summaries), 1), dim=-1).flatten(1).float().cpu().numpy()


@dataclass(frozen=True)
class TorchBackend:
    """The reference backend: the backbone in torch.

    Attributes:
        encoder: prefix and base branch.
        adapters: task adapters by task; a task without one is answered by the base branch.
    """

    encoder: Encoder
    adapters: Mapping[int, Adapter]

    @property
    def preprocess(self) -> Preprocess:
        """How pictures become input."""
        return self.encoder.preprocess

    def prefix(self, pixels: Pixels) -> Encoding:
        """Run the prefix alone on (B, S, S, 3) uint8."""
        return self.encoder.prefix(pixels)

    def encode(self, pixels: Pixels) -> Encoding:
        """Run prefix and base branch on (B, S, S, 3) uint8."""
        return self.encoder.encode(pixels)

    def branch(self, encoding: Encoding, task: int, rows: Sequence[int]) -> Encoding:
        """Run a branch on some pictures of an encoded batch; see `Backend.branch`."""
        i = list(rows)
        tokens, features = encoding.tokens[i], encoding.features[i]
        if task == BASE:
            return self.encoder.branch(tokens, features, self.encoder.base)
        if task not in self.adapters:
            return Encoding(tokens, features, encoding.last[i])
        return self.encoder.branch(tokens, features, self.adapters[task])
