"""From a bundle to its engines and to answers, with stand-ins of TensorRT and PyCUDA, against ONNX Runtime."""

from __future__ import annotations

import gc
import shutil
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_nvidia import install
from small import CONFIG, new_learner, picture, write_looks
from test_ladder import OnnxCompiler, overflow_in_fp16, refuse

from edge_cl.backend import BASE
from edge_cl.errors import EngineError
from edge_cl.export.bundle import Bundle, BundleError
from edge_cl.export.engines import folder_of, prepare_engines, suffix_engines
from edge_cl.export.exporter import Snapshot, export_bundle
from edge_cl.learner import Learner
from edge_cl.recognition import Recogniser
from edge_cl.runtime import Classifier
from edge_cl.runtime.onnx import OnnxBackend
from edge_cl.runtime.tensorrt_bundle import tensorrt_backend

MAX_BATCH = 4


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A learner of two tasks of two classes."""
    root = tmp_path_factory.mktemp("learner")
    learner = new_learner(root)
    learner.learn(write_looks(root / "one", {"a": 0, "b": 5}), CONFIG)
    learner.learn(write_looks(root / "two", {"c": 9, "d": 14}), CONFIG)
    return learner


@pytest.fixture(scope="module")
def bundles(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bundles")
    for layout, precision in (("shared", "fp32"), ("shared", "fp16"), ("merged", "fp32")):
        export(learner, root / f"{layout}-{precision}", layout=layout, precision=precision)
    return {path.name: path for path in root.iterdir()}


def export(learner: Learner, out: Path, **how: str) -> None:
    """Export without the classifier's graph, which is no engine's business and takes the longest."""
    model, encoder = learner.load()
    head = learner.store.head
    snapshot = Snapshot(model, encoder.backbone, head.objects["backbone"].sha256, head.number)
    export_bundle(snapshot, out, classifier=False, **how)  # type: ignore[arg-type]


def opened(bundles: dict[str, Path], name: str, tmp_path: Path) -> Bundle:
    shutil.copytree(bundles[name], tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def prepared(bundle: Bundle, compiler: OnnxCompiler) -> tuple[dict[str, str], str]:
    said: list[str] = []
    made = prepare_engines(bundle, compiler, max_batch=MAX_BATCH, say=said.append)
    return {name: f"{engine.made} {engine.precision}" for name, engine in made.items()}, "\n".join(said)


@pytest.mark.parametrize(
    ("name", "expected", "tolerance"),
    [
        ("shared-fp32", {"prefix": "built fp32", "suffix": "built fp32"}, 1e-4),
        ("shared-fp16", {"prefix": "built fp16", "suffix": "built fp16"}, 2e-2),
        (
            "merged-fp32",
            {
                "prefix": "built fp32",
                "suffix-base": "built fp32",
                "suffix-1": "refitted fp32",
            },
            1e-4,
        ),
    ],
)
def test_engines_answer_as_onnx_runtime_does(
    name: str,
    expected: dict[str, str],
    tolerance: float,
    bundles: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = opened(bundles, name, tmp_path)
    install(monkeypatch, max_batch=MAX_BATCH)
    with pytest.raises(EngineError, match=r"(?s)has no .* engine for this board.*--format tensorrt"):
        tensorrt_backend(bundle)
    made, _ = prepared(bundle, OnnxCompiler())
    assert made == expected
    names = {c.id: c.name for c in bundle.manifest.classes}
    pixels = [bundle.manifest.preprocess.centre(picture(look, 50)) for look in (0, 5, 9, 14, 3)]
    with tensorrt_backend(bundle) as backend:
        found = Recogniser(backend, bundle.head(), names)
        reference = Recogniser(OnnxBackend(bundle), bundle.head(), names)
        batch = np.stack(pixels)
        np.testing.assert_allclose(
            found.posterior(backend.encode(batch)), reference.posterior(reference.backend.encode(batch)), atol=tolerance
        )
        for task in (0, 1):
            found_branch = backend.branch(backend.encode(batch), task, [4, 0]).features
            expected_branch = reference.backend.branch(reference.backend.encode(batch), task, [4, 0]).features
            np.testing.assert_allclose(found_branch, expected_branch, atol=tolerance)
    again, said = prepared(bundle, OnnxCompiler(refit_fault=overflow_in_fp16))
    assert {state.split()[0] for state in again.values()} == {"at"} and "the one at hand" in said


def test_engines_of_another_board_are_not_run(
    bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = opened(bundles, "shared-fp32", tmp_path)
    install(monkeypatch, max_batch=MAX_BATCH)
    thor = OnnxCompiler(replace(OnnxCompiler().where, gpu="Thor", compute_capability="11.0"))
    prepared(bundle, thor)
    with pytest.raises(EngineError, match="gpu was Thor, is Orin"):
        tensorrt_backend(bundle)


def test_a_new_task_needs_no_engine(
    learner: Learner, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = opened(bundles, "shared-fp32", tmp_path)
    compiler, device = OnnxCompiler(), install(monkeypatch, max_batch=MAX_BATCH)
    prepared(bundle, compiler)
    before = tensorrt_backend(bundle)
    shutil.copytree(learner.store.path, tmp_path / "store")
    grown = Learner.open(tmp_path / "store", device="cpu")
    grown.learn(write_looks(tmp_path / "three", {"e": 3, "f": 16}), CONFIG)
    export(grown, bundle.path)
    bundle = Bundle.open(bundle.path)
    made, _ = prepared(bundle, compiler)
    assert compiler.calls == ["build", "build"] and set(made.values()) == {"at hand fp32"}
    closer = before.preprocess.closer()  # as if the learn had chosen it
    backbone = {**bundle.manifest.backbone, "preprocess": closer.to_json()}
    bundle = replace(bundle, manifest=replace(bundle.manifest, backbone=backbone))
    after = tensorrt_backend(bundle, previous=before)
    assert device.deserialised == 2, "prefix and suffix, once"
    assert after.preprocess == closer != before.preprocess
    pixels = np.stack([after.preprocess.centre(picture(3, 50))])
    reference = OnnxBackend(bundle)
    expected = reference.branch(reference.encode(pixels), 2, [0]).features
    np.testing.assert_allclose(after.branch(after.encode(pixels), 2, [0]).features, expected, atol=1e-4)
    after.close()


def grown(learner: Learner, bundle: Bundle, tmp_path: Path) -> Bundle:
    """Return a merged bundle after a task more: published, its engines not made yet."""
    shutil.copytree(learner.store.path, tmp_path / "store")
    grown = Learner.open(tmp_path / "store", device="cpu")
    grown.learn(write_looks(tmp_path / "three", {"e": 3, "f": 16}), CONFIG)
    export(grown, bundle.path, layout="merged")
    return Bundle.open(bundle.path)


def test_until_its_engines_are_built_onnx_runtime_answers(
    learner: Learner, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a program that starts; one that TensorRT answers for keeps the version in force meanwhile."""
    bundle = opened(bundles, "merged-fp32", tmp_path)
    install(monkeypatch, max_batch=MAX_BATCH)
    monkeypatch.setattr("edge_cl.runtime.classifier.find_spec", lambda name: name)
    compiler, frame = OnnxCompiler(), np.asarray(picture(3, 50, 40))
    prepared(bundle, compiler)
    running = Classifier(bundle.path)
    bundle = grown(learner, bundle, tmp_path)
    no_engine = r"has no suffix-2 engine for this board"
    with pytest.raises(EngineError, match=no_engine):
        running.reload()
    assert (running.backend, len(running.classes)) == ("tensorrt", 4)
    with pytest.raises(EngineError, match=no_engine):
        Classifier(bundle.path, backend="tensorrt")
    with pytest.warns(RuntimeWarning, match=rf"^ONNX Runtime answers instead of TensorRT\. .* {no_engine}") as said:
        started = Classifier(bundle.path)
    assert [warning.filename for warning in said] == [__file__]
    assert (started.backend, started.predict(frame).label) == ("onnxruntime", "e")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not started.reload(), "nothing has changed"
        (bundle.path / "engines" / "prefix.json").touch()
        assert not started.reload(), "it was tried in vain, and said before"
    prepared(bundle, compiler)
    for classifier in (running, started):
        assert classifier.reload() and not classifier.reload()
        assert (classifier.backend, classifier.predict(frame).label) == ("tensorrt", "e")


