"""What a class's own pictures vary in: a few directions of its own covariance, and what scores gain by them.

The discriminant has one covariance for all classes. A class that varies more than that in some direction, as a thing
does that is seen from two sides, loses pictures to its neighbours there. So a share of its own covariance joins the
common one along its strongest directions (regularised discriminant analysis, Friedman, 1989), in the space of the
class means, where the common one is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_cl.rounding import rounded
from edge_cl.statistics import Array, Indices, Scatter, Statistics

KEPT = 16  # K, directions of a class's own features that a store keeps
DIRECTIONS = 4  # R, of them in the space of the class means, that its scores take
OWN_SHARE = 0.15  # of a class's own covariance in the one that it is told by
SPREAD_BITS = 8  # of the matrix that scores are multiplied by
AT_ONCE = 64  # pictures of a class that are folded in at once, and classes that are turned to new axes
LEAST = 1e-6  # of the largest eigenvalue: what is smaller is no direction of the class means' space

Halves = npt.NDArray[np.float16]
Double = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Where the pictures of some classes vary most, each class's by itself.

    Attributes:
        classes: permanent class ids, (C,).
        counts: pictures behind each, (C,).
        means: of them, (C, F).
        rows: (C, K, F): their outer products are the strongest part of the class's scatter; zeros where it has fewer.
    """

    classes: Indices
    counts: Indices
    means: Halves
    rows: Halves

    @classmethod
    def empty(cls, width: int) -> Spread:
        """Return the spread of no classes, of F = `width` features."""
        none, half = np.zeros(0, np.int64), np.float16
        return cls(none, none, np.zeros((0, width), half), np.zeros((0, KEPT, width), half))

    def add(self, features: Array, classes: Indices) -> Spread:
        """Return the spread with further pictures of its classes or of new ones.

        Args:
            features: (V, n, F), V views of every picture.
            classes: permanent class ids, (n,).
        """
        ids, width = np.union1d(self.classes, classes), features.shape[2]
        counts, known = np.zeros(len(ids), np.int64), np.searchsorted(ids, self.classes)
        means, rows = np.zeros((len(ids), width), np.float16), np.zeros((len(ids), KEPT, width), np.float16)
        counts[known], means[known], rows[known] = self.counts, self.means, self.rows
        for i in np.flatnonzero(np.isin(ids, classes)):
            statistics, pictures = _statistics(means[i], rows[i], int(counts[i])), np.flatnonzero(classes == ids[i])
            for some in np.split(pictures, range(AT_ONCE, len(pictures), AT_ONCE)):
                statistics = statistics.add(features[:, some], np.zeros(len(some), np.int64), rank=KEPT)
            scatter = statistics.scatter
            counts[i], means[i], rows[i] = statistics.counts[0], statistics.means[0], 0
            rows[i, : len(scatter.energy)] = np.sqrt(scatter.energy)[:, None] * scatter.basis
        return Spread(ids, counts, means, rows)

    def to_numpy(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the tensors as they are stored: all rows one below the other, (C K, F)."""
        return {**vars(self), "rows": self.rows.reshape(-1, self.rows.shape[2])}

    @classmethod
    def from_numpy(cls, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Spread:
        """Rebuild a spread from what `to_numpy` gave."""
        classes, counts = (tensors[name].astype(np.int64) for name in ("classes", "counts"))
        means, rows = (tensors[name].astype(np.float16) for name in ("means", "rows"))
        return cls(classes, counts, means, rows.reshape(-1, KEPT, rows.shape[1]))

    def without(self, classes: set[int]) -> Spread:
        """Return the spread without some classes."""
        stays = np.asarray([int(c) not in classes for c in self.classes], bool)
        return Spread(*(tensor[stays] for tensor in vars(self).values()))

    def moved(self, points: Callable[[Array], Array]) -> Spread:
        """Return the spread of features that have gone through an affine map, (n, F) to (n, F)."""
        means, rows = self.means.astype(np.float32), self.rows.astype(np.float32)
        moved = points(means)
        ends = points((means[:, None] + rows).reshape(-1, means.shape[1])).reshape(rows.shape)
        return replace(self, means=moved.astype(np.float16), rows=(ends - moved[:, None]).astype(np.float16))

    def along(self, weight: Array, inverse: Double) -> Iterator[tuple[int, Double, Double]]:
        """Yield each class's id, its rows' scores (K, C), a picture's share of them, and those times `inverse` (C, C).

        Args:
            weight: of a discriminant, (C, F).
            inverse: of the scores' covariance, (C, C).
        """
        for start in range(0, len(self.rows), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            rows = self.rows[part].astype(np.float32)
            scores = (rows.reshape(-1, rows.shape[2]) @ weight.T).astype(np.float64).reshape(*rows.shape[:2], -1)
            scores /= np.sqrt(self.counts[part])[:, None, None]
            yield from zip(self.classes[part].tolist(), scores, scores @ inverse, strict=True)


def _statistics(mean: Halves, rows: Halves, count: int) -> Statistics:
    """Return the statistics of one class alone, of its mean (F,) and rows (K, F)."""
    single = rows.astype(np.float32)
    energy = (single**2).sum(1)
    single, energy = single[energy > 0], energy[energy > 0]
    scatter = Scatter(single / np.sqrt(energy)[:, None], energy, 0.0, count)
    return Statistics(mean[None].astype(np.float32), np.asarray([count], np.int64), scatter)


@dataclass(frozen=True)
class Quadratic:
    """What scores s gain by the classes' own covariances: `sum_r (weight_rc . s + offset_rc)^2 - cost_c`.

    Attributes:
        weight: (R C, C): for every direction a row a class.
        offset: (R C,), so that the class's mean gains nothing but its cost.
        cost: (C,), half the logarithm of the determinant.
    """

    weight: Array
    offset: Array
    cost: Array

    @classmethod
    def none(cls, classes: int) -> Quadratic:
        """Return what gains nothing."""
        sizes = (DIRECTIONS * classes, classes), (DIRECTIONS * classes,), (classes,)
        return cls(*(np.zeros(size, np.float32) for size in sizes))

    @classmethod
    def of(
        cls, weight: Array, bias: Array, offsets: Array, classes: Indices, spreads: Iterable[Spread]
    ) -> Quadratic | None:
        """Fit to a linear discriminant; None where no class varies more than the common covariance says.

        Args:
            weight: of the discriminant, (C, F).
            bias: of it, (C,).
            offsets: class means from their centre, (C, F).
            classes: permanent ids of the discriminant's rows, (C,).
            spreads: of them; classes that are in none gain nothing.
        """
        at_means = (offsets @ weight.T).astype(np.float64)
        values, vectors = np.linalg.eigh((at_means + at_means.T) / 2)
        kept = values > max(values[-1], 0.0) * LEAST
        inverse = (vectors[:, kept] / values[kept]) @ vectors[:, kept].T  # scores' covariance, inverted
        matrix = np.zeros((DIRECTIONS, len(classes), len(classes)), np.float32)
        cost = np.zeros(len(classes), np.float32)
        columns = {int(c): i for i, c in enumerate(classes)}
        for spread in spreads:
            for c, scores, own in spread.along(weight, inverse):
                energy, turned = np.linalg.eigh(own @ scores.T)
                wide = np.flatnonzero(energy > 1)[-DIRECTIONS:]
                variance = 1 + OWN_SHARE * (energy[wide] - 1)
                directions = turned[:, wide].T @ own / np.sqrt(energy[wide])[:, None]
                matrix[: len(wide), columns[c]] = np.sqrt((1 - 1 / variance) / 2)[:, None] * directions
                cost[columns[c]] = np.log(variance).sum() / 2
        if not cost.any():
            return None
        made = rounded(matrix.reshape(-1, len(classes)), SPREAD_BITS)
        means = np.einsum("rcd,cd->rc", made.reshape(matrix.shape), at_means + bias)
        return cls(made, -means.astype(np.float32).ravel(), cost)

    def gain(self, scores: Array) -> Array:
        """Return what scores (n, C) gain, (n, C)."""
        along = scores @ self.weight.T + self.offset
        result: Array = (along**2).reshape(len(scores), -1, scores.shape[1]).sum(1) - self.cost
        return result
