"""Training: the loop against plain numpy, exact resumption of every stage, and a backbone that never changes."""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small import BACKBONE, random_weights
from torch import Tensor, nn
from torch.nn import functional as F

from edge_cl.adaptation import SCHEDULES, Job, distil_shared, new_adapters, train_task_adapter, vary_colours
from edge_cl.architecture import BackboneSpec, at_size, build, finer_size
from edge_cl.backbone import Backbone
from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.decoded import Source, decode
from edge_cl.encoding import ViewEncoder
from edge_cl.errors import EdgeClError
from edge_cl.features import Encoder
from edge_cl.lora import Adapter
from edge_cl.losses import feature_distance, reassign_gradient
from edge_cl.pictures import read_folder
from edge_cl.preprocess import Preprocess
from edge_cl.step import Objective
from edge_cl.tokens import TokenCache, Tokens
from edge_cl.training import Optimisation, computes_bfloat16, cosine_rate, epoch_batches, train_stage
from edge_cl.version import Json

EPOCHS = 3
CONFIG = LearnConfig(
    epochs=EPOCHS, r=2, batch_size=4, views=1, patch_drop_rate=0.0, reduced_precision=False, balanced=False
)


class PowerCutError(Exception):
    """Stands for the end of the process."""


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 99))
def test_epoch_covers_every_picture_once(count: int, batch_size: int, seed: int) -> None:
    batches = list(epoch_batches(count, batch_size, (seed, 0)))
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(count))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(1, math.ceil(1.5 * batch_size))
    if batch_size > 2 and count > 1:
        assert min(sizes) > 1


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 99))
def test_balanced_epoch_gives_every_class_the_same_share(pictures: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(pictures)), pictures)
    order = np.concatenate(list(epoch_batches(len(labels), 8, (seed, 0), labels)))
    assert len(order) == len(labels)
    shares = np.bincount(labels[order], minlength=len(pictures))
    assert shares.max() - shares.min() <= 1
    for c, share in enumerate(shares):  # in turns: no picture comes twice before every one has come
        times = np.bincount(order[labels[order] == c], minlength=len(labels))[labels == c]
        assert times.max() - times.min() <= 1, (share, times)


def test_order_depends_on_the_seed_alone() -> None:
    orders = [np.concatenate(list(epoch_batches(50, 8, seed))) for seed in ((1, 0), (1, 0), (1, 1), (2, 0))]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert not any(np.array_equal(orders[0], order) for order in [*orders[2:], np.arange(50)])


@pytest.mark.parametrize(("step", "rate"), [(0, 0.4), (2, 0.2 * (1 + 2**-0.5)), (4, 0.2), (8, 0.0)])
def test_cosine_rate(step: int, rate: float) -> None:
    assert cosine_rate(0.4, step, 8) == pytest.approx(rate, abs=1e-12)


