"""The files of a store: where they lie, what is wrong with them, and the lock of the one writer (docs/store.md)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edge_cl.durable import settled
from edge_cl.errors import StoreError, did_you_mean
from edge_cl.version import ObjectRef, Version, decode, object_fault

_VERSION_FILE = re.compile(r"([0-9]{6,18})\.json")
_HEAD = re.compile(rb"(0|[1-9][0-9]{0,17})\n")
REPORT = ("report.md", "metrics.json", "plot.png")  # objects of a version that nothing is answered or learned by


@dataclass(frozen=True)
class StoreFiles:
    """The files below a store's directory.

    Attributes:
        given: the directory, as messages name it.
        path: the same, as it is found.
    """

    given: Path
    path: Path

    @property
    def work(self) -> Path:
        """The directory for checkpoints of an interrupted learn."""
        return self.path / "work"

    @property
    def format_file(self) -> Path:
        """What makes the directory a store; the last file that is written when one is made."""
        return self.path / "format.json"

    def version_file(self, number: int) -> Path:
        """Return the file of a version, there or not."""
        return self.path / "versions" / f"{number:06d}.json"

    def object_file(self, ref: ObjectRef) -> Path:
        """Return the file of an object, there or not."""
        return self.path / "objects" / ref.sha256[:2] / ref.sha256

    def numbers(self) -> list[int]:
        """Return the numbers of all version files, oldest first; of none that cannot be listed."""
        try:
            return self.listed()
        except OSError:
            return []

    def listed(self) -> list[int]:
        """Return the same, or raise OSError."""
        names = [entry.name for entry in (self.path / "versions").iterdir()]
        return sorted(int(match[1]) for name in names if (match := _VERSION_FILE.fullmatch(name)))

    def head_number(self) -> int:
        """Return the number in HEAD, or raise ValueError saying what is wrong with it."""
        path = self.path / "HEAD"
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        if not (match := _HEAD.fullmatch(data)):
            raise ValueError(f"{path} holds {data[:40]!r} where a version number belongs")
        return int(match[1])

    def head(self) -> Version:
        """Return the version in force, read anew. Raises StoreError: HEAD does not lead to a whole one."""
        try:
            number = self.head_number()
            while True:
                try:
                    return self.load(number)
                except ValueError:  # a writer may have moved HEAD since, and deleted that version
                    before, number = number, self.head_number()
                    if number == before:
                        raise
        except ValueError as error:
            raise StoreError(f"{error}.", mend=self.way_on()) from None

    def load(self, number: int) -> Version:
        """Return one version, or raise ValueError saying what is wrong with it."""
        path = self.version_file(number)
        try:
            return decode(path.read_bytes(), number)
        except FileNotFoundError:
            raise ValueError(f"Version {number} does not exist ({path})") from None
        except OSError as error:
            raise ValueError(f"Version {number} cannot be read ({path}): {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"Version {number} is damaged ({path}): {error}") from None

    def faults(self, number: int, seen: dict[ObjectRef, str]) -> list[str]:
        """Return what is wrong with a version and its objects; `seen` keeps what was found of each object."""
        try:
            version = self.load(number)
        except ValueError as error:
            return [f"{error}."]
        damaged = self._faults_of(version, seen)
        return [f"Object {name!r} of version {number}: {fault}." for name, fault in damaged.items()]

    def _faults_of(self, version: Version, seen: dict[ObjectRef, str]) -> dict[str, str]:
        for ref in version.objects.values():
            if ref not in seen:
                seen[ref] = object_fault(self.object_file(ref), ref)
        return {name: seen[ref] for name, ref in version.objects.items() if seen[ref]}

    def command(self, verb: str) -> str:
        """Return a command for this store, to be shown: without --store it might be done to another."""
        return f"edge-cl {verb} --store {shlex.quote(str(self.given))}"

    def way_on(self) -> str:
        """Say how to go on from damage: the newest whole version before the one in force, else the newest whole one.

        Not just the newest: the versions after the one in force are those that a rollback undid. Where its report alone
        is damaged, nothing has to be done.
        """
        seen: dict[ObjectRef, str] = {}
        with suppress(ValueError):
            head = self.load(self.head_number())
            damaged = self._faults_of(head, seen).keys()
            if damaged and damaged <= set(REPORT):
                return f"Version {head.number} answers as before, without its report; the next learn writes its own."
        lineage = list(self._lineage())
        numbers = [*lineage, *reversed(self.numbers())]
        whole = next((number for number in numbers if not self.faults(number, seen)), None)
        if whole is None:
            return f"No version is whole: restore {self.given} from a copy."
        if whole in lineage[:1]:
            return f"Version {whole}, the one in force, is whole; restore the other from a copy."
        command = self.command(f"rollback {whole}")
        if whole in lineage:
            return f"Go back to the newest whole version before it: {command}"
        version = self.load(whole)
        what = f"{version.kind}, {version.created}; a rollback may have undone it"
        return f"The newest whole version is {whole} ({what}): {command}"

    def _lineage(self) -> Iterator[int]:
        """Yield the number of the version in force, of its parent, and so on, as far as they can be read."""
        with suppress(ValueError):
            number: int | None = self.head_number()
            while number is not None:
                yield number
                number = self.load(number).parent

    def damaged(self, version: Version, name: str, fault: str) -> StoreError:
        """Return what to raise for an object with a fault: its version may have been deleted meanwhile."""
        try:
            self.version_file(version.number).stat()
        except FileNotFoundError:
            return StoreError(f"Version {version.number} was deleted meanwhile.", mend="Run the same command again.")
        except OSError:
            pass  # it is there, or nobody can tell
        return StoreError(f"Object {name!r} of version {version.number}: {fault}.", mend=self.way_on())

    def require_writable(self) -> None:
        """Refuse to begin what could not be committed: another user may have made some of the directories."""
        objects = self.path / "objects"
        places = [nearest_there(self.path), self.path / "versions", objects]
        places += objects.iterdir() if objects.is_dir() else ()
        shut = [path for path in places if path.is_dir() and not os.access(path, os.W_OK | os.X_OK)]
        if shut:
            more = f" and {len(shut) - 1} more directories" if len(shut) > 1 else ""
            raise StoreError(f"{shut[0]}{more} cannot be written by this user.", mend=self._way_in(shut[0]))

    def _way_in(self, shut: Path) -> str:
        """Say what lets this user write where they may not: in the store, or where it is to be made."""
        shut, made = nearest_there(shut), _is_there(self.path)
        place = shlex.quote(str(self.given if made else shut))
        if os.statvfs(shut).f_flag & os.ST_RDONLY:
            return "Its disk is mounted read-only: mount it anew, or name another directory with --store DIR."
        if shut.stat().st_uid == os.getuid():
            return f"Allow it: chmod {'-R ' if made else ''}u+rwX {place}"
        return f'Make it yours: sudo chown -R "$USER" {place}' if made else "Name another directory with --store DIR."

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Turn what the operating system says of reading into a StoreError."""
        try:
            yield
        except OSError as error:
            raise StoreError(f"{self.given} cannot be read: {error}.", mend="Check its permissions.") from None

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what the operating system says of writing into a StoreError with a way on."""
        try:
            yield
        except OSError as error:
            known = _is_there(self.format_file)
            if isinstance(error, PermissionError):
                mend = self._way_in(Path(error.filename or self.path))
            else:
                prune = f" ({self.command('prune')} deletes old versions)" if known else ""
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                cause = f"Free some space{prune}" if full else "Mend the cause"
                elsewhere = "" if known else ", or name another directory with --store DIR,"
                mend = f"{cause}{elsewhere} and run the same command again."
            unchanged = " The version in force is unchanged." if known else ""
            raise StoreError(f"The store {self.given} could not be written: {error}.{unchanged}", mend=mend) from error

    @contextmanager
    def locked(self, what: str, *, wait: bool) -> Iterator[None]:
        """Hold the lock of the one writer; it ends with the process too.

        Raises:
            StoreError: another process holds it, or the file system has none.
        """
        with self.explained():
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


def object_of(version: Version, name: str) -> ObjectRef:
    """Return what a version says of an object. Raises StoreError: it has none of that name."""
    if name not in version.objects:
        raise StoreError(
            f"Version {version.number} has no object {name!r}.",
            mend=did_you_mean(name, list(version.objects)),
        )
    return version.objects[name]


def nearest_there(path: Path) -> Path:
    """Return a path, or the closest directory above it that this user can tell is there."""
    return next(place for place in (path, *settled(path).parents) if _is_there(place))


def _is_there(path: Path) -> bool:
    with suppress(OSError):  # of a directory that may not be entered
        return path.exists()
    return False
