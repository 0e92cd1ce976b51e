"""Answering: pictures through prefix and exit, base branch and the routed task branches, to predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from edge_cl.backend import BASE, BATCH_SIZE, Backend, Encoding
from edge_cl.errors import EdgeClError
from edge_cl.head import Head, softmax
from edge_cl.preprocess import Pixels
from edge_cl.statistics import Array


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture.

    Attributes:
        label: name of the most probable class.
        confidence: its probability, 0-1.
        unknown: whether the picture is too unlike every known class for the label to be trusted.
        unknown_score: how unlike them it is: above 1 is unknown, and so may be what a program of its own chooses.
        top: the most probable classes and their probabilities, best first.
    """

    label: str
    confidence: float
    unknown: bool
    unknown_score: float
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
            self._prediction(row, float(score), top)
            for posterior, scores in self.posteriors(pixels)
            for row, score in zip(posterior, scores, strict=True)
        ]

    def posteriors(self, pixels: Sequence[Pixels]) -> Iterator[tuple[Array, Array]]:
        """Yield class probabilities (B, C) of pictures (S, S, 3) and their `unknown_score`s (B,), batch by batch.

        Raises:
            EdgeClError: they are no numbers.
        """
        for start in range(0, len(pixels), BATCH_SIZE):
            batch = np.stack(pixels[start : start + BATCH_SIZE])
            posterior, scores = RULES[self.rule](self, self.backend.prefix(batch))
            if not np.isfinite(posterior).all():
                raise EdgeClError(
                    "A picture has no answer: its class probabilities are no numbers.",
                    mend="If the graphs are in half precision: edge-cl export OUT --precision fp32",
                )
            yield posterior, scores

    def warm_up(self) -> None:
        """Answer for a grey picture by the whole model: what a first run sets up is then there, and what fails shows.

        Raises:
            EdgeClError: see `posteriors`.
        """
        side = self.backend.preprocess.image_size
        whole = replace(self, head=replace(self.head, exit=None))
        whole.predict([np.full((side, side, 3), 128, np.uint8)])

    def posterior(self, encoding: Encoding) -> Array:
        """Return class probabilities of a batch that the prefix has encoded under the rule in force, (B, C)."""
        return RULES[self.rule](self, encoding)[0]

    def base_answers(self, encoding: Encoding) -> tuple[Array, Array]:
        """Return the base branch's class probabilities (B, C) of a batch it has encoded, and `unknown_score`s (B,)."""
        head, scores = self.head, self.head.discriminant.scores(encoding.features)
        whole = head.whole(scores)
        posterior = softmax(whole / np.float32(head.temperature))
        return posterior, head.unknown_score(head.distance(encoding.features, scores), whole.max(1))

    def _prediction(self, posterior: Array, unknown_score: float, top: int) -> Prediction:
        order = np.argsort(-posterior, kind="stable")[:top]
        best = tuple((self.names[int(self.head.classes[i])], float(posterior[i])) for i in order)
        return Prediction(*best[0], unknown_score > 1, unknown_score, best)


Rule = Callable[[Recogniser, Encoding], tuple[Array, Array]]
"""Given a batch that the prefix has encoded: the answer's class probabilities (B, C), and `unknown_score`s (B,)."""


def base(recogniser: Recogniser, encoding: Encoding) -> tuple[Array, Array]:
    """Answer by the base branch alone: one backbone pass."""
    return recogniser.base_answers(recogniser.backend.branch(encoding, BASE, range(len(encoding.features))))


def routed(recogniser: Recogniser, encoding: Encoding) -> tuple[Array, Array]:
    """Answer at the exit what is sure there; else by the base branch, which asks a task branch where it is unsure."""
    exit = recogniser.head.exit
    if exit is None:
        return _through_branches(recogniser, encoding, range(len(encoding.features)))
    posterior, stands, unknown = exit.answers(encoding.features)
    on = np.flatnonzero(~stands)
    if len(on):
        posterior[on], unknown[on] = _through_branches(recogniser, encoding, on.tolist())
    return posterior, unknown


def _through_branches(recogniser: Recogniser, encoding: Encoding, rows: Sequence[int]) -> tuple[Array, Array]:
    """Answer for some pictures of a batch: the base branch chooses the task, whose branch shares in unsure answers."""
    head, encoding = recogniser.head, recogniser.backend.branch(encoding, BASE, rows)
    posterior, unknown = recogniser.base_answers(encoding)
    unsure = head.unsure(posterior)
    routes = head.route(posterior[unsure])
    for task in sorted({task for route in routes for task in route}):
        own = [int(i) for i, route in zip(unsure, routes, strict=True) if task in route]
        features = recogniser.backend.branch(encoding, task, own).features
        posterior[own] = head.fuse(posterior[own], task, head.branches[task].discriminant.scores(features))
    return posterior, unknown


def published(recogniser: Recogniser, encoding: Encoding) -> tuple[Array, Array]:
    """Run every task branch and take the largest cosine to a prototype (CL-LoRA, eq. 14)."""
    rows = range(len(encoding.features))
    head, encoding = recogniser.head, recogniser.backend.branch(encoding, BASE, rows)
    _, unknown = recogniser.base_answers(encoding)
    scores = np.full((len(rows), len(head.classes)), -1.0, np.float32)
    for task, branch in head.branches.items():
        last = recogniser.backend.branch(encoding, task, rows).last
        scores[:, head.columns(branch.classes)] = branch.cosine(last)
    return softmax(scores * np.float32(16.0)), unknown


RULES: dict[str, Rule] = {"routed": routed, "base": base, "published": published}
