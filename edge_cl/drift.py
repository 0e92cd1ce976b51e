"""Correction of stored statistics when the adapters, and with them the features, move.

The old pictures are gone, so the move is learned from the new task's pictures, seen under the old and the new
adapters: a ridge regression of the displacement on the old features, applied to the old means and scatter (the idea
of learnable drift compensation, Gomez-Villa et al., ECCV 2024, in closed form).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_cl.statistics import Array, Scatter, Statistics


@dataclass(frozen=True)
class DriftMap:
    """A map of features, `x -> x + (x - centre) old^T coefficients + shift`, of rank at most n.

    Attributes:
        centre: mean old feature, (F,).
        old: centred old features of n pictures, (n, F).
        coefficients: ridge solution in the dual, (n, F).
        shift: mean displacement, (F,).
    """

    centre: Array
    old: Array
    coefficients: Array
    shift: Array

    @classmethod
    def fit(cls, old: Array, new: Array, *, ridge: float = 0.1) -> DriftMap:
        """Fit the map on pictures seen under both.

        Args:
            old: features under the old adapters, (n, F).
            new: features of the same pictures under the new ones, (n, F).
            ridge: penalty, as a share of the mean squared norm of the centred old features.
        """
        centre, shift = old.mean(0), (new - old).mean(0)
        x, y = (old - centre).astype(np.float64), (new - old - shift).astype(np.float64)
        gram = x @ x.T
        penalty = ridge * max(float(np.trace(gram)) / len(x), 1e-12)
        coefficients = np.linalg.solve(gram + penalty * np.eye(len(x)), y)
        return cls(centre, x.astype(np.float32), coefficients.astype(np.float32), shift)

    def points(self, features: Array) -> Array:
        """Map features or means, (n, F)."""
        return features + self.directions(features - self.centre, keep=False) + self.shift

    def directions(self, rows: Array, *, keep: bool = True) -> Array:
        """Map differences of features, (n, F); without `keep`, return only what the map adds."""
        added: Array = (rows @ self.old.T) @ self.coefficients
        return rows + added if keep else added

    def statistics(self, statistics: Statistics, *, rank: int) -> Statistics:
        """Map means and pooled scatter; the scatter's isotropic rest stays as it is."""
        old = statistics.scatter
        rows = self.directions(np.sqrt(old.energy)[:, None] * old.basis)
        moved = Scatter.empty(rows.shape[1]).add([rows], count=old.count, rank=rank)
        scatter = Scatter(moved.basis, moved.energy, moved.rest + old.rest, old.count)
        return Statistics(self.points(statistics.means), statistics.counts, scatter)
