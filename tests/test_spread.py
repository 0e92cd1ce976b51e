"""A class's own covariance: what is kept of it, and that scores gain what the Gaussians say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small import CONFIG, write_looks

from edge_cl.assessment import _score
from edge_cl.head import Head
from edge_cl.learner import Learner
from edge_cl.model import Model
from edge_cl.spread import AT_ONCE, KEPT, OWN_SHARE, Quadratic, Spread
from edge_cl.statistics import Array, Indices, Statistics

WIDTH = 24
IDS, TASKS = np.array([3, 5, 9, 10]), np.array([0, 0, 1, 1])


def pictures(n: int = 60, seed: int = 0) -> tuple[Array, Indices]:
    """Return features (1, 4 n, F) and class ids; the classes 3 and 9 vary three times as much in one direction."""
    random = np.random.default_rng(seed)
    means = 0.7 * np.random.default_rng(99).normal(size=(4, WIDTH))
    classes = np.repeat(IDS, n)
    rows = np.repeat(means, n, 0) + 0.5 * random.normal(size=(4 * n, WIDTH))
    between = {3: means[1] - means[0], 9: means[3] - means[2]}
    for c, direction in between.items():
        rows[classes == c] += 1.5 * random.normal(size=(n, 1)) * direction / np.linalg.norm(direction)
    return rows.astype(np.float32)[None], classes


def strongest(rows: Array, n: int = KEPT) -> Array:
    """Return the scatter along the strongest directions, (F, F), in double precision."""
    deviations = rows.astype(np.float64) - rows.mean(0)
    _, lengths, directions = np.linalg.svd(deviations, full_matrices=False)
    kept = lengths[:n, None] * directions[:n]
    return (kept.T @ kept).astype(np.float32)


def kept(spread: Spread, c: int) -> Array:
    rows = spread.rows[list(spread.classes).index(c)].astype(np.float32)
    return rows.T @ rows


def quadratic(spread: Spread, features: Array, classes: Indices) -> tuple[Head, Quadratic]:
    statistics = Statistics.empty(WIDTH).add(features, np.searchsorted(IDS, classes))
    head = Head.of(statistics, IDS, TASKS, shrinkage=0.2, spreads=[spread])
    assert head.quadratic is not None
    return head, head.quadratic


@pytest.mark.parametrize("views", [1, 3])
def test_the_strongest_directions_of_each_class_are_kept(views: int) -> None:
    features, classes = pictures(AT_ONCE // 2)  # folded in at once: exact
    seen = np.concatenate([features * (1 + 0.1 * v) for v in range(views)])
    spread = Spread.empty(WIDTH).add(seen, classes)
    assert spread.classes.tolist() == IDS.tolist()
    assert spread.counts.tolist() == [AT_ONCE // 2] * 4
    for c in IDS:
        rows = seen[:, classes == c].reshape(-1, WIDTH)
        expected = strongest(rows) / views  # the views of a picture count as one together
        np.testing.assert_allclose(kept(spread, c), expected, atol=2e-3 * np.abs(expected).max())
        np.testing.assert_allclose(spread.means[c == spread.classes][0], rows.mean(0), atol=2e-3)


def test_pictures_that_come_one_after_another_give_about_the_same() -> None:
    features, classes = pictures(3 * AT_ONCE)
    spread = Spread.empty(WIDTH)
    for part in np.array_split(np.random.default_rng(1).permutation(len(classes)), 7):
        spread = spread.add(features[:, part], classes[part])
    assert spread.counts.tolist() == [3 * AT_ONCE] * 4
    for c in (3, 9):  # the direction that matters is there as if all had come at once
        exact, found = (np.linalg.eigh(m) for m in (strongest(features[0, classes == c]), kept(spread, c)))
        assert abs(exact[1][:, -1] @ found[1][:, -1]) > 0.99
        assert found[0][-1] == pytest.approx(exact[0][-1], rel=0.05)


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_scores_gain_what_the_gaussians_say(directions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences of two classes' scores are those of log densities, written down in the space of the class means."""
    monkeypatch.setattr("edge_cl.spread.DIRECTIONS", directions)
    features, classes = pictures()
    spread = Spread.empty(WIDTH).add(features, classes)
    head, _ = quadratic(spread, features, classes)
    x = pictures(5, seed=3)[0][0].astype(np.float64)
    precision = np.linalg.inv(dense_covariance(features[0], classes, shrinkage=0.2))
    means = np.stack([features[0, classes == c].mean(0, dtype=np.float64) for c in IDS])
    offsets = means - means.mean(0)
    root = np.linalg.cholesky(precision).T  # features turned so that the common covariance is 1 ...
    basis = np.linalg.svd(offsets @ root.T, full_matrices=False)[2][:3]  # ... and the directions of the class means
    density = np.empty((len(x), 4))
    for i in range(4):
        rows = spread.rows[i].astype(np.float64) @ root.T @ basis.T / np.sqrt(spread.counts[i])
        values, vectors = np.linalg.eigh(rows.T @ rows)
        variance = 1 + OWN_SHARE * np.maximum(values - 1, 0) * (np.arange(3) >= 3 - directions)
        z = (x - means[i]) @ root.T @ basis.T @ vectors
        density[:, i] = -0.5 * (z**2 / variance + np.log(variance)).sum(1)
    found = head.whole(head.discriminant.scores(x.astype(np.float32)))
    linear = head.discriminant.scores(x.astype(np.float32))
    off = np.abs((found - found[:, :1]) - (density - density[:, :1])).max()
    assert off < 0.02 * np.abs(density - density[:, :1]).max()  # eight bits
    assert np.abs((linear - linear[:, :1]) - (density - density[:, :1])).max() > 5 * off


