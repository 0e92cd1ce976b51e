"""One step of SGD: run as it comes, or on a GPU captured once as a CUDA graph and replayed by a single launch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor, nn

from edge_cl.statistics import Indices

Inputs: TypeAlias = tuple[Tensor, ...]
Part: TypeAlias = tuple[float, Inputs]
"""A micro-batch: its share of the batch, and its inputs on the CPU."""
Backward: TypeAlias = Callable[..., Tensor]
"""Given a weight and inputs on the device: adds the weighted mean loss's gradients and returns that loss."""


@dataclass(frozen=True)
class Objective:
    """What a training stage minimises.

    Attributes:
        inputs: given picture indices, the epoch, and the place of the first of them in its batch, makes what a step
            sees of them, on the CPU; for a GPU it is called ahead of time, in threads.
        backward: see `Backward`; its work depends on nothing but the inputs' values and what it trains.
    """

    inputs: Callable[[Indices, int, int], Inputs]
    backward: Backward


@dataclass(frozen=True)
class _Captured:
    """A step's graph, the tensors it reads, and the loss it leaves."""

    graph: torch.cuda.CUDAGraph
    inputs: Sequence[Tensor]
    loss: Tensor


@dataclass
class Step:
    """Takes the gradient of one batch, in parts, and moves the parameters by it.

    A small GPU is slower at starting the thousand kernels of a step than at running them; a graph starts them all at
    once. There is one for every combination of shapes: two, where the pictures do not divide evenly.

    Attributes:
        parameters: that are trained.
        optimiser: of these; if captured, with its rate and momenta in tensors of their device.
        backward: leaves the gradients.
        captured: whether steps are captured and replayed.
    """

    parameters: Sequence[nn.Parameter]
    optimiser: torch.optim.SGD
    backward: Backward
    captured: bool
    _graphs: dict[Hashable, _Captured] = field(default_factory=dict, init=False)

    def __call__(self, parts: Sequence[Part], rate: float) -> Tensor:
        """Do one step at a learning rate; return the batch's mean loss, a scalar that is valid until the next."""
        for group in self.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if not self.captured:
            return self._run(parts)
        key = tuple((weight, *(x.shape for x in inputs)) for weight, inputs in parts)
        if key not in self._graphs:
            self._graphs[key] = self._capture(parts)
        step = self._graphs[key]
        for held, given in zip(step.inputs, (x for _, inputs in parts for x in inputs), strict=True):
            held.copy_(given, non_blocking=True)
        step.graph.replay()
        return step.loss

    def _run(self, parts: Sequence[Part]) -> Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        loss = self._gradients(parts)
        self.optimiser.step()
        return loss

    def _gradients(self, parts: Sequence[Part]) -> Tensor:
        device = self.parameters[0].device
        losses = [self.backward(weight, *(x.to(device, non_blocking=True) for x in inputs)) for weight, inputs in parts]
        return torch.stack(losses).sum()

    def _capture(self, parts: Sequence[Part]) -> _Captured:
        device = self.parameters[0].device
        held = [(weight, tuple(x.to(device) for x in inputs)) for weight, inputs in parts]
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # libraries make their workspaces on first use, which no capture allows
                self._gradients(held)
            torch.cuda.current_stream().wait_stream(aside)
            self.optimiser.zero_grad(set_to_none=True)
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self._graphs.values())).graph.pool() if self._graphs else None
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # others make inputs meanwhile
                loss = self._run(held)
        return _Captured(graph, [x for _, inputs in held for x in inputs], loss)
