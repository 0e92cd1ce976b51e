"""The TensorRT backend's own arithmetic and bookkeeping, on stand-ins of TensorRT and PyCUDA, against torch."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_nvidia import Device, engine_of, install
from vit_graphs import Graphs, factors_of, task_adapter, write_graphs

from edge_cl.backbone import Backbone
from edge_cl.backend import BASE
from edge_cl.errors import EngineError
from edge_cl.export.compiler import TensorRTCompiler
from edge_cl.export.engine_key import Platform
from edge_cl.export.reference import Reference
from edge_cl.features import Encoder, TorchBackend
from edge_cl.preprocess import Preprocess
from edge_cl.runtime.nvidia import Gpu, tensorrt_module
from edge_cl.runtime.tensorrt import TensorRTBackend

MAX_BATCH = 4
SIDE = 32


@pytest.fixture
def graphs(tmp_path: Path, tiny_backbone: Backbone) -> Graphs:
    return write_graphs(tmp_path, tiny_backbone, Preprocess(SIDE), "fp32")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return install(monkeypatch, max_batch=MAX_BATCH)


@pytest.fixture
def reference(tiny_backbone: Backbone) -> TorchBackend:
    adapters = {task: task_adapter(tiny_backbone, task) for task in (0, 3)}
    base = task_adapter(tiny_backbone, 9)
    return TorchBackend(Encoder(tiny_backbone, Preprocess(SIDE), base=base), adapters)


@pytest.fixture
def backend(device: Device, graphs: Graphs, reference: TorchBackend) -> Iterator[TensorRTBackend]:
    backbone, base = reference.encoder.backbone, reference.encoder.base
    assert base is not None
    adapters = {BASE: base, **reference.adapters}
    factors = {task: factors_of(backbone, adapter) for task, adapter in adapters.items()}
    with TensorRTBackend(engine_of(graphs.prefix), engine_of(graphs.suffix), factors, Preprocess(SIDE)) as made:
        yield made


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


@pytest.mark.parametrize("batch", [1, 3, MAX_BATCH, MAX_BATCH + 1, 3 * MAX_BATCH])
def test_encoding_is_that_of_torch(batch: int, backend: TensorRTBackend, reference: TorchBackend) -> None:
    pixels = frames(batch)
    found, expected = backend.encode(pixels), reference.encode(pixels)
    np.testing.assert_allclose(found.features, expected.features, atol=2e-5)
    unit = expected.last / np.linalg.norm(expected.last, axis=1, keepdims=True)
    np.testing.assert_allclose(found.last, unit, atol=2e-5)
    assert found.features.dtype == np.float32


@pytest.mark.parametrize("task", [0, 3, 7])  # no adapter for task 7: the base branch answers
@pytest.mark.parametrize("rows", [[0], [3], [1, 2], [5, 0, 3], [3, 4, 5], list(range(11)), [], [2, 2]])
def test_branches_are_those_of_torch(
    task: int, rows: list[int], backend: TensorRTBackend, reference: TorchBackend
) -> None:
    pixels = frames(11)
    found = backend.branch(backend.encode(pixels), task, rows)
    expected = reference.branch(reference.encode(pixels), task, rows)
    np.testing.assert_allclose(found.features, expected.features, atol=2e-5)
    assert found.last.shape == expected.last.shape


def test_a_branch_of_a_branch_has_the_right_tokens(backend: TensorRTBackend, reference: TorchBackend) -> None:
    pixels = frames(9)
    found = backend.branch(backend.branch(backend.encode(pixels), 0, [7, 2, 5]), 3, [2, 0])
    expected = reference.branch(reference.encode(pixels), 3, [5, 7])
    np.testing.assert_allclose(found.features, expected.features, atol=2e-5)


@pytest.mark.parametrize("rows", [[0], [1, 2], [5, 0, 3], [2, 2], list(range(11)), []])
def test_tokens_on_the_host_are_those_of_torch(
    rows: list[int], backend: TensorRTBackend, reference: TorchBackend
) -> None:
    pixels = frames(11)
    found = np.asarray(backend.encode(pixels).tokens[rows])
    expected = reference.encode(pixels).tokens.numpy()[rows]
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_encodings_held_do_not_overwrite_each_other(backend: TensorRTBackend, reference: TorchBackend) -> None:
    pixels = [frames(3, seed) for seed in range(6)]
    held = [backend.encode(p) for p in pixels]
    for encoding, p in zip(held, pixels, strict=True):
        found, expected = backend.branch(encoding, 3, [2, 0]), reference.branch(reference.encode(p), 3, [2, 0])
        np.testing.assert_allclose(found.features, expected.features, atol=2e-5)


def test_nothing_is_allocated_in_the_loop(backend: TensorRTBackend, device: Device) -> None:
    before = device.allocations
    for seed in range(20):
        encoding = backend.encode(frames(1 + seed % MAX_BATCH, seed))
        backend.branch(encoding, 0, [0])
    assert device.allocations == before


def test_pictures_that_lie_right_are_not_copied(backend: TensorRTBackend, device: Device) -> None:
    encoding = backend.encode(frames(3))
    backend.branch(encoding, 0, [0, 1, 2])
    assert device.copies == []
    backend.branch(encoding, 0, [0, 2])
    row = 5 * 64 * 4
    assert device.copies == [row, row]
    backend.branch(backend.encode(frames(8)), 0, [1, 2, 3, 4, 5])
    assert device.copies[2:] == [3 * row, row], "rows 1-3 of the first buffer, 4 of the second; 5 fits no batch of 4"


def test_adapters_change_on_the_same_engines(backend: TensorRTBackend, device: Device, reference: TorchBackend) -> None:
    backbone, pixels = reference.encoder.backbone, frames(3)
    loaded, before = device.deserialised, len(device.live)
    new = {BASE: task_adapter(backbone, 9), 0: task_adapter(backbone, 0), 5: task_adapter(backbone, 5)}
    factors = {task: factors_of(backbone, adapter) for task, adapter in new.items()}
    other = backend.with_adapters(factors, backend.preprocess)
    assert device.deserialised == loaded
    grown = TorchBackend(reference.encoder, {0: new[0], 5: new[5]})
    for mine, theirs in ((other, grown), (backend, reference)):
        for task in (0, 3, 5):
            found, expected = (
                mine.branch(mine.encode(pixels), task, [2, 1]),
                theirs.branch(theirs.encode(pixels), task, [2, 1]),
            )
            np.testing.assert_allclose(found.features, expected.features, atol=2e-5)
    del other, mine
    backend.encode(pixels)
    assert len(device.live) == before, "adapters that nobody uses any more leave the device"
    with pytest.raises(EngineError, match="takes image of"):
        backend.with_adapters(factors, replace(backend.preprocess, image_size=16))
    backend.with_adapters({BASE: factors[BASE]}, backend.preprocess).close()
    with pytest.raises(EngineError, match="closed"):
        backend.encode(pixels)


def test_threads_may_share_a_backend(backend: TensorRTBackend, reference: TorchBackend) -> None:
    pixels = [frames(3, seed) for seed in range(4)]
    expected = [reference.branch(reference.encode(p), 0, [2]).features for p in pixels]
    faults: list[BaseException] = []

    def work(i: int) -> None:
        try:
            for _ in range(10):
                found = backend.branch(backend.encode(pixels[i]), 0, [2]).features
                np.testing.assert_allclose(found, expected[i], atol=2e-5)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_merged_engines_answer_without_adapters(
    tmp_path: Path, device: Device, tiny_backbone: Backbone, reference: TorchBackend
) -> None:
    adapters = {BASE: reference.encoder.base, **reference.adapters}
    made = {
        task: write_graphs(tmp_path / str(task), tiny_backbone, Preprocess(SIDE), "fp32", [adapter])
        for task, adapter in adapters.items()
        if adapter is not None
    }
    files = {}
    for task, graphs in made.items():
        files[task] = tmp_path / f"{task}.engine"
        files[task].write_bytes(engine_of(graphs.merged))
    with TensorRTBackend(engine_of(made[BASE].prefix), files, {}, Preprocess(SIDE)) as backend:
        pixels = frames(5)
        found, expected = backend.encode(pixels), reference.encode(pixels)
        np.testing.assert_allclose(found.features, expected.features, atol=5e-5)
        found, expected = backend.branch(found, 3, [4, 1]), reference.branch(expected, 3, [4, 1])
        np.testing.assert_allclose(found.features, expected.features, atol=5e-5)


def test_fp16_engines_get_adapters_in_fp16(tmp_path: Path, device: Device, reference: TorchBackend) -> None:
    backbone, base = reference.encoder.backbone, reference.encoder.base
    assert base is not None
    graphs = write_graphs(tmp_path, backbone, Preprocess(SIDE), "fp16")
    with TensorRTBackend(
        engine_of(graphs.prefix), engine_of(graphs.suffix), {BASE: factors_of(backbone, base)}, Preprocess(SIDE)
    ) as backend:
        found, expected = backend.encode(frames(2)), reference.encode(frames(2))
        np.testing.assert_allclose(found.features, expected.features, atol=2e-2)


def test_closing_gives_everything_back(backend: TensorRTBackend, device: Device) -> None:
    encoding = backend.encode(frames(2))
    backend.close()
    backend.close()
    assert set(device.live) == set(device.pinned), "pinned memory goes with its arrays"
    for call in (lambda: backend.encode(frames(1)), lambda: backend.branch(encoding, 0, [0])):
        with pytest.raises(EngineError, match="closed"):
            call()


@pytest.mark.parametrize(
    ("pixels", "fault"),
    [
        (np.zeros((1, SIDE, SIDE, 3), np.float32), "float32 given"),
        (np.zeros((1, SIDE, SIDE), np.uint8), "shape"),
        (np.zeros((1, 3, SIDE, SIDE), np.uint8), "shape"),
        (np.zeros((0, SIDE, SIDE, 3), np.uint8), "shape"),
    ],
)
def test_pictures_of_another_form_are_refused(pixels: np.ndarray, fault: str, backend: TensorRTBackend) -> None:
    with pytest.raises(EngineError, match=fault):
        backend.encode(pixels)


def test_parts_that_do_not_fit_are_refused(device: Device, graphs: Graphs, tiny_backbone: Backbone) -> None:
    prefix, suffix = engine_of(graphs.prefix), engine_of(graphs.suffix)
    factors = factors_of(tiny_backbone, task_adapter(tiny_backbone, 0))
    small = (factors[0][:, :2], factors[1][:, :, :2])
    for given, adapters, side, fault in (
        (suffix, {0: factors}, SIDE, "base branch is missing"),
        (suffix, {BASE: small}, SIDE, "lora_down is"),
        (suffix, {BASE: factors}, 64, "image of"),
        (b"rubbish", {BASE: factors}, SIDE, "magicTag"),
        ({BASE: Path("nowhere.engine")}, {}, SIDE, "cannot be read"),
        (prefix, {}, SIDE, "makes tokens, features of image"),
        ({BASE: prefix}, {}, SIDE, "makes tokens, features of image"),
    ):
        with pytest.raises(EngineError, match=fault):
            TensorRTBackend(prefix, given, adapters, Preprocess(side))
    assert set(device.live) == set(device.pinned), "what was allocated before the fault is given back"


def test_full_memory_is_said(device: Device, graphs: Graphs, tiny_backbone: Backbone) -> None:
    device.memory_limit = 10_000
    factors = {BASE: factors_of(tiny_backbone, task_adapter(tiny_backbone, 0))}
    with pytest.raises(EngineError, match=r"its memory is full.*\n.*smaller batch"):
        TensorRTBackend(engine_of(graphs.prefix), engine_of(graphs.suffix), factors, Preprocess(SIDE))


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    with pytest.raises(EngineError, match="GPU 1 cannot be used"):
        Gpu(1)
    monkeypatch.setattr(sys.modules["tensorrt"], "__version__", "8.5.2")
    with pytest.raises(EngineError, match=r"8\.5\.2 is too old.*\n.*JetPack 6\.1"):
        tensorrt_module()
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"tensorrt cannot be imported.*\n.*system-site-packages"):
        tensorrt_module()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(EngineError, match=r"(?s)pycuda.*pip install"):
        Gpu()


def test_the_compiler_runs_engines_on_examples(device: Device, graphs: Graphs, tiny_backbone: Backbone) -> None:
    compiler = TensorRTCompiler()
    assert compiler.platform() == Platform("10.3.0", "12.6", "Orin", "8.7")
    reference = Reference(graphs.source("prefix"), SIDE, (1, MAX_BATCH))
    adapters = [factors_of(tiny_backbone, task_adapter(tiny_backbone, 0))]
    for name, examples in (
        ("prefix", reference.prefix()),
        ("suffix", reference.suffix(graphs.source("suffix"), adapters)),
    ):
        found = compiler.run(engine_of(getattr(graphs, name)), [example.inputs for example in examples])
        assert max(example.deviation(outputs) for example, outputs in zip(examples, found, strict=True)) < 1e-5
    with pytest.raises(EngineError, match="refuses a batch of 5"):
        compiler.run(engine_of(graphs.prefix), [{"image": frames(5)}])


def test_no_torch_is_needed() -> None:
    program = "import sys, edge_cl.runtime.tensorrt_bundle; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
