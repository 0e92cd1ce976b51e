"""`classifier.onnx`, picture in, scores out: held against the learner's own arithmetic, also after updates in place."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from deployed import Deployed, learner_on, snapshot
from small import CONFIG, IMAGE_SIZE, picture, write_looks

from edge_cl.export import exporter, graphs
from edge_cl.export.exporter import CLASSIFIER, Snapshot, export_bundle
from edge_cl.head import EXIT_SHARE
from edge_cl.recognition import Recogniser
from edge_cl.statistics import Scatter


@pytest.fixture(scope="module")
def pixels() -> Any:
    return np.stack([np.asarray(picture(look, 80 + seed, IMAGE_SIZE)) for look in range(18) for seed in range(3)])


def write(taken: Snapshot, folder: Path) -> None:
    """Write `classifier.onnx` alone."""
    recipe = exporter._recipe(taken, "shared", "fp32")
    exporter._write_classifier(taken, folder / CLASSIFIER, recipe, "fp32", lambda text: None)


def run(path: Path, pixels: Any) -> list[Any]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: list[Any] = session.run(None, {"image": pixels.transpose(0, 3, 1, 2).astype(np.float32)})
    return result


def assert_answers(path: Path, recogniser: Recogniser, pixels: Any, *, within: float = 1e-4) -> None:
    """Compare scores, router and unknown score with the learner's."""
    scores, router, unknown = run(path, pixels)
    encoding, head = recogniser.backend.encode(pixels), recogniser.head
    expected = recogniser.posterior(encoding)
    assert scores.shape == expected.shape
    assert np.abs(scores - expected).max() < within
    assert np.allclose(scores.sum(1), 1, atol=1e-4)
    whole, tasks = head.whole(head.discriminant.scores(encoding.features)), np.unique(head.tasks)
    base = head.base_posterior(encoding.features)
    mass = np.stack([base[:, head.tasks == t].sum(1) for t in tasks], 1)
    assert np.abs(router - mass).max() < within
    far = np.maximum(
        head.distance(encoding.features) / head.threshold, 1 + (head.least_score - whole.max(1)) / head.temperature
    )
    if head.exit is not None:
        early = head.exit.head
        near = early.distance(encoding.features[:, : len(early.discriminant.centre)]) / early.threshold
        near *= EXIT_SHARE
        far = np.where(head.exit.answers(encoding.features)[1], near, far)
    assert np.allclose(unknown, far, rtol=30 * within, atol=30 * within)
    assert np.allclose(np.concatenate([score for _, score in recogniser.posteriors(list(pixels))]), far, atol=1e-4)
    sure = np.abs(far - 1) > 30 * within
    assert ((unknown > 1) == (far > 1))[sure].all()


def test_it_answers_like_the_learner(deployed: Deployed, pixels: Any) -> None:
    recogniser = deployed.learner().recogniser()
    path = deployed.bundle() / CLASSIFIER
    assert_answers(path, recogniser, pixels)
    base = recogniser.head.base_posterior(recogniser.backend.encode(pixels).features)
    assert np.abs(run(path, pixels)[0] - base).max() > 1e-2, "no task branch had a say"
    for count in (1, 17):
        assert np.allclose(run(path, pixels[:count])[0], run(path, pixels)[0][:count], atol=1e-5)


def test_its_facts(deployed: Deployed) -> None:
    model = onnx.load(deployed.bundle() / CLASSIFIER)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", graphs.OPSET)]
    assert [v.name for v in model.graph.input] == ["image"]
    assert [v.name for v in model.graph.output] == ["scores", "router", "unknown"]
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["edge_cl.version"] == "4"
    assert facts["edge_cl.classes"] == '["b","d","a","c","e","f","g"]'
    assert json.loads(facts["edge_cl.preprocess"]) == deployed.learner().load()[0].preprocess.to_json()


def test_it_follows_the_store(deployed: Deployed, pixels: Any, tmp_path: Path) -> None:
    """Versions with fewer and more classes and tasks, by replacing tensors alone: the graph is never made again."""
    out, learner = deployed.copy(tmp_path / "bundle"), deployed.learner(tmp_path / "store")
    learner.learn(write_looks(tmp_path / "new", {"h": 7, "i": 3}, 6), CONFIG)
    most = learner.store.head.number
    learner.forget(["b", "a", "c", "e"])  # task 0 keeps one class, task 1 none
    learner.rename("d", "D")
    made: list[str] = []
    for number in (1, 2, most, learner.store.head.number):
        learner.rollback(number)
        export_bundle(snapshot(learner), out, say=made.append)
        assert_answers(out / CLASSIFIER, learner.recogniser(), pixels, within=1e-3)
    assert made == []
    facts = {entry.key: entry.value for entry in onnx.load(out / CLASSIFIER).metadata_props}
    assert facts["edge_cl.classes"] == '["D","f","g","h","i"]'
    onnx.checker.check_model(onnx.load(out / CLASSIFIER), full_check=True)


