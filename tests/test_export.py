"""Exporting: the graphs themselves, what an update writes, and bundles that follow the store."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from deployed import TASKS, TINY, Deployed, export, frames, learner_on, posterior, snapshot
from onnx import TensorProto, numpy_helper
from safetensors.numpy import load_file
from small import CONFIG, IMAGE_SIZE, edge_cl, picture, write_looks

from edge_cl.assessment import calibrated
from edge_cl.errors import EdgeClError, UsageError
from edge_cl.export import exporter, graphs
from edge_cl.export.bundle import Bundle, BundleClass, is_bundle_file, read_manifest
from edge_cl.export.formats import FORMATS
from edge_cl.export.tensors import few_bits, half
from edge_cl.head import EXIT_BITS, UNKNOWN_RANK, WEIGHT_BITS, Branch, Discriminant, Exit, Head
from edge_cl.lora import Adapter
from edge_cl.rounding import rounded
from edge_cl.runtime import Classifier
from edge_cl.spread import DIRECTIONS, SPREAD_BITS, Quadratic
from edge_cl.statistics import Precision

KINDS = list(product(("shared", "merged"), ("fp32", "fp16")))
FLOATS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16}
BLOCKS = {"prefix": [0], "suffix": [1, 2]}


def dimensions(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


# -- graphs -------------------------------------------------------------


@pytest.mark.parametrize(("layout", "precision"), KINDS)
def test_graphs(deployed: Deployed, layout: str, precision: str) -> None:
    """The checker with full inference of shapes, names, types and sizes; and nothing of whoever exported."""
    bundle = Bundle.open(deployed.bundle(layout, precision))
    roles = [role for role, ref in bundle.manifest.files.items() if ref.name.endswith(".onnx")]
    merged = ["merged/1", "merged/2", "merged/base", "merged/prefix"] if layout == "merged" else []
    assert roles == [*merged, "prefix", "suffix"]
    for role in roles:
        path = bundle.file(role)
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
        kind, exact = TensorProto.FLOAT, FLOATS[precision]
        sizes: dict[str, tuple[int, list[int | str]]] = {"tokens": (exact, ["B", 5, 64])}
        if role.endswith("prefix"):
            takes = {"image": (TensorProto.UINT8, ["B", 32, 32, 3])}
            gives = {**sizes, "features": (kind, ["B", 128])}
        else:
            factors = {"lora_down": (exact, [2, 20, 64]), "lora_up": (exact, [2, 192, 20])}
            takes = {**sizes, **(factors if layout == "shared" else {})}
            gives = {"features": (kind, ["B", 256])}
        for wanted, values in ((takes, model.graph.input), (gives, model.graph.output)):
            assert {v.name: (v.type.tensor_type.elem_type, dimensions(v)) for v in values} == wanted
        assert not model.doc_string
        assert not any(node.doc_string or node.metadata_props for node in model.graph.node)
        assert b".py" not in path.read_bytes()


@pytest.mark.parametrize("precision", FLOATS)
def test_weights_keep_their_torch_names(deployed: Deployed, precision: str) -> None:
    """Every float weight of the backbone, and no other; linear layers laid out (in, out), and never transposed."""
    bundle = Bundle.open(deployed.bundle("shared", precision))
    vit = deployed.learner().load()[1].backbone.vit
    dtype, linear = (np.float16 if precision == "fp16" else np.float32), set()
    for name, module in vit.named_modules():
        linear |= {f"{name}.weight"} if isinstance(module, torch.nn.Linear) else set()
    held = load_file(bundle.file("weights"))
    state = {name: value.numpy() for name, value in vit.state_dict().items()}
    assert set(held) == set(state)
    for name, value in state.items():
        assert held[name].dtype == dtype
        assert np.array_equal(held[name], (value.T if name in linear else value).astype(dtype)), name
    for role, blocks in BLOCKS.items():
        model = onnx.load(bundle.file(role))  # reads the weights from the file beside it
        weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in held}
        assert all(np.array_equal(weights[name], held[name]) for name in weights)
        inside = {name for name in state if name.startswith(tuple(f"blocks.{i}." for i in blocks))}
        assert inside <= set(weights)
        rest = [t for t in model.graph.initializer if t.name not in held and t.data_type in FLOATS.values()]
        assert all(np.prod(t.dims) <= 3 for t in rest), "a large float tensor without a torch name"
        used = {name for node in model.graph.node if node.op_type == "Transpose" for name in node.input}
        assert not used & set(held)


def test_merged_graphs_hold_their_projections_alone(deployed: Deployed) -> None:
    """All else lies once, in the file of weights; and the projections are those of float64."""
    bundle = Bundle.open(deployed.bundle("merged", "fp32"))
    model, encoder = deployed.learner().load()
    state = encoder.backbone.vit.state_dict()
    adapters = {"merged/prefix": model.shared, "merged/base": model.base}
    adapters |= {f"merged/{task}": adapter for task, adapter in model.adapters.items()}
    for role, adapter in adapters.items():
        assert adapter is not None
        graph = onnx.load(bundle.file(role), load_external_data=False).graph
        own = {t.name: t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL and "." in t.name}
        blocks = range(adapter.first, adapter.first + adapter.depth)
        assert set(own) == {f"blocks.{i}.attn.qkv.weight" for i in blocks}
        for i in blocks:
            name, factors = f"blocks.{i}.attn.qkv.weight", adapter.factors(i)
            assert factors is not None
            down, up = (factor.detach().double() for factor in factors)
            expected = (state[name].double() + up @ down).T.float()
            assert np.allclose(numpy_helper.to_array(own[name]), expected, rtol=1e-6, atol=1e-7)
            assert not np.allclose(expected, state[name].T, atol=1e-4)


# -- updates ------------------------------------------------------------


def test_a_new_task_is_new_files_and_a_manifest(deployed: Deployed, tmp_path: Path) -> None:
    out, learner = deployed.copy(tmp_path / "bundle"), deployed.learner()
    export(snapshot(learner, 2), out)
    before = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    held = read_manifest(out).files
    done = export(snapshot(learner, 3), out)
    after = read_manifest(out).files
    assert not done.graphs_built
    new = {role for role, ref in after.items() if held.get(role) != ref}
    assert new == {"adapter/2", "branch/2", "exit", "head", "spread"}
    changed = {p.name for p in out.iterdir() if before.get(p.name) != p.stat().st_mtime_ns}
    assert changed <= {after[role].name for role in new} | {"manifest.json"}
    assert done.written <= sum(after[role].size for role in new) + (out / "manifest.json").stat().st_size
    assert export(snapshot(learner, 3), out).written == (out / "manifest.json").stat().st_size


def test_the_ninth_task_of_a_vit_tiny_writes_less_than_a_megabyte(deployed: Deployed) -> None:
    """By sizes alone: 9 tasks of 9 classes, 12 blocks of width 192 of which 6 are the prefix, exit and manifest too."""
    random, width, names = np.random.default_rng(0), 192, [f"a class with a name like others {i}" for i in range(81)]
    features, early = 2 * 12 * width, 2 * 6 * width

    def discriminant(classes: int, size: int) -> Discriminant:
        return Discriminant(*(random.normal(size=s).astype(np.float32) for s in ((classes, size), classes, size)))

    def head(size: int, bits: int) -> Head:
        basis = random.normal(size=(UNKNOWN_RANK, size)).astype(np.float32)
        precision = Precision(basis, np.zeros(UNKNOWN_RANK, np.float32), 1.0)
        return Head(np.arange(81), np.repeat(np.arange(9), 9), discriminant(81, size), precision).rounded(bits)

    own = discriminant(9, features).rounded(WEIGHT_BITS)
    branch = Branch(np.arange(72, 81), own, random.normal(size=(9, width)).astype(np.float32), 0.5)
    rows = rounded(random.normal(size=(DIRECTIONS * 81, 81)).astype(np.float32), SPREAD_BITS)
    gains = Quadratic(rows, *(random.normal(size=n).astype(np.float32) for n in (len(rows), 81)))
    whole = replace(head(features, WEIGHT_BITS), branches={8: branch}, exit=Exit(head(early, EXIT_BITS), 0.95))
    whole = replace(whole, quadratic=gains)
    model, generator = deployed.learner().load()[0], torch.Generator().manual_seed(0)
    adapter = Adapter.new_task(6, 6, width, 10, generator)
    new = exporter._adapter_files(replace(model, shared=None, base=None, adapters={8: adapter}))
    new |= exporter._head_files(whole)
    assert set(new) == {"adapter/8", "branch/8", "exit", "head", "spread"}
    manifest = read_manifest(deployed.bundle())
    manifest = replace(
        manifest,
        classes=tuple(BundleClass(i, name, i // 9) for i, name in enumerate(names)),
        task_names={t: f"task-{t}" for t in range(9)},
        files={
            **manifest.files,
            **{f"{k}/{t}": manifest.files["head"] for k in ("adapter", "branch") for t in range(9)},
        },
    )
    assert sum(map(len, new.values())) + len(manifest.encode()) < 1_000_000


@pytest.mark.parametrize(("layout", "precision"), KINDS[1:])
def test_another_layout_or_precision_replaces_the_graphs(deployed: Deployed, layout: str, precision: str) -> None:
    """These bundles were shared, fp32, before; the next export takes the old graphs away."""
    out = deployed.bundle(layout, precision)
    assert deployed.made[layout, precision].graphs_built
    manifest = read_manifest(out)
    assert (manifest.layout, manifest.precision) == (layout, precision)
    with mock.patch.object(exporter, "_write_classifier"):
        done = deployed.learner().export(out)  # keeps what is there
    assert (done["layout"], done["precision"], done["graphs_built"]) == (layout, precision, False)
    assert {p.name for p in out.iterdir() if is_bundle_file(p.name)} == {r.name for r in manifest.files.values()}


@pytest.mark.parametrize(
    ("format", "board", "there", "asked", "expected"),
    [
        ("tensorrt", "orin_nano_8gb", None, None, "fp16"),
        ("tensorrt", "orin_nano_8gb", None, "fp32", "fp32"),
        ("tensorrt", "orin_nano_8gb", "fp32", None, "fp32"),
        ("tensorrt", "xavier_nx", None, None, "fp32"),
        ("tensorrt", "no tree", None, None, "fp32"),
        ("onnx", "orin_nano_8gb", None, None, "fp32"),
    ],
)
def test_the_precision_of_a_new_bundle_with_engines_is_its_boards(
    format: str, board: str, there: str | None, asked: str | None, expected: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """Command line, then the bundle that is there, then the board's profile, then fp32."""
    said: list[str] = []
    made = mock.Mock(return_value=mock.Mock(seconds=0.0, written=0, graphs_built=True, removed=()))
    monkeypatch.setattr("edge_cl.devices.probe.ROOT", Path(__file__).parent / "device_trees" / board)
    monkeypatch.setattr("edge_cl.export.formats.export_bundle", made)
    monkeypatch.setattr("edge_cl.export.compiler.TensorRTCompiler", mock.Mock())
    monkeypatch.setattr("edge_cl.export.engines.prepare_engines", mock.Mock(return_value={}))
    monkeypatch.setattr(Bundle, "open", mock.Mock())
    if there:
        found = mock.Mock(layout="shared", precision=there)
        monkeypatch.setattr("edge_cl.export.formats.read_manifest", mock.Mock(return_value=found))
    done = FORMATS[format](mock.Mock(version=1), tmp_path / "out", None, asked, said.append)
    assert done["precision"] == made.call_args.kwargs["precision"] == expected
    assert [line for line in said if "orin-nano-8gb makes engines in fp16 (--precision" in line] == (
        said if expected == "fp16" else []
    )