def dense_covariance(features: Array, classes: Indices, shrinkage: float) -> np.ndarray:
    from edge_cl.head import PRIOR_SPREAD

    means = np.stack([features[classes == c].mean(0, dtype=np.float64) for c in IDS])
    deviations = features - means[np.searchsorted(IDS, classes)]
    n = len(features)
    covariance = deviations.T @ deviations / n
    prior = PRIOR_SPREAD * (means**2).sum(1).mean() / ((n + 1) * WIDTH)
    isotropic = shrinkage * np.trace(covariance) / WIDTH + prior
    dense: np.ndarray = (1 - shrinkage) * covariance + isotropic * np.eye(WIDTH)
    return dense


def test_a_class_that_varies_gets_back_the_pictures_that_its_neighbour_took() -> None:
    features, classes = pictures(200)
    head, _ = quadratic(Spread.empty(WIDTH).add(features, classes), features, classes)
    test, truth = pictures(2000, seed=7)
    scores = head.discriminant.scores(test[0])
    linear, whole = ((IDS[s.argmax(1)] == truth) for s in (scores, head.whole(scores)))
    assert whole[truth == 3].mean() > linear[truth == 3].mean() + 0.01
    assert whole.mean() > linear.mean()


def test_what_varies_no_more_than_all_do_gains_nothing() -> None:
    random = np.random.default_rng(0)
    classes = np.repeat(IDS, 50)
    rows = 3 * random.normal(size=(4, WIDTH)).repeat(50, 0) + random.normal(size=(200, WIDTH))
    features = rows.astype(np.float32)[None]
    quiet = Spread.empty(WIDTH).add(0.5 * features, classes)
    statistics = Statistics.empty(WIDTH).add(features, np.searchsorted(IDS, classes))
    assert Head.of(statistics, IDS, TASKS, shrinkage=0.2, spreads=[quiet]).quadratic is None


@pytest.mark.parametrize("views", [1, 4])
def test_one_picture_a_class_and_one_class_are_no_trouble(views: int) -> None:
    features, classes = np.random.default_rng(0).normal(size=(views, 4, WIDTH)).astype(np.float32), IDS
    spread = Spread.empty(WIDTH).add(features, classes)
    statistics = Statistics.empty(WIDTH).add(features, np.arange(4))
    head = Head.of(statistics, IDS, TASKS, shrinkage=0.2, spreads=[spread])
    assert np.isfinite(head.base_posterior(features[0])).all()
    one = Spread.empty(WIDTH).add(features[:, :1], IDS[:1])
    alone = Statistics.empty(WIDTH).add(features[:, :1], np.zeros(1, np.int64))
    assert Head.of(alone, IDS[:1], TASKS[:1], shrinkage=0.2, spreads=[one]).quadratic is None


