"""Training of adapters by SGD: one resumable loop, and the gradient of early-exit distillation."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.errors import EdgeClError
from edge_cl.lora import Adapter
from edge_cl.losses import distillation_loss, reassign_gradient
from edge_cl.statistics import Indices
from edge_cl.step import Inputs, Objective, Part, Step

Given = TypeVar("Given")
Made = TypeVar("Made")


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
        captured: whether a GPU replays a whole step as one CUDA graph.
    """

    epochs: int = 10
    learning_rate: float = 0.05
    batch_size: int = 32
    micro_batch: int = 32
    weight_decay: float = 5e-4
    distillation: float = 5.0
    orthogonality: float = 1e-4
    captured: bool = True


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


def train_stage(
    stage: str,
    modules: Sequence[nn.Module],
    objective: Objective,
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
        objective: what is minimised.
        count: number of pictures.
        settings: epochs, rates, batch.
        seed: fixes the order of the pictures.
        checkpoint: keeps every epoch's state; an interrupted stage resumes after its last whole epoch.
        on_epoch: told (epochs finished, mean loss) after each epoch.
        deadline: when to stop after the step in hand, by `time.monotonic`; then the parameters stay as they are.
        labels: class of each picture, for epochs in which every class has the same share.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    device = parameters[0].device
    optimiser = _optimiser(parameters, settings)
    done, ended = _restore(stage, parameters, optimiser, checkpoint)
    step = Step(parameters, optimiser, objective.backward, captured=settings.captured and device.type == "cuda")
    steps_per_epoch = batch_count(count, settings.batch_size)
    while done < settings.epochs and not ended:
        total = torch.zeros((), dtype=torch.float64, device=device)

        def parts(batch: Indices, epoch: int = done) -> list[Part]:
            split = np.array_split(np.arange(len(batch)), batch_count(len(batch), settings.micro_batch))
            made = [objective.inputs(batch[places], epoch, int(places[0])) for places in split]
            return [(len(places) / len(batch), _pinned(one, device)) for places, one in zip(split, made, strict=True)]

        batches = list(epoch_batches(count, settings.batch_size, (seed, done), labels))
        for i, ready in enumerate(_ahead(parts, batches, workers=torch.get_num_threads() * (device.type == "cuda"))):
            rate = cosine_rate(settings.learning_rate, done * steps_per_epoch + i, settings.epochs * steps_per_epoch)
            total += step(ready, rate) * len(batches[i])
            ended = deadline is not None and _now(device) > deadline
            if ended:
                break
        done += 1
        mean = float(total) / count
        if not math.isfinite(mean):
            raise EdgeClError(
                f"Stage {stage}: the loss became {mean} in epoch {done}.",
                mend="Learn with statistics alone: --method prototype. Nothing has changed so far.",
            )
        if checkpoint is not None:
            checkpoint.save(stage, _state(parameters, optimiser), {"epochs": done, "ended": ended})
        if on_epoch is not None:
            on_epoch(done, mean)
    return done


def _optimiser(parameters: Sequence[nn.Parameter], settings: Optimisation) -> torch.optim.SGD:
    """Return the optimiser; on a GPU one kernel, with its rate and momenta where a captured step finds them."""
    gpu = parameters[0].is_cuda
    rate = torch.tensor(settings.learning_rate, device=parameters[0].device) if gpu else settings.learning_rate
    optimiser = torch.optim.SGD(
        parameters, lr=rate, momentum=0.9, weight_decay=settings.weight_decay, fused=True if gpu else None
    )
    for p in parameters if gpu else ():
        optimiser.state[p]["momentum_buffer"] = torch.zeros_like(p)
    return optimiser


def _ahead(make: Callable[[Given], Made], given: Iterable[Given], *, workers: int) -> Iterator[Made]:
    """Yield what is made of each of the given, in order; by some threads ahead of time, or when it is asked for."""
    if not workers:
        yield from map(make, given)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Made]] = deque()
        for one in given:
            waiting.append(pool.submit(make, one))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _pinned(inputs: Inputs, device: torch.device) -> Inputs:
    """Return inputs in memory that a GPU copies from while the processor goes on."""
    return tuple(x.pin_memory() for x in inputs) if device.type == "cuda" else inputs


def _now(device: torch.device) -> float:
    """Return the time by which a device has done all it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


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
