"""What is kept to answer by: negatives, exit, and hold-out features on either square."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from small import CONFIG, copied, write_looks
from two_tasks import FIRST, SECOND, THIRD, model

from edge_cl import Learner
from edge_cl.decoded import decode
from edge_cl.errors import FolderError
from edge_cl.model import Model
from edge_cl.pictures import read_folder, split_hold_out
from edge_cl.runtime import Classifier


def test_negatives_are_remembered_and_tighten_the_unknown_test(blank: Learner, tmp_path: Path) -> None:
    learner = copied(blank, tmp_path / "store")
    write_looks(tmp_path / "nothing", {"n": 13, "m": 8}, 5)
    (tmp_path / "nothing" / "broken.jpg").write_bytes(b"no picture")
    report = learner.learn(write_looks(tmp_path / "first", FIRST, 12), CONFIG, negatives=tmp_path / "nothing")
    assert report.unknown["false_accepts"] is not None and report.unknown["false_rejects"] is not None
    assert report.calibration["error_after"] is not None
    assert "negatives pass" in report.to_markdown()
    assert [Path(s["path"]).name for s in report.skipped] == ["broken.jpg"]
    kept = learner.store.read_tensors(learner.store.head, "negatives")["features"]
    assert kept.dtype == np.float16 and len(kept) == 10
    loaded = model(learner)
    assert loaded.closer_negatives.shape == kept.shape and np.abs(loaded.closer_negatives - kept).max() > 0.02
    distances = loaded.head().distance(loaded.seen_negatives.astype(np.float32))
    assert report.unknown["false_accepts"] == pytest.approx((distances <= loaded.threshold).mean())

    again = learner.learn(write_looks(tmp_path / "second", SECOND, 12), CONFIG)  # without new ones: the old ones count
    assert again.unknown["false_accepts"] is not None
    np.testing.assert_array_equal(learner.store.read_tensors(learner.store.head, "negatives")["features"], kept)

    def joined_by(more: Path, most: int) -> Any:
        """Return the negatives that are kept, at most so many, once those of another folder have joined them."""
        with mock.patch("edge_cl.learning.NEGATIVES", most), mock.patch("edge_cl.intake.NEGATIVES", most):
            learner.learn(
                write_looks(tmp_path / f"first {most}", FIRST, 4, first=40 + most), CONFIG, update=True, negatives=more
            )
        return learner.store.read_tensors(learner.store.head, "negatives")["features"]

    more = write_looks(tmp_path / "more nothing", {"n": 13, "m": 8}, 5, first=20)
    latest = joined_by(more, 12)
    np.testing.assert_array_equal(latest[:2], kept[-2:])
    assert len(latest) == 12 and np.abs(latest[2:] - kept).max() > 0.02
    write_looks(tmp_path / "nothing", {"n": 13, "m": 8}, 5)
    # Of more at once some from everywhere: the first, two between, and the last, which is kept already.
    few = joined_by(tmp_path / "nothing", 4)
    np.testing.assert_array_equal(few, np.concatenate((latest, kept[[0, 3, 6]]))[-4:])
    np.testing.assert_array_equal(model(learner).closer_negatives[1:], loaded.closer_negatives[[0, 3, 6]])


def test_negatives_without_a_picture_are_refused_before_anything_changes(learner: Learner, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    head = learner.store.head.number
    with pytest.raises(FolderError):
        learner.learn(write_looks(tmp_path / "third", {"f": 13}, 4), CONFIG, negatives=tmp_path / "empty")
    assert learner.store.head.number == head


def test_an_exit_is_stored_and_an_earlier_state_has_none(taught: Learner, tmp_path: Path) -> None:
    learner = copied(taught, tmp_path / "store")
    with mock.patch.multiple("edge_cl.assessment", FEWEST_PROBES=2, EXIT_AGREEMENT=0.0, EXIT_CONFIDENCES=(0.01,)):
        learner.learn(write_looks(tmp_path / "third", {"f": 13, "g": 8}), CONFIG)
    found = model(learner)
    assert found.exit is not None and found.head().exit is not None
    with learner.store.write("an earlier commit's state") as transaction:
        state = learner.state
        del state["exit"]
        transaction.put_json("state", state)
        transaction.keep_all()
        transaction.commit(kind="learn", record={})
    assert model(learner).exit is None and model(learner).head().exit is None


def test_hold_out_pictures_are_kept_as_either_square_shows_them(blank: Learner, tmp_path: Path) -> None:
    learner = copied(blank, tmp_path / "store")
    folder = write_looks(tmp_path / "first", FIRST, 12)
    learner.learn(folder, CONFIG)
    found, (_, encoder) = model(learner), learner.load()
    _, held = split_hold_out(read_folder(folder).pictures, fraction=CONFIG.hold_out)
    for probes, spec in ((found.probes, encoder.preprocess), (found.closer_probes, encoder.preprocess.closer())):
        pixels = np.stack(decode(held, spec).pixels)
        np.testing.assert_allclose(probes[0].features, encoder.encode(pixels).features, atol=2e-3)
        assert probes[0].classes.tolist() == [found.ids[p.label] for p in held]
    assert np.abs(found.probes[0].features - found.closer_probes[0].features).max() > 0.02
    learner.forget([next(iter(FIRST))])
    after = model(learner)
    assert after.probes[0].classes.tolist() == after.closer_probes[0].classes.tolist()
    assert len(set(after.closer_probes[0].classes.tolist())) == 1


def test_probes_of_an_earlier_release_get_no_closer_ones_of_other_pictures(learner: Learner, tmp_path: Path) -> None:
    earlier = replace(model(learner), closer_probes={})
    with learner.store.write("an earlier release") as transaction:
        earlier.save(transaction)
        transaction.keep("backbone")
        transaction.commit(kind="learn", record={})
    learner = Learner.open(learner.store.path, device="cpu")
    learner.learn(write_looks(tmp_path / "more", FIRST, 8, first=40), CONFIG, update=True)
    learner.learn(write_looks(tmp_path / "third", THIRD), CONFIG)
    assert set(model(learner).probes) == {0, 1, 2} and set(model(learner).closer_probes) == {2}
    assert not model(learner).closer


def test_kept_features_move_on_either_square(learner: Learner) -> None:
    found = replace(model(learner), negatives=np.ones((2, 3), np.float16), closer_negatives=np.ones((2, 3), np.float16))
    moved = found.moved(lambda rows: rows + 1)
    for name in ("probes", "closer_probes"):
        for task, probes in getattr(found, name).items():
            np.testing.assert_allclose(getattr(moved, name)[task].features, probes.features + 1, atol=2e-3)
    assert (moved.negatives == 2).all() and (moved.closer_negatives == 2).all()


@pytest.mark.parametrize("closer", [False, True])
def test_pictures_are_answered_on_the_square_that_was_chosen(
    learner: Learner, tmp_path: Path, fresh: Path, closer: bool
) -> None:
    """By the learner, and by a bundle, whose manifest says how to cut a frame; its graphs stay."""
    learner.export(tmp_path / "bundle")
    classifier = Classifier(tmp_path / "bundle", rule="base")
    chosen = replace(model(learner), closer=closer)
    with learner.store.write("a chosen square") as transaction:
        chosen.save(transaction)
        transaction.keep("backbone")
        transaction.commit(kind="learn", record={})
    learner = Learner.open(learner.store.path, device="cpu")
    _, encoder = learner.load()
    own = model(learner).spec.preprocess.crop_fraction
    assert encoder.preprocess.crop_fraction == own  # pictures are learned on the same square as ever
    fraction = own * 5 / 6 if closer else own
    assert learner.recogniser().backend.preprocess.crop_fraction == pytest.approx(fraction)
    path = read_folder(fresh / "two").pictures[0].path
    with Image.open(path) as image:
        edge = 40 * (1 - fraction) / 2
        box = (edge, edge, 40 - edge, 40 - edge)
        pixels = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC, box))
    posterior = learner.recogniser().head.base_posterior(encoder.encode(pixels[None]).features)
    base = learner.predict(path, rule="base").answers[0].prediction
    assert base.confidence == pytest.approx(float(posterior.max()), abs=1e-5)

    assert not learner.export(tmp_path / "bundle")["graphs_built"]
    assert classifier.reload()
    with Image.open(path) as image:
        answer = classifier.predict(np.asarray(image))
    assert (answer.label, answer.confidence) == (base.label, pytest.approx(base.confidence, abs=1e-4))


def test_a_learn_chooses_the_square(blank: Learner, tmp_path: Path) -> None:
    learner = copied(blank, tmp_path / "store")
    seen: list[Model] = []

    def choose(tried: Model) -> Model:
        seen.append(tried)
        return replace(tried, closer=True)

    with mock.patch("edge_cl.learning.on_better_square", choose):
        report = learner.learn(write_looks(tmp_path / "first", FIRST), CONFIG)
        assert len(seen) == 1 and model(learner).closer and "closer" in " ".join(report.notes)
        learner.learn(write_looks(tmp_path / "second", SECOND), replace(CONFIG, choose_square=False))
    assert len(seen) == 1 and not model(learner).closer


def test_probes_are_in_the_pooled_scatter_and_earlier_ones_do_not_say(learner: Learner) -> None:
    probes = model(learner).probes
    assert all(p.pooled.all() for p in probes.values()) and len(probes) == 2
    state = model(learner)
    assert state.statistics.scatter.count == state.statistics.counts.sum() == sum(c.pictures for c in state.classes)
    with learner.store.write("an earlier commit's probes") as transaction:
        tensors = learner.store.read_tensors(learner.store.head, "task/0000/probes")
        transaction.keep_all()
        transaction.put_tensors("task/0000/probes", {k: v for k, v in tensors.items() if k != "pooled"})
        transaction.commit(kind="learn", record={})
    found = model(learner).probes
    assert not found[0].pooled.any() and found[1].pooled.all()
    assert len(found[0].pooled) == len(found[0].classes)
