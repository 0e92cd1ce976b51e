"""Building engines with NVIDIA's own compiler, which needs no GPU, and refitting them on a stand-in."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from vit_graphs import Graphs, write_graphs

from edge_cl.backbone import Backbone
from edge_cl.errors import EngineError
from edge_cl.export.engine import BuildOptions, build_engine, refit_engine
from edge_cl.export.engine_source import EngineSource, adapted_weights
from edge_cl.preprocess import Preprocess
from edge_cl.runtime.nvidia import message_logger, tensorrt_module

SIDE = 32


@pytest.fixture
def rtx() -> Any:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    return tensorrt_module("tensorrt_rtx")


@pytest.fixture(params=["fp32", "fp16"])
def graphs(request: pytest.FixtureRequest, tmp_path: Path, tiny_backbone: Backbone) -> Graphs:
    return write_graphs(tmp_path, tiny_backbone, Preprocess(SIDE), request.param)


@pytest.mark.parametrize("part", ["prefix", "suffix", "merged"])
def test_every_graph_compiles(rtx: Any, graphs: Graphs, part: str) -> None:
    for gpu in ("SM86", "SM89"):
        options = BuildOptions(max_batch=4, compute_capabilities=(gpu,))
        assert len(build_engine(rtx, graphs.source(part).load(), options)) > 10_000


@pytest.mark.parametrize("part", ["prefix", "suffix", "merged"])
def test_every_float_weight_can_be_refitted_by_its_name(rtx: Any, graphs: Graphs, part: str) -> None:
    graph = graphs.source(part).load()
    logger = message_logger(rtx)
    network = rtx.Builder(logger).create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, logger)
    assert parser.parse(graph.model, str(graph.path))
    assert [name for name in graph.weights if not network.mark_weights_refittable(name)] == []
    assert not network.mark_weights_refittable("blocks.99.attn.qkv.weight")
    assert adapted_weights(graph.weights) == tuple(f"blocks.{i}.attn.qkv.weight" for i in _blocks(part))


def _blocks(part: str) -> range:
    return range(3) if part == "prefix" else range(3, 6)


def test_fp16_graphs_compile_in_fp32_too(rtx: Any, tmp_path: Path, tiny_backbone: Backbone) -> None:
    half = write_graphs(tmp_path, tiny_backbone, Preprocess(SIDE), "fp16")
    weights = half.source("suffix").load().weights
    name = "blocks.4.attn.qkv.weight"
    source = replace(half.source("suffix"), overrides={name: weights[name] * np.float16(2)}).in_fp32()
    graph = source.load()
    assert source.precision == "fp32"
    assert {value.dtype for value in graph.weights.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(graph.weights[name], weights[name].astype(np.float32) * 2)
    assert len(build_engine(rtx, graph, BuildOptions(compute_capabilities=("SM86",)))) > 10_000


def graph_of(path: Path, *nodes: onnx.NodeProto, shape: tuple[object, ...] = ("B", 4)) -> EngineSource:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, path)
    return EngineSource.of(path, None, "fp32")


def test_what_the_parser_refuses_is_said_node_by_node(rtx: Any, tmp_path: Path) -> None:
    odd = helper.make_node("Bernoulli", ["x"], ["y"], name="odd_one")
    with pytest.raises(EngineError, match=r"(?s)cannot read .*g\.onnx.*odd_one \(Bernoulli\).*ONNX Runtime"):
        build_engine(rtx, graph_of(tmp_path / "g.onnx", odd).load(), BuildOptions(compute_capabilities=("SM86",)))


def test_a_free_size_that_is_no_batch_is_refused(rtx: Any, tmp_path: Path) -> None:
    source = graph_of(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["y"]), shape=("B", "N"))
    with pytest.raises(EngineError, match="free size besides the batch"):
        build_engine(rtx, source.load(), BuildOptions(compute_capabilities=("SM86",)))


def test_unknown_refittable_weights_are_named(rtx: Any, tmp_path: Path) -> None:
    source = graph_of(tmp_path / "g.onnx", helper.make_node("Relu", ["x"], ["y"]))
    with pytest.raises(EngineError, match="knows no weights nobody"):
        build_engine(rtx, source.load(), BuildOptions(refittable=("nobody",), compute_capabilities=("SM86",)))


@pytest.mark.parametrize("batches", [(0, 4), (5, 4)])
def test_batches_that_cannot_be_are_refused(batches: tuple[int, int]) -> None:
    with pytest.raises(EngineError, match="cannot be"):
        BuildOptions(opt_batch=batches[0], max_batch=batches[1])


class FakeRefitter:
    """As TensorRT's: `a` and `b` were fused, so that one needs the other; the weights are of 2 floats."""

    def __init__(self, engine: Any, logger: Any) -> None:
        self.engine, self.set = engine, {}

    def get_all_weights(self) -> list[str]:
        return ["a", "b", "c"]

    def get_weights_prototype(self, name: str) -> Any:
        return SimpleNamespace(size=2, dtype=np.float32)

    def set_named_weights(self, name: str, value: np.ndarray) -> bool:
        self.set[name] = value
        return bool(np.isfinite(value).all())

    def get_missing_weights(self) -> list[str]:
        return ["b"] if "a" in self.set and "b" not in self.set else []

    def refit_cuda_engine_async(self, stream: int) -> bool:
        assert stream == 77
        self.engine.refitted = dict(self.set)
        return not self.engine.stubborn


