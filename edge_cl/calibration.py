"""How far confidence and accuracy are apart."""

from __future__ import annotations

import numpy as np

from edge_cl.statistics import Array

BINS = 15  # of confidence


def calibration_error(confidence: Array, hits: np.ndarray) -> float:
    """Return the expected calibration error: mean |accuracy - confidence| over bins of confidence, weighted by size.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, eq. 3, with `BINS` bins of equal width.

    Args:
        confidence: of each answer, 0-1, (n,).
        hits: whether it was right, (n,).
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(float((hits[bins == b] - confidence[bins == b]).sum())) for b in np.unique(bins)]
    return sum(gaps) / len(hits)
