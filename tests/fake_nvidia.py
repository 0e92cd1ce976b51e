"""TensorRT and PyCUDA as far as edge-cl uses them, on the CPU: engines are ONNX files, device memory is host memory.

What a GPU would do is done by ONNX Runtime at the same moment; what TensorRT and PyCUDA check is checked here too: the
context is current, shapes lie in the profile, addresses are set, memory is used before it is freed.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

KINDS = {1: np.float32, 2: np.uint8, 10: np.float16}


class CudaError(Exception):
    pass


class CudaMemoryError(CudaError):
    pass


class Device:
    """All that happens on the fake GPU, to be looked at by tests."""

    def __init__(self) -> None:
        self.stack = threading.local()
        self.allocations = 0
        self.live: dict[int, Any] = {}
        self.pinned: list[int] = []
        self.copies: list[int] = []
        self.runs: list[tuple[str, int]] = []
        self.memory_limit = 1 << 40
        self.deserialised = 0
        self.engines: weakref.WeakSet[Any] = weakref.WeakSet()  # that live
        self.leaks = 0  # of pinned memory whose array went where no context was current

    def need_context(self) -> None:
        if not getattr(self.stack, "depth", 0):
            raise CudaError("invalid device context")

    def unpin(self, address: int) -> None:
        self.leaks += not getattr(self.stack, "depth", 0)
        self.pinned.remove(address)
        del self.live[address]

    def memory(self, size: int) -> tuple[int, Any]:
        self.need_context()
        if size > self.memory_limit:
            raise CudaMemoryError("out of memory")
        self.allocations += 1
        raw = (ctypes.c_char * (size + 256))()
        address = -(-ctypes.addressof(raw) // 256) * 256
        self.live[address] = raw
        return address, raw


class Allocation:
    def __init__(self, device: Device, size: int) -> None:
        self.device = device
        self.address, _ = device.memory(size)

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.device.need_context()
        del self.device.live[self.address]


def driver(device: Device) -> ModuleType:
    """Return a stand-in for `pycuda.driver`."""
    cuda = ModuleType("pycuda.driver")

    class Context:
        def push(self) -> None:
            device.stack.depth = getattr(device.stack, "depth", 0) + 1

        @staticmethod
        def pop() -> None:
            device.need_context()
            device.stack.depth -= 1

    class Gpu:
        def __init__(self, index: int) -> None:
            if index:
                raise CudaError("invalid device ordinal")

        def name(self) -> str:
            return "Orin"

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

        def retain_primary_context(self) -> Context:
            return Context()

    class Stream:
        handle = 77

        def __init__(self) -> None:
            device.need_context()

        def synchronize(self) -> None:
            device.need_context()

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any, mem_flags: int) -> np.ndarray:
        assert mem_flags == 2
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address, raw = device.memory(size)
        device.pinned.append(address)
        array = np.frombuffer(raw, dtype, int(np.prod(shape)), address - ctypes.addressof(raw)).reshape(shape)
        pinned = _with_base(array, SimpleNamespace(get_device_pointer=lambda: address))
        weakref.finalize(pinned, device.unpin, address).atexit = False
        return pinned

    def to_device(array: np.ndarray) -> Allocation:
        memory = Allocation(device, array.nbytes)
        ctypes.memmove(int(memory), array.ctypes.data, array.nbytes)
        return memory

    def memcpy_dtod_async(target: int, source: int, size: int, stream: Any) -> None:
        assert isinstance(stream, Stream)
        device.need_context()
        device.copies.append(size)
        ctypes.memmove(target, source, size)

    def memcpy_dtoh(target: np.ndarray, source: int) -> None:
        device.need_context()
        ctypes.memmove(target.ctypes.data, source, target.nbytes)

    values = {
        "Error": CudaError,
        "MemoryError": CudaMemoryError,
        "Context": Context,
        "Device": Gpu,
        "Stream": Stream,
        "init": lambda: None,
        "get_driver_version": lambda: 12060,
        "host_alloc_flags": SimpleNamespace(DEVICEMAP=2),
        "pagelocked_empty": pagelocked_empty,
        "mem_alloc": lambda size: Allocation(device, size),
        "to_device": to_device,
        "memcpy_dtod_async": memcpy_dtod_async,
        "memcpy_dtoh": memcpy_dtoh,
    }
    for name, value in values.items():
        setattr(cuda, name, value)
    return cuda


def _with_base(array: np.ndarray, base: Any) -> Any:
    """An array whose `base` is the allocation, as PyCUDA makes them."""

    class Array(np.ndarray):
        @property
        def base(self) -> Any:  # type: ignore[override]
            return base

    return array.view(Array)


def tensorrt(device: Device, max_batch: int) -> ModuleType:
    """Return a stand-in for the runtime half of `tensorrt`; engines are serialised ONNX models."""
    trt = ModuleType("tensorrt")

    class ILogger:
        Severity = SimpleNamespace(ERROR=1, WARNING=2)

    class Context:
        def __init__(self, engine: Engine) -> None:
            self.engine, self.shapes, self.addresses = engine, {}, {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            self.shapes[name] = shape
            return 1 <= shape[0] <= max_batch

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return address % 256 == 0

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == 77
            device.need_context()
            engine, batch = self.engine, next(iter(self.shapes.values()))[0]
            assert set(self.addresses) == set(engine.kinds)
            device.runs.append((engine.inputs[0], batch))
            outputs = engine.session.run(
                engine.outputs,
                {name: self.at(name, self.shapes.get(name, engine.shapes[name])) for name in engine.inputs},
            )
            for name, value in zip(engine.outputs, outputs, strict=True):
                self.at(name, value.shape)[...] = value
            return True

        def at(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
            kind = np.dtype(self.engine.kinds[name])
            size = int(np.prod(shape)) * kind.itemsize
            raw = (ctypes.c_char * size).from_address(self.addresses[name])
            return np.frombuffer(raw, kind).reshape(shape)

    class Engine:
        def __init__(self, data: bytes) -> None:
            graph = onnx.load_model_from_string(data).graph
            self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            self.inputs, self.outputs = ([value.name for value in part] for part in (graph.input, graph.output))
            types = {v.name: v.type.tensor_type for v in (*graph.input, *graph.output)}
            self.kinds = {name: KINDS[kind.elem_type] for name, kind in types.items()}
            self.shapes = {
                name: tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
                for name, kind in types.items()
            }
            self.num_io_tensors = len(types)

        def create_execution_context(self) -> Context:
            return Context(self)

        def get_tensor_name(self, i: int) -> str:
            return list(self.kinds)[i]

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name in self.inputs else "out"

        def get_tensor_dtype(self, name: str) -> Any:
            return self.kinds[name]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.shapes[name]

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            return [(size, *self.shapes[name][1:]) for size in (1, 1, max_batch)]

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> Engine | None:
            device.need_context()
            if not data.startswith(b"\x08"):
                self.logger.log(1, "Serialization assertion\n magicTag failed")
                return None
            device.deserialised += 1
            device.engines.add(engine := Engine(data))
            return engine

    values = {
        "__version__": "10.3.0",
        "ILogger": ILogger,
        "Runtime": Runtime,
        "TensorIOMode": SimpleNamespace(INPUT="in", OUTPUT="out"),
        "nptype": lambda kind: kind,
    }
    for name, value in values.items():
        setattr(trt, name, value)
    return trt


def engine_of(graph: Path) -> bytes:
    """Return an ONNX file with its weights inside, as the stand-in's engine."""
    return onnx.load_model(graph).SerializeToString()


def install(monkeypatch: pytest.MonkeyPatch, *, max_batch: int) -> Device:
    """Put both stand-ins in the modules' place for a test."""
    device = Device()
    package = ModuleType("pycuda")
    package.driver = driver(device)  # type: ignore[attr-defined]
    modules: Mapping[str, ModuleType] = {
        "pycuda": package,
        "pycuda.driver": package.driver,
        "tensorrt": tensorrt(device, max_batch),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return device