@pytest.mark.parametrize("layout", ["shared", "merged"])
def test_a_replaced_backend_gives_its_memory_back(
    layout: str, learner: Learner, bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next call, without Python's collector, whichever thread let go of it last; not while a call runs on it."""
    bundle = opened(bundles, f"{layout}-fp32", tmp_path)
    device, compiler = install(monkeypatch, max_batch=MAX_BATCH), OnnxCompiler()
    frame = np.asarray(picture(9, 50, 40))
    shutil.copytree(learner.store.path, tmp_path / "store")
    renamed = Learner.open(tmp_path / "store", device="cpu")
    prepared(bundle, compiler)
    classifier = Classifier(bundle.path, backend="tensorrt")
    before, engines = len(device.live), len(device.engines)
    held = []

    def let_go() -> None:
        recogniser = held.pop().recogniser
        recogniser.predict([recogniser.backend.preprocess.centre(picture(9, 50))])

    gc.collect()
    gc.disable()
    try:
        for names in ("cC", "Cc", "cC"):
            held.append(classifier._loaded)
            renamed.rename(*names)
            export(renamed, bundle.path, layout=layout)
            prepared(Bundle.open(bundle.path), compiler)
            assert classifier.reload()
            classifier.predict(frame)
            both = len(device.live)
            assert both > before and len(device.engines) == (engines if layout == "shared" else 2 * engines)
            thread = threading.Thread(target=let_go)  # as a call in flight, which ends after the reload
            thread.start()
            thread.join()
            assert not held and len(device.live) == both, "a thread that lets go has no context"
            classifier.predict(frame)
            assert (len(device.live), len(device.engines), device.leaks) == (before, engines, 0)
    finally:
        gc.enable()


def test_one_process_makes_engines_at_a_time(learner: Learner, bundles: dict[str, Path], tmp_path: Path) -> None:
    """Nobody publishes or makes other engines meanwhile, and an older version's never take the place of a newer's."""
    bundle = opened(bundles, "merged-fp32", tmp_path)
    others: list[str] = []

    class Slow(OnnxCompiler):
        def build(self, graph, options, *, say):  # type: ignore[no-untyped-def]
            for other in (lambda: export(learner, bundle.path), lambda: prepared(bundle, OnnxCompiler())):
                with pytest.raises(BundleError, match="Another process is writing the bundle") as refused:
                    other()
                others.append(refused.value.mend)
            return super().build(graph, options, say=say)

    prepared(bundle, Slow())
    assert set(others) == {"Run the same command again when it has finished."} and len(others) == 4
    assert Bundle.open(bundle.path).manifest == bundle.manifest
    newer = grown(learner, bundle, tmp_path)
    made, _ = prepared(newer, OnnxCompiler())
    before = engine_files(bundle)
    with pytest.raises(EngineError, match=r"was updated before its engines were made\.\nRun the same command again"):
        prepared(bundle, OnnxCompiler())
    assert engine_files(bundle) == before and "suffix-2" in made


def test_engines_that_nothing_wants_any_more_go(learner: Learner, bundles: dict[str, Path], tmp_path: Path) -> None:
    """Those of forgotten tasks, of another layout, and what was left half written; nothing of anyone else's."""
    bundle, compiler = opened(bundles, "merged-fp32", tmp_path), OnnxCompiler()
    prepared(bundle, compiler)
    assert engines_in(bundle) == {"prefix", "suffix-base", "suffix-1"}
    hexadecimal = "0123456789abcdef"
    leftovers = [f"prefix-{hexadecimal}.engine", f".suffix-7-{hexadecimal}.engine.tmp", ".suffix-7.json.tmp"]
    foreign = ["timing.cache", "notes.json", f"mine-{hexadecimal}.engine", ".x.tmp"]
    for name in (*leftovers, *foreign):
        (bundle.path / "engines" / name).write_text("x")
    shutil.copytree(learner.store.path, tmp_path / "store")
    forgetful = Learner.open(tmp_path / "store", device="cpu")
    forgetful.forget(["c", "d"])
    for layout, expected in (("merged", {"prefix", "suffix-base"}), ("shared", {"prefix", "suffix"})):
        export(forgetful, bundle.path, layout=layout)
        before = engine_files(bundle)
        with pytest.raises(EngineError):
            prepared(Bundle.open(bundle.path), OnnxCompiler(replace(compiler.where, gpu="Thor"), refuse))
        assert engine_files(bundle) == before, "only when all are made"
        prepared(Bundle.open(bundle.path), compiler)
        files = engine_files(bundle)
        assert engines_in(bundle) == expected
        assert set(files) - set(foreign) == {f"{name}.json" for name in expected} | set(named(bundle, expected))
        assert set(foreign) <= set(files)


def engines_in(bundle: Bundle) -> set[str]:
    """Names of the engines that there are."""
    return {path.stem for path in (bundle.path / "engines").glob("*.json")} - {"notes"}


def named(bundle: Bundle, names: set[str]) -> list[str]:
    """Files that the JSON of these engines names."""
    return [folder_of(bundle).sidecar(name).file for name in names]


def engine_files(bundle: Bundle) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (bundle.path / "engines").iterdir()}


def test_if_one_engine_has_to_be_in_fp32_all_are(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = opened(bundles, "shared-fp16", tmp_path)

    class PrefixFails(OnnxCompiler):
        def build(self, graph, options, *, say):  # type: ignore[no-untyped-def]
            self.build_fault = overflow_in_fp16 if "prefix" in graph.path.name else lambda model: None
            return super().build(graph, options, say=say)

    compiler = PrefixFails()
    made, said = prepared(bundle, compiler)
    assert {state.split()[-1] for state in made.values()} == {"fp32"} and "so all are" in said
    assert len(compiler.calls) == 4, "both in fp16, then both in fp32"
    made, _ = prepared(bundle, compiler)
    assert set(made.values()) == {"at hand fp32"} and len(compiler.calls) == 4


def test_layouts_name_their_engines(bundles: dict[str, Path]) -> None:
    shared, merged = (suffix_engines(Bundle.open(bundles[f"{layout}-fp32"])) for layout in ("shared", "merged"))
    assert [engine.name for engine in shared.values()] == ["suffix"] and shared[BASE].refittable == ()
    assert merged[BASE].name == "suffix-base" and merged[BASE].refittable[0] == "blocks.3.attn.qkv.weight"
