"""Writing a bundle in place: new files first, then one rename of the manifest, then what nobody reads any more goes."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_cl.durable import make_directory, replace_bytes
from edge_cl.export.bundle import MANIFEST, BundleError, FileRef, Manifest, file_fault, read_manifest

LOCK = ".lock"


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

    @classmethod
    @contextmanager
    def begin(cls, out: Path) -> Iterator[Publication]:
        """Lock a directory for writing a bundle.

        Raises:
            BundleError: it holds something else, cannot be written, or another process is writing it.
        """
        try:
            require_vacant(out)
            make_directory(out)
            descriptor = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise BundleError(f"{out} cannot be written: {error.strerror}.", mend="Choose another place.") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BundleError(
                    f"Another process is writing the bundle {out}.",
                    mend="Run the same command again when it has finished.",
                ) from None
            try:
                yield cls(out, _previous(out))
            except OSError as error:
                raise BundleError(
                    f"The bundle {out} could not be written: {error.strerror}.",
                    mend="Free some space and run the same command again; the bundle in force is unchanged.",
                ) from error
        finally:
            os.close(descriptor)

    def put(self, role: str, suffix: str, data: bytes) -> FileRef:
        """Write a file under the name that its content gives it, unless it is there already."""
        digest = hashlib.sha256(data).hexdigest()
        ref = FileRef(f"{role.replace('/', '-')}-{digest[:16]}.{suffix}", digest, len(data))
        if file_fault(self.out, ref):
            replace_bytes(self.path(ref), data)
            self.written += len(data)
        return ref

    def path(self, ref: FileRef) -> Path:
        """Return where a file lies."""
        return self.out / ref.name

    def publish(self, manifest: Manifest) -> None:
        """Put a manifest in force, and remove files that neither it nor the one before names."""
        data = manifest.encode()
        replace_bytes(self.out / MANIFEST, data)
        self.written += len(data)
        named = {ref.name for m in (manifest, self.previous) if m is not None for ref in m.files.values()}
        for path in self.out.iterdir():
            ours = path.suffix in (".onnx", ".safetensors") and path.name[-len(path.suffix) - 17 :][:1] == "-"
            if ours and path.name not in named:
                path.unlink(missing_ok=True)


def require_vacant(out: Path) -> None:
    """Refuse a directory that holds something other than a bundle: nothing of anyone else's is overwritten."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BundleError(f"{out} is a file.", mend="Name a new directory, or a bundle to bring up to date.")
    if any(path.name != LOCK for path in out.iterdir()) and not (out / MANIFEST).exists():
        raise BundleError(
            f"{out} holds other files and is no bundle.", mend="Name a new directory, or a bundle to bring up to date."
        )


def _previous(out: Path) -> Manifest | None:
    """Return the manifest in force, if it and all of its files are whole."""
    try:
        manifest = read_manifest(out)
    except BundleError:
        return None
    return None if any(file_fault(out, ref) for ref in manifest.files.values()) else manifest
