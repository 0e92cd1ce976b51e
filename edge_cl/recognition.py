"""Answering: pictures through prefix, base branch and the routed task branches, to predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edge_cl.backend import BATCH_SIZE, Backend, Encoding
from edge_cl.head import Head, softmax
from edge_cl.preprocess import Pixels
from edge_cl.statistics import Array


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        label: name of the most probable class.
        confidence: its probability, 0-1.
        unknown: whether the picture is too far from every known class for the label to be trusted.
        top: the most probable classes and their probabilities, best first.
    """

    label: str
    confidence: float
    unknown: bool
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Recogniser:
    """Everything that answers: what runs the backbone, head and class names.

    Attributes:
        backend: runs prefix, base branch and task branches.
        head: from features to probabilities.
        names: class names by permanent id.
        rule: how branches are combined, one of `RULES`.
    """

    backend: Backend
    head: Head
    names: Mapping[int, str] = field(default_factory=dict)
    rule: str = "routed"

    def predict(self, pixels: Sequence[Pixels], *, top: int = 5) -> list[Prediction]:
        """Answer for pictures (S, S, 3), a batch at a time."""
        return [
            self._prediction(row, bool(is_unknown), top)
            for posterior, unknown in self.posteriors(pixels)
            for row, is_unknown in zip(posterior, unknown, strict=True)
        ]

    def posteriors(self, pixels: Sequence[Pixels]) -> Iterator[tuple[Array, npt.NDArray[np.bool_]]]:
        """Yield class probabilities (B, C) of pictures (S, S, 3) and whether each is unknown (B,), batch by batch."""
        for start in range(0, len(pixels), BATCH_SIZE):
            encoding = self.backend.encode(np.stack(pixels[start : start + BATCH_SIZE]))
            scores = self.head.discriminant.scores(encoding.features)
            unknown = self.head.distance(encoding.features, scores) > self.head.threshold
            yield RULES[self.rule](self, encoding, self.head.posterior_of(scores)), unknown

    def posterior(self, encoding: Encoding) -> Array:
        """Return class probabilities of an encoded batch under the rule in force, (B, C)."""
        return RULES[self.rule](self, encoding, self.head.base_posterior(encoding.features))

    def _prediction(self, posterior: Array, unknown: bool, top: int) -> Prediction:
        order = np.argsort(-posterior, kind="stable")[:top]
        best = tuple((self.names[int(self.head.classes[i])], float(posterior[i])) for i in order)
        return Prediction(best[0][0], best[0][1], unknown, best)


Rule = Callable[[Recogniser, Encoding, Array], Array]
"""Given an encoded batch and its class probabilities by the base branch, (B, C): the probabilities of the answer."""


def base(recogniser: Recogniser, encoding: Encoding, posterior: Array) -> Array:
    """Answer by the base branch alone: one backbone pass."""
    del recogniser, encoding
    return posterior


def routed(recogniser: Recogniser, encoding: Encoding, posterior: Array) -> Array:
    """Let the base branch choose the task and that task's branch share in the answer."""
    head, posterior = recogniser.head, posterior.copy()
    routes = head.route(posterior)
    for task in sorted({task for route in routes for task in route}):
        rows = [i for i, route in enumerate(routes) if task in route]
        features = recogniser.backend.branch(encoding, task, rows).features
        posterior[rows] = head.fuse(posterior[rows], task, head.branches[task].discriminant.scores(features))
    return posterior


def published(recogniser: Recogniser, encoding: Encoding, posterior: Array) -> Array:
    """Run every task branch and take the largest cosine to a prototype (CL-LoRA, eq. 14)."""
    del posterior
    head = recogniser.head
    scores = np.full((len(encoding.features), len(head.classes)), -1.0, np.float32)
    for task, branch in head.branches.items():
        last = recogniser.backend.branch(encoding, task, range(len(scores))).last
        scores[:, head.columns(branch.classes)] = branch.cosine(last)
    return softmax(scores * np.float32(16.0))


RULES: dict[str, Rule] = {"routed": routed, "base": base, "published": published}
