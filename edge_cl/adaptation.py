"""The two schedules that train CL-LoRA's adapters for one task.

`joint` is the published one: every block runs forward and backward on fresh views in every epoch. `two-stage` trains
the prefix only when the shared adapter is due, and leaves the task adapter to be trained on prefix tokens that are
computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.decoded import Source
from edge_cl.features import Encoder
from edge_cl.lora import Adapter
from edge_cl.losses import CosineClassifier, feature_distance, orthogonality_loss
from edge_cl.preprocess import Pixels, Preprocess
from edge_cl.progress import Progress
from edge_cl.statistics import Indices
from edge_cl.step import Inputs, Objective
from edge_cl.tokens import ResidentTokens, Tokens
from edge_cl.training import Optimisation, exit_backward, reduces_precision, train_stage

TURNS = 4  # by 0, 90, 180, 270 degrees
TAUGHT_EVERY = 2  # of so many pictures of a batch one's features are held to the teacher's


def vary_colours(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Return a picture (S, S, 3) in another light: brightness, contrast, saturation and white balance at random."""
    brightness, (contrast, saturation) = generator.uniform(0.6, 1.4), generator.uniform((0.6, 0.5), (1.4, 1.5))
    balance = generator.uniform(0.85, 1.15, 3)
    # One after the other they are one linear map of a pixel, and the mean that contrast keeps.
    mixing = (saturation * np.eye(3) + (1 - saturation) / 3) * (brightness * contrast * balance)
    kept = brightness * (1 - contrast) * pixels.mean() * balance
    varied = (pixels.reshape(-1, 3).astype(np.float32) @ mixing.astype(np.float32)).reshape(len(pixels), -1)
    varied += np.tile(kept.astype(np.float32), pixels.shape[1])  # a whole row: NumPy adds three numbers slowly
    result: Pixels = varied.clip(0, 255, out=varied).astype(np.uint8).reshape(pixels.shape)
    return result


