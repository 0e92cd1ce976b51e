"""One learn, from decoded pictures to a new model: adapters, features, statistics, head. It writes no version."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import numpy.typing as npt

from edge_cl.adaptation import SCHEDULES, Adapted, Job, train_task_adapter
from edge_cl.assessment import (
    calibrated,
    fit_temperature,
    on_better_square,
    weigh_branch,
    with_best_shrinkage,
    with_exit,
)
from edge_cl.budget import TimeBudget, Work
from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.decoded import Decoded, Source, decode
from edge_cl.drift import DriftMap
from edge_cl.encoding import Encoded, ViewEncoder
from edge_cl.errors import FolderError
from edge_cl.features import Encoder
from edge_cl.fingerprints import with_fingerprints
from edge_cl.head import WEIGHT_BITS, Branch, Discriminant, precision_of
from edge_cl.intake import NEGATIVES, Intake
from edge_cl.model import KnownClass, Model, Probes
from edge_cl.pictures import Picture, Skipped, path_text
from edge_cl.plan import Plan, adapts, make_plan, shapes_base, teacher, work_of
from edge_cl.preprocess import Preprocess
from edge_cl.progress import Progress
from edge_cl.spread import Spread
from edge_cl.statistics import Indices, Statistics
from edge_cl.stopwatch import Stopwatch
from edge_cl.tokens import TokenCache
from edge_cl.training import reduces_precision
from edge_cl.version import Json


@dataclass(frozen=True)
class Learned:
    """Result of a learn.

    Attributes:
        model: the new one; its settings are those that were used, after fitting them into the time.
        task: number of the new task, or None.
        epochs: of adapter training (0: statistics only).
        plan: what was decided before it began.
        runtime: name of what encoded the pictures.
        intake: the pictures that it was learned from: without those that went, or became others, meanwhile.
    """

    model: Model
    task: int | None
    epochs: int
    plan: Plan
    runtime: str
    intake: Intake


@dataclass(frozen=True)
class Steps:
    """What the steps of a learn share: its size and budget, where they keep their results, whom they tell."""

    work: Work
    budget: TimeBudget | None
    checkpoint: Checkpoint
    cache: TokenCache
    progress: Progress
    stopwatch: Stopwatch


def learn(
    model: Model,
    encoder: Encoder,
    intake: Intake,
    config: LearnConfig,
    task_name: str | None,
    *,
    checkpoint: Checkpoint,
    cache: TokenCache,
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
        cache: keeps prefix tokens until the learn is done.
        progress: told of every step.
        stopwatch: gets the seconds of each stage.
        started: when the time that `config` allows began, by `time.monotonic`.
    """
    model, before = replace(model, config=config), model.closer
    with stopwatch.stage("scan"):
        plan, budget = make_plan(model, encoder, intake, started, checkpoint)
        intake, learned_from, held_out, negatives = _read(intake, encoder.preprocess, progress)
        _keep_to(checkpoint, intake)
    model = replace(model, config=plan.config)
    encoder = replace(encoder, batch_size=plan.config.micro_batch)
    steps = Steps(work_of(model, encoder, intake), budget, checkpoint, cache, progress, stopwatch)
    task, epochs = -1, 0
    if intake.new:
        model, task = _with_new_classes(model, intake, task_name)
    sources = _sources(model, encoder.preprocess, intake, learned_from, held_out)
    del learned_from, held_out  # each task's are let go of when they have been encoded
    job = None
    if adapts(model, intake):
        job = _job(model, encoder, intake, task, sources[task][0], steps)
        adapted = SCHEDULES[model.config.schedule](job)
        model, encoder = _with_adapters(model, encoder, adapted, intake, task, sources[task][0])
        job, epochs = (None, adapted.epochs) if adapted.task else (replace(job, encoder=encoder), 0)
    for t, (train, held) in sorted(sources.items()):
        model, trained = _with_pictures(model, encoder, t, train, held, job if t == task else None, steps)
        epochs = trained or epochs
    hashes = with_fingerprints(model.fingerprints, model.ids, intake.folder.pictures)
    model = replace(model, fingerprints=hashes).without_negatives(frozenset[str]().union(*hashes.values()))
    with stopwatch.stage("head"):
        if negatives.pictures:
            model = _with_negatives(model, encoder, negatives, steps)
        if config.choose_shrinkage:  # on the square that the statistics are of
            model = replace(with_best_shrinkage(replace(model, closer=False)), closer=model.closer)
        model = on_better_square(model) if config.choose_square else replace(model, closer=False)
        turned = set(model.adapters) if model.closer != before else set[int]()
        model = _calibrated(model, turned | ({task} if intake.new else set()), encoder.prefix_width)
    return Learned(model, task if intake.new else None, epochs, plan, encoder.runtime, intake)


