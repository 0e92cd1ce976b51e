"""One TensorRT engine, ready to run on memory that its caller owns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_cl.errors import EngineError
from edge_cl.runtime.nvidia import Gpu, Module, message_logger

REBUILD = "Delete it: it is built again when it is needed."


class Execution:
    """A deserialised engine with one execution context; its first optimisation profile is the one in force.

    Every method needs the GPU's context active, and one thread at a time.

    Args:
        trt: the TensorRT module.
        gpu: where it runs.
        engine: serialised.
        name: what errors call it.

    Raises:
        EngineError: this TensorRT on this GPU cannot load the engine.
    """

    def __init__(self, trt: Module, gpu: Gpu, engine: bytes, name: str) -> None:
        self._gpu, self._name = gpu, name
        self._logger = message_logger(trt)
        start = self._logger.now()
        self._runtime: Any = trt.Runtime(self._logger)
        self._engine: Any = self._runtime.deserialize_cuda_engine(engine)
        self._context: Any = None if self._engine is None else self._engine.create_execution_context()
        if self._context is None:
            faults = self._logger.errors(start) or ["TensorRT gives no reason."]
            raise EngineError(
                f"The {name} engine cannot be loaded by TensorRT {trt.__version__}.", *faults, mend=REBUILD
            )
        self.inputs = self._tensors(trt.TensorIOMode.INPUT)
        self.outputs = self._tensors(trt.TensorIOMode.OUTPUT)
        self.dtypes = {
            tensor: np.dtype(trt.nptype(self._engine.get_tensor_dtype(tensor)))
            for tensor in (*self.inputs, *self.outputs)
        }
        self._addresses: dict[str, int] = {}
        self._batch = 0

    def _tensors(self, mode: Any) -> tuple[str, ...]:
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        return tuple(name for name in names if self._engine.get_tensor_mode(name) == mode)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Return the shape of an input or output; the batch is -1.

        Raises:
            EngineError: the engine has no such tensor.
        """
        if tensor not in self.dtypes:
            raise EngineError(
                f"The {self._name} engine has no tensor {tensor!r}, only {', '.join(self.dtypes)}.", mend=REBUILD
            )
        return tuple(self._engine.get_tensor_shape(tensor))

    @property
    def max_batch(self) -> int:
        """The largest batch that it was built for."""
        dynamic = [tensor for tensor in self.inputs if self.shape(tensor)[0] == -1]
        return min((int(self._engine.get_tensor_profile_shape(tensor, 0)[2][0]) for tensor in dynamic), default=1)

    def enqueue(self, batch: int, addresses: Mapping[str, int]) -> None:
        """Put one run into the GPU's stream.

        Args:
            batch: pictures, at most `max_batch`.
            addresses: of every input and output in device memory; what lies there stays untouched until the stream
                has been synchronised.

        Raises:
            EngineError: TensorRT refuses.
        """
        start = self._logger.now()
        if batch != self._batch:
            self._batch = 0
            for tensor in self.inputs:
                shape = self.shape(tensor)
                if shape[0] == -1 and not self._context.set_input_shape(tensor, (batch, *shape[1:])):
                    self._refused(f"a batch of {batch}", start)
            self._batch = batch
        for tensor, address in addresses.items():
            if self._addresses.get(tensor) != address:
                if not self._context.set_tensor_address(tensor, address):
                    self._refused(f"the address of {tensor}", start)
                self._addresses[tensor] = address
        if not self._context.execute_async_v3(self._gpu.stream):
            self._refused("to run", start)

    def _refused(self, what: str, start: int) -> None:
        raise EngineError(f"The {self._name} engine refuses {what}.", *self._logger.errors(start), mend=REBUILD)

    def close(self) -> None:
        """Release the context and the engine, in the order that TensorRT asks for."""
        self._context = None
        self._engine = None
        self._runtime = None
