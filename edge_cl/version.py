"""A version of the store as a value: its manifest, the objects that it names, and their canonical bytes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
JsonObject: TypeAlias = "Mapping[str, Json]"

OBJECT_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ObjectRef:
    """What a version says of one of its objects: the SHA-256 and the number of its bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Version:
    """One immutable state of the store.

    Attributes:
        number: its number; 0 is the first, and none is used twice.
        parent: the version it was made from; None for version 0.
        created: UTC time as ISO 8601, by the robot's clock, which may be wrong.
        kind: what made it: "init", "learn", "rename", "forget"...
        record: what its maker wrote down about it.
        objects: its objects by name.
    """

    number: int
    parent: int | None
    created: str
    kind: str
    record: JsonObject
    objects: Mapping[str, ObjectRef]


def canonical_json(value: Json) -> bytes:
    """Return the one spelling of a JSON value that hashes are taken over: ASCII, sorted keys, no spaces.

    Raises:
        ValueError: the value holds a NaN or an infinity, which JSON cannot say.
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def contiguous(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors in C order: safetensors silently writes a transposed view's elements wrongly."""
    return {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}


def hash_file(path: Path) -> ObjectRef:
    """Return the SHA-256 and size of a file, read a piece at a time."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return ObjectRef(digest.hexdigest(), size)


def object_fault(path: Path, ref: ObjectRef) -> str:
    """Return what is wrong with an object's file, "" when it is whole."""
    try:
        found = hash_file(path)
    except FileNotFoundError:
        return f"{path} is missing (expected SHA-256 {ref.sha256})"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror} (expected SHA-256 {ref.sha256})"
    if found == ref:
        return ""
    return f"{path} has {found.size} bytes with SHA-256 {found.sha256}, expected {ref.size} with SHA-256 {ref.sha256}"


def encode(version: Version) -> bytes:
    """Return the bytes of a version file."""
    manifest: JsonObject = {
        "version": version.number,
        "parent": version.parent,
        "created": version.created,
        "kind": version.kind,
        "record": version.record,
        "objects": {name: {"sha256": ref.sha256, "bytes": ref.size} for name, ref in version.objects.items()},
    }
    return pretty({"sha256": hashlib.sha256(canonical_json(manifest)).hexdigest(), "manifest": manifest})


def decode(data: bytes, number: int) -> Version:
    """Return the version in a version file; raises ValueError, KeyError, TypeError or AttributeError."""
    file = json.loads(data)
    manifest = file["manifest"]
    found = hashlib.sha256(canonical_json(manifest)).hexdigest()
    if found != file["sha256"]:
        raise ValueError(f"its manifest has SHA-256 {found}, expected {file['sha256']}")
    if manifest["version"] != number:
        raise ValueError(f"it says that it is version {manifest['version']}")
    objects = {name: ObjectRef(ref["sha256"], ref["bytes"]) for name, ref in manifest["objects"].items()}
    for name, ref in objects.items():
        # The hash becomes a path: nothing but a hash may lead anywhere.
        if not OBJECT_NAME.fullmatch(name) or not _HASH.fullmatch(ref.sha256) or type(ref.size) is not int:
            raise ValueError(f"object {name!r} is not described by a SHA-256 and a size")
    return Version(number, manifest["parent"], manifest["created"], manifest["kind"], dict(manifest["record"]), objects)


def plain(value: Json) -> Any:
    """Return the value as reading its JSON gives it: text keys, lists for tuples."""
    return json.loads(json.dumps(value, allow_nan=False))


def pretty(value: JsonObject) -> bytes:
    """Return a JSON object as a file that people can read."""
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()