def test_matrices_are_stored_in_few_bits_and_read_as_they_are(deployed: Deployed) -> None:
    bundle, taken = Bundle.open(deployed.bundle()), snapshot(deployed.learner())
    assert taken.model.statistics.scatter.basis.shape[0] > UNKNOWN_RANK
    head, features, early = taken.head, taken.shape.features, taken.shape.prefix_features
    assert head.exit is not None
    for role, weight, basis in (
        ("head", (np.int8, (7, features)), (UNKNOWN_RANK, features // 2)),
        ("exit", (np.uint8, (7, early // 2)), (UNKNOWN_RANK, early // 2)),
        ("branch/1", (np.int8, (3, features)), None),
    ):
        held = load_file(bundle.file(role))
        assert (held["weight"].dtype, held["weight"].shape) == weight
        assert held["weight_scale"].shape == (len(held["weight"]), {features: 6, early: 2}[held["centre"].size])
        if basis:
            assert (held["basis"].dtype, held["basis"].shape) == (np.uint8, basis)
    read = bundle.head()
    assert read.exit is not None
    pairs = [(read, head), (read.exit.head, head.exit.head), *((read.branches[t], b) for t, b in head.branches.items())]
    for found, expected in pairs:
        np.testing.assert_array_equal(found.discriminant.weight, expected.discriminant.weight)
    for found, expected in pairs[:2]:
        np.testing.assert_array_equal(found.precision.basis, expected.precision.basis)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 60000, 1e-9], np.float16),
        ([0, 0], np.float16),
        ([], np.float16),
        ([1, 70000], np.float32),
        ([65519.99], np.float16),  # rounds to 65504
        ([1e-6, 3e-7], np.float32),
    ],
)
def test_a_tensor_that_half_precision_cannot_hold_stays_as_it_is(values: list[float], dtype: Any) -> None:
    tensor = np.asarray(values, np.float32)
    stored = half(tensor)
    assert stored.dtype == dtype
    np.testing.assert_allclose(stored, tensor, atol=2**-11 * tensor.max(initial=0))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_matrix_that_few_bits_cannot_hold_is_in_half_precision(bits: int) -> None:
    matrix = np.asarray([[1, 0.3, 0.123]], np.float32)
    assert {name: value.dtype for name, value in few_bits("m", matrix, bits).items()} == {"m": np.float16}


def test_adapters_of_tasks_are_in_half_precision(deployed: Deployed) -> None:
    """Those that encode every picture keep their digits: `encodes_alike` and engines go by them."""
    bundle = Bundle.open(deployed.bundle())
    kinds = {r: {v.dtype for v in load_file(bundle.file(r)).values()} for r in bundle.manifest.files if "adapter" in r}
    halves, single = {np.dtype(np.float16)}, {np.dtype(np.float32)}
    assert kinds == {"adapter/shared": single, "adapter/base": single, "adapter/1": halves, "adapter/2": halves}


def test_store_of_an_earlier_commit(deployed: Deployed, tmp_path: Path) -> None:
    """Its states say no rank and no rounding: until the next fit, the head is as exact as it was."""
    learner = deployed.learner(tmp_path / "store")
    every_digit = mock.patch.object(Head, "rounded", lambda head, bits=8: head)
    with mock.patch("edge_cl.assessment.UNKNOWN_RANK", None), every_digit:
        model = calibrated(learner.load()[0])
    state = model.state()
    assert state.pop("unknown_rank", 0) is None
    assert state.pop("rounded")
    with learner.store.write("as before") as transaction:
        transaction.put_json("state", state)
        transaction.keep_all()
        transaction.commit(kind="learn", record=learner.store.head.record)
    learner.rename("b", "bolt")

    earlier, count = learner.load()[0], model.statistics.scatter.basis.shape[0]
    assert (earlier.unknown_rank, earlier.rounded) == (None, False)
    assert earlier.head().precision.basis.shape[0] == count > UNKNOWN_RANK
    assert (earlier.threshold, earlier.names[0]) == (model.threshold, "bolt")
    assert len(export(snapshot(learner), tmp_path / "bundle").manifest.classes) == 7
    head = Bundle.open(tmp_path / "bundle").head()
    assert (head.precision.basis.shape[0], head.threshold) == (count, model.threshold)
    pixels = np.stack([np.asarray(picture(look, 30, IMAGE_SIZE)) for look in range(18)])
    features = learner.recogniser().backend.encode(pixels).features
    exact = earlier.head().distance(features)
    np.testing.assert_allclose(head.distance(features), exact, atol=1e-3 * exact.max())  # the head's halves

    learner.forget(["g"])
    fitted = learner.load()[0]
    assert (fitted.unknown_rank, fitted.rounded) == (UNKNOWN_RANK, True)
    assert fitted.head().precision.basis.shape[0] == UNKNOWN_RANK
    assert fitted.threshold == calibrated(fitted).threshold != model.threshold


def test_bundles_follow_the_store(deployed: Deployed, tmp_path: Path) -> None:
    """Renamed, forgotten and rolled back classes; files of a task that is gone are gone after one update more."""
    out, learner = deployed.copy(tmp_path / "bundle", "merged"), deployed.learner(tmp_path / "store")
    learner.rename("b", "bolt")
    learner.forget(["a", "c", "e", "g"])
    pixels = np.stack([np.asarray(picture(look, 30, IMAGE_SIZE)) for look in range(18)])
    for number, names, tasks in (
        (None, ["bolt", "d", "f"], [0, 2]),
        (5, ["bolt", "d", "a", "c", "e", "f", "g"], [0, 1, 2]),
        (1, ["b", "d"], [0]),
    ):
        if number is not None:
            learner.rollback(number)
        for _ in range(2):
            export(snapshot(learner), out, "merged")
        manifest = read_manifest(out)
        assert [c.name for c in manifest.classes] == names
        assert manifest.tasks == tasks
        assert set(manifest.task_names) == set(tasks)
        adapted = {int(role[8:]) for role in manifest.files if role[8:].isdigit()}
        assert adapted == set(tasks) - {0}
        assert {p.name for p in out.iterdir() if is_bundle_file(p.name)} == {r.name for r in manifest.files.values()}
        reference = learner.recogniser()
        found, _ = posterior(Classifier(out), pixels)
        assert np.abs(found - reference.posterior(reference.backend.encode(pixels))).max() < 1e-4


def test_adapters_of_a_larger_rank(deployed: Deployed, tmp_path: Path) -> None:
    """The graphs take a rank of 10: they are made again for 12, and the smaller adapters are filled up."""
    out, taken = deployed.copy(tmp_path / "bundle"), snapshot(deployed.learner())
    taken = replace(taken, model=replace(taken.model, exit=None))  # every picture is sent to its task's branch
    export(taken, out)
    batch = np.stack([np.asarray(picture(look, 30, IMAGE_SIZE)) for look in (11, 16, 9)])
    before, _ = posterior(Classifier(out), batch)
    old = taken.model.adapters[2]
    generator = torch.Generator().manual_seed(0)
    wide = Adapter.new_task(old.first, old.depth, 64, 12, generator)
    wide.B.data.normal_(0, 0.5, generator=generator)
    taken = replace(taken, model=replace(taken.model, adapters={**taken.model.adapters, 2: wide}))
    assert export(taken, out).graphs_built
    assert read_manifest(out).shape.r == 12
    found, _ = posterior(Classifier(out), batch)
    expected, _ = posterior(Classifier(out, backend="torch"), batch)
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(found - before).max() > 1e-4


def test_a_rank_that_no_adapter_has_leaves_the_graphs(deployed: Deployed) -> None:
    """Settings of the latest learn do not count, if it trained no adapter with them."""
    taken = snapshot(deployed.learner())
    other = replace(taken, model=replace(taken.model, config=replace(CONFIG, r=16)))
    assert other.shape == taken.shape
    bare = replace(other.model, shared=None, base=None, adapters={})
    assert replace(other, model=bare).shape.r == 16


@pytest.mark.parametrize("layout", ["shared", "merged"])
def test_without_adapters(tmp_path: Path, layout: str) -> None:
    """A store of statistics alone: one class, then more; base branch and prefix are the bare backbone."""
    learner = learner_on(tmp_path, **TINY)
    config = replace(CONFIG, method="prototype")
    learner.learn(write_looks(tmp_path / "one", {"b": 0}, 6), config)
    export(snapshot(learner), tmp_path / "bundle", layout)
    assert [p.label for p in Classifier(tmp_path / "bundle").predict(frames("b", "a"))] == ["b", "b"]
    learner.learn(write_looks(tmp_path / "more", TASKS[1], 6), config)
    assert not export(snapshot(learner), tmp_path / "bundle", layout).graphs_built
    batch = np.stack([np.asarray(picture(look, 30, IMAGE_SIZE)) for look in range(18)])
    reference = learner.recogniser()
    for backend in ("onnxruntime", "torch"):
        found, _ = posterior(Classifier(tmp_path / "bundle", backend=backend), batch)
        assert np.abs(found - reference.posterior(reference.backend.encode(batch))).max() < 1e-4
    roles = set(read_manifest(tmp_path / "bundle").files)
    assert roles == {"weights", "prefix", "suffix", "head", "spread", "branch/0", "branch/1"}


# -- names --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "onx"}, "Unknown format 'onx'.\nDid you mean onnx"),
        ({"layout": "share"}, "Unknown layout 'share'.\nDid you mean shared?"),
        ({"layout": "MERGED"}, "Unknown layout 'MERGED'.\nKnown: shared, merged."),
        ({"precision": "fp8"}, "Unknown precision 'fp8'.\nKnown: fp32, fp16."),
        ({"precision": "half"}, "Unknown precision 'half'.\nKnown: fp32, fp16."),
        ({"format": "peft", "layout": "shared"}, "PEFT's format has no layout or precision."),
    ],
)
def test_unknown_names(deployed: Deployed, tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        deployed.learner().export(tmp_path / "out", **arguments)  # type: ignore[arg-type]
    assert str(refused.value).startswith(message.rstrip("."))
    assert not (tmp_path / "out").exists()
    options = [f"--{name}={value}" for name, value in arguments.items()]
    run = edge_cl("export", tmp_path / "out", *options, "--store", deployed.root / "store", "--json")
    assert run.code == 2 and run.error
    assert message.partition("\n")[0] in " ".join(run.err.split())


def test_formats() -> None:
    assert {"onnx", "peft"} <= set(FORMATS)
    assert set(graphs.PRECISIONS) == set(FLOATS)


def test_nothing_learned(tmp_path: Path) -> None:
    learner = learner_on(tmp_path, depth=2)
    with pytest.raises(EdgeClError, match="knows no class yet"):
        learner.export(tmp_path / "out")
    run = edge_cl("export", tmp_path / "out", "--store", tmp_path / "store", "--json")
    assert run.code == 1 and run.error
    assert "Teach some: edge-cl learn --new-classes DIR" in " ".join(run.err.split())
    assert not (tmp_path / "out").exists()
