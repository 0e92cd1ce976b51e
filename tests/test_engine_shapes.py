"""NVIDIA's compiler on graphs of the usual backbones' shapes, random weights: minutes, so not in the default run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from vit_graphs import write_graphs

from edge_cl.architecture import BackboneSpec, build_empty
from edge_cl.export.engine import BuildOptions, build_engine
from edge_cl.preprocess import Preprocess
from edge_cl.runtime.nvidia import message_logger, tensorrt_module

SHAPES = {
    "vit_tiny_patch16_224": 224,
    "vit_small_patch16_224": 224,
    "vit_base_patch16_224": 224,
    "vit_small_patch14_reg4_dinov2": 224,
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", SHAPES)
def test_usual_shapes_compile_and_every_weight_can_be_refitted(tmp_path: Path, name: str, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    rtx: Any = tensorrt_module("tensorrt_rtx")
    preprocess = Preprocess(SHAPES[name])
    torch.manual_seed(0)
    spec = BackboneSpec(name, SHAPES[name], 6, preprocess)
    graphs = write_graphs(tmp_path, build_empty(spec), preprocess, precision)
    for part in ("prefix", "suffix", "merged"):
        graph = graphs.source(part).load()
        for gpu in ("SM86", "SM89"):
            assert len(build_engine(rtx, graph, BuildOptions(max_batch=4, compute_capabilities=(gpu,)))) > 100_000
        logger = message_logger(rtx)
        network = rtx.Builder(logger).create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = rtx.OnnxParser(network, logger)
        assert parser.parse(graph.model, str(graph.path))
        assert [weight for weight in graph.weights if not network.mark_weights_refittable(weight)] == []
