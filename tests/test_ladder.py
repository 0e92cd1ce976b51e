"""The ladder from a graph to a trusted engine, on a compiler whose engines are ONNX files run by ONNX Runtime."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from vit_graphs import Graphs, adapter_of, factors_of, task_adapter, write_graphs

from edge_cl.backbone import Backbone
from edge_cl.errors import EngineError
from edge_cl.export.engine import BuildOptions
from edge_cl.export.engine_key import EngineFolder, Platform, Sidecar
from edge_cl.export.engine_source import EngineGraph, EngineSource, adapted_weights
from edge_cl.export.ladder import EngineRequest, Prepared, prepare_engine
from edge_cl.export.reference import TOLERANCE, Example, Reference
from edge_cl.preprocess import Preprocess
from edge_cl.version import ObjectRef

SIDE = 32
PLATFORM = Platform("10.3.0", "12.6", "Orin", "8.7")
Weights = dict[str, np.ndarray]
Fault = Callable[[onnx.ModelProto], None]


@dataclass
class OnnxCompiler:
    """Does everything but run on a GPU; faults are done to what it makes."""

    where: Platform = PLATFORM
    build_fault: Fault = lambda model: None
    refit_fault: Fault = lambda model: None
    calls: list[str] = field(default_factory=list)

    def platform(self) -> Platform:
        return self.where

    def build(self, graph: EngineGraph, options: BuildOptions, *, say: object) -> bytes:
        self.calls.append("build")
        model = onnx.load_model_from_string(graph.model)
        onnx.load_external_data_for_model(model, str(graph.path.parent))
        self.build_fault(model)
        return model.SerializeToString()

    def refit(self, engine: bytes, weights: Mapping[str, np.ndarray], changed: Collection[str]) -> bytes:
        self.calls.append(f"refit {' '.join(changed)}")
        model = onnx.load_model_from_string(engine)
        for tensor in model.graph.initializer:
            if tensor.name in changed:
                tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
        self.refit_fault(model)
        return model.SerializeToString()

    def run(self, engine: bytes, inputs: Sequence[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        session = onnxruntime.InferenceSession(engine, providers=["CPUExecutionProvider"])
        kinds = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(float16)": np.float16}
        types = {value.name: kinds[value.type] for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        runs = [
            session.run(names, {name: value.astype(types[name]) for name, value in given.items()}) for given in inputs
        ]
        return [dict(zip(names, run, strict=True)) for run in runs]


def drop_bias(model: onnx.ModelProto) -> None:
    """Do what TensorRT 11.3 did: a matrix product loses its bias."""
    tensor = next(t for t in model.graph.initializer if t.name.endswith("mlp.fc2.bias"))
    tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))


def overflow_in_fp16(model: onnx.ModelProto) -> None:
    """Make an fp16 engine answer with NaN, and an fp32 engine rightly."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith("fc1.bias") and tensor.data_type == onnx.TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float16("nan"), tensor.name))


def refuse(model: onnx.ModelProto) -> None:
    raise EngineError("Internal error: could not find any implementation.")


@pytest.fixture
def graphs(tmp_path: Path, tiny_backbone: Backbone) -> Graphs:
    return write_graphs(tmp_path / "graphs", tiny_backbone, Preprocess(SIDE), "fp32")


@pytest.fixture
def half_graphs(tmp_path: Path, tiny_backbone: Backbone) -> Graphs:
    return write_graphs(tmp_path / "half", tiny_backbone, Preprocess(SIDE), "fp16")


@pytest.fixture
def folder(tmp_path: Path) -> EngineFolder:
    return EngineFolder(tmp_path / "engines")


def moved(backbone: Backbone, seed: int, kind: type = np.float32) -> Weights:
    """Return the prefix's projections after the shared adapter has moved."""
    adapter = adapter_of(backbone, 0, backbone.split, seed)
    result = {}
    for i in range(backbone.split):
        down, up = adapter.factors(i) or (None, None)
        assert down is not None and up is not None
        weight = backbone.blocks[i].attn.qkv.weight.detach() + (up @ down).detach()
        result[f"blocks.{i}.attn.qkv.weight"] = np.ascontiguousarray(weight.numpy().T.astype(kind))
    return result


def request_of(source: EngineSource, *, refittable: bool = True, max_batch: int = 3) -> EngineRequest:
    names = adapted_weights(source.load().weights) if refittable else ()
    reference = Reference(source, SIDE, (1, max_batch))
    return EngineRequest("prefix", source, reference.prefix, BuildOptions(max_batch=max_batch, refittable=names))


