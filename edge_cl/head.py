"""The head: everything that turns features into an answer, in numpy alone.

Base scores are linear discriminants over all blocks (LDA, one covariance pooled over all tasks), with what they gain
by the classes' own covariances (`edge_cl.spread`). Their posterior, summed over the classes of each task, routes a
picture to task branches; a branch's own discriminant then shares out that task's probability among its classes:

    p(c) = p_base(t) [(1 - w) p_base(c | t) + w p_branch(c | t)]      for the classes c of a routed task t

Before that, discriminants over the prefix's blocks alone answer the pictures that they are sure of: the exit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from edge_cl.rounding import rounded
from edge_cl.spread import Quadratic, Spread
from edge_cl.statistics import Array, Indices, Precision, Statistics

PRIOR_SPREAD = 0.3  # squared distance from the class mean per squared norm, before any spread is measured
UNKNOWN_RANK = 64  # directions of the covariance that the unknown test's distance takes (docs/accuracy.md)
EXIT_SHARE = 0.7  # what the exit's threshold, for 85 % of the known, is of the whole model's, for 99 %: 0.54 to 0.79
ABOVE, MOST = np.nextafter(np.float32(1), np.float32(2)), np.finfo(np.float32).max  # of an unknown's score: least, most
WEIGHT_BITS, EXIT_BITS, BASIS_BITS = 8, 4, 4  # of a head's matrices: scores, the exit's scores, distance

Tensors = Mapping[str, npt.NDArray[np.generic]]


def softmax(scores: Array) -> Array:
    """Return the softmax over the last axis."""
    shifted = np.exp(scores - scores.max(-1, keepdims=True))
    result: Array = shifted / shifted.sum(-1, keepdims=True)
    return result


def precision_of(statistics: Statistics, *, shrinkage: float) -> Precision:
    """Return the inverse covariance, finite even when every class has a single picture."""
    prior = PRIOR_SPREAD * float((statistics.means**2).sum(1).mean()) if len(statistics) else 1.0
    return Precision.of(statistics.scatter, shrinkage=shrinkage, prior_trace=prior)


@dataclass(frozen=True)
class Discriminant:
    """Linear discriminant analysis with equal priors: `score_c = weight_c . x + bias_c`.

    Attributes:
        weight: (C, F).
        bias: (C,).
        centre: mean of the class means, which distances are taken from, (F,).
    """

    weight: Array
    bias: Array
    centre: Array

    @classmethod
    def of(cls, means: Array, precision: Precision) -> Discriminant:
        """Fit to class means (C, F) and the inverse of their common covariance."""
        centre = means.mean(0)
        offsets = means - centre
        weight = precision.apply(offsets)
        bias = -0.5 * (offsets * weight).sum(1)
        return cls(weight, bias, centre)

    def scores(self, features: Array) -> Array:
        """Return log posteriors up to a constant per picture: (n, F) to (n, C)."""
        result: Array = (features - self.centre) @ self.weight.T + self.bias
        return result

    def rounded(self, bits: int) -> Discriminant:
        """Return the discriminant with weights of so many bits."""
        return replace(self, weight=rounded(self.weight, bits))

    def without(self, classes: Indices) -> Discriminant:
        """Return the discriminant with some classes deleted."""
        return Discriminant(np.delete(self.weight, classes, 0), np.delete(self.bias, classes), self.centre)


@dataclass(frozen=True)
class Branch:
    """What a task branch knows of its own classes.

    Attributes:
        classes: permanent class ids, in the order of the rows below, (C_t,).
        discriminant: over the branch's features of all blocks.
        prototypes: mean class token of each class in this branch, (C_t, D), for the published rule.
        weight: w, the branch's share in the answer within its task.
        temperature: divides the branch's scores before the softmax.
    """

    classes: Indices
    discriminant: Discriminant
    prototypes: Array
    weight: float
    temperature: float = 1.0

    def without(self, classes: set[int]) -> Branch:
        """Return the branch with some class ids deleted."""
        rows = np.flatnonzero([int(c) in classes for c in self.classes])
        return replace(
            self,
            classes=np.delete(self.classes, rows),
            discriminant=self.discriminant.without(rows),
            prototypes=np.delete(self.prototypes, rows, 0),
        )

    def posterior(self, scores: Array) -> Array:
        """Turn the discriminant's scores (n, C_t) into probabilities of the task's classes."""
        return softmax(scores / np.float32(self.temperature))

    def cosine(self, last: Array) -> Array:
        """Return the cosine of class tokens (n, D) to the prototypes, (n, C_t): the published score (eq. 14)."""
        unit = last / np.linalg.norm(last, axis=1, keepdims=True)
        prototypes = self.prototypes / np.linalg.norm(self.prototypes, axis=1, keepdims=True)
        result: Array = unit @ prototypes.T
        return result

    def to_numpy(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the tensors as they are stored."""
        return {
            "classes": self.classes,
            "weight": self.discriminant.weight,
            "bias": self.discriminant.bias,
            "centre": self.discriminant.centre,
            "prototypes": self.prototypes,
            "share": np.asarray([self.weight, self.temperature], np.float32),
        }

    @classmethod
    def from_numpy(cls, tensors: Tensors) -> Branch:
        """Rebuild a branch from what `to_numpy` gave."""
        get = {name: value.astype(np.float32) for name, value in tensors.items()}
        discriminant = Discriminant(get["weight"], get["bias"], get["centre"])
        weight, temperature = map(float, get["share"])
        return cls(tensors["classes"].astype(np.int64), discriminant, get["prototypes"], weight, temperature)


