"""What answering needs of a backbone, whatever runs it: the protocol between compiled graphs, torch, and the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edge_cl.preprocess import Pixels, Preprocess
from edge_cl.statistics import Array

BATCH_SIZE = 16  # pictures that are answered at once
BASE = -1  # stands for the base branch among task numbers


@dataclass(frozen=True)
class Encoding:
    """What the prefix makes of a batch of pictures, alone or with one branch.

    Attributes:
        tokens: prefix tokens, (B, N, D), in whatever form the backend keeps them; `numpy.asarray` copies them to the
            host.
        features: summaries of all blocks that ran, each of unit length, laid out flat: (B, F), or (B, Fp) of the
            prefix alone.
        last: the class token (or patch mean) of the last block after the final norm, (B, D), or (B, 0).
    """

    tokens: Any
    features: Array
    last: Array


def prefix_encoding(tokens: Any, features: Array) -> Encoding:
    """Return what the prefix alone makes: tokens (B, N, D), features (B, Fp)."""
    return Encoding(tokens, features, np.zeros((len(features), 0), np.float32))


class Backend(Protocol):
    """Runs prefix and suffix with the adapters of one version; see `Encoding` for the shapes."""

    @property
    def preprocess(self) -> Preprocess:
        """How pictures become input."""

    def prefix(self, pixels: Pixels) -> Encoding:
        """Run the prefix alone on (B, S, S, 3) uint8."""

    def encode(self, pixels: Pixels) -> Encoding:
        """Run prefix and base branch on (B, S, S, 3) uint8."""

    def branch(self, encoding: Encoding, task: int, rows: Sequence[int]) -> Encoding:
        """Run a branch on some pictures of an encoded batch.

        Args:
            encoding: of the prefix, or of any branch.
            task: whose branch; `BASE` is the base branch. A task without an adapter is the base branch's: it takes the
                features from `encoding`, which has to be of that branch.
            rows: which pictures.
        """
