"""Statistics against dense float64 references and scikit-learn, however the pictures arrive."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from edge_cl import statistics as statistics_module
from edge_cl.head import Discriminant, precision_of
from edge_cl.statistics import MOST_HELD, ROWS_AT_ONCE, Array, Indices, Precision, Scatter, Statistics

Dense = npt.NDArray[np.float64]


def features(classes: int, each: int, width: int, seed: int = 0) -> tuple[Array, Indices]:
    """Return rows of correlated features, class by class in mixed order, away from the origin."""
    random = np.random.default_rng(seed)
    mix = random.normal(size=(width, width)) / width**0.5
    labels = random.permutation(np.repeat(np.arange(classes), each))
    centres = 3 + random.normal(size=(classes, width))
    rows = centres[labels] + random.normal(size=(len(labels), width)) @ mix
    return rows.astype(np.float32), labels


def dense(scatter: Scatter) -> Dense:
    """Write a scatter out as a matrix, without its isotropic rest."""
    basis = scatter.basis.astype(np.float64)
    return basis.T @ (scatter.energy[:, None].astype(np.float64) * basis)


def within(rows: Array, labels: Indices) -> Dense:
    deviations = rows.astype(np.float64)
    for c in np.unique(labels):
        deviations[labels == c] -= deviations[labels == c].mean(0)
    return deviations.T @ deviations


def inverse(scatter: Scatter, shrinkage: float, prior_trace: float) -> Dense:
    """Return the documented inverse, dense: rest spread over the directions outside the basis."""
    k, width = scatter.basis.shape
    outside = np.eye(width) - scatter.basis.T.astype(np.float64) @ scatter.basis
    n = max(scatter.count, 1)
    total = dense(scatter) + outside * scatter.rest / max(width - k, 1)
    isotropic = shrinkage * np.trace(total) / (n * width) + prior_trace / ((n + 1) * width)
    return np.linalg.inv((1 - shrinkage) * total / n + isotropic * np.eye(width))


@pytest.mark.parametrize("shrinkage", [0.01, 0.2, 0.9])
def test_discriminant_is_scikit_learn_s(shrinkage: float) -> None:
    rows, labels = features(4, 30, 12)
    statistics = Statistics.empty(12).add(rows, labels)
    precision = Precision.of(statistics.scatter, shrinkage=shrinkage)
    ours = Discriminant.of(statistics.means, precision).scores(rows)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=np.full(4, 0.25))
    theirs = lda.fit(rows.astype(np.float64), labels).decision_function(rows.astype(np.float64))
    difference = ours - theirs
    np.testing.assert_allclose(difference, np.broadcast_to(difference[:, :1], difference.shape), atol=2e-3)
    assert np.ptp(theirs, axis=1).mean() > 5  # the tolerance is small beside the scores


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 29), max_size=6), st.integers(0, 1000))
def test_any_split_gives_the_same_as_all_at_once(cuts: list[int], seed: int) -> None:
    rows, labels = features(3, 10, 6, seed)
    labels[:3] = [0, 1, 2]  # new classes come without gaps
    statistics = Statistics.empty(6)
    for part in np.split(np.arange(30), sorted(set(cuts))):
        statistics = statistics.add(rows[part], labels[part])
    whole = Statistics.empty(6).add(rows, labels)
    np.testing.assert_allclose(statistics.means, whole.means, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(statistics.counts, whole.counts)
    assert statistics.scatter.count == whole.scatter.count == 30
    np.testing.assert_allclose(dense(statistics.scatter), dense(whole.scatter), atol=1e-4 * whole.scatter.trace, rtol=0)
    assert statistics.scatter.trace == pytest.approx(whole.scatter.trace, rel=1e-4)


def test_new_pictures_of_known_classes_are_pooled_exactly() -> None:
    rows, labels = features(3, 20, 8)
    order = np.argsort(labels, kind="stable")
    first = np.sort(np.concatenate([order[:15], order[20:24], order[40:59]]))  # unequal parts of every class
    second = np.setdiff1d(np.arange(60), first)
    statistics = Statistics.empty(8).add(rows[first], labels[first]).add(rows[second], labels[second])
    for c in range(3):
        np.testing.assert_allclose(statistics.means[c], rows[labels == c].astype(np.float64).mean(0), rtol=1e-5)
    np.testing.assert_array_equal(statistics.counts, [20, 20, 20])
    reference = within(rows, labels)
    np.testing.assert_allclose(dense(statistics.scatter), reference, atol=1e-5 * np.trace(reference))
    assert statistics.scatter.rest == pytest.approx(0, abs=1e-4 * np.trace(reference))


def test_pooling_by_hand() -> None:
    statistics = Statistics.empty(1).add(np.float32([[0], [2]]), np.array([0, 0]))
    assert (statistics.means.tolist(), statistics.counts.tolist()) == ([[1]], [2])
    assert statistics.scatter.trace == pytest.approx(2)
    statistics = statistics.add(np.float32([[4], [7]]), np.array([0, 1]))
    assert (statistics.means.tolist(), statistics.counts.tolist()) == ([[2], [7]], [3, 1])
    assert statistics.scatter.trace == pytest.approx(8)  # (0-2)^2 + (2-2)^2 + (4-2)^2
    assert statistics.scatter.count == 4


@pytest.mark.parametrize("rank", [1, 5, 20, 60])
def test_low_rank_keeps_the_trace_and_bounds_the_error(rank: int) -> None:
    random = np.random.default_rng(0)
    rows = (random.normal(size=(400, 60)) * np.geomspace(3, 0.05, 60)).astype(np.float32)
    scatter = Scatter.empty(60)
    for part in np.split(rows, 8):
        scatter = scatter.add([part], count=len(part), rank=rank)
    exact = rows.astype(np.float64).T @ rows
    assert scatter.basis.shape == (rank, 60)
    assert scatter.count == 400
    np.testing.assert_allclose(scatter.basis @ scatter.basis.T, np.eye(rank), atol=1e-4)
    assert scatter.trace == pytest.approx(np.trace(exact), rel=1e-5)
    # What is cut off in any step is a part of the exact scatter: 0 <= S - sketch <= rest in every direction, and
    # the rest is no more than 8 times (a step each) what the best cut of this rank leaves out.
    low, high = np.linalg.eigvalsh(exact - dense(scatter))[[0, -1]]
    assert low > -1e-5 * np.trace(exact)
    assert high <= scatter.rest + 1e-5 * np.trace(exact)
    assert scatter.rest <= 8 * np.linalg.eigvalsh(exact)[: 60 - rank].sum() + 1e-5 * np.trace(exact)


@pytest.mark.parametrize("portion", [7, 1000, 5000])
def test_many_rows_go_in_by_portions(portion: int) -> None:
    rows = np.random.default_rng(0).normal(size=(2 * ROWS_AT_ONCE + 3, 4)).astype(np.float32)
    blocks = (rows[start : start + portion] for start in range(0, len(rows), portion))
    scatter = Scatter.empty(4).add(blocks, count=len(rows))
    np.testing.assert_allclose(dense(scatter), rows.astype(np.float64).T @ rows, atol=1e-4 * len(rows))
    assert scatter.count == len(rows)


def test_lots_of_pictures_are_added_as_one_after_the_other() -> None:
    """Of one class in both, of one in either, and a lot without pictures; views of the first alone."""
    drawn = np.random.default_rng(0).normal(size=(3, 40, 6)).astype(np.float32)
    first, second, none = np.arange(24) % 3, np.arange(16) % 4, np.zeros(0, np.int64)
    lots = [(drawn[:, :24], first), (drawn[0, 24:], second), (drawn[:1, :0], none)]
    known = Statistics.empty(6).add(drawn[1, :5], np.zeros(5, np.int64))
    together, apart = known.add_all(lots), known.add(*lots[0]).add(*lots[1])
    np.testing.assert_allclose(together.means, apart.means, atol=1e-6)
    assert together.counts.tolist() == apart.counts.tolist() == [17, 12, 12, 4]
    assert together.scatter.count == apart.scatter.count == 45
    np.testing.assert_allclose(dense(together.scatter), dense(apart.scatter), rtol=1e-4, atol=1e-4)


def test_no_rows_leave_a_scatter_as_it_is() -> None:
    scatter = Scatter.empty(3).add([np.eye(3, dtype=np.float32)], count=3)
    assert scatter.add([np.zeros((0, 3), np.float32)], count=0).basis is scatter.basis


def test_rows_can_stand_for_another_number_of_pictures() -> None:
    scatter = Scatter.empty(3).add([np.eye(3, dtype=np.float32)], count=7).add([np.eye(3, dtype=np.float32)], count=0)
    assert scatter.count == 7
    assert scatter.trace == pytest.approx(6)


@pytest.mark.parametrize(("rank", "n"), [(10, 50), (3, 50), (10, 4), (10, 1)])
@pytest.mark.parametrize(("shrinkage", "prior"), [(0.2, 0.0), (0.01, 3.0), (1.0, 0.0), (0.5, 0.1)])
def test_woodbury_inverse_is_the_dense_one(rank: int, n: int, shrinkage: float, prior: float) -> None:
    random = np.random.default_rng(1)
    scatter = Scatter.empty(10).add(
        [(random.normal(size=(n, 10)) * np.arange(1, 11)).astype(np.float32)], count=n, rank=rank
    )
    precision = Precision.of(scatter, shrinkage=shrinkage, prior_trace=prior)
    reference = inverse(scatter, shrinkage, prior)
    rows = random.normal(size=(7, 10)).astype(np.float32)
    scale = np.abs(reference).max()
    np.testing.assert_allclose(precision.apply(rows), rows @ reference, rtol=2e-3, atol=2e-4 * scale)
    squares = np.einsum("nf,fg,ng->n", rows, reference, rows)
    np.testing.assert_allclose(precision.square(rows), squares, rtol=2e-3)


def test_precision_of_two_directions_by_hand() -> None:
    scatter = Scatter(np.float32([[1, 0]]), np.float32([8]), 2.0, 2)  # covariance diag(4, 1)
    precision = Precision.of(scatter, shrinkage=0.2)  # 0.8 diag(4, 1) + 0.2 * 5/2 I = diag(3.7, 1.3)
    np.testing.assert_allclose(precision.apply(np.float32([[3.7, 1.3]])), [[1, 1]], rtol=1e-6)
    np.testing.assert_allclose(precision.square(np.float32([[1, 1], [2, 0]])), [1 / 3.7 + 1 / 1.3, 4 / 3.7], rtol=1e-6)


@pytest.mark.parametrize(
    ("rank", "square"),  # of (1, 2, 3): (14 - 0.5 * 1 - 0.9 * 4 - 0.2 * 9) / 2 with all directions
    [(None, 4.05), (5, 4.05), (3, 4.05), (2, 4.95), (1, 5.2), (0, 7.0)],
)
def test_strongest_directions_by_hand(rank: int | None, square: float) -> None:
    precision = Precision(np.eye(3, dtype=np.float32), np.float32([-0.5, -0.9, -0.2]), 2.0)
    kept = precision.strongest(rank)
    np.testing.assert_allclose(kept.square(np.float32([[1, 2, 3]])), [square], rtol=1e-6)
    assert kept.basis.shape == (min(3, 3 if rank is None else rank), 3)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_one_picture_a_class_is_finite(classes: int) -> None:
    rows = np.eye(8, dtype=np.float32)[:classes]
    statistics = Statistics.empty(8).add(rows, np.arange(classes))
    assert statistics.scatter.trace == 0
    precision = precision_of(statistics, shrinkage=0.2)
    scores = Discriminant.of(statistics.means, precision).scores(rows)
    assert np.isfinite(scores).all()
    np.testing.assert_array_equal(scores.argmax(1), np.arange(classes))
    assert np.isfinite(precision.square(rows)).all()


@pytest.mark.parametrize(
    ("classes", "each", "width", "shrinkage"), [(1, 12, 5, 0.3), (4, 12, 5, 0.3), (2, 3, 300, 0.03)]
)
def test_left_out_is_the_inverse_without_the_picture(classes: int, each: int, width: int, shrinkage: float) -> None:
    """Scores under the precision and what they gain, against inverting the covariance without each picture.

    Of few pictures, one is nearly all that is known along it.
    """
    rows, labels = features(classes, each, width)
    statistics = Statistics.empty(width).add(rows, labels)
    count, random = len(rows), np.random.default_rng(1)
    precision = Precision.of(statistics.scatter, shrinkage=shrinkage)
    x, means = (random.normal(size=(n, width)).astype(np.float32) for n in (count, 3))
    out = precision.left_out(rows - statistics.means[labels], (1 - shrinkage) / count)
    for i, deviation in enumerate((rows - statistics.means[labels]).astype(np.float64)):
        scatter = sum(np.outer(d, d) for j, d in enumerate(rows - statistics.means[labels]) if j != i)
        floor = shrinkage * statistics.scatter.trace / count / width
        inverse = np.linalg.inv((1 - shrinkage) / count * scatter + floor * np.eye(width))
        assert deviation @ inverse @ deviation > precision.square(deviation[None].astype(np.float32))[0]
        expected = x[i] @ inverse @ means.T - 0.5 * np.einsum("cf,fg,cg->c", means, inverse, means)
        whole = precision.apply(means) @ x[i] - 0.5 * precision.square(means)
        np.testing.assert_allclose(whole + out.scores(x, means)[i], expected, rtol=2e-3, atol=2e-3)


def test_a_picture_left_out_never_leaves_nothing() -> None:
    """Where rounding or a dropped direction would make it more than all there is, the gain stays finite."""
    precision = Precision(np.float32([[1, 0]]), np.float32([-0.5]), 1.0)
    out = precision.left_out(np.float32([[2, 0], [100, 0]]), 1.0)
    np.testing.assert_allclose(out.gain[:1], [1 / (1 - MOST_HELD)], rtol=1e-5)
    np.testing.assert_allclose(out.gain[1:], [1 + 100**2], rtol=1e-3)


@pytest.mark.parametrize("rank", [1024, 30])
def test_without_pictures_are_the_statistics_that_never_saw_them(rank: int) -> None:
    rows, labels = features(3, 20, 40)
    out = np.arange(len(rows)) % 4 == 0
    without = Statistics.empty(40).add(rows[~out], labels[~out])
    whole = without.add(rows[out], labels[out], rank=rank)
    found = whole.without_pictures(rows[out], labels[out], np.ones(int(out.sum()), bool))
    np.testing.assert_allclose(found.means, without.means, atol=1e-5)
    np.testing.assert_array_equal(found.counts, without.counts)
    assert found.scatter.count == without.scatter.count
    assert found.scatter.trace == pytest.approx(without.scatter.trace, rel=1e-4 if rank > 40 else 5e-3)
    wanted = Precision.of(without.scatter, shrinkage=0.2).square(rows[out])
    near = Precision.of(found.scatter, shrinkage=0.2).square(rows[out])
    np.testing.assert_allclose(near, wanted, rtol=1e-3 if rank > 40 else 0.25)
    assert whole.without_pictures(rows[:0], labels[:0], np.zeros(0, bool)).scatter is whole.scatter


def test_rows_are_taken_out_of_the_strongest_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "TURNED", 4)
    scales = np.float32([9, 8, 7, 6, 1, 0.9, 0.8, 0.7])
    rows = scales * np.random.default_rng(0).normal(size=(400, 8)).astype(np.float32)
    whole = Scatter.empty(8).add([rows], count=400)
    found = whole.without([rows[:40], rows[40:100]], count=100)
    wanted = Scatter.empty(8).add([rows[100:]], count=300)
    assert found.count == 300
    np.testing.assert_allclose(np.sort(found.energy)[-4:], np.sort(wanted.energy)[-4:], rtol=0.02)
    np.testing.assert_array_equal(found.energy[4:], whole.energy[4:])
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(8), atol=1e-5)


def test_pictures_that_are_in_the_means_alone_leave_the_scatter_alone() -> None:
    rows, labels = features(2, 6, 5)
    statistics = Statistics.empty(5).add(rows, labels)
    found = statistics.without_pictures(rows[labels == 0][:2], np.zeros(2, np.int64), np.zeros(2, bool))
    assert found.scatter is statistics.scatter and found.counts.tolist() == [4, 6]
    np.testing.assert_allclose(found.means[0], rows[labels == 0][2:].mean(0), atol=1e-5)
    alone = statistics.without_pictures(rows[labels == 1], np.ones(6, np.int64), np.ones(6, bool))  # no other is left
    np.testing.assert_array_equal(alone.means, statistics.means)


def test_adding_leaves_the_former_statistics_alone() -> None:
    rows, labels = features(2, 10, 4)
    statistics = Statistics.empty(4).add(rows, labels)
    before = {name: value.copy() for name, value in statistics.to_numpy().items()}
    statistics.add(rows + 1, labels)
    for name, value in statistics.to_numpy().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(("gone", "left"), [([], [0, 1, 2]), ([1], [0, 2]), ([2, 0], [1]), ([0, 1, 2], [])])
def test_without_deletes_rows_and_keeps_the_scatter(gone: list[int], left: list[int]) -> None:
    rows, labels = features(3, 5, 4)
    statistics = Statistics.empty(4).add(rows[:-1], labels[:-1])
    fewer = statistics.without(np.array(gone, np.int64))
    assert len(fewer) == len(left)
    np.testing.assert_array_equal(fewer.means, statistics.means[left])
    np.testing.assert_array_equal(fewer.counts, statistics.counts[left])
    assert fewer.scatter is statistics.scatter


@pytest.mark.parametrize("n", [0, 12])
def test_stored_tensors_come_back(n: int) -> None:
    rows, labels = features(3, 4, 5)
    statistics = Statistics.empty(5)
    if n:
        statistics = statistics.add(rows, labels, rank=2)
    tensors = statistics.to_numpy()
    again = Statistics.from_numpy(tensors)
    for name, value in again.to_numpy().items():
        np.testing.assert_array_equal(value, tensors[name], strict=True)
    assert (again.scatter.rest, again.scatter.count) == (statistics.scatter.rest, n)
    assert (again.scatter.rest > 0) == (n > 0)


@pytest.mark.parametrize("rank", [20, 4])
def test_the_first_features_have_statistics_of_their_own(rank: int) -> None:
    rows, labels = features(3, 15, 10)
    whole = Statistics.empty(10).add(rows, labels, rank=rank)
    first = whole.of_first(6)
    np.testing.assert_array_equal(first.means, whole.means[:, :6])
    assert first.counts.tolist() == whole.counts.tolist() and first.scatter.count == whole.scatter.count
    np.testing.assert_allclose(dense(first.scatter), dense(whole.scatter)[:6, :6], atol=1e-3)
    assert first.scatter.rest == pytest.approx(whole.scatter.rest * 6 / 10, abs=1e-3)
    np.testing.assert_allclose(
        first.scatter.basis @ first.scatter.basis.T, np.eye(len(first.scatter.energy)), atol=1e-5
    )
    if rank == 20:  # nothing was cut off
        np.testing.assert_allclose(dense(first.scatter), within(rows[:, :6], labels), atol=1e-3)
    assert len(Statistics.empty(10).of_first(6).scatter.basis) == 0
