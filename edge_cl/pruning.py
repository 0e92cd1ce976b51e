"""What of a store nobody needs any more, and its removal, such that no moment at which the power goes does harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_cl.checkpoint import discard, size_of, unfinished
from edge_cl.durable import sync_directory
from edge_cl.errors import StoreError
from edge_cl.store_files import StoreFiles
from edge_cl.version import Version


@dataclass(frozen=True)
class Pruned:
    """What was deleted: the numbers of versions, oldest first, and the bytes of objects and of unfinished learns."""

    versions: list[int]
    freed_bytes: int


@dataclass(frozen=True)
class Unneeded:
    """What may be deleted.

    Attributes:
        versions: numbers of versions, oldest first.
        objects: files of objects that no other version refers to.
        jobs: what unfinished learns left.
    """

    versions: Sequence[int]
    objects: Sequence[Path]
    jobs: Sequence[Path]

    @classmethod
    def of(cls, files: StoreFiles, keep: int | None) -> Unneeded:
        """Return what need not stay; see `Store.prune`. Who deletes it holds the lock since before."""
        numbers, head = files.listed(), files.head()
        stays = {head.number, *(numbers if keep is None else numbers[-keep:])}
        if keep != 1 and head.parent is not None:
            stays.add(head.parent)
        gone = [number for number in numbers if number not in stays]
        if gone and (faults := files.faults(head.number, {})):
            raise StoreError(*faults, mend=files.way_on())
        try:
            left = [files.load(number) for number in numbers if number in stays]
        except ValueError as error:
            mend = f"Restore it from a copy, or keep fewer versions: {files.command('prune --keep N')}"
            raise StoreError(f"{error}.", mend=mend) from None
        needed = {ref.sha256 for version in left for ref in version.objects.values()}
        objects = [path for path in (files.path / "objects").glob("*/*") if path.is_file() or path.is_symlink()]
        return cls(gone, [path for path in objects if path.name not in needed], _of_no_use(files.work, head, keep))

    @property
    def pruned(self) -> Pruned:
        """Which versions these are, and how many bytes."""
        return Pruned(list(self.versions), sum(map(size_of, (*self.objects, *self.jobs))))

    def delete(self, files: StoreFiles) -> None:
        """Delete it: versions before the objects that only they referred to."""
        sync_directory(files.path)  # a writer that was killed may have moved HEAD without syncing its name
        for number in self.versions:
            files.version_file(number).unlink()
        sync_directory(files.path / "versions")  # a version whose objects are gone must not come back
        for path in self.objects:
            path.unlink()
        discard(self.jobs)


def _of_no_use(work: Path, head: Version, keep: int | None) -> list[Path]:
    """Return what unfinished jobs left in `work`, but for what the same commands, given again, go on with."""
    resumable = unfinished(work, head.number) if keep != 1 else []
    found = list[Path]()
    for path in unfinished(work):
        if path.name == head.record.get("checkpoint"):  # the directory says that its bundle is still to be written
            found += path.iterdir()
        elif path not in resumable:
            found.append(path)
    return found
