"""The C API through ctypes, as a program in another language would use it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import numpy as np
import numpy.typing as npt

FORMATS = {"rgb8": 0, "bgr8": 1, "rgba8": 2, "bgra8": 3, "grey8": 4, "nv12": 5, "yuyv": 6}
Pixels = npt.NDArray[np.uint8]


class Options(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("backend", ctypes.c_char_p),
        ("rule", ctypes.c_char_p),
        ("threads", ctypes.c_int32),
        ("top", ctypes.c_int32),
        ("timeout_ms", ctypes.c_int64),
        ("onnxruntime", ctypes.c_char_p),
        ("tensorrt", ctypes.c_char_p),
        ("engines", ctypes.c_char_p),
        ("unknown_score", ctypes.c_int32),
    )


class Frame(ctypes.Structure):
    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("size_bytes", ctypes.c_size_t),
        ("width", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("stride", ctypes.c_size_t),
        ("format", ctypes.c_int32),
        ("range", ctypes.c_int32),
        ("chroma", ctypes.c_void_p),
        ("chroma_stride", ctypes.c_size_t),
    )


class CApiError(Exception):
    """A call failed.

    Attributes:
        code: number of the error.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Answer:
    """The answer for one frame, see `edge_cl.runtime.Prediction`; `unknown_score` where it was asked for."""

    label: str
    confidence: float
    unknown: bool
    unknown_score: float | None
    top: tuple[tuple[str, float], ...]
    version: int


class Library:
    """The shared library.

    Args:
        path: of libedge_cl.so.
    """

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        signatures: dict[str, tuple[object, tuple[object, ...]]] = {
            "version": (ctypes.c_char_p, ()),
            "last_error": (ctypes.c_char_p, ()),
            "open": (ctypes.c_int, (ctypes.c_char_p, pointer, pointer)),
            "close": (None, (pointer,)),
            "predictions_new": (ctypes.c_int, (pointer,)),
            "predictions_free": (None, (pointer,)),
            "predict": (ctypes.c_int, (pointer, pointer, size, pointer)),
            "predictions_count": (size, (pointer,)),
            "label": (ctypes.c_char_p, (pointer, size)),
            "confidence": (ctypes.c_float, (pointer, size)),
            "unknown": (ctypes.c_int, (pointer, size)),
            "unknown_score": (ctypes.c_float, (pointer, size)),
            "predicted_version": (ctypes.c_int64, (pointer, size)),
            "top_count": (size, (pointer, size)),
            "top_label": (ctypes.c_char_p, (pointer, size, size)),
            "top_confidence": (ctypes.c_float, (pointer, size, size)),
            "reload": (ctypes.c_int, (pointer, pointer)),
            "bundle_version": (ctypes.c_int64, (pointer,)),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self.c, f"edge_cl_{name}")
            function.restype, function.argtypes = result, arguments

    def check(self, code: int) -> None:
        """Raise what a call returned, unless it is 0."""
        if code:
            raise CApiError(code, self.c.edge_cl_last_error().decode())


def frame(pixels: Pixels, fmt: str = "rgb8") -> Frame:
    """Describe a picture (H, W, channels), whose rows may have gaps between them."""
    return Frame(
        ctypes.sizeof(Frame), pixels.ctypes.data, 0, pixels.shape[1], pixels.shape[0], pixels.strides[0], FORMATS[fmt]
    )


class CClassifier:
    """A classifier, see edge_cl.h.

    Args:
        library: the shared library.
        bundle: directory.
        options: fields of `Options`.
    """

    def __init__(self, library: Library, bundle: Path, **options: object) -> None:
        self._library = library
        self._handle, self._predictions = ctypes.c_void_p(), ctypes.c_void_p()
        given = Options(struct_size=ctypes.sizeof(Options), **options)
        library.check(library.c.edge_cl_predictions_new(ctypes.byref(self._predictions)))
        path = str(bundle).encode()
        library.check(library.c.edge_cl_open(path, ctypes.byref(given), ctypes.byref(self._handle)))

    def close(self) -> None:
        """Give everything back."""
        self._library.c.edge_cl_close(self._handle)
        self._library.c.edge_cl_predictions_free(self._predictions)
        self._handle, self._predictions = ctypes.c_void_p(), ctypes.c_void_p()

    def predict(self, frames: Sequence[Frame]) -> list[Answer]:
        """Answer for frames."""
        c, place = self._library.c, self._predictions
        array = (Frame * len(frames))(*frames)
        self._library.check(c.edge_cl_predict(self._handle, array, len(frames), place))
        return [self._answer(i) for i in range(c.edge_cl_predictions_count(place))]

    def _answer(self, i: int) -> Answer:
        c, place = self._library.c, self._predictions
        top = tuple(
            (c.edge_cl_top_label(place, i, j).decode(), c.edge_cl_top_confidence(place, i, j))
            for j in range(c.edge_cl_top_count(place, i))
        )
        label, confidence = c.edge_cl_label(place, i).decode(), c.edge_cl_confidence(place, i)
        unknown, version = bool(c.edge_cl_unknown(place, i)), c.edge_cl_predicted_version(place, i)
        score = c.edge_cl_unknown_score(place, i)
        return Answer(label, confidence, unknown, None if isnan(score) else score, top, version)

    def reload(self) -> bool:
        """Put the bundle's present version in force."""
        changed = ctypes.c_int()
        self._library.check(self._library.c.edge_cl_reload(self._handle, ctypes.byref(changed)))
        return bool(changed.value)
