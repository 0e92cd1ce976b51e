"""What a model is worth, measured on the hold-out features that stayed behind: accuracy, temperature, threshold.

Each probe helped to make its class mean and the covariance, so before it is scored it is taken out of both again,
which has a closed form: the answer is the one the model would give had it never seen the picture. For the unknown
test all are taken out at once, and what their classes vary in: its few directions of the covariance lie too near to the
pictures that made them, and pictures to come vary in other ways.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from edge_cl.calibration import calibration_error
from edge_cl.head import EXIT_BITS, UNKNOWN_RANK, WEIGHT_BITS, Branch, Exit, Head, precision_of, softmax
from edge_cl.model import ExitFit, Model
from edge_cl.statistics import Array, Indices, Statistics

TEMPERATURES = 0.5 * 400 ** (np.arange(83) / 59)  # in steps of 11 %, to 2000
SHRINKAGES = (0.03, 0.1, 0.2, 0.3, 0.5, 0.7)
FEWEST_PROBES = 20  # that may choose the shrinkage
CLASS_FOLDS = 4  # parts of the classes, each of which is measured by how the others vary
KNOWN_QUANTILE = 0.99  # share of known pictures that the unknown threshold lets pass
FEW_KNOWN = 100  # probes below which that quantile cannot be read off them
LEAST_KNOWN = 0.95  # share that each of both tests lets pass at least, whatever negatives and temperature say
MIDWAY = 1.5  # nats by which what is unknown is more probable midway between all classes than as one of them
EXIT_QUANTILE = 0.85  # share of known pictures that the exit's threshold lets pass: beyond it they only go on
NEGATIVE_QUANTILE = 0.01  # share of negatives that may pass the exit's
SOFT = 0.5  # mean probability of the right classes at which two squares are compared
MEANS_CONFIDENCE = 0.99  # of the class means in themselves, on average, at the temperature that fits begin from
MEANS_WORTH = 24  # pictures that this temperature counts as much as, where pictures were held out
ALIKE = 2.0  # log-odds that tell two class means apart, below which the classes are named as look-alikes
STILL = 0.1  # of how far class means are apart, below which a class's pictures hardly differ; in photo series 0.2
FEWEST_STILL = 3  # probes of a class that tell so
CLEARLY = 2.0  # standard errors by which a task branch has to win to be asked
EXIT_CONFIDENCES = (0.98, 0.99)  # tried for the exit, ...
EXIT_AGREEMENT = 0.99  # ... whose answers that stand have to be the whole model's so often


@dataclass(frozen=True)
class Assessment:
    """Hold-out accuracy of a model.

    Attributes:
        pictures: number of probes.
        per_class: accuracy by class id.
        per_task: accuracy by task.
        confusions: (class id, taken for class id, count), most frequent first.
        calibration: expected calibration error of the base branch at temperature 1, and at the model's; None where
            nothing was held out.
        false_rejects: share of the probes that are answered as unknown, likewise; what the exit answers is not.
        false_accepts: share of the negatives that are not; None where there are none.
        class_pictures: number of probes by class id.
    """

    pictures: int
    per_class: Mapping[int, float]
    per_task: Mapping[int, float]
    confusions: tuple[tuple[int, int, int], ...]
    calibration: tuple[float, float] | None = None
    false_rejects: float | None = None
    false_accepts: float | None = None
    class_pictures: Mapping[int, int] = field(default_factory=dict)

    def accuracy(self, tasks: set[int]) -> float | None:
        """Return the mean of some tasks' accuracies, or None where nothing was held out."""
        values = [a for t, a in self.per_task.items() if t in tasks]
        return float(np.mean(values)) if values else None


@dataclass(frozen=True)
class _Scored:
    tasks: Indices
    targets: Indices  # columns of the head
    scores: Array  # whole base scores, own mean corrected, (P, C)


