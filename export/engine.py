"""Building TensorRT engines from ONNX graphs, and putting new weights into one that is built.

One code path for TensorRT 10.3 to 11.4, and for `tensorrt_rtx`, which compiles without a GPU: the module is a
parameter. Precision comes from the graph (strongly typed networks).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_cl.durable import replace_bytes
from edge_cl.errors import EngineError
from edge_cl.export.engine_source import EngineGraph, Weights
from edge_cl.runtime.nvidia import Gpu, Module, message_logger

Say = Callable[[str], None]

OTHERWISE = "Or run the bundle with the ONNX Runtime backend, which needs no engine."


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        max_batch: most pictures at once.
        opt_batch: pictures at once that it is fastest for.
        workspace_mb: most device memory that a layer may take for itself while it runs.
        refittable: names of the weights that may be replaced later; no others are, because a weight that may change
            cannot be fused into its neighbours.
        timing_cache: file that keeps what kernels were measured, so that later builds on this board are faster.
        compute_capabilities: GPUs to compile for, such as "SM86", where the module can do without the GPU itself
            (`tensorrt_rtx`); TensorRT proper compiles for the GPU at hand.
    """

    max_batch: int = 16
    opt_batch: int = 1
    workspace_mb: int = 512
    refittable: tuple[str, ...] = ()
    timing_cache: Path | None = None
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.opt_batch <= self.max_batch:
            raise EngineError(
                f"Batches of {self.opt_batch} of at most {self.max_batch} cannot be.",
                mend="Choose 1 <= opt_batch <= max_batch.",
            )


def build_engine(trt: Module, graph: EngineGraph, options: BuildOptions, *, say: Say = lambda text: None) -> bytes:
    """Build an engine from an ONNX graph.

    Args:
        trt: the TensorRT module.
        graph: what of.
        options: how.
        say: is told what did not go as usual, but does not matter.

    Returns:
        The serialised engine.

    Raises:
        EngineError: the parser or the builder refuses; all that TensorRT said is in it.
    """
    logger = message_logger(trt)
    start = logger.now()
    builder = trt.Builder(logger)
    # From 11 on every network is strongly typed, and the flag changes nothing.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = _parse(trt, network, logger, graph)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32: TF32 has the mantissa of fp16
    config.add_optimization_profile(_profile(builder, network, options, graph.path))
    _mark_refittable(trt, network, config, options, graph.path)
    if options.compute_capabilities:
        config.num_compute_capabilities = len(options.compute_capabilities)
        for i, name in enumerate(options.compute_capabilities):
            config.set_compute_capability(trt.ComputeCapability.__members__[name], i)
    if options.timing_cache is not None:
        _load_timing_cache(config, options.timing_cache, say)
    engine = builder.build_serialized_network(network, config)
    del parser  # it owns the weights that the network points to
    if engine is None:
        raise EngineError(
            f"TensorRT {trt.__version__} cannot build an engine from {graph.path}.",
            *logger.errors(start),
            mend=f"Close other programs, or give it another workspace than {options.workspace_mb} MB. {OTHERWISE}",
        )
    if options.timing_cache is not None:
        _save_timing_cache(config, options.timing_cache, say)
    return bytes(engine)


def _parse(trt: Module, network: Any, logger: Any, graph: EngineGraph) -> Any:
    parser = trt.OnnxParser(network, logger)
    # With its path: weights beside the graph are looked for in what stands before the last slash.
    if not parser.parse(graph.model, str(graph.path.absolute())):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        faults = [f"Node {error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors]
        raise EngineError(
            f"TensorRT {trt.__version__} cannot read {graph.path}.",
            *faults,
            mend=f"Export the bundle again with this version of edge-cl. {OTHERWISE}",
        )
    return parser


def _profile(builder: Any, network: Any, options: BuildOptions, graph: Path) -> Any:
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        batch, *rest = tuple(tensor.shape)
        if -1 in rest:
            raise EngineError(f"{graph}: input {tensor.name} has a free size besides the batch: {tensor.shape}.")
        if batch == -1:
            shapes = [(size, *rest) for size in (1, options.opt_batch, options.max_batch)]
            profile.set_shape(tensor.name, *shapes)
    return profile


def _mark_refittable(trt: Module, network: Any, config: Any, options: BuildOptions, graph: Path) -> None:
    if not options.refittable:
        return
    unknown = [name for name in options.refittable if not network.mark_weights_refittable(name)]
    if unknown:
        raise EngineError(f"{graph}: TensorRT knows no weights {', '.join(unknown)} that could be refitted.")
    config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)


