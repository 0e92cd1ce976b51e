"""The tensors of the one-graph classifier: a head, its branches and all adapters, laid out for `graphs.Classifier`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from edge_cl.backend import BASE
from edge_cl.export.bundle import DTYPES, Factors
from edge_cl.head import EXIT_SHARE, Discriminant, Exit, Head
from edge_cl.spread import DIRECTIONS, Quadratic
from edge_cl.statistics import Precision

NEVER = 2.0  # a confidence that no probability exceeds
MOST = np.float32(1e6)  # what stands for "no bound" where a graph must divide by it
LEAST = np.finfo(np.float32).min  # what stands for no least score


def head_tensors(
    head: Head, adapters: Mapping[int, Factors], precision: str, prefix_features: int
) -> dict[str, npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.int64]]:
    """Return the tensors in the order of `graphs.Classifier.forward`.

    Args:
        head: what answers.
        adapters: joint factors by task, `BASE` for the base branch (down (L, R, D), up (L, 3D, R)).
        precision: of the graph, "fp32" or "fp16": the adapters' type.
        prefix_features: Fp.

    Returns:
        lora_down (A, L, R, D) and lora_up (A, L, 3D, R), the base branch first; weight (C, F), bias (C,), centre (F,),
        basis (K, F), gain (K,), scales (4,): one over temperature, variance and threshold, and the least score;
        spread_weight (R, C, C), spread_offset (R, C), spread_cost (C,), zeros where there is no spread; the same as the
        first of the exit over the prefix's features, exit_weight (C, Fp) to exit_gain, and exit_scales (5,): one over
        temperature and variance, threshold, confidence, one over threshold; membership (C, T) of classes in tasks; and
        for the task branches own_weight (C, F), own_bias (C,), own_centre (T, F), own_scales (T, 2): one over
        temperature, and the branch's share, own_adapter (T,): its place among the adapters.
    """
    tasks = np.unique(head.tasks)
    order = [BASE, *(t for t in sorted(adapters) if t != BASE)]
    dtype = DTYPES[precision]
    down, up = (np.stack([adapters[t][i] for t in order]).astype(dtype) for i in (0, 1))
    own_weight, own_bias = np.zeros_like(head.discriminant.weight), np.zeros_like(head.discriminant.bias)
    own_centre = np.zeros((len(tasks), own_weight.shape[1]), np.float32)
    own_scales = np.tile(np.asarray([1, 0], np.float32), (len(tasks), 1))
    for i, task in enumerate(tasks):
        branch = head.branches.get(int(task))
        if branch is None or len(branch.classes) < 2:
            continue
        columns = head.columns(branch.classes)
        own_weight[columns], own_bias[columns] = branch.discriminant.weight, branch.discriminant.bias
        own_centre[i], own_scales[i] = branch.discriminant.centre, (1 / branch.temperature, branch.weight)
    least = max(head.least_score, LEAST)
    scales = [1 / head.temperature, 1 / head.precision.variance, _inverse(head.threshold), least]
    count = len(head.classes)
    spread = head.quadratic or Quadratic.none(count)
    exit = head.exit or _no_exit(head, prefix_features)
    early = exit.head
    exit_scales = [
        *(1 / early.temperature, 1 / early.precision.variance, early.threshold, exit.confidence),
        EXIT_SHARE * _inverse(early.threshold),
    ]
    return {
        "lora_down": down,
        "lora_up": up,
        "weight": head.discriminant.weight,
        "bias": head.discriminant.bias,
        "centre": head.discriminant.centre,
        "basis": head.precision.basis,
        "gain": head.precision.gain,
        "scales": np.asarray(scales, np.float32),
        "spread_weight": spread.weight.reshape(DIRECTIONS, count, count),
        "spread_offset": spread.offset.reshape(DIRECTIONS, count),
        "spread_cost": spread.cost,
        "exit_weight": early.discriminant.weight,
        "exit_bias": early.discriminant.bias,
        "exit_centre": early.discriminant.centre,
        "exit_basis": early.precision.basis,
        "exit_gain": early.precision.gain,
        "exit_scales": np.asarray(exit_scales, np.float32),
        "membership": (head.tasks[:, None] == tasks[None]).astype(np.float32),
        "own_weight": own_weight,
        "own_bias": own_bias,
        "own_centre": own_centre,
        "own_scales": own_scales,
        "own_adapter": np.asarray([order.index(int(t)) if int(t) in adapters else 0 for t in tasks], np.int64),
    }


def _inverse(threshold: float) -> float | np.float32:
    return 1 / threshold if threshold > 0 else MOST


def _no_exit(head: Head, width: int) -> Exit:
    """Return an exit that is never sure, over so many features."""
    count, nothing = len(head.classes), np.zeros(1, np.float32)
    discriminant = Discriminant(
        np.zeros((count, width), np.float32), np.zeros(count, np.float32), np.zeros(width, np.float32)
    )
    precision = Precision(np.zeros((1, width), np.float32), nothing, 1.0)
    return Exit(Head(head.classes, head.tasks, discriminant, precision), NEVER)
