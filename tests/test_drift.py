"""Drift correction: what it learns from the new task's pictures, and what it makes of old statistics."""

from __future__ import annotations

import numpy as np
import pytest

from edge_cl.drift import DriftMap
from edge_cl.statistics import Array, Scatter, Statistics

WIDTH = 6


def rows(n: int, seed: int = 0) -> Array:
    return (2 + np.random.default_rng(seed).normal(size=(n, WIDTH))).astype(np.float32)


def move(features: Array) -> Array:
    """A linear move: a turn and stretch near the identity, and a shift."""
    matrix = np.eye(WIDTH) + 0.3 * np.random.default_rng(9).normal(size=(WIDTH, WIDTH))
    return (features @ matrix + np.arange(WIDTH)).astype(np.float32)


def statistics(n: int = 40) -> Statistics:
    return Statistics.empty(WIDTH).add(rows(n, 5), np.arange(n) % 3)


@pytest.mark.parametrize("n", [1, 2, 50])
def test_nothing_moves_when_nothing_moved(n: int) -> None:
    drift, before = DriftMap.fit(rows(n), rows(n)), statistics()
    np.testing.assert_array_equal(drift.points(rows(7, 3)), rows(7, 3))
    np.testing.assert_array_equal(drift.directions(rows(7, 3)), rows(7, 3))
    after = drift.statistics(before, rank=512)
    np.testing.assert_array_equal(after.means, before.means)
    np.testing.assert_array_equal(after.counts, before.counts)
    np.testing.assert_allclose(covariance(after.scatter), covariance(before.scatter), atol=1e-4)
    assert (after.scatter.rest, after.scatter.count) == (pytest.approx(before.scatter.rest, abs=1e-3), 40)


def covariance(scatter: Scatter) -> Array:
    result: Array = scatter.basis.T @ (scatter.energy[:, None] * scatter.basis)
    return result


def test_linear_move_is_recovered_on_other_points() -> None:
    old, unseen = rows(200), rows(50, 1)
    drift = DriftMap.fit(old, move(old), ridge=1e-6)
    np.testing.assert_allclose(drift.points(unseen), move(unseen), atol=1e-3)
    zero = np.zeros((1, WIDTH), np.float32)
    np.testing.assert_allclose(drift.directions(unseen), move(unseen) - move(zero), atol=5e-3)
    np.testing.assert_allclose(drift.directions(unseen, keep=False), drift.directions(unseen) - unseen, atol=1e-5)


def test_statistics_move_along() -> None:
    old, before = rows(200), statistics()
    after = DriftMap.fit(old, move(old), ridge=1e-6).statistics(before, rank=512)
    expected = Statistics.empty(WIDTH).add(move(rows(40, 5)), np.arange(40) % 3)
    np.testing.assert_allclose(after.means, expected.means, atol=5e-3)
    np.testing.assert_array_equal(after.counts, expected.counts)
    np.testing.assert_allclose(
        covariance(after.scatter), covariance(expected.scatter), atol=1e-3 * expected.scatter.trace
    )
    assert after.scatter.count == 40


def test_ridge_is_the_primal_one() -> None:
    old, new = rows(30), move(rows(30))
    x, y = old - old.mean(0), new - old - (new - old).mean(0)
    penalty = 0.3 * (x**2).sum() / 30
    primal = np.linalg.solve(x.T @ x + penalty * np.eye(WIDTH), x.T @ y)
    drift = DriftMap.fit(old, new, ridge=0.3)
    unseen = rows(5, 2)
    expected = unseen + (unseen - old.mean(0)) @ primal + (new - old).mean(0)
    np.testing.assert_allclose(drift.points(unseen), expected, atol=1e-4)


def test_one_picture_shifts_all() -> None:
    old = rows(1)
    drift = DriftMap.fit(old, old + 3)
    np.testing.assert_allclose(drift.points(rows(4, 1)), rows(4, 1) + 3, rtol=1e-6)
    np.testing.assert_allclose(drift.directions(rows(4, 1)), rows(4, 1), rtol=1e-6)


def test_isotropic_rest_and_rank_are_kept() -> None:
    before = Statistics.empty(WIDTH).add(rows(40, 5), np.arange(40) % 3, rank=4)
    assert before.scatter.rest > 0
    old = rows(200)
    after = DriftMap.fit(old, old * 2, ridge=1e-6).statistics(before, rank=2)
    assert after.scatter.basis.shape == (2, WIDTH)
    along = 4 * before.scatter.energy.sum()  # twice as far: four times the squares
    assert after.scatter.trace == pytest.approx(along + before.scatter.rest, rel=1e-3)


def test_no_classes_stay_no_classes() -> None:
    after = DriftMap.fit(rows(9), move(rows(9))).statistics(Statistics.empty(WIDTH), rank=512)
    assert len(after) == 0
    assert after.means.shape == (0, WIDTH)
    assert (after.scatter.trace, after.scatter.count) == (0, 0)


def test_classes_without_spread_stay_without_spread() -> None:
    single = Statistics.empty(WIDTH).add(rows(2, 5), np.array([0, 1]))
    old = rows(50)
    after = DriftMap.fit(old, move(old), ridge=1e-6).statistics(single, rank=512)
    np.testing.assert_allclose(after.means, move(rows(2, 5)), atol=5e-3)
    assert (after.scatter.trace, after.scatter.count) == (0, 2)
