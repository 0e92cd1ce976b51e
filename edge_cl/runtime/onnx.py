"""The ONNX Runtime backend: the embedded default, on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edge_cl.backend import BASE, Encoding, prefix_encoding
from edge_cl.export.bundle import DTYPES, ENCODING, Bundle, BundleError, Factors, again
from edge_cl.preprocess import Pixels
from edge_cl.statistics import Array

Feed = Mapping[str, npt.NDArray[np.generic]]
Sizes = Mapping[str, Sequence["int | None"]]


class OnnxBackend:
    """Runs a bundle's graphs with ONNX Runtime; safe to call from several threads.

    Args:
        bundle: opened.
        threads: CPU threads; as many as there are cores, if not given.
        previous: backend of the same bundle before an update, whose sessions are kept where nothing changed.

    Attributes:
        names: SHA-256 of the files that prefix and base branch are made of.

    Raises:
        BundleError: ONNX Runtime refuses a graph, or it takes or gives other tensors than the bundle's.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, previous: OnnxBackend | None = None) -> None:
        manifest = bundle.manifest
        self.preprocess = manifest.preprocess
        self._bundle, self._threads = bundle, threads
        self._shape = manifest.shape
        self.names = tuple(ref.sha256 for role, ref in sorted(manifest.files.items()) if role in ENCODING)
        self._sessions: dict[tuple[str, ...], Any] = dict(previous._sessions) if previous else {}
        self._used: set[tuple[str, ...]] = set()
        dtype = DTYPES[manifest.precision]
        self._feeds = {task: _feed(factors, dtype) for task, factors in bundle.adapters().items()}
        if manifest.layout == "shared":
            self._prefix = self._session("prefix", bundle.shared_projections)
        else:
            self._prefix = self._session("merged/prefix" if "merged/prefix" in manifest.files else "prefix")
        for task in self._feeds:  # now: an update may sweep the files away before they are first asked for
            self._suffix(task)
        for key in set(self._sessions) - self._used:
            del self._sessions[key]

    def prefix(self, pixels: Pixels) -> Encoding:
        """Run the prefix alone on (B, S, S, 3) uint8."""
        return prefix_encoding(*self._prefix.run(None, {"image": pixels}))

    def encode(self, pixels: Pixels) -> Encoding:
        """Run prefix and base branch on (B, S, S, 3) uint8."""
        encoding = self.prefix(pixels)
        return self._encoding(encoding.tokens, encoding.features, BASE)

    def branch(self, encoding: Encoding, task: int, rows: Sequence[int]) -> Encoding:
        """Run a branch on some pictures of an encoded batch; see `Backend.branch`."""
        i = list(rows)
        tokens, features = encoding.tokens[i], encoding.features[i]
        if task not in self._feeds:
            return Encoding(tokens, features, encoding.last[i])
        width = self._shape.split * self._shape.summaries * self._shape.width
        return self._encoding(tokens, features[:, :width], task)

    def _encoding(self, tokens: npt.NDArray[np.generic], prefix: Array, task: int) -> Encoding:
        session, feed = self._suffix(task)
        features = np.concatenate((prefix, session.run(None, {"tokens": tokens, **feed})[0]), 1)
        last = features[:, -self._shape.summaries * self._shape.width :][:, : self._shape.width]
        return Encoding(tokens, features, last)

    def _suffix(self, task: int) -> tuple[Any, Feed]:
        """Return what runs a branch: one session for all with its adapter, or a session of its own."""
        if self._bundle.manifest.layout == "shared":
            return self._session("suffix"), self._feeds[task]
        role = "merged/base" if task == BASE else f"merged/{task}"
        return self._session(role if role in self._bundle.manifest.files else "suffix"), {}

    def _session(self, role: str, overrides: Callable[[], Feed] = dict) -> Any:
        files = self._bundle.manifest.files
        key: tuple[str, ...] = (role, files[role].sha256, files["weights"].sha256)
        if role == "prefix" and "adapter/shared" in files:
            key += (files["adapter/shared"].sha256,)
        if key not in self._sessions:
            self._sessions[key] = self._load(role, overrides())
        self._used.add(key)
        return self._sessions[key]

    def _load(self, role: str, overrides: Feed) -> Any:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a robot's other programs need it
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in overrides.items()}
        if values:  # in the place of those that the graph names in the weights file, before anything is made of them
            options.add_external_initializers(list(values), list(values.values()))
        path = self._bundle.file(role)
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # it raises classes of its own that share no base but Exception
            raise BundleError(
                f"ONNX Runtime refuses {path}: {' '.join(str(error).split())}.",
                mend=again(self._bundle.path),
            ) from error
        self._require_sizes(path, role, session)
        return session

    def _require_sizes(self, path: Path, role: str, session: Any) -> None:
        """Refuse a graph whose tensors are not of the bundle's shape."""
        s, side = self._shape, self.preprocess.image_size
        tokens, block = (None, s.tokens, s.width), s.summaries * s.width
        wanted: tuple[Sizes, Sizes]
        if role in ("prefix", "merged/prefix"):
            wanted = {"image": (None, side, side, 3)}, {"tokens": tokens, "features": (None, s.split * block)}
        else:
            depth, lora = s.depth - s.split, role == "suffix" and self._bundle.manifest.layout == "shared"
            factors = {"lora_down": (depth, 2 * s.r, s.width), "lora_up": (depth, 3 * s.width, 2 * s.r)}
            wanted = {"tokens": tokens, **(factors if lora else {})}, {"features": (None, depth * block)}
        there = session.get_inputs(), session.get_outputs()
        for what, sizes, values in zip(("takes", "gives"), wanted, there, strict=True):
            found = {v.name: tuple(n if isinstance(n, int) else None for n in v.shape) for v in values}
            if found != sizes:
                raise BundleError(
                    f"{path} {what} {found}, not {dict(sizes)}.",
                    mend=again(self._bundle.path),
                )


def _feed(factors: Factors, dtype: type[np.generic]) -> dict[str, npt.NDArray[np.generic]]:
    return {"lora_down": factors[0].astype(dtype), "lora_up": factors[1].astype(dtype)}
