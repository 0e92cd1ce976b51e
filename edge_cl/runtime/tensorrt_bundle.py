"""A bundle on a board: its TensorRT engines are found, verified and run."""

from __future__ import annotations

from edge_cl.backend import BASE
from edge_cl.export.bundle import Bundle
from edge_cl.export.engine_key import platform_of
from edge_cl.export.engines import branch_factors, found_engine, prefix_engine, suffix_engines
from edge_cl.runtime.nvidia import Gpu, tensorrt_module
from edge_cl.runtime.tensorrt import TensorRTBackend


def tensorrt_backend(bundle: Bundle, *, previous: TensorRTBackend | None = None) -> TensorRTBackend:
    """Return what runs a bundle with the engines that were prepared for this board, on its first GPU.

    Args:
        bundle: opened; its engines are made by `edge-cl export --format tensorrt`.
        previous: backend of the same bundle before an update. Where its engines are still the ones in force, as after
            every task of a shared bundle, they are kept, and a task costs the upload of its adapter.

    Raises:
        EngineError: TensorRT, PyCUDA, the GPU or an engine of this very bundle for this very board is missing.
    """
    trt, gpu = (previous.trt, previous.gpu) if previous else (tensorrt_module(), Gpu())
    here = platform_of(trt, gpu)
    prefix = found_engine(bundle, prefix_engine(bundle), here)
    suffixes = {task: found_engine(bundle, engine, here) for task, engine in suffix_engines(bundle).items()}
    names = (prefix.sha256, *(suffix.sha256 for suffix in suffixes.values()))
    shared, factors = bundle.manifest.layout == "shared", branch_factors(bundle)
    if previous and shared and previous.names == names:
        return previous.with_adapters(factors, bundle.manifest.preprocess)
    engines = {task: suffix.read() for task, suffix in suffixes.items()}
    return TensorRTBackend(
        prefix.read(),
        engines[BASE] if shared else engines,
        factors,
        bundle.manifest.preprocess,
        summaries=bundle.manifest.shape.summaries,
        names=names,
        trt=trt,
        gpu=gpu,
    )
