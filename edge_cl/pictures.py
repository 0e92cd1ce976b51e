"""Read a folder of pictures, one sub-folder a class: the only module that does.

Layout: `root/<class>/**/*`, at any depth below the class folder, through symbolic links too. JPEG, PNG, WebP,
BMP, GIF and TIFF are read. Hidden files, what operating systems leave behind, stores and bundles are passed over;
everything else that is not used is named with its reason. Identical files count once within a class, and not
at all when they lie in two classes, because then nobody can tell which label is right.
"""

from __future__ import annotations

import stat
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from shlex import quote

from edge_cl.decode import (
    FOLDER,
    SUFFIXES,
    PictureError,
    check_picture,
    open_picture,
    os_reason,
    path_kind,
    path_text,
)
from edge_cl.durable import settled
from edge_cl.errors import FolderError

__all__ = [
    "Picture",
    "PictureError",
    "PictureFolder",
    "Skipped",
    "open_picture",
    "path_text",
    "read_folder",
    "read_unlabelled",
    "split_hold_out",
]

# fmt: off
LITTER = frozenset({
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found", "$recycle.bin", "icon\r",
    "system volume information",
})
# fmt: on
MAX_NAME = 200  # characters in a class name
_LAYOUT = "Give a folder that holds one sub-folder of pictures a class: DIR/<class>/*.jpg."

_Progress = Callable[[int, int], None]
_Identity = tuple[int, int]  # (device, inode) of a folder
_Seen = dict[_Identity, Path]  # each folder read or to be read


@dataclass(frozen=True)
class Picture:
    """One readable picture.

    Attributes:
        path: where it lies.
        label: its class, "" when unlabelled.
        sha256: of the file's bytes, in hexadecimal.
        size: (width, height) in pixels, upright.
        bytes_a_pixel: that decoding it takes.
    """

    path: Path
    label: str
    sha256: str
    size: tuple[int, int]
    bytes_a_pixel: float = 4.0


@dataclass(frozen=True)
class Skipped:
    """Something in the folder that is not used, and a short reason without a closing period."""

    path: Path
    why: str


@dataclass(frozen=True)
class PictureFolder:
    """What a folder holds: `pictures` sorted by label then path, `skipped` sorted by path."""

    root: Path
    pictures: tuple[Picture, ...]
    skipped: tuple[Skipped, ...]

    @property
    def classes(self) -> dict[str, tuple[Picture, ...]]:
        """The pictures of each class, in sorted class order."""
        return {label: tuple(group) for label, group in groupby(self.pictures, key=lambda p: p.label)}


def read_folder(
    root: Path, *, growing: bool = False, on_progress: _Progress | None = None, workers: int = 2
) -> PictureFolder:
    """Read and check `root/<class>/**/*`.

    Args:
        root: the folder that holds one sub-folder a class.
        growing: whether it is no fault where there is no class folder, or no usable picture in one, which is skipped
            then: they may be still to come, or were taken away once they were learned.
        on_progress: called with (files checked, files in all) after each file.
        workers: threads that decode.

    Raises:
        FolderError: the folder cannot be learned from; names every fault at once, each as one sentence.
    """
    entries = _require_listing(root)
    seen = _above(root)
    skipped: list[Skipped] = []
    folders: dict[Path, _Identity] = {}
    for path in entries:
        kind, identity = _look(path)
        if kind != FOLDER:
            skipped.append(Skipped(path, kind or "not in a class folder"))
        elif (above := seen.get(identity)) is not None:
            skipped.append(Skipped(path, f"a link to {path_text(above)}, which holds it"))
        else:
            folders[path] = identity
    if not folders and not (growing and _flat(skipped) == 0):
        raise _no_classes(root, skipped)
    seen |= {identity: folder for folder, identity in reversed(folders.items())}
    labels = {folder: class_name(folder.name) for folder in folders}

    files: list[tuple[Path, str]] = []
    for folder in folders:
        found, unused = _walk(folder, dict(seen))
        files += [(path, labels[folder]) for path in found]
        skipped += unused
    pictures, unreadable = _check(files, on_progress, workers)
    pictures, repeated = _without_duplicates(root, pictures)
    skipped += [*unreadable, *repeated]

    faults = _name_faults(labels)
    used = {parent for picture in pictures for parent in picture.path.parents}
    for folder in [folder for folder in folders if folder not in used]:
        inside = [s for s in skipped if folder == s.path or folder in s.path.parents]
        if not growing:
            faults.append(_empty_fault(folder, inside))
        elif not inside:
            skipped.append(Skipped(folder, "no picture"))
    if faults:
        raise FolderError(*(fault for fault, _ in faults), mend=" ".join(dict.fromkeys(mend for _, mend in faults)))
    return PictureFolder(root, tuple(pictures), tuple(sorted(skipped, key=_place)))


