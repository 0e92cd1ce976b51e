"""TensorRT on the GPU at hand, as the ladder needs it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from edge_cl.export.engine import BuildOptions, Say, build_engine, refit_engine
from edge_cl.export.engine_key import Platform, platform_of
from edge_cl.export.engine_source import Array, EngineGraph, Weights
from edge_cl.runtime.execution import Execution
from edge_cl.runtime.nvidia import Gpu, tensorrt_module


class TensorRTCompiler:
    """Builds, refits and runs engines on the first GPU; not for the camera loop: memory is allocated for every run.

    Raises:
        EngineError: TensorRT, PyCUDA or the GPU is missing.
    """

    def __init__(self) -> None:
        self._trt, self._gpu = tensorrt_module(), Gpu()

    def platform(self) -> Platform:
        """Say what engines are tied to."""
        return platform_of(self._trt, self._gpu)

    def build(self, graph: EngineGraph, options: BuildOptions, *, say: Say) -> bytes:
        """Build an engine; raises EngineError."""
        with self._gpu.active():
            return build_engine(self._trt, graph, options, say=say)

    def refit(self, engine: bytes, weights: Weights, changed: Collection[str]) -> bytes:
        """Return the engine with other weights; raises EngineError."""
        return refit_engine(self._trt, engine, weights, changed, gpu=self._gpu)

    def run(self, engine: bytes, inputs: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run an engine on inputs, cast to its own precision; raises EngineError."""
        with self._gpu.active():
            execution = Execution(self._trt, self._gpu, engine, "new")
            try:
                return [self._run(execution, given) for given in inputs]
            finally:
                execution.close()

    def _run(self, execution: Execution, inputs: Mapping[str, Array]) -> dict[str, Array]:
        dynamic = next(name for name in execution.inputs if execution.shape(name)[0] == -1)
        batch = inputs[dynamic].shape[0]
        memory = {name: self._gpu.pinned(inputs[name].shape, execution.dtypes[name]) for name in execution.inputs}
        for name, pinned in memory.items():
            pinned.array[...] = inputs[name].astype(pinned.array.dtype)
        for name in execution.outputs:
            shape = execution.shape(name)
            memory[name] = self._gpu.pinned((batch, *shape[1:]), execution.dtypes[name])
            memory[name].array[...] = np.nan  # what the engine does not write fails the comparison
        execution.enqueue(batch, {name: pinned.address for name, pinned in memory.items()})
        self._gpu.synchronise()
        return {name: np.array(memory[name].array) for name in execution.outputs}
