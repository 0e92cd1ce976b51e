"""The head's arithmetic against dense and hand-made references, and the rules that combine branches."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.backbone import Backbone
from edge_cl.backend import Encoding
from edge_cl.errors import EdgeClError
from edge_cl.features import Encoder, TorchBackend
from edge_cl.head import PRIOR_SPREAD, Branch, Discriminant, Exit, Head, precision_of, softmax
from edge_cl.lora import Adapter
from edge_cl.preprocess import Preprocess
from edge_cl.recognition import RULES, Recogniser
from edge_cl.statistics import Array, Precision, Statistics

WIDTH = 5
IDS, TASKS = np.array([4, 7, 8, 11, 12]), np.array([0, 0, 2, 2, 2])  # ids and tasks may have gaps


def statistics(width: int = WIDTH, seed: int = 0) -> Statistics:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), 8)
    rows = 2 * random.normal(size=(5, width))[labels] + random.normal(size=(40, width)) * np.linspace(0.5, 2, width)
    return Statistics.empty(width).add(rows.astype(np.float32), labels)


def branch(task: int, weight: float = 0.5, width: int = WIDTH, last: int = WIDTH) -> Branch:
    random = np.random.default_rng(task + 10)
    n = int((task == TASKS).sum())
    means = random.normal(size=(n, width)).astype(np.float32)
    identity = Precision(np.zeros((0, width), np.float32), np.zeros(0, np.float32), 1.0)
    prototypes = random.normal(size=(n, last)).astype(np.float32)
    return Branch(IDS[task == TASKS], Discriminant.of(means, identity), prototypes, weight)


def head(*, routed: int = 1, weights: tuple[float, float] = (0.5, 0.5), width: int = WIDTH, last: int = WIDTH) -> Head:
    branches = {task: branch(task, weight, width, last) for task, weight in zip((0, 2), weights, strict=True)}
    base = Head.of(statistics(width), IDS, TASKS, shrinkage=0.2)
    return replace(base, branches=branches, routed=routed)


def rows(n: int = 6, width: int = WIDTH) -> Array:
    return np.random.default_rng(3).normal(size=(n, width)).astype(np.float32)


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_softmax_rows_sum_to_one(scores: list[list[float]]) -> None:
    result = softmax(np.array(scores, np.float32))
    assert ((result >= 0) & (result <= 1)).all()
    np.testing.assert_allclose(result.sum(1), 1, rtol=1e-6)


def test_softmax_by_hand() -> None:
    np.testing.assert_allclose(
        softmax(np.log(np.float32([[1, 3], [5, 5]])) + 90), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-5
    )


def covariance_inverse(of: Statistics, shrinkage: float) -> np.ndarray:
    """Return the inverse of the shrunk pooled covariance, dense and in double precision."""
    scatter, width = of.scatter, of.means.shape[1]
    covariance = scatter.basis.T @ (scatter.energy[:, None].astype(np.float64) * scatter.basis) / scatter.count
    prior = PRIOR_SPREAD * (of.means.astype(np.float64) ** 2).sum(1).mean() / ((scatter.count + 1) * width)
    isotropic = shrinkage * np.trace(covariance) / width + prior
    inverse: np.ndarray = np.linalg.inv((1 - shrinkage) * covariance + isotropic * np.eye(width))
    return inverse


def mahalanobis(features: Array, of: Statistics, shrinkage: float) -> np.ndarray:
    """Return squared distances to all class means, (n, C)."""
    offsets = features[:, None].astype(np.float64) - of.means
    distances: np.ndarray = np.einsum("ncf,fg,ncg->nc", offsets, covariance_inverse(of, shrinkage), offsets)
    return distances


def test_distance_is_mahalanobis_to_the_nearest_mean() -> None:
    reference = mahalanobis(rows(), statistics(), 0.2)
    np.testing.assert_allclose(head().distance(rows()), reference.min(1), rtol=1e-3)
    np.testing.assert_allclose(head().distance(statistics().means), 0, atol=1e-3)


@pytest.mark.parametrize("rank", [None, 5, 3, 1, 0])
def test_distance_of_fewer_directions(rank: int | None) -> None:
    """Directions left out count with the isotropic variance; scores and nearest class stay."""
    of, scatter = statistics(), statistics().scatter
    found = Head.of(of, IDS, TASKS, shrinkage=0.2, unknown_rank=rank)
    prior = PRIOR_SPREAD * (of.means.astype(np.float64) ** 2).sum(1).mean() / ((scatter.count + 1) * WIDTH)
    energy = np.sort(scatter.energy.astype(np.float64))[::-1] / scatter.count
    variance = 0.2 * energy.sum() / WIDTH + prior
    left_out = scatter.basis[np.argsort(-scatter.energy)][WIDTH if rank is None else rank :]
    along = ((rows() - of.means.mean(0)) @ left_out.T) ** 2
    gained = along @ (1 / variance - 1 / (0.8 * energy[WIDTH - len(left_out) :] + variance))
    np.testing.assert_allclose(found.distance(rows()), mahalanobis(rows(), of, 0.2).min(1) + gained, rtol=1e-3)
    np.testing.assert_array_equal(found.discriminant.scores(rows()), head().discriminant.scores(rows()))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_base_posterior_is_the_gaussian_one(temperature: float) -> None:
    distances = mahalanobis(rows(), statistics(), 0.2) / temperature
    likelihood = np.exp(-0.5 * (distances - distances.min(1, keepdims=True)))
    expected = likelihood / likelihood.sum(1, keepdims=True)
    posterior = replace(head(), temperature=temperature).base_posterior(rows())
    np.testing.assert_allclose(posterior, expected, atol=1e-3)


def test_precision_without_classes_is_finite() -> None:
    precision = precision_of(Statistics.empty(3), shrinkage=0.2)
    assert np.isfinite(precision.apply(np.ones((1, 3), np.float32))).all()


#              task 0      task 2
POSTERIOR = [[0.30, 0.10, 0.25, 0.25, 0.10], [0.60, 0.00, 0.20, 0.10, 0.10], [0.25, 0.25, 0.50, 0.00, 0.00]]


@pytest.mark.parametrize(
    ("routed", "weights", "routes"),
    [
        (1, (0.5, 0.5), [[2], [0], [0]]),  # a task's probability is the sum over its classes; ties: the earlier task
        (2, (0.5, 0.5), [[2, 0], [0, 2], [0, 2]]),
        (3, (0.5, 0.5), [[2, 0], [0, 2], [0, 2]]),
        (1, (0.0, 0.5), [[2], [], []]),  # a branch without a share is not asked, nor another in its place
        (2, (0.0, 0.5), [[2], [2], [2]]),
        (2, (0.0, 0.0), [[], [], []]),
    ],
)
def test_route(routed: int, weights: tuple[float, float], routes: list[list[int]]) -> None:
    assert head(routed=routed, weights=weights).route(np.array(POSTERIOR, np.float32)) == routes


def test_branch_of_a_single_class_is_not_asked() -> None:
    one = replace(head(), branches={0: branch(0).without({7}), 2: branch(2)})
    assert one.route(np.array(POSTERIOR, np.float32)) == [[2], [], []]


def test_fuse_by_hand() -> None:
    posterior = np.array([[0.30, 0.10, 0.30, 0.20, 0.10]], np.float32)
    scores = np.log(np.array([[1, 3]], np.float32))  # the branch says 1/4, 3/4
    fused = head(weights=(0.4, 0.5)).fuse(posterior, 0, scores)
    # (1 - 0.4) * 0.30 + 0.4 * 0.40 / 4 and (1 - 0.4) * 0.10 + 0.4 * 0.40 * 3 / 4
    np.testing.assert_allclose(fused, [[0.22, 0.18, 0.30, 0.20, 0.10]], rtol=1e-6)
    np.testing.assert_allclose(posterior, [[0.30, 0.10, 0.30, 0.20, 0.10]])
    warm = head()
    warm = replace(warm, branches={0: replace(warm.branches[0], weight=1.0, temperature=0.5)})
    np.testing.assert_allclose(warm.fuse(posterior, 0, scores)[:, :2], [[0.04, 0.36]], rtol=1e-5)  # 1 : 3^2


@given(st.integers(0, 10**6), st.floats(0, 1), st.sampled_from([0, 2]))
def test_fuse_keeps_the_mass_of_every_task(seed: int, weight: float, task: int) -> None:
    random = np.random.default_rng(seed)
    posterior = softmax(5 * random.normal(size=(3, 5)).astype(np.float32))
    scores = 5 * random.normal(size=(3, int((task == TASKS).sum()))).astype(np.float32)
    fused = head(weights=(weight, weight)).fuse(posterior, task, scores)
    for t in (0, 2):
        np.testing.assert_allclose(fused[:, t == TASKS].sum(1), posterior[:, t == TASKS].sum(1), atol=1e-6)
    np.testing.assert_array_equal(fused[:, task != TASKS], posterior[:, task != TASKS])


def test_classes_can_be_deleted_from_a_branch() -> None:
    whole, fewer = branch(2), branch(2).without({8, 12, 99})
    assert fewer.classes.tolist() == [11]
    assert fewer.prototypes.tolist() == whole.prototypes[[1]].tolist()
    np.testing.assert_allclose(fewer.discriminant.scores(rows()), whole.discriminant.scores(rows())[:, [1]], rtol=1e-6)


def test_stored_branch_comes_back() -> None:
    stored = replace(branch(2, weight=0.25), temperature=3.5)
    tensors = stored.to_numpy()
    again = Branch.from_numpy(tensors)
    assert (again.weight, again.temperature) == (0.25, 3.5)
    for name, value in again.to_numpy().items():
        np.testing.assert_array_equal(value, tensors[name], strict=True)


def test_columns_follow_the_ids() -> None:
    assert head().columns([12, 4]).tolist() == [4, 0]
    assert head().columns([]).tolist() == []


# The rules, over a real backbone.


@pytest.fixture
def recogniser(tiny_backbone: Backbone) -> Recogniser:
    generator = torch.Generator().manual_seed(0)
    shared = Adapter.new_shared(3, 64, 2, generator)
    base, own = (Adapter.new_task(3, 3, 64, 2, generator) for _ in range(2))
    for adapter in (shared, base, own):
        torch.nn.init.normal_(adapter.B, 0, 0.3, generator=generator)
        adapter.requires_grad_(False)
    encoder = Encoder(tiny_backbone, Preprocess(32), shared, base)
    names = {int(c): f"class {c}" for c in IDS}
    # Task 0 is answered by the base branch, task 2 by an adapter of its own.
    return Recogniser(TorchBackend(encoder, {2: own}), head(width=encoder.width, last=64), names)


PICTURES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)


def features_by_hand(recogniser: Recogniser, adapter: Adapter | None) -> tuple[Array, Array]:
    """Return (n, F) features and (n, D) last tokens, block by block from timm's modules."""
    encoder, vit = recogniser.backend.encoder, recogniser.backend.encoder.backbone.vit
    pixels = torch.from_numpy(((PICTURES / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2).astype(np.float32))
    tokens = vit._pos_embed(vit.patch_embed(pixels))
    parts = []
    for i, block in enumerate(vit.blocks):
        of = encoder.shared if i < 3 else adapter
        block.attn.qkv.low_rank = of.factors(i) if of is not None else None
        tokens = block(tokens)
        block.attn.qkv.low_rank = None
        normed = vit.norm(tokens).numpy()
        parts += [normed[:, 0], normed[:, 1:].mean(1)]
    features = np.concatenate([p / np.linalg.norm(p, axis=1, keepdims=True) for p in parts], 1)
    return features, normed[:, 0]


@torch.no_grad()
def test_published_rule_by_hand(recogniser: Recogniser) -> None:
    cosines = np.zeros((len(PICTURES), 5))
    for task, adapter in ((0, recogniser.backend.encoder.base), (2, recogniser.backend.adapters[2])):
        _, last = features_by_hand(recogniser, adapter)
        for column, prototype in zip(
            np.flatnonzero(task == TASKS), recogniser.head.branches[task].prototypes, strict=True
        ):
            norms = np.linalg.norm(last, axis=1) * np.linalg.norm(prototype)
            cosines[:, column] = last @ prototype / norms
    posterior = replace(recogniser, rule="published").posterior(recogniser.backend.encode(PICTURES))
    expected = np.exp(16 * cosines) / np.exp(16 * cosines).sum(1, keepdims=True)
    np.testing.assert_allclose(posterior, expected, atol=1e-4)


@torch.no_grad()
def test_published_rule_gives_classes_without_a_branch_the_least_score(recogniser: Recogniser) -> None:
    only = replace(recogniser, head=replace(recogniser.head, branches={0: recogniser.head.branches[0]}))
    scores = np.log(replace(only, rule="published").posterior(only.backend.encode(PICTURES))) / 16
    np.testing.assert_allclose(scores[:, 2:] - scores[:, 2:3], 0, atol=1e-5)
    assert (scores[:, :2] > scores[:, 2:3]).all()


@torch.no_grad()
def test_routed_rule_by_hand(recogniser: Recogniser) -> None:
    base, _ = features_by_hand(recogniser, recogniser.backend.encoder.base)
    own, _ = features_by_hand(recogniser, recogniser.backend.adapters[2])
    expected = recogniser.head.base_posterior(base)
    mass = np.stack([expected[:, TASKS == 0].sum(1), expected[:, TASKS == 2].sum(1)], 1)
    assert 0 < (mass[:, 0] > mass[:, 1]).sum() < len(mass)  # both tasks are asked
    for row, (first, second) in enumerate(mass):
        task, features, share = (0, base, first) if first > second else (2, own, second)
        columns = task == TASKS
        scores = recogniser.head.branches[task].discriminant.scores(features[row : row + 1])[0].astype(float)
        local = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        expected[row, columns] = 0.5 * expected[row, columns] + 0.5 * share * local
    encoding = recogniser.backend.encoder.encode(PICTURES)
    np.testing.assert_allclose(encoding.features, base, atol=1e-5)
    np.testing.assert_allclose(recogniser.posterior(encoding), expected, atol=1e-3)


@pytest.mark.parametrize(("rule", "passes"), [("base", 0), ("routed", 1), ("published", 1)])
def test_branches_are_run_no_more_than_needed(
    recogniser: Recogniser, rule: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    run = Encoder.branch

    def branch(self: Encoder, tokens: torch.Tensor, prefix: torch.Tensor, adapter: Adapter | None) -> object:
        if adapter is not self.base:
            seen.append(len(tokens))
        return run(self, tokens, prefix, adapter)

    monkeypatch.setattr(Encoder, "branch", branch)
    encoding = recogniser.backend.encoder.encode(PICTURES)
    posterior = replace(recogniser, rule=rule).posterior(encoding)
    np.testing.assert_allclose(posterior.sum(1), 1, rtol=1e-5)
    assert len(seen) == passes
    if rule == "routed":
        mass = recogniser.head.base_posterior(encoding.features)[:, TASKS == 2].sum(1)
        assert seen == [int((mass > 0.5).sum())]  # the pictures of that task alone


@pytest.mark.parametrize("rule", sorted(RULES))
def test_prediction_is_the_posterior_s(recogniser: Recogniser, rule: str) -> None:
    recogniser = replace(recogniser, rule=rule)
    encoding = recogniser.backend.encoder.encode(PICTURES)
    distances = recogniser.head.distance(encoding.features)
    limit = float(np.median(distances))
    recogniser = replace(recogniser, head=replace(recogniser.head, threshold=limit))
    answers = recogniser.predict(list(PICTURES), top=3)
    posterior = recogniser.posterior(encoding)
    assert len(answers) == len(PICTURES)  # more than one batch
    for answer, row, distance in zip(answers, posterior, distances, strict=True):
        best = np.argsort(-row)[:3]
        assert [label for label, _ in answer.top] == [f"class {IDS[i]}" for i in best]
        np.testing.assert_allclose([p for _, p in answer.top], row[best], atol=1e-4)
        assert (answer.label, answer.confidence) == answer.top[0]
        if abs(distance - limit) > 1e-3 * limit:
            assert answer.unknown == (distance > limit)


def test_no_pictures_no_answers(recogniser: Recogniser) -> None:
    assert recogniser.predict([]) == []


# The exit: what the prefix alone is sure of.


def with_exit(recogniser: Recogniser, *, standing: float) -> Recogniser:
    """Give the head an exit whose answers stand for about so large a share of `PICTURES`."""
    width = recogniser.backend.encoder.prefix_width
    early = replace(Head.of(statistics(width), IDS, TASKS, shrinkage=0.2), temperature=300.0)
    features = recogniser.backend.prefix(PICTURES).features
    posterior, distances = early.base_posterior(features), early.distance(features)
    confidence = float(np.quantile(posterior.max(1), 1 - standing**0.5))
    near = replace(early, threshold=float(np.quantile(distances, standing**0.5)))
    return replace(recogniser, head=replace(recogniser.head, temperature=300.0, exit=Exit(near, confidence)))


@pytest.mark.parametrize("rule", RULES)
def test_features_that_are_no_numbers_give_no_answer(
    recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    run = Encoder.branch

    def branch(self: Encoder, tokens: torch.Tensor, features: Array, adapter: Adapter | None) -> Encoding:
        encoding = run(self, tokens, features, adapter)
        return replace(encoding, features=encoding.features * np.nan, last=encoding.last * np.nan)

    monkeypatch.setattr(Encoder, "branch", branch)
    with pytest.raises(EdgeClError, match="are no numbers"):
        replace(recogniser, rule=rule).predict(list(PICTURES))


def test_a_distance_that_is_no_number_is_unknown() -> None:
    distances = np.float32([np.nan, np.inf, 5, 4, -np.inf])
    for threshold, expected in ((4.0, [1, 1, 1, 0, 0]), (np.inf, [1, 0, 0, 0, 0]), (-np.inf, [1, 1, 1, 1, 0])):
        assert replace(head(), threshold=threshold).unknown(distances, np.zeros(5)).tolist() == expected
    best = np.float32([np.nan, -np.inf, -3, -2, np.inf])
    for least, expected in ((-2.0, [1, 1, 1, 0, 0]), (-np.inf, [1, 0, 0, 0, 0]), (np.inf, [1, 1, 1, 1, 0])):
        assert replace(head(), least_score=least).unknown(np.zeros(5), best).tolist() == expected


def test_the_unknown_score_is_above_one_where_a_picture_is_unknown() -> None:
    made = replace(head(), threshold=4.0, least_score=-2.0, temperature=2.0)
    distances, best = np.float32([2, 8, 2, 8, 0]), np.float32([5, 5, -6, -3, -2])
    np.testing.assert_allclose(made.unknown_score(distances, best), [0.5, 2, 3, 2, 1])
    odd = np.float32([np.nan, np.inf, 0, 4, np.nextafter(np.float32(4), np.float32(5)), -np.inf, 1e-40])
    for threshold in (4.0, np.inf, -np.inf, 0.0, -1.0, 1e-30):
        for least in (-2.0, -np.inf, np.inf):
            made = replace(head(), threshold=threshold, least_score=least)
            for best in (np.zeros(7, np.float32), odd):
                scores = made.unknown_score(odd, best)
                assert ((scores > 1) == made.unknown(odd, best)).all() and np.isfinite(scores).all()


@torch.no_grad()
def test_what_the_exit_is_sure_of_never_reaches_the_suffix(
    recogniser: Recogniser, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser = with_exit(recogniser, standing=0.4)
    exit, encoding = recogniser.head.exit, recogniser.backend.encode(PICTURES)
    assert exit is not None
    prefix = encoding.features[:, : recogniser.backend.encoder.prefix_width]
    early, distances = exit.head.base_posterior(prefix), exit.head.distance(prefix)
    stands = (early.max(1) > exit.confidence) & (distances <= exit.head.threshold)
    sure, near = early.max(1) > exit.confidence, distances <= exit.head.threshold
    assert stands.any() and (sure & ~near).any() and (near & ~sure).any()

    base = recogniser.head.base_posterior(encoding.features)
    through = replace(recogniser, head=replace(recogniser.head, exit=None)).posterior(encoding)
    asked = base.max(1) <= exit.confidence
    expected = np.where(stands[:, None], early, np.where(asked[:, None], through, base))

    ran: list[tuple[str, int]] = []
    run = Encoder.branch

    def branch(self: Encoder, tokens: torch.Tensor, features: Array, adapter: Adapter | None) -> object:
        ran.append(("base" if adapter is self.base else "own", len(tokens)))
        return run(self, tokens, features, adapter)

    monkeypatch.setattr(Encoder, "branch", branch)
    limit = replace(recogniser.head, threshold=-1.0)  # every picture that the base branch answers is unknown
    parts = list(replace(recogniser, head=limit).posteriors(list(PICTURES)))
    np.testing.assert_allclose(np.concatenate([p for p, _ in parts]), expected, atol=1e-4)
    assert np.array_equal(np.concatenate([u for _, u in parts]) > 1, ~stands)
    assert sum(n for which, n in ran if which == "base") == (~stands).sum()
    task = np.stack([base[:, TASKS == 0].sum(1), base[:, TASKS == 2].sum(1)], 1).argmax(1)
    assert sum(n for which, n in ran if which == "own") == (~stands & asked & (task == 1)).sum() > 0


def test_without_an_exit_every_answer_may_be_asked_of_a_branch(recogniser: Recogniser) -> None:
    posterior = recogniser.head.base_posterior(recogniser.backend.encode(PICTURES).features)
    assert recogniser.head.unsure(posterior).tolist() == list(range(len(PICTURES)))
    sure = with_exit(recogniser, standing=0.4).head
    assert sure.exit is not None
    assert sure.unsure(posterior).tolist() == np.flatnonzero(posterior.max(1) <= sure.exit.confidence).tolist()


def test_a_batch_that_stands_whole_runs_the_prefix_alone(recogniser: Recogniser) -> None:
    recogniser = with_exit(recogniser, standing=1.0)
    assert recogniser.head.exit is not None
    always = replace(recogniser.head.exit, confidence=0.0, head=replace(recogniser.head.exit.head, threshold=np.inf))
    recogniser = replace(recogniser, head=replace(recogniser.head, exit=always, threshold=-1.0))
    answers = recogniser.predict(list(PICTURES))
    assert len(answers) == len(PICTURES) and not any(answer.unknown for answer in answers)