def read_unlabelled(
    *sources: Path, growing: bool = False, on_progress: _Progress | None = None, workers: int = 2
) -> PictureFolder:
    """Read and check pictures without labels: files, and folders at any depth.

    A file given by name is judged by its content alone, and identical files are all kept.

    Args:
        *sources: picture files and folders; the first becomes the result's `root`.
        growing: whether it is no fault that there is no readable picture so far.
        on_progress: called with (files checked, files in all) after each file.
        workers: threads that decode.

    Raises:
        FolderError: a source is missing or cannot be opened, or none holds a readable picture.
    """
    files: list[tuple[Path, str]] = []
    skipped: list[Skipped] = []
    faults: list[str] = []
    for source in sources:
        try:
            is_folder = stat.S_ISDIR(source.stat().st_mode)
            if is_folder:
                _listing(source)
        except OSError as error:
            faults.append(f"{path_text(source)}: {os_reason(error)}.")
            continue
        found, unused = _walk(source, _above(source)) if is_folder else ([source], [])
        files += [(path, "") for path in found]
        skipped += unused
    if faults:
        raise FolderError(*faults, mend="Give pictures and folders that exist and can be read.")
    pictures, unreadable = _check(files, on_progress, workers)
    skipped = sorted([*skipped, *unreadable], key=lambda s: str(s.path))
    if not pictures and not growing:
        where = ", ".join(path_text(source) for source in sources) or "nothing given"
        raise FolderError(f"{where}: no readable picture{_reasons(skipped)}.", mend="Give pictures such as *.jpg.")
    return PictureFolder(sources[0], tuple(pictures), tuple(skipped))


def split_hold_out(
    pictures: Sequence[Picture], *, fraction: float = 0.1, learned: Mapping[str, int] | None = None
) -> tuple[list[Picture], list[Picture]]:
    """Split into (train, hold-out), class by class, by content alone.

    The pictures with the lowest SHA-256 are held out, so the split does not depend on names, order or the
    other classes, and a picture added later moves at most one other. `round(n * fraction)` of a class's n
    pictures are held out, at least one when n >= 4, and at least one always stays in train.

    Where some of a class were learned before, as many are held out, all if need be, as bring it to that number of all
    its pictures. Of the earlier ones as many are taken to be held out as if they had come at once: how many really
    were, only the model would tell.

    Args:
        pictures: of any classes, in any order.
        fraction: of each class to hold out, 0 <= fraction < 1; 0 holds out none.
        learned: how many pictures were learned before, by class.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"fraction is {fraction}; it must be at least 0 and less than 1")

    def of_all(n: int) -> int:
        return max(0, min(max(round(n * fraction), 1 if n >= 4 and fraction > 0 else 0), n - 1))

    train: list[Picture] = []
    hold_out: list[Picture] = []
    ordered = sorted(pictures, key=lambda p: (p.label, p.sha256, str(p.path)))
    for label, group in groupby(ordered, key=lambda p: p.label):
        of_class, before = list(group), (learned or {}).get(label, 0)
        count = of_all(before + len(of_class)) - of_all(before)
        hold_out += of_class[:count]
        train += of_class[count:]
    return train, hold_out


def _listing(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted, without hidden files, litter, and what edge-cl itself made there."""
    return sorted(
        (
            path
            for path in folder.iterdir()
            if not (path.name.startswith(".") or path.name.casefold() in LITTER or _is_ours(path))
        ),
        key=str,
    )


