"""What a learn will do with the pictures it is given: which adapters it trains, and what of it fits the time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_cl.adaptation import TAUGHT_EVERY
from edge_cl.architecture import at_size, finer_size, patches_of
from edge_cl.budget import REDUCED_TRAINING, REDUCED_VIEW, TRAINING, TimeBudget, Work
from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.decode import decoding_bytes
from edge_cl.decoded import DECODE, copy_bytes, decode
from edge_cl.features import Encoder
from edge_cl.intake import Intake
from edge_cl.memory import Footprint
from edge_cl.model import Model
from edge_cl.process import idle_mb
from edge_cl.training import reduces_precision

PACE_PICTURES = 32  # pictures that the pace of a learn is measured on


def adapts(model: Model, intake: Intake) -> bool:
    """Return whether adapters are trained: asked for, and with enough classes and pictures to train on."""
    config, count = model.config, sum(p.label in intake.new for p in intake.train)
    return config.method != "prototype" and len(intake.new) > 1 and count >= config.adapt_pictures


def shapes_base(model: Model, intake: Intake) -> bool:
    """Return whether a task trains the shared and base adapter anew: the first, or one with many more classes."""
    return model.base is None or len(intake.new) >= model.config.readapt_factor * model.base_classes


def teaching_size(model: Model, encoder: Encoder, intake: Intake) -> int | None:
    """Return the input side at which the bare backbone teaches the base branch in the making, or None: see `Job`."""
    config = model.config
    if config.schedule == "joint" or not config.finer_weight or not shapes_base(model, intake):
        return None
    return finer_size(encoder.backbone, model.spec.image_size)


def teacher(model: Model, encoder: Encoder, intake: Intake) -> Encoder | None:
    """Return the bare backbone at that size, which shares its weights."""
    size = teaching_size(model, encoder, intake)
    if size is None:
        return None
    finer = at_size(encoder.backbone, model.spec, size).to(encoder.device)
    return Encoder(finer, replace(encoder.preprocess, image_size=size), device=encoder.device)


def keeps_encoder(model: Model, intake: Intake) -> bool:
    """Return whether shared and base adapter stay as they are: no more than an adapter of the task's own is trained."""
    return not adapts(model, intake) or (not shapes_base(model, intake) and model.config.shared_update == "freeze")


def measure_pace(encoder: Encoder, intake: Intake, config: LearnConfig, started: float) -> TimeBudget | None:
    """Measure the pace on some of the pictures, where there is a time to keep to."""
    if config.time_s is None:
        return None
    encoder = replace(encoder, compiled=None)  # training, whose seconds this gives too, runs in torch
    some, spec, start = intake.train[:PACE_PICTURES], encoder.preprocess, time.monotonic()
    copies = decode(some, spec, copies=True, skipped=[]).copies
    if not copies:
        return None  # the pictures have gone meanwhile
    decoded = time.monotonic()
    views = [spec.view(image, np.random.default_rng(0), scale=(config.view_scale, 1.0)) for image in copies]
    for _ in encoder.batches(views):
        pass
    count = len(copies)
    return TimeBudget(started + config.time_s, (decoded - start) / count, (time.monotonic() - decoded) / count)


@dataclass(frozen=True)
class Plan:
    """What was decided before a learn began.

    Attributes:
        config: the settings that fit time and memory.
        predicted_s: seconds that the learn should take; None where it has no limit.
        idle_mb: memory of the process with the model loaded.
        predicted_mb: most memory that the process should take.
    """

    config: LearnConfig
    predicted_s: float | None
    idle_mb: float
    predicted_mb: float


CHOSEN = ("method", "epochs", "views", "finer_weight", "micro_batch", "recompute")  # settings that a plan may change


def make_plan(
    model: Model, encoder: Encoder, intake: Intake, started: float, checkpoint: Checkpoint
) -> tuple[Plan, TimeBudget | None]:
    """Choose the settings that fit memory and time, once a job; measure the pace where there is a time to keep to.

    Raises:
        EdgeClError: the memory allowed is too little for any settings.
    """
    saved: Any = checkpoint.load("plan")[1] if "plan" in checkpoint else None
    encoder.warm_up()
    config, idle, predicted_s = model.config, idle_mb(), None
    pictures = (*intake.folder.pictures, *(intake.negatives.pictures if intake.negatives else ()))
    at_least = DECODE * encoder.preprocess.image_size
    footprint = Footprint.of(
        work_of(model, encoder, intake),
        encoder,
        len(model.statistics.scatter.energy),
        reduced=reduces_precision(config, encoder.device),
        classes=len(intake.folder.classes),
        copies=sum(copy_bytes(p.size, encoder.preprocess) for p in intake.train),
        decoding=max(decoding_bytes(p.size, p.bytes_a_pixel, at_least) for p in pictures),
    )
    if saved is not None:
        config = replace(config, **saved.pop("settings"))
    elif config.memory_mb is not None:
        config = footprint.fit(config, idle, config.memory_mb)
    budget = measure_pace(replace(encoder, batch_size=config.micro_batch), intake, config, started)
    if saved is not None:
        return Plan(config, **saved), budget
    if budget is not None:
        before, work = time.monotonic() - started, footprint.work
        config = budget.fit(work, config)
        work = work.under(config)
        predicted_s = before + budget.learn_s(work, config)
    plan = Plan(config, predicted_s, idle, idle + footprint.peak_mb(config))
    settings = {name: getattr(config, name) for name in CHOSEN}
    numbers = {"predicted_s": plan.predicted_s, "idle_mb": plan.idle_mb, "predicted_mb": plan.predicted_mb}
    checkpoint.save("plan", {}, {"settings": settings, **numbers})
    return plan, budget


def work_of(model: Model, encoder: Encoder, intake: Intake) -> Work:
    """Return the sizes of a learn."""
    anew, config = shapes_base(model, intake), model.config
    reduced = reduces_precision(config, encoder.device)
    together = anew or config.schedule == "joint"
    size = teaching_size(model, encoder, intake)
    backbone = encoder.backbone
    patches = patches_of(backbone, size) if size else 0
    return Work(
        train=len(intake.train),
        hold_out=len(intake.hold_out),
        prefix=backbone.split / backbone.depth,
        adapts=adapts(model, intake),
        together=together,
        distils=not anew and config.shared_update != "freeze",
        seen=1.0 if together else 1 - config.patch_drop_rate,
        training=REDUCED_TRAINING if reduced else TRAINING,
        view=REDUCED_VIEW if reduced and encoder.graphs is None else 1.0,
        finer=(patches + backbone.fixed_tokens) / backbone.tokens / TAUGHT_EVERY if size else 0.0,
        negatives=len(intake.negatives.pictures) if intake.negatives else 0,
    )