def _with_new_classes(model: Model, intake: Intake, task_name: str | None) -> tuple[Model, int]:
    task = model.next_task
    train = [p.label for p in intake.folder.pictures]
    classes = tuple(
        KnownClass(model.next_class + i, name, task, train.count(name)) for i, name in enumerate(intake.new)
    )
    names = {**model.task_names, task: _unused(task_name or f"task-{task + 1}", set(model.task_names.values()))}
    return (
        replace(
            model,
            classes=model.classes + classes,
            task_names=names,
            next_class=model.next_class + len(classes),
        ),
        task,
    )


def _unused(name: str, taken: set[str]) -> str:
    """Return a task's name, with a number behind it where another task has it: reports tell tasks by their names."""
    names = (f"{name} ({i})" if i > 1 else name for i in count(1))
    return next(name for name in names if name not in taken)


def _read(intake: Intake, spec: Preprocess, progress: Progress) -> tuple[Intake, Decoded, Decoded, Decoded]:
    """Decode all pictures before anything is begun: the folder may change while they are learned.

    Returns:
        The intake without what has gone, or has become another picture, since it was checked; the pictures to learn
        from, those that are held out, and the negatives.

    Raises:
        FolderError: none is left.
    """
    given = intake.negatives
    unknown = given.pictures if given else ()
    steps, total = count(1), len(intake.train) + len(intake.hold_out) + len(unknown)

    def told(pictures: Sequence[Picture]) -> Iterator[Picture]:
        for picture in pictures:
            yield picture
            progress("decode", next(steps), total)

    gone, no_more = list[Skipped](), list[Skipped]()
    train = decode(told(intake.train), spec, copies=True, unchanged=True, skipped=gone)
    held = decode(told(intake.hold_out), spec, closer=True, unchanged=True, skipped=gone)
    negatives = decode(told(unknown), spec, closer=True, unchanged=True, skipped=no_more)
    left = intake.without(gone)
    if given:
        kept = replace(given, pictures=tuple(negatives.pictures), skipped=(*given.skipped, *no_more))
        left = replace(left, negatives=kept)
    if left.is_empty:
        raise FolderError(
            f"{path_text(intake.folder.root)}: no picture is any more what it was when it was checked.",
            mend="Give the same command again when the folder is at rest.",
        )
    return left, train, held, negatives


def _keep_to(checkpoint: Checkpoint, intake: Intake) -> None:
    """Go on with what a checkpoint holds only if it is of these very pictures.

    A job is known by the pictures that were checked. Of those, others may have been left when it was cut off.
    """
    negatives = intake.negatives.pictures if intake.negatives else ()
    read: Json = [[p.label, p.sha256] for p in (*intake.train, *intake.hold_out, *negatives)]
    if "read" in checkpoint and checkpoint.load("read")[1] != read:
        checkpoint.empty()
    checkpoint.save("read", {}, read)


def _sources(
    model: Model, spec: Preprocess, intake: Intake, train: Decoded, held: Decoded
) -> dict[int, tuple[Source, Source]]:
    """Return the training and the hold-out pictures of each task that gets some."""
    names, scale = set(intake.folder.classes), (model.config.view_scale, 1.0)
    by_task = defaultdict[int, set[str]](set)
    for c in model.classes:
        if c.name in names:
            by_task[c.task].add(c.name)

    def source(decoded: Decoded, of: set[str]) -> Source:
        return Source(decoded.of_classes(of), spec, model.config.seed, scale)

    return {task: (source(train, of), source(held, of)) for task, of in by_task.items()}


