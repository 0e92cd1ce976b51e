"""The classifier of a perception stack: a bundle, a backend, frames in, predictions out."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any, overload

import numpy as np
import numpy.typing as npt
from PIL import Image

from edge_cl.durable import settled
from edge_cl.errors import EdgeClError, EngineError, UsageError, did_you_mean
from edge_cl.export.bundle import ENGINES, PATIENCE_S, Bundle, BundleError, publication_of, read_manifest
from edge_cl.recognition import RULES, Prediction, Recogniser

Frame = npt.NDArray[np.uint8]
Make = Callable[[Bundle, int | None, Any], Any]
BACKENDS: dict[str, Make] = {}


def backend(name: str) -> Callable[[Make], Make]:
    """Register what makes a backend of a bundle, a number of threads, and the backend before an update (or None)."""

    def register(make: Make) -> Make:
        BACKENDS[name] = make
        return make

    return register


@backend("onnxruntime")
def _onnxruntime(bundle: Bundle, threads: int | None, previous: Any) -> Any:
    from edge_cl.runtime.onnx import OnnxBackend

    return OnnxBackend(bundle, threads=threads, previous=previous)


@backend("torch")
def _torch(bundle: Bundle, threads: int | None, previous: Any) -> Any:
    from edge_cl.runtime.torch import torch_backend

    del threads, previous
    return torch_backend(bundle)


@backend("tensorrt")
def _tensorrt(bundle: Bundle, threads: int | None, previous: Any) -> Any:
    from edge_cl.runtime.tensorrt_bundle import tensorrt_backend

    del threads
    return tensorrt_backend(bundle, previous=previous)


def automatic(path: Path) -> str:
    """Choose a backend: TensorRT for a bundle that has engines, where TensorRT is installed; else ONNX Runtime."""
    return "tensorrt" if _engines(path) and find_spec("tensorrt") and find_spec("pycuda") else "onnxruntime"


def _engines(path: Path) -> frozenset[tuple[str, int, int]]:
    """Return what tells the engines that a bundle has from those that it had before."""
    found = set()
    for sidecar in (path / ENGINES).glob("*.json"):
        with suppress(OSError):  # it went this very moment
            status = sidecar.stat()
            found.add((sidecar.name, status.st_ino, status.st_mtime_ns))
    return frozenset(found)


@dataclass(frozen=True)
class _Loaded:
    """One version of a bundle, ready to answer; never changed.

    Attributes:
        bundle: of that version.
        recogniser: what answers.
        backend: name of what runs it.
        engines: that there were when it was loaded, see `_engines`.
    """

    bundle: Bundle
    recogniser: Recogniser
    backend: str
    engines: frozenset[tuple[str, int, int]]


class Classifier:
    """Answers for frames from a bundle.

    `predict` may be called from several threads, also while another thread calls `reload`: every call is answered by
    one version, the one in force when it began.

    Args:
        path: directory of the bundle.
        backend: one of `BACKENDS`; or "auto": see `automatic`, and where an engine is missing or refused, as while
            engines of a new version are built, ONNX Runtime answers, with a warning.
        threads: CPU threads, for ONNX Runtime.
        rule: how task branches are combined, one of `recognition.RULES`.

    Raises:
        BundleError: there is no bundle, or it is damaged, altered, or of another format.
        EngineError: "tensorrt" was asked for, and its engines cannot be run here.
        UsageError: unknown backend or rule, or no thread to run on.
    """

    def __init__(
        self, path: str | Path, *, backend: str = "auto", threads: int | None = None, rule: str = "routed"
    ) -> None:
        if backend != "auto" and backend not in BACKENDS:
            raise UsageError(f"Unknown backend {backend!r}.", mend=did_you_mean(backend, ["auto", *BACKENDS]))
        if rule not in RULES:
            raise UsageError(f"Unknown rule {rule!r}.", mend=did_you_mean(rule, list(RULES)))
        if threads is not None and threads < 1:
            raise UsageError(f"Cannot run on {threads} threads.", mend="Pass threads=1 or more, or leave it out.")
        self.path = settled(Path(path))
        self._asked, self._threads, self._rule = backend, threads, rule
        self._warned = False
        self._loading = threading.Lock()
        self._loaded = self._load(None)

    @property
    def version(self) -> int:
        """The store's version that answers."""
        return self._loaded.bundle.manifest.version

    @property
    def backend(self) -> str:
        """Name of the backend that answers."""
        return self._loaded.backend

    @property
    def classes(self) -> list[str]:
        """Names of the classes known."""
        return [c.name for c in self._loaded.bundle.manifest.classes]

    @overload
    def predict(self, frames: Frame, *, top: int = 5) -> Prediction: ...

    @overload
    def predict(self, frames: Sequence[Frame], *, top: int = 5) -> list[Prediction]: ...

    def predict(self, frames: Frame | Sequence[Frame], *, top: int = 5) -> Prediction | list[Prediction]:
        """Answer for one frame or several.

        Args:
            frames: (H, W, 3) uint8, RGB, of any size; or a sequence of them (or (B, H, W, 3)).
            top: how many classes to list, at least 1.

        Returns:
            A prediction, or as many as there were frames in the sequence.

        Raises:
            UsageError: a frame of another shape or type.
        """
        if top < 1:
            raise UsageError(f"Cannot list {top} classes.", mend="Pass top=1 or more.")
        recogniser = self._loaded.recogniser
        if isinstance(frames, np.ndarray) and frames.ndim == 3:
            return recogniser.predict([_centre(recogniser, frames)], top=top)[0]
        if (isinstance(frames, np.ndarray) and frames.ndim != 4) or not isinstance(frames, Iterable):
            raise _bad_frame(frames)
        return recogniser.predict([_centre(recogniser, frame) for frame in frames], top=top)

    def reload(self) -> bool:
        """Put the bundle's present version in force, if it is another; return whether it was.

        Frames are answered meanwhile. If the new version cannot be loaded, the one in force stays. Where ONNX Runtime
        answers because engines were missing ("auto"), TensorRT takes over when they have come, which counts as another.

        Raises:
            BundleError: it cannot be loaded.
            EngineError: TensorRT answers, and the new version's engines cannot be run, or are still being built.
        """
        with self._loading:
            before = self._loaded
            same = read_manifest(self.path) == before.bundle.manifest
            if same and not self._engines_came(before):
                return False
            self._loaded = self._load(before)
            return not same or self._loaded.backend != before.backend

    def _engines_came(self, before: _Loaded) -> bool:
        waiting = self._asked == "auto" and before.backend != "tensorrt"
        return waiting and _engines(self.path) != before.engines

    def _load(self, before: _Loaded | None) -> _Loaded:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            published = publication_of(self.path)
            try:
                return self._load_once(before)
            except BundleError:
                if publication_of(self.path) == published or time.monotonic() > deadline:
                    raise  # else updates have swept files away between their check and their use

    def _load_once(self, before: _Loaded | None) -> _Loaded:
        bundle = Bundle.open(self.path, known=before.bundle if before else None)
        names = {c.id: c.name for c in bundle.manifest.classes}
        if not names:
            raise BundleError(
                f"{self.path} knows no class yet.",
                mend=f"edge-cl learn --new-classes DIR --export {quote(str(self.path))}",
            )
        head = bundle.head()  # first what an update changes, then the graphs, which take longer
        engines = _engines(self.path)
        backend, made = self._backend_of(bundle, before)
        recogniser = Recogniser(made, head, names, self._rule)
        try:
            recogniser.warm_up()
        except EngineError:
            raise
        except EdgeClError as error:
            raise BundleError(
                f"Version {bundle.manifest.version} of {self.path} cannot answer.", *error.faults, mend=error.mend
            ) from error
        return _Loaded(bundle, recogniser, backend, engines)

    def _backend_of(self, bundle: Bundle, before: _Loaded | None) -> tuple[str, Any]:
        """Make the backend that was asked for; return its name and the backend."""

        def make(name: str) -> tuple[str, Any]:
            previous = before.recogniser.backend if before and before.backend == name else None
            return name, BACKENDS[name](bundle, self._threads, previous)

        name = automatic(self.path) if self._asked == "auto" else self._asked
        try:
            return make(name)
        except EngineError as error:
            # Where TensorRT answers already, the version in force stays: better than to become many times slower.
            if self._asked != "auto" or (before and before.backend == name):
                raise
            if not self._warned:
                self._warned = True
                warnings.warn(f"ONNX Runtime answers instead of TensorRT. {error}", RuntimeWarning, stacklevel=5)
            return make("onnxruntime")


def _centre(recogniser: Recogniser, frame: Frame) -> Frame:
    if not (isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3):
        raise _bad_frame(frame)
    if min(frame.shape[:2]) < 1:
        raise UsageError(f"A frame is empty: {frame.shape}.", mend="Pass at least one pixel.")
    return recogniser.backend.preprocess.centre(Image.fromarray(frame))


def _bad_frame(frame: object) -> UsageError:
    what = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
    return UsageError(f"A frame is {what}.", mend="Pass (H, W, 3) uint8, in the order red, green, blue.")
