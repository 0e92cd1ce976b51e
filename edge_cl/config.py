"""Settings of a learn, with the defaults that were measured (docs/accuracy.md, docs/experiments.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from edge_cl.errors import UsageError, did_you_mean

SHIPPED = "edge_vit_tiny"  # name of the backbone that ships with the package
KEPT_VERSIONS = 3  # of a store that is pruned, if not told otherwise
MOST_SEED = 2**53  # whole numbers that JSON readers keep; a thousand times as much still seeds a generator
BACKBONES_DIR = Path(__file__).parent / "backbones"

Method = Literal["cl-lora", "prototype"]
Schedule = Literal["two-stage", "joint"]
SharedUpdate = Literal["freeze", "distil", "correct"]
Rule = Literal["routed", "base", "published"]


@dataclass(frozen=True)
class LearnConfig:
    """How one task is learned.

    Attributes:
        method: "cl-lora" trains adapters; "prototype" takes statistics only.
        epochs: passes over the task's pictures in each training stage.
        seed: fixes every random choice.
        schedule: "two-stage" trains task adapters on cached prefix tokens; "joint" is the published schedule.
        shared_update: what later tasks do to the shared adapter: "freeze" leaves it as the first adapted task made
            it, "distil" goes on training it with early-exit distillation as published, "correct" also moves the
            stored statistics along.
        r: rank of every adapter.
        learning_rate: of SGD at the start of each stage.
        batch_size: pictures a step.
        micro_batch: most pictures that go through the backbone at once (see also `shaping_batch`); fewer need less
            memory, the result is the same within rounding.
        recompute: whether training saves the blocks' inputs alone and runs each block again on the way back (gradient
            checkpointing, Chen et al., 2016).
        reduced_precision: whether training, and the passes over augmented views, take matrix products in bfloat16 where
            the device has instructions for it; the published schedule does not.
        captured_steps: whether a GPU replays a training step as one CUDA graph, captured once, instead of starting its
            kernels one by one.
        weight_decay: L2 penalty.
        views: augmented views of a picture, beside its centred square, that go through the prefix once: task adapters
            are trained on their tokens and the statistics taken of their features.
        view_scale: smallest area of such a view, as a fraction of the picture.
        fresh_view_scale: the same for views that serve a single step, where the prefix itself is trained.
        patch_drop_rate: share of the patches that a training step leaves out (PatchDropout, Liu et al., WACV 2023); the
            published schedule and the task that shapes the base branch leave out none.
        finer_weight: of the loss that holds the features of the task that shapes the base branch to those of the bare
            backbone at more pixels, where it was pretrained on more than it is given; 0: there is none.
        balanced: whether every class has the same share of a training epoch, whatever its number of pictures; the
            published schedule takes every picture once.
        adapt_pictures: fewest training pictures of a task that adapters are trained on (with two classes or more).
        readapt_factor: a task with so many times the classes that shaped the base branch shapes it anew.
        shrinkage: isotropic share of the pooled covariance.
        choose_shrinkage: whether the hold-out pictures choose the shrinkage, where there are enough of them.
        choose_square: whether they choose, likewise, between the square that pictures are learned on and a closer one
            to answer on; the former, if not.
        cache_mb: most that prefix tokens may take on disk during a learn, MB; fewer views are trained on to fit.
        covariance_rank: directions of the pooled covariance that are kept.
        branch_views: of these views, how many a task's own branch is run on for its statistics.
        branch_weight: share of a task branch in the answer within its task.
        hold_out: fraction of the pictures that measure the result.
        probes: most hold-out pictures of a class whose features stay behind to measure forgetting.
        max_forgetting: points (hundredths) of hold-out accuracy that a learn may cost the old classes (before - after)
            without being refused; None: no limit. What earlier learns cost is not counted.
        time_s: seconds that the learn may take; epochs and views are chosen to fit. None: as long as it takes.
        memory_mb: memory that the process may take, 2^20 bytes; micro-batch, recomputation and views are chosen to
            fit. None: as much as it takes.
    """

    method: Method = "cl-lora"
    epochs: int = 10
    seed: int = 0
    schedule: Schedule = "two-stage"
    shared_update: SharedUpdate = "freeze"
    r: int = 10
    learning_rate: float = 0.05
    batch_size: int = 32
    micro_batch: int = 16
    recompute: bool = False
    reduced_precision: bool = True
    captured_steps: bool = True
    weight_decay: float = 5e-4
    views: int = 3
    view_scale: float = 0.4
    fresh_view_scale: float = 0.2
    patch_drop_rate: float = 0.5
    finer_weight: float = 30.0
    balanced: bool = True
    adapt_pictures: int = 40
    readapt_factor: float = 3.0
    shrinkage: float = 0.5
    choose_shrinkage: bool = True
    choose_square: bool = True
    cache_mb: int = 2048
    covariance_rank: int = 1024
    branch_views: int = 0
    branch_weight: float = 0.5
    hold_out: float = 0.1
    probes: int = 20
    max_forgetting: float | None = None
    time_s: float | None = None
    memory_mb: float | None = None

    def __post_init__(self) -> None:
        faults = []
        for name, value, known in (
            ("method", self.method, get_args(Method)),
            ("schedule", self.schedule, get_args(Schedule)),
            ("shared_update", self.shared_update, get_args(SharedUpdate)),
        ):
            if value not in known:
                faults.append(f"Unknown {name} {value!r}. {did_you_mean(value, known)}")
        for name in ("epochs", "r", "batch_size", "micro_batch", "cache_mb", "covariance_rank"):
            if getattr(self, name) < 1:
                faults.append(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("seed", "weight_decay", "finer_weight", "probes", "adapt_pictures", "views", "branch_views"):
            if not 0 <= getattr(self, name) < math.inf:
                faults.append(f"{name} must not be negative, but is {getattr(self, name)}.")
        for name in ("learning_rate", "view_scale", "fresh_view_scale", "readapt_factor"):
            if not 0 < getattr(self, name) < math.inf:
                faults.append(f"{name} must be positive, not {getattr(self, name)}.")
        for name in ("shrinkage", "branch_weight", "view_scale", "fresh_view_scale"):
            if not 0 <= getattr(self, name) <= 1:
                faults.append(f"{name} must lie between 0 and 1, not {getattr(self, name)}.")
        for name in ("hold_out", "patch_drop_rate"):
            if not 0 <= getattr(self, name) < 1:
                faults.append(f"{name} must be at least 0 and less than 1, not {getattr(self, name)}.")
        if self.max_forgetting is not None and not math.isfinite(self.max_forgetting):
            faults.append(f"max_forgetting must be a number of points, not {self.max_forgetting}.")
        for name in ("time_s", "memory_mb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                faults.append(f"{name} must be positive, not {value}.")
        if faults:
            raise UsageError(*faults)

    @property
    def shaping_batch(self) -> int:
        """Most pictures at once in the task that shapes the base branch: fewer, as all blocks are trained on them."""
        return math.ceil(self.micro_batch * 2 / 3)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LearnConfig:
        """Read what `to_json` wrote, now or in an earlier release: settings that are no more are passed over."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in known})
