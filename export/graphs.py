"""ONNX graphs of a backbone: prefix, suffix (LoRA tensors as inputs, or none), and the one-graph classifier.

Every float weight keeps its torch name, so that engines can be refitted by it. The weight of a linear layer is laid out
(in, out): no transposition stands between it and its product.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import torch
from onnx import TensorProto, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn
from torch.nn import functional as F

from edge_cl.backbone import Backbone
from edge_cl.preprocess import Preprocess

OPSET = 20  # what the parser of TensorRT 10.3 reads
SMALL = 16  # elements of a constant: shapes and axes have fewer, weights more
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
Tensors = Mapping[str, npt.NDArray[np.generic]]


class _Factors:
    """Low-rank factors given from outside, in an `Adapter`'s place; (B, L, ...) gives every picture its own."""

    def __init__(self, first: int, down: Tensor, up: Tensor) -> None:
        self.first, self.down, self.up = first, down, up

    def factors(self, block: int) -> tuple[Tensor, Tensor]:
        return self.down.select(-3, block - self.first), self.up.select(-3, block - self.first)


class _Graph(nn.Module):
    """A part of a backbone; only timm's modules are registered, so that weights keep their names."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, backbone: Backbone, preprocess: Preprocess | None = None) -> None:
        super().__init__()
        self.vit = backbone.vit
        self._backbone = [backbone]
        if preprocess is not None:
            self.register_buffer("pixel_mean", torch.tensor(preprocess.mean))
            self.register_buffer("pixel_std", torch.tensor(preprocess.std))

    def prefix(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Run on float pixels (B, S, S, 3), 0-255."""
        scaled = (pixels * (1 / 255) - self.pixel_mean) / self.pixel_std
        summaries: list[Tensor] = []
        dtype = next(self.vit.parameters()).dtype
        tokens = self._backbone[0].prefix(scaled.permute(0, 3, 1, 2).to(dtype), None, summaries)
        return tokens, _features(summaries)

    def suffix(self, tokens: Tensor, down: Tensor | None, up: Tensor | None) -> Tensor:
        """Run on prefix tokens (B, N, D)."""
        summaries: list[Tensor] = []
        backbone = self._backbone[0]
        adapter: Any = None if down is None or up is None else _Factors(backbone.split, down, up)
        backbone.suffix(tokens, adapter, summaries)
        return _features(summaries)


class Prefix(_Graph):
    """`image` uint8 (B, S, S, 3), RGB, to `tokens` (B, N, D) and `features` (B, Fp)."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Run on `image`."""
        return self.prefix(image.to(torch.float32))


class Suffix(_Graph):
    """`tokens` (B, N, D), and `lora_down` (L, R, D) and `lora_up` (L, 3D, R) unless plain, to `features` (B, Fs)."""

    def forward(self, tokens: Tensor, lora_down: Tensor | None = None, lora_up: Tensor | None = None) -> Tensor:
        """Run on prefix tokens."""
        return self.suffix(tokens, lora_down, lora_up)


class Bare(_Graph):
    """`image` uint8 (B, S, S, 3), RGB, to `token` (B, D): the backbone alone, to compare with."""

    def forward(self, image: Tensor) -> Tensor:
        """Run on `image`."""
        tokens, _ = self.prefix(image.to(torch.float32))
        backbone = self._backbone[0]
        return backbone.classify_token(backbone.suffix(tokens))


