"""The two schedules that train CL-LoRA's adapters for one task.

`joint` is the published one: every block runs forward and backward on fresh views in every epoch. `two-stage` trains
the prefix only when the shared adapter is due, computes prefix tokens once per view, and trains the task adapter on
those tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.features import Encoder
from edge_cl.lora import Adapter
from edge_cl.losses import CosineClassifier, orthogonality_loss
from edge_cl.training import Backward, Optimisation, exit_backward, train_stage

Progress = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all)."""


@dataclass(frozen=True)
class Job:
    """One task's training.

    Attributes:
        encoder: frozen backbone; its shared adapter is the one to go on from, or None before the first.
        images: the task's training pictures, RGB.
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
    images: Sequence[Image.Image]
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
    def optimisation(self) -> Optimisation:
        """Settings of the SGD loop."""
        c = self.config
        return Optimisation(c.epochs, c.learning_rate, c.batch_size, c.weight_decay)

    def views(self, indices: np.ndarray, number: int) -> Tensor:
        """Return view `number` of some pictures as network input, (B, 3, S, S).

        A view depends on seed, picture and number alone, never on what was drawn before it.
        """
        spec = self.encoder.preprocess
        pixels = [
            spec.view(
                self.images[i],
                np.random.default_rng((self.seed, int(i), number)),
                scale=(self.config.view_scale, 1.0),
            )
            for i in indices
        ]
        return self.encoder.input(np.stack(pixels))

    def targets(self, indices: np.ndarray) -> Tensor:
        """Return local labels of some pictures, (B,)."""
        return torch.from_numpy(self.labels[indices]).to(self.encoder.device)

    def train(self, stage: str, modules: Sequence[nn.Module], backward: Backward) -> int:
        """Train some modules in place, as a timed, resumable stage with progress; return the epochs begun."""
        with self.stage(stage):
            return train_stage(
                stage,
                modules,
                backward,
                len(self.images),
                self.optimisation,
                self.seed,
                checkpoint=self.checkpoint,
                on_epoch=lambda epoch, loss: self.progress(stage, epoch, self.config.epochs),
                deadline=self.deadline,
            )


@dataclass(frozen=True)
class Adapted:
    """The adapters after a task's training, and the epochs that the task adapter got."""

    shared: Adapter
    task: Adapter
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
    classifier = CosineClassifier(backbone.width, job.classes, generator)
    device = job.encoder.device
    return shared.to(device), task.to(device), classifier.to(device)


@schedule("joint")
def joint(job: Job) -> Adapted:
    """Train shared adapter, task adapter and classifier together on fresh views (the published schedule)."""
    shared, task, classifier = new_adapters(job)
    backbone, teacher = job.encoder.backbone, job.encoder.shared
    if teacher is not None and not job.update_shared:
        shared, teacher = teacher.requires_grad_(False), None
    settings = job.optimisation

    def backward(batch: np.ndarray, epoch: int) -> Tensor:
        pixels, targets = job.views(batch, epoch), job.targets(batch)
        tokens = backbone.prefix(pixels, shared)
        distilled: Tensor | float = 0.0
        if teacher is not None:
            logits = classifier(backbone.classify_token(tokens))
            with torch.no_grad():
                teacher_logits = classifier(backbone.classify_token(backbone.prefix(pixels, teacher)))
            distilled = exit_backward(shared, teacher, logits, teacher_logits, settings)
        features = backbone.classify_token(backbone.suffix(tokens, task))
        loss = F.cross_entropy(classifier(features), targets)
        loss = loss + settings.orthogonality * orthogonality_loss(task, job.earlier)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach() + distilled

    epochs = job.train("shared", [shared, task, classifier], backward)
    return Adapted(shared.requires_grad_(False), task.requires_grad_(False), epochs)


@schedule("two-stage")
def two_stage(job: Job) -> Adapted:
    """Train the shared adapter where it is due, then the task adapter on prefix tokens computed once per view."""
    if job.encoder.shared is None:
        return joint(job)  # the first task shapes prefix and base branch together
    shared = distil_shared(job) if job.update_shared else job.encoder.shared
    tokens = [prefix_tokens(job, shared, view) for view in range(job.config.views)]
    task, epochs = train_task_adapter(job, tokens)
    return Adapted(shared, task, epochs)


def distil_shared(job: Job) -> Adapter:
    """Train the shared adapter through the early exit: cross-entropy there, plus distillation (eq. 9-10)."""
    shared, _, classifier = new_adapters(job)
    backbone, teacher = job.encoder.backbone, job.encoder.shared
    assert teacher is not None
    settings = job.optimisation

    def backward(batch: np.ndarray, epoch: int) -> Tensor:
        pixels = job.views(batch, epoch)
        logits = classifier(backbone.classify_token(backbone.prefix(pixels, shared)))
        with torch.no_grad():
            teacher_logits = classifier(backbone.classify_token(backbone.prefix(pixels, teacher)))
        distilled = exit_backward(shared, teacher, logits, teacher_logits, settings)
        loss = F.cross_entropy(logits, job.targets(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach() + distilled

    job.train("shared", [shared, classifier], backward)
    return shared.requires_grad_(False)


def prefix_tokens(job: Job, shared: Adapter, view: int) -> Tensor:
    """Return the prefix tokens of one view of every picture, (n, N, D) in half precision."""
    stage, checkpoint = f"prefix-{view}", job.checkpoint
    if checkpoint is not None and stage in checkpoint:
        return torch.from_numpy(checkpoint.load(stage)[0]["tokens"]).to(job.encoder.device)
    with job.stage("prefix"), torch.no_grad():
        batches = np.array_split(np.arange(len(job.images)), max(1, len(job.images) // 32))
        tokens = torch.cat([job.encoder.backbone.prefix(job.views(b, view), shared).half() for b in batches])
        if checkpoint is not None:
            checkpoint.save(stage, {"tokens": tokens.cpu().numpy()})
    job.progress("prefix", view + 1, job.config.views)
    return tokens


def train_task_adapter(job: Job, tokens: Sequence[Tensor]) -> tuple[Adapter, int]:
    """Train a task adapter on cached prefix tokens: cross-entropy + orthogonality (eq. 11-13); return the epochs too.

    Args:
        job: the task.
        tokens: for each view the tokens of every picture, (n, N, D); epoch e uses view e mod V.
    """
    _, task, classifier = new_adapters(job)
    backbone, settings = job.encoder.backbone, job.optimisation

    def backward(batch: np.ndarray, epoch: int) -> Tensor:
        features = backbone.classify_token(backbone.suffix(tokens[epoch % len(tokens)][batch].float(), task))
        loss = F.cross_entropy(classifier(features), job.targets(batch))
        loss = loss + settings.orthogonality * orthogonality_loss(task, job.earlier)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    epochs = job.train("train", [task, classifier], backward)
    return task.requires_grad_(False), epochs
