"""What an engine on disk was made of, and whether it may be loaded: a JSON file beside it.

`NAME.json` names the one engine file in force, `NAME-HASH.engine`. The engine is written first, then the JSON replaces
the old one in one step, then the old engine goes: at any moment, power cuts included, the JSON names a whole engine.
An engine without a right JSON is never loaded: TensorRT trusts what it deserialises.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edge_cl.durable import make_directory, replace_bytes
from edge_cl.errors import EngineError
from edge_cl.export.engine_source import EngineSource
from edge_cl.runtime.nvidia import Gpu, Module
from edge_cl.version import ObjectRef, canonical_json, object_fault, pretty

FORMAT = 1

_FILE = re.compile(r"(prefix|suffix(-base|-\d+)?)(-[0-9a-f]{16}\.engine|\.json)", re.ASCII)
_PARTIAL = re.compile(rf"\.{_FILE.pattern}\.tmp", re.ASCII)


@dataclass(frozen=True)
class Platform:
    """What an engine is tied to: none runs, or runs well, anywhere else.

    Attributes:
        tensorrt: version.
        cuda: version that the driver offers.
        gpu: name.
        compute_capability: such as "8.7".
    """

    tensorrt: str
    cuda: str
    gpu: str
    compute_capability: str


def platform_of(trt: Module, gpu: Gpu) -> Platform:
    """Return the platform at hand."""
    return Platform(str(trt.__version__), gpu.cuda_version, gpu.name, gpu.compute_capability)


@dataclass(frozen=True)
class EngineKey:
    """All that decides an engine; two engines with one key do the same.

    Attributes:
        platform: where it was built.
        precision: of the graph, "fp32" or "fp16".
        profile: smallest, best and largest batch.
        refittable: a short name for the set of weights that may be replaced, "" for none.
        graph_sha256: of the graph's file.
        weights_sha256: of the file beside it, "" where the graph holds its weights itself.
        overrides_sha256: of the weights that took the place of the graph's own, "" for none.
    """

    platform: Platform
    precision: str
    profile: tuple[int, int, int]
    refittable: str
    graph_sha256: str
    weights_sha256: str
    overrides_sha256: str

    @classmethod
    def of(
        cls, source: EngineSource, platform: Platform, profile: tuple[int, int, int], refittable: Sequence[str]
    ) -> EngineKey:
        """Return the key of the engine that a source gives.

        Args:
            source: what it is made of.
            platform: where it is to run.
            profile: smallest, best and largest batch.
            refittable: names of the weights that may be replaced.
        """
        names = hashlib.sha256("\n".join(sorted(refittable)).encode()).hexdigest()[:16] if refittable else ""
        return cls(
            platform,
            source.precision,
            profile,
            names,
            source.graph_sha256,
            source.weights_sha256,
            source.overrides_digest(),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the key."""
        return hashlib.sha256(canonical_json(asdict(self))).hexdigest()

    def differences(self, other: EngineKey) -> list[str]:
        """Say where another key differs, one item a field."""
        mine, theirs = _flat(self), _flat(other)
        return [f"{name} was {theirs[name]}, is {mine[name]}" for name in mine if mine[name] != theirs[name]]

    def refits(self, other: EngineKey) -> bool:
        """Return whether an engine of the other key differs in the weights at most, as far as keys tell."""
        files = {name: getattr(self, name) for name in ("graph_sha256", "weights_sha256", "overrides_sha256")}
        return replace(other, **files) == self

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> EngineKey:
        """Read what `asdict` gave; raises KeyError or TypeError."""
        known = {field.name: value[field.name] for field in fields(cls)}
        smallest, best, largest = value["profile"]
        return cls(**{**known, "platform": Platform(**value["platform"]), "profile": (smallest, best, largest)})


def _flat(key: EngineKey) -> dict[str, Any]:
    values = asdict(key)
    return {**values.pop("platform"), **values}


@dataclass(frozen=True)
class Sidecar:
    """What is known of the engine in force.

    Attributes:
        key: what it was made of.
        file: name of the engine's file.
        engine: its SHA-256 and size.
        structure: SHA-256 of the graph without the values of its weights.
        weights: SHA-256 of every float weight by name.
        made: "built" from the graph, or "refitted" from an earlier engine.
        deviation: from the reference outputs, as measured before it was put in force.
        instead_of: digest of the key that was wanted, where this engine stands in for one that failed; else "".
    """

    key: EngineKey
    file: str
    engine: ObjectRef
    structure: str
    weights: Mapping[str, str]
    made: str
    deviation: float
    instead_of: str = ""

    def encode(self) -> bytes:
        """Return the bytes of the JSON file."""
        value = {**asdict(self), "format": FORMAT}
        return pretty({"sha256": hashlib.sha256(canonical_json(value)).hexdigest(), "engine": value})

    @classmethod
    def decode(cls, data: bytes) -> Sidecar:
        """Read a JSON file's bytes; raises ValueError, KeyError, TypeError, AttributeError or RecursionError."""
        outer = json.loads(data)
        value = dict(outer["engine"])
        if hashlib.sha256(canonical_json(value)).hexdigest() != outer["sha256"]:
            raise ValueError("it was altered")
        if value.pop("format") != FORMAT:
            raise ValueError("it is of another version of edge-cl")
        if Path(value["file"]).name != value["file"]:
            raise ValueError("it names a file elsewhere")
        key, engine = EngineKey.from_json(value["key"]), ObjectRef(**value["engine"])
        return cls(**{**value, "key": key, "engine": engine})