def prepare(
    request: EngineRequest, folder: EngineFolder, compiler: OnnxCompiler, **rest: object
) -> tuple[Prepared, str]:
    said: list[str] = []
    prepared = prepare_engine(request, folder, compiler, say=said.append, **rest)  # type: ignore[arg-type]
    return prepared, "\n".join(said)


def test_an_engine_is_built_once_and_then_at_hand(graphs: Graphs, folder: EngineFolder) -> None:
    compiler, request = OnnxCompiler(), request_of(graphs.source("prefix"))
    prepared, said = prepare(request, folder, compiler)
    assert (prepared.made, prepared.precision) == ("built", "fp32")
    assert prepared.deviation < 1e-5
    assert "no engine at" in said and "building it in fp32" in said and "off the reference" in said
    again, said = prepare(replace(request, examples=list), folder, compiler)
    assert again == replace(prepared, made="at hand")
    assert compiler.calls == ["build"]
    assert said == "prefix engine: the one at hand."


def test_a_moved_adapter_is_refitted(graphs: Graphs, folder: EngineFolder, tiny_backbone: Backbone) -> None:
    compiler = OnnxCompiler()
    before, _ = prepare(request_of(graphs.source("prefix")), folder, compiler)
    source = replace(graphs.source("prefix"), overrides=moved(tiny_backbone, 5))
    after, said = prepare(request_of(source), folder, compiler)
    assert after.made == "refitted" and after.deviation < 1e-5
    names = [f"blocks.{i}.attn.qkv.weight" for i in range(3)]
    assert compiler.calls == ["build", f"refit {' '.join(names)}"]
    assert "overrides_sha256 was , is " in said and "refitting 3 weights" in said
    assert not before.path.exists() and after.path.exists(), "the engine before went when the new one was in force"
    assert prepare(request_of(source), folder, compiler)[0].made == "at hand"


def test_a_tasks_engine_is_refitted_from_another_tasks(
    tmp_path: Path, folder: EngineFolder, tiny_backbone: Backbone
) -> None:
    compiler = OnnxCompiler()
    for task in (0, 1):
        graphs = write_graphs(
            tmp_path / str(task), tiny_backbone, Preprocess(SIDE), "fp32", [task_adapter(tiny_backbone, task)]
        )
        source = graphs.source("merged")
        reference = Reference(graphs.source("prefix"), SIDE, (1, 3))
        options = BuildOptions(max_batch=3, refittable=adapted_weights(source.load().weights))
        request = EngineRequest(f"suffix-{task}", source, lambda r=reference, s=source: r.suffix(s), options)
        made = prepare(request, folder, compiler, previous=["suffix-0"] if task else [])[0].made
        assert made == ("refitted" if task else "built")
    assert {path.name[:8] for path in folder.path.glob("*.engine")} == {"suffix-0", "suffix-1"}


def test_the_same_weights_in_another_file_keep_the_engine(
    tmp_path: Path, graphs: Graphs, folder: EngineFolder, tiny_backbone: Backbone
) -> None:
    compiler = OnnxCompiler()
    before, _ = prepare(request_of(graphs.source("prefix")), folder, compiler)
    elsewhere = write_graphs(tmp_path / "b", tiny_backbone, Preprocess(SIDE), "fp32", [task_adapter(tiny_backbone, 1)])
    after, _ = prepare(request_of(elsewhere.source("prefix")), folder, compiler)
    assert (after.made, after.path, compiler.calls) == ("kept", before.path, ["build"])


@pytest.mark.parametrize("fault", [drop_bias, refuse])
def test_a_wrong_refit_is_built_anew(
    fault: Fault, graphs: Graphs, folder: EngineFolder, tiny_backbone: Backbone
) -> None:
    compiler = OnnxCompiler(refit_fault=fault)
    prepare(request_of(graphs.source("prefix")), folder, compiler)
    source = replace(graphs.source("prefix"), overrides=moved(tiny_backbone, 5))
    after, said = prepare(request_of(source), folder, compiler)
    assert after.made == "built" and [call.split()[0] for call in compiler.calls] == ["build", "refit", "build"]
    assert "prefix engine: no refit (" in said


def test_a_weight_that_is_fixed_means_a_build(tmp_path: Path, graphs: Graphs, folder: EngineFolder) -> None:
    compiler = OnnxCompiler()
    prepare(request_of(graphs.source("prefix")), folder, compiler)
    weights = graphs.source("prefix").load().weights
    source = replace(graphs.source("prefix"), overrides={"pos_embed": weights["pos_embed"] * np.float32(1.5)})
    after, said = prepare(request_of(source), folder, compiler)
    assert after.made == "built" and "no refit, because 1 weights that are fixed in it changed (pos_embed, ...)" in said


