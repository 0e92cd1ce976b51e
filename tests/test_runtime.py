"""Answering from a bundle: the same answers as the store's, whatever runs it, from any frame and any thread."""

from __future__ import annotations

import copy
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from deployed import LOOK, Deployed, export, frames, graphs_once, learner_on, posterior, snapshot
from forgeries import say, tensors
from PIL import Image
from small import CONFIG, IMAGE_SIZE, edge_cl, picture, write_looks

from edge_cl.backbone import Backbone
from edge_cl.decoded import decode
from edge_cl.errors import EngineError, UsageError
from edge_cl.export.bundle import BundleError, read_manifest
from edge_cl.head import UNKNOWN_RANK
from edge_cl.pictures import read_unlabelled
from edge_cl.runtime import Classifier

KINDS = list(product(("shared", "merged"), ("fp32", "fp16")))
BACKENDS = ("onnxruntime", "torch")


@pytest.fixture(scope="module")
def pixels() -> Any:
    """Input pixels of many pictures, some of looks that no class has."""
    return np.stack([np.asarray(picture(look, 900 + seed, IMAGE_SIZE)) for look in range(18) for seed in range(12)])


# -- the same answers ---------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("layout", "precision"), KINDS)
def test_answers_are_the_stores(deployed: Deployed, pixels: Any, layout: str, precision: str, backend: str) -> None:
    """The bars are the issue's; measured: 1.5e-6 of the largest logit in fp32, 4e-3 in fp16, all labels the same."""
    reference = deployed.learner().recogniser()
    encoding = reference.backend.encode(pixels)
    expected, logits = reference.posterior(encoding), reference.head.discriminant.scores(encoding.features)
    classifier = Classifier(deployed.bundle(layout, precision), backend=backend, threads=1)
    found, scores = posterior(classifier, pixels)
    same = (found.argmax(1) == expected.argmax(1)).mean()
    off = float((np.abs(scores - logits).max(1) / np.abs(logits).max(1)).max())

    if precision == "fp32":
        assert same == 1.0
        assert off <= 1e-3
        assert np.abs(found - expected).max() <= 1e-3
    else:
        assert same >= 0.995
        assert off <= 5e-2
    assert len({*found.argmax(1)}) == len(LOOK)
    assert np.median(found.max(1)) < 0.9  # so that a difference would show


def test_predictions_are_the_learners(deployed: Deployed, tmp_path: Path) -> None:
    """Not the scores alone: label, confidence, unknown and the classes listed, of files as the learner reads them."""
    folder = write_looks(tmp_path / "looks", {f"look {look:02}": look for look in range(18)}, 2, first=700)
    learner, classifier = deployed.learner(), Classifier(deployed.bundle(), threads=1)
    answers = learner.predict(folder, top=3).answers
    found = classifier.predict([np.asarray(Image.open(a.source)) for a in answers], top=3)
    for answer, prediction in zip(answers, found, strict=True):
        expected = answer.prediction
        assert (prediction.label, prediction.unknown) == (expected.label, expected.unknown)
        assert prediction.confidence == pytest.approx(expected.confidence, abs=1e-4)
        assert [name for name, _ in prediction.top][:1] == [name for name, _ in expected.top][:1]
        assert len(prediction.top) == 3
    assert {True, False} == {p.unknown for p in found}
    assert classifier.version == 4
    assert classifier.classes == [c["name"] for c in learner.classes()]


