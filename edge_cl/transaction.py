"""What the one writer of a store does: new objects, new versions, another version in force."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.numpy

from edge_cl.durable import replace_bytes, replacing, sync_directory
from edge_cl.errors import StoreError
from edge_cl.store_files import StoreFiles, object_of
from edge_cl.version import (
    OBJECT_NAME,
    Json,
    JsonObject,
    ObjectRef,
    Version,
    canonical_json,
    contiguous,
    encode,
    hash_file,
    object_fault,
    plain,
)


@dataclass
class Transaction:
    """What the one writer does: put objects, then commit; or move HEAD. Made by `Store.write`.

    Attributes:
        files: of the store written to.
        parent: the version in force when the lock was taken, or the last one committed since.
    """

    files: StoreFiles
    parent: Version | None
    _number: int
    _objects: dict[str, ObjectRef] = field(default_factory=dict)
    _new: list[Path] = field(default_factory=list)
    _directories: set[Path] = field(default_factory=set)

    @property
    def next_number(self) -> int:
        """The number that `commit` will give."""
        return self._number

    def put_tensors(self, name: str, tensors: Mapping[str, np.ndarray]) -> None:
        """Put tensors as one safetensors object; equal tensors give equal bytes."""
        self.put_bytes(name, safetensors.numpy.save(contiguous(tensors)))

    def put_json(self, name: str, value: Json) -> None:
        """Put a JSON value as one object, in its canonical spelling."""
        self.put_bytes(name, canonical_json(value))

    def put_bytes(self, name: str, data: bytes) -> None:
        """Put bytes as one object. The name is made of ASCII words: `adapters`, `task/0003.json`.

        Raises:
            StoreError: the name is no such name, or the store cannot be written.
        """
        ref = ObjectRef(hashlib.sha256(data).hexdigest(), len(data))
        self._put(name, ref, lambda temporary: temporary.write_bytes(data))

    def put_file(self, name: str, path: str | Path) -> None:
        """Put a copy of a file as one object, a piece at a time. Raises StoreError: see `put_bytes`."""
        with self.files.explained():
            ref = hash_file(Path(path))
        self._put(name, ref, partial(shutil.copyfile, path))

    def keep(self, name: str) -> None:
        """Carry one object over from the parent.

        Raises:
            StoreError: the parent has no such object, or it is missing.
        """
        parent = self._require_parent()
        ref = object_of(parent, name)
        path = self.files.object_file(ref)
        if not path.is_file() or path.stat().st_size != ref.size:
            raise self.files.damaged(parent, name, object_fault(path, ref))
        self._objects[name] = ref

    def keep_all(self) -> None:
        """Carry over every object of the parent that was not put under the same name."""
        for name in self._require_parent().objects:
            if name not in self._objects:
                self.keep(name)

    def commit(self, *, kind: str, record: JsonObject) -> Version:
        """Make what was put and kept a new version, durably, and put it in force.

        Raises:
            StoreError: the store cannot be written; the version in force is then unchanged.
            ValueError: `record` is not JSON.
        """
        if self._number > 0:
            self._require_parent()
        parent = self.parent.number if self.parent else None
        version = Version(self._number, parent, _now(), kind, plain(dict(record)), self._objects)
        data = encode(version)
        with self.files.explained():
            for directory in sorted(self._directories):
                sync_directory(directory)
            self._new.clear()  # from here on a version file may refer to them, and the number is used
            self._number += 1
            replace_bytes(self.files.version_file(version.number), data, read_only=True)
        self._set_head(version)
        self._objects, self._directories = {}, set()
        return version

    def move_head(self, number: int) -> Version:
        """Put an existing version in force, after verifying all of its objects.

        Raises:
            StoreError: it does not exist or is damaged, or the store cannot be written.
        """
        if number not in self.files.numbers():
            raise StoreError(
                f"Version {number} does not exist.",
                mend=f"{self.files.command('log')} lists the versions for edge-cl rollback VERSION.",
            )
        if faults := self.files.faults(number, {}):
            raise StoreError(*faults, mend=self.files.way_on())
        version = self.files.load(number)
        self._set_head(version)
        return version

    def remove_uncommitted(self) -> None:
        """Delete the objects that were put but not committed."""
        for path in self._new:
            path.unlink(missing_ok=True)
        self._new.clear()

    def _set_head(self, version: Version) -> None:
        with self.files.explained():
            replace_bytes(self.files.path / "HEAD", f"{version.number}\n".encode())
        self.parent = version

    def _require_parent(self) -> Version:
        if self.parent is None:
            raise StoreError(f"{self.files.given} has no version in force.", mend=self.files.way_on())
        return self.parent

    def _put(self, name: str, ref: ObjectRef, write: Callable[[Path], object]) -> None:
        if not OBJECT_NAME.fullmatch(name):
            raise StoreError(f"{name!r} cannot name an object.", mend="Use letters, digits, '_', '-', '.' and '/'.")
        path = self.files.object_file(ref)
        with self.files.explained():
            existed = path.exists()
            if not existed or object_fault(path, ref):  # a crash or a bad card may have torn it
                path.parent.mkdir(exist_ok=True)
                with replacing(path, read_only=True, sync_parent=False) as temporary:
                    write(temporary)
                    if fault := object_fault(temporary, ref):
                        raise OSError(f"{name!r} changed while it was written: {fault}")
            if not existed:
                self._new.append(path)
        # Also when it existed: a writer that was killed may have renamed it without syncing its name.
        self._directories |= {path.parent, path.parent.parent}
        self._objects[name] = ref


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
