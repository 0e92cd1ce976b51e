"""Assessment: probes are scored as if their pictures had never been seen, against dense recomputation."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from edge_cl import assessment
from edge_cl.architecture import BackboneSpec
from edge_cl.assessment import (
    CLASS_FOLDS,
    EXIT_CONFIDENCES,
    FEWEST_PROBES,
    MEANS_CONFIDENCE,
    MEANS_WORTH,
    MIDWAY,
    SHRINKAGES,
    TEMPERATURES,
    Assessment,
    _distances,
    _least_score,
    _score,
    _unknown_threshold,
    assess,
    calibrated,
    fit_temperature,
    look_alikes,
    means_temperature,
    on_better_square,
    soft_temperature,
    weigh_branch,
    with_best_shrinkage,
    with_exit,
)
from edge_cl.config import LearnConfig
from edge_cl.head import PRIOR_SPREAD, Branch, Discriminant, Exit, Head, softmax
from edge_cl.model import ExitFit, KnownClass, Model, Probes
from edge_cl.outcome import _notes
from edge_cl.preprocess import Preprocess
from edge_cl.spread import KEPT, Spread
from edge_cl.statistics import Array, Indices, Precision, Statistics

WIDTH = 6
IDS, TASKS = np.array([3, 5, 6, 9]), np.array([0, 0, 1, 1])
SPEC = BackboneSpec("test_vit", 32, 3, Preprocess(32))


@pytest.fixture(autouse=True)
def _all_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices that are not rounded, thresholds that are quantiles of few probes: references are exact."""
    monkeypatch.setattr(Head, "rounded", lambda self, bits=8: self)
    monkeypatch.setattr(assessment, "FEW_KNOWN", 0)


def half(rows: np.ndarray) -> Array:
    """Round to what half precision holds, so that stored probes are exactly the features that went in."""
    return rows.astype(np.float16).astype(np.float32)


def pictures(each: int, seed: int = 0, spread: float = 1.0) -> tuple[Array, Indices]:
    """Return features whose tasks lie further apart than the classes within them."""
    fixed, random = np.random.default_rng(99), np.random.default_rng(seed)
    centres = 1.5 * fixed.normal(size=(2, WIDTH))[TASKS] + 0.5 * fixed.normal(size=(4, WIDTH))
    labels = np.repeat(np.arange(4), each)
    return half(centres[labels] + spread * random.normal(size=(4 * each, WIDTH))), labels


def branch(task: int, weight: float = 0.0) -> Branch:
    identity = Precision(np.zeros((0, WIDTH), np.float32), np.zeros(0, np.float32), 1.0)
    discriminant = Discriminant.of(np.eye(2, WIDTH, dtype=np.float32), identity)
    return Branch(IDS[task == TASKS], discriminant, np.ones((2, 3), np.float32), weight)


def model(train: tuple[Array, Indices], held: tuple[Array, Indices], scores: Array | None = None) -> Model:
    """Return a model of two tasks whose hold-out pictures joined means and scatter, as in a learn."""
    statistics = Statistics.empty(WIDTH).add(*train).add(*held)
    probes = {}
    for task in (0, 1):
        rows = TASKS[held[1]] == task
        if rows.any():
            own = np.zeros((int(rows.sum()), 2), np.float32) if scores is None else scores[rows]
            probes[task] = Probes(held[0][rows].astype(np.float16), IDS[held[1][rows]], own, np.ones(len(own), bool))
    classes = tuple(KnownClass(int(i), f"class {i}", int(t), 9) for i, t in zip(IDS, TASKS, strict=True))
    return Model(
        SPEC,
        LearnConfig(shrinkage=0.2),
        statistics,
        classes,
        {0: "a", 1: "b"},
        branches={task: branch(task) for task in (0, 1)},
        probes=probes,
    )


def distances_without(
    train: tuple[Array, Indices],
    held: tuple[Array, Indices],
    probe: int,
    shrinkage: float = 0.2,
    seen: Array | None = None,
) -> np.ndarray:
    """Return a probe's squared distances to the means of all classes made without it, in double precision.

    The covariance is without it too; the number that its sum is divided by, and its isotropic part, are not.
    """
    everything = np.concatenate([train[0], held[0]]).astype(np.float64)
    labels = np.concatenate([train[1], held[1]])
    means = np.stack([everything[labels == c].mean(0) for c in range(4)])
    prior = PRIOR_SPREAD * (means**2).sum(1).mean() / ((len(labels) + 1) * WIDTH)
    deviations = everything - means[labels]
    isotropic = shrinkage * (deviations**2).sum() / len(labels) / WIDTH + prior
    left = np.arange(len(labels)) != len(train[0]) + probe
    own = held[1][probe]
    if (left & (labels == own)).any():
        means[own] = everything[left & (labels == own)].mean(0)
    deviations = (everything - means[labels])[left]
    covariance = deviations.T @ deviations / len(labels)
    shrunk = (1 - shrinkage) * covariance + isotropic * np.eye(WIDTH)
    offsets = (held[0] if seen is None else seen)[probe] - means
    result: np.ndarray = np.einsum("cf,fg,cg->c", offsets, np.linalg.inv(shrunk), offsets)
    return result