class Point(nn.Module):
    """Two trainable numbers and a fixed one."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([1.0, -2.0], dtype=dtype))
        self.fixed = nn.Parameter(torch.tensor(3.0, dtype=dtype), requires_grad=False)


@pytest.mark.parametrize(("count", "batch_size", "micro_batch"), [(10, 4, 32), (10, 4, 3), (10, 32, 1), (3, 32, 32)])
def test_loop_is_sgd_with_momentum_decay_and_cosine(count: int, batch_size: int, micro_batch: int) -> None:
    targets = np.random.default_rng(0).normal(size=(count, 2))
    settings = Optimisation(3, 0.3, batch_size, micro_batch, weight_decay=0.01)
    point, losses = Point(torch.float64), []

    def backward(weight: float, seen: Tensor) -> Tensor:
        loss = weight * 0.5 * ((point.x - seen) ** 2).sum(1).mean()
        loss.backward()
        return loss.detach()

    objective = Objective(lambda batch, epoch, first: (torch.from_numpy(targets[batch]),), backward)
    train_stage("s", [point], objective, count, settings, 5, on_epoch=lambda done, loss: losses.append((done, loss)))

    x, velocity, means, step = np.array([1.0, -2.0]), np.zeros(2), [], 0
    steps = 3 * len(list(epoch_batches(count, batch_size, (5, 0))))
    for epoch in range(3):
        total = 0.0
        for batch in epoch_batches(count, batch_size, (5, epoch)):
            total += 0.5 * ((x - targets[batch]) ** 2).sum()
            gradient = x - targets[batch].mean(0) + 0.01 * x
            velocity = 0.9 * velocity + gradient
            x = x - 0.3 * 0.5 * (1 + math.cos(math.pi * step / steps)) * velocity
            step += 1
        means.append(total / count)
    np.testing.assert_allclose(point.x.detach(), x, rtol=1e-10)
    assert point.fixed.item() == 3.0
    assert [done for done, _ in losses] == [1, 2, 3]
    np.testing.assert_allclose([loss for _, loss in losses], means, rtol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("epoch", [0, 1])
def test_loss_that_is_no_number_stops_training(tmp_path: Path, value: float, epoch: int) -> None:
    point, checkpoint = Point(), Checkpoint(tmp_path, {})

    def backward(weight: float, loss: Tensor) -> Tensor:
        point.x.grad = torch.ones(2)
        return loss

    bad = Objective(lambda batch, at, first: (torch.tensor(value if at == epoch and 0 in batch else 1.0),), backward)

    with pytest.raises(EdgeClError, match=rf"^Stage s: the loss became {value} in epoch {epoch + 1}\.\n"):
        train_stage("s", [point], bad, 8, Optimisation(batch_size=4), 0, checkpoint=checkpoint)
    assert ("s" in checkpoint) == (epoch > 0)  # the bad epoch is not kept
    if epoch:
        assert checkpoint.load("s")[1] == {"epochs": epoch, "ended": False}


def test_a_deadline_ends_a_stage_for_good(tmp_path: Path) -> None:
    """After the step in hand; and a restart takes it as ended, so that what was built on it still fits."""
    point, checkpoint, steps = Point(), Checkpoint(tmp_path, {}), []

    def backward(weight: float, at: Tensor) -> Tensor:
        steps.append(int(at))
        point.x.grad = torch.ones(2)
        return torch.tensor(1.0)

    objective = Objective(lambda batch, at, first: (torch.tensor(at),), backward)
    settings = Optimisation(batch_size=4, epochs=5)
    past = time.monotonic() - 1
    for _ in range(2):
        assert train_stage("s", [point], objective, 8, settings, 0, checkpoint=checkpoint, deadline=past) == 1
    assert steps == [0]
    ahead = time.monotonic() + 3600
    assert train_stage("t", [point], objective, 8, settings, 0, checkpoint=checkpoint, deadline=ahead) == 5


# The stages of CL-LoRA, on a tiny backbone.


class CutCheckpoint(Checkpoint):
    """Loses power at the save of one epoch of one stage: before it, or after it."""

    def __init__(self, directory: Path, stage: str, epoch: int, *, after: bool) -> None:
        super().__init__(directory, {})
        self.at, self.after = (stage, {"epochs": epoch, "ended": False}), after

    def save(self, stage: str, tensors: Mapping[str, np.ndarray], info: Json = None) -> None:
        cut = (stage, info) == self.at
        if cut and not self.after:
            raise PowerCutError
        super().save(stage, tensors, info)
        if cut:
            raise PowerCutError


def up(adapter: Adapter, seed: int) -> Adapter:
    nn.init.normal_(adapter.B, 0, 0.1, generator=torch.Generator().manual_seed(seed))
    return adapter.requires_grad_(False)


@pytest.fixture(scope="module", autouse=True)
def folders(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ten pictures of three textures, and ten of three colours."""
    random = np.random.default_rng(0)
    patterns = random.integers(0, 256, (3, 40, 48, 3))
    for name in ("textures", "colours"):
        FOLDERS[name] = tmp_path_factory.mktemp(name)
        for i in range(10):
            noisy = (patterns[i % 3] + random.integers(-60, 60, (40, 48, 3))).clip(0, 255).astype(np.uint8)
            plain = Image.new("RGB", (40, 48 + i), [(250, 10, 10), (10, 250, 10), (10, 10, 250)][i % 3])
            image = Image.fromarray(noisy) if name == "textures" else plain
            (FOLDERS[name] / str(i)).mkdir()
            image.save(FOLDERS[name] / str(i) / "0.png")


FOLDERS: dict[str, Path] = {}


