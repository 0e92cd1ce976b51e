"""What tests of the learner share: a tiny store that knows two tasks, and fresh pictures of their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_cl import Learner
from edge_cl.model import Model
from edge_cl.version import Version

# Names sort in another order than they are taught in, within a task and across tasks.
TASKS = [{f"{9 - k}-first": 2 * k, f"{'zyxwvutsr'[k]}-second": 2 * k + 1} for k in range(9)]
FIRST, SECOND, THIRD = TASKS[:3]
EVERY: dict[str, int] = {name: look for task in TASKS for name, look in task.items()}


def predictions(learner: Learner, folder: Path) -> list[Any]:
    return [(a.source, a.prediction) for a in learner.predict(folder).answers]


def model(learner: Learner, version: Version | None = None) -> Model:
    return Model.load(learner.store, version or learner.store.head)


def work(learner: Learner) -> list[Path]:
    return list(learner.store.work.rglob("*"))


def means(learner: Learner, version: Version) -> np.ndarray:
    return model(learner, version).statistics.means