def _load_timing_cache(config: Any, path: Path, say: Say) -> None:
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    cache = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        say(f"{path} is of another GPU or TensorRT: kernels are measured anew.")
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _save_timing_cache(config: Any, path: Path, say: Say) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        replace_bytes(path, bytes(cache.serialize()))
    except OSError as error:
        say(f"{path} cannot be written, so the next build takes as long again: {error.strerror}.")


def refit_engine(trt: Module, engine: bytes, weights: Weights, changed: Collection[str], *, gpu: Gpu) -> bytes:
    """Put new weights into a built engine, 80 to 95 % cheaper than building it anew.

    Args:
        trt: the TensorRT module.
        engine: serialised; it is not changed.
        weights: all weights of the graph by name, in its precision: TensorRT may ask for more than those changed, where
            it has fused them.
        changed: names of the weights that differ from those the engine holds.
        gpu: where it is done.

    Returns:
        The new engine, serialised, refittable again.

    Raises:
        EngineError: the engine cannot be loaded or refitted, or TensorRT rejects a weight.
    """
    logger = message_logger(trt)
    start = logger.now()
    with gpu.active():
        runtime = trt.Runtime(logger)
        loaded = runtime.deserialize_cuda_engine(engine)
        if loaded is None or not loaded.refittable:
            what = "loaded" if loaded is None else "refitted: it was built without that"
            raise EngineError(f"The engine cannot be {what}.", *logger.errors(start))
        refitter = trt.Refitter(loaded, logger)
        held = _set_weights(trt, refitter, weights, changed)
        missing = [name for name in refitter.get_missing_weights() if name not in held]
        held |= _set_weights(trt, refitter, weights, missing)
        done = not refitter.get_missing_weights() and refitter.refit_cuda_engine_async(gpu.stream)
        gpu.synchronise()
        if not done:
            still = [f"It also needs {name or 'weights without a name'}." for name in refitter.get_missing_weights()]
            raise EngineError("TensorRT cannot refit the engine.", *still, *logger.errors(start))
        result = loaded.serialize()
        del held, refitter
        if result is None:
            raise EngineError("The refitted engine cannot be serialised.", *logger.errors(start))
        return bytes(result)


def _set_weights(trt: Module, refitter: Any, weights: Weights, names: Collection[str]) -> dict[str, Any]:
    """Give the refitter some weights; what is returned must live until the refit is done."""
    known = set(refitter.get_all_weights())
    faults = [
        f"The engine has no weights {name!r} that could be refitted."
        if name not in known
        else f"There are no weights {name!r} to refit with."
        for name in names
        if name not in known or name not in weights
    ]
    if faults:
        raise EngineError(*faults)
    held = {name: np.ascontiguousarray(weights[name]) for name in names}
    for name, value in held.items():
        prototype = refitter.get_weights_prototype(name)
        kind = np.dtype(trt.nptype(prototype.dtype))
        if prototype.size != value.size or kind != value.dtype:
            faults.append(f"{name}: {value.size} {value.dtype} for {prototype.size} {kind} in the engine.")
        elif not refitter.set_named_weights(name, value):
            faults.append(f"{name}: TensorRT rejects the new weights.")
    if faults:
        raise EngineError(*faults)
    return held