def test_fp32_stands_in_where_fp16_is_wrong(half_graphs: Graphs, folder: EngineFolder) -> None:
    compiler, request = OnnxCompiler(build_fault=overflow_in_fp16), request_of(half_graphs.source("prefix"))
    prepared, said = prepare(request, folder, compiler)
    assert (prepared.made, prepared.precision) == ("built in fp32", "fp32") and prepared.deviation < TOLERANCE["fp32"]
    assert "not in fp16 (its outputs are inf off the reference, more than 3e-02)" in said
    again, said = prepare(request, folder, compiler)
    assert again.made == "at hand" and "in fp32 because fp16 failed here" in said
    assert compiler.calls == ["build", "build"]


def test_fp16_is_within_its_tolerance(half_graphs: Graphs, folder: EngineFolder) -> None:
    prepared, _ = prepare(request_of(half_graphs.source("prefix")), folder, OnnxCompiler())
    assert (prepared.made, prepared.precision) == ("built", "fp16")
    assert TOLERANCE["fp32"] / 10 < prepared.deviation < TOLERANCE["fp16"]


def test_without_a_right_engine_it_refuses_and_the_old_one_stays(
    half_graphs: Graphs, folder: EngineFolder, tiny_backbone: Backbone
) -> None:
    request = request_of(half_graphs.source("prefix"))
    before, _ = prepare(request, folder, OnnxCompiler())
    source = replace(half_graphs.source("prefix"), overrides=moved(tiny_backbone, 5, np.float16))
    broken = OnnxCompiler(build_fault=drop_bias, refit_fault=drop_bias)
    with pytest.raises(EngineError) as caught:
        prepare(request_of(source), folder, broken)
    assert [fault[:4] for fault in caught.value.faults[1:]] == ["fp16", "fp32"] and "ONNX Runtime" in caught.value.mend
    assert prepare(request, folder, OnnxCompiler())[0] == replace(before, made="at hand")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tensorrt": "10.13.3"}, "tensorrt was 10.3.0, is 10.13.3"),
        ({"cuda": "13.0"}, "cuda was 12.6, is 13.0"),
        ({"gpu": "Thor"}, "gpu was Orin, is Thor"),
        ({"compute_capability": "11.0"}, "compute_capability was 8.7, is 11.0"),
    ],
)
def test_an_engine_of_another_platform_is_never_loaded(
    change: dict[str, str], reason: str, graphs: Graphs, folder: EngineFolder
) -> None:
    request = request_of(graphs.source("prefix"))
    prepare(request, folder, OnnxCompiler())
    compiler = OnnxCompiler(replace(PLATFORM, **change))
    prepared, said = prepare(request, folder, compiler)
    assert prepared.made == "built" and reason in said and compiler.calls == ["build"]


