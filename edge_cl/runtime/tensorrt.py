"""Prefix and suffix as TensorRT engines on a GPU, through PyCUDA: the backend of Jetson boards. No torch is needed."""

from __future__ import annotations

import atexit
import copy
import functools
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_cl.backend import BASE, Encoding, prefix_encoding
from edge_cl.errors import EngineError
from edge_cl.preprocess import Pixels, Preprocess
from edge_cl.runtime.device_tokens import DeviceTokens, TokenBuffer, TokenPool
from edge_cl.runtime.execution import Execution
from edge_cl.runtime.nvidia import Gpu, Module, Pinned, release_due, tensorrt_module
from edge_cl.statistics import Array

ALIGNMENT = 256  # bytes; TensorRT's kernels expect that of every address
BUFFERS = 2  # encoded batches whose tokens have memory from the start

EngineFile = bytes | Path
AGAIN = "Export the bundle again."
Factors = tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]]]


_backends: weakref.WeakSet[TensorRTBackend] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Release engines before PyCUDA lets go of the context that they live in."""
    for backend in list(_backends):
        backend.close()
    release_due()


class _Resources:
    """Engines and memory that a backend shares with those that `with_adapters` makes of it.

    They are released soon after nobody holds them any more, neither a backend nor a call in flight nor an encoding.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.lock = threading.RLock()
        self.executions: list[Execution] = []
        self.pinned: dict[str, Pinned] = {}
        self._memory: dict[int, Any] = {}  # by address
        gpu.when_gone(self, functools.partial(_release, self.executions, self.pinned, self._memory))

    def allocate(self, size: int) -> Any:
        """Allocate so many bytes of device memory."""
        return self.keep(self.gpu.allocate(size))

    def keep(self, memory: Any) -> Any:
        """Hold device memory until it is freed, here or with all the rest."""
        self._memory[int(memory)] = memory
        return memory

    def free(self, address: int) -> None:
        """Free device memory, unless everything was released meanwhile."""
        if (memory := self._memory.pop(address, None)) is not None:
            memory.free()

    def read(self, unit: tuple[int, int], kind: npt.DTypeLike, tokens: DeviceTokens) -> npt.NDArray[np.generic]:
        """Copy tokens to the host, (B, N, D); the unit is (N, D)."""
        with self.active():
            parts = [self.gpu.download(address, (count, *unit), kind) for address, count in tokens.stretches()]
        return np.concatenate([np.empty((0, *unit), kind), *parts])

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let no other thread in, and make the context current."""
        with self.lock:
            if not self.executions:
                raise EngineError("The backend is closed.", mend="Open the bundle again.")
            with self.gpu.active():
                try:
                    yield
                except BaseException:
                    with suppress(Exception):
                        self.gpu.synchronise()  # what is still running must not meet the next batch in the buffers
                    raise

    def close(self) -> None:
        """Release everything now."""
        with self.lock:
            if not self.executions:
                return
            with self.gpu.active():
                self.gpu.synchronise()
                _release(self.executions, self.pinned, self._memory)


def _release(executions: list[Execution], pinned: dict[str, Pinned], memory: dict[int, Any]) -> None:
    """Release what there is, with the context current: pinned memory goes with its array."""
    while executions:
        executions.pop().close()
    pinned.clear()
    for address in list(memory):
        if (allocation := memory.pop(address, None)) is not None:
            allocation.free()


class TensorRTBackend:
    """Runs a bundle's engines; every method may be called from any thread, one runs at a time.

    Frames and features lie in host memory that the GPU reads and writes in place (on a Jetson both share the DRAM);
    tokens and the adapters of all tasks stay in device memory. After construction nothing is allocated, unless more
    than `BUFFERS` encodings are held at once. Close it, or use it in a `with` statement, to give the memory back.

    Args:
        prefix: engine of the prefix, serialised, or its file.
        suffix: engine of the suffix with LoRA inputs (layout shared); or one without by task (layout merged), in which
            `BASE` is the base branch.
        adapters: lora_down (L, R, D) and lora_up (L, 3D, R) by task, `BASE` among them; empty in layout merged.
        preprocess: how pictures become input.
        summaries: S, summary vectors a block.
        names: what whoever found the engines calls them.
        trt: the TensorRT module; imported where none is given.
        gpu: the GPU; the first one where none is given.

    Raises:
        EngineError: TensorRT, PyCUDA or the GPU is missing, an engine cannot be loaded, or the parts do not fit
            each other.
    """

    def __init__(
        self,
        prefix: EngineFile,
        suffix: EngineFile | Mapping[int, EngineFile],
        adapters: Mapping[int, Factors],
        preprocess: Preprocess,
        *,
        summaries: int = 2,
        names: tuple[str, ...] = (),
        trt: Module | None = None,
        gpu: Gpu | None = None,
    ) -> None:
        self.trt: Module = trt or tensorrt_module()
        self.gpu = gpu or Gpu()
        self.names = names
        self._preprocess, self._summaries = preprocess, summaries
        self._resources = _Resources(self.gpu)
        self._pinned = self._resources.pinned
        try:
            with self.gpu.active():
                self._load(prefix, suffix, adapters)
        except BaseException:
            self.close()
            raise
        _backends.add(self)

    def _load(
        self, prefix: EngineFile, suffix: EngineFile | Mapping[int, EngineFile], adapters: Mapping[int, Factors]
    ) -> None:
        self._prefix = self._execution(prefix, "prefix", {"image"}, {"tokens", "features"})
        self._shared: Execution | None = None
        if isinstance(suffix, Mapping):
            own = {"inputs": {"tokens"}, "outputs": {"features"}}
            self._suffixes = {task: self._execution(made, f"suffix-{task}", **own) for task, made in suffix.items()}
        else:
            self._shared = self._execution(suffix, "suffix", {"tokens", "lora_down", "lora_up"}, {"features"})
            self._suffixes = dict.fromkeys(adapters, self._shared)
        if BASE not in self._suffixes:
            raise EngineError("The base branch is missing among the branches.", mend=AGAIN)
        _, self._tokens, self._width = self._prefix.shape("tokens")
        self._check_shapes()
        some = self._suffixes[BASE]
        row_bytes = self._tokens * self._width * some.dtypes["tokens"].itemsize
        self.max_batch = min(execution.max_batch for execution in (self._prefix, *self._suffixes.values()))
        for name, execution, tensor in (
            ("image", self._prefix, "image"),
            ("prefix", self._prefix, "features"),
            ("suffix", some, "features"),
        ):
            shape = (self.max_batch, *execution.shape(tensor)[1:])
            self._pinned[name] = self.gpu.pinned(shape, execution.dtypes[tensor])
        resources = self._resources
        # The pool holds the resources, and no backend: in a circle they would stay until the collector comes.
        read = functools.partial(resources.read, (self._tokens, self._width), self._prefix.dtypes["tokens"])
        self._pool = TokenPool(resources.allocate, self.max_batch, row_bytes, BUFFERS, read)
        self._selected = int(resources.allocate(self.max_batch * row_bytes))
        self._adapters = self._uploaded(adapters)

    def _execution(self, source: EngineFile, name: str, inputs: set[str], outputs: set[str]) -> Execution:
        try:
            engine = source.read_bytes() if isinstance(source, Path) else source
        except OSError as error:
            raise EngineError(f"The {name} engine cannot be read: {error}.", mend=AGAIN) from error
        execution = Execution(self.trt, self.gpu, engine, name)
        self._resources.executions.append(execution)
        if set(execution.inputs) != inputs or set(execution.outputs) != outputs:
            takes, gives = ", ".join(execution.inputs), ", ".join(execution.outputs)
            raise EngineError(f"The {name} engine is of something else: it makes {gives} of {takes}.", mend=AGAIN)
        return execution

    def _check_shapes(self) -> None:
        side, unit = self._preprocess.image_size, self._summaries * self._width
        wanted: list[tuple[str, Execution, str, tuple[int, ...]]] = [("prefix", self._prefix, "image", (side, side, 3))]
        for task, execution in self._suffixes.items():
            wanted.append((f"suffix-{task}", execution, "tokens", (self._tokens, self._width)))
        faults = [
            f"The {name} engine takes {tensor} of {execution.shape(tensor)[1:]}, expected {shape}."
            for name, execution, tensor, shape in wanted
            if execution.shape(tensor)[1:] != shape
        ]
        kind = self._prefix.dtypes["tokens"]
        faults += [
            f"The prefix engine gives tokens in {kind}, the suffix-{task} engine takes {execution.dtypes['tokens']}."
            for task, execution in self._suffixes.items()
            if execution.dtypes["tokens"] != kind
        ]
        widths = [execution.shape("features")[1] for execution in (self._prefix, *self._suffixes.values())]
        faults += [f"{width} features are not {self._summaries} vectors a block." for width in widths if width % unit]
        if len(set(widths[1:])) > 1:
            faults.append(f"The suffix engines give different numbers of features: {widths[1:]}.")
        if faults:
            raise EngineError(*faults, mend="Export the bundle again: these engines are of different ones.")

    def _uploaded(self, adapters: Mapping[int, Factors]) -> dict[int, dict[str, int]]:
        """Put adapters into device memory; return their addresses by task and name of the graph's input."""
        addresses: dict[int, dict[str, int]] = {}
        for task, factors in adapters.items():
            assert self._shared is not None
            for name, value in zip(("lora_down", "lora_up"), factors, strict=True):
                shape, dtype = self._shared.shape(name), self._shared.dtypes[name]
                if value.shape != shape:
                    raise EngineError(
                        f"Task {task}: {name} is {value.shape}, the suffix engine takes {shape}.", mend=AGAIN
                    )
                address = int(self._resources.keep(self.gpu.upload(value.astype(dtype))))
                self.gpu.when_gone(self, functools.partial(self._resources.free, address))
                addresses.setdefault(task, {})[name] = address
        return addresses

    def with_adapters(self, adapters: Mapping[int, Factors], preprocess: Preprocess) -> TensorRTBackend:
        """Return a backend with other adapters on the same engines and buffers; to close one of them closes both.

        Args:
            adapters: see `TensorRTBackend`.
            preprocess: how pictures become input, of the same size: another square of them may be cut.

        Returns:
            The backend. This one answers as before; its adapters leave the device when nobody holds it any more.
        """
        with self._resources.active():
            other = copy.copy(self)
            other._preprocess = preprocess
            other._check_shapes()
            other._suffixes = dict.fromkeys(adapters, self._suffixes[BASE])
            other._adapters = other._uploaded(adapters)
        _backends.add(other)
        return other

    @property
    def preprocess(self) -> Preprocess:
        """How pictures become input."""
        return self._preprocess

    def prefix(self, pixels: Pixels) -> Encoding:
        """Run the prefix alone on (B, S, S, 3) uint8; any B, at most `max_batch` at once."""
        return prefix_encoding(*self._encoded(pixels, whole=False))

    def encode(self, pixels: Pixels) -> Encoding:
        """Run prefix and base branch on (B, S, S, 3) uint8; any B, at most `max_batch` at once."""
        return self._encoding(*self._encoded(pixels, whole=True))

    def _encoded(self, pixels: Pixels, *, whole: bool) -> tuple[DeviceTokens, Array]:
        side = self._preprocess.image_size
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (side, side, 3) or not len(pixels):
            raise EngineError(
                f"Pictures are uint8 ({pixels.dtype} given) of shape (B, {side}, {side}, 3) ({pixels.shape} given).",
                mend="Prepare them with `preprocess.centre`.",
            )
        with self._resources.active():
            starts = range(0, len(pixels), self.max_batch)
            parts = [self._encode(pixels[i : i + self.max_batch], whole) for i in starts]
            tokens = DeviceTokens(self._pool, tuple(buffer for buffer, _ in parts), tuple(range(len(pixels))))
        return tokens, np.concatenate([features for _, features in parts])

    def branch(self, encoding: Encoding, task: int, rows: Sequence[int]) -> Encoding:
        """Run a branch on some pictures of an encoded batch; see `Backend.branch`."""
        i = list(rows)
        with self._resources.active():
            tokens: DeviceTokens = encoding.tokens[i]
            if task not in self._suffixes or not i:
                return Encoding(tokens, encoding.features[i], encoding.last[i])
            starts = range(0, len(i), self.max_batch)
            own = [self._branch(task, tokens[range(len(i))[start : start + self.max_batch]]) for start in starts]
            prefix = encoding.features[i][:, : self._pinned["prefix"].array.shape[1]]
        return self._encoding(tokens, np.concatenate((prefix, np.concatenate(own)), 1))

    def _encode(self, pixels: Pixels, whole: bool) -> tuple[TokenBuffer, Array]:
        """Return tokens and features, (B, F) or the prefix's alone, of at most `max_batch` pictures."""
        batch, buffer = len(pixels), self._pool.borrow()
        image, features = self._pinned["image"], self._pinned["prefix"]
        image.array[:batch] = pixels
        addresses = {"image": image.address, "features": features.address, "tokens": buffer.address}
        self._prefix.enqueue(batch, addresses)
        if not whole:
            self.gpu.synchronise()
            return buffer, np.array(features.array[:batch], np.float32)
        own = self._run_suffix(BASE, batch, buffer.address)  # synchronises: both runs are done
        return buffer, np.concatenate((features.array[:batch], own), 1)

    def _branch(self, task: int, tokens: DeviceTokens) -> Array:
        """Return the suffix's features (n, Fs) of at most `max_batch` pictures."""
        stretches = list(tokens.stretches())
        if len(stretches) == 1 and stretches[0][0] % ALIGNMENT == 0:
            return self._run_suffix(task, len(tokens.rows), stretches[0][0])  # the engine can read them where they are
        target = self._selected
        for source, pictures in stretches:
            self.gpu.copy(target, source, pictures * tokens.pool.row_bytes)
            target += pictures * tokens.pool.row_bytes
        return self._run_suffix(task, len(tokens.rows), self._selected)

    def _run_suffix(self, task: int, batch: int, tokens: int) -> Array:
        features = self._pinned["suffix"]
        addresses = {"tokens": tokens, "features": features.address, **self._adapters.get(task, {})}
        self._suffixes[task].enqueue(batch, addresses)
        self.gpu.synchronise()
        return np.array(features.array[:batch], np.float32)

    def _encoding(self, tokens: DeviceTokens, features: Array) -> Encoding:
        unit = self._summaries * self._width
        return Encoding(tokens, features, features[:, -unit:][:, : self._width])

    def close(self) -> None:
        """Give engines and memory back; encodings made before are of no use any more."""
        self._resources.close()

    def __enter__(self) -> TensorRTBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