def test_bundle_of_an_earlier_commit(deployed: Deployed, pixels: Any, tmp_path: Path) -> None:
    """Its head, in single precision and with all directions, and its threshold answer as they did."""
    model = deployed.learner().load()[0]
    exact, encoder = replace(model, unknown_rank=None).head(), deployed.learner().recogniser().backend
    distances = exact.distance(encoder.encode(pixels).features)
    limit = float(np.sort(distances)[len(pixels) // 2 - 1 : len(pixels) // 2 + 1].mean())
    bundle = deployed.copy(tmp_path / "bundle")
    held = {"weight": exact.discriminant.weight, "basis": exact.precision.basis, "gain": exact.precision.gain}
    tensors("head", **{name: lambda _, v=value: v for name, value in held.items()})(bundle)
    say("threshold", value=limit)(bundle)
    say("least_score", value=...)(bundle)
    assert len(held["gain"]) > UNKNOWN_RANK
    found = [p.unknown for p in Classifier(bundle, threads=1)._loaded.recogniser.predict(list(pixels))]
    assert found == (distances > limit).tolist()
    assert 0 < sum(found) < len(found)


@pytest.mark.parametrize("threshold", [None, 3000.0])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_least_score_decides(
    deployed: Deployed, pixels: Any, tmp_path: Path, backend: str, threshold: float | None
) -> None:
    """Alone where nothing is too far; what is too far is unknown however high its score is."""
    reference = deployed.learner().recogniser()
    features = reference.backend.encode(pixels).features
    scores = reference.head.discriminant.scores(features)
    best = reference.head.whole(scores).max(1)
    middle = len(best) // 2
    least = float(np.sort(best)[middle - 1 : middle + 1].mean())
    far, low = reference.head.distance(features, scores) > (threshold or np.inf), best < least
    bundle = deployed.copy(tmp_path / "bundle")
    say("threshold", value=threshold)(bundle)
    say("least_score", value=least)(bundle)
    classifier = Classifier(bundle, backend=backend, rule="base", threads=1)
    found = [p.unknown for p in classifier._loaded.recogniser.predict(list(pixels))]
    assert found == (far | low).tolist()
    assert (low & ~far).any()
    assert not found[best.argmax()]
    assert (far & ~low).any() == (threshold is not None)


@pytest.mark.parametrize("rule", ["base", "published"])
def test_other_rules(deployed: Deployed, pixels: Any, rule: str) -> None:
    reference = deployed.learner().recogniser(rule)
    expected = reference.posterior(reference.backend.encode(pixels))
    found, _ = posterior(Classifier(deployed.bundle(), rule=rule), pixels)
    assert np.abs(found - expected).max() < 1e-4


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_preprocessing_is_the_trainings(deployed: Deployed, tmp_path: Path, ending: str) -> None:
    """Largest pixel difference: 0. (Of a JPEG of four times the input's size, which training decodes reduced: 3.)"""
    classifier, seen = Classifier(deployed.bundle()), []
    for i, (width, height) in enumerate(((63, 40), (33, 61), (32, 32), (50, 50))):
        image = picture(i, 3, 64).crop((0, 0, width, height))
        image.save(tmp_path / f"{i}.{ending}", quality=90)
    recogniser = classifier._loaded.recogniser
    real = recogniser.backend
    spec = real.preprocess
    listed = read_unlabelled(tmp_path).pictures
    assert len(listed) == 4
    trained = decode(listed, spec).pixels

    class Spy:
        preprocess = spec

        def prefix(self, batch: Any) -> Any:
            seen.append(batch)
            return real.prefix(batch)

        branch = real.branch

    object.__setattr__(recogniser, "backend", Spy())
    classifier.predict([np.asarray(Image.open(p.path)) for p in listed])
    assert np.array_equal(seen[0], np.stack(trained))


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("test_vit", 32, {"depth": 2, "class_token": False, "global_pool": "avg"}),
        ("vit_small_patch14_reg4_dinov2", 28, {"depth": 2, "embed_dim": 48, "num_heads": 3}),
    ],
    ids=["no class token, norm after pooling", "registers, layer scale"],
)
def test_other_backbones(tmp_path: Path, name: str, size: int, arguments: dict[str, Any]) -> None:
    learner = learner_on(tmp_path, name, size, **arguments)
    for i, looks in enumerate(({"b": 0, "d": 5}, {"a": 9, "c": 14})):
        learner.learn(write_looks(tmp_path / str(i), looks, 8), CONFIG)
    export(snapshot(learner), tmp_path / "bundle")
    batch = np.stack([np.asarray(picture(look, 60, size)) for look in range(18)])
    reference = learner.recogniser()
    expected = reference.posterior(reference.backend.encode(batch))
    for backend in BACKENDS:
        found, _ = posterior(Classifier(tmp_path / "bundle", backend=backend), batch)
        assert np.abs(found - expected).max() < 1e-3