def _is_ours(path: Path) -> bool:
    """Return whether a path is a store or a bundle, which lie here where a command was run in the pictures' folder."""
    with suppress(OSError):
        store = (path / "lock").is_file() and (path / "objects").is_dir() and (path / "versions").is_dir()
        return store or ((path / "manifest.json").is_file() and any(path.glob("*.onnx")))
    return False


def class_name(text: str) -> str:
    """Return the label that a folder name or a user's text stands for: NFC, without surrounding blanks."""
    return unicodedata.normalize("NFC", path_text(text)).strip()


def _identity(folder: Path) -> _Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _look(path: Path) -> tuple[str, _Identity]:
    """Return what `path_kind` says of a path, and which folder it is; one that went meanwhile is of no use."""
    kind = path_kind(path)
    try:
        return kind, _identity(path) if kind == FOLDER else (0, 0)
    except OSError as error:
        return os_reason(error), (0, 0)


def _above(root: Path) -> _Seen:
    """Return root and the folders it lies in, which no link inside it may lead back to."""
    resolved, found = settled(root).resolve(), _Seen()
    for folder in (resolved, *resolved.parents):
        with suppress(OSError):  # root went meanwhile, or what it lies in may not be entered
            found[_identity(folder)] = folder
    return found


def _walk(folder: Path, seen: _Seen) -> tuple[list[Path], list[Skipped]]:
    """Return the files to check, at any depth, and what is not used; adds the folders read to `seen`."""
    files: list[Path] = []
    skipped: list[Skipped] = []
    pending = [folder]
    while pending:
        here = pending.pop()
        try:
            entries = _listing(here)
        except OSError as error:
            skipped.append(Skipped(here, os_reason(error)))
            continue
        for path in entries:
            kind, identity = _look(path)
            if kind != FOLDER:
                files += [] if kind else [path]
                skipped += [Skipped(path, kind)] if kind else []
            elif (known := seen.setdefault(identity, path)) is not path:
                skipped.append(Skipped(path, f"the same folder as {path_text(known)}"))
            else:
                pending.append(path)
    return files, skipped


def _check(
    files: Iterable[tuple[Path, str]], on_progress: _Progress | None, workers: int
) -> tuple[list[Picture], list[Skipped]]:
    """Decode every (path, label) once, and return pictures and unreadable files by label, then path."""

    def check(item: tuple[Path, str]) -> Picture | Skipped:
        path, label = item
        try:
            sha256, size, bytes_a_pixel = check_picture(path)
        except PictureError as error:
            return Skipped(path, error.why)
        return Picture(path, label, sha256, size, bytes_a_pixel)

    ordered = sorted(files, key=lambda item: (item[1], str(item[0])))
    pictures: list[Picture] = []
    skipped: list[Skipped] = []
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        for done, result in enumerate(pool.map(check, ordered), start=1):
            if isinstance(result, Picture):
                pictures.append(result)
            else:
                skipped.append(result)
            if on_progress is not None:
                on_progress(done, len(ordered))
    finally:  # an interrupt must not wait for the files still queued
        pool.shutdown(cancel_futures=True)
    return pictures, skipped