def test_one_class_of_one_picture_and_then_more(tmp_path: Path, pixels: Any) -> None:
    """No spread is known, one class, one task: sizes of 0 and 1 that a graph must not take for constants."""
    learner = learner_on(tmp_path, depth=2)
    config = replace(CONFIG, method="prototype")
    learner.learn(write_looks(tmp_path / "one", {"b": 0}, 1), config)
    taken = snapshot(learner)
    statistics = replace(taken.model.statistics, scatter=Scatter.empty(taken.shape.features))
    taken = replace(taken, model=replace(taken.model, statistics=statistics))
    assert taken.head.precision.basis.shape[0] == 0
    write(taken, tmp_path)
    assert_answers(tmp_path / CLASSIFIER, replace(learner.recogniser(), head=taken.head), pixels)
    learner.learn(write_looks(tmp_path / "more", {"a": 9, "c": 14}, 8), config)
    with mock.patch.object(graphs, "classifier_graph", None):  # the one that is there does
        write(snapshot(learner), tmp_path)
    assert_answers(tmp_path / CLASSIFIER, learner.recogniser(), pixels)


def test_a_branch_surer_than_any_mask(deployed: Deployed, pixels: Any, tmp_path: Path) -> None:
    """Scores of the other tasks' classes stay out, however far below zero the task's own are."""
    taken = snapshot(deployed.learner())
    branches = {t: replace(b, temperature=0.01) for t, b in taken.model.branches.items()}
    taken = replace(taken, model=replace(taken.model, branches=branches))
    reference = deployed.learner().recogniser()
    shutil.copy(deployed.bundle() / CLASSIFIER, tmp_path / CLASSIFIER)
    write(taken, tmp_path)
    scores = [b.discriminant.scores(reference.backend.encode(pixels).features).max(1).min() for b in branches.values()]
    assert min(scores) / 0.01 < -1e5
    assert_answers(tmp_path / CLASSIFIER, replace(reference, head=taken.head), pixels)


@pytest.mark.parametrize("threshold", [np.inf, 3000.0])
def test_the_least_score_decides(deployed: Deployed, pixels: Any, tmp_path: Path, threshold: float) -> None:
    """Alone where nothing is too far; else some are known by both, and some unknown by each alone and by both."""
    taken, reference = snapshot(deployed.learner()), deployed.learner().recogniser()
    head, features = taken.head, reference.backend.encode(pixels).features
    best = head.whole(head.discriminant.scores(features)).max(1)
    least = float(np.sort(best)[26:28].mean())
    taken = replace(taken, model=replace(taken.model, threshold=threshold, least_score=least, exit=None))
    shutil.copy(deployed.bundle() / CLASSIFIER, tmp_path / CLASSIFIER)
    write(taken, tmp_path)
    assert_answers(tmp_path / CLASSIFIER, replace(reference, head=taken.head), pixels)
    far, low = head.distance(features) > threshold, best < least
    assert {(a, b) for a, b in zip(far, low, strict=True)} == {*product({False, bool(far.any())}, (False, True))}
    assert ((run(tmp_path / CLASSIFIER, pixels)[2] > 1) == far | low).all()


def test_without_a_least_score_the_distance_is_all(deployed: Deployed, pixels: Any, tmp_path: Path) -> None:
    """However far below the threshold it is."""
    taken, reference = snapshot(deployed.learner()), deployed.learner().recogniser()
    taken = replace(taken, model=replace(taken.model, threshold=1.0, least_score=-np.inf, exit=None))
    shutil.copy(deployed.bundle() / CLASSIFIER, tmp_path / CLASSIFIER)
    write(taken, tmp_path)
    distances = taken.head.distance(reference.backend.encode(pixels).features)
    assert distances.min() < -700
    assert np.allclose(run(tmp_path / CLASSIFIER, pixels)[2], distances, rtol=1e-3, atol=0.1)


@pytest.mark.parametrize("damage", ["truncated", "a text", "missing"])
def test_a_damaged_one_is_made_anew(deployed: Deployed, tmp_path: Path, damage: str, monkeypatch: Any) -> None:
    out = deployed.copy(tmp_path / "bundle")
    path = out / CLASSIFIER
    data = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "a text":
        path.write_text("hello")
    monkeypatch.setattr(graphs, "classifier_graph", lambda *_: onnx.load_from_string(data))
    export_bundle(snapshot(deployed.learner()), out)
    assert path.read_bytes() == data