def pictures(name: str = "textures") -> Source:
    """Return ten pictures, of class 0, 1, 2, 0, ..."""
    decoded = decode(read_folder(FOLDERS[name]).pictures, Preprocess(32), copies=True)
    return Source(decoded, Preprocess(32), 0, (0.4, 1.0))


def job(backbone: Backbone, *, first: bool, checkpoint: Checkpoint | None = None, update: bool = True) -> Job:
    """Return the training of a task, the first one or one after another."""
    generator = torch.Generator().manual_seed(3)
    shared = None if first else up(Adapter.new_shared(3, 64, 2, generator), 4)
    earlier = [] if first else [up(Adapter.new_task(3, 3, 64, 2, generator), 5)]
    return Job(
        encoder=Encoder(backbone, Preprocess(32), shared, earlier[0] if earlier else None),
        source=pictures(),
        labels=np.arange(10) % 3,
        classes=3,
        earlier=earlier,
        update_shared=update,
        config=CONFIG,
        seed=11,
        checkpoint=checkpoint,
        progress=lambda stage, done, total: None,
        stage=lambda name: nullcontext(),
    )


def prefix_tokens(job: Job) -> tuple[Tokens, ...]:
    """Return the prefix tokens of every view of a job's pictures."""
    with tempfile.TemporaryDirectory() as scratch:
        cache = TokenCache(Path(scratch), 1 << 30)
        encode = ViewEncoder(job.encoder, Checkpoint(Path(scratch), {}), cache, lambda *told: None)
        return encode.base("train", job.source, job.config.views, keep_tokens=True).tokens


def task_adapter(job: Job) -> tuple[Adapter, ...]:
    return train_task_adapter(job, prefix_tokens(job))[:1]


def adapted(name: str) -> Callable[[Job], tuple[Adapter, ...]]:
    def run(job: Job) -> tuple[Adapter, ...]:
        result = SCHEDULES[name](job)
        assert result.task is not None or name == "two-stage"
        return (result.shared, result.task) if result.task else (result.shared,)

    return run


def with_teacher(job: Job) -> Job:
    """Let the bare backbone teach at the size that `finer_size` gives."""
    encoder, spec = job.encoder, BackboneSpec(BACKBONE, 32, 3, Preprocess(32))
    size = finer_size(encoder.backbone, spec.image_size)
    assert size == 48
    finer = at_size(encoder.backbone, spec, size).to(encoder.device)
    return replace(job, teacher=Encoder(finer, Preprocess(size), device=encoder.device))


def taught(job: Job) -> tuple[Adapter, ...]:
    return adapted("two-stage")(with_teacher(job))


STAGES: dict[str, tuple[Callable[[Job], tuple[Adapter, ...]], bool, tuple[str, ...]]] = {
    "joint, first task": (adapted("joint"), True, ("shared",)),
    "joint, later task": (adapted("joint"), False, ("shared",)),
    "two-stage, first task": (adapted("two-stage"), True, ("shared",)),
    "taught, first task": (taught, True, ("shared",)),
    "two-stage, later task": (adapted("two-stage"), False, ("shared",)),
    "distil_shared": (lambda job: (distil_shared(job),), False, ("shared",)),
    "train_task_adapter": (task_adapter, False, ("train",)),
}
CUTS = [
    pytest.param(name, stage, epoch, after, id=f"{name}: {'after' if after else 'before'} {stage} {epoch}")
    for name, (_, _, stages) in STAGES.items()
    for stage in stages
    for epoch, after in ((1, False), (1, True), (2, True), (3, False), (3, True))
]


def tensors(adapters: tuple[Adapter, ...]) -> list[np.ndarray]:
    return [value for adapter in adapters for value in adapter.to_numpy().values()]


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, list[np.ndarray]]:
    """Results by stage of runs without a checkpoint, filled in as they are asked for."""
    return {}


