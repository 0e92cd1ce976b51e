"""Graphs of a small vision transformer on disk, as a bundle holds them: weights in a safetensors file beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.numpy import save

from edge_cl.backbone import Backbone
from edge_cl.export.engine_source import EngineSource
from edge_cl.export.graphs import externalise, places, prefix_graph, prepared, suffix_graph, weights_of
from edge_cl.lora import Adapter
from edge_cl.preprocess import Preprocess

R = 4  # rank of the adapters


@dataclass(frozen=True)
class Graphs:
    """Files of one export.

    Attributes:
        prefix, suffix, merged: the graphs; suffix takes LoRA inputs, merged takes none.
        weights: the file beside them.
        precision: "fp32" or "fp16".
    """

    prefix: Path
    suffix: Path
    merged: Path
    weights: Path
    precision: str

    def source(self, name: str) -> EngineSource:
        return EngineSource.of(getattr(self, name), self.weights, self.precision)


def adapter_of(backbone: Backbone, first: int, depth: int, seed: int) -> Adapter:
    """Return an adapter whose delta is not small."""
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter.new_task(first, depth, backbone.width, R, generator)
    adapter.B.data = 0.1 * torch.randn(adapter.B.shape, generator=generator)
    return adapter


def task_adapter(backbone: Backbone, seed: int) -> Adapter:
    return adapter_of(backbone, backbone.split, backbone.depth - backbone.split, seed)


def factors_of(backbone: Backbone, adapter: Adapter) -> tuple[np.ndarray, np.ndarray]:
    """Return lora_down (L, R, D) and lora_up (L, 3D, R) of a task adapter."""
    with torch.no_grad():
        pairs = [adapter.factors(i) for i in range(backbone.split, backbone.depth)]
        down, up = zip(*(pair for pair in pairs if pair), strict=True)
        return torch.stack(down).numpy(), torch.stack(up).numpy()


_exported: dict[tuple[str, int], dict[str, onnx.ModelProto]] = {}  # an export takes seconds, and tests need many


def write_graphs(
    directory: Path, backbone: Backbone, preprocess: Preprocess, precision: str, merged: Sequence[Adapter] = ()
) -> Graphs:
    """Write the graphs of the tests' tiny backbone with some adapters merged into its weights."""
    key = precision, preprocess.image_size
    if key not in _exported:
        ready = prepared(backbone, precision)
        _exported[key] = {
            "prefix": prefix_graph(ready, preprocess),
            "suffix": suffix_graph(ready, R),
            "merged": suffix_graph(ready, None),
        }
    values = {name: np.ascontiguousarray(value) for name, value in weights_of(*_exported[key].values()).items()}
    for adapter in merged:
        for i in range(adapter.first, adapter.first + adapter.depth):
            down, up = adapter.factors(i) or (torch.zeros(()), torch.zeros(()))
            name = f"blocks.{i}.attn.qkv.weight"  # laid out (in, out)
            values[name] = (values[name] + (up @ down).detach().numpy().T).astype(values[name].dtype)
    data = save(values)
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / f"weights-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    weights.write_bytes(data)
    paths = {name: directory / f"{name}-{precision}.onnx" for name in _exported[key]}
    for name, model in _exported[key].items():
        onnx.save_model(externalise(model, weights.name, places(data)), paths[name])
    return Graphs(paths["prefix"], paths["suffix"], paths["merged"], weights, precision)


def with_weights(model: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a copy of a graph with some weights replaced."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return copy
