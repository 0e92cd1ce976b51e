"""What an engine is made of: an ONNX graph, the weights beside it, and those that take other values.

`onnx` is imported where a graph is opened: finding an engine that is at hand does without.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_cl.version import hash_file

Array = npt.NDArray[np.generic]
Weights = Mapping[str, Array]

FLOAT, HALF = 1, 10  # element types of ONNX
_KINDS: dict[int, np.dtype[np.generic]] = {FLOAT: np.dtype(np.float32), HALF: np.dtype(np.float16)}
_ADAPTED = re.compile(r"blocks\.\d+\.attn\.qkv\.weight")


@dataclass(frozen=True)
class EngineSource:
    """A graph with its weights.

    Attributes:
        graph: the ONNX file; its weights lie in files beside it, or in itself.
        precision: "fp32" or "fp16".
        graph_sha256: of the graph's file.
        weights_sha256: of the file beside it, "" where there is none.
        overrides: weights that take the place of those of the same name, in the graph's own type.
        widened: compute in fp32 what the graph computes in fp16.
    """

    graph: Path
    precision: str
    graph_sha256: str
    weights_sha256: str
    overrides: Weights = field(default_factory=dict)
    widened: bool = False

    @classmethod
    def of(cls, graph: Path, weights: Path | None, precision: str, overrides: Weights | None = None) -> EngineSource:
        """Describe files; those of a bundle have their hashes in its manifest."""
        beside = hash_file(weights).sha256 if weights is not None else ""
        return cls(graph, precision, hash_file(graph).sha256, beside, overrides or {})

    def in_fp32(self) -> EngineSource:
        """Return the same source, to be computed in fp32: what is right, where fp16 is not."""
        return self if self.precision == "fp32" else replace(self, precision="fp32", widened=True)

    def overrides_digest(self) -> str:
        """Return the SHA-256 of the overriding weights, "" for none."""
        digest = hashlib.sha256()
        for name, value in sorted(self.overrides.items()):
            digest.update(f"{name} {value.dtype} {value.shape}\n".encode() + np.ascontiguousarray(value).tobytes())
        return digest.hexdigest() if self.overrides else ""

    def load(self) -> EngineGraph:
        """Open the graph and put the overriding weights, and fp32 where it is asked for, in their place."""
        import onnx

        model = onnx.load_model(self.graph, load_external_data=False)
        weights: dict[str, Array] = {}
        for tensor in model.graph.initializer:
            if tensor.data_type in _KINDS:
                value = self.overrides.get(tensor.name)
                weights[tensor.name] = _value(tensor, self.graph.parent) if value is None else value
                if self.widened and tensor.data_type == HALF:
                    weights[tensor.name] = weights[tensor.name].astype(np.float32)
                if value is not None or (self.widened and tensor.data_type == HALF):
                    tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
        if self.widened:
            _widen(model)
        return EngineGraph(model.SerializeToString(deterministic=True), _structure(model), weights, self.graph)


@dataclass(frozen=True)
class EngineGraph:
    """An opened source.

    Attributes:
        model: serialised ONNX; weights may lie in files beside `path`.
        structure: SHA-256 of the graph without the values of its weights: operators, names, shapes and constants.
        weights: every float weight by name; those that lie in a file are mapped, not read.
        path: of the graph's file.
    """

    model: bytes
    structure: str
    weights: Weights
    path: Path

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of every weight's bytes by name."""
        return {
            name: hashlib.sha256(np.ascontiguousarray(value).data).hexdigest() for name, value in self.weights.items()
        }


def adapted_weights(names: Collection[str]) -> tuple[str, ...]:
    """Return those of the weights that a merged adapter changes: the fused query, key and value projections."""
    return tuple(sorted(name for name in names if _ADAPTED.fullmatch(name)))


def _structure(model: Any) -> str:
    copy = type(model)()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.data_type in _KINDS:
            for name in ("raw_data", "float_data", "int32_data", "external_data", "data_location"):
                tensor.ClearField(name)
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).hexdigest()


def _widen(model: Any) -> None:
    """Turn every fp16 type that a graph names into fp32; the types in between follow from them."""
    from onnx import numpy_helper

    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = FLOAT
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == HALF:
                attribute.i = FLOAT
            if attribute.HasField("t") and attribute.t.data_type == HALF:
                wide = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(wide, attribute.t.name))


def _value(tensor: Any, directory: Path) -> Array:
    from onnx import TensorProto, numpy_helper

    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    place = {entry.key: entry.value for entry in tensor.external_data}
    path, shape = directory / Path(place["location"]).name, tuple(tensor.dims)
    return np.asarray(np.memmap(path, _KINDS[tensor.data_type], "r", int(place.get("offset", "0")), shape))