@pytest.mark.parametrize(("name", "stage", "epoch", "after"), CUTS)
def test_resumed_run_is_bit_identical(
    tiny_backbone: Backbone,
    undisturbed: dict[str, list[np.ndarray]],
    tmp_path: Path,
    name: str,
    stage: str,
    epoch: int,
    after: bool,
) -> None:
    run, first, _ = STAGES[name]
    if name not in undisturbed:
        undisturbed[name] = tensors(run(job(tiny_backbone, first=first)))
    with pytest.raises(PowerCutError):
        run(job(tiny_backbone, first=first, checkpoint=CutCheckpoint(tmp_path, stage, epoch, after=after)))
    epochs: list[tuple[str, int]] = []
    again = replace(
        job(tiny_backbone, first=first, checkpoint=Checkpoint(tmp_path, {})),
        progress=lambda stage, done, total: epochs.append((stage, done)),
    )
    result = tensors(run(again))
    for value, expected in zip(result, undisturbed[name], strict=True):
        np.testing.assert_array_equal(value, expected, strict=True)
    finished = epoch if after else epoch - 1
    assert [done for at, done in epochs if at == stage] == list(range(finished + 1, EPOCHS + 1))  # no epoch twice
    assert any(expected.any() for expected in undisturbed[name])


def written_out(job: Job, name: str) -> list[Tensor]:
    """Return (B of the shared adapter, B, A and log mu of the task's) after training on whole epochs, step by step."""
    shared, task, classifier = new_adapters(job)
    backbone, teacher = job.encoder.backbone, job.encoder.shared
    assert teacher is not None
    trained = {"joint": [shared.B, *task.parameters()], "distil": [shared.B], "task": list(task.parameters())}[name]
    parameters = [*trained, *classifier.parameters()]
    velocity = [torch.zeros_like(p) for p in parameters]
    for epoch in range(EPOCHS):
        pixels, targets = job.views(np.arange(10), epoch, job.source.spec), torch.arange(10) % 3
        if name == "task":
            pixels = job.encoder.input(np.stack(job.source.view(epoch % (1 + CONFIG.views))))
        tokens = backbone.prefix(pixels, teacher if name == "task" else shared)
        early = classifier(backbone.final_norm(tokens)[:, 0])
        late = classifier(backbone.final_norm(backbone.suffix(tokens, task))[:, 0])
        loss = F.cross_entropy(early if name == "distil" else late, targets)
        if name != "distil":
            loss = loss + 0.5 * F.cosine_similarity(task.mu.flatten(), job.earlier[0].mu.flatten(), dim=0).abs()
        gradients = list(torch.autograd.grad(loss, parameters, retain_graph=True))
        if name != "task":
            soft = (classifier(backbone.final_norm(backbone.prefix(pixels, teacher))[:, 0]) / 2).softmax(-1).detach()
            distillation = -5 * (soft * (early / 2).log_softmax(-1)).sum(-1).mean()
            gradients[0] = gradients[0] + reassign_gradient(torch.autograd.grad(distillation, shared.B)[0], teacher.B)
        rate = CONFIG.learning_rate * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
        for p, v, gradient in zip(parameters, velocity, gradients, strict=True):
            v.mul_(0.9).add_(gradient + CONFIG.weight_decay * p.detach())
            p.data.sub_(rate * v)
    return [value.detach() for value in (shared.B, task.B, task.A, task.log_mu)]


