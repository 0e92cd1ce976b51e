"""The two schedules that train CL-LoRA's adapters for one task.

`joint` is the published one: every block runs forward and backward on fresh views in every epoch. `two-stage` trains
the prefix only when the shared adapter is due, and leaves the task adapter to be trained on prefix tokens that are
computed once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.decoded import Source
from edge_cl.encoding import Progress
from edge_cl.features import Encoder
from edge_cl.lora import Adapter
from edge_cl.losses import CosineClassifier, orthogonality_loss
from edge_cl.preprocess import Pixels
from edge_cl.statistics import Indices
from edge_cl.tokens import Tokens
from edge_cl.training import Backward, Optimisation, exit_backward, reduces_precision, train_stage

TURNS = 4  # by 0, 90, 180, 270 degrees


def vary_colours(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Return a picture (S, S, 3) in another light: brightness, contrast, saturation and white balance at random."""
    x = pixels.astype(np.float32) * np.float32(generator.uniform(0.6, 1.4))
    x += (x - x.mean()) * np.float32(generator.uniform(-0.4, 0.4))
    x += (x - x.mean(-1, keepdims=True)) * np.float32(generator.uniform(-0.5, 0.5))
    x *= generator.uniform(0.85, 1.15, 3).astype(np.float32)
    varied: Pixels = np.clip(x, 0, 255).astype(np.uint8)
    return varied


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
        return Optimisation(c.epochs, c.learning_rate, c.batch_size, c.micro_batch, c.weight_decay)

    def views(self, indices: np.ndarray, number: int) -> Tensor:
        """Return fresh view `number` of some pictures as network input, (B, 3, S, S).

        A view depends on seed, picture and number alone, never on what was drawn before it.
        """
        spec, copies, pixels = self.source.spec, self.source.decoded.copies, []
        for i, turn in zip(indices, self.turns(indices, number), strict=True):
            generator = np.random.default_rng((self.seed, int(i), number))
            view = spec.view(copies[i], generator, scale=(self.config.fresh_view_scale, 1.0))
            pixels.append(np.rot90(vary_colours(view, generator), turn) if self.shapes_base else view)
        return self.encoder.input(np.stack(pixels))

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

    def embedded(self, indices: np.ndarray, number: int) -> Tensor:
        """Return the tokens of fresh view `number` that a step sees, before the first block, (B, K, D)."""
        tokens, kept = self.encoder.backbone.embed(self.views(indices, number)), self.kept(indices, number)
        if kept is None:
            return tokens
        rows = torch.arange(len(kept), device=tokens.device)[:, None]
        return tokens[rows, torch.from_numpy(kept).to(tokens.device)]

    def targets(self, indices: np.ndarray, number: int) -> Tensor:
        """Return the classifier's right outputs for view `number` of some pictures, (B,)."""
        labels = self.labels[indices] * (self.outputs // self.classes) + self.turns(indices, number)
        return torch.from_numpy(labels).to(self.encoder.device)

    def train(self, stage: str, modules: Sequence[nn.Module], backward: Backward) -> int:
        """Train some modules in place, as a timed, resumable stage with progress; return the epochs begun."""
        config, reduced = self.config, reduces_precision(self.config, self.encoder.device)
        with self.stage(stage), self.encoder.backbone.training_mode(recompute=config.recompute, reduced=reduced):
            return train_stage(
                stage,
                modules,
                backward,
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

    def backward(batch: np.ndarray, epoch: int, weight: float) -> Tensor:
        embedded = job.embedded(batch, epoch)
        tokens = backbone.run_blocks(embedded, prefix, shared)
        distilled: Tensor | float = 0.0
        if teacher is not None:
            logits = classifier(backbone.classify_token(tokens))
            with torch.no_grad():
                teacher_logits = classifier(backbone.exit(embedded, prefix, teacher))
            distilled = exit_backward(shared, teacher, logits, teacher_logits, weight * settings.distillation)
        loss = F.cross_entropy(classifier(backbone.exit(tokens, suffix, task)), job.targets(batch, epoch))
        loss = weight * (loss + settings.orthogonality * orthogonality_loss(task, job.earlier))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach() + distilled

    epochs = job.train("shared", [shared, task, classifier], backward)
    return Adapted(shared.requires_grad_(False), task.requires_grad_(False), epochs)


@schedule("two-stage")
def two_stage(job: Job) -> Adapted:
    """Train the shared adapter where it is due, and leave the task adapter to `train_task_adapter`."""
    if job.encoder.shared is None:
        return joint(job)  # the first task shapes prefix and base branch together
    return Adapted(distil_shared(job) if job.update_shared else job.encoder.shared, None, 0)


def distil_shared(job: Job) -> Adapter:
    """Train the shared adapter through the early exit: cross-entropy there, plus distillation (eq. 9-10)."""
    shared, _, classifier = new_adapters(job)
    backbone, teacher = job.encoder.backbone, job.encoder.shared
    assert teacher is not None
    settings, prefix = job.optimisation, range(backbone.split)

    def backward(batch: np.ndarray, epoch: int, weight: float) -> Tensor:
        embedded = job.embedded(batch, epoch)
        logits = classifier(backbone.exit(embedded, prefix, shared))
        with torch.no_grad():
            teacher_logits = classifier(backbone.exit(embedded, prefix, teacher))
        distilled = exit_backward(shared, teacher, logits, teacher_logits, weight * settings.distillation)
        loss = weight * F.cross_entropy(logits, job.targets(batch, epoch))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach() + distilled

    job.train("shared", [shared, classifier], backward)
    return shared.requires_grad_(False)


def train_task_adapter(job: Job, tokens: Sequence[Tokens]) -> tuple[Adapter, int]:
    """Train a task adapter on prefix tokens: cross-entropy + orthogonality (eq. 11-13); return the epochs too.

    Args:
        job: the task.
        tokens: of every picture, one entry a view; epoch e uses view e mod V.
    """
    _, task, classifier = new_adapters(job)
    backbone, settings = job.encoder.backbone, job.optimisation
    suffix, device = range(backbone.split, backbone.depth), job.encoder.device
    views = tokens if device.type == "cpu" else [view.resident(device) for view in tokens]

    def backward(batch: np.ndarray, epoch: int, weight: float) -> Tensor:
        seen = views[epoch % len(views)].rows(batch, job.kept(batch, epoch))
        loss = F.cross_entropy(classifier(backbone.exit(seen, suffix, task)), job.targets(batch, epoch))
        loss = weight * (loss + settings.orthogonality * orthogonality_loss(task, job.earlier))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    epochs = job.train("train", [task, classifier], backward)
    return task.requires_grad_(False), epochs
