"""One learn, from decoded pictures to a new model: adapters, features, statistics, head. It writes no version."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from edge_cl.adaptation import SCHEDULES, Adapted, Job, Progress
from edge_cl.assessment import calibrated, fit_temperature, weigh_branch, with_best_shrinkage
from edge_cl.budget import TimeBudget
from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.decoded import decode
from edge_cl.drift import DriftMap
from edge_cl.features import Encoder
from edge_cl.head import Branch, Discriminant, precision_of
from edge_cl.intake import Intake
from edge_cl.model import KnownClass, Model, Probes
from edge_cl.pictures import Picture
from edge_cl.plan import STATISTICS_SCALE, adapts, fit_to_time, measure_pace, shapes_base, work_of
from edge_cl.preprocess import Pixels
from edge_cl.statistics import Array, Indices, Statistics


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside to a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


@dataclass(frozen=True)
class Learned:
    """Result of a learn.

    Attributes:
        model: the new one; its settings are those that were used, after fitting them into the time.
        task: number of the new task, or None.
        epochs: of adapter training (0: statistics only).
        predicted_s: what the learn was predicted to take, where it had a time budget.
    """

    model: Model
    task: int | None
    epochs: int
    predicted_s: float | None


def learn(
    model: Model,
    encoder: Encoder,
    intake: Intake,
    config: LearnConfig,
    task_name: str | None,
    *,
    checkpoint: Checkpoint,
    progress: Progress,
    stopwatch: Stopwatch,
    started: float,
) -> Learned:
    """Learn a folder's new classes as one task, and let new pictures of known classes join their statistics.

    Args:
        model: what is known.
        encoder: the backbone with the model's adapters.
        intake: the pictures.
        config: settings.
        task_name: of the new task; its number is used if not given.
        checkpoint: keeps finished stages and epochs.
        progress: told of every step.
        stopwatch: gets the seconds of each stage.
        started: when the time that `config` allows began, by `time.monotonic`.
    """
    model = replace(model, config=config)
    with stopwatch.stage("scan"):
        budget = measure_pace(encoder, intake, config, started)
    predicted_s = None
    if budget is not None:
        model, predicted_s = fit_to_time(model, encoder, intake, budget, started, checkpoint)
    work = work_of(model, encoder, intake)
    trained, task = None, -1
    if intake.new:
        model, task = _with_new_classes(model, intake, task_name)
        trained = _train(model, encoder, intake, task, budget, checkpoint, progress, stopwatch)
    if budget is not None:
        views = budget.fit_views(work, model.config.statistics_views)
        model = replace(model, config=replace(model.config, statistics_views=views))
    with stopwatch.stage("head"):
        if trained is not None:
            model, encoder = _with_adapters(model, encoder, trained, intake, task)
        present = {c.task for c in model.classes if c.name in intake.folder.classes}
        for t in sorted(present):
            model = _with_statistics(model, encoder, intake, t, checkpoint, progress)
        if config.choose_shrinkage:
            model = with_best_shrinkage(model)
        model = _calibrated(model, task if intake.new else None)
    return Learned(model, task if intake.new else None, trained.epochs if trained is not None else 0, predicted_s)


def _with_new_classes(model: Model, intake: Intake, task_name: str | None) -> tuple[Model, int]:
    task = model.next_task
    train = [p.label for p in intake.folder.pictures]
    classes = tuple(
        KnownClass(model.next_class + i, name, task, train.count(name)) for i, name in enumerate(intake.new)
    )
    names = {**model.task_names, task: task_name or f"task-{task + 1}"}
    return (
        replace(
            model,
            classes=model.classes + classes,
            task_names=names,
            next_class=model.next_class + len(classes),
        ),
        task,
    )


def _train(
    model: Model,
    encoder: Encoder,
    intake: Intake,
    task: int,
    budget: TimeBudget | None,
    checkpoint: Checkpoint,
    progress: Progress,
    stopwatch: Stopwatch,
) -> Adapted | None:
    """Train the task's adapters, or return None where statistics alone have to do."""
    config = model.config
    if not adapts(model, intake):
        return None
    train, _ = intake.of_classes(intake.new)
    job = Job(
        encoder=replace(encoder, shared=None, base=None) if shapes_base(model, intake) else encoder,
        images=decode(train, encoder.preprocess, copies=True).copies,
        labels=np.asarray([intake.new.index(p.label) for p in train], np.int64),
        classes=len(intake.new),
        earlier=list(model.adapters.values()),
        update_shared=config.shared_update != "freeze",
        config=config,
        seed=config.seed * 1000 + task,
        checkpoint=checkpoint,
        progress=progress,
        stage=stopwatch.stage,
        deadline=budget.training_deadline(work_of(model, encoder, intake)) if budget else None,
    )
    return SCHEDULES[config.schedule](job)


