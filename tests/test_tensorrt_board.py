"""The whole way on a machine with TensorRT, PyCUDA and a GPU: build, refit, check, run. Elsewhere it is skipped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_engines import MAX_BATCH, bundles, learner, opened
from test_ladder import moved
from vit_graphs import write_graphs

from edge_cl.backbone import Backbone
from edge_cl.errors import EngineError
from edge_cl.export.compiler import TensorRTCompiler
from edge_cl.export.engine import BuildOptions
from edge_cl.export.engine_source import adapted_weights
from edge_cl.export.engines import prepare_engines
from edge_cl.export.reference import TOLERANCE
from edge_cl.preprocess import Preprocess
from edge_cl.runtime.onnx import OnnxBackend
from edge_cl.runtime.tensorrt_bundle import tensorrt_backend

__all__ = ["bundles", "learner"]  # fixtures
pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt]


@pytest.fixture(scope="module")
def compiler() -> TensorRTCompiler:
    try:
        return TensorRTCompiler()
    except EngineError as error:
        pytest.skip(f"needs TensorRT and a GPU: {error.faults[0]}")


@pytest.mark.parametrize("name", ["shared-fp32", "shared-fp16", "merged-fp32"])
def test_a_bundle_answers_as_onnx_runtime_does(
    name: str, bundles: dict[str, Path], tmp_path: Path, compiler: TensorRTCompiler
) -> None:
    bundle = opened(bundles, name, tmp_path)
    made = prepare_engines(bundle, compiler, max_batch=MAX_BATCH, say=print)
    print({engine: vars(prepared) for engine, prepared in made.items()})
    side = bundle.manifest.preprocess.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (2 * MAX_BATCH + 1, side, side, 3), np.uint8)
    reference = OnnxBackend(bundle)
    with tensorrt_backend(bundle) as backend:
        found, expected = backend.encode(pixels), reference.encode(pixels)
        limit = TOLERANCE[bundle.manifest.precision]
        np.testing.assert_allclose(found.features, expected.features, atol=limit)
        found, expected = backend.branch(found, 1, [5, 2, 3]), reference.branch(expected, 1, [5, 2, 3])
        np.testing.assert_allclose(found.features, expected.features, atol=limit)


def test_a_refit_computes_what_a_build_does(
    tmp_path: Path, tiny_backbone: Backbone, compiler: TensorRTCompiler
) -> None:
    source = write_graphs(tmp_path, tiny_backbone, Preprocess(32), "fp32").source("prefix")
    options = BuildOptions(max_batch=2, refittable=adapted_weights(source.load().weights))
    engine = compiler.build(source.load(), options, say=print)
    weights = {**source.load().weights, **moved(tiny_backbone, 5)}
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for _ in range(2):  # a refitted engine can be refitted again
        engine = compiler.refit(engine, weights, options.refittable)
    found = compiler.run(engine, [{"image": image}])[0]
    anew = compiler.build(replace(source, overrides=moved(tiny_backbone, 5)).load(), options, say=print)
    np.testing.assert_allclose(found["features"], compiler.run(anew, [{"image": image}])[0]["features"], atol=1e-4)
