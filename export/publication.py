"""Writing a bundle in place: new files first, then one rename of the manifest, then what nobody reads any more goes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from edge_cl.durable import make_directory, replace_bytes, replacing, sync_directory
from edge_cl.errors import EngineError
from edge_cl.export.bundle import (
    ENGINES,
    MANIFEST,
    BundleError,
    FileRef,
    FormatError,
    Manifest,
    file_fault,
    is_bundle_file,
    read_manifest,
)
from edge_cl.runtime.nvidia import require_installed

LOCK = ".lock"
GRAPHS = ("weights", "prefix", "suffix")  # files that an update takes over as they are


@dataclass
class Publication:
    """One writer's work on one bundle.

    Attributes:
        out: directory of the bundle.
        previous: manifest in force when the work began; None where there is none that can be used.
        written: bytes written so far.
    """

    out: Path
    previous: Manifest | None
    written: int = 0
    _new: list[Path] = field(default_factory=list)

    @classmethod
    @contextmanager
    def begin(cls, out: Path) -> Iterator[Publication]:
        """Lock a directory for writing a bundle.

        Raises:
            BundleError: it holds something else, cannot be written, or another process is writing it.
        """
        require_vacant(out)
        with locked(out):
            publication = cls(out, _previous(out))
            try:
                yield publication
            except OSError as error:
                raise BundleError(
                    f"The bundle {out} could not be written: {error.strerror}.",
                    mend="Free some space and run the same command again; a bundle in force stays whole.",
                ) from error
            finally:
                for path in publication._new:  # what was refused, or could not be finished
                    path.unlink(missing_ok=True)

    def put(self, role: str, suffix: str, data: bytes) -> FileRef:
        """Write a file under the name that its content gives it, unless it is there already."""
        digest = hashlib.sha256(data).hexdigest()
        ref = FileRef(f"{role.replace('/', '-')}-{digest[:16]}.{suffix}", digest, len(data))
        if not _holds(self.path(ref), data):
            with replacing(self.path(ref), sync_parent=False) as temporary:  # `publish` makes all names durable
                temporary.write_bytes(data)
            self.written += len(data)
            self._new.append(self.path(ref))
        return ref

    def path(self, ref: FileRef) -> Path:
        """Return where a file lies."""
        return self.out / ref.name

    def publish(self, manifest: Manifest) -> None:
        """Put a manifest in force, and remove files of ours that neither it nor the one before names."""
        data = manifest.encode()
        sync_directory(self.out)
        self._new.clear()  # from here on the manifest may name them
        replace_bytes(self.out / MANIFEST, data)
        self.written += len(data)
        named = {ref.name for m in (manifest, self.previous) if m is not None for ref in m.files.values()}
        for path in self.out.iterdir():
            if is_bundle_file(path.name) and path.name not in named:
                path.unlink(missing_ok=True)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes from writing a bundle, its engines included.

    Raises:
        BundleError: its directory cannot be written, or another process is writing it.
    """
    try:
        make_directory(out)
        descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BundleError(
                f"Another process is writing the bundle {out}.",
                mend="Run the same command again when it has finished.",
            ) from None
        yield
    finally:
        os.close(descriptor)


def require_vacant(out: Path) -> None:
    """Refuse a directory that holds something other than a bundle: nothing of anyone else's is overwritten.

    Raises:
        BundleError: it does, or it cannot be written.
    """
    try:
        if not out.exists():
            place = next(parent for parent in out.absolute().parents if parent.exists())
            if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
                raise BundleError(f"{out} cannot be made in {place}.", mend="Choose another place.")
            return
        if not out.is_dir():
            raise BundleError(f"{out} is a file.", mend="Name a new directory, or a bundle to bring up to date.")
        names = {path.name for path in out.iterdir()} - {LOCK}
    except OSError as error:
        raise _unwritable(out, error) from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise BundleError(f"{out} cannot be written.", mend="Choose another place.")
    if names and not _is_bundle(out, names):
        raise BundleError(
            f"{out} holds other files and is no bundle.", mend="Name a new directory, or a bundle to bring up to date."
        )


def require_writable(out: Path) -> None:
    """Refuse a bundle that could not be brought up to date after what is done before it.

    Raises:
        BundleError: see `require_vacant`.
        EngineError: it has engines, and what makes them is not installed.
    """
    require_vacant(out)
    if (out / ENGINES).is_dir():
        try:
            require_installed()
        except EngineError as error:
            apart = f"Or leave --export out, then: edge-cl export {quote(str(out))} --format onnx"
            raise EngineError(*error.faults, mend=f"{error.mend} {apart}") from error


def _is_bundle(out: Path, names: set[str]) -> bool:
    """Tell whether a directory is a bundle, be it damaged or never finished."""
    try:
        read_manifest(out)
    except BundleError as error:
        if isinstance(error.__cause__, FormatError):
            raise  # a later edge-cl's: not ours to overwrite
        return any(map(is_bundle_file, names))  # a web page has a manifest.json too
    return True


def _unwritable(out: Path, error: OSError) -> BundleError:
    return BundleError(f"{out} cannot be written: {error.strerror}.", mend="Choose another place.")


def _holds(path: Path, data: bytes) -> bool:
    """Tell whether a plain file has this content."""
    try:
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _previous(out: Path) -> Manifest | None:
    """Return the manifest in force, if its graphs are whole: the rest `put` mends."""
    try:
        manifest = read_manifest(out)
    except BundleError:
        return None
    return None if any(file_fault(out, manifest.files[role]) for role in GRAPHS) else manifest