def test_other_options_mean_another_engine(graphs: Graphs, folder: EngineFolder) -> None:
    source, compiler = graphs.source("prefix"), OnnxCompiler()
    prepare(request_of(source), folder, compiler)
    _, said = prepare(request_of(source, max_batch=2), folder, compiler)
    assert "profile was (1, 1, 3), is (1, 1, 2)" in said
    _, said = prepare(request_of(source, max_batch=2, refittable=False), folder, compiler)
    assert "refittable was" in said and compiler.calls == ["build"] * 3


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "engine truncated": ("*.engine", truncate, "bytes with SHA-256"),
    "engine altered": ("*.engine", flip, "with SHA-256"),
    "engine gone": ("*.engine", Path.unlink, "is missing"),
    "sidecar truncated": ("*.json", truncate, "cannot be trusted"),
    "sidecar gone": ("*.json", Path.unlink, "no engine at"),
    "sidecar of nobody": ("*.json", lambda path: path.write_text("[]") and None, "cannot be trusted"),
    "sidecar nested too deep": (
        "*.json",
        lambda path: path.write_text('{"engine":' + "[" * 200_000) and None,
        "cannot be trusted",
    ),
    "sidecar altered": (
        "*.json",
        lambda path: path.write_text(path.read_text().replace("Orin", "Thor")) and None,
        "it was altered",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_engine_is_built_anew(damage: str, graphs: Graphs, folder: EngineFolder) -> None:
    pattern, do, reason = DAMAGES[damage]
    compiler, request = OnnxCompiler(), request_of(graphs.source("prefix"))
    prepare(request, folder, compiler)
    do(next(folder.path.glob(pattern)))
    prepared, said = prepare(request, folder, compiler)
    assert prepared.made == "built" and reason in said and compiler.calls == ["build"] * 2


def test_a_sidecar_cannot_name_a_file_elsewhere(graphs: Graphs, folder: EngineFolder, tmp_path: Path) -> None:
    prepare(request_of(graphs.source("prefix")), folder, OnnxCompiler())
    sidecar = folder.sidecar("prefix")
    (folder.path / "prefix.json").write_bytes(replace(sidecar, file="../x.engine").encode())
    with pytest.raises(EngineError, match="names a file elsewhere"):
        folder.sidecar("prefix")


@pytest.mark.parametrize("last", range(12))
def test_a_power_cut_leaves_the_old_or_the_new_engine(last: int, folder: EngineFolder, tmp_path: Path) -> None:
    """Let a process die at its n-th call of fsync, replace or unlink while it stores an engine."""
    key = EngineRequest("prefix", _no_source(tmp_path), list, BuildOptions()).key(_no_source(tmp_path), PLATFORM)
    old = Sidecar(key, "", ObjectRef("", 0), "s", {}, "built", 0.0)
    folder.store("prefix", b"old engine", old)
    if (child := os.fork()) == 0:
        _die_at(last)
        folder.store("prefix", b"new engine", replace(old, made="refitted"))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = folder.load("prefix", key)
    assert found == (b"old engine" if folder.sidecar("prefix").made == "built" else b"new engine")
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    assert status == 0 or found in (b"old engine", b"new engine")
    folder.store("prefix", b"third engine", old)
    assert folder.load("prefix", key) == b"third engine"
    assert {path.name for path in folder.path.iterdir()} == {"prefix.json", folder.sidecar("prefix").file}


@pytest.mark.parametrize("step", ["kept", "refitted", "built"])
def test_a_full_disk_leaves_the_old_engine(
    step: str, graphs: Graphs, folder: EngineFolder, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said at once: no other step of the ladder is tried, which would take minutes and fail alike."""
    compiler, request = OnnxCompiler(), request_of(graphs.source("prefix"))
    changed = {
        "kept": replace(graphs.source("prefix"), graph_sha256="another file"),
        "refitted": replace(graphs.source("prefix"), overrides=moved(tiny_backbone, 5)),
        "built": replace(graphs.source("prefix"), overrides={"pos_embed": np.ones((1, 5, 64), np.float32)}),
    }
    before, _ = prepare(request, folder, compiler)
    files = {path.name for path in folder.path.iterdir()}

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(EngineError) as refused:
        patched.setattr(Path, "write_bytes", full)
        prepare(request_of(changed[step]), folder, compiler)
    assert refused.value.faults == (f"The engines in {folder.path} could not be written: No space left on device.",)
    assert refused.value.mend.startswith("Free some space and run the same command again")
    assert [call.split()[0] for call in compiler.calls[1:]] == {"kept": [], "refitted": ["refit"], "built": ["build"]}[
        step
    ]
    assert prepare(request, folder, compiler)[0] == replace(before, made="at hand")
    assert {path.name for path in folder.path.iterdir()} == files


def _no_source(tmp_path: Path) -> EngineSource:
    return EngineSource(tmp_path / "none.onnx", "fp32", "g", "w")


def _die_at(last: int) -> None:
    count = 0
    for name in ("fsync", "replace", "unlink"):
        real = getattr(os, name)

        def counted(*arguments: object, real: Callable[..., object] = real, **rest: object) -> object:
            nonlocal count
            count += 1
            if count > last:
                os._exit(9)
            return real(*arguments, **rest)

        setattr(os, name, counted)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_deviation(broken: float) -> None:
    wanted = np.array([[3.0, 4.0, 0.0, 5.0]], np.float32)
    example = Example({}, {"features": wanted}, 2)
    assert example.deviation({"features": wanted + np.float32([0, 0, 0.5, 0])}) == pytest.approx(0.1)
    assert example.deviation({"features": np.full_like(wanted, broken)}) == float("inf")
    assert example.deviation({"features": wanted[:, :2]}) == float("inf")
    assert example.deviation({}) == float("inf")


def test_the_reference_checks_every_adapter(graphs: Graphs, tiny_backbone: Backbone) -> None:
    adapters = [factors_of(tiny_backbone, task_adapter(tiny_backbone, seed)) for seed in (0, 1)]
    reference = Reference(graphs.source("prefix"), SIDE, (2, 1, 2))
    examples = reference.suffix(graphs.source("suffix"), adapters)
    assert [len(example.inputs["tokens"]) for example in examples] == [1, 1, 2, 2]
    assert examples[0].deviation(examples[1].outputs) > 0.05


def test_copied_engines_are_checked_by_their_new_folder(graphs: Graphs, folder: EngineFolder, tmp_path: Path) -> None:
    request, compiler = request_of(graphs.source("prefix")), OnnxCompiler()
    prepare(request, folder, compiler)
    shutil.copytree(folder.path, tmp_path / "copy")
    assert prepare(request, EngineFolder(tmp_path / "copy"), compiler)[0].made == "at hand"
    assert compiler.calls == ["build"]