def _without_duplicates(root: Path, pictures: list[Picture]) -> tuple[list[Picture], list[Skipped]]:
    """Keep the first of identical pictures of one class, and none of those that lie in several classes."""
    copies: defaultdict[str, list[Picture]] = defaultdict(list)
    for picture in pictures:
        copies[picture.sha256].append(picture)
    kept: list[Picture] = []
    skipped: list[Skipped] = []
    for picture in pictures:
        first = copies[picture.sha256][0]
        others = dict.fromkeys(c.label for c in copies[picture.sha256] if c.label != picture.label)
        if others:
            skipped.append(Skipped(picture.path, f"the same picture is also in class {' and '.join(others)}"))
        elif picture is not first:
            skipped.append(Skipped(picture.path, f"duplicate of {path_text(first.path.relative_to(root))}"))
        else:
            kept.append(picture)
    return kept, skipped


def _require_listing(root: Path) -> list[Path]:
    try:
        return _listing(root)
    except NotADirectoryError:
        raise FolderError(f"{path_text(root)} is a file, not a folder.", mend=_LAYOUT) from None
    except PermissionError:
        mend = f"Allow it: chmod -R u+rX {quote(path_text(root))}"
        raise FolderError(f"{path_text(root)}: no permission to read the folder.", mend=mend) from None
    except OSError as error:
        raise FolderError(f"{path_text(root)}: {os_reason(error)}.", mend=_LAYOUT) from error


def _flat(skipped: list[Skipped]) -> int:
    return sum(s.path.suffix.lower() in SUFFIXES for s in skipped)


def _no_classes(root: Path, skipped: list[Skipped]) -> FolderError:
    flat = _flat(skipped)
    if not flat:
        return FolderError(f"{path_text(root)} has no class folders{_reasons(skipped)}.", mend=_LAYOUT)
    return FolderError(
        f"{path_text(root)} has no class folders: {flat} pictures lie directly in it.",
        mend=f"Move them into one sub-folder a class: {path_text(root)}/<class>/*.jpg.",
    )


def name_fault(name: str, what: str = "class") -> str:
    """Return why a text cannot be the name of a class, or of a "task", or ""."""
    label = class_name(name)
    if not label:
        return f"a {what} name cannot be blank"
    if any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in name):
        return f"the {what} name has control characters or is not UTF-8"
    if "/" in name and what == "class":  # it is the name of a folder
        return "the class name has a slash"
    if len(label) > MAX_NAME:
        return f"the {what} name is longer than {MAX_NAME} characters"
    return ""


def _name_faults(labels: dict[Path, str]) -> list[tuple[str, str]]:
    """Return (fault, mend) for each class folder whose name cannot be a label."""
    mend = "Rename the folder to its class's name."
    faults: list[tuple[str, str]] = []
    same: defaultdict[str, list[Path]] = defaultdict(list)
    for folder, label in labels.items():
        shown = path_text(folder)
        same[label].append(folder)
        if fault := name_fault(folder.name):
            faults.append((f"{shown if label else repr(shown)}: {fault}.", mend))
    for label, folders in same.items():
        if len(folders) > 1:
            names = " and ".join(repr(path_text(folder)) for folder in folders)
            faults.append((f"{names} are the same class {label!r}.", "Merge the folders of the same class."))
    return faults


def _empty_fault(folder: Path, inside: list[Skipped]) -> tuple[str, str]:
    """Return (fault, mend) for a class folder without a usable picture, and what of it is skipped."""
    what = "no usable picture" if inside else "no picture"
    fault = f"{path_text(folder)}: the class folder has {what}{_reasons(sorted(inside, key=_place), folder)}."
    return fault, "Put readable pictures into each class folder, or remove the folder."


def _place(skipped: Skipped) -> str:
    return str(skipped.path)


def _reasons(skipped: list[Skipped], below: Path | None = None) -> str:
    """Return up to three reasons as the end of a sentence, such as ": a.jpg (zero bytes) and 4 more"."""
    if not skipped:
        return ""
    names = [path_text(s.path if below in (None, s.path) else s.path.relative_to(below)) for s in skipped[:3]]
    listed = ", ".join(f"{name} ({s.why})" for name, s in zip(names, skipped, strict=False))
    return f": {listed}" + (f" and {len(skipped) - 3} more" if len(skipped) > 3 else "")
