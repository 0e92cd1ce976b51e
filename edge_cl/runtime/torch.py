"""The torch backend of a bundle: the reference that the others are compared with."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import nn

from edge_cl.architecture import BackboneSpec, build_empty
from edge_cl.backend import BASE, Encoding
from edge_cl.export.bundle import Bundle, BundleError, again
from edge_cl.features import Encoder, TorchBackend
from edge_cl.lora import Adapter
from edge_cl.preprocess import Pixels


@dataclass(frozen=True)
class SafeTorchBackend(TorchBackend):
    """The torch backend for several threads: one at a time, as adapters are put in force inside the one backbone."""

    _running: threading.Lock = field(default_factory=threading.Lock)

    def prefix(self, pixels: Pixels) -> Encoding:
        """Run the prefix alone on (B, S, S, 3) uint8."""
        with self._running:
            return super().prefix(pixels)

    def encode(self, pixels: Pixels) -> Encoding:
        """Run prefix and base branch on (B, S, S, 3) uint8."""
        with self._running:
            return super().encode(pixels)

    def branch(self, encoding: Encoding, task: int, rows: Sequence[int]) -> Encoding:
        """Run a branch on some pictures of an encoded batch; see `Backend.branch`."""
        with self._running:
            return super().branch(encoding, task, rows)


def torch_backend(bundle: Bundle) -> SafeTorchBackend:
    """Return a backend that runs a bundle's weights and adapters in torch, in single precision, on the CPU.

    Raises:
        BackboneError: the bundle's backbone cannot be built.
        BundleError: its weights do not fit it.
    """
    manifest = bundle.manifest
    spec = BackboneSpec.from_json(manifest.backbone)
    backbone = build_empty(spec)
    path = bundle.file("weights")
    try:
        weights = {name: torch.from_numpy(value.astype(np.float32)) for name, value in load_file(path).items()}
        for name, module in backbone.vit.named_modules():
            if isinstance(module, nn.Linear):  # graphs hold them as (in, out)
                weights[f"{name}.weight"] = weights[f"{name}.weight"].T.contiguous()
        backbone.vit.load_state_dict(weights)
    except (RuntimeError, KeyError, SafetensorError) as error:
        mend = again(bundle.path)
        raise BundleError(f"{path} does not fit {spec.name}: {' '.join(str(error).split())}.", mend=mend) from error

    def adapter(role: str, first: int) -> Adapter | None:
        if role not in manifest.files:
            return None
        depth = manifest.shape.split if role == "adapter/shared" else manifest.shape.depth - manifest.shape.split
        width = manifest.shape.width
        tensors = bundle.tensors(role, {"A": (depth, 2, None, width), "B": (depth, 2, width, None)})
        ones = np.zeros((depth, 2), np.float32)  # mu is part of B
        return Adapter.from_numpy(first, {**tensors, "log_mu": ones}, shared=first == 0).requires_grad_(False)

    split = manifest.shape.split
    encoder = Encoder(backbone, spec.preprocess, adapter("adapter/shared", 0), adapter("adapter/base", split))
    own = {task: adapter(f"adapter/{task}", split) for task in bundle.adapters() if task != BASE}
    return SafeTorchBackend(encoder, {task: a for task, a in own.items() if a is not None})