# -- frames -------------------------------------------------------------


def other(frame: Any) -> dict[str, Any]:
    """Return the same frame laid out in other ways."""
    read_only = frame.copy()
    read_only.setflags(write=False)
    return {
        "Fortran order": np.asfortranarray(frame),
        "every other pixel": np.repeat(np.repeat(frame, 2, 0), 2, 1)[::2, ::2],
        "channels turned around twice": np.ascontiguousarray(frame[..., ::-1])[..., ::-1],
        "read only": read_only,
    }


def test_frames_in_any_layout(deployed: Deployed) -> None:
    classifier, frame = Classifier(deployed.bundle()), frames("a", side=37)[0]
    expected = classifier.predict(frame)
    for what, same in other(frame).items():
        assert np.array_equal(same, frame)
        assert classifier.predict(same) == expected, what


@pytest.mark.parametrize("count", [0, 1, 17])
def test_any_number_of_frames(deployed: Deployed, count: int) -> None:
    """Seventeen are more than are run at once."""
    names = [list(LOOK)[i % len(LOOK)] for i in range(count)]
    classifier, many = Classifier(deployed.bundle()), frames(*names)
    found = classifier.predict(many)
    assert [p.label for p in found] == names
    assert classifier.predict(np.stack(many) if many else np.zeros((0, 40, 40, 3), np.uint8)) == found
    for frame, prediction in zip(many, found, strict=True):
        alone = classifier.predict(frame)
        assert (alone.label, alone.unknown) == (prediction.label, prediction.unknown)
        assert alone.confidence == pytest.approx(prediction.confidence, abs=1e-5)
    assert all(len(p.top) == 5 and p.top[0] == (p.label, p.confidence) for p in found)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (700, 3), (8, 8)])
def test_frames_of_odd_sizes(deployed: Deployed, shape: tuple[int, int]) -> None:
    prediction = Classifier(deployed.bundle()).predict(np.full((*shape, 3), 90, np.uint8), top=99)
    assert sum(p for _, p in prediction.top) == pytest.approx(1, abs=1e-5)
    assert len(prediction.top) == len(LOOK)