def _with_adapters(
    model: Model, encoder: Encoder, adapted: Adapted, intake: Intake, task: int
) -> tuple[Model, Encoder]:
    """Put trained adapters in force; where the features of old classes move by it, move their statistics along."""
    anew = shapes_base(model, intake)
    base = adapted.task if anew else model.base
    moved = replace(encoder, shared=adapted.shared, base=base)
    statistics, probes = model.statistics, model.probes
    if len(statistics) and adapted.shared is not encoder.shared and (anew or model.config.shared_update == "correct"):
        pixels = decode(intake.of_classes(intake.new)[0], encoder.preprocess, copies=False).pixels
        drift = DriftMap.fit(
            *(np.concatenate([e.features for e in state.batches(pixels)]) for state in (encoder, moved))
        )
        statistics = drift.statistics(statistics, rank=model.config.covariance_rank)
        probes = {
            t: replace(p, features=drift.points(p.features.astype(np.float32)).astype(np.float16))
            for t, p in probes.items()
        }
    model = replace(model, shared=adapted.shared, base=base, statistics=statistics, probes=probes)
    if not anew:
        return replace(model, adapters={**model.adapters, task: adapted.task}), moved
    # Earlier task adapters were trained on another prefix: their tasks are answered by the new base branch.
    branches = {t: replace(branch, weight=0.0) for t, branch in model.branches.items()}
    return replace(model, adapters={}, branches=branches, base_classes=len(intake.new)), moved


@dataclass(frozen=True)
class _Encoded:
    """Features of V views of some pictures of one task, in the base branch and in the task's own."""

    base: Array  # (V, n, F)
    own: Array  # (V, n, F)
    last: Array  # (V, n, D), own branch
    classes: Indices  # permanent ids, (n,)


def _with_statistics(
    model: Model, encoder: Encoder, intake: Intake, task: int, checkpoint: Checkpoint, progress: Progress
) -> Model:
    """Add the pictures of one task's classes to the statistics and probes; give a new task its branch."""
    config = model.config
    names = {c.name for c in model.classes if c.task == task} & set(intake.folder.classes)
    pictures, held_pictures = intake.of_classes(names)
    train, held = (
        _encode(model, encoder, task, *what, checkpoint, progress)
        for what in (("features", pictures, config.statistics_views), ("hold-out", held_pictures, 0))
    )
    column = {c.id: i for i, c in enumerate(model.classes)}

    def columns(encoded: _Encoded) -> Indices:
        return np.asarray([column[int(c)] for c in encoded.classes], np.int64)

    if task in model.branches:  # more pictures of known classes
        more = [p.label for p in (*pictures, *held_pictures)]
        classes = tuple(replace(c, pictures=c.pictures + more.count(c.name)) for c in model.classes)
        model = replace(model, classes=classes)
    statistics = model.statistics.add(train.base, columns(train), rank=config.covariance_rank)
    statistics = statistics.add_to_means(held.base[0], columns(held))
    model = replace(model, statistics=statistics)
    branch = model.branches.get(task) or _new_branch(model, train)
    kept = Probes(held.base[0].astype(np.float16), held.classes, branch.discriminant.scores(held.own[0]))
    earlier = model.probes.get(task)
    kept = kept.limited(config.probes) if earlier is None else earlier.joined(kept, config.probes)
    probes = {**model.probes, task: kept} if len(kept.classes) else model.probes
    return replace(model, probes=probes, branches={**model.branches, task: branch})