@dataclass(frozen=True)
class Job:
    """One task's training.

    Attributes:
        encoder: frozen backbone; its shared adapter is the one to go on from, or None before the first.
        source: the task's training pictures.
        labels: local class of each, (n,).
        classes: number of classes.
        earlier: adapters of earlier tasks.
        update_shared: whether the shared adapter is trained.
        config: settings.
        seed: of this task.
        checkpoint: keeps finished epochs, or None.
        progress: told of every epoch.
        stage: times what runs inside it.
        deadline: when training has to end, by `time.monotonic`, or None.
        teacher: the bare backbone at more pixels, whose features teach those of a base branch in the making, or None.
    """

    encoder: Encoder
    source: Source
    labels: np.ndarray
    classes: int
    earlier: Sequence[Adapter]
    update_shared: bool
    config: LearnConfig
    seed: int
    checkpoint: Checkpoint | None
    progress: Progress
    stage: Callable[[str], AbstractContextManager[None]]
    deadline: float | None = None
    teacher: Encoder | None = None

    @property
    def shapes_base(self) -> bool:
        """Whether this training shapes prefix and base branch for all tasks to come, and not as published.

        Then colours are varied, and the quarter turns of a class are classes of their own (self-supervised label
        augmentation, Lee et al., ICML 2020): few classes have to make features for many.
        """
        return self.encoder.shared is None and self.config.schedule != "joint"

    @property
    def outputs(self) -> int:
        """Number of classes that the classifier tells apart."""
        return self.classes * (TURNS if self.shapes_base else 1)

    def turns(self, indices: np.ndarray, number: int) -> Indices:
        """Return by how many quarter turns view `number` of some pictures is rotated, (B,)."""
        if not self.shapes_base:
            return np.zeros(len(indices), np.int64)
        return np.asarray([np.random.default_rng((self.seed, int(i), number, 2)).integers(TURNS) for i in indices])

    @property
    def optimisation(self) -> Optimisation:
        """Settings of the SGD loop."""
        c = self.config
        at_once = c.shaping_batch if self.shapes_base else c.micro_batch
        return Optimisation(c.epochs, c.learning_rate, c.batch_size, at_once, c.weight_decay, captured=c.captured_steps)

    def views(self, indices: np.ndarray, number: int, spec: Preprocess) -> Tensor:
        """Return fresh view `number` of some pictures as network input, (B, 3, S, S), on the CPU.

        A view depends on seed, picture and number alone, never on what was drawn before it; at any size it is the same
        crop, turn and light.
        """
        copies, pixels = self.source.decoded.copies, []
        for i, turn in zip(indices, self.turns(indices, number), strict=True):
            generator = np.random.default_rng((self.seed, int(i), number))
            view = spec.view(copies[i], generator, scale=(self.config.fresh_view_scale, 1.0))
            pixels.append(np.rot90(vary_colours(view, generator), turn) if self.shapes_base else view)
        return torch.from_numpy(spec.normalise(np.stack(pixels)))

    def kept(self, indices: np.ndarray, number: int) -> Indices | None:
        """Return which tokens of some pictures a step sees, (B, K): all but a random share of the patches.

        They depend on seed, picture and number alone. None stands for all; none are dropped by the published schedule,
        and by the task that shapes the base branch for all others.
        """
        fixed, tokens = self.encoder.backbone.fixed_tokens, self.encoder.backbone.tokens
        whole = self.config.schedule == "joint" or self.shapes_base
        rate = 0.0 if whole else self.config.patch_drop_rate
        count = max(1, round((tokens - fixed) * (1 - rate)))
        if count == tokens - fixed:
            return None
        orders = [np.random.default_rng((self.seed, int(i), number, 1)).permutation(tokens - fixed) for i in indices]
        patches = fixed + np.sort(np.stack(orders)[:, :count], 1)
        return np.concatenate((np.tile(np.arange(fixed), (len(patches), 1)), patches), 1)

    def embedded(self, pixels: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the tokens of views (B, 3, S, S) that a step sees, before the first block, (B, K, D); see `kept`."""
        tokens = self.encoder.backbone.embed(pixels)
        return tokens if kept is None else tokens[torch.arange(len(kept), device=tokens.device)[:, None], kept]

    def targets(self, indices: np.ndarray, number: int) -> Tensor:
        """Return the classifier's right outputs for view `number` of some pictures, (B,), on the CPU."""
        return torch.from_numpy(self.labels[indices] * (self.outputs // self.classes) + self.turns(indices, number))

    def inputs(self, indices: np.ndarray, number: int, *seen: Tensor) -> Inputs:
        """Return what a step sees of view `number` of some pictures, its targets, and which tokens, if not all."""
        kept = self.kept(indices, number)
        return (*seen, self.targets(indices, number), *(() if kept is None else (torch.from_numpy(kept),)))

    def fresh(self, indices: np.ndarray, number: int, first: int = 0) -> Inputs:
        """Return a fresh view's `inputs`; and of those that are taught, if any, what the teacher sees and their rows.

        Args:
            indices: of the pictures.
            number: of the view.
            first: place of the first picture in its batch; which are taught depends on places alone.
        """
        seen = self.inputs(indices, number, self.views(indices, number, self.source.spec))
        rows = np.arange(-first % TAUGHT_EVERY, len(indices), TAUGHT_EVERY)
        if self.teacher is None or not len(rows):
            return seen
        return (*seen, self.views(indices[rows], number, self.teacher.preprocess), torch.from_numpy(rows))

    def backward(self, loss: Tensor, task: Adapter, weight: float) -> Tensor:
        """Add the gradients of a loss with a task adapter's orthogonality (eq. 13); return it, weighted.

        Args:
            loss: over the pictures at hand, a scalar.
            task: the adapter in training.
            weight: share of these pictures in the batch.
        """
        loss = weight * (loss + self.optimisation.orthogonality * orthogonality_loss(task, self.earlier))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def train(self, stage: str, modules: Sequence[nn.Module], objective: Objective) -> int:
        """Train some modules in place, as a timed, resumable stage with progress; return the epochs begun."""
        config, reduced = self.config, reduces_precision(self.config, self.encoder.device)
        with self.stage(stage), self.encoder.backbone.run_mode(recompute=config.recompute, reduced=reduced):
            return train_stage(
                stage,
                modules,
                objective,
                len(self.labels),
                self.optimisation,
                self.seed,
                checkpoint=self.checkpoint,
                on_epoch=lambda epoch, loss: self.progress(stage, epoch, config.epochs),
                deadline=self.deadline,
                labels=self.labels if config.balanced and config.schedule != "joint" else None,
            )


@dataclass(frozen=True)
class Adapted:
    """What a schedule trained.

    Attributes:
        shared: the shared adapter, new or as it was.
        task: the task adapter; None where it is still to be trained, on prefix tokens under `shared`.
        epochs: that the task adapter got.
    """

    shared: Adapter
    task: Adapter | None
    epochs: int


Schedule = Callable[[Job], Adapted]
SCHEDULES: dict[str, Schedule] = {}


def schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Register a schedule under a name."""

    def register(function: Schedule) -> Schedule:
        SCHEDULES[name] = function
        return function

    return register


def new_adapters(job: Job) -> tuple[Adapter, Adapter, CosineClassifier]:
    """Return the shared adapter to train (a copy of the previous one, if any), a new task adapter and classifier."""
    backbone, r = job.encoder.backbone, job.config.r
    generator = torch.Generator().manual_seed(job.seed)
    previous = job.encoder.shared
    shared = Adapter.new_shared(backbone.split, backbone.width, r, generator)
    if previous is not None:
        shared = Adapter.from_numpy(0, previous.to_numpy(), shared=True)
    task = Adapter.new_task(backbone.split, backbone.depth - backbone.split, backbone.width, r, generator)
    classifier = CosineClassifier(backbone.width, job.outputs, generator)
    device = job.encoder.device
    return shared.to(device), task.to(device), classifier.to(device)


@schedule("joint")
def joint(job: Job) -> Adapted:
    """Train shared adapter, task adapter and classifier together on fresh views (the published schedule)."""
    shared, task, classifier = new_adapters(job)
    backbone, teacher = job.encoder.backbone, job.encoder.shared
    prefix, suffix = range(backbone.split), range(backbone.split, backbone.depth)
    if teacher is not None and not job.update_shared:
        shared, teacher = teacher.requires_grad_(False), None
    settings = job.optimisation

    def backward(weight: float, pixels: Tensor, targets: Tensor, kept: Tensor | None = None) -> Tensor:
        embedded = job.embedded(pixels, kept)
        tokens = backbone.run_blocks(embedded, prefix, shared)
        distilled: Tensor | float = 0.0
        if teacher is not None:
            logits = classifier(backbone.classify_token(tokens))
            with torch.no_grad():
                teacher_logits = classifier(backbone.exit(embedded, prefix, teacher))
            distilled = exit_backward(shared, teacher, logits, teacher_logits, weight * settings.distillation)
        loss = F.cross_entropy(classifier(backbone.exit(tokens, suffix, task)), targets)
        return job.backward(loss, task, weight) + distilled

    epochs = job.train("shared", [shared, task, classifier], Objective(job.fresh, backward))
    return Adapted(shared.requires_grad_(False), task.requires_grad_(False), epochs)


@schedule("two-stage")
def two_stage(job: Job) -> Adapted:
    """Train the shared adapter where it is due, and leave the task adapter to `train_task_adapter`."""
    if job.encoder.shared is None:
        return shape_base(job)
    return Adapted(distil_shared(job) if job.update_shared else job.encoder.shared, None, 0)


def shape_base(job: Job) -> Adapted:
    """Train shared and base adapter together, for all tasks to come.

    A backbone that was pretrained on more pixels than it is given here teaches itself: features of all blocks are held
    to those that it has, without adapters, of the same views at more pixels. That needs no classes, of which a first
    task has few, and no pass more when pictures are answered.
    """
    shared, task, classifier = new_adapters(job)
    backbone, teacher = job.encoder.backbone, job.teacher
    prefix, suffix = range(backbone.split), range(backbone.split, backbone.depth)

    def backward(weight: float, pixels: Tensor, targets: Tensor, *taught: Tensor) -> Tensor:
        if not taught:
            tokens = backbone.run_blocks(job.embedded(pixels), prefix, shared)
            loss = F.cross_entropy(classifier(backbone.exit(tokens, suffix, task)), targets)
        else:
            assert teacher is not None
            finer, rows = taught
            wanted, found = teacher.summaries(finer), list[Tensor]()  # before the student's pass fills the memory
            tokens = backbone.run_blocks(job.embedded(pixels), prefix, shared, found, rows)
            tokens = backbone.run_blocks(tokens, suffix, task, found, rows)
            share = TAUGHT_EVERY * len(finer) / len(pixels)
            distance = share * feature_distance(torch.stack(found, 1), wanted)
            loss = F.cross_entropy(classifier(backbone.classify_token(tokens)), targets)
            loss = loss + job.config.finer_weight * distance
        return job.backward(loss, task, weight)

    reduced = reduces_precision(job.config, job.encoder.device)
    with teacher.backbone.run_mode(reduced=reduced) if teacher else nullcontext():
        epochs = job.train("shared", [shared, task, classifier], Objective(job.fresh, backward))
    return Adapted(shared.requires_grad_(False), task.requires_grad_(False), epochs)


def distil_shared(job: Job) -> Adapter:
    """Train the shared adapter through the early exit: cross-entropy there, plus distillation (eq. 9-10)."""
    shared, _, classifier = new_adapters(job)
    backbone, teacher = job.encoder.backbone, job.encoder.shared
    assert teacher is not None
    settings, prefix = job.optimisation, range(backbone.split)

    def backward(weight: float, pixels: Tensor, targets: Tensor, kept: Tensor | None = None) -> Tensor:
        embedded = job.embedded(pixels, kept)
        logits = classifier(backbone.exit(embedded, prefix, shared))
        with torch.no_grad():
            teacher_logits = classifier(backbone.exit(embedded, prefix, teacher))
        distilled = exit_backward(shared, teacher, logits, teacher_logits, weight * settings.distillation)
        loss = weight * F.cross_entropy(logits, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach() + distilled

    job.train("shared", [shared, classifier], Objective(job.fresh, backward))
    return shared.requires_grad_(False)


def train_task_adapter(job: Job, tokens: Sequence[Tokens]) -> tuple[Adapter, int]:
    """Train a task adapter on prefix tokens: cross-entropy + orthogonality (eq. 11-13); return the epochs too.

    Args:
        job: the task.
        tokens: of every picture, one entry a view; epoch e uses view e mod V.
    """
    _, task, classifier = new_adapters(job)
    backbone, device = job.encoder.backbone, job.encoder.device
    suffix = range(backbone.split, backbone.depth)

    def backward(weight: float, seen: Tensor, targets: Tensor) -> Tensor:
        return job.backward(F.cross_entropy(classifier(backbone.exit(seen, suffix, task)), targets), task, weight)

    def from_disk(batch: np.ndarray, epoch: int, first: int) -> Inputs:
        return tokens[epoch % len(tokens)].rows(batch, job.kept(batch, epoch)), job.targets(batch, epoch)

    objective = Objective(from_disk, backward)
    if device.type != "cpu":  # the tokens stay there, and a step is told which to take
        held = ResidentTokens.of(tokens, device)

        def which(batch: np.ndarray, epoch: int, first: int) -> Inputs:
            return job.inputs(batch, epoch, torch.tensor([epoch % len(tokens)]), torch.from_numpy(batch))

        def from_device(
            weight: float, view: Tensor, pictures: Tensor, targets: Tensor, kept: Tensor | None = None
        ) -> Tensor:
            return backward(weight, held.rows(view, pictures, kept), targets)

        objective = Objective(which, from_device)
    epochs = job.train("train", [task, classifier], objective)
    return task.requires_grad_(False), epochs