BAD = {
    "grey": (np.zeros((8, 9), np.uint8), "A frame is uint8 (8, 9)."),
    "one channel": (np.zeros((8, 9, 1), np.uint8), "A frame is uint8 (8, 9, 1)."),
    "transparent": (np.zeros((8, 9, 4), np.uint8), "A frame is uint8 (8, 9, 4)."),
    "planes first": (np.zeros((3, 8, 9), np.uint8), "A frame is uint8 (3, 8, 9)."),
    "floats": (np.zeros((8, 9, 3), np.float32), "A frame is float32 (8, 9, 3)."),
    "wide integers": (np.zeros((8, 9, 3), np.int64), "A frame is int64 (8, 9, 3)."),
    "five dimensions": (np.zeros((1, 2, 8, 9, 3), np.uint8), "A frame is uint8 (1, 2, 8, 9, 3)."),
    "no pixel": (np.zeros((0, 9, 3), np.uint8), "A frame is empty: (0, 9, 3)."),
    "one bad of two": ([np.zeros((8, 9, 3), np.uint8), np.zeros((8, 9), np.uint8)], "A frame is uint8 (8, 9)."),
    "a picture": (picture(0, 0), "A frame is Image."),
    "a path": ("frame.jpg", "A frame is str."),
    "nothing": (None, "A frame is NoneType."),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_frames(deployed: Deployed, what: str) -> None:
    bad, message = BAD[what]
    with pytest.raises(UsageError) as refused:
        Classifier(deployed.bundle()).predict(bad)
    assert refused.value.faults == (message,)
    assert refused.value.mend.startswith("Pass ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "onnxruntim"}, "Unknown backend 'onnxruntim'.\nDid you mean onnxruntime"),
        ({"rule": "route"}, "Unknown rule 'route'.\nDid you mean routed?"),
        ({"threads": 0}, "Cannot run on 0 threads.\nPass threads=1"),
    ],
)
def test_unknown_names(deployed: Deployed, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        Classifier(deployed.bundle(), **arguments)
    assert str(refused.value).startswith(message)


def test_no_class_to_list(deployed: Deployed) -> None:
    with pytest.raises(UsageError, match="Cannot list 0 classes"):
        Classifier(deployed.bundle()).predict(frames("a"), top=0)


# -- updates and threads ------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "backend"), [("shared", "onnxruntime"), ("merged", "onnxruntime"), ("shared", "torch")]
)
def test_threads_predict_while_another_reloads(deployed: Deployed, tmp_path: Path, layout: str, backend: str) -> None:
    """Every call is answered by one version: tasks 0 and 1 by all of them, task 2 by the one that knows it."""
    learner = deployed.learner()
    snapshots = [snapshot(learner, number) for number in (2, 4)]
    out = deployed.copy(tmp_path / "bundle", layout)
    classifier = Classifier(out, backend=backend, threads=1)
    names = ["b", "a", "c", "d", "e", "f"]
    batch, stop, calls = frames(*names), threading.Event(), []
    answers = {version: [p.label for p in classifier.predict(batch)][-1] for version in (4,)}
    assert answers == {4: "f"}

    def run() -> set[str]:
        seen = set()
        while not stop.is_set():
            found = [p.label for p in classifier.predict(batch)]
            assert found[:-1] == names[:-1]
            seen.add(found[-1])
            calls.append(1)
        return seen

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(run) for _ in range(4)]
        try:
            for i in range(8):
                before = len(calls)
                export(snapshots[i % 2], out, layout)
                assert classifier.reload()
                assert not classifier.reload()
                assert classifier.version == (2, 4)[i % 2]
                while len(calls) < before + 4 and not any(r.done() for r in running):
                    pass
        finally:
            stop.set()
    seen = set.union(*(r.result() for r in running))
    assert "f" in seen
    assert len(seen) == 2


def test_torch_runs_one_call_at_a_time(deployed: Deployed, monkeypatch: Any) -> None:
    """Adapters are put in force inside the one backbone: a second thread in there would get the first one's."""
    classifier = Classifier(deployed.bundle(), backend="torch")
    run_blocks, inside, most = Backbone.run_blocks, [0], [0]

    def slow(self: Any, *arguments: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.005)
        result = run_blocks(self, *arguments)
        inside[0] -= 1
        return result

    monkeypatch.setattr(Backbone, "run_blocks", slow)
    names = ["a", "f"] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(classifier.predict, frames(*names)))
    assert [p.label for p in found] == names
    assert most == [1]


def test_a_store_in_the_place_of_a_bundle_is_told_how_to_become_one(deployed: Deployed, tmp_path: Path) -> None:
    store = deployed.learner(tmp_path / "my robot").store.path
    with pytest.raises(BundleError, match="my robot is a store, not a bundle") as caught:
        Classifier(store)
    command = caught.value.mend.partition("edge-cl ")[2]
    assert command == f"export '{store}-bundle' --store '{store}'"
    with graphs_once():
        assert edge_cl(*shlex.split(command)).code == 0
    assert Classifier(f"{store}-bundle").classes == list(LOOK)