def calibrated(model: Model) -> Model:
    """Return the model with temperature and unknown test fitted to its probes; it has no exit yet."""
    model = replace(model, unknown_rank=UNKNOWN_RANK, rounded=True, exit=None)
    if not model.probes:
        temperature = means_temperature(model.head(), model.statistics) if model.classes else 1.0
        return replace(model, temperature=temperature, threshold=float("inf"), least_score=-float("inf"))
    head = model.head()
    scored = _score(model, head, model.statistics)
    temperature = _temperature(head, model.statistics, scored)
    far, best = _of_negatives(model, head)
    threshold = _unknown_threshold(_distances(model, model.statistics), far)
    near = np.where(far > threshold, -np.inf, best)  # the distance tells the others
    least_score = _least_score(scored.scores.max(1), temperature, near)
    return replace(model, temperature=temperature, threshold=threshold, least_score=least_score)


def _distances(model: Model, statistics: Statistics, bits: int = WEIGHT_BITS, folds: int = CLASS_FOLDS) -> Array:
    """Return how far the probes are from what the model would know without any of them, (P,).

    Args:
        model: whose probes.
        statistics: the model's, or the prefix's.
        bits: of the weights of their head.
        folds: parts of the classes, each of which is measured without what its pictures vary in (1: with it).
    """
    added, features = _features(model, statistics.means.shape[1])
    column = {c.id: i for i, c in enumerate(model.classes)}
    labels = np.asarray([column[int(c)] for p in model.probes.values() for c in p.classes], np.int64)
    pooled = np.concatenate([p.pooled for p in model.probes.values()])
    without = statistics.without_pictures(added, labels, pooled)
    parts = min(folds, len(model.classes)) if model.spreads else 1
    distances = np.empty(len(labels), np.float32)
    kept = [own for s in model.spreads.values() for own in zip(s.classes, s.counts, s.rows, strict=True)]
    for part in range(parts):
        scatter, judged = without.scatter, labels % parts == part
        if parts > 1:
            told = [(int(n), rows) for c, n, rows in kept if column[int(c)] % parts == part]
            # What else these vary in stays: it must not be taken for that of the few pictures of the others.
            count = min(sum(n for n, _ in told), scatter.count // 2)
            scatter = scatter.without((rows.astype(np.float32) for _, rows in told), count=count)
        head = model.head_of(replace(without, scatter=scatter), bits)
        distances[judged] = head.distance(features[judged])
    return distances


def _features(model: Model, width: int) -> tuple[Array, Array]:
    """Return the first `width` features of the probes: as they joined the statistics, and as they are answered."""
    added, seen = (
        np.concatenate([every[t].features[:, :width] for t in model.probes]).astype(np.float32)
        for every in (model.probes, model.seen_probes)
    )
    return added, seen


def _of_negatives(model: Model, head: Head) -> tuple[Array, Array]:
    """Return how far the negatives are from what a head knows, and their best classes' whole scores, (M,) each."""
    negatives = model.seen_negatives
    if not len(negatives):
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    features = negatives[:, : len(head.discriminant.centre)].astype(np.float32)
    scores = head.discriminant.scores(features)
    return head.distance(features, scores), head.whole(scores).max(1)


def _unknown_threshold(known: Array, negative: Array) -> float:
    """Return the distance above which a picture is unknown.

    Without negatives `KNOWN_QUANTILE` of the probes pass, or, where these are too few to tell, of the normal
    distribution that they are a sample of (the prediction bound of Student's t). Negatives lower it to where probes
    rejected and negatives accepted are fewest, as shares, but let `LEAST_KNOWN` of the probes pass.

    Args:
        known: distances of the probes, (P,).
        negative: distances of the negatives, (M,).
    """
    lowest, highest = map(float, np.quantile(known, (LEAST_KNOWN, KNOWN_QUANTILE)))
    if len(known) < FEW_KNOWN:
        highest = max(highest, _prediction_bound(known))
    return _fewest_errors(known, negative, lowest, highest)


def _fewest_errors(known: Array, negative: Array, lowest: float, highest: float) -> float:
    """Return the bound above which probes are rejected, and negatives not accepted, with the fewest errors, as shares.

    Args:
        known: of the probes, (P,).
        negative: of the negatives, (M,).
        lowest: of the bounds.
        highest: likewise; the one without negatives.
    """
    if not len(negative):
        return highest
    values = np.unique(np.concatenate((known, negative)).astype(np.float64))
    midway = (values[1:] + values[:-1]) / 2  # between two of them, not at a negative itself
    tried = np.unique(np.append(midway, highest).clip(lowest, highest))[::-1]
    errors = [(known > limit).mean() + (negative <= limit).mean() for limit in tried]
    return float(tried[int(np.argmin(errors))])


def _least_score(known: Array, temperature: float, negative: Array) -> float:
    """Return the score of the best class below which a picture is unknown, however near it is.

    That is where it is `MIDWAY` nats less probable than what lies midway between all classes, which has a score of 0.
    What is like the classes known, but none of them, lies there; distances do not tell the two apart
    (docs/accuracy.md). Negatives raise it to where errors are fewest (see `_unknown_threshold`), to 0 at most: probes
    may have much higher scores than pictures to come. `LEAST_KNOWN` of the probes pass.

    Args:
        known: best scores of the probes, (P,).
        temperature: of the scores.
        negative: best scores of the negatives, (M,); of those that need none, minus infinity.
    """
    most = float(np.quantile(known, 1 - LEAST_KNOWN, method="lower"))
    return -_fewest_errors(-known, -negative, max(0.0, -most), max(MIDWAY * temperature, -most))


def _prediction_bound(sample: Array) -> float:
    """Return what the next of a normal distribution stays below with `KNOWN_QUANTILE`, given a sample of it (n,).

    Student's t is taken by the expansion of Cornish and Fisher, which is 7 % low at 3 degrees of freedom.
    """
    if (n := len(sample)) < 2:
        return float("inf")
    z, freedom = NormalDist().inv_cdf(KNOWN_QUANTILE), n - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return float(sample.mean() + t * sample.std(ddof=1) * np.sqrt(1 + 1 / n))


def with_exit(model: Model, width: int) -> Model:
    """Return a calibrated model with an exit fitted to its probes.

    It has none where there are few probes, or where no confidence makes the exit agree with the base branch.

    Args:
        model: calibrated.
        width: features of the prefix, Fp.
    """
    if sum(len(p.classes) for p in model.probes.values()) < FEWEST_PROBES:
        return model
    answers = _score(model, model.head(), model.statistics).scores.argmax(1)
    statistics = model.statistics.of_first(width)
    head = model.head_of(statistics, EXIT_BITS)
    scored, distances = _score(model, head, statistics), _distances(model, statistics, EXIT_BITS, folds=1)
    temperature = _temperature(head, statistics, scored)
    threshold = float(np.quantile(distances, EXIT_QUANTILE))
    negative, _ = _of_negatives(model, head)
    if len(negative):
        threshold = min(threshold, float(np.quantile(negative, NEGATIVE_QUANTILE)))
    head = replace(head, temperature=temperature, threshold=threshold)
    for confidence in EXIT_CONFIDENCES:
        posterior, stands = Exit(head, confidence).judge(scored.scores, distances)
        if stands.any() and (posterior.argmax(1) == answers)[stands].mean() >= EXIT_AGREEMENT:
            return replace(model, exit=ExitFit(width, temperature, threshold, confidence))
    return model


def with_best_shrinkage(model: Model) -> Model:
    """Return the model with the shrinkage under which its calibrated probes are most probable.

    Of equals the one nearest to the model's own is taken, which also stays where there are few probes.
    """
    own = model.config.shrinkage
    if sum(len(p.classes) for p in model.probes.values()) < FEWEST_PROBES:
        return model

    def trial(shrinkage: float) -> Model:
        return replace(model, config=replace(model.config, shrinkage=shrinkage), exit=None)

    def loss(shrinkage: float) -> float:
        tried = replace(trial(shrinkage), spreads={})  # of the common covariance, by the scores that it alone makes
        scored = _score(tried, tried.head(), tried.statistics)
        temperature = fit_temperature(scored.scores, scored.targets)
        return round(float(_nll(scored.scores, scored.targets, temperature).sum()) / len(scored.targets), 3)

    nearest_first = sorted({own, *SHRINKAGES}, key=lambda s: abs(float(np.log(max(s, 1e-6) / max(own, 1e-6)))))
    return trial(min(nearest_first, key=loss))


def on_better_square(model: Model) -> Model:
    """Return the model answering on the other square, own or closer, if its probes are recognised better there.

    Better by more than one standard error of the difference. Things that stand far away are recognised better on the
    closer square; of those that fill the frame it shows a part. It costs no pass: pictures are cut in another way.
    Where few probes, or not all, were seen on both squares, it is its own.
    """
    own = replace(model, closer=False, exit=None)
    closer = replace(own, closer=True)
    kept, seen = ({t: len(p.classes) for t, p in tried.seen_probes.items()} for tried in (own, closer))
    if sum(kept.values()) < FEWEST_PROBES or seen != kept or len(own.negatives) != len(own.closer_negatives):
        return own
    head = own.head()  # the closer square's too: it is made of the statistics alone
    here, there = (_score(tried, head, tried.statistics) for tried in (own, closer))
    temperature = soft_temperature(here.scores, here.targets)
    gain = _nll(here.scores, here.targets, temperature) - _nll(there.scores, there.targets, temperature)
    error = gain.std() / np.sqrt(len(gain))
    takes_closer = gain.mean() >= -error if model.closer else gain.mean() > error
    return closer if takes_closer else own


def soft_temperature(scores: Array, targets: Indices) -> float:
    """Return the highest temperature at which the right columns have `SOFT` of the probability on average.

    There a picture counts by how clearly it is told. At the temperature that suits them best nearly all are certain,
    and only the few that are not tell two ways of looking apart.

    Args:
        scores: (n, C).
        targets: right columns, (n,).
    """
    softest = (t for t in TEMPERATURES[::-1] if np.exp(-_nll(scores, targets, t)).mean() >= SOFT)
    return float(next(softest, TEMPERATURES[0]))


def _nll(scores: Array, targets: Indices, temperature: float) -> Array:
    """Return the negative log-likelihood of each right column (n,) under scores (n, C)."""
    likelihood = softmax(scores / np.float32(temperature))[np.arange(len(targets)), targets]
    result: Array = -np.log(np.maximum(likelihood, 1e-12))
    return result


def means_temperature(head: Head, statistics: Statistics) -> float:
    """Return the lowest temperature at which the class means are at most `MEANS_CONFIDENCE` sure of themselves.

    No picture lies as near to a class as its mean does, so pictures get less. It needs no picture that was held out,
    and is near the best for pictures to come (docs/accuracy.md).

    Args:
        head: over all classes.
        statistics: that it was made of.
    """
    scores = _scores_of_means(head, statistics)
    tried = np.geomspace(1, 1e6, 200)
    sure = (float(np.diag(softmax(scores / np.float32(t))).mean()) > MEANS_CONFIDENCE for t in tried)
    return float(next((t for t, above in zip(tried, sure, strict=True) if not above), 1.0))


def _temperature(head: Head, statistics: Statistics, scored: _Scored) -> float:
    """Return the temperature that suits the probes, held back towards that of the class means.

    Few probes tell little: where all are right, the sharper the better. Many are too easy, as they were taken with the
    training pictures.
    """
    start = means_temperature(head, statistics)
    return fit_temperature(scored.scores, scored.targets, start=start, worth=MEANS_WORTH)


def fit_temperature(scores: Array, targets: Indices, *, start: float | None = None, worth: float = 1.0) -> float:
    """Return the temperature with the least negative log-likelihood.

    Args:
        scores: (n, C).
        targets: right columns, (n,).
        start: pulls the result towards it, for small n.
        worth: w; the pull is w (log(T / start))^2 nats.
    """

    def loss(temperature: float) -> float:
        pull = 0.0 if start is None else worth * float(np.log(temperature / start)) ** 2
        return float(_nll(scores, targets, temperature).sum()) + pull

    return float(min(TEMPERATURES, key=loss))


def assess(model: Model) -> Assessment:
    """Measure a model on its probes."""
    if not model.probes:
        return Assessment(0, {}, {}, ())
    head = model.head()
    scored = _score(model, head, model.statistics)
    early = _early(model, head)
    answers = _answers(model, head, scored, early)
    right = answers == scored.targets
    ids = head.classes[scored.targets]
    wrong = list(zip(ids[~right], head.classes[answers[~right]], strict=True))
    pairs = {pair: wrong.count(pair) for pair in wrong}
    rejected = head.unknown(_distances(model, model.statistics), scored.scores.max(1))
    strange = head.unknown(*_of_negatives(model, head))
    if head.exit is not None and early is not None:  # what the exit answers is known
        rejected &= ~early[1]
        if len(strange):
            strange &= ~head.exit.answers(model.seen_negatives.astype(np.float32))[1]
    return Assessment(
        pictures=len(right),
        per_class={int(c): float(right[ids == c].mean()) for c in np.unique(ids)},
        per_task={int(t): float(right[scored.tasks == t].mean()) for t in np.unique(scored.tasks)},
        confusions=tuple((int(a), int(b), n) for (a, b), n in sorted(pairs.items(), key=lambda item: -item[1])),
        calibration=(_calibration_error(scored, 1.0), _calibration_error(scored, head.temperature)),
        false_rejects=float(rejected.mean()),
        false_accepts=float((~strange).mean()) if len(strange) else None,
        class_pictures={int(c): int((ids == c).sum()) for c in np.unique(ids)},
    )


def _calibration_error(scored: _Scored, temperature: float) -> float:
    posterior = softmax(scored.scores / np.float32(temperature))
    return calibration_error(posterior.max(1), posterior.argmax(1) == scored.targets)


def look_alikes(model: Model, task: int) -> list[tuple[int, int]]:
    """Return the classes of a task that hardly differ from one of another task, each with the nearest such, by id.

    They hardly differ if the mean of the one is at most `ALIKE` nats more probable as itself than as the other.
    """
    head = model.head()
    scores = _scores_of_means(head, model.statistics) / np.float32(head.temperature)
    margins = np.diag(scores)[:, None] - scores
    margins[:, head.tasks == task] = np.inf
    nearest = margins.argmin(1)
    return [
        (int(head.classes[i]), int(head.classes[nearest[i]]))
        for i in np.flatnonzero(head.tasks == task)
        if margins[i, nearest[i]] <= ALIKE
    ]


def hardly_varied(model: Model, classes: Collection[int]) -> list[int]:
    """Return which of some class ids are of classes whose probes hardly differ, as frames of a thing that stands still.

    They are recognised, whatever other views of the thing are. Differences are one minus the cosine of features.
    """
    if len(model.classes) < 2:
        return []
    least = STILL * _apart(model.statistics.means)
    found = []
    for probes in model.probes.values():
        for c in np.intersect1d(probes.classes, list(classes)):
            features = probes.features[probes.classes == c].astype(np.float32)
            if len(features) >= FEWEST_STILL and _apart(features) < least:
                found.append(int(c))
    return found


def _apart(features: Array) -> float:
    """Return one minus the cosine of features (n, F), mean of all pairs."""
    n, unit = len(features), features / np.linalg.norm(features, axis=1, keepdims=True)
    return n / (n - 1) * (1 - float((unit.mean(0) ** 2).sum()))


def _scores_of_means(head: Head, statistics: Statistics) -> Array:
    """Return the scores of the class means, (C, C)."""
    return head.whole(head.discriminant.scores(statistics.means))


def _score(model: Model, head: Head, statistics: Statistics) -> _Scored:
    """Score the probes by a head that was made of some statistics: the model's, or the prefix's."""
    probes, width = model.probes, statistics.means.shape[1]
    added, features = _features(model, width)
    targets = head.columns(np.concatenate([p.classes for p in probes.values()]))
    tasks = np.concatenate([np.full(len(p.classes), t) for t, p in probes.items()])
    counts = statistics.counts[targets].astype(np.float32)[:, None]
    means, centre = statistics.means[targets], head.discriminant.centre
    own = np.where(counts > 1, (counts * means - added) / np.maximum(counts - 1, 1), means)
    pooled = np.concatenate([p.pooled for p in probes.values()])[:, None]
    brought = pooled * np.sqrt((counts - 1) / counts) * (added - own)
    share = (1 - model.config.shrinkage) / max(statistics.scatter.count, 1)
    # It is taken out whole, with what the scatter no longer tells from the isotropic rest. That makes a probe harder
    # than another picture of its series, and a better guide to those of other series (docs/experiments.md).
    exact, x, offsets = precision_of(statistics, shrinkage=model.config.shrinkage), features - centre, own - centre
    out = exact.left_out(brought, share)
    scores = head.discriminant.scores(features) + out.scores(x, statistics.means - centre)
    weights = exact.apply(offsets) + (out.gain * (offsets * out.direction).sum(1))[:, None] * out.direction
    scores[np.arange(len(targets)), targets] = ((x - 0.5 * offsets) * weights).sum(1)
    return _Scored(tasks, targets, head.whole(scores))


def _early(model: Model, head: Head) -> tuple[Array, npt.NDArray[np.bool_]] | None:
    """Return the exit's class probabilities of the probes (P, C), and which stand (P,); None where there is no exit."""
    if head.exit is None:
        return None
    statistics = model.exit_statistics
    scores = _score(model, head.exit.head, statistics).scores
    return head.exit.judge(scores, _distances(model, statistics, EXIT_BITS, folds=1))


def _answers(model: Model, head: Head, scored: _Scored, early: tuple[Array, npt.NDArray[np.bool_]] | None) -> Indices:
    """Return the columns answered; a probe routed to another task's branch keeps the base answer."""
    posterior = softmax(scored.scores / np.float32(head.temperature))
    routes, unsure = head.route(posterior), set(head.unsure(posterior).tolist())
    for task, probes in model.seen_probes.items():
        rows = np.flatnonzero(scored.tasks == task)
        own = [i for i, row in enumerate(rows) if row in unsure and task in routes[row]]
        if own:
            posterior[rows[own]] = head.fuse(posterior[rows[own]], task, probes.scores[own])
    if early is not None:
        answers, stands = early
        posterior[stands] = answers[stands]
    return np.asarray(posterior.argmax(1), np.int64)


def weigh_branch(model: Model, branch: Branch, task: int, share: float) -> float:
    """Return a branch's share in the answer: `share`, or 0 where its own hold-out does not clearly win by it.

    Asking a branch takes half a pass through the backbone, so it has to win by more than chance does: by
    `CLEARLY` standard errors.
    """
    if task not in model.probes or share == 0 or len(branch.classes) < 2:
        return 0.0
    head = model.head()
    scored, early = _score(model, head, model.statistics), _early(model, head)
    own = scored.tasks == task

    def right(weight: float) -> Array:
        trial = replace(head, branches={**head.branches, task: replace(branch, weight=weight)})
        result: Array = (_answers(model, trial, scored, early) == scored.targets)[own].astype(np.float32)
        return result

    gain = right(share) - right(0.0)
    return share if gain.mean() > CLEARLY * gain.std() / np.sqrt(len(gain)) else 0.0