@pytest.fixture
def fake() -> Any:
    engine = SimpleNamespace(refittable=True, stubborn=False, refitted={})
    engine.serialize = lambda: repr({name: value.tolist() for name, value in engine.refitted.items()}).encode()
    trt = ModuleType("tensorrt")

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, WARNING=2)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            if data != b"plan":
                self.logger.log(1, "bad magic")
                return None
            return engine

    vars(trt).update(ILogger=ILogger, Runtime=Runtime, Refitter=FakeRefitter, nptype=lambda kind: kind, engine=engine)
    return trt


GPU: Any = SimpleNamespace(active=contextlib.nullcontext, stream=77, synchronise=lambda: None)
WEIGHTS = {name: np.array([i, 1], np.float32) for i, name in enumerate("abcd")}


def test_only_what_changed_and_what_was_fused_with_it_is_set(fake: Any) -> None:
    assert refit_engine(fake, b"plan", WEIGHTS, ["c"], gpu=GPU) == b"{'c': [2.0, 1.0]}"
    assert refit_engine(fake, b"plan", WEIGHTS, ["a"], gpu=GPU) == b"{'a': [0.0, 1.0], 'b': [1.0, 1.0]}"


@pytest.mark.parametrize(
    ("engine", "attributes", "weights", "changed", "fault"),
    [
        (b"plant", {}, {}, ["a"], r"(?s)cannot be loaded.*bad magic"),
        (b"plan", {"refittable": False}, {}, ["a"], "built without that"),
        (b"plan", {"stubborn": True}, {}, ["c"], "cannot refit"),
        (b"plan", {"serialize": lambda: None}, {}, ["c"], "cannot be serialised"),
        (b"plan", {}, {}, ["d"], "no weights 'd' that could be refitted"),
        (b"plan", {}, {"c": None}, ["c"], "There are no weights 'c'"),
        (b"plan", {}, {"c": np.zeros(3, np.float32)}, ["c"], "c: 3 float32 for 2 float32"),
        (b"plan", {}, {"c": np.zeros(2, np.float16)}, ["c"], "c: 2 float16 for 2 float32"),
        (b"plan", {}, {"c": np.float32([np.nan, 0])}, ["c"], "c: TensorRT rejects"),
    ],
)
def test_refits_that_fail_say_why(
    fake: Any, engine: bytes, attributes: dict[str, Any], weights: dict[str, Any], changed: list[str], fault: str
) -> None:
    vars(fake.engine).update(attributes)
    given = {name: value for name, value in {**WEIGHTS, **weights}.items() if value is not None}
    with pytest.raises(EngineError, match=fault):
        refit_engine(fake, engine, given, changed, gpu=GPU)