class Classifier(_Graph):
    """Picture in, scores out, over all tasks: the arithmetic of `head.Head` and the routed rule as a graph.

    Outputs: `scores` (B, C), class probabilities; `router` (B, T), the tasks' share of the base branch's probability;
    `unknown` (B,), above 1 where the picture is unknown: squared distance to the nearest class mean over the threshold,
    or, if it is more, 1 and the nats that its best class lacks of the least score. All of the graph runs for every
    picture; where the exit's answer stands, it is taken, its distance too.
    """

    def forward(
        self,
        image: Tensor,
        lora_down: Tensor,
        lora_up: Tensor,
        weight: Tensor,
        bias: Tensor,
        centre: Tensor,
        basis: Tensor,
        gain: Tensor,
        scales: Tensor,
        spread_weight: Tensor,
        spread_offset: Tensor,
        spread_cost: Tensor,
        exit_weight: Tensor,
        exit_bias: Tensor,
        exit_centre: Tensor,
        exit_basis: Tensor,
        exit_gain: Tensor,
        exit_scales: Tensor,
        membership: Tensor,
        own_weight: Tensor,
        own_bias: Tensor,
        own_centre: Tensor,
        own_scales: Tensor,
        own_adapter: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run on float pixels (B, 3, S, S), 0-255; the rest are a head's tensors, see `classifier.head_tensors`."""
        tokens, prefix = self.prefix(image.permute(0, 2, 3, 1))
        features = torch.cat((prefix, self.suffix(tokens, lora_down[0], lora_up[0])), 1)
        scores, distance = _discriminant(features, weight, bias, centre, basis, gain, scales[1])
        unknown = distance * scales[2]
        along = scores @ spread_weight.mT + spread_offset[:, None]
        scores = scores + (along * along).sum(0) - spread_cost
        unknown = torch.maximum(unknown, 1 + (scales[3] - scores.amax(1)) * scales[0])
        early, near = _discriminant(prefix, exit_weight, exit_bias, exit_centre, exit_basis, exit_gain, exit_scales[1])
        early = torch.softmax(early * exit_scales[0], 1)
        stands = (early.amax(1) > exit_scales[3]) & (near <= exit_scales[2])
        posterior = torch.softmax(scores * scales[0], 1)
        router = posterior @ membership
        task = router.argmax(1)
        adapter = own_adapter[task]
        own = torch.cat((prefix, self.suffix(tokens, lora_down[adapter], lora_up[adapter])), 1)
        temper, share = own_scales[task, 0:1], own_scales[task, 1:2]
        inside = membership.T[task]
        local = ((own - own_centre[task]) @ own_weight.T + own_bias) * temper
        local = torch.softmax(torch.where(inside > 0, local, -1e30), 1)  # scores of 1e4 and more do occur
        mass = (posterior * inside).sum(1, keepdim=True)
        asked = (posterior.amax(1, keepdim=True) <= exit_scales[3]).to(share.dtype)
        fused = posterior + asked * share * inside * (mass * local - posterior)
        return torch.where(stands[:, None], early, fused), router, torch.where(stands, near * exit_scales[4], unknown)


def _discriminant(
    features: Tensor, weight: Tensor, bias: Tensor, centre: Tensor, basis: Tensor, gain: Tensor, precision: Tensor
) -> tuple[Tensor, Tensor]:
    """Return scores (B, C) and squared distances to the nearest class mean (B,) of features (B, F)."""
    offset = features - centre
    scores = offset @ weight.T + bias
    square = (offset * offset).sum(1) + (offset @ basis.T) ** 2 @ gain
    return scores, square * precision - 2 * scores.amax(1)


def _features(summaries: Sequence[Tensor]) -> Tensor:
    return F.normalize(torch.stack(list(summaries), 1), dim=-1).flatten(1)


def prepared(backbone: Backbone, precision: str) -> Backbone:
    """Return a copy of a backbone that is ready for export: in that precision, on the CPU, attention written out."""
    result = copy.deepcopy(backbone).cpu().to(PRECISIONS[precision])
    vit: Any = result.vit
    if getattr(vit, "dynamic_img_size", False):
        # The size is fixed here; timm would resample the position embeddings in the graph, which TensorRT refuses.
        vit.dynamic_img_size, vit.patch_embed.flatten = False, True
    for block in result.blocks:
        block.attn.fused_attn = False  # one plain product each: what every parser reads, and compilers fuse themselves
    return result


def prefix_graph(backbone: Backbone, preprocess: Preprocess) -> onnx.ModelProto:
    """Export the prefix of a `prepared` backbone."""
    side = preprocess.image_size
    image = torch.zeros(2, side, side, 3, dtype=torch.uint8)
    return _export(Prefix(backbone, preprocess), {"image": (image, {0: "B"})}, ["tokens", "features"])


def suffix_graph(backbone: Backbone, r: int | None) -> onnx.ModelProto:
    """Export the suffix of a `prepared` backbone: with LoRA inputs of R = 2r, or plain for None."""
    dtype = next(backbone.parameters()).dtype
    depth, width = backbone.depth - backbone.split, backbone.width
    inputs = {"tokens": (torch.zeros(2, backbone.tokens, width, dtype=dtype), {0: "B"})}
    if r is not None:
        inputs["lora_down"] = (torch.zeros(depth, 2 * r, width, dtype=dtype), {})
        inputs["lora_up"] = (torch.zeros(depth, 3 * width, 2 * r, dtype=dtype), {})
    return _export(Suffix(backbone), inputs, ["features"])


def bare_graph(backbone: Backbone, preprocess: Preprocess) -> onnx.ModelProto:
    """Export a `prepared` backbone alone, from picture to class token."""
    image = torch.zeros(2, preprocess.image_size, preprocess.image_size, 3, dtype=torch.uint8)
    return _export(Bare(backbone, preprocess), {"image": (image, {0: "B"})}, ["token"])


def classifier_graph(backbone: Backbone, preprocess: Preprocess, head: Mapping[str, Tensor]) -> onnx.ModelProto:
    """Export the classifier of a `prepared` backbone; the head's tensors become initialisers, replaceable by name.

    Args:
        backbone: with the shared adapter merged in.
        preprocess: how pictures become input.
        head: tensors in the order of `Classifier.forward`.
    """
    side = preprocess.image_size
    free = {"lora_down": {0: "A"}, "lora_up": {0: "A"}, "weight": {0: "C"}, "bias": {0: "C"}, "basis": {0: "K"},
            "gain": {0: "K"}, "spread_weight": {1: "C", 2: "C"}, "spread_offset": {1: "C"}, "spread_cost": {0: "C"},
            "exit_weight": {0: "C"}, "exit_bias": {0: "C"}, "exit_basis": {0: "E"},
            "exit_gain": {0: "E"}, "membership": {0: "C", 1: "T"}, "own_weight": {0: "C"}, "own_bias": {0: "C"},
            "own_centre": {0: "T"}, "own_scales": {0: "T"}, "own_adapter": {0: "T"}}  # fmt: skip
    inputs = {"image": (torch.zeros(2, 3, side, side), {0: "B"})}
    inputs |= {name: (_at_least_two(value, free.get(name, {})), free.get(name, {})) for name, value in head.items()}
    model = _export(Classifier(backbone, preprocess), inputs, ["scores", "router", "unknown"])
    for value in [value for value in model.graph.input if value.name in head]:
        model.graph.input.remove(value)
    model.graph.initializer.extend(numpy_helper.from_array(np.zeros(0, np.float32), name) for name in head)
    return bind(model, {name: value.numpy() for name, value in head.items()})


def _at_least_two(value: Tensor, free: Mapping[int, str]) -> Tensor:
    """Repeat along free dimensions of one: the exporter takes a size of one for a constant."""
    return value.repeat([2 if i in free and size == 1 else 1 for i, size in enumerate(value.shape)])


def bind(model: onnx.ModelProto, tensors: Tensors) -> onnx.ModelProto:
    """Return a copy of a graph in which some initialisers have other values, held in the graph itself."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    missing = set(tensors) - {tensor.name for tensor in result.graph.initializer}
    assert not missing, missing
    for tensor in result.graph.initializer:
        if tensor.name in tensors:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(tensors[tensor.name]), tensor.name))
    return result


def weights_of(*models: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    """Return the weights of graphs by their torch names."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for model in models
        for tensor in model.graph.initializer
        if "." in tensor.name or tensor.name.endswith(("_embed", "_token"))
    }


