"""Second-order statistics of features: class means and one pooled within-class covariance, without the pictures.

Features are rows (n, F). The covariance is kept as a low-rank sketch plus an isotropic rest, K (F + 1) numbers
instead of F^2, in the manner of Frequent Directions (Liberty, 2013) and probabilistic PCA: exact while the scatter's
rank is at most K, and never materialised as a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge_cl.process import give_back

Array = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

ROWS_AT_ONCE, ROWS_BYTES = 256, 9 << 20  # most feature rows that are folded into a scatter at once, but 64 always
COLUMNS_AT_ONCE = 512  # of feature rows that are turned to new directions
LEAST = 1e-5  # of the largest energy: what is smaller is not told from rounding
TURNED = 256  # strongest directions of a scatter that rows are taken out of
MOST_HELD = 0.99  # share of its spread along itself that one of many pictures is taken to bring into a covariance


def rows_at_once(width: int) -> int:
    """Return how many feature rows of F = `width` numbers are folded into a scatter at once."""
    return max(64, min(ROWS_AT_ONCE, ROWS_BYTES // (4 * width)))


def fold_rows(directions: int, count: int, at_once: int, rank: int) -> tuple[int, int]:
    """Return how many rows of F numbers `Scatter.add` holds at most, beside the basis it begins with, and K after it.

    Args:
        directions: K before.
        count: rows to fold in.
        at_once: of them, in one fold.
        rank: largest K kept.
    """
    most, room = 0, min(count, at_once)
    while count > 0:
        rows = min(count, at_once)
        portions = min(rows, at_once // 4)  # two of them, while the next is made
        most = max(most, directions + room + portions)  # behind the scaled basis is room for what is folded in
        directions = min(directions + rows, rank)
        count -= rows
    return most, directions


@dataclass(frozen=True)
class Scatter:
    """A within-class scatter matrix: `basis^T diag(energy) basis` plus `rest` spread evenly over all directions.

    Attributes:
        basis: orthonormal rows, (K, F).
        energy: sum of squares along each row, (K,).
        rest: sum of squares outside the rows.
        count: number of feature rows that went in.
    """

    basis: Array
    energy: Array
    rest: float
    count: int

    @classmethod
    def empty(cls, width: int) -> Scatter:
        """Return the scatter of no rows of F = `width` numbers."""
        return cls(np.zeros((0, width), np.float32), np.zeros(0, np.float32), 0.0, 0)

    @property
    def trace(self) -> float:
        """Total sum of squares."""
        return float(self.energy.sum(dtype=np.float64)) + self.rest

    def of_first(self, width: int) -> Scatter:
        """Return the scatter of the first `width` numbers of every row alone; the rest is spread over them evenly."""
        rows = np.sqrt(self.energy)[:, None] * self.basis[:, :width]
        part = Scatter.empty(width)._with_rows([rows], len(rows), max(len(rows), 1))
        return Scatter(part.basis, part.energy, part.rest + self.rest * width / self.basis.shape[1], self.count)

    def without(self, deviations: Iterable[Array], *, count: int) -> Scatter:
        """Return the scatter without rows of deviations that went into it, as far as its first directions hold them.

        Args:
            deviations: blocks of rows, (n, F) each.
            count: how many pictures they stand for.
        """
        first, others = np.split(self.basis, [TURNED])
        left = np.diag(self.energy[:TURNED])
        for block in deviations:
            along = block @ first.T
            left -= along.T @ along
        values, vectors = np.linalg.eigh(left)
        keep = np.flatnonzero(values > self.energy.max(initial=0.0) * LEAST)[::-1]
        basis = np.concatenate((vectors[:, keep].T @ first, others))
        energy = np.concatenate((values[keep], self.energy[TURNED:]))
        return Scatter(basis, energy, self.rest, max(self.count - count, 1))

    def add(self, deviations: Iterable[Array], *, count: int, rank: int = 1024, rows: int | None = None) -> Scatter:
        """Return the scatter with further rows of deviations from their class means.

        Args:
            deviations: blocks of rows, (n, F) each; never all in memory at once if they come from a generator.
            count: how many pictures they stand for.
            rank: largest K kept.
            rows: how many there are at most, where that is known: no more room is made for them.
        """
        at_once = rows_at_once(self.basis.shape[1])
        result = self._with_rows(deviations, rank, at_once if rows is None else max(1, min(rows, at_once)))
        return Scatter(result.basis, result.energy, result.rest, self.count + count)

    def _with_rows(self, deviations: Iterable[Array], rank: int, at_once: int) -> Scatter:
        """Fold rows in, `at_once` at a time, where the scaled basis lies: one matrix from the first to the last."""
        width, rest, energy = self.basis.shape[1], self.rest, self.energy
        known = filled = len(energy)
        rows: Array | None = None
        for block in deviations:
            while len(block):
                if rows is None:
                    rows = np.empty((known + at_once, width), np.float32)
                    np.multiply(self.basis, np.sqrt(energy)[:, None], out=rows[:known])
                elif filled == len(rows):
                    energy, rest = _fold(rows, rest, rank)
                    known = filled = len(energy)
                    rows.resize((known + at_once, width), refcheck=False)
                fits, block = np.split(block, [len(rows) - filled])
                rows[filled : filled + len(fits)] = fits
                filled += len(fits)
        if rows is None:
            return self
        energy, rest = _fold(rows[:filled], rest, rank)
        rows.resize((len(energy), width), refcheck=False)
        rows /= np.sqrt(energy)[:, None]
        return Scatter(rows, energy, rest, self.count)


def _portions(views: Array, pictures: Indices) -> Iterator[Array]:
    """Yield copies of the features (V, n, F) of some pictures, (m, F): an eighth of what is folded in at once."""
    most = rows_at_once(views.shape[2]) // 8
    for view in views:
        for start in range(0, len(pictures), most):
            yield view[pictures[start : start + most]]


def _fold(rows: Array, rest: float, rank: int) -> tuple[Array, float]:
    """Put the strongest directions of some rows (n, F), at most `rank`, in the place of the first, each by its length.

    Returns:
        The sums of squares along them, and all else with `rest`.
    """
    give_back()  # matrices of the fold before
    gram = rows @ rows.T
    values, vectors = np.linalg.eigh(gram)  # memory peaks here
    total = float(np.trace(gram, dtype=np.float64)) + rest
    keep = np.argsort(values)[::-1][:rank]
    keep = keep[values[keep] > max(values[-1], 0.0) * LEAST]
    energy, turned = values[keep], np.ascontiguousarray(vectors[:, keep].T)
    for start in range(0, rows.shape[1], COLUMNS_AT_ONCE):
        part = rows[:, start : start + COLUMNS_AT_ONCE]
        part[: len(keep)] = turned @ part
    return energy, max(total - float(energy.sum(dtype=np.float64)), 0.0)


@dataclass(frozen=True)
class Precision:
    """The inverse of a shrunk covariance, `(I + basis^T diag(gain) basis) / variance`.

    Attributes:
        basis: orthonormal rows, (K, F).
        gain: relative change of the precision along each row, (K,), between -1 and 0 for strong directions.
        variance: of the isotropic part.
    """

    basis: Array
    gain: Array
    variance: float

    @classmethod
    def of(cls, scatter: Scatter, *, shrinkage: float, prior_trace: float = 0.0) -> Precision:
        """Invert `(1 - s) S / n + s tr(S) / (n F) I` by the Woodbury identity.

        Args:
            scatter: S, with its count n.
            shrinkage: s, the share of the isotropic part (as in scikit-learn's LDA).
            prior_trace: trace of an isotropic covariance worth one more picture, which keeps the inverse finite when
                there are hardly any pictures.
        """
        width = scatter.basis.shape[1]
        count = max(scatter.count, 1)
        trace = scatter.trace / count
        free = max(width - len(scatter.energy), 1)
        floor = shrinkage * trace / width + prior_trace / ((count + 1) * width)
        variance = max((1 - shrinkage) * scatter.rest / count / free + floor, 1e-12)
        along = (1 - shrinkage) * scatter.energy / count + floor
        gain = (variance / np.maximum(along, 1e-12) - 1).astype(np.float32)
        return cls(scatter.basis, gain, variance)

    def apply(self, rows: Array) -> Array:
        """Multiply rows (n, F) by the precision."""
        result: Array = (rows + ((rows @ self.basis.T) * self.gain) @ self.basis) / np.float32(self.variance)
        return result

    def square(self, rows: Array) -> Array:
        """Return the squared Mahalanobis norm of rows (n, F): (n,)."""
        along = (rows @ self.basis.T) ** 2 @ self.gain
        norm: Array = ((rows**2).sum(1) + along) / np.float32(self.variance)
        return norm

    def left_out(self, deviations: Array, share: float) -> LeftOut:
        """Return what the precision gains once a picture is taken out of the covariance, for each of n pictures.

        Args:
            deviations: what each brought into the scatter, (n, F).
            share: of the scatter in the covariance.
        """
        direction = self.apply(deviations)
        alone = share * (deviations**2).sum(1) / np.float32(self.variance)  # beside it, were nothing else along it
        most = np.maximum(alone / (1 + alone), MOST_HELD)  # the first where pictures are few, and the scatter exact
        held = np.minimum(share * (deviations * direction).sum(1), most)
        return LeftOut(direction, np.float32(share) / (1 - held))

    def strongest(self, rank: int | None) -> Precision:
        """Return the precision along at most `rank` directions of largest spread (None: all), the others isotropic.

        As gains are negative, `square` only becomes larger by what is left out.
        """
        if rank is None or rank >= len(self.gain):
            return self
        kept = np.argsort(self.gain, kind="stable")[:rank]
        return Precision(self.basis[kept], self.gain[kept], self.variance)


@dataclass(frozen=True)
class LeftOut:
    """What a precision P gains without one picture or another: `gain (P d)(P d)^T` (Sherman and Morrison, 1950).

    Attributes:
        direction: P d of each picture, (n, F).
        gain: (n,).
    """

    direction: Array
    gain: Array

    def scores(self, rows: Array, means: Array) -> Array:
        """Return what the discriminants `x . P m - m . P m / 2` gain.

        Args:
            rows: x, each picture's own, (n, F).
            means: m, the same for all pictures, (C, F).

        Returns:
            (n, C).
        """
        x, m = (rows * self.direction).sum(1, keepdims=True), self.direction @ means.T
        result: Array = self.gain[:, None] * (x - m / 2) * m
        return result


@dataclass(frozen=True)
class Statistics:
    """All that is kept of the classes' features.

    Attributes:
        means: class means, (C, F).
        counts: pictures behind each mean, (C,).
        scatter: pooled within-class scatter.
    """

    means: Array
    counts: Indices
    scatter: Scatter
    _parts: dict[int, Statistics] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def empty(cls, width: int) -> Statistics:
        """Return statistics of no classes."""
        return cls(np.zeros((0, width), np.float32), np.zeros(0, np.int64), Scatter.empty(width))

    def __len__(self) -> int:
        return len(self.means)

    def add(self, features: Array, labels: Indices, *, rank: int = 1024) -> Statistics:
        """Return the statistics with further pictures, exactly as if all had been seen at once (while rank <= K).

        Args:
            features: (n, F), or (V, n, F) for V views of every picture, which count as one picture together.
            labels: class indices, (n,); those from `len(self)` on are new classes, without gaps.
            rank: largest rank kept of the scatter.
        """
        return self.add_all([(features, labels)], rank=rank)

    def add_all(self, parts: Sequence[tuple[Array, Indices]], *, rank: int = 1024) -> Statistics:
        """Return the statistics with several lots of pictures, each (features, labels); see `add`."""
        width = self.means.shape[1]
        lots = [(features if features.ndim == 3 else features[None], labels) for features, labels in parts]
        classes = max(len(self), *(int(labels.max(initial=-1)) + 1 for _, labels in lots))
        means = np.zeros((classes, width), np.float32)
        counts = np.zeros(classes, np.int64)
        means[: len(self)], counts[: len(self)] = self.means, self.counts

        def deviations() -> Iterator[Array]:
            for views, labels in lots:
                for c in np.unique(labels):
                    of_class = np.flatnonzero(labels == c)
                    n, k = int(counts[c]), len(of_class)
                    total = sum(rows.sum(0, dtype=np.float64) for rows in _portions(views, of_class))
                    mean = (total / (len(views) * k)).astype(np.float32)
                    for rows in _portions(views, of_class):
                        rows -= mean
                        rows /= np.float32(len(views) ** 0.5)
                        yield rows
                    if n:  # pooling two groups adds the spread between their means
                        yield np.sqrt(n * k / (n + k)) * (mean - means[c])[None]
                    means[c] += (mean - means[c]) * (k / (n + k))
                    counts[c] = n + k

        count = sum(len(labels) for _, labels in lots)
        rows = sum(len(views) * len(labels) + len(np.unique(labels)) for views, labels in lots)
        return Statistics(means, counts, self.scatter.add(deviations(), count=count, rank=rank, rows=rows))

    def of_first(self, width: int) -> Statistics:
        """Return the statistics of the first `width` features alone; they are made once."""
        if width not in self._parts:
            self._parts[width] = Statistics(self.means[:, :width], self.counts, self.scatter.of_first(width))
        return self._parts[width]

    def without(self, classes: Indices) -> Statistics:
        """Return the statistics with some class rows deleted; the pooled scatter, shared by all, stays."""
        return Statistics(np.delete(self.means, classes, 0), np.delete(self.counts, classes), self.scatter)

    def without_pictures(self, features: Array, labels: Indices, pooled: npt.NDArray[np.bool_]) -> Statistics:
        """Return the statistics without some pictures, but for what the scatter no longer tells from other pictures.

        A class of which no other picture is known keeps its mean.

        Args:
            features: of one view each, (n, F).
            labels: class indices, (n,).
            pooled: which of them are in the scatter, (n,); all are in the means.
        """
        means, counts, gone, taken = self.means.copy(), self.counts.copy(), list[Array](), 0
        for c in np.unique(labels):
            of_class = labels == c
            n = int(counts[c]) - int(of_class.sum())
            if n < 1:
                continue
            means[c] += (means[c] - features[of_class].mean(0)) * np.float32(of_class.sum() / n)
            counts[c], out = n, features[of_class & pooled]
            if k := len(out):
                mean = out.mean(0)
                gone += [out - mean, np.float32((n * k / (n + k)) ** 0.5) * (mean - means[c])[None]]
                taken += k
        if not gone:
            return Statistics(means, counts, self.scatter)
        return Statistics(means, counts, self.scatter.without(gone, count=taken))

    def to_numpy(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the tensors as they are stored."""
        return {
            "means": self.means,
            "counts": self.counts,
            "basis": self.scatter.basis,
            "energy": self.scatter.energy,
            "rest": np.asarray([self.scatter.rest], np.float64),
            "scatter_count": np.asarray([self.scatter.count], np.int64),
        }

    @classmethod
    def from_numpy(cls, tensors: Mapping[str, npt.NDArray[np.generic]]) -> Statistics:
        """Rebuild statistics from what `to_numpy` gave."""
        scatter = Scatter(
            tensors["basis"].astype(np.float32),
            tensors["energy"].astype(np.float32),
            float(tensors["rest"].astype(np.float64)[0]),
            int(tensors["scatter_count"].astype(np.int64)[0]),
        )
        return cls(tensors["means"].astype(np.float32), tensors["counts"].astype(np.int64), scatter)