@dataclass(frozen=True)
class EngineFolder:
    """A directory of engines by name; one writer at a time.

    Attributes:
        path: the directory; it is made when something is stored.
    """

    path: Path

    def make(self) -> None:
        """Make the directory, if it is not there; raises EngineError where it cannot be."""
        with self._written():
            make_directory(self.path)

    def sidecar(self, name: str) -> Sidecar:
        """Return what is known of an engine.

        Raises:
            EngineError: nothing is, or it cannot be trusted; the fault says why.
        """
        path = self._json(name)
        try:
            return Sidecar.decode(path.read_bytes())
        except FileNotFoundError:
            raise EngineError(f"no engine at {path}") from None
        except OSError as error:
            raise EngineError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EngineError(f"{path} cannot be trusted: {error}") from error

    def read(self, sidecar: Sidecar) -> bytes:
        """Return the bytes of an engine, which are those that were stored.

        Raises:
            EngineError: the file is missing, truncated or altered.
        """
        path = self.path / sidecar.file
        if fault := object_fault(path, sidecar.engine):
            raise EngineError(fault)
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sidecar.engine.sha256:
            raise EngineError(f"{path} changed while it was read")
        return data

    def find(self, name: str, key: EngineKey) -> Sidecar:
        """Return what is known of an engine that may be run under a key: made for it, or standing in for it.

        Raises:
            EngineError: there is none; the faults say why.
        """
        sidecar = self.sidecar(name)
        if sidecar.key != key and sidecar.instead_of != key.digest:
            raise EngineError(*key.differences(sidecar.key))
        return sidecar

    def load(self, name: str, key: EngineKey) -> bytes:
        """Return an engine that may be run under a key; raises EngineError as `find` and `read` do."""
        sidecar = self.find(name, key)
        try:
            return self.read(sidecar)
        except EngineError:
            if self.sidecar(name) == sidecar:
                raise
            return self.load(name, key)  # another process has put a new one in force meanwhile

    def store(self, name: str, engine: bytes, sidecar: Sidecar) -> Path:
        """Put an engine in force; the one before stays until the new one is whole and named.

        Args:
            name: of the engine.
            engine: its bytes.
            sidecar: what it was made of; its file, hash and size are filled in.

        Returns:
            Path of the engine's file.

        Raises:
            EngineError: it cannot be written; the one in force is as it was.
        """
        digest = hashlib.sha256(engine).hexdigest()
        path, ref = self.path / f"{name}-{digest[:16]}.engine", ObjectRef(digest, len(engine))
        whole = replace(sidecar, file=path.name, engine=ref)
        self.make()
        with self._written():
            for left in self.path.glob(f".{name}-{'?' * 16}.engine.tmp"):  # by a power cut: its space is needed now
                left.unlink()
            if object_fault(path, ref):
                replace_bytes(path, engine)
            replace_bytes(self._json(name), whole.encode())
            for old in self.path.glob(f"{name}-{'?' * 16}.engine"):
                if old != path:
                    old.unlink(missing_ok=True)
        return path

    def sweep(self, names: Collection[str]) -> None:
        """Remove engines of other names than those wanted, and whatever of ours no JSON names, half written files too.

        Raises:
            EngineError: they cannot be removed, or the JSON of a name that is wanted cannot be trusted.
        """
        kept = {self._json(name).name for name in names} | {self.sidecar(name).file for name in names}
        with self._written():
            # A JSON goes before the engine that it names.
            for path in sorted(self.path.iterdir(), key=lambda path: path.suffix != ".json"):
                ours = _FILE.fullmatch(path.name) or _PARTIAL.fullmatch(path.name)
                if ours and path.name not in kept:
                    path.unlink(missing_ok=True)

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EngineError(
                f"The engines in {self.path} could not be written: {error.strerror}.",
                mend="Free some space and run the same command again; the engines in force are whole.",
            ) from error

    def _json(self, name: str) -> Path:
        return self.path / f"{name}.json"
