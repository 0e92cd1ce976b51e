"""What a learn will do with the pictures it is given: which adapters it trains, and what of it fits the time."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from edge_cl.budget import TimeBudget, Work
from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.decoded import decode
from edge_cl.features import Encoder
from edge_cl.intake import Intake
from edge_cl.model import Model

STATISTICS_SCALE = (0.4, 1.0)  # area of the views that go into the statistics
PACE_PICTURES = 32  # pictures that the pace of a learn is measured on


def adapts(model: Model, intake: Intake) -> bool:
    """Return whether adapters are trained: asked for, and with enough classes and pictures to train on."""
    config, (train, _) = model.config, intake.of_classes(intake.new)
    return config.method != "prototype" and len(intake.new) > 1 and len(train) >= config.adapt_pictures


def shapes_base(model: Model, intake: Intake) -> bool:
    """Return whether a task trains the shared and base adapter anew: the first, or one with many more classes."""
    return model.base is None or len(intake.new) >= model.config.readapt_factor * model.base_classes


def measure_pace(encoder: Encoder, intake: Intake, config: LearnConfig, started: float) -> TimeBudget | None:
    """Measure the pace on some of the pictures, where there is a time to keep to."""
    if config.time_s is None:
        return None
    some, spec, start = intake.train[:PACE_PICTURES], encoder.preprocess, time.monotonic()
    copies = decode(some, spec, copies=True).copies
    decoded = time.monotonic()
    views = [spec.view(image, np.random.default_rng(0), scale=STATISTICS_SCALE) for image in copies]
    for _ in encoder.batches(views):
        pass
    count = max(1, len(some))
    return TimeBudget(started + config.time_s, (decoded - start) / count, (time.monotonic() - decoded) / count)


def fit_to_time(
    model: Model, encoder: Encoder, intake: Intake, budget: TimeBudget, started: float, checkpoint: Checkpoint
) -> tuple[Model, float]:
    """Choose the settings that fit the time, once a job; return the model with them, and the seconds predicted."""
    if "plan" in checkpoint:
        plan: Any = checkpoint.load("plan")[1]
    else:
        before, work = time.monotonic() - started, work_of(model, encoder, intake)
        config = budget.fit(work, model.config)
        work = replace(work, adapts=work.adapts and config.method != "prototype")
        names = ("method", "epochs", "views", "statistics_views")
        plan = {"settings": {name: getattr(config, name) for name in names}}
        plan["predicted_s"] = before + budget.learn_s(work, config)
        checkpoint.save("plan", {}, plan)
    return replace(model, config=replace(model.config, **plan["settings"])), float(plan["predicted_s"])


def work_of(model: Model, encoder: Encoder, intake: Intake) -> Work:
    """Return the sizes of a learn."""
    anew, config = shapes_base(model, intake), model.config
    return Work(
        train=len(intake.train),
        hold_out=len(intake.hold_out),
        prefix=encoder.backbone.split / encoder.backbone.depth,
        adapts=adapts(model, intake),
        together=anew or config.schedule == "joint",
        distils=not anew and config.shared_update != "freeze",
    )