def test_classes_without_a_spread_keep_their_scores() -> None:
    features, classes = pictures()
    some = Spread.empty(WIDTH).add(features, classes).without({3, 5})
    head, gains = quadratic(some, features, classes)
    linear = head.discriminant.scores(features[0])
    np.testing.assert_array_equal(head.whole(linear)[:, :2], linear[:, :2])
    assert gains.cost[:2].tolist() == [0, 0]
    assert gains.cost[2] > 0


def test_a_spread_goes_through_a_map_of_its_features() -> None:
    features, classes = pictures()
    random = np.random.default_rng(5)
    matrix, shift = random.normal(size=(WIDTH, WIDTH)).astype(np.float32), random.normal(size=WIDTH).astype(np.float32)

    def points(rows: Array) -> Array:
        return np.asarray(rows @ matrix + shift, np.float32)

    moved = Spread.empty(WIDTH).add(features, classes).moved(points)
    fresh = Spread.empty(WIDTH).add(features, classes)
    for c in IDS:
        expected = matrix.T @ kept(fresh, c) @ matrix
        np.testing.assert_allclose(kept(moved, c), expected, atol=5e-3 * np.abs(expected).max())
    np.testing.assert_allclose(moved.means, points(fresh.means.astype(np.float32)), atol=2e-2)


def test_a_store_keeps_it_by_task_and_forgets_it_with_the_class(tmp_path: Path) -> None:
    learner = Learner.init(tmp_path / "store", device="cpu")
    learner.learn(write_looks(tmp_path / "first", {"red": 1, "green": 6, "dark blue": 12}), CONFIG)
    first = learner.store.head.objects["task/0000/spread"]
    learner.learn(write_looks(tmp_path / "second", {"yellow": 3, "violet": 15}), CONFIG)
    assert learner.store.head.objects["task/0000/spread"] == first  # untouched, and so not written again
    model, _ = learner.load()
    held = {t: len(p.classes) for t, p in model.probes.items()}
    taught = {t: sum(c.pictures for c in model.classes if c.task == t) for t in held}
    assert {t: int(s.counts.sum()) for t, s in model.spreads.items()} == {t: n - held[t] for t, n in taught.items()}
    learner.forget(["green"])
    left, _ = learner.load()
    gone = model.ids["green"]
    assert left.spreads[0].classes.tolist() == [c for c in model.spreads[0].classes if c != gone]
    learner.forget(["yellow", "violet"])
    assert sorted(learner.load()[0].spreads) == [0]


@pytest.fixture
def taught(tmp_path: Path) -> Model:
    learner = Learner.init(tmp_path / "store", device="cpu")
    learner.learn(write_looks(tmp_path / "first", {"red": 1, "green": 6, "dark blue": 12, "teal": 9}), CONFIG)
    return learner.load()[0]


def test_what_moves_the_kept_features_of_a_model_moves_its_spreads(taught: Model) -> None:
    moved, before = taught.moved(lambda rows: 2 * rows + 1).spreads[0], taught.spreads[0]
    np.testing.assert_allclose(moved.means, 2 * before.means.astype(np.float32) + 1, atol=2e-3)
    np.testing.assert_allclose(moved.rows, 2 * before.rows.astype(np.float32), atol=2e-3)


def test_hold_out_pictures_are_scored_with_what_scores_gain(taught: Model) -> None:
    wide = {t: replace(s, rows=8 * s.rows) for t, s in taught.spreads.items()}
    model = replace(taught, spreads=wide, exit=None)
    head = model.head()
    assert head.quadratic is not None
    whole, bare = (_score(model, made, model.statistics) for made in (head, replace(head, quadratic=None)))
    gains = head.quadratic.gain(bare.scores)  # of scores without the picture
    assert np.abs(gains).max() > 0.1
    np.testing.assert_allclose(whole.scores - bare.scores, gains, atol=1e-4 * np.abs(bare.scores).max())


@pytest.mark.parametrize("classes", [0, 1, 4])
def test_what_is_stored_is_read_back(classes: int) -> None:
    features, labels = pictures()
    spread = Spread.empty(WIDTH).add(features, labels).without(set(IDS[classes:].tolist()))
    stored = spread.to_numpy()
    assert stored["rows"].ndim == 2
    back = Spread.from_numpy(stored)
    for name, value in vars(spread).items():
        np.testing.assert_array_equal(getattr(back, name), value)
        assert (getattr(back, name).shape, getattr(back, name).dtype) == (value.shape, value.dtype)
