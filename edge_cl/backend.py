"""What answering needs of a backbone, whatever runs it: the protocol between compiled graphs, torch, and the head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edge_cl.preprocess import Pixels, Preprocess
from edge_cl.statistics import Array

BATCH_SIZE = 16  # pictures that are answered at once


@dataclass(frozen=True)
class Encoding:
    """What the prefix and one branch make of a batch of pictures.

    Attributes:
        tokens: prefix tokens, (B, N, D), in whatever form the backend keeps them; `numpy.asarray` copies them to the
            host.
        features: summaries of all blocks, each of unit length, laid out flat: (B, F).
        last: the class token (or patch mean) of the last block after the final norm, (B, D).
    """

    tokens: Any
    features: Array
    last: Array


class Backend(Protocol):
    """Runs prefix and suffix with the adapters of one version; see `Encoding` for the shapes."""

    @property
    def preprocess(self) -> Preprocess:
        """How pictures become input."""

    def encode(self, pixels: Pixels) -> Encoding:
        """Run prefix and base branch on (B, S, S, 3) uint8."""

    def branch(self, encoding: Encoding, task: int, rows: Sequence[int]) -> Encoding:
        """Run a task branch on some pictures of an encoded batch; a task without an adapter is the base branch's."""