def _job(model: Model, encoder: Encoder, intake: Intake, task: int, source: Source, steps: Steps) -> Job:
    """Return the training of a task's adapters."""
    config = model.config
    return Job(
        encoder=replace(encoder, shared=None, base=None) if shapes_base(model, intake) else encoder,
        source=source,
        labels=np.asarray([intake.new.index(p.label) for p in source.pictures], np.int64),
        classes=len(intake.new),
        earlier=list(model.adapters.values()),
        update_shared=config.shared_update != "freeze",
        config=config,
        seed=config.seed * 1000 + task,
        checkpoint=steps.checkpoint,
        progress=steps.progress,
        stage=steps.stopwatch.stage,
        deadline=steps.budget.training_deadline(steps.work, encoded=False) if steps.budget else None,
        teacher=teacher(model, encoder, intake),
    )


def _with_adapters(
    model: Model, encoder: Encoder, adapted: Adapted, intake: Intake, task: int, source: Source
) -> tuple[Model, Encoder]:
    """Put trained adapters in force; where the features of old classes move by it, move their statistics along."""
    anew = shapes_base(model, intake)
    base = adapted.task if anew else model.base
    moved = replace(encoder, shared=adapted.shared, base=base)
    moves = adapted.shared is not encoder.shared and (anew or model.config.shared_update == "correct")
    if moves and (len(model.statistics) or len(model.negatives)):
        pixels = source.view(0)
        drift = DriftMap.fit(
            *(np.concatenate([e.features for e in state.batches(pixels)]) for state in (encoder, moved))
        )
        statistics = drift.statistics(model.statistics, rank=model.config.covariance_rank)
        model = replace(model.moved(drift.points), statistics=statistics)
    model = replace(model, shared=adapted.shared, base=base)
    if not anew:
        adapters = {**model.adapters, task: adapted.task} if adapted.task else model.adapters
        return replace(model, adapters=adapters), moved
    # Earlier task adapters were trained on another prefix: their tasks are answered by the new base branch.
    branches = {t: replace(branch, weight=0.0) for t, branch in model.branches.items()}
    return replace(model, adapters={}, branches=branches, base_classes=len(intake.new)), moved


def _with_pictures(
    model: Model, encoder: Encoder, task: int, train: Source, held: Source, job: Job | None, steps: Steps
) -> tuple[Model, int]:
    """Add the pictures of one task's classes to statistics and probes, and train its adapter where there is a job.

    Returns:
        The model, and the epochs of the job.
    """
    config, stage, epochs = model.config, steps.stopwatch.stage, 0
    views = steps.budget.fit_views(steps.work, config.views) if steps.budget and job is None else config.views
    branches = job is not None or task in model.adapters
    reduced = reduces_precision(config, encoder.device)
    encode = ViewEncoder(encoder, steps.checkpoint, steps.cache, steps.progress, reduced)
    with stage("prefix" if job else "head"):
        seen = encode.base(f"train-{task}", train, views, keep_tokens=branches and task not in model.branches)
        train.decoded.release()
        closer = held.closer()
        seen_held = encode.base(f"held-{task}", held, 0, keep_tokens=branches)
        seen_closer = encode.base(f"closer-{task}", closer, 0, keep_tokens=branches)
        held.decoded.release()
    if job is not None:
        if steps.budget:
            job = replace(job, deadline=steps.budget.training_deadline(steps.work, encoded=True))
        adapter, epochs = train_task_adapter(job, seen.tokens)
        model = replace(model, adapters={**model.adapters, task: adapter})

    def shown(name: str, source: Source, base: Encoded, views: int = 0) -> _Shown:
        own = encode.branch(f"{name}-{task}", base, model.adapters[task], 1 + views) if base.tokens else base
        return _Shown(source, base, own)

    with stage("head"):
        most = config.branch_views
        own_views = steps.budget.fit_own_views(steps.work, most) if steps.budget and job else most
        pictures = shown("train", train, seen, own_views), shown("held", held, seen_held)
        return _with_statistics(model, task, *pictures, shown("closer", closer, seen_closer)), epochs


