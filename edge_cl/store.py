"""The learner's directory of immutable versions over content-addressed objects (format: docs/store.md)."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from edge_cl.checkpoint import discard, size_of, unfinished
from edge_cl.durable import make_directory, replace_bytes, replacing, settled, sync_directory
from edge_cl.errors import StoreError, did_you_mean
from edge_cl.version import (
    OBJECT_NAME,
    Json,
    JsonObject,
    ObjectRef,
    Version,
    canonical_json,
    contiguous,
    decode,
    encode,
    hash_file,
    object_fault,
    plain,
    pretty,
)

FORMAT = 2  # the highest that is read
_TOP_LEVEL = {"format.json", "HEAD", "versions", "objects", "lock", "work"}
_VERSION_FILE = re.compile(r"([0-9]{6,18})\.json")
_HEAD = re.compile(rb"(0|[1-9][0-9]{0,17})\n")


class Store:
    """A directory of immutable versions; one of them, HEAD, is in force.

    Readers take no lock, never wait, and see whole versions only. Writing goes through `write`.
    Open one with `Store.open`, make one with `Store.create`.
    """

    def __init__(self, path: Path, *, repair: bool = False) -> None:
        self.given, self.path = path, settled(path)  # as messages name it, and as it is found
        self._repair = repair

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        record: JsonObject,
        fill: Callable[[Transaction], object] | None = None,
        format: int = 1,
    ) -> Store:
        """Create a store whose version 0 holds the objects that `fill` puts.

        A crash leaves a whole store, or none and a directory in which `create` works again.

        Args:
            path: a directory that is empty, absent, or left half-made by an earlier `create`.
            record: the record of version 0.
            fill: called with the transaction, to put the objects.
            format: the lowest whose readers understand what will be put there (docs/store.md).

        Raises:
            StoreError: there is a store already, the directory holds something else, or it cannot be written.
        """
        store = cls(Path(path))
        store._check_vacant()
        with store._explained():
            make_directory(store.path)
        with store._locked("create the store", wait=False):
            store._check_vacant()
            with store._explained():
                sync_directory(store.path)  # `lock` is first: by it a half-made store is known as ours
                for name in ("versions", "objects", "work"):
                    (store.path / name).mkdir(exist_ok=True)
            with store._transaction(None, 0) as transaction:
                if fill:
                    fill(transaction)
                transaction.commit(kind="init", record=record)
            with store._explained():
                replace_bytes(store._format_file, pretty({"format": format, "edge_cl": edge_cl_version()}))
        return store

    @classmethod
    def open(cls, path: str | Path, *, repair: bool = False) -> Store:
        """Open an existing store.

        Args:
            path: the store's directory.
            repair: open it even when HEAD is damaged, so that `Transaction.move_head` can mend it.

        Raises:
            StoreError: no store there, a newer format, or a HEAD that does not lead to a version.
        """
        store = cls(Path(path), repair=repair)
        store._check_format()
        if not repair:
            store._head()
        return store

    @classmethod
    def exists(cls, path: str | Path) -> bool:
        """Return whether there is a whole store in a directory. Raises StoreError: that cannot be told."""
        store = cls(Path(path))
        with store._readable():
            return store._format_file.is_file()

    @property
    def work(self) -> Path:
        """The directory for checkpoints of an interrupted learn."""
        return self.path / "work"

    @property
    def head(self) -> Version:
        """The version in force, read anew each time."""
        return self._head()

    def version(self, number: int) -> Version:
        """Return one version.

        Raises:
            StoreError: it does not exist or its file is damaged.
        """
        try:
            return self._load(number)
        except ValueError as error:
            raise StoreError(f"{error}.", mend=self._way_on()) from None

    def versions(self) -> list[Version]:
        """Return every readable version, oldest first; `check` names the others."""
        found = []
        for number in self._numbers():
            with suppress(ValueError):
                found.append(self._load(number))
        return found

    def read_tensors(self, version: Version, name: str) -> dict[str, np.ndarray]:
        """Return the tensors of an object, verified. Raises StoreError: see `read_bytes`."""
        data = self.read_bytes(version, name)
        try:
            return safetensors.numpy.load(data)
        except (SafetensorError, KeyError) as error:  # KeyError: a type that numpy lacks
            raise StoreError(f"Object {name!r} of version {version.number} has no tensors: {error}.") from None

    def read_json(self, version: Version, name: str) -> Json:
        """Return the JSON value of an object, verified. Raises StoreError: see `read_bytes`."""
        try:
            value: Json = json.loads(self.read_bytes(version, name))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"Object {name!r} of version {version.number} is not JSON: {error}.") from None
        return value

    def read_bytes(self, version: Version, name: str) -> bytes:
        """Return the bytes of an object, verified.

        Raises:
            StoreError: the version has no such object, or it is missing or altered.
        """
        ref = _ref(version, name)
        path = self._object_file(ref)
        with suppress(OSError):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == ref.sha256:
                return data
        raise self._damaged(version, name, object_fault(path, ref) or f"{path} changed while it was read")

    def object_path(self, version: Version, name: str) -> Path:
        """Return the verified file of an object, to be mapped. Raises StoreError: see `read_bytes`."""
        ref = _ref(version, name)
        path = self._object_file(ref)
        if fault := object_fault(path, ref):
            raise self._damaged(version, name, fault)
        return path

    def check(self) -> list[str]:
        """Return every fault of HEAD, the versions and their objects, a sentence each; reads every object."""
        faults, seen = [], dict[ObjectRef, str]()
        try:
            self._load(self._head_number())
        except ValueError as error:
            faults.append(f"{error}.")
        faults += [fault for number in self._numbers() for fault in self._faults(number, seen)]
        return list(dict.fromkeys(faults))

    @contextmanager
    def write(self, what: str, *, wait: bool = False) -> Iterator[Transaction]:
        """Become the one writer for the length of a `with` block.

        Args:
            what: what the block does, for the message that other writers get.
            wait: wait for the present writer to finish instead of raising.

        Raises:
            StoreError: another process is writing, or the store cannot be written.
        """
        with self._locked(what, wait=wait):
            try:
                parent = self._head()
            except StoreError:
                if not self._repair:
                    raise
                parent = None
            with self._explained():
                number = max(self._listed(), default=0) + 1
                self._require_writable()
            with self._transaction(parent, number) as transaction:
                yield transaction

    def _require_writable(self) -> None:
        """Refuse to begin what could not be committed: another user may have made some of the directories."""
        objects = self.path / "objects"
        places = [self.path, self.path / "versions", objects, *(objects.iterdir() if objects.is_dir() else ())]
        shut = [path for path in places if path.is_dir() and not os.access(path, os.W_OK | os.X_OK)]
        if shut:
            more = f" and {len(shut) - 1} more directories" if len(shut) > 1 else ""
            raise StoreError(
                f"{shut[0]}{more} cannot be written by this user.",
                mend=f'sudo chown -R "$USER" {shlex.quote(str(self.given))}',
            )

    def prune(self, keep: int | None = None, *, dry_run: bool = False) -> Pruned:
        """Delete old versions, the objects that no version is left to refer to, and what interrupted learns left.

        The version in force stays, the newest, and, if more than one is to be kept, the one that a rollback leads to,
        and what a learn needs to go on where it was interrupted.

        Args:
            keep: how many of the newest versions stay, at least 1; None: all.
            dry_run: say what would go, and delete nothing.

        Raises:
            StoreError: another process is writing, the version in force is damaged, so that an older one may be wanted,
                or one that stays is, so that it does not tell which objects it needs.
        """
        if keep is not None and keep < 1:
            raise StoreError(f"Cannot keep {keep} versions.", mend="Keep 1 or more.")
        with self._locked("prune", wait=False), self._explained():
            if not dry_run:
                self._require_writable()
            numbers, head = self._listed(), self._head()
            stays = {head.number, *(numbers if keep is None else numbers[-keep:])}
            if keep != 1 and head.parent is not None:
                stays.add(head.parent)
            gone = [number for number in numbers if number not in stays]
            if gone and (faults := self._faults(head.number, {})):
                raise StoreError(*faults, mend=self._way_on())
            try:
                left = [self._load(number) for number in numbers if number in stays]
            except ValueError as error:
                mend = "Restore it from a copy, or keep fewer versions: edge-cl prune --keep N"
                raise StoreError(f"{error}.", mend=mend) from None
            needed = {ref.sha256 for version in left for ref in version.objects.values()}
            files = [path for path in (self.path / "objects").glob("*/*") if path.is_file() or path.is_symlink()]
            unneeded = [path for path in files if path.name not in needed]
            begun = self._of_no_use(head, keep)
            freed = sum(path.lstat().st_size for path in unneeded) + sum(map(size_of, begun))
            pruned = Pruned(gone, freed)
            if not dry_run:
                sync_directory(self.path)  # a writer that was killed may have moved HEAD without syncing its name
                for number in gone:
                    self._version_file(number).unlink()
                sync_directory(self.path / "versions")  # a version whose objects are gone must not come back
                for path in unneeded:
                    path.unlink()
                discard(begun)
            return pruned

    def _of_no_use(self, head: Version, keep: int | None) -> list[Path]:
        """Return what unfinished jobs left in `work`, but for what the same commands, given again, go on with."""
        resumable = unfinished(self.work, head.number) if keep != 1 else []
        found = list[Path]()
        for path in unfinished(self.work):
            if path.name == head.record.get("checkpoint"):  # the directory says that its bundle is still to be written
                found += path.iterdir()
            elif path not in resumable:
                found.append(path)
        return found

    def _check_vacant(self) -> None:
        """Refuse a path at which no store can be created."""
        with self._readable():
            if self.path.exists() and not self.path.is_dir():
                raise StoreError(f"{self.given} is a file, not a directory.", mend="Name another with --store DIR.")
            names = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set()
        if "format.json" in names:
            raise StoreError(
                f"{self.given} is a store already.", mend="Use it as it is, or name another with --store DIR."
            )
        unfinished = "lock" in names and {re.sub(r"^\.(.*)\.tmp$", r"\1", name) for name in names} <= _TOP_LEVEL
        if names and not unfinished:
            raise StoreError(
                f"{self.given} holds files that are not a store's: {', '.join(sorted(names)[:3])}.",
                mend="Name an empty or a new directory with --store DIR.",
            )

    def _check_format(self) -> None:
        make = f"Make one: edge-cl init --store {shlex.quote(str(self.given))} (`edge-cl learn` does it too)."
        try:
            with self._readable():
                if not self.path.exists():
                    raise StoreError(f"There is no store at {self.given}.", mend=make)
                if not self.path.is_dir():
                    raise StoreError(f"{self.given} is a file, not a store.", mend="Name another with --store DIR.")
                if not self._format_file.exists():
                    raise StoreError(f"{self.given} is not a store: it has no format.json.", mend=make)
                number = json.loads(self._format_file.read_bytes())["format"]
            if type(number) is not int or number < 1:
                raise ValueError(f"format {number!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{self._format_file} is damaged: {error}.", mend="Restore it from a copy of the store."
            ) from None
        if number > FORMAT:
            raise StoreError(
                f"{self.given} has store format {number}; this edge-cl reads formats up to {FORMAT}.",
                mend="Upgrade edge-cl: pip install --upgrade edge-cl",
            )

    @property
    def _format_file(self) -> Path:
        return self.path / "format.json"

    def _version_file(self, number: int) -> Path:
        return self.path / "versions" / f"{number:06d}.json"

    def _object_file(self, ref: ObjectRef) -> Path:
        return self.path / "objects" / ref.sha256[:2] / ref.sha256

    def _numbers(self) -> list[int]:
        """Return the numbers of all version files, oldest first; of none that cannot be listed."""
        try:
            return self._listed()
        except OSError:
            return []

    def _listed(self) -> list[int]:
        """Return the same, or raise OSError."""
        names = [entry.name for entry in (self.path / "versions").iterdir()]
        return sorted(int(match[1]) for name in names if (match := _VERSION_FILE.fullmatch(name)))

    def _head_number(self) -> int:
        """Return the number in HEAD, or raise ValueError saying what is wrong with it."""
        path = self.path / "HEAD"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        if not (match := _HEAD.fullmatch(data)):
            raise ValueError(f"{path} holds {data[:40]!r} where a version number belongs")
        return int(match[1])

    def _head(self) -> Version:
        try:
            number = self._head_number()
            while True:
                try:
                    return self._load(number)
                except ValueError:  # a writer may have moved HEAD since, and deleted that version
                    before, number = number, self._head_number()
                    if number == before:
                        raise
        except ValueError as error:
            raise StoreError(f"{error}.", mend=self._way_on()) from None

    def _load(self, number: int) -> Version:
        """Return one version, or raise ValueError saying what is wrong with it."""
        path = self._version_file(number)
        try:
            return decode(path.read_bytes(), number)
        except FileNotFoundError:
            raise ValueError(f"Version {number} does not exist ({path})") from None
        except OSError as error:
            raise ValueError(f"Version {number} cannot be read ({path}): {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"Version {number} is damaged ({path}): {error}") from None

    def _faults(self, number: int, seen: dict[ObjectRef, str]) -> list[str]:
        """Return what is wrong with a version and its objects; `seen` keeps what was found of each object."""
        try:
            version = self._load(number)
        except ValueError as error:
            return [f"{error}."]
        for ref in version.objects.values():
            if ref not in seen:
                seen[ref] = object_fault(self._object_file(ref), ref)
        return [
            f"Object {name!r} of version {number}: {seen[ref]}." for name, ref in version.objects.items() if seen[ref]
        ]

    def _way_on(self) -> str:
        """Say how to go on from damage: the newest whole version, when there is one."""
        seen: dict[ObjectRef, str] = {}
        whole = next((number for number in reversed(self._numbers()) if not self._faults(number, seen)), None)
        if whole is None:
            return f"No version is whole: restore {self.given} from a copy."
        with suppress(ValueError):
            if whole == self._head_number():
                return f"Version {whole}, the one in force, is whole; restore the other from a copy."
        command = f"edge-cl rollback {whole} --store {shlex.quote(str(self.given))}"
        return f"Go back to the newest whole version: {command}"

    def _damaged(self, version: Version, name: str, fault: str) -> StoreError:
        try:
            self._version_file(version.number).stat()
        except FileNotFoundError:
            return StoreError(f"Version {version.number} was deleted meanwhile.", mend="Run the same command again.")
        except OSError:
            pass  # it is there, or nobody can tell
        return StoreError(f"Object {name!r} of version {version.number}: {fault}.", mend=self._way_on())

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.given} cannot be read: {error}.", mend="Check its permissions.") from None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what the operating system says into a StoreError with a way on."""
        try:
            yield
        except OSError as error:
            full, known = error.errno in (errno.ENOSPC, errno.EDQUOT), False
            with suppress(OSError):
                known = self._format_file.exists()
            prune = " (edge-cl prune deletes old versions)" if known else ""
            mend = f"Free some space{prune}" if full else "Mend the cause"
            raise StoreError(
                f"The store {self.given} could not be written: {error}.",
                mend=f"{mend} and run the same command again; the version in force is unchanged.",
            ) from error

    @contextmanager
    def _locked(self, what: str, *, wait: bool) -> Iterator[None]:
        with self._explained():
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                pid, _, doing = os.pread(descriptor, 500, 0).decode(errors="replace").strip().partition(" ")
                raise StoreError(
                    f"Process {pid or '?'} is writing the store {self.given} ({doing or 'starting'}).",
                    mend="Run the same command again when it has finished.",
                ) from None
            except OSError as error:  # of a file system without locks
                mend = "Put the store on a disk of this machine: --store DIR"
                raise StoreError(f"The store {self.given} cannot be locked: {error}.", mend=mend) from None
            with suppress(OSError):  # the text only informs; a full disk must not stop a clean-up
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {what}\n".encode(errors="replace"), 0)
            yield
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing alone keeps it while a forked child lives
            os.close(descriptor)

    @contextmanager
    def _transaction(self, parent: Version | None, number: int) -> Iterator[Transaction]:
        transaction = Transaction(self, parent, number)
        try:
            yield transaction
        finally:
            transaction.remove_uncommitted()