def test_sessions_outlive_updates(deployed: Deployed, tmp_path: Path) -> None:
    """A classifier answers with all of its tasks after its files have gone; unchanged graphs are not loaded again."""
    out = deployed.copy(tmp_path / "bundle", "merged")
    classifier = Classifier(out)
    kept = dict(classifier._loaded.recogniser.backend._sessions)  # type: ignore[attr-defined]
    shutil.rmtree(out)
    names = list(LOOK)
    assert [p.label for p in classifier.predict(frames(*names))] == names
    with pytest.raises(BundleError, match="is no bundle"):
        classifier.reload()
    assert classifier.predict(frames("g"))[0].label == "g"
    deployed.copy(out, "merged")
    export(snapshot(deployed.learner(), 2), out, "merged")
    assert classifier.reload()
    after = classifier._loaded.recogniser.backend._sessions  # type: ignore[attr-defined]
    assert set(after) < set(kept)
    assert all(kept[key] is session for key, session in after.items())


def test_a_damaged_update_leaves_the_version_in_force(deployed: Deployed, tmp_path: Path) -> None:
    out = deployed.copy(tmp_path / "bundle")
    classifier = Classifier(out)
    export(snapshot(deployed.learner(), 2), out)
    head = out / read_manifest(out).files["head"].name
    data = head.read_bytes()
    head.write_bytes(data[:-1])
    with pytest.raises(BundleError, match=r"has \d+ bytes, expected"):
        classifier.reload()
    assert classifier.version == 4
    assert classifier.predict(frames("f"))[0].label == "f"
    head.write_bytes(data)
    assert classifier.reload()
    assert classifier.version == 2


def test_a_version_that_cannot_answer_is_not_put_in_force(deployed: Deployed, tmp_path: Path) -> None:
    out = deployed.copy(tmp_path / "bundle")
    classifier = Classifier(out)
    later = snapshot(deployed.learner(), 2)
    backbone = copy.deepcopy(later.backbone)
    backbone.vit.blocks[-1].mlp.fc2.bias.data += 1e5  # more than half precision holds
    with mock.patch("edge_cl.export.exporter.require_parity"):  # an earlier release exported it
        export(replace(later, backbone=backbone, weights_sha256="0" * 64), out, precision="fp16")
    with pytest.raises(BundleError, match=r"Version 2 .* cannot answer") as refused:
        classifier.reload()
    assert "--precision fp32" in refused.value.mend
    assert classifier.version == 4
    assert classifier.predict(frames("f"))[0].label == "f"


FOREIGN = ("torch", "timm", "onnx", "onnxscript", "matplotlib", "rich", "typer", "scipy", "edge_cl.learner")
ALONE = f"""
import sys
import numpy as np
from edge_cl.runtime import Classifier
classifier = Classifier(sys.argv[1])
print(classifier.predict(np.load(sys.argv[2])).label, classifier.reload())
print([name for name in {FOREIGN!r} if name in sys.modules])
"""


def test_a_process_that_answers_loads_no_torch(deployed: Deployed, tmp_path: Path) -> None:
    np.save(tmp_path / "frame.npy", frames("c")[0])
    command = [sys.executable, "-c", ALONE, str(deployed.bundle()), str(tmp_path / "frame.npy")]
    (home := tmp_path / "home").mkdir()
    places = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "TMPDIR"), str(home))
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **places})
    assert not list(home.rglob("*"))  # as ONNX Runtime's telemetry would leave
    assert done.stdout.splitlines() == ["c False", "[]"]
    assert done.stderr == ""


# -- engines --------------------------------------------------------------


def test_without_tensorrt_a_bundle_with_engines_is_run_by_onnx_runtime(deployed: Deployed, tmp_path: Path) -> None:
    path = shutil.copytree(deployed.bundle("shared", "fp32"), tmp_path / "bundle")
    (path / "engines").mkdir()
    (path / "engines" / "prefix.json").write_text("{}")
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    assert Classifier(path, threads=1).backend == "onnxruntime"
    with pytest.raises(
        EngineError, match=r"The Python module tensorrt cannot be imported(?s:.*)--system-site-packages"
    ):
        Classifier(path, backend="tensorrt")


def test_export_of_engines_says_what_is_missing_before_it_writes(deployed: Deployed, tmp_path: Path) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed here")
    with pytest.raises(EngineError, match="tensorrt"):
        deployed.learner().export(tmp_path / "out", format="tensorrt")
    assert not (tmp_path / "out").exists()
