"""A bundle's graphs in the place of torch, for the pictures of a learn: the same prefix and base branch, faster."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from edge_cl.errors import EdgeClError
from edge_cl.features import CompiledGraphs, Encoder
from edge_cl.version import canonical_json

if TYPE_CHECKING:
    from edge_cl.export.exporter import Snapshot


def with_compiled(encoder: Encoder, snapshot: Snapshot, path: Path) -> Encoder:
    """Let a bundle's graphs encode, where they are those of a version and run in single precision; else torch does.

    Args:
        encoder: of the version.
        snapshot: the version.
        path: directory of the bundle, which may be missing, damaged, or of anything else.
    """
    from edge_cl.export.bundle import Bundle
    from edge_cl.export.exporter import encodes_alike
    from edge_cl.runtime.classifier import BACKENDS, automatic

    name = automatic(path)
    if encoder.device.type != "cpu" and name == "onnxruntime":
        return encoder  # it runs on the CPU, torch on the GPU
    try:
        bundle = Bundle.open(path)
        if bundle.manifest.precision != "fp32" or not encodes_alike(bundle.manifest, snapshot):
            return encoder
        backend = BACKENDS[name](bundle, torch.get_num_threads(), None)
    except EdgeClError:
        return encoder
    parts = [name, sys.modules[name].__version__, *backend.names]
    digest = hashlib.sha256(canonical_json(parts)).hexdigest()
    return replace(encoder, compiled=CompiledGraphs(name, backend, digest, encoder.shared, encoder.base))