def test_for_the_unknown_test_classes_vary_as_the_others_do() -> None:
    """What a class's own pictures vary in is taken out: pictures to come vary in other ways."""
    train, held = pictures(20), pictures(5, seed=1)
    stretch = np.where(train[1] % 2 == 0, 4.0, 1.0)[:, None]  # every second class varies more than the others
    means = np.stack([train[0][train[1] == c].mean(0) for c in range(4)])
    wide = half(means[train[1]] + stretch * (train[0] - means[train[1]])), train[1]
    whole = model(wide, held)
    rows = {task: np.flatnonzero(TASKS[wide[1]] == task) for task in (0, 1)}
    spreads = {t: Spread.empty(WIDTH).add(wide[0][None, i], IDS[wide[1][i]]) for t, i in rows.items()}
    taught = replace(whole, spreads=spreads, unknown_rank=64)
    apart, together = _distances(taught, taught.statistics, folds=2), _distances(taught, taught.statistics, folds=1)
    for part in (0, 1):
        others = wide[1] % 2 != part
        alone = Statistics.empty(WIDTH).add(*wide)
        alone = replace(alone, scatter=Statistics.empty(WIDTH).add(wide[0][others], wide[1][others] // 2).scatter)
        judged = held[1] % 2 == part
        expected = replace(taught, statistics=alone).head().distance(held[0])[judged]
        np.testing.assert_allclose(apart[judged], expected, rtol=0.02)
    of_wide = held[1] % 2 == 0
    assert np.median(apart[of_wide]) > 3 * np.median(together[of_wide])
    distances = _distances(taught, taught.statistics, folds=CLASS_FOLDS)
    assert calibrated(taught).threshold == pytest.approx(np.quantile(distances, 0.99), rel=1e-3)


def test_only_the_pictures_that_a_class_s_own_directions_are_of_are_taken_out() -> None:
    """Of classes of earlier releases that got more pictures, the directions are of these alone."""
    train, held = pictures(40), pictures(3, seed=1)
    spreads = {}
    for task in (0, 1):
        rows = np.concatenate([np.flatnonzero(train[1] == c)[:2] for c in range(4) if TASKS[c] == task])
        spreads[task] = Spread.empty(WIDTH).add(train[0][None, rows], IDS[train[1][rows]])
    taught = replace(model(train, held), spreads=spreads)
    together, apart = (_distances(taught, taught.statistics, folds=n) for n in (1, 2))
    np.testing.assert_allclose(apart, together, rtol=0.2)


def test_a_class_of_most_pictures_leaves_its_rest_to_as_many() -> None:
    """Counted as that of the few pictures of the others, it made every known picture look unknown."""
    some = np.concatenate([np.arange(60), [60, 120, 180]])  # sixty of one class, one of each other
    train, held = pictures(60), pictures(5, seed=1)
    features, labels = train[0][some], train[1][some]
    whole = model((features, labels), held)
    rows = {task: np.flatnonzero(TASKS[labels] == task) for task in (0, 1)}
    spreads = {t: Spread.empty(WIDTH).add(features[None, i], IDS[labels[i]]) for t, i in rows.items()}
    strongest = (np.arange(KEPT) < 1)[:, None]
    found = replace(whole, spreads={t: replace(s, rows=s.rows * strongest) for t, s in spreads.items()})
    of_most = held[1] == 0
    apart, together = (_distances(found, found.statistics, folds=folds)[of_most] for folds in (CLASS_FOLDS, 1))
    assert np.median(apart) > 0.7 * np.median(together)


def test_probes_of_earlier_releases_were_in_the_means_alone() -> None:
    """They are taken out of nothing else."""
    train, held = pictures(20), pictures(3, seed=1)
    whole = model(train, held)
    means, counts = whole.statistics.means, whole.statistics.counts
    statistics = Statistics(means, counts, Statistics.empty(WIDTH).add(*train).scatter)
    probes = {t: replace(p, pooled=np.zeros(len(p.pooled), bool)) for t, p in whole.probes.items()}
    unpooled = calibrated(replace(whole, statistics=statistics, probes=probes))
    without = Statistics.empty(WIDTH).add(*train)
    distances = replace(unpooled, statistics=without).head().distance(held[0])
    assert unpooled.threshold == pytest.approx(np.quantile(distances, 0.99), rel=1e-3)
    assert unpooled.threshold < calibrated(replace(unpooled, probes=whole.probes)).threshold


@pytest.mark.parametrize("each", [1, 3, 20])
def test_probes_are_scored_as_if_never_seen(each: int) -> None:
    train, held = pictures(each), pictures(3, seed=1, spread=2.0)
    whole = model(train, held)
    references = [distances_without(train, held, probe) for probe in range(len(held[0]))]

    for probe, reference in enumerate(references):
        task = TASKS[held[1][probe]]
        row = np.flatnonzero(np.flatnonzero(TASKS[held[1]] == task) == probe)
        chosen = np.isin(np.arange(len(whole.probes[task].classes)), row)
        alone = replace(whole, probes={task: whole.probes[task].select(chosen, np.ones(2, bool))})
        assert assess(alone).per_class == {IDS[held[1][probe]]: float(reference.argmin() == held[1][probe])}

    answers = np.array([reference.argmin() for reference in references])
    right = answers == held[1]
    measured = assess(whole)
    assert 0 < right.sum() < len(right)
    assert measured.pictures == 12
    assert measured.per_class == {int(IDS[c]): pytest.approx(right[held[1] == c].mean()) for c in range(4)}
    assert measured.per_task == {t: pytest.approx(right[TASKS[held[1]] == t].mean()) for t in (0, 1)}
    pairs = [(IDS[a], IDS[b]) for a, b in zip(held[1][~right], answers[~right], strict=True)]
    assert {(a, b): n for a, b, n in measured.confusions} == {pair: pairs.count(pair) for pair in pairs}
    counts = [n for _, _, n in measured.confusions]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("each", [1, 3, 20])
@pytest.mark.parametrize("closer", [False, True])
def test_the_unknown_test_is_fitted_to_what_would_be_known_without_any_probe(each: int, closer: bool) -> None:
    train, held, (seen, _) = pictures(each), pictures(3, seed=1, spread=2.0), pictures(3, seed=2, spread=2.0)
    whole = replace(on_squares(held, seen, train), closer=closer)
    without = replace(whole, statistics=Statistics.empty(WIDTH).add(*train))
    distances = without.head().distance(seen if closer else held[0])
    found = calibrated(whole)
    assert found.threshold == pytest.approx(np.quantile(distances, 0.99), rel=1e-3)
    assert found.threshold > 1.05 * np.quantile(whole.head().distance(seen if closer else held[0]), 0.99)
    halves = replace(found, threshold=float(np.median(distances)), least_score=-float("inf"))
    assert assess(halves).false_rejects == 0.5


def test_what_scores_gain_by_a_class_of_its_own_is_without_the_picture_too() -> None:
    """With a gain of scores that the picture helped to make, four in ten pictures of real classes were told worse."""
    train, held = pictures(30), pictures(8, seed=1)
    wide = (2 * train[0] - train[0].mean(0), train[1])
    whole = model(wide, held)
    rows = {task: np.flatnonzero(TASKS[train[1]] == task) for task in (0, 1)}
    spreads = {t: Spread.empty(WIDTH).add(4 * train[0][None, i], IDS[train[1][i]]) for t, i in rows.items()}
    head = replace(whole, spreads=spreads).head()
    assert head.quadratic is not None
    scores, alone = (_score(whole, h, whole.statistics).scores for h in (head, replace(head, quadratic=None)))
    assert np.abs(scores - alone).max() > 0.1
    np.testing.assert_allclose(scores, alone + head.quadratic.gain(alone), rtol=1e-5, atol=1e-5)


def on_squares(held: tuple[Array, Indices], seen: Array, train: tuple[Array, Indices]) -> Model:
    """Return a model whose hold-out pictures have other features on the closer square."""
    whole = model(train, held)
    rows = {task: TASKS[held[1]] == task for task in whole.probes}
    near = {t: replace(p, features=seen[rows[t]].astype(np.float16)) for t, p in whole.probes.items()}
    return replace(whole, closer_probes=near)


@pytest.mark.parametrize("each", [1, 3, 20])
def test_on_the_closer_square_probes_are_scored_as_if_never_seen(each: int) -> None:
    """What is taken out of means and covariance is what went in, on the other square."""
    train, held, (seen, _) = pictures(each), pictures(3, seed=1, spread=2.0), pictures(3, seed=2, spread=2.0)
    whole = replace(on_squares(held, seen, train), closer=True)
    references = [distances_without(train, held, probe, seen=seen) for probe in range(len(held[0]))]
    right = np.array([reference.argmin() for reference in references]) == held[1]
    assert assess(whole).per_task == {t: pytest.approx(right[TASKS[held[1]] == t].mean()) for t in (0, 1)}


def drawn_apart(held: tuple[Array, Indices], by: float) -> Array:
    """Return hold-out pictures whose classes lie further apart, or, by less than nothing, nearer together."""
    means = np.stack([held[0][held[1] == c].mean(0) for c in range(4)])
    return half(held[0] + by * (means - means.mean(0))[held[1]])


@pytest.mark.parametrize(
    ("by", "first", "later"),
    [(0.4, True, True), (0.0, False, True), (-0.4, False, False)],
    ids=["better: the closer one", "the same: it stays", "worse: the own one"],
)
def test_the_square_on_which_probes_are_told_better_is_answered_on(by: float, first: bool, later: bool) -> None:
    train, held = pictures(20), pictures(8, seed=1)
    found = on_squares(held, drawn_apart(held, by), train)
    assert on_better_square(found).closer == first
    assert on_better_square(replace(found, closer=True)).closer == later


def test_only_a_change_of_the_square_is_noted() -> None:
    train, held = pictures(20), pictures(8, seed=1)
    own = on_squares(held, held[0], train)
    closer = replace(own, closer=True)
    intake = SimpleNamespace(new=(), known=())
    for old, new, words in (
        (own, closer, ["now answered on a closer square"]),
        (closer, closer, []),
        (closer, own, ["on the wider square again"]),
        (own, own, []),
    ):
        learned: Any = SimpleNamespace(model=new, task=None, epochs=1, intake=intake)
        notes = [note for note in _notes(old, learned, assess(new)) if "square" in note]
        assert len(notes) == len(words) and all(word in note for word, note in zip(words, notes, strict=True))


def test_a_square_is_chosen_among_those_that_enough_probes_were_seen_on() -> None:
    train, held = pictures(20), pictures(8, seed=1)
    found = replace(on_squares(held, drawn_apart(held, 0.4), train), closer=True)
    assert on_better_square(found).closer
    assert not on_better_square(replace(found, closer_probes={})).closer  # of an earlier release
    assert not on_better_square(replace(found, closer_probes={0: found.closer_probes[0]})).closer
    assert not on_better_square(replace(found, negatives=held[0].astype(np.float16))).closer
    few = pictures(FEWEST_PROBES // 4 - 1, seed=1)
    assert not on_better_square(replace(on_squares(few, drawn_apart(few, 0.4), train), closer=True)).closer


def test_soft_temperature_leaves_the_right_classes_half_of_the_probability() -> None:
    scores, targets = np.random.default_rng(0).normal(0, 30, (200, 9)).astype(np.float32), np.arange(200) % 9
    scores[np.arange(200), targets] += 100
    found = soft_temperature(scores, targets)
    above = TEMPERATURES[np.searchsorted(TEMPERATURES, found) + 1]
    shares = [softmax(scores / np.float32(t))[np.arange(200), targets].mean() for t in (found, above)]
    assert shares[0] >= 0.5 > shares[1]
    assert soft_temperature(-scores, targets) == TEMPERATURES[0]  # none leaves them so much


def test_threshold_is_fitted_to_the_distance_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    train, held = pictures(20), pictures(6, seed=1)
    whole = replace(model(train, held), unknown_rank=None)
    monkeypatch.setattr("edge_cl.assessment.UNKNOWN_RANK", None)
    exact = calibrated(whole)
    monkeypatch.setattr("edge_cl.assessment.UNKNOWN_RANK", 2)
    found = calibrated(whole)
    assert (exact.unknown_rank, found.unknown_rank) == (None, 2)
    assert (found.head().precision.basis.shape, found.temperature) == ((2, WIDTH), exact.temperature)
    without = Statistics.empty(WIDTH).add(*train)
    for fitted in (exact, found):
        distances = replace(fitted, statistics=without).head().distance(held[0])
        assert fitted.threshold == pytest.approx(np.quantile(distances, 0.99), rel=1e-3)
    assert found.threshold > 1.1 * exact.threshold


def test_outlier_does_not_vouch_for_itself() -> None:
    train = pictures(3)
    outlier = half(0.45 * train[0][:3].mean(0) + 0.55 * train[0][3:6].mean(0))[None]
    held = outlier, np.array([0])  # labelled 0, but nearer to class 1
    found = model(train, held)
    assert assess(found).confusions == ((3, 5, 1),)
    # Left in its own mean, which it draws towards itself, it would have looked right.
    assert found.head().base_posterior(outlier).argmax() == 0


def test_only_picture_of_a_class_keeps_its_mean() -> None:
    train, labels = pictures(3)
    seen = np.array([*range(9), 9])  # all of three classes, one of the fourth
    found = model((train[seen], labels[seen]), (train[9:10], labels[9:10]))
    found = calibrated(replace(found, statistics=Statistics.empty(WIDTH).add(train[seen], labels[seen])))
    assert found.threshold == pytest.approx(0, abs=1e-3)
    assert assess(found).per_class == {9: 1.0}


@pytest.mark.parametrize("temperature", [0.8, 3.0, 25.0, 150.0])
def test_known_temperature_is_recovered(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits = 2 * random.normal(size=(4000, 5))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = (random.random((4000, 1)) > probabilities.cumsum(1)).sum(1)
    found = fit_temperature((temperature * logits).astype(np.float32), targets)
    assert found == pytest.approx(temperature, rel=0.12)  # the grid's steps are 11 %


@pytest.mark.parametrize(("n", "beyond"), [(2, None), (4, 0.06), (8, 0.01), (40, 1e-3), (99, 1e-4), (100, 0.0)])
def test_few_probes_leave_the_unknown_threshold_room(
    monkeypatch: pytest.MonkeyPatch, n: int, beyond: float | None
) -> None:
    """It is the prediction bound of Student's t, a little low where there are very few, until the quantile is known."""
    monkeypatch.setattr(assessment, "FEW_KNOWN", 100)
    known = np.random.default_rng(0).normal(50, 5, n).astype(np.float32)
    found = assessment._unknown_threshold(known, np.zeros(0, np.float32))
    quantile = float(np.quantile(known, 0.99))
    bound = known.mean() + stats.t.ppf(0.99, n - 1) * known.std(ddof=1) * np.sqrt(1 + 1 / n)
    if n == 100:
        assert found == pytest.approx(quantile, rel=1e-6)
    elif beyond is None:
        assert quantile < found < bound  # 31.8 standard deviations would reject nothing
    else:
        assert found == pytest.approx(max(bound, quantile), rel=beyond)
    assert assessment._unknown_threshold(known[:1], np.zeros(0, np.float32)) == np.inf


@pytest.mark.parametrize(
    ("n", "worth", "lowest", "highest"),
    [(1, 1, 3.5, 20.1), (300, 1, 0.5, 0.5), (6, 24, 17.0, 20.1), (3000, 24, 0.5, 0.5)],
)
def test_start_holds_few_pictures_back(n: int, worth: float, lowest: float, highest: float) -> None:
    scores, targets = np.tile(np.float32([[1, 0]]), (n, 1)), np.zeros(n, np.int64)  # always right: as sharp as can be
    assert fit_temperature(scores, targets) == TEMPERATURES[0]
    assert lowest <= fit_temperature(scores, targets, start=20.0, worth=worth) <= highest


def test_calibration_takes_the_temperature_of_the_probes_and_of_the_class_means() -> None:
    train, held = pictures(20), pictures(8, seed=1, spread=3.0)
    found = calibrated(model(train, held))
    scores = np.stack([-0.5 * distances_without(train, held, probe) for probe in range(len(held[0]))])
    own = means_temperature(found.head(), found.statistics)
    expected = fit_temperature(scores.astype(np.float32), held[1], start=own, worth=MEANS_WORTH)
    assert found.temperature == pytest.approx(expected, rel=1e-6)
    assert min(own, best := fit_temperature(scores.astype(np.float32), held[1])) < expected < max(own, best)
    assert found.head().temperature == found.temperature
    assert found.head().threshold == found.threshold


def test_without_probes_nothing_is_claimed() -> None:
    empty = replace(model(pictures(3, spread=0.1), pictures(1)), probes={}, temperature=7.0, threshold=3.0)
    assert assess(empty) == Assessment(0, {}, {}, ())
    found = calibrated(empty)
    assert (found.threshold, found.least_score) == (float("inf"), -float("inf"))
    # Nor that class means, which no picture is as near to, are surer than `MEANS_CONFIDENCE` of themselves.
    scores = found.head().discriminant.scores(found.statistics.means)
    assert found.temperature == means_temperature(found.head(), found.statistics) > 1
    own = np.diag(softmax(scores / found.temperature)).mean()
    assert MEANS_CONFIDENCE - 0.01 < own <= MEANS_CONFIDENCE


@pytest.mark.parametrize(
    ("tasks", "accuracy"), [({0}, 0.5), ({1}, 1.0), ({0, 1}, 0.75), ({0, 1, 7}, 0.75), ({7}, None), (set(), None)]
)
def test_accuracy_over_some_tasks(tasks: set[int], accuracy: float | None) -> None:
    assert Assessment(10, {}, {0: 0.5, 1: 1.0}, ()).accuracy(tasks) == accuracy


def with_scores(right: bool) -> tuple[Model, Branch]:
    """Return a model whose branch of task 1 gets each of its probes right, or wrong."""
    train, held = pictures(20), pictures(6, seed=1, spread=2.0)
    local = np.where(held[1] % 2 == 0, 0, 1)
    scores = np.where(np.arange(2) == (local if right else 1 - local)[:, None], 50, -50).astype(np.float32)
    found = replace(model(train, held, scores), temperature=20.0)
    return found, found.branches[1]


@pytest.mark.parametrize("right", [True, False])
def test_branch_answers_for_the_probes_sent_to_it_alone(right: bool) -> None:
    found, branch_1 = with_scores(right)
    train, held = pictures(20), pictures(6, seed=1, spread=2.0)
    rows = np.flatnonzero(TASKS[held[1]] == 1)
    scores = np.stack([-0.5 * distances_without(train, held, probe) for probe in rows]).astype(np.float32)
    sent = softmax(scores / found.temperature)[:, 2:].sum(1) > 0.5
    base = scores.argmax(1) == held[1][rows]
    assert set(zip(sent, base, strict=True)) >= {(True, True), (True, False), (False, False)}
    sure = replace(found, branches={**found.branches, 1: replace(branch_1, weight=1.0)})
    assert assess(found).per_task[1] == pytest.approx(base.mean())
    assert assess(sure).per_task[1] == pytest.approx(np.where(sent, right, base).mean())
    assert assess(sure).per_task[0] == assess(found).per_task[0]


@pytest.mark.parametrize(("right", "share", "weight"), [(True, 1.0, 1.0), (True, 0.0, 0.0), (False, 1.0, 0.0)])
def test_branch_has_its_share_only_where_it_does_not_cost(right: bool, share: float, weight: float) -> None:
    found, branch_1 = with_scores(right)
    assert weigh_branch(found, branch_1, 1, share) == weight


@pytest.mark.parametrize(("mended", "weight"), [(4, 0.0), (5, 1.0)])
def test_branch_has_to_win_more_than_chance_does(mended: int, weight: float) -> None:
    """Of as many probes as there are, k won and none lost are sqrt(k) standard errors, and a little more."""
    train, held = pictures(20), pictures(40, seed=1, spread=2.0)
    base = np.stack([-0.5 * distances_without(train, held, probe) for probe in range(len(held[0]))])
    wrong = np.flatnonzero((TASKS[held[1]] == 1) & (TASKS[base.argmax(1)] == 1) & (base.argmax(1) != held[1]))
    answers = base[:, 2:].argmax(1)
    answers[wrong[:mended]] = held[1][wrong[:mended]] % 2
    found = model(train, held, np.where(np.arange(2) == answers[:, None], 50, -50).astype(np.float32))
    assert len(wrong) > 5
    assert weigh_branch(replace(found, temperature=20.0), found.branches[1], 1, 1.0) == weight


def test_branch_that_wins_nothing_has_no_share() -> None:
    """The base branch is right already: the task's would cost half a pass for the same answers."""
    train, held = pictures(20, spread=0.1), pictures(6, seed=1, spread=0.1)
    scores = np.where(np.arange(2) == (held[1] % 2)[:, None], 50, -50).astype(np.float32)
    found = model(train, held, scores)
    assert assess(found).per_task[1] == 1.0
    assert weigh_branch(found, found.branches[1], 1, 1.0) == 0


def test_branch_without_hold_out_or_choice_has_no_share() -> None:
    found, branch_1 = with_scores(right=True)
    assert weigh_branch(replace(found, probes={0: found.probes[0]}), branch_1, 1, 0.5) == 0
    assert weigh_branch(found, branch_1.without({9}), 1, 0.5) == 0


def surprise_without(train: tuple[Array, Indices], held: tuple[Array, Indices], shrinkage: float) -> float:
    """Return the least mean negative log-likelihood over temperatures, each picture left out, in double precision."""
    scores = -0.5 * np.stack([distances_without(train, held, i, shrinkage) for i in range(len(held[0]))])
    losses = []
    for temperature in TEMPERATURES:
        logits = scores / temperature
        logits -= logits.max(1, keepdims=True)
        likelihood = logits[np.arange(len(logits)), held[1]] - np.log(np.exp(logits).sum(1))
        losses.append(-likelihood.mean())
    return float(min(losses))


@pytest.mark.parametrize(
    ("each", "stretch", "least", "most"),
    [(40, (8, 4, 2, 1, 0.5, 0.25), 0.03, 0.1), (2, (1, 1, 1, 1, 1, 1), 0.2, 0.7)],
    ids=["many elongated pictures: little", "few round ones: much"],
)
def test_shrinkage_under_which_the_left_out_are_most_probable(
    each: int, stretch: tuple[float, ...], least: float, most: float
) -> None:
    train, held = ((half(x * np.asarray(stretch)), y) for x, y in (pictures(each), pictures(12, seed=1)))
    chosen = with_best_shrinkage(model(train, held)).config.shrinkage
    losses = {shrinkage: surprise_without(train, held, shrinkage) for shrinkage in (0.2, *SHRINKAGES)}
    assert losses[chosen] == pytest.approx(min(losses.values()), abs=2e-3)
    assert least <= chosen <= most


def test_few_probes_and_equals_leave_the_shrinkage() -> None:
    train = pictures(10)
    few = model(train, pictures(FEWEST_PROBES // 4 - 1, seed=1))
    assert with_best_shrinkage(few) is few
    apart = (half(train[0] + 100 * np.eye(4, WIDTH)[train[1]]), train[1])
    sure = model(apart, apart)  # every shrinkage is certain of every picture
    assert with_best_shrinkage(sure).config.shrinkage == 0.2


def clear() -> Model:
    """Return a model whose classes are far apart."""
    return model(pictures(20, spread=0.1), pictures(8, seed=1, spread=0.1))


def test_the_exit_is_fitted_where_it_agrees_with_the_whole_model() -> None:
    width = WIDTH // 2
    found = with_exit(calibrated(clear()), width)
    assert found.exit is not None and found.exit.confidence in EXIT_CONFIDENCES and found.exit.width == width
    head = found.head()
    assert head.exit is not None
    features = np.concatenate([p.features for p in found.probes.values()]).astype(np.float32)
    posterior, stands, _ = head.exit.answers(features)
    agrees = posterior.argmax(1) == head.base_posterior(features).argmax(1)
    assert stands.mean() > 0.5 and agrees[stands].all()
    assert (head.exit.head.distance(features[:, :width])[stands] <= found.exit.threshold).all()
    assert calibrated(found).exit is None  # it has to be fitted anew

    stored = found.state()
    assert ExitFit(**stored["exit"]) == found.exit
    assert calibrated(found).state()["exit"] is None


def test_an_exit_that_errs_or_has_few_probes_is_none() -> None:
    few = calibrated(model(pictures(10), pictures(FEWEST_PROBES // 4 - 1, seed=1)))
    assert with_exit(few, WIDTH // 2) is few
    train, held = pictures(20, spread=0.5), pictures(8, seed=1, spread=0.5)
    noise = np.random.default_rng(5)
    for rows, _ in (train, held):
        rows[:, : WIDTH // 2] = half(noise.normal(size=(len(rows), WIDTH // 2)))  # nothing of the classes is in them
    blind = calibrated(model(train, held))
    assert with_exit(blind, WIDTH // 2).exit is None
    assert with_exit(blind, WIDTH).exit is not None


def test_hold_out_answers_take_the_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_exit(calibrated(clear()), WIDTH // 2)
    assert assess(found).per_class == {int(c): 1.0 for c in IDS}
    wrong = Exit.judge

    def judge(self: Exit, scores: Array, distances: Array) -> tuple[Array, np.ndarray]:
        posterior, stands = wrong(self, scores, distances)
        return np.roll(posterior, 1, 1), stands

    monkeypatch.setattr(Exit, "judge", judge)
    assert sum(assess(found).per_class.values()) < len(IDS)


def test_what_the_exit_answers_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    far = half(np.random.default_rng(8).normal(size=(30, WIDTH)) * 5).astype(np.float16)
    found = with_exit(calibrated(replace(clear(), negatives=far)), WIDTH // 2)
    judge = Exit.judge

    def odd_ones(self: Exit, scores: Array, distances: Array) -> tuple[Array, np.ndarray]:
        return judge(self, scores, distances)[0], np.arange(len(scores)) % 2 == 1

    monkeypatch.setattr(Exit, "judge", odd_ones)
    nothing_passes, all_passes = replace(found, threshold=-1.0), replace(found, threshold=float("inf"))
    assert (assess(nothing_passes).false_rejects, assess(nothing_passes).false_accepts) == (0.5, 0.5)
    assert (assess(replace(nothing_passes, exit=None)).false_rejects, assess(all_passes).false_rejects) == (1, 0)


def test_negatives_tighten_the_unknown_test_but_not_without_bounds() -> None:
    known = np.linspace(0, 1, 101).astype(np.float32)
    nothing = np.zeros(0, np.float32)
    assert _unknown_threshold(known, nothing) == pytest.approx(0.99)
    apart = _unknown_threshold(known, np.float32([0.97, 3, 4]))  # rejecting two probes more spares a third of them
    assert 0.96 <= apart < 0.97
    assert _unknown_threshold(known, np.float32([2, 3])) == pytest.approx(0.99)  # nothing to gain
    assert _unknown_threshold(known, np.float32([0.1, 0.2, 0.3])) == pytest.approx(0.99)  # cannot be had
    assert _unknown_threshold(known, np.float32([0.1, 0.951])) == pytest.approx(0.951, abs=2e-3)


def test_what_is_like_no_class_is_unknown_however_near_it_is() -> None:
    train, held = pictures(20), pictures(25, seed=1)
    found = calibrated(model(train, held))
    assert found.least_score == pytest.approx(-MIDWAY * found.temperature)
    head = replace(found, threshold=float("inf")).head()
    midway = found.statistics.means.mean(0) + half(0.3 * np.random.default_rng(2).normal(size=(80, WIDTH)))
    held_scores, scores = (head.discriminant.scores(x).max(1) for x in (held[0], midway))
    assert head.unknown(np.zeros(100), held_scores).mean() <= 0.05
    assert head.unknown(np.zeros(80), scores).mean() > 0.8
    assert np.median(head.distance(midway)) < np.quantile(head.distance(held[0]), 0.95)
    measured = assess(replace(found, threshold=float("inf"), least_score=float(np.median(held_scores))))
    assert measured.false_rejects == pytest.approx(0.5, abs=0.05)


def test_the_least_score_lets_most_probes_pass() -> None:
    known = np.linspace(0, 100, 101).astype(np.float32)
    nothing = np.zeros(0, np.float32)
    assert _least_score(known, 8.0, nothing) == -MIDWAY * 8
    assert _least_score(known - 50, 8.0, nothing) == -45
    assert _least_score(known[:4] - 50, 8.0, nothing) == -50  # so few of them all pass


def test_negatives_raise_the_least_score_but_not_without_bounds() -> None:
    known = np.linspace(-4, 96, 101).astype(np.float32)
    lowest = -MIDWAY * 8
    assert _least_score(known, 8.0, np.float32([-20, -15])) == lowest  # nothing to gain
    assert _least_score(known, 8.0, np.float32([-20, -5, -np.inf])) == pytest.approx(-4.5, abs=1e-3)  # costs no probe
    assert _least_score(known, 8.0, np.float32([-20, -2, -20])) == pytest.approx(-1.5, abs=1e-3)  # a third for three
    assert _least_score(known, 8.0, np.float32([50, 60, 70])) == lowest  # cannot be had
    assert _least_score(known, 8.0, np.float32([-2, *[-np.inf] * 99])) == lowest  # one of a hundred, for three probes
    assert _least_score(known, 8.0, np.float32([-1, 0, 0])) == pytest.approx(-0.5, abs=1e-3)  # not above 0
    assert _least_score(known - 4, 8.0, np.float32([-4, -2])) == pytest.approx(-3.5, abs=1e-3)  # at most five probes


def test_negatives_that_are_near_raise_the_least_score_and_those_that_are_far_do_not() -> None:
    found = calibrated(model(pictures(20), pictures(25, seed=1)))
    generator, means = np.random.default_rng(2), found.statistics.means
    between = means.mean(0) + 0.3 * (means[:1] - means.mean(0))
    near = (between + half(0.3 * generator.normal(size=(80, WIDTH)))).astype(np.float16)
    far = half(generator.normal(size=(80, WIDTH)) * 50).astype(np.float16)
    plain, tightened = assess(replace(found, negatives=near)), calibrated(replace(found, negatives=near))
    assert calibrated(replace(found, negatives=far)).least_score == found.least_score
    assert calibrated(replace(found, negatives=np.concatenate((near, far)))).least_score > found.least_score
    assert tightened.least_score > found.least_score
    measured = assess(tightened)
    assert plain.false_accepts is not None and measured.false_accepts is not None and measured.false_rejects is not None
    assert measured.false_accepts < 0.7 * plain.false_accepts and measured.false_rejects <= 0.1


def test_negatives_are_kept_and_measured() -> None:
    plain = calibrated(clear())
    far = half(np.random.default_rng(8).normal(size=(30, WIDTH)) * 5).astype(np.float16)
    found = calibrated(replace(clear(), negatives=far))
    measured = assess(found)
    assert measured.false_rejects is not None and measured.false_rejects <= 0.05
    scores = found.head().discriminant.scores(far.astype(np.float32))
    rejected = found.head().unknown(found.head().distance(far.astype(np.float32)), scores.max(1))
    assert measured.false_accepts == pytest.approx(1 - rejected.mean())
    assert found.threshold <= plain.threshold and assess(plain).false_accepts is None
    early = with_exit(found, WIDTH // 2)
    assert early.exit is not None
    head = early.head().exit
    assert head is not None and head.answers(far.astype(np.float32))[1].mean() <= 0.1


def test_calibration_is_measured_before_and_after() -> None:
    train, held = pictures(6), pictures(30, seed=1, spread=3.0)
    found = calibrated(model(train, held))
    measured = assess(found).calibration
    assert measured is not None
    assert measured[1] < measured[0]  # it was too sure of itself


def test_look_alikes_of_other_tasks_are_named() -> None:
    found = clear()
    assert look_alikes(found, 1) == []
    means = found.statistics.means.copy()
    means[2] = means[0] + 1e-3  # of tasks 1 and 0
    alike = replace(found, statistics=replace(found.statistics, means=means))
    assert look_alikes(alike, 1) == [(int(IDS[2]), int(IDS[0]))]
    assert look_alikes(alike, 0) == [(int(IDS[0]), int(IDS[2]))]
    means[3] = means[2]  # of one task: those are not named
    within = replace(found, statistics=replace(found.statistics, means=np.stack([*means[:2] + 50, *means[2:]])))
    assert look_alikes(within, 1) == []
