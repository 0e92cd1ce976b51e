"""What a model is worth, measured on the hold-out features that stayed behind: accuracy, temperature, threshold.

Each probe helped to make its class mean (not the covariance), so before it is scored it is taken out of that mean
again, which has a closed form: the answer is the one the model would give had it never seen the picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from edge_cl.head import UNKNOWN_RANK, Branch, Head, precision_of, softmax
from edge_cl.model import Model
from edge_cl.statistics import Array, Indices

TEMPERATURES = np.geomspace(0.5, 200, 60)
SHRINKAGES = (0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
FEWEST_PROBES = 20  # that may choose the shrinkage
KNOWN_QUANTILE = 0.99  # share of known pictures that the unknown threshold lets pass


@dataclass(frozen=True)
class Assessment:
    """Hold-out accuracy of a model.

    Attributes:
        pictures: number of probes.
        per_class: accuracy by class id.
        per_task: accuracy by task.
        confusions: (class id, taken for class id, count), most frequent first.
    """

    pictures: int
    per_class: Mapping[int, float]
    per_task: Mapping[int, float]
    confusions: tuple[tuple[int, int, int], ...]

    def accuracy(self, tasks: set[int]) -> float | None:
        """Return the mean of some tasks' accuracies, or None where nothing was held out."""
        values = [a for t, a in self.per_task.items() if t in tasks]
        return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class _Scored:
    tasks: Indices
    targets: Indices  # columns of the head
    scores: Array  # base scores, own mean corrected, (P, C)
    distances: Array  # as the unknown test takes them, (P,)


def calibrated(model: Model) -> Model:
    """Return the model with temperature and unknown threshold fitted to its probes."""
    model = replace(model, unknown_rank=UNKNOWN_RANK)
    if not model.probes:
        return replace(model, temperature=1.0, threshold=float("inf"))
    scored = _score(model, model.head())
    temperature = fit_temperature(scored.scores, scored.targets)
    threshold = float(np.quantile(scored.distances, KNOWN_QUANTILE))
    return replace(model, temperature=temperature, threshold=threshold)


def with_best_shrinkage(model: Model) -> Model:
    """Return the model with the shrinkage under which its calibrated probes are most probable.

    Of equals the one nearest to the model's own is taken, which also stays where there are few probes.
    """
    own = model.config.shrinkage
    if sum(len(p.classes) for p in model.probes.values()) < FEWEST_PROBES:
        return model

    def trial(shrinkage: float) -> Model:
        return replace(model, config=replace(model.config, shrinkage=shrinkage))

    def loss(shrinkage: float) -> float:
        tried = trial(shrinkage)
        scored = _score(tried, tried.head())
        temperature = fit_temperature(scored.scores, scored.targets)
        return round(_surprise(scored.scores, scored.targets, temperature) / len(scored.targets), 3)

    nearest_first = sorted({own, *SHRINKAGES}, key=lambda s: abs(float(np.log(max(s, 1e-6) / max(own, 1e-6)))))
    return trial(min(nearest_first, key=loss))


def _surprise(scores: Array, targets: Indices, temperature: float) -> float:
    """Return the negative log-likelihood of the right columns (n,) under scores (n, C)."""
    likelihood = softmax(scores / np.float32(temperature))[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(likelihood, 1e-12)).sum())


def fit_temperature(scores: Array, targets: Indices, *, start: float | None = None) -> float:
    """Return the temperature with the least negative log-likelihood.

    Args:
        scores: (n, C).
        targets: right columns, (n,).
        start: pulls the result towards it with the strength of one picture, for small n.
    """

    def loss(temperature: float) -> float:
        pull = 0.0 if start is None else float(np.log(temperature / start)) ** 2
        return _surprise(scores, targets, temperature) + pull

    return float(min(TEMPERATURES, key=loss))


def assess(model: Model) -> Assessment:
    """Measure a model on its probes."""
    if not model.probes:
        return Assessment(0, {}, {}, ())
    head = model.head()
    scored = _score(model, head)
    answers = _answers(model, head, scored)
    right = answers == scored.targets
    ids = head.classes[scored.targets]
    wrong = list(zip(ids[~right], head.classes[answers[~right]], strict=True))
    pairs = {pair: wrong.count(pair) for pair in wrong}
    return Assessment(
        pictures=len(right),
        per_class={int(c): float(right[ids == c].mean()) for c in np.unique(ids)},
        per_task={int(t): float(right[scored.tasks == t].mean()) for t in np.unique(scored.tasks)},
        confusions=tuple((int(a), int(b), n) for (a, b), n in sorted(pairs.items(), key=lambda item: -item[1])),
    )


def _score(model: Model, head: Head) -> _Scored:
    probes = model.probes
    features = np.concatenate([p.features for p in probes.values()]).astype(np.float32)
    targets = head.columns(np.concatenate([p.classes for p in probes.values()]))
    tasks = np.concatenate([np.full(len(p.classes), t) for t, p in probes.items()])
    counts = model.statistics.counts[targets].astype(np.float32)[:, None]
    means = model.statistics.means[targets]
    own = np.where(counts > 1, (counts * means - features) / np.maximum(counts - 1, 1), means)
    offsets = own - head.discriminant.centre
    weights = precision_of(model.statistics, shrinkage=model.config.shrinkage).apply(offsets)
    x = features - head.discriminant.centre
    scores = head.discriminant.scores(features)
    scores[np.arange(len(targets)), targets] = (x * weights).sum(1) - 0.5 * (offsets * weights).sum(1)
    return _Scored(tasks, targets, scores, head.distance(features, scores))


def _answers(model: Model, head: Head, scored: _Scored) -> Indices:
    """Return the columns answered; a probe routed to another task's branch keeps the base answer."""
    posterior = softmax(scored.scores / np.float32(head.temperature))
    routes = head.route(posterior)
    for task, probes in model.probes.items():
        rows = np.flatnonzero(scored.tasks == task)
        own = [i for i, row in enumerate(rows) if task in routes[row]]
        if own:
            posterior[rows[own]] = head.fuse(posterior[rows[own]], task, probes.scores[own])
    return np.asarray(posterior.argmax(1), np.int64)


def weigh_branch(model: Model, branch: Branch, task: int, share: float) -> float:
    """Return a branch's share in the answer: `share`, or 0 where it would cost accuracy on its own hold-out."""
    if task not in model.probes or share == 0 or len(branch.classes) < 2:
        return 0.0
    scored: list[float] = []
    for weight in (0.0, share):
        trial = replace(model, branches={**model.branches, task: replace(branch, weight=weight)})
        scored.append(assess(trial).per_task.get(task, 0.0))
    return share if scored[1] >= scored[0] else 0.0