@dataclass(frozen=True)
class Pruned:
    """What was deleted: the numbers of versions, oldest first, and the bytes of objects and of unfinished learns."""

    versions: list[int]
    freed_bytes: int


@dataclass
class Transaction:
    """What the one writer does: put objects, then commit; or move HEAD. Made by `Store.write`.

    Attributes:
        store: the store written to.
        parent: the version in force when the lock was taken, or the last one committed since.
    """

    store: Store
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
        with self.store._explained():
            ref = hash_file(Path(path))
        self._put(name, ref, partial(shutil.copyfile, path))

    def keep(self, name: str) -> None:
        """Carry one object over from the parent.

        Raises:
            StoreError: the parent has no such object, or it is missing.
        """
        parent = self._require_parent()
        ref = _ref(parent, name)
        path = self.store._object_file(ref)
        if not path.is_file() or path.stat().st_size != ref.size:
            raise self.store._damaged(parent, name, object_fault(path, ref))
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
        with self.store._explained():
            for directory in sorted(self._directories):
                sync_directory(directory)
            self._new.clear()  # from here on a version file may refer to them, and the number is used
            self._number += 1
            replace_bytes(self.store._version_file(version.number), data, read_only=True)
        self._set_head(version)
        self._objects, self._directories = {}, set()
        return version

    def move_head(self, number: int) -> Version:
        """Put an existing version in force, after verifying all of its objects.

        Raises:
            StoreError: it does not exist or is damaged, or the store cannot be written.
        """
        if number not in self.store._numbers():
            raise StoreError(
                f"Version {number} does not exist.", mend="edge-cl log lists the versions for edge-cl rollback VERSION."
            )
        if faults := self.store._faults(number, {}):
            raise StoreError(*faults, mend=self.store._way_on())
        version = self.store.version(number)
        self._set_head(version)
        return version

    def remove_uncommitted(self) -> None:
        """Delete the objects that were put but not committed."""
        for path in self._new:
            path.unlink(missing_ok=True)
        self._new.clear()

    def _set_head(self, version: Version) -> None:
        with self.store._explained():
            replace_bytes(self.store.path / "HEAD", f"{version.number}\n".encode())
        self.parent = version

    def _require_parent(self) -> Version:
        if self.parent is None:
            raise StoreError(f"{self.store.given} has no version in force.", mend=self.store._way_on())
        return self.parent

    def _put(self, name: str, ref: ObjectRef, write: Callable[[Path], object]) -> None:
        if not OBJECT_NAME.fullmatch(name):
            raise StoreError(f"{name!r} cannot name an object.", mend="Use letters, digits, '_', '-', '.' and '/'.")
        path = self.store._object_file(ref)
        with self.store._explained():
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


def _ref(version: Version, name: str) -> ObjectRef:
    if name not in version.objects:
        raise StoreError(
            f"Version {version.number} has no object {name!r}.",
            mend=did_you_mean(name, list(version.objects)),
        )
    return version.objects[name]


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def edge_cl_version() -> str:
    """Return the version of this edge-cl."""
    try:
        return metadata.version("edge-cl")
    except metadata.PackageNotFoundError:
        return "unknown"
