"""Files replaced whole or not at all, also when the power goes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_cl.errors import EdgeClError


@contextmanager
def replacing(path: Path, *, read_only: bool = False, sync_parent: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what the block writes there becomes `path` when it ends well.

    At any moment, power cuts included, `path` holds either all of its old bytes or all of the new ones.
    When the block or the disk fails, the temporary file is removed and `path` is as it was. One writer at a
    time: the temporary name is fixed, so that what a crash leaves behind is overwritten by the next attempt.

    Args:
        path: the file to make or replace; its directory exists.
        read_only: take the write permission off the finished file.
        sync_parent: make the new name durable too; without it the caller owes a `sync_directory`.

    Raises:
        OSError: the file could not be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # a leftover may be read-only
        temporary.touch()
        mode = temporary.stat().st_mode & (0o555 if read_only else 0o777)
        yield temporary
        temporary.chmod(mode)  # writers that replace the file (safetensors does) choose a mode of their own
        _sync(temporary, os.O_RDONLY)
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if sync_parent:
        sync_directory(path.parent)


def replace_bytes(path: Path, data: bytes, *, read_only: bool = False) -> None:
    """Make `data` the whole content of `path`, durably (see `replacing`)."""
    with replacing(path, read_only=read_only) as temporary:
        temporary.write_bytes(data)


def make_directory(path: Path) -> None:
    """Create a directory and its missing parents, durably."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names inside a directory (files created, renamed or removed there) durable."""
    try:
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network and FUSE file systems cannot sync a directory
            raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def settled(path: Path) -> Path:
    """Return a path that stays right when the program changes its working directory.

    It is left as it is where the absolute one leads through directories that may not be entered.

    Raises:
        EdgeClError: the path is relative, and the working directory has been deleted.
    """
    try:
        absolute = path.absolute()
    except FileNotFoundError:
        raise EdgeClError(
            f"{path} cannot be found: the working directory has been deleted.",
            mend="Change to one that exists, such as by `cd ~`, and run the same command again.",
        ) from None
    reached = os.path.exists(absolute) or not os.path.exists(path)  # noqa: PTH110  # no error is of interest
    return absolute if reached else path