@pytest.mark.parametrize(("micro_batch", "recompute"), [(32, False), (3, False), (32, True)])
@pytest.mark.parametrize(
    ("name", "run"),
    [("joint", adapted("joint")), ("distil", STAGES["distil_shared"][0]), ("task", task_adapter)],
    ids=["joint", "distil", "task"],
)
def test_later_task_is_trained_as_written_out(
    tiny_backbone: Backbone,
    name: str,
    run: Callable[[Job], tuple[Adapter, ...]],
    micro_batch: int,
    recompute: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = replace(job(tiny_backbone, first=False), config=replace(CONFIG, recompute=recompute))
    assert task.optimisation == Optimisation(EPOCHS, 0.05, 4, 16, 5e-4, distillation=5.0, orthogonality=1e-4)
    settings = replace(
        task.optimisation, batch_size=32, micro_batch=micro_batch, orthogonality=0.5
    )  # an epoch is a step, every term counts
    monkeypatch.setattr(Job, "optimisation", property(lambda job: settings))
    expected = written_out(task, name)
    result = {"shared" if adapter.shared else "task": adapter for adapter in run(task)}
    if "shared" in result:
        torch.testing.assert_close(result["shared"].B, expected[0], rtol=0.01, atol=1e-4)
    if "task" in result:
        for value, wanted in zip(
            (result["task"].B, result["task"].A, result["task"].log_mu), expected[1:], strict=True
        ):
            torch.testing.assert_close(value, wanted, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("micro_batch", [32, 5, 3, 1])
def test_base_branch_is_taught_as_written_out(
    tiny_backbone: Backbone, micro_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step: cross-entropy of all pictures, and the distance of every second one's features of all blocks."""
    task = with_teacher(job(tiny_backbone, first=True))
    task = replace(task, config=replace(CONFIG, finer_weight=7.0))
    assert task.optimisation.micro_batch == 11  # of 16
    settings = replace(task.optimisation, epochs=1, batch_size=32, micro_batch=micro_batch)
    monkeypatch.setattr(Job, "optimisation", property(lambda job: settings))
    result = SCHEDULES["two-stage"](task)
    assert result.task is not None
    assert task.teacher is not None

    shared, base, classifier = new_adapters(task)
    (order,) = epoch_batches(10, 32, (task.seed, 0))
    teacher, summaries, seen = task.teacher.backbone, list[Tensor](), list[Tensor]()
    pixels, finer = task.views(order, 0, task.source.spec), task.views(order[::2], 0, Preprocess(48))
    tokens = tiny_backbone.suffix(tiny_backbone.prefix(pixels, shared, summaries), base, summaries)
    teacher.suffix(teacher.prefix(finer, summaries=seen), summaries=seen)
    likeness = [F.cosine_similarity(a[::2], b, dim=-1).mean() for a, b in zip(summaries, seen, strict=True)]
    loss = F.cross_entropy(classifier(tiny_backbone.final_norm(tokens)[:, 0]), task.targets(order, 0))
    loss = loss + 7.0 * (1 - torch.stack(likeness).mean())
    parameters = [shared.B, base.B, base.A, base.log_mu]
    trained = [result.shared.B, result.task.B, result.task.A, result.task.log_mu]
    for p, gradient, value in zip(parameters, torch.autograd.grad(loss, parameters), trained, strict=True):
        torch.testing.assert_close(value, p - 0.05 * (gradient + 5e-4 * p), rtol=1e-4, atol=1e-6)


def test_a_teacher_sees_the_same_view_at_more_pixels(tiny_backbone: Backbone) -> None:
    task = with_teacher(job(tiny_backbone, first=True))
    small, large = task.views(np.arange(10), 1, Preprocess(32)), task.views(np.arange(10), 1, Preprocess(48))
    assert large.shape == (10, 3, 48, 48)
    reduced = F.interpolate(large, size=(32, 32), mode="area")
    for i in range(10):
        distances = [float((reduced[i] - small[j]).abs().mean()) for j in range(10)]
        assert distances[i] < 0.6 * min(distances[:i] + distances[i + 1 :])


def test_taught_features_are_nearer_to_those_of_more_pixels(tiny_backbone: Backbone) -> None:
    task = with_teacher(job(tiny_backbone, first=True))
    assert task.teacher is not None
    small, large = (task.views(np.arange(10), 99, Preprocess(size)) for size in (32, 48))
    wanted, distances = task.teacher.summaries(large), []
    for run in (task, replace(task, teacher=None)):
        result = SCHEDULES["two-stage"](replace(run, config=replace(CONFIG, epochs=10)))
        features = replace(task.encoder, shared=result.shared, base=result.task).summaries(small)
        distances.append(float(feature_distance(features, wanted)))
    untrained = float(feature_distance(task.encoder.summaries(small), wanted))
    assert distances[0] < untrained < distances[1]


@pytest.mark.skipif(not computes_bfloat16(torch.device("cpu")), reason="this processor has no bfloat16 instructions")
@pytest.mark.parametrize("name", STAGES)
def test_reduced_precision_changes_little_and_leaves_no_trace(tiny_backbone: Backbone, name: str) -> None:
    run, first, _ = STAGES[name]
    task = job(tiny_backbone, first=first)
    pixels = task.views(np.arange(10), 0, task.source.spec)
    before = tiny_backbone.prefix(pixels)
    exact = tensors(run(task))
    reduced = tensors(run(replace(task, config=replace(CONFIG, reduced_precision=True))))
    assert any(not np.array_equal(a, b) for a, b in zip(exact, reduced, strict=True))
    for value, expected in zip(reduced, exact, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected, atol=0.1 * np.abs(expected).max())
    assert torch.equal(tiny_backbone.prefix(pixels), before)
    assert all(block.attn.fused_attn for block in tiny_backbone.blocks)


@pytest.mark.parametrize("name", STAGES)
def test_recomputation_saves_less_and_changes_nothing(tiny_backbone: Backbone, name: str) -> None:
    run, first, _ = STAGES[name]
    task, saved = job(tiny_backbone, first=first), {}

    def measured(recompute: bool) -> list[np.ndarray]:
        def note(tensor: Tensor) -> Tensor:
            saved[recompute] = saved.get(recompute, 0) + tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            return tensors(run(replace(task, config=replace(CONFIG, recompute=recompute))))

    for value, expected in zip(measured(True), measured(False), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert saved[True] < saved[False]


def digest(module: nn.Module) -> str:
    result = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        result.update(name.encode() + value.numpy().tobytes())
    return result.hexdigest()


@pytest.mark.parametrize("name", STAGES)
def test_only_the_new_adapters_change(tiny_backbone: Backbone, name: str) -> None:
    run, first, _ = STAGES[name]
    task = job(tiny_backbone, first=first)
    frozen = [tiny_backbone, *task.earlier, *([task.encoder.shared] if task.encoder.shared else [])]
    before = [digest(module) for module in frozen]
    for adapter in run(task):
        assert not any(p.requires_grad for p in adapter.parameters())
        assert (adapter.mu > 0).all()
        if not adapter.shared:
            assert adapter.B.abs().amax((2, 3)).min() > 0  # every projection has learned
        elif task.encoder.shared is None:  # the same orthonormal rows as at the start
            fresh = Adapter.new_shared(3, 64, 2, torch.Generator().manual_seed(task.seed))
            assert torch.equal(adapter.A, fresh.A)
            assert adapter.B.any()
        else:
            assert torch.equal(adapter.A, task.encoder.shared.A)
            assert not torch.equal(adapter.B, task.encoder.shared.B)
        if adapter.shared:
            assert torch.equal(adapter.mu, torch.ones(3, 2))
            torch.testing.assert_close(adapter.A @ adapter.A.mT, torch.eye(2).expand(3, 2, 2, 2), atol=1e-6, rtol=0)
    assert [digest(module) for module in frozen] == before


def test_frozen_shared_adapter_is_passed_on(tiny_backbone: Backbone) -> None:
    task = job(tiny_backbone, first=False, update=False)
    assert SCHEDULES["two-stage"](task).shared is task.encoder.shared


@pytest.mark.parametrize("name", STAGES)
def test_loss_falls(tiny_backbone: Backbone, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run, first, stages = STAGES[name]
    losses: dict[str, list[float]] = {}

    def spy(stage: str, *arguments: object, **options: object) -> None:
        options["on_epoch"] = lambda epoch, loss: losses.setdefault(stage, []).append(loss)
        train_stage(stage, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("edge_cl.adaptation.train_stage", spy)
    longer = replace(CONFIG, epochs=12 if first else CONFIG.epochs)  # it has four times the classes to tell apart
    run(replace(job(tiny_backbone, first=first), source=pictures("colours"), config=longer))
    assert set(losses) == set(stages)
    assert all(curve[-1] < 0.9 * curve[0] for curve in losses.values())


def test_view_depends_on_seed_picture_and_number_alone(tiny_backbone: Backbone) -> None:
    task = job(tiny_backbone, first=True)
    alone, among = task.views(np.array([3]), 1, task.source.spec), task.views(np.array([0, 3, 7]), 1, task.source.spec)
    assert alone.shape == (1, 3, 32, 32)
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(alone, task.views(np.array([3]), 2, task.source.spec))


def test_prefix_tokens_are_those_of_the_views(tiny_backbone: Backbone) -> None:
    task = job(tiny_backbone, first=False)
    tokens = prefix_tokens(task)
    assert len(tokens) == 1 + CONFIG.views
    for number, view in enumerate(tokens):
        pixels = task.encoder.input(np.stack(task.source.view(number)))
        expected = tiny_backbone.prefix(pixels, task.encoder.shared)
        torch.testing.assert_close(view.rows(np.arange(10)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("rate", "patches"), [(0.25, 75), (0.5, 50), (0.99, 1)])
def test_a_step_sees_a_share_of_the_patches(rate: float, patches: int) -> None:
    vit = build(
        BackboneSpec(BACKBONE, 160, 3, Preprocess(160)), random_weights(BACKBONE)
    )  # 100 patches and a class token
    task = replace(job(vit, first=False), config=replace(CONFIG, patch_drop_rate=rate))
    kept = task.kept(np.array([3, 7]), 1)
    assert kept is not None
    assert kept.shape == (2, 1 + patches)
    assert not np.array_equal(kept[0], kept[1])
    for row in kept:
        assert row[0] == 0
        assert (np.diff(row) > 0).all()
        assert row[-1] <= 100
    np.testing.assert_array_equal(task.kept(np.array([7]), 1)[0], kept[1])  # type: ignore[index]
    assert not np.array_equal(task.kept(np.array([7]), 2)[0], kept[1])  # type: ignore[index]
    published = replace(task, config=replace(task.config, schedule="joint"))
    assert published.kept(np.array([3]), 1) is None
    shaping = replace(task, encoder=replace(task.encoder, shared=None))
    assert shaping.kept(np.array([3]), 1) is None


def test_dropped_patches_are_the_ones_not_kept(tiny_backbone: Backbone) -> None:
    task = replace(job(tiny_backbone, first=False), config=replace(CONFIG, patch_drop_rate=0.5))
    batch = np.array([2, 5, 8])
    kept, whole = task.kept(batch, 1), tiny_backbone.embed(task.views(batch, 1, task.source.spec))
    assert kept is not None
    pixels, targets, also = task.fresh(batch, 1)
    assert (targets.tolist(), also.tolist()) == ((batch % 3).tolist(), kept.tolist())
    seen = task.embedded(pixels, also)
    rows = prefix_tokens(task)[1]
    for i, chosen in enumerate(kept):
        assert torch.equal(seen[i], whole[i, chosen])
        assert torch.equal(rows.rows(batch, kept)[i], rows.rows(batch)[i, chosen])


def test_what_shapes_the_base_branch_is_turned_and_coloured(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    some, first = np.arange(10), job(tiny_backbone, first=True)
    published = replace(first, config=replace(CONFIG, schedule="joint"))
    later = job(tiny_backbone, first=False)
    assert (first.outputs, published.outputs, later.outputs) == (12, 3, 3)
    turns = [first.turns(some, number) for number in range(4)]
    assert set(np.concatenate(turns).tolist()) == {0, 1, 2, 3}
    assert first.targets(some, 1).tolist() == (4 * first.labels + turns[1]).tolist()
    for plain in (published, later):
        assert plain.targets(some, 1).tolist() == plain.labels.tolist()

    coloured = first.views(some, 1, first.source.spec)
    monkeypatch.setattr("edge_cl.adaptation.vary_colours", lambda pixels, generator: pixels)
    turned, upright = first.views(some, 1, first.source.spec), published.views(some, 1, first.source.spec)
    assert torch.equal(upright, later.views(some, 1, later.source.spec)) is (first.seed == later.seed)
    for picture, wanted, turn in zip(turned, upright, turns[1], strict=True):
        assert torch.equal(picture, torch.rot90(wanted, int(turn), (1, 2)))
    assert not any(torch.equal(a, b) for a, b in zip(coloured, turned, strict=True))


def test_varied_colours_are_another_light_on_the_same_picture() -> None:
    pixels = np.random.default_rng(0).integers(60, 180, (32, 32, 3), dtype=np.uint8)
    varied = [vary_colours(pixels, np.random.default_rng(seed)) for seed in range(40)]
    assert all(v.dtype == np.uint8 and v.shape == pixels.shape for v in varied)
    brightness = np.array([v.mean() for v in varied]) / pixels.mean()
    assert brightness.min() < 0.75 and brightness.max() > 1.25
    likeness = [np.corrcoef(v.mean(-1).ravel(), pixels.mean(-1).ravel())[0, 1] for v in varied]
    assert min(likeness) > 0.7
    np.testing.assert_array_equal(vary_colours(pixels, np.random.default_rng(5)), varied[5])
