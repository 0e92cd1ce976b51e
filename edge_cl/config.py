"""Settings of a learn, with the defaults that were measured (docs/accuracy.md)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from edge_cl.errors import UsageError, did_you_mean

SHIPPED = "edge_vit_tiny"  # name of the backbone that ships with the package
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
        weight_decay: L2 penalty.
        views: augmented views of a picture whose prefix tokens are cached.
        view_scale: smallest area of a view, as a fraction of the picture.
        adapt_pictures: fewest training pictures of a task that adapters are trained on (with two classes or more).
        readapt_factor: a task with so many times the classes that shaped the base branch shapes it anew.
        statistics_views: augmented views of a picture that go into the statistics beside its centred square.
        shrinkage: isotropic share of the pooled covariance.
        choose_shrinkage: whether the hold-out pictures choose the shrinkage, where there are enough of them.
        covariance_rank: directions of the pooled covariance that are kept.
        branch_weight: share of a task branch in the answer within its task.
        hold_out: fraction of the pictures that measure the result.
        probes: most hold-out pictures of a class whose features stay behind to measure forgetting.
        max_forgetting: points (hundredths) that old classes may lose before the learn is refused, or None.
        time_s: seconds that the learn may take; epochs and views are chosen to fit. None: as long as it takes.
    """

    method: Method = "cl-lora"
    epochs: int = 10
    seed: int = 0
    schedule: Schedule = "two-stage"
    shared_update: SharedUpdate = "freeze"
    r: int = 10
    learning_rate: float = 0.05
    batch_size: int = 32
    weight_decay: float = 5e-4
    views: int = 4
    view_scale: float = 0.2
    adapt_pictures: int = 40
    readapt_factor: float = 3.0
    statistics_views: int = 3
    shrinkage: float = 0.5
    choose_shrinkage: bool = True
    covariance_rank: int = 512
    branch_weight: float = 0.5
    hold_out: float = 0.1
    probes: int = 5
    max_forgetting: float | None = None
    time_s: float | None = None

    def __post_init__(self) -> None:
        faults = []
        for name, value, known in (
            ("method", self.method, get_args(Method)),
            ("schedule", self.schedule, get_args(Schedule)),
            ("shared_update", self.shared_update, get_args(SharedUpdate)),
        ):
            if value not in known:
                faults.append(f"Unknown {name} {value!r}. {did_you_mean(value, known)}")
        for name in ("epochs", "r", "batch_size", "views", "covariance_rank"):
            if getattr(self, name) < 1:
                faults.append(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name in ("seed", "weight_decay", "probes", "adapt_pictures", "statistics_views"):
            if not 0 <= getattr(self, name) < math.inf:
                faults.append(f"{name} must not be negative, but is {getattr(self, name)}.")
        for name in ("learning_rate", "view_scale", "readapt_factor"):
            if not 0 < getattr(self, name) < math.inf:
                faults.append(f"{name} must be positive, not {getattr(self, name)}.")
        for name in ("shrinkage", "branch_weight", "view_scale"):
            if not 0 <= getattr(self, name) <= 1:
                faults.append(f"{name} must lie between 0 and 1, not {getattr(self, name)}.")
        if not 0 <= self.hold_out < 1:
            faults.append(f"hold_out must be at least 0 and less than 1, not {self.hold_out}.")
        if self.max_forgetting is not None and not math.isfinite(self.max_forgetting):
            faults.append(f"max_forgetting must be a number of points, not {self.max_forgetting}.")
        if self.time_s is not None and not 0 < self.time_s < math.inf:
            faults.append(f"time_s must be positive, not {self.time_s}.")
        if faults:
            raise UsageError(*faults)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return asdict(self)