def _encode(
    model: Model,
    encoder: Encoder,
    task: int,
    kind: str,
    pictures: Sequence[Picture],
    views: int,
    checkpoint: Checkpoint,
    progress: Progress,
) -> _Encoded:
    """Return the features of the centred square of each picture, and of so many augmented views."""
    classes = np.asarray([model.ids[p.label] for p in pictures], np.int64)
    stage = f"{kind}-{task}"
    if stage in checkpoint:
        tensors, _ = checkpoint.load(stage)
        return _Encoded(tensors["base"], tensors["own"], tensors["last"], classes)
    decoded, spec, scale = decode(pictures, encoder.preprocess, copies=views > 0), encoder.preprocess, STATISTICS_SCALE
    sets: list[list[Pixels]] = [list(decoded.pixels)]
    for view in range(views):
        # By content: a picture's views are the same whatever it comes with.
        seeds = [(model.config.seed, int(p.sha256[:15], 16), view) for p in pictures]
        pairs = zip(decoded.copies, seeds, strict=True)
        sets.append([spec.view(image, np.random.default_rng(seed), scale=scale) for image, seed in pairs])
    results = []
    for done, pixels in enumerate(sets, 1):
        results.append(_encode_view(encoder, model, task, pixels))
        progress("head", done, len(sets))
    tensors = {name: np.stack([result[name] for result in results]) for name in ("base", "own", "last")}
    checkpoint.save(stage, tensors)
    return _Encoded(tensors["base"], tensors["own"], tensors["last"], classes)


def _encode_view(encoder: Encoder, model: Model, task: int, pixels: Sequence[Pixels]) -> dict[str, Array]:
    adapter = model.adapters.get(task)
    widths = {"base": encoder.width, "own": encoder.width, "last": encoder.backbone.width}
    rows: dict[str, list[Array]] = {name: [np.zeros((0, width), np.float32)] for name, width in widths.items()}
    for encoding in encoder.batches(pixels):
        own = encoding if adapter is None else encoder.branch(encoding.tokens, encoding.prefix, adapter)
        for name, value in (("base", encoding.features), ("own", own.features), ("last", own.last)):
            rows[name].append(value)
    return {name: np.concatenate(value) for name, value in rows.items()}


def _new_branch(model: Model, train: _Encoded) -> Branch:
    ids, rows = np.unique(train.classes, return_inverse=True)
    own = Statistics.empty(train.own.shape[2]).add(train.own, rows, rank=model.config.covariance_rank)
    discriminant = Discriminant.of(own.means, precision_of(own, shrinkage=model.config.shrinkage))
    prototypes = np.stack([train.last[0, rows == i].mean(0) for i in range(len(ids))])
    return Branch(ids, discriminant, prototypes, weight=0.0)


def _calibrated(model: Model, task: int | None) -> Model:
    """Fit temperature and threshold; let a new task's branch share in the answer where its hold-out allows."""
    model = calibrated(model)
    if task is None or task not in model.adapters or task not in model.probes:
        return model
    branch, probes = model.branches[task], model.probes[task]
    targets = np.asarray([list(branch.classes).index(c) for c in probes.classes], np.int64)
    temperature = fit_temperature(probes.scores, targets, start=model.temperature)
    branch = replace(branch, temperature=temperature)
    weight = weigh_branch(model, branch, task, model.config.branch_weight)
    return replace(model, branches={**model.branches, task: replace(branch, weight=weight)})