@dataclass(frozen=True)
class Exit:
    """What answers from the prefix alone, so that the suffix need not run.

    Attributes:
        head: over the prefix's features, without branches.
        confidence: probability of the best class above which an answer is sure: one from the prefix stands, one from
            the base branch needs no task branch.
    """

    head: Head
    confidence: float

    def answers(self, features: Array) -> tuple[Array, npt.NDArray[np.bool_], Array]:
        """Return class probabilities (n, C) of features (n, Fp or more), which stand, (n,), and `unknown_score`s, (n,).

        An answer stands if it is sure and the picture is not too far from what is known. The scores are of answers that
        stand, on the whole model's scale.
        """
        prefix = features[:, : len(self.head.discriminant.centre)]
        scores = self.head.discriminant.scores(prefix)
        distances = self.head.distance(prefix, scores)
        unknown = np.float32(EXIT_SHARE) * self.head.unknown_score(distances, scores.max(1))
        return *self.judge(scores, distances), unknown

    def judge(self, scores: Array, distances: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
        """Return probabilities and which stand, of the discriminant's scores (n, C) and the distances (n,)."""
        posterior = self.head.posterior_of(scores)
        return posterior, (posterior.max(1) > self.confidence) & (distances <= self.head.threshold)


@dataclass(frozen=True)
class Head:
    """Scores, routing, confidence and the unknown test over all classes known.

    Attributes:
        classes: permanent class ids, in the order of the statistics' rows, (C,).
        tasks: task of each class, (C,).
        discriminant: of the base branch.
        precision: inverse of the pooled covariance along its strongest directions, for the distance.
        branches: by task.
        temperature: divides the scores before the softmax.
        threshold: `distance` above which a picture is unknown.
        least_score: `whole` score of the best class below which it is unknown too. A picture that is no nearer to a
            class than to the mean of the class means has a score of 0 there, or less.
        routed: k, how many task branches a picture may be sent to.
        exit: what answers before the suffix, or None.
        quadratic: what the discriminant's scores gain by the classes' own covariances, or None.
    """

    classes: Indices
    tasks: Indices
    discriminant: Discriminant
    precision: Precision
    branches: Mapping[int, Branch] = field(default_factory=dict)
    temperature: float = 1.0
    threshold: float = float("inf")
    least_score: float = -float("inf")
    routed: int = 1
    exit: Exit | None = None
    quadratic: Quadratic | None = None

    @classmethod
    def of(
        cls,
        statistics: Statistics,
        classes: Indices,
        tasks: Indices,
        *,
        shrinkage: float,
        unknown_rank: int | None = UNKNOWN_RANK,
        spreads: Iterable[Spread] = (),
    ) -> Head:
        """Build the head of the base branch from its statistics.

        Args:
            statistics: of the base branch.
            classes: permanent class ids, (C,).
            tasks: task of each class, (C,).
            shrinkage: see `Precision.of`.
            unknown_rank: directions that the distance takes; None: all. The scores take all of them.
            spreads: of the classes; without any, the scores are linear.
        """
        precision = precision_of(statistics, shrinkage=shrinkage)
        made = Discriminant.of(statistics.means, precision)
        known = list(spreads)
        offsets = statistics.means - made.centre
        quadratic = Quadratic.of(made.weight, made.bias, offsets, classes, known) if known else None
        return cls(classes, tasks, made, precision.strongest(unknown_rank), quadratic=quadratic)

    def rounded(self, bits: int = WEIGHT_BITS) -> Head:
        """Return the head with matrices of few bits, as a bundle holds them: weights of `bits`, basis `BASIS_BITS`."""
        precision = replace(self.precision, basis=rounded(self.precision.basis, BASIS_BITS))
        return replace(self, discriminant=self.discriminant.rounded(bits), precision=precision)

    def base_posterior(self, features: Array) -> Array:
        """Return class probabilities by the base branch, (n, F) to (n, C)."""
        return self.posterior_of(self.discriminant.scores(features))

    def posterior_of(self, scores: Array) -> Array:
        """Return class probabilities of the discriminant's scores, (n, C) both."""
        return softmax(self.whole(scores) / np.float32(self.temperature))

    def whole(self, scores: Array) -> Array:
        """Return the discriminant's scores with what they gain by the classes' own covariances, (n, C) both."""
        return scores if self.quadratic is None else scores + self.quadratic.gain(scores)

    def distance(self, features: Array, scores: Array | None = None) -> Array:
        """Return the squared Mahalanobis distance to the nearest class mean, (n, F) to (n,).

        Where the precision has fewer directions than the scores were made with, it is larger by the features' spread
        along those left out, each weighted by its gain: the same for all classes.

        Args:
            features: (n, F).
            scores: the discriminant's of them, (n, C), where they are at hand.
        """
        scores = self.discriminant.scores(features) if scores is None else scores
        result: Array = self.precision.square(features - self.discriminant.centre) - 2 * scores.max(1)
        return result

    def unknown(self, distances: Array, best: Array) -> npt.NDArray[np.bool_]:
        """Return which pictures are unknown; what is no number is not near.

        Args:
            distances: `distance` of each, (n,).
            best: their best classes' `whole` scores, (n,).
        """
        return ~((distances <= self.threshold) & (best >= self.least_score))

    def unknown_score(self, distances: Array, best: Array) -> Array:
        """Return how unlike all that is known pictures are, (n,): those above 1 are `unknown`.

        It is the distance over the threshold or, where that is more, 1 and the nats that the best class lacks of the
        least score.

        Args:
            distances: as of `unknown`.
            best: likewise.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            far = np.fmax(distances / self.threshold, 1 + (self.least_score - best) / self.temperature)
        unknown = self.unknown(distances, best)  # whatever threshold and distance are
        result: Array = np.where(unknown, np.fmax(far, ABOVE), np.fmin(far, 1)).clip(-MOST, MOST).astype(np.float32)
        return result

    def route(self, posterior: Array) -> list[list[int]]:
        """Choose each picture's task branches: the most probable tasks, summing over their classes.

        Args:
            posterior: base posterior, (n, C).

        Returns:
            For each picture up to `routed` tasks that have a branch worth asking, most probable first.
        """
        tasks, members = self._membership
        order = np.argsort(-(posterior @ members), axis=1, kind="stable")[:, : self.routed]
        asked = {t for t, branch in self.branches.items() if branch.weight > 0 and len(branch.classes) > 1}
        return [[int(tasks[j]) for j in row if int(tasks[j]) in asked] for row in order]

    def unsure(self, posterior: Array) -> Indices:
        """Return which answers of the base branch, (n, C), a task branch should look at: all if there is no exit."""
        if self.exit is None:
            return np.arange(len(posterior))
        return np.flatnonzero(posterior.max(1) <= self.exit.confidence)

    def fuse(self, posterior: Array, task: int, scores: Array) -> Array:
        """Share one task's probability out by its branch.

        Args:
            posterior: of the pictures routed to the task, (n, C).
            task: which.
            scores: of the same pictures by that task's branch discriminant, (n, C_t).

        Returns:
            The new posterior, (n, C); its sum over every task is unchanged.
        """
        branch = self.branches[task]
        columns = self.columns(branch.classes)
        mass = posterior[:, columns].sum(1, keepdims=True)
        local = branch.posterior(scores)
        fused: Array = posterior.copy()
        fused[:, columns] = (1 - branch.weight) * posterior[:, columns] + branch.weight * mass * local
        return fused

    def columns(self, classes: Sequence[int] | Indices) -> Indices:
        """Return the columns of some class ids."""
        return np.asarray([self._columns[int(c)] for c in classes], np.int64)

    @cached_property
    def _columns(self) -> dict[int, int]:
        """Column by class id."""
        return {int(c): i for i, c in enumerate(self.classes)}

    @cached_property
    def _membership(self) -> tuple[Indices, Array]:
        """The tasks (T,), and which class belongs to which, (C, T) of ones and zeros."""
        tasks = np.unique(self.tasks)
        return tasks, (self.tasks[:, None] == tasks).astype(np.float32)
