"""Training of adapters by SGD: one resumable loop, and the loss of each of the schedules' stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.lora import Adapter
from edge_cl.losses import distillation_loss, reassign_gradient
from edge_cl.statistics import Indices


@dataclass(frozen=True)
class Optimisation:
    """Settings of the SGD loop (momentum 0.9, cosine decay to zero, as in the authors' code).

    Attributes:
        epochs: passes over the task's pictures.
        learning_rate: at the start.
        batch_size: pictures a step.
        micro_batch: most pictures that go through the network at once; a step's gradient is the same.
        weight_decay: L2 penalty.
        distillation: weight of the early-exit distillation loss.
        orthogonality: weight of the orthogonality loss.
    """

    epochs: int = 10
    learning_rate: float = 0.05
    batch_size: int = 32
    micro_batch: int = 32
    weight_decay: float = 5e-4
    distillation: float = 5.0
    orthogonality: float = 1e-4


def reduces_precision(config: LearnConfig, device: torch.device) -> bool:
    """Return whether training takes matrix products in bfloat16: wanted, not the published schedule, and faster."""
    return config.reduced_precision and config.schedule != "joint" and computes_bfloat16(device)


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether a device has instructions for bfloat16, and is faster that way."""
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def epoch_batches(count: int, batch_size: int, seed: Sequence[int], labels: Indices | None = None) -> Iterator[Indices]:
    """Yield the index batches of one epoch: all of nearly the same size, at most `batch_size`.

    Args:
        count: number of pictures.
        batch_size: pictures a batch.
        seed: of the order.
        labels: class of each picture, (count,), to give every class the same share of the epoch; None: every picture
            comes once.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(count) if labels is None else _balanced(labels, generator)
    yield from np.array_split(order, batch_count(count, batch_size))


def _balanced(labels: Indices, generator: np.random.Generator) -> Indices:
    """Return as many indices as there are labels, every class as often: its pictures in turns, in random order."""
    classes = generator.permutation(np.unique(labels))
    shares = [len(part) for part in np.array_split(labels, len(classes))]
    turns = [
        np.resize(generator.permutation(np.flatnonzero(labels == c)), share)
        for c, share in zip(classes, shares, strict=True)
    ]
    return generator.permutation(np.concatenate(turns))


def batch_count(count: int, batch_size: int) -> int:
    """Return the number of batches of one epoch."""
    return max(1, math.ceil(count / batch_size))


def cosine_rate(learning_rate: float, step: int, steps: int) -> float:
    """Return the learning rate of a step under cosine decay to zero."""
    return learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))


Backward = Callable[[np.ndarray, int, float], Tensor]
"""Given picture indices, the epoch and a weight: adds the weighted mean loss's gradients and returns that loss."""


def train_stage(
    stage: str,
    modules: Sequence[nn.Module],
    backward: Backward,
    count: int,
    settings: Optimisation,
    seed: int,
    *,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    deadline: float | None = None,
    labels: Indices | None = None,
) -> int:
    """Train the parameters of some modules in place; return the number of epochs begun.

    Args:
        stage: name under which epochs are kept.
        modules: whose trainable parameters are optimised.
        backward: computes a batch's loss and leaves its gradients.
        count: number of pictures.
        settings: epochs, rates, batch.
        seed: fixes the order of the pictures.
        checkpoint: keeps every epoch's state; an interrupted stage resumes after its last whole epoch.
        on_epoch: told (epochs finished, mean loss) after each epoch.
        deadline: when to stop after the step in hand, by `time.monotonic`; then the parameters stay as they are.
        labels: class of each picture, for epochs in which every class has the same share.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=0.9, weight_decay=settings.weight_decay)
    done, ended = _restore(stage, parameters, optimiser, checkpoint)
    steps_per_epoch = batch_count(count, settings.batch_size)
    while done < settings.epochs and not ended:
        total = 0.0
        for i, batch in enumerate(epoch_batches(count, settings.batch_size, (seed, done), labels)):
            rate = cosine_rate(settings.learning_rate, done * steps_per_epoch + i, settings.epochs * steps_per_epoch)
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            for part in np.array_split(batch, batch_count(len(batch), settings.micro_batch)):
                total += float(backward(part, done, len(part) / len(batch))) * len(batch)
            optimiser.step()
            ended = deadline is not None and time.monotonic() > deadline
            if ended:
                break
        done += 1
        if not math.isfinite(total):
            raise FloatingPointError(f"Stage {stage}: the loss became {total} in epoch {done}.")
        if checkpoint is not None:
            checkpoint.save(stage, _state(parameters, optimiser), {"epochs": done, "ended": ended})
        if on_epoch is not None:
            on_epoch(done, total / count)
    return done


def _state(parameters: Sequence[nn.Parameter], optimiser: torch.optim.SGD) -> dict[str, np.ndarray]:
    state = {f"parameter.{i}": p.detach().cpu().numpy().copy() for i, p in enumerate(parameters)}
    for i, p in enumerate(parameters):
        momentum = optimiser.state[p].get("momentum_buffer")
        if momentum is not None:
            state[f"momentum.{i}"] = momentum.detach().cpu().numpy().copy()
    return state


def _restore(
    stage: str, parameters: Sequence[nn.Parameter], optimiser: torch.optim.SGD, checkpoint: Checkpoint | None
) -> tuple[int, bool]:
    """Put a saved state back; return the epochs begun, and whether the stage was ended early."""
    if checkpoint is None or stage not in checkpoint:
        return 0, False
    tensors, info = checkpoint.load(stage)
    assert isinstance(info, dict)
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(torch.from_numpy(np.array(tensors[f"parameter.{i}"])))
            if f"momentum.{i}" in tensors:
                momentum = torch.from_numpy(np.array(tensors[f"momentum.{i}"])).to(p.device)
                optimiser.state[p]["momentum_buffer"] = momentum
    return int(info["epochs"]), bool(info["ended"])


def exit_backward(shared: Adapter, teacher: Adapter, logits: Tensor, teacher_logits: Tensor, weight: float) -> Tensor:
    """Add the reassigned distillation gradient to the shared adapter's; return the weighted loss (eq. 9-10).

    Other parameters that the exit logits depend on receive their plain gradients from the task's own loss only.

    Args:
        shared: in training.
        teacher: the previous shared adapter.
        logits: exit logits under `shared`, (B, C); their graph is kept for the task's own loss.
        teacher_logits: exit logits under `teacher`, (B, C).
        weight: of the loss.
    """
    loss = weight * distillation_loss(logits, teacher_logits)
    (gradient,) = torch.autograd.grad(loss, [shared.B], retain_graph=True)
    gradient = reassign_gradient(gradient, teacher.B.detach())
    shared.B.grad = gradient if shared.B.grad is None else shared.B.grad + gradient
    return loss.detach()
