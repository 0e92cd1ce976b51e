"""The learner's directory of immutable versions over content-addressed objects (format: docs/store.md)."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from edge_cl.durable import make_directory, replace_bytes, settled, sync_directory
from edge_cl.errors import StoreError
from edge_cl.pruning import Pruned, Unneeded
from edge_cl.store_files import StoreFiles, object_of
from edge_cl.transaction import Transaction
from edge_cl.version import Json, JsonObject, ObjectRef, Version, object_fault, pretty

FORMAT = 2  # the highest that is read
_TOP_LEVEL = {"format.json", "HEAD", "versions", "objects", "lock", "work"}


class Store:
    """A directory of immutable versions; one of them, HEAD, is in force.

    Readers take no lock, never wait, and see whole versions only. Writing goes through `write`.
    Open one with `Store.open`, make one with `Store.create`.
    """

    def __init__(self, path: Path, *, repair: bool = False) -> None:
        self.files = StoreFiles(path, settled(path))
        self._repair = repair

    @property
    def given(self) -> Path:
        """The directory as messages name it: as it was given."""
        return self.files.given

    def command(self, verb: str) -> str:
        """Return a command for this store, to be shown."""
        return self.files.command(verb)

    @property
    def path(self) -> Path:
        """The directory as it is found, whatever the working directory is by now."""
        return self.files.path

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
        store.require_vacant()
        with store.files.explained():
            make_directory(store.path)
        with store.files.locked("create the store", wait=False):
            store.require_vacant()
            with store.files.explained():
                sync_directory(store.path)  # `lock` is first: by it a half-made store is known as ours
                for name in ("versions", "objects", "work"):
                    (store.path / name).mkdir(exist_ok=True)
            with store._transaction(None, 0) as transaction:
                if fill:
                    fill(transaction)
                transaction.commit(kind="init", record=record)
            with store.files.explained():
                replace_bytes(store.files.format_file, pretty({"format": format, "edge_cl": edge_cl_version()}))
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
            store.files.head()
        return store

    @classmethod
    def exists(cls, path: str | Path) -> bool:
        """Return whether there is a whole store in a directory. Raises StoreError: that cannot be told."""
        store = cls(Path(path))
        with store.files.readable():
            there = store.files.format_file.is_file()
            if not there:
                store._check_links()
            return there

    def require_vacant(self) -> None:
        """Refuse a path at which no store can be created.

        Raises:
            StoreError: a store, a file or a directory that holds something else is there, or it cannot be looked at.
        """
        with self.files.readable():
            self._check_links()
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

    def _is_vacant(self) -> bool:
        try:
            self.require_vacant()
        except StoreError:
            return False
        return True

    @property
    def work(self) -> Path:
        """The directory for checkpoints of an interrupted learn."""
        return self.files.work

    @property
    def head(self) -> Version:
        """The version in force, read anew each time."""
        return self.files.head()

    def version(self, number: int) -> Version:
        """Return one version.

        Raises:
            StoreError: it does not exist or its file is damaged.
        """
        try:
            return self.files.load(number)
        except ValueError as error:
            raise StoreError(f"{error}.", mend=self.files.way_on()) from None

    def versions(self) -> list[Version]:
        """Return every readable version, oldest first; `check` names the others."""
        found = []
        for number in self.files.numbers():
            with suppress(ValueError):
                found.append(self.files.load(number))
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
        ref = object_of(version, name)
        path = self.files.object_file(ref)
        with suppress(OSError):
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == ref.sha256:
                return data
        raise self.files.damaged(version, name, object_fault(path, ref) or f"{path} changed while it was read")

    def object_path(self, version: Version, name: str) -> Path:
        """Return the verified file of an object, to be mapped. Raises StoreError: see `read_bytes`."""
        ref = object_of(version, name)
        path = self.files.object_file(ref)
        if fault := object_fault(path, ref):
            raise self.files.damaged(version, name, fault)
        return path

    def check(self) -> list[str]:
        """Return every fault of HEAD, the versions and their objects, a sentence each; reads every object."""
        faults, seen = [], dict[ObjectRef, str]()
        try:
            self.files.load(self.files.head_number())
        except ValueError as error:
            faults.append(f"{error}.")
        faults += [fault for number in self.files.numbers() for fault in self.files.faults(number, seen)]
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
        with self.files.locked(what, wait=wait):
            try:
                parent = self.files.head()
            except StoreError:
                if not self._repair:
                    raise
                parent = None
            with self.files.explained():
                number = max(self.files.listed(), default=0) + 1
                self.files.require_writable()
            with self._transaction(parent, number) as transaction:
                yield transaction

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
        # Where nothing can be written, as on a read-only disk, looking needs no lock.
        looks = dry_run and not os.access(self.path / "lock", os.W_OK)
        with nullcontext() if looks else self.files.locked("prune", wait=False), self.files.explained():
            if not dry_run:
                self.files.require_writable()
            unneeded = Unneeded.of(self.files, keep)
            pruned = unneeded.pruned
            if not dry_run:
                unneeded.delete(self.files)
            return pruned

    def _check_links(self) -> None:
        """Refuse a path through a link to nothing, as where its disk is not mounted; to be called in `readable`."""
        for place in (self.path, *self.path.parents):
            if place.is_symlink() and not place.exists():
                raise StoreError(
                    f"{self.given} cannot be reached: {place} is a link to {place.readlink()}, where there is nothing.",
                    mend="Mount the disk that it leads to and run the same command again; or remove the link: "
                    f"rm {shlex.quote(str(place))}",
                )

    def _check_format(self) -> None:
        make = f"Make one: {self.command('init')} (`edge-cl learn` does it too)."
        try:
            with self.files.readable():
                if not self.path.exists():
                    self._check_links()
                    raise StoreError(f"There is no store at {self.given}.", mend=make)
                if not self.path.is_dir():
                    raise StoreError(f"{self.given} is a file, not a store.", mend="Name another with --store DIR.")
                if not self.files.format_file.exists():
                    mend = make if self._is_vacant() else "Name the directory of a store with --store DIR."
                    raise StoreError(f"{self.given} is not a store: it has no format.json.", mend=mend)
                number = json.loads(self.files.format_file.read_bytes())["format"]
            if type(number) is not int or number < 1:
                raise ValueError(f"format {number!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise StoreError(
                f"{self.files.format_file} is damaged: {error}.", mend="Restore it from a copy of the store."
            ) from None
        if number > FORMAT:
            raise StoreError(
                f"{self.given} has store format {number}; this edge-cl reads formats up to {FORMAT}.",
                mend="Upgrade edge-cl: pip install --upgrade edge-cl",
            )

    @contextmanager
    def _transaction(self, parent: Version | None, number: int) -> Iterator[Transaction]:
        transaction = Transaction(self.files, parent, number)
        try:
            yield transaction
        finally:
            transaction.remove_uncommitted()


def edge_cl_version() -> str:
    """Return the version of this edge-cl."""
    try:
        return metadata.version("edge-cl")
    except metadata.PackageNotFoundError:
        return "unknown"
