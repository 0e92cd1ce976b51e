"""What a learn is about to take in: the folder held against the classes already known, before anything is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from edge_cl.errors import FolderError, UsageError
from edge_cl.pictures import (
    Picture,
    PictureFolder,
    Skipped,
    path_text,
    read_folder,
    read_unlabelled,
    split_hold_out,
)
from edge_cl.progress import Progress

Pictures: TypeAlias = str | Path | PictureFolder  # where they lie, or as read before
NEGATIVES = 200  # pictures of nothing known whose features are kept


def require_given(new_classes: Pictures | None, negatives: Pictures | None) -> None:
    """Raise UsageError where there is neither anything to be taught, nor anything to tell it from."""
    if new_classes is None and negatives is None:
        raise UsageError(
            "There is nothing to learn from.",
            mend="Pass --new-classes DIR (one sub-folder of pictures a class), --negatives DIR (pictures of nothing "
            "known, which tighten the unknown test), or both.",
        )


def read_folders(
    new_classes: Pictures | None, negatives: Pictures | None, *, growing: bool, progress: Progress
) -> tuple[PictureFolder, PictureFolder | None]:
    """Read what is to be learned, one sub-folder a class, and the negatives where there are some.

    Args:
        new_classes: see `read_folder`; None for negatives alone, which go with a folder that holds nothing.
        negatives: see `read_unlabelled`.
        growing: see `read_folder`; as of the negatives, see `read_unlabelled`.
        progress: told of every file.

    Raises:
        FolderError: one cannot be learned from.
        UsageError: neither is given.
    """
    require_given(new_classes, negatives)
    if isinstance(new_classes, str | Path):
        new_classes = read_folder(Path(new_classes), growing=growing, on_progress=partial(progress, "scan"))
    if isinstance(negatives, str | Path):
        negatives = read_unlabelled(Path(negatives), growing=growing, on_progress=partial(progress, "negatives"))
    if new_classes is None:
        assert negatives is not None
        new_classes = PictureFolder(negatives.root, (), ())
    return new_classes, negatives


def of_nothing_known(folder: PictureFolder, kept: Collection[str], shown: Mapping[str, str]) -> PictureFolder:
    """Return negatives, at most `NEGATIVES` from everywhere in a folder, without those whose features are kept.

    Args:
        folder: as read.
        kept: their SHA-256.
        shown: class of each picture that is known, or is learned now, by SHA-256: none of these is a negative.
    """
    wrong = [Skipped(p.path, f"a picture of {shown[p.sha256]!r}") for p in folder.pictures if p.sha256 in shown]
    pictures = list({p.sha256: p for p in reversed(folder.pictures) if p.sha256 not in shown}.values())[::-1]  # once
    last, most = len(pictures) - 1, min(len(pictures), NEGATIVES)
    some = [pictures[i * last // max(most - 1, 1)] for i in range(most)]  # the first, the last, and between
    skipped = sorted((*folder.skipped, *wrong), key=lambda s: str(s.path))
    return replace(folder, pictures=tuple(p for p in some if p.sha256 not in kept), skipped=tuple(skipped))


@dataclass(frozen=True)
class Intake:
    """The pictures of one learn.

    Attributes:
        folder: as read, without pictures that were learned before.
        new: names of the classes to be taught, sorted.
        known: names of classes already known whose statistics get more pictures, sorted.
        train: pictures to learn from.
        hold_out: pictures that measure the result.
        learned_before: number of pictures in the folder that are passed over, as their class was learned from them.
        learned_as: other class that was learned from a picture before, by the picture's SHA-256.
        negatives: pictures of nothing that is or will be known, which are to tighten the unknown test, or None.
    """

    folder: PictureFolder
    new: tuple[str, ...]
    known: tuple[str, ...]
    train: tuple[Picture, ...]
    hold_out: tuple[Picture, ...]
    learned_before: int = 0
    learned_as: Mapping[str, str] = field(default_factory=dict)
    negatives: PictureFolder | None = None

    @classmethod
    def of(
        cls,
        folder: PictureFolder,
        negatives: PictureFolder | None = None,
        known: Mapping[str, Collection[str]] | None = None,
        kept: Collection[str] = (),
        *,
        update: bool,
        hold_out: float,
    ) -> Intake:
        """Hold folders against what is known; pictures that a class was learned from are passed over.

        Args:
            folder: as read.
            negatives: as read; see `of_nothing_known`.
            known: SHA-256 of the pictures behind each known class, by its name.
            kept: SHA-256 of the negatives that are kept already.
            update: whether known classes may get more pictures.
            hold_out: share of the pictures to hold out.

        Raises:
            FolderError: a class is known already and `update` was not asked for; all such classes at once.
        """
        known = known or {}
        old = tuple(name for name in folder.classes if name in known)
        if old and not update:
            listed = ", ".join(repr(name) for name in old)
            raise FolderError(
                f"{path_text(folder.root)} holds {'a class' if len(old) == 1 else 'classes'} already known: {listed}.",
                mend="Add --update to let their new pictures join what is known, or take their folders away.",
            )
        pictures = tuple(p for p in folder.pictures if p.sha256 not in known.get(p.label, ()))
        learned_before = len(folder.pictures) - len(pictures)
        folder = replace(folder, pictures=pictures)
        learned = {name: len(hashes) for name, hashes in known.items()}
        train, held = split_hold_out(folder.pictures, fraction=hold_out, learned=learned)
        new, old = (tuple(n for n in folder.classes if (n in known) == asked) for asked in (False, True))
        learned_as = {sha: name for name, hashes in known.items() for sha in hashes}
        shown = {**learned_as, **{p.sha256: p.label for p in folder.pictures}}
        unknown = negatives and of_nothing_known(negatives, kept, shown)
        return cls(folder, new, old, tuple(train), tuple(held), learned_before, learned_as, unknown)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to learn from."""
        return not self.folder.pictures and not (self.negatives and self.negatives.pictures)

    @property
    def copies(self) -> Mapping[str, Mapping[str, int]]:
        """Classes with pictures that others were learned from, and how many of each of these, sorted."""
        found = {name: Counter(self.learned_as.get(p.sha256) for p in own) for name, own in self.folder.classes.items()}
        counts = {name: {other: n for other, n in c.items() if other is not None} for name, c in found.items()}
        return {name: dict(sorted(others.items())) for name, others in counts.items() if others}

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """All that is not used, of the negatives too."""
        return (*self.folder.skipped, *(self.negatives.skipped if self.negatives else ()))

    def without(self, gone: Sequence[Skipped]) -> Intake:
        """Return the intake without some files; a new class of which none is left to learn from goes as a whole."""
        paths = {s.path for s in gone}
        train = tuple(p for p in self.train if p.path not in paths)
        new = tuple(name for name in self.new if any(p.label == name for p in train))
        held = tuple(p for p in self.hold_out if p.path not in paths and p.label in {*new, *self.known})
        left = {p.path for p in (*train, *held)}
        alone = [Skipped(p.path, "no other of its class is left") for p in self.hold_out if p.path not in paths | left]
        skipped = sorted((*self.folder.skipped, *gone, *alone), key=lambda s: str(s.path))
        pictures = tuple(p for p in self.folder.pictures if p.path in left)
        known = tuple(name for name in self.known if any(p.label == name for p in pictures))
        folder = replace(self.folder, pictures=pictures, skipped=tuple(skipped))
        return replace(self, folder=folder, new=new, known=known, train=train, hold_out=held)

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
        return {
            "classes": classes,
            "images": len(self.folder.pictures),
            "skipped": skipped_json(self.skipped),
            "learned_before": self.learned_before,
            "negatives": len(self.negatives.pictures) if self.negatives else 0,
        }


def skipped_json(skipped: Iterable[Skipped]) -> list[Mapping[str, str]]:
    """Return skipped files and reasons as plain JSON values."""
    return [{"path": path_text(s.path), "why": s.why} for s in skipped]