def places(data: bytes) -> dict[str, tuple[int, int]]:
    """Return offset and length of every tensor in a safetensors file, bytes (header length, header, tensors)."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (8 + length + start, end - start) for name, (start, end) in spans.items()}


def externalise(model: onnx.ModelProto, file: str, places: Mapping[str, tuple[int, int]]) -> onnx.ModelProto:
    """Return a copy of a graph whose weights lie in a file beside it.

    Args:
        model: the graph.
        file: name of the file.
        places: offset and length of weights in it, bytes.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in places:
            offset, length = places[tensor.name]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", file), ("offset", str(offset)), ("length", str(length))):
                tensor.external_data.add(key=key, value=value)
    return result


def _export(
    module: nn.Module, inputs: Mapping[str, tuple[Tensor, Mapping[int, str]]], outputs: Sequence[str]
) -> onnx.ModelProto:
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(value for value, _ in inputs.values()),
            dynamo=True,
            optimize=False,  # its optimiser merges and renames weights
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=tuple(dict(dims) or None for _, dims in inputs.values()),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _drop_annotations(model)
    _rename_weights(model.graph)
    _fold_transpositions(model.graph)
    model = _fold_constants(model)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes on its own progress from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _drop_annotations(model: onnx.ModelProto) -> None:
    """Take out what the exporter says of itself: source lines of whoever exported, and shapes it can infer again."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")


def _fold_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Compute what follows from small constants alone: TensorRT's parser takes no axes that are yet to be computed."""
    folded = onnx_ir.serde.deserialize_model(model)
    fold_constants(folded, input_size_limit=SMALL, output_size_limit=SMALL)
    RemoveUnusedNodesPass()(folded)
    return onnx_ir.serde.serialize_model(folded)


def _rename_weights(graph: onnx.GraphProto) -> None:
    def torch_name(name: str) -> str:
        return name.removeprefix("vit.")

    for tensor in graph.initializer:
        tensor.name = torch_name(tensor.name)
    for node in graph.node:
        node.input[:] = map(torch_name, node.input)


def _fold_transpositions(graph: onnx.GraphProto) -> None:
    """Transpose the weights themselves, where every use of a weight transposes it."""
    weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    uses: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            if name in weights:
                uses.setdefault(name, []).append(node)
    folded: dict[str, str] = {}
    for name, nodes in uses.items():
        if all(node.op_type == "Transpose" for node in nodes):
            value = np.ascontiguousarray(numpy_helper.to_array(weights[name]).T)
            weights[name].CopyFrom(numpy_helper.from_array(value, name))
            folded |= {node.output[0]: name for node in nodes}
    kept = [node for node in graph.node if node.op_type != "Transpose" or node.output[0] not in folded]
    for node in kept:
        node.input[:] = [folded.get(name, name) for name in node.input]
    del graph.node[:]
    graph.node.extend(kept)
