"""The bundle: a directory that a perception stack loads with numpy and one runtime, and how one is opened.

`manifest.json` names every file by role, SHA-256 and size; files carry the first half of their hash in their name and
never change. A new task is new files, then a new manifest in one rename: a reader sees the old bundle or the new one.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edge_cl.backend import BASE
from edge_cl.errors import EdgeClError
from edge_cl.export.consistency import manifest_faults
from edge_cl.export.tensors import read
from edge_cl.head import Branch, Discriminant, Exit, Head
from edge_cl.preprocess import Preprocess
from edge_cl.spread import Quadratic
from edge_cl.statistics import Array, Precision
from edge_cl.version import JsonObject, canonical_json, hash_file, pretty

if TYPE_CHECKING:
    from edge_cl.report import LearnReport

FORMAT = 1
MANIFEST = "manifest.json"
MANIFEST_BYTES = 8 << 20  # most that a manifest may have: thousands of classes need less
LAYOUTS = ("shared", "merged")
DTYPES: Mapping[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16}  # of the graphs, by precision
ENGINES = "engines"  # directory in a bundle
ADAPTERS = ("adapter/shared", "adapter/base")  # roles of the adapters that encode every picture, ...
ENCODING = (*ADAPTERS, "weights", "prefix", "suffix", "merged/prefix", "merged/base")  # ... and of all that does

_FILE = re.compile(r"[a-z][a-z0-9-]*-[0-9a-f]{16}\.(onnx|safetensors)", re.ASCII)
_PARTIAL = re.compile(rf"\.{_FILE.pattern}\.tmp", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)
PATIENCE_S = 10.0  # for updates that sweep files away faster than they can be loaded

Tensors = Mapping[str, npt.NDArray[np.generic]]
Factors = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def again(out: Path, how: str = "") -> str:
    """Return what mends a bundle, as it can be typed."""
    return f"Export it again{how and f' {how}'}: edge-cl export {quote(str(out))}"


class BundleError(EdgeClError):
    """A bundle cannot be read, or not be written where it was asked for."""


class PrecisionError(BundleError):
    """Half precision is too small for what a backbone computes."""


class UnexportedError(BundleError):
    """A learn is done and its version in force, but its bundle could not be brought up to date.

    Attributes:
        report: of the learn; its `export` is {path, error}.
    """

    def __init__(self, *faults: str, mend: str = "", report: LearnReport) -> None:
        super().__init__(*faults, mend=mend)
        self.report = report


class FormatError(ValueError):
    """A manifest is of another format than this edge-cl reads."""


@dataclass(frozen=True)
class FileRef:
    """One file of a bundle: its name, and the SHA-256 and number of its bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Shape:
    """Numbers that all tensors of a bundle agree with.

    Attributes:
        depth: blocks of the backbone.
        split: blocks of the prefix.
        width: D.
        tokens: N, of a picture.
        summaries: S, summary vectors a block.
        r: largest rank of an adapter.
    """

    depth: int
    split: int
    width: int
    tokens: int
    summaries: int
    r: int

    @property
    def features(self) -> int:
        """F, features of a picture."""
        return self.depth * self.summaries * self.width

    @property
    def prefix_features(self) -> int:
        """Fp, features of a picture that come from the prefix."""
        return self.split * self.summaries * self.width