def _with_negatives(model: Model, encoder: Encoder, decoded: Decoded, steps: Steps) -> Model:
    """Keep the features of pictures of nothing known, the latest `NEGATIVES`, each once."""
    encode = ViewEncoder(encoder, steps.checkpoint, steps.cache, steps.progress)
    own = Source(decoded, encoder.preprocess, model.config.seed, (1.0, 1.0))

    def joined(name: str, source: Source, earlier: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
        found = encode.base(name, source, 0, keep_tokens=False).features[0].astype(np.float16)
        return np.concatenate((earlier, found))[-NEGATIVES:] if len(earlier) else found

    return replace(
        model,
        negatives=joined("negatives", own, model.negatives),
        closer_negatives=joined("closer-negatives", own.closer(), model.closer_negatives),
        negative_hashes=(*model.negative_hashes, *(p.sha256 for p in own.pictures))[-NEGATIVES:],
    )


@dataclass(frozen=True)
class _Shown:
    """Pictures of one task, as the base branch and as the task's own branch see them."""

    source: Source
    base: Encoded
    own: Encoded

    def classes(self, model: Model) -> Indices:
        """Return the permanent class ids of the pictures, (n,)."""
        return np.asarray([model.ids[p.label] for p in self.source.pictures], np.int64)

    def columns(self, model: Model) -> Indices:
        """Return the rows of the pictures' classes in the statistics, (n,)."""
        column = {c.id: i for i, c in enumerate(model.classes)}
        return np.asarray([column[int(c)] for c in self.classes(model)], np.int64)


def _with_statistics(model: Model, task: int, train: _Shown, held: _Shown, closer: _Shown) -> Model:
    """Add pictures of one task's classes to the statistics and probes; give a new task its branch.

    Args:
        model: to add to.
        task: of the classes.
        train: pictures to learn from.
        held: hold-out pictures, which are in the statistics too.
        closer: the same on the closer square, which is for measuring alone.
    """
    config = model.config
    if task in model.branches:  # more pictures of known classes
        more = [p.label for p in (*train.source.pictures, *held.source.pictures)]
        classes = tuple(replace(c, pictures=c.pictures + more.count(c.name)) for c in model.classes)
        model = replace(model, classes=classes)
    parts = [(shown.base.features, shown.columns(model)) for shown in (train, held)]
    model = replace(model, statistics=model.statistics.add_all(parts, rank=config.covariance_rank))
    branch = model.branches.get(task) or _new_branch(model, train)
    spread = model.spreads.get(task) or Spread.empty(model.statistics.means.shape[1])

    def probes(shown: _Shown, every: Mapping[int, Probes]) -> Mapping[int, Probes]:
        features, own = shown.base.features[0].astype(np.float16), branch.discriminant.scores(shown.own.features[0])
        kept = Probes(features, shown.classes(model), own, np.ones(len(features), bool))
        kept = every[task].joined(kept, config.probes) if task in every else kept.limited(config.probes)
        return {**every, task: kept} if len(kept.classes) else every

    # A task of an earlier release has probes of its own square alone: both sets have to be of the same pictures.
    both = task not in model.probes or task in model.closer_probes
    return replace(
        model,
        probes=probes(held, model.probes),
        closer_probes=probes(closer, model.closer_probes) if both else model.closer_probes,
        branches={**model.branches, task: branch},
        spreads={**model.spreads, task: spread.add(train.base.features, train.classes(model))},
    )


def _new_branch(model: Model, train: _Shown) -> Branch:
    ids, rows = np.unique(train.classes(model), return_inverse=True)
    features, last = train.own.features, train.own.last[0]
    own = Statistics.empty(features.shape[2]).add(features, rows, rank=model.config.covariance_rank)
    exact = Discriminant.of(own.means, precision_of(own, shrinkage=model.config.shrinkage))
    prototypes = np.stack([last[rows == i].mean(0) for i in range(len(ids))])
    return Branch(ids, exact.rounded(WEIGHT_BITS), prototypes, weight=0.0)


def _calibrated(model: Model, tasks: set[int], width: int) -> Model:
    """Fit temperature, threshold and exit; let branches of some tasks share in the answer where hold-out allows."""
    model = with_exit(calibrated(model), width)
    for task in sorted(tasks & set(model.adapters) & set(model.probes)):
        branch, probes = model.branches[task], model.seen_probes[task]
        targets = np.asarray([list(branch.classes).index(c) for c in probes.classes], np.int64)
        temperature = fit_temperature(probes.scores, targets, start=model.temperature)
        branch = replace(branch, temperature=temperature)
        weight = weigh_branch(model, branch, task, model.config.branch_weight)
        model = replace(model, branches={**model.branches, task: replace(branch, weight=weight)})
    return model
