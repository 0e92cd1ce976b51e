"""NVIDIA's libraries, imported when they are needed: TensorRT, and the GPU through PyCUDA.

Both come with the board, not with edge-cl; whatever is missing is named together with the command that mends it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_cl.errors import EngineError

OLDEST = (10, 3)  # TensorRT of JetPack 6.1
WITH_JETPACK = "TensorRT comes with JetPack: make the environment with `python3 -m venv --system-site-packages`."
PYCUDA = "Install PyCUDA: pip install 'edge-cl[jetson]' (it builds against the board's CUDA)."

# The modules have no type stubs.
Module = Any


def require_installed() -> None:
    """Raise EngineError where TensorRT or PyCUDA is not installed; neither is loaded."""
    for module, mend in (("tensorrt", WITH_JETPACK), ("pycuda", PYCUDA)):
        if find_spec(module) is None:
            raise EngineError(f"The Python module {module} is not installed.", mend=mend)


def tensorrt_module(name: str = "tensorrt") -> Module:
    """Import TensorRT.

    Args:
        name: "tensorrt", or "tensorrt_rtx", which compiles on a machine without a GPU.

    Raises:
        EngineError: it is not installed, or too old.
    """
    try:
        trt = importlib.import_module(name)
    except ImportError as error:
        mend = WITH_JETPACK if name == "tensorrt" else f"pip install {name.replace('_', '-')}"
        raise EngineError(f"The Python module {name} cannot be imported: {error}.", mend=mend) from error
    found = tuple(map(int, re.findall(r"\d+", str(trt.__version__))[:2]))
    if name == "tensorrt" and found < OLDEST:
        raise EngineError(
            f"TensorRT {trt.__version__} is too old: edge-cl needs {'.'.join(map(str, OLDEST))} or newer.",
            mend="Update the board to JetPack 6.1 or newer.",
        )
    return trt


@functools.cache
def message_logger(trt: Module) -> Any:
    """Return the logger of a TensorRT module: one for the whole process, kept for ever.

    TensorRT holds on to the first logger that it is given, also after the object that brought it is gone. What was
    said is asked for by time: `now()` before a call, `errors(since)` after it, oldest first.
    """

    class Messages(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[tuple[int, str]] = deque(maxlen=100)
            self._count = 0

        def log(self, severity: Any, message: str) -> None:
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                self._count += 1
                self._errors.append((self._count, " ".join(message.split())))

        def now(self) -> int:
            return self._count

        def errors(self, since: int) -> list[str]:
            return list(dict.fromkeys(text for number, text in self._errors if number > since))

    return Messages()


@dataclass(frozen=True)
class Pinned:
    """Host memory that the GPU reads and writes in place.

    Attributes:
        array: the memory, as the CPU sees it.
        address: the same memory, as the GPU sees it.
    """

    array: npt.NDArray[np.generic]
    address: int


_due: deque[tuple[Gpu, Callable[[], None]]] = deque()  # of owners that are gone, of all GPUs opened


def release_due() -> None:
    """Release what `Gpu.when_gone` was given, of owners that are gone."""
    while True:
        try:
            gpu, release = _due.popleft()
        except IndexError:
            return
        with gpu.current():
            release()


class Gpu:
    """One GPU through PyCUDA, in its primary context: the one that torch and TensorRT use too.

    Whatever is allocated here must also be released while the context is `active`.

    Args:
        index: of the device.

    Raises:
        EngineError: PyCUDA, the driver or the device is missing.
    """

    def __init__(self, index: int = 0) -> None:
        self._cuda = _driver()
        with self._reported(f"GPU {index} cannot be used"):
            self._cuda.init()
            self._device = self._cuda.Device(index)
            # `pycuda.autoinit` would make a second context, whose memory neither torch nor TensorRT could use.
            self._primary = self._device.retain_primary_context()
        with self.active():
            # It waits for the default stream, which `upload` uses, and the default stream for it.
            self._stream = self._cuda.Stream()

    @contextlib.contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._cuda.MemoryError as error:
            raise EngineError(
                f"{what}: its memory is full ({error}).",
                mend="Close other programs, or build the engines for a smaller batch.",
            ) from error
        except self._cuda.Error as error:
            raise EngineError(f"{what}: {error}.", mend="See `edge-cl doctor`; restart the program.") from error

    @property
    def name(self) -> str:
        """Name of the GPU."""
        return str(self._device.name())

    @property
    def compute_capability(self) -> str:
        """Such as "8.7"."""
        return ".".join(map(str, self._device.compute_capability()))

    @property
    def cuda_version(self) -> str:
        """Of the driver, such as "12.6"."""
        version = int(self._cuda.get_driver_version())
        return f"{version // 1000}.{version % 1000 // 10}"

    @property
    def stream(self) -> int:
        """Handle of the one stream that all work goes through, not the default stream."""
        return int(self._stream.handle)

    def when_gone(self, owner: object, release: Callable[[], None]) -> None:
        """Have something released when its owner is gone and a context is `active` next.

        The owner may go at any moment and in any thread: where the context is not current, PyCUDA only warns and leaks.

        Args:
            owner: whatever it belongs to.
            release: is called with the context current; it must not hold the owner.
        """
        weakref.finalize(owner, _due.append, (self, release)).atexit = False

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Release what is due, and make the context `current`."""
        release_due()
        with self.current():
            yield

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the primary context current in this thread; what CUDA reports is raised as EngineError."""
        self._primary.push()
        try:
            with self._reported(f"The GPU {self._device.name()} failed"):
                yield
        finally:
            self._cuda.Context.pop()

    def pinned(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Pinned:
        """Allocate host memory that is mapped into the GPU's address space."""
        array = self._cuda.pagelocked_empty(shape, dtype, mem_flags=self._cuda.host_alloc_flags.DEVICEMAP)
        return Pinned(array, int(array.base.get_device_pointer()))

    def allocate(self, size: int) -> Any:
        """Allocate so many bytes of device memory; `int()` gives the address, `free()` releases it."""
        return self._cuda.mem_alloc(size)

    def upload(self, array: npt.NDArray[np.generic]) -> Any:
        """Return device memory that holds a copy of an array."""
        return self._cuda.to_device(np.ascontiguousarray(array))

    def download(self, source: int, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        """Return a copy of an array in device memory, after all work in the stream."""
        array = np.empty(shape, dtype)
        self._stream.synchronize()
        self._cuda.memcpy_dtoh(array, source)
        return array

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy so many bytes within device memory, in the order of the stream."""
        self._cuda.memcpy_dtod_async(target, source, size, self._stream)

    def synchronise(self) -> None:
        """Wait until all work in the stream is done."""
        self._stream.synchronize()


def _driver() -> ModuleType:
    try:
        return importlib.import_module("pycuda.driver")
    except ImportError as error:
        if error.name in ("pycuda", "pycuda.driver"):
            raise EngineError("The Python module pycuda is not installed.", mend=PYCUDA) from error
        raise EngineError(
            f"PyCUDA is installed, but cannot be loaded: {error}.",
            mend="Without an NVIDIA driver there is no GPU to use: run with the ONNX Runtime backend. "
            "With one: pip install --force-reinstall --no-cache-dir --no-binary pycuda pycuda",
        ) from error