@dataclass(frozen=True)
class BundleClass:
    """A class: permanent id, name, and the number of the task that taught it."""

    id: int
    name: str
    task: int


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        layout: "shared" or "merged".
        precision: of the graphs, "fp32" or "fp16".
        recipe: names all that decides the graphs, but not the adapters.
        version: of the store.
        backbone: specification of the backbone, with its preprocessing.
        shape: see there.
        classes: in the order of the head's rows.
        task_names: by task.
        temperature, threshold, least_score: see `Head`; bundles of earlier releases have no least score.
        files: by role: weights; prefix and suffix, with LoRA inputs if shared; merged/prefix, merged/base and
            merged/TASK if merged; head; spread and exit, if there are any; adapter/shared, adapter/base, adapter/TASK;
            branch/TASK.
    """

    layout: str
    precision: str
    recipe: str
    version: int
    backbone: Mapping[str, Any]
    shape: Shape
    classes: tuple[BundleClass, ...]
    task_names: Mapping[int, str]
    temperature: float
    threshold: float
    least_score: float
    files: Mapping[str, FileRef]

    @property
    def preprocess(self) -> Preprocess:
        """How pictures become input."""
        return Preprocess.from_json(self.backbone["preprocess"])

    @property
    def tasks(self) -> list[int]:
        """Tasks that still have a class."""
        return sorted({c.task for c in self.classes})

    def encode(self) -> bytes:
        """Return the bytes of the manifest's file."""
        value: JsonObject = {
            "format": FORMAT,
            "layout": self.layout,
            "precision": self.precision,
            "recipe": self.recipe,
            "version": self.version,
            "backbone": dict(self.backbone),
            "shape": dict(vars(self.shape)),
            "classes": [dict(vars(c)) for c in self.classes],
            "task_names": {str(t): name for t, name in self.task_names.items()},
            "temperature": self.temperature,
            "threshold": self.threshold if np.isfinite(self.threshold) else None,
            "least_score": self.least_score if np.isfinite(self.least_score) else None,
            "files": {role: dict(vars(ref)) for role, ref in self.files.items()},
        }
        return pretty({"sha256": hashlib.sha256(canonical_json(value)).hexdigest(), "manifest": value})

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read a manifest's bytes.

        Raises:
            FormatError: they are of another format.
            ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError: they are no manifest.
        """
        file = json.loads(data)
        value = file["manifest"]
        if value["format"] != FORMAT:
            raise FormatError(f"it has format {value['format']!r}, and this edge-cl reads format {FORMAT}")
        found = hashlib.sha256(canonical_json(value)).hexdigest()
        if found != file["sha256"]:
            raise ValueError(f"its content has SHA-256 {found}, expected {file['sha256']}")
        if value["layout"] not in LAYOUTS or value["precision"] not in DTYPES:
            raise ValueError(f"it says layout {value['layout']!r} and precision {value['precision']!r}")
        files = {role: FileRef(**ref) for role, ref in value["files"].items()}
        for role, ref in files.items():
            # The name becomes a path: nothing but a plain name may lead anywhere.
            whole = _FILE.fullmatch(ref.name) and _HASH.fullmatch(ref.sha256) and ref.sha256[:16] in ref.name
            if not whole or type(ref.size) is not int:
                raise ValueError(f"its file {role!r} is not described by a name, a SHA-256 and a size")
        threshold, least_score = value["threshold"], value.get("least_score")
        manifest = cls(
            value["layout"],
            value["precision"],
            str(value["recipe"]),
            int(value["version"]),
            dict(value["backbone"]),
            Shape(**value["shape"]),
            tuple(BundleClass(int(c["id"]), str(c["name"]), int(c["task"])) for c in value["classes"]),
            {int(t): str(name) for t, name in value["task_names"].items()},
            float(value["temperature"]),
            float("inf") if threshold is None else float(threshold),
            -float("inf") if least_score is None else float(least_score),
            files,
        )
        if faults := manifest_faults(manifest):
            raise ValueError("; ".join(f"it {fault}" for fault in faults))
        return manifest


@dataclass(frozen=True)
class Bundle:
    """An opened bundle, every file of it verified.

    Attributes:
        path: its directory.
        manifest: what it holds.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, known: Bundle | None = None) -> Bundle:
        """Open a bundle; one that is being updated is read as it was or as it will be.

        Args:
            path: its directory.
            known: the same bundle as it was opened before; files that have not changed are not verified again.

        Raises:
            BundleError: there is none, or it is damaged, altered, or of another format.
        """
        root = Path(path)
        verified = set(known.manifest.files.values()) if known else set()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            published, manifest = publication_of(root), read_manifest(root)
            found = {ref: file_fault(root, ref) for ref in manifest.files.values() if ref not in verified}
            faults = [fault for fault in found.values() if fault]
            if not faults:
                return cls(root, manifest)
            if publication_of(root) == published or time.monotonic() > deadline:
                break
            verified |= {ref for ref, fault in found.items() if not fault}  # the next try is the faster for them
        raise BundleError(*faults, mend=again(root))

    def file(self, role: str) -> Path:
        """Return the path of a file.

        Raises:
            BundleError: the manifest names none.
        """
        if role not in self.manifest.files:
            raise BundleError(f"{self.path / MANIFEST} names no {role!r}.", mend=again(self.path))
        return self.path / self.manifest.files[role].name

    def tensors(self, role: str, shapes: Mapping[str, Sequence[int | None]]) -> dict[str, npt.NDArray[np.float32]]:
        """Read tensors, each of a shape given (None: any size) and finite, in single precision.

        Raises:
            BundleError: they are not.
        """
        path = self.file(role)
        try:
            found, faults = read(path, shapes)
        except Exception as error:  # the reader raises its own, OSError and KeyError
            raise BundleError(f"{path} cannot be read: {error}.", mend=again(self.path)) from error
        if faults:
            raise BundleError(*faults, mend=again(self.path))
        return found

    def factors(self, role: str) -> Factors:
        """Return an adapter's joint factors (see `lora.Adapter.factors`): down (L, R, D) and up (L, 3D, R).

        R is twice the bundle's rank; an adapter of smaller rank is filled up with zeros.
        """
        shape = self.manifest.shape
        depth = shape.split if role == "adapter/shared" else shape.depth - shape.split
        t = self.tensors(role, {"A": (depth, 2, None, shape.width), "B": (depth, 2, shape.width, None)})
        ranks = t["A"].shape[2], t["B"].shape[3]
        if ranks[0] != ranks[1] or ranks[0] > shape.r:
            raise self._fault(role, f"A and B have ranks {ranks[0]} and {ranks[1]}, and the graphs take {shape.r}")
        return joint_factors(t["A"], t["B"], shape.r)

    def adapters(self) -> dict[int, Factors]:
        """Return the adapters of the suffix by task, `BASE` first for the base branch: one of zeros if it has none."""
        roles = {t: f"adapter/{t}" for t in self.manifest.tasks}
        own = {task: self.factors(role) for task, role in roles.items() if role in self.manifest.files}
        adapted = "adapter/base" in self.manifest.files
        return {BASE: self.factors("adapter/base") if adapted else no_factors(self.manifest.shape), **own}

    def shared_projections(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the prefix's fused projections, the shared adapter merged in: (D, 3D) each, as the graphs have them.

        They take the place of the bare ones of the same name; without a shared adapter there are none.
        """
        if "adapter/shared" not in self.manifest.files:
            return {}
        shape, dtype = self.manifest.shape, DTYPES[self.manifest.precision]
        down, up = self.factors("adapter/shared")
        names = [f"blocks.{i}.attn.qkv.weight" for i in range(shape.split)]
        weights = self.tensors("weights", dict.fromkeys(names, (shape.width, 3 * shape.width)))
        return {
            name: np.ascontiguousarray((weights[name] + down[i].T @ up[i].T).astype(dtype))
            for i, name in enumerate(names)
        }

    def head(self) -> Head:
        """Return the head."""
        m = self.manifest
        return replace(
            self._head("head", m.shape.features),
            branches={task: self._branch(task) for task in m.tasks if f"branch/{task}" in m.files},
            temperature=m.temperature,
            threshold=m.threshold,
            least_score=m.least_score,
            exit=self._exit() if "exit" in m.files else None,
            quadratic=self._quadratic() if "spread" in m.files else None,
        )

    def _quadratic(self) -> Quadratic:
        count = len(self.manifest.classes)
        t = self.tensors("spread", {"weight": (None, count), "offset": (None,), "cost": (count,)})
        if len(t["weight"]) != len(t["offset"]) or not count or len(t["weight"]) % count:
            raise self._fault("spread", "its weight, offset and cost do not go together")
        return Quadratic(t["weight"], t["offset"], t["cost"])

    def _exit(self) -> Exit:
        head = self._head("exit", self.manifest.shape.prefix_features)
        temperature, threshold, confidence = map(float, self.tensors("exit", {"fit": (3,)})["fit"])
        if not (temperature > 0 and confidence > 0):
            raise self._fault("exit", f"its temperature is {temperature}, its confidence {confidence}")
        return Exit(replace(head, temperature=temperature, threshold=threshold), confidence)

    def _head(self, role: str, features: int) -> Head:
        """Return a head of all classes, nothing fitted in it."""
        classes = self.manifest.classes
        count = len(classes)
        shapes: dict[str, tuple[int | None, ...]] = {
            "weight": (count, features), "bias": (count,), "centre": (features,),
            "basis": (None, features), "gain": (None,), "variance": (1,),
        }  # fmt: skip
        t = self.tensors(role, shapes)
        if len(t["basis"]) != len(t["gain"]) or not t["variance"][0] > 0:
            raise self._fault(role, "its basis, gain and variance do not go together")
        return Head(
            np.asarray([c.id for c in classes], np.int64),
            np.asarray([c.task for c in classes], np.int64),
            Discriminant(t["weight"], t["bias"], t["centre"]),
            Precision(t["basis"], t["gain"], float(t["variance"][0])),
        )

    def _branch(self, task: int) -> Branch:
        shape = self.manifest.shape
        ids = np.asarray([c.id for c in self.manifest.classes if c.task == task], np.int64)
        count = len(ids)
        shapes: dict[str, tuple[int | None, ...]] = {
            "classes": (count,), "weight": (count, shape.features), "bias": (count,), "centre": (shape.features,),
            "prototypes": (count, shape.width), "share": (2,),
        }  # fmt: skip
        branch = Branch.from_numpy(self.tensors(f"branch/{task}", shapes))
        if set(branch.classes.tolist()) != set(ids.tolist()):
            raise self._fault(f"branch/{task}", "it speaks of classes that are not the task's")
        if not (0 <= branch.weight <= 1 and branch.temperature > 0):
            raise self._fault(f"branch/{task}", f"its share is {branch.weight}, its temperature {branch.temperature}")
        return branch

    def _fault(self, role: str, what: str) -> BundleError:
        return BundleError(f"{self.file(role)} cannot be used: {what}.", mend=again(self.path))


def no_factors(shape: Shape) -> Factors:
    """Return the joint factors of a suffix that nothing adapts."""
    depth, width, rank = shape.depth - shape.split, shape.width, 2 * shape.r
    return np.zeros((depth, rank, width), np.float32), np.zeros((depth, 3 * width, rank), np.float32)


def joint_factors(A: Array, B: Array, r: int) -> Factors:
    """Return the fused projection's down (L, 2r, D) and up (L, 3D, 2r) of A (L, 2, r', D) and B (L, 2, D, r').

    Query rows come first, then key rows, which are zero, then value rows; mu is part of B already.
    """
    depth, _, rank, width = A.shape
    down = np.zeros((depth, 2, r, width), np.float32)
    up = np.zeros((depth, 3, width, 2, r), np.float32)
    down[:, :, :rank] = A
    up[:, 0, :, 0, :rank], up[:, 2, :, 1, :rank] = B[:, 0], B[:, 1]
    return down.reshape(depth, 2 * r, width), up.reshape(depth, 3 * width, 2 * r)


def read_manifest(root: Path) -> Manifest:
    """Read a bundle's manifest alone.

    Raises:
        BundleError: there is none, or it is damaged, altered, or of another format.
    """
    path = root / MANIFEST
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ValueError("it is no plain file")  # opening a pipe would wait for ever
        with path.open("rb") as file:
            data = file.read(MANIFEST_BYTES + 1)
        if len(data) > MANIFEST_BYTES:
            raise ValueError(f"it is larger than {MANIFEST_BYTES >> 20} MiB")
        return Manifest.decode(data)
    except FileNotFoundError:
        if (root / "objects").is_dir() and (root / "versions").is_dir():
            beside = quote(f"{root.resolve()}-bundle")
            mend = f"Make a bundle of it, and use that: edge-cl export {beside} --store {quote(str(root))}"
            raise BundleError(f"{root} is a store, not a bundle.", mend=mend) from None
        mend = f"Make one: edge-cl export {quote(str(root))}"
        raise BundleError(f"{root} is no bundle: it has no {MANIFEST}.", mend=mend) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.", mend="Check the path.") from error
    except FormatError as error:
        raise BundleError(
            f"{path} is no manifest that can be used: {error}.",
            mend="Install the edge-cl that wrote it, or export to another directory.",
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise BundleError(
            f"{path} is no manifest that can be used: {why}.",
            mend=again(root, "with this edge-cl"),
        ) from error


def publication_of(root: Path) -> tuple[int, int]:
    """Return what tells one writing of a manifest from every other, those of the same content included."""
    try:
        status = (root / MANIFEST).stat()
    except OSError:
        return 0, 0
    return status.st_ino, status.st_mtime_ns


def is_bundle_file(name: str) -> bool:
    """Tell whether only an export gives a file a name: that of a whole file, or of one half written."""
    return bool(_FILE.fullmatch(name) or _PARTIAL.fullmatch(name))


def file_fault(root: Path, ref: FileRef) -> str:
    """Return what is wrong with a file of a bundle, "" when it is whole."""
    path = root / ref.name
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is no plain file."
        if status.st_size != ref.size:
            return f"{path} has {status.st_size} bytes, expected {ref.size}."
        found = hash_file(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}."
    if (found.size, found.sha256) != (ref.size, ref.sha256):
        return f"{path} has other content than its manifest says (SHA-256 {found.sha256})."
    return ""
