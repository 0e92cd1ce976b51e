"""What a learn is about to take in: the folder held against the classes already known, before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_cl.errors import FolderError
from edge_cl.pictures import Picture, PictureFolder, Skipped, path_text, split_hold_out


@dataclass(frozen=True)
class Intake:
    """The pictures of one learn.

    Attributes:
        folder: as read.
        new: names of the classes to be taught, sorted.
        known: names of classes already known whose statistics get more pictures, sorted.
        train: pictures to learn from.
        hold_out: pictures that measure the result.
        negatives: pictures of nothing that is or will be known, which tighten the unknown test, or None.
    """

    folder: PictureFolder
    new: tuple[str, ...]
    known: tuple[str, ...]
    train: tuple[Picture, ...]
    hold_out: tuple[Picture, ...]
    negatives: PictureFolder | None = None

    @classmethod
    def of(cls, folder: PictureFolder, known: Collection[str], *, update: bool, hold_out: float) -> Intake:
        """Hold a folder against the known classes.

        Raises:
            FolderError: a class is known already and `update` was not asked for; all such classes at once.
        """
        names = list(folder.classes)
        old = tuple(name for name in names if name in known)
        if old and not update:
            listed = ", ".join(repr(name) for name in old)
            raise FolderError(
                f"{path_text(folder.root)} holds {'a class' if len(old) == 1 else 'classes'} already known: {listed}.",
                mend="Add --update to let their new pictures join what is known, or take their folders away.",
            )
        train, held = split_hold_out(folder.pictures, fraction=hold_out)
        new = tuple(name for name in names if name not in known)
        return cls(folder, new, old, tuple(train), tuple(held))

    def of_classes(self, names: Collection[str]) -> tuple[list[Picture], list[Picture]]:
        """Return the training and hold-out pictures of some classes."""
        return [p for p in self.train if p.label in names], [p for p in self.hold_out if p.label in names]

    def to_json(self) -> dict[str, Any]:
        """Return the table that `--dry-run` prints."""
        held = {p.path for p in self.hold_out}
        classes = [
            {
                "name": name,
                "state": "new" if name in self.new else "known",
                "pictures": len(pictures),
                "hold_out": sum(p.path in held for p in pictures),
            }
            for name, pictures in self.folder.classes.items()
        ]
        return {"classes": classes, "images": len(self.folder.pictures), "skipped": skipped_json(self.folder.skipped)}


def skipped_json(skipped: Iterable[Skipped]) -> list[Mapping[str, str]]:
    """Return skipped files and reasons as plain JSON values."""
    return [{"path": path_text(s.path), "why": s.why} for s in skipped]
