"""A folder of pictures: what is read, what is skipped, and what is refused, each with its reason."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from bad_pictures import (
    ACCEPTED,
    IGNORED,
    encoded,
    noise,
    write_bad_folder,
    write_classes,
)
from PIL import Image

from edge_cl import pictures as module
from edge_cl.errors import FolderError
from edge_cl.pictures import (
    PictureFolder,
    open_picture,
    path_text,
    read_folder,
    read_unlabelled,
)
from edge_cl.store import Store

# ---- what edge-cl made itself ----------------------------------------------------------------------------


def test_a_store_and_a_bundle_among_the_class_folders_are_passed_over(tmp_path: Path) -> None:
    """`cd pictures && edge-cl learn --new-classes .` makes its store there, and `--export bundle` a bundle."""
    write_classes(tmp_path, {"a": 2, "b": 2})
    Store.create(tmp_path / "edge_cl_store", record={})
    bundle = tmp_path / "a" / "bundle"
    bundle.mkdir()
    for name in ("manifest.json", "prefix.onnx"):
        (bundle / name).write_text("{}")
    assert list(read_folder(tmp_path).classes) == ["a", "b"]
    assert read_folder(tmp_path).skipped == read_unlabelled(tmp_path).skipped == ()
    (bundle / "prefix.onnx").unlink()  # now a folder of somebody's
    assert [s.path.name for s in read_folder(tmp_path).skipped] == ["manifest.json"]


# ---- a folder --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[PictureFolder, dict[Path, str]]:
    root = tmp_path_factory.mktemp("odd") / "root"
    good = write_classes(root.parent / "source", {"x": 2}) / "x"
    expected = write_bad_folder(root, good.iterdir())
    return read_folder(root), expected


def test_bad_folder_has_forty_kinds(bad_folder: tuple[PictureFolder, dict[Path, str]]) -> None:
    assert sum(outcome not in (ACCEPTED, IGNORED) for outcome in bad_folder[1].values()) >= 40


def test_each_bad_file_is_named_with_its_reason(bad_folder: tuple[PictureFolder, dict[Path, str]]) -> None:
    folder, expected = bad_folder
    why = {skipped.path: skipped.why for skipped in folder.skipped}
    bad = {path: outcome for path, outcome in expected.items() if outcome not in (ACCEPTED, IGNORED)}
    assert why.keys() == bad.keys()
    assert {path: why[path] for path in bad if bad[path] not in why[path]} == {}
    assert not any(reason.endswith(".") or "\n" in reason for reason in why.values())


def test_odd_but_good_pictures_are_read(bad_folder: tuple[PictureFolder, dict[Path, str]]) -> None:
    folder, expected = bad_folder
    assert {p.path for p in folder.pictures} == {path for path, why in expected.items() if why == ACCEPTED}
    assert all(open_picture(picture.path).size == picture.size for picture in folder.pictures)


def test_order_does_not_depend_on_workers(bad_folder: tuple[PictureFolder, dict[Path, str]]) -> None:
    folder, _ = bad_folder
    assert list(folder.pictures) == sorted(folder.pictures, key=lambda p: (p.label, str(p.path)))
    assert list(folder.skipped) == sorted(folder.skipped, key=lambda s: str(s.path))
    assert read_folder(folder.root, workers=1) == read_folder(folder.root, workers=4) == folder


def test_report_is_json(bad_folder: tuple[PictureFolder, dict[Path, str]]) -> None:
    shown = [{"path": path_text(s.path), "why": s.why} for s in bad_folder[0].skipped]
    assert json.loads(json.dumps(shown, ensure_ascii=False).encode()) == shown
    assert any("\ufffd" in entry["path"] for entry in shown)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"cat.jpg", "cat.jpg"),
        (b"\xe9.jpg", "\ufffd.jpg"),
        (b"a\nb\x1b.jpg", "a\ufffdb\ufffd.jpg"),
        ("猫".encode(), "猫"),
    ],
)
def test_path_text(name: bytes, shown: str) -> None:
    assert path_text(Path(os.fsdecode(name))) == shown


def test_pillow_prints_nothing_and_warnings_are_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path, {"a": 4})
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow warns from here to twice this
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        assert len(read_folder(tmp_path, workers=4).pictures) == 4
        open_picture(tmp_path / "a" / "000.png")
        assert warnings.filters == before
    assert caught == []
    assert capfd.readouterr() == ("", "")


def test_nothing_reaches_the_terminal(bad_folder: tuple[PictureFolder, dict[Path, str]]) -> None:
    code = "import sys, pathlib, edge_cl.pictures as p; p.read_folder(pathlib.Path(sys.argv[1]))"
    root = str(bad_folder[0].root)
    done = subprocess.run([sys.executable, "-W", "always", "-c", code, root], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_a_mode_that_cannot_be_converted_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Image.Image, mode: str) -> Image.Image:
        raise ValueError(f"conversion from LAB to {mode} not supported.")

    (tmp_path / "a.png").write_bytes(ONE)
    monkeypatch.setattr(Image.Image, "convert", refuse)
    with pytest.raises(FolderError, match=r"\(damaged: conversion from LAB to RGB not supported\)"):
        read_unlabelled(tmp_path)


def test_labels_sizes_and_hashes(tmp_path: Path) -> None:
    write_classes(tmp_path, {"tool box": 1, unicodedata.normalize("NFD", "café"): 2, "猫": 1})
    folder = read_folder(tmp_path)
    assert {label: len(of_class) for label, of_class in folder.classes.items()} == {
        "café": 2,
        "tool box": 1,
        "猫": 1,
    }
    assert list(folder.classes) == sorted(folder.classes)
    first = folder.classes["tool box"][0]
    assert first.path == tmp_path / "tool box" / "000.png"
    assert first.size == (32, 24)
    expected = subprocess.run(["sha256sum", first.path], capture_output=True, text=True, check=True).stdout
    assert first.sha256 == expected.split()[0]


def test_linked_class_folders_are_read(tmp_path: Path) -> None:
    source = write_classes(tmp_path / "source", {"a": 2, "b": 2})
    root = tmp_path / "root"
    root.mkdir()
    (root / "first").symlink_to(source / "a")
    (root / "second").symlink_to(source / "b")
    (tmp_path / "linked root").symlink_to(root)
    folder = read_folder(tmp_path / "linked root")
    assert {label: len(of_class) for label, of_class in folder.classes.items()} == {"first": 2, "second": 2}
    assert folder.pictures[0].path == tmp_path / "linked root" / "first" / "000.png"


@pytest.mark.parametrize("place", ["b", "a/sub", "."])
def test_a_folder_that_goes_away_while_it_is_looked_at_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    root = write_classes(tmp_path / "root", {"a": 2, "a/sub": 1, "b": 1})
    gone, kind, listing = root / place, module.path_kind, module._listing

    def late_kind(path: Path) -> str:
        found = kind(path)
        if path == gone:
            shutil.rmtree(path)
        return found

    def late_listing(folder: Path) -> list[Path]:
        found = listing(folder)
        if folder == gone == root:
            shutil.rmtree(folder)
        return found

    monkeypatch.setattr(module, "path_kind", late_kind)
    monkeypatch.setattr(module, "_listing", late_listing)
    if place == ".":
        with pytest.raises(FolderError, match=r"no class folders: .*a \(missing, or a link to nothing\)"):
            read_folder(root)
    else:
        folder = read_folder(root)
        assert [(s.path, s.why) for s in folder.skipped] == [(gone, "missing, or a link to nothing")]
        assert {label: len(found) for label, found in folder.classes.items()} == {
            "b": {"a": 3},
            "a/sub": {"a": 2, "b": 1},
        }[place]


def test_duplicates_keep_the_first_and_ambiguous_ones_none(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 2, "b": 2, "c": 1})
    for copy in ("a/010.png", "a/sub/000.png"):
        (tmp_path / copy).parent.mkdir(exist_ok=True)
        (tmp_path / copy).write_bytes((tmp_path / "a" / "000.png").read_bytes())
    for copy in ("b/x.png", "c/x.png"):
        (tmp_path / copy).write_bytes((tmp_path / "a" / "001.png").read_bytes())
    folder = read_folder(tmp_path)
    assert {str(s.path.relative_to(tmp_path)): s.why for s in folder.skipped} == {
        "a/010.png": "duplicate of a/000.png",
        "a/sub/000.png": "duplicate of a/000.png",
        "a/001.png": "the same picture is also in class b and c",
        "b/x.png": "the same picture is also in class a and c",
        "c/x.png": "the same picture is also in class a and b",
    }
    assert {label: len(of_class) for label, of_class in folder.classes.items()} == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize("read", [read_folder, read_unlabelled])
def test_progress_counts_every_file(tmp_path: Path, read: Callable[..., PictureFolder]) -> None:
    write_classes(tmp_path, {"a": 3})
    (tmp_path / "a" / "z.jpg").write_bytes(b"")
    seen: list[tuple[int, int]] = []
    read(tmp_path, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_an_interrupt_drops_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, {"a": 200})
    checked: list[Path] = []
    real = module.check_picture
    monkeypatch.setattr(module, "check_picture", lambda path: (checked.append(path), real(path))[1])

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_folder(tmp_path, on_progress=interrupt, workers=1)
    assert 1 <= len(checked) < 200


# ---- folders that cannot be learned from -----------------------------------------------------------------


def make(root: Path, files: dict[str, bytes], folders: tuple[str, ...] = (), link: str = "") -> None:
    root.mkdir(parents=True)
    for folder in folders:
        (root / folder).mkdir(parents=True)
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    if link:
        (root / link).symlink_to(root)


ONE, TWO = encoded(noise(1), "PNG"), encoded(noise(2), "PNG")
GOOD = {"good/1.png": ONE}
FAULTS: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "missing": (lambda root: None, ["{root}: missing"], "DIR/<class>/*.jpg"),
    "a file": (lambda root: root.write_bytes(ONE), ["{root} is a file, not a folder"], "DIR/<class>/*.jpg"),
    "dangling": (
        lambda root: root.symlink_to("nowhere"),
        ["{root}: missing, or a link to nothing"],
        "DIR/<class>",
    ),
    "loop": (lambda root: root.symlink_to(root), ["{root}: a link that leads back to itself"], "DIR/<class>"),
    "empty": (partial(make, files={}), ["{root} has no class folders."], "DIR/<class>/*.jpg"),
    "only text": (
        partial(make, files={"a.txt": b"x"}),
        ["{root} has no class folders: {root}/a.txt (not a picture's file name)."],
        "DIR/<class>/*.jpg",
    ),
    "flat": (
        partial(make, files={"1.png": ONE, "2.JPG": TWO, "a.txt": b""}),
        ["{root} has no class folders: 2 pictures lie directly in it."],
        "Move them into one sub-folder a class: {root}/<class>/*.jpg.",
    ),
    "only hidden": (
        partial(make, files={".git/1.png": ONE}),
        ["{root} has no class folders."],
        "DIR/<class>",
    ),
    "only a loop": (
        partial(make, files={}, link="up"),
        ["{root} has no class folders: {root}/up (a link to"],
        "DIR/",
    ),
    "empty class": (
        partial(make, files=GOOD, folders=("none", "litter/.git")),
        ["{root}/litter: the class folder has no picture.", "{root}/none: the class folder has no picture."],
        "Put readable pictures into each class folder, or remove the folder.",
    ),
    "unreadable class": (
        partial(make, files=GOOD | {"bad/1.jpg": b"", "bad/sub/2.jpg": b"x", "bad/3.svg": b"", "bad/4.txt": b""}),
        [
            "{root}/bad: the class folder has no usable picture: 1.jpg (zero bytes), "
            "3.svg (SVG files are not supported; save it as JPEG or PNG), "
            "4.txt (not a picture's file name) and 1 more."
        ],
        "Put readable pictures into each class folder, or remove the folder.",
    ),
    "same pictures": (
        partial(make, files={"a/1.png": ONE, "b/1.png": ONE}),
        [
            "{root}/a: the class folder has no usable picture: 1.png (the same picture is also in class b).",
            "{root}/b",
        ],
        "Put readable pictures",
    ),
    "same label": (
        partial(make, files={"caf\u00e9/1.png": ONE, "cafe\u0301/2.png": TWO}),
        ["are the same class 'caf\u00e9'"],
        "Merge the folders of the same class.",
    ),
    "same label by blanks": (
        partial(make, files={"cat/1.png": ONE, "cat /2.png": TWO}),
        ["'{root}/cat' and '{root}/cat ' are the same class 'cat'."],
        "Merge the folders of the same class.",
    ),
    "blank name": (
        partial(make, files=GOOD | {" /2.png": TWO}),
        ["'{root}/ ': a class name cannot"],
        "Rename the",
    ),
    "control character": (
        partial(make, files={"a\nb/1.png": ONE}),
        ["{root}/a\ufffdb: the class"],
        "Rename the",
    ),
    "line separator": (
        partial(make, files={"a\u2028b/1.png": ONE}),
        ["the class name has control"],
        "Rename the",
    ),
    "not UTF-8": (
        partial(make, files={os.fsdecode(b"\xe9/1.png"): ONE}),
        ["{root}/\ufffd: the class"],
        "Rename the",
    ),
    "long name": (
        partial(make, files={"x" * 201 + "/1.png": ONE}),
        ["is longer than 200 characters"],
        "Rename the",
    ),
    "all at once": (
        partial(make, files=GOOD | {"a\tb/2.png": TWO, "bad/1.jpg": b""}, folders=("none",)),
        [
            "{root}/a\ufffdb: the class name has",
            "{root}/bad: the class folder has no usable",
            "{root}/none: the class",
        ],
        "Rename the folder to its class's name. Put readable pictures into each class folder, or remove",
    ),
}


@pytest.mark.parametrize(("build", "expected", "mend"), FAULTS.values(), ids=FAULTS)
def test_every_fault_is_named(tmp_path: Path, build: Callable[[Path], object], expected: list[str], mend: str) -> None:
    root = tmp_path / "root"
    build(root)
    with pytest.raises(FolderError) as caught:
        read_folder(root)
    faults = caught.value.faults
    assert len(faults) == len(expected)
    for fault, part in zip(faults, expected, strict=True):
        assert part.format(root=root) in fault
        assert fault.endswith(".")
    assert mend.format(root=root) in caught.value.mend
    str(caught.value).encode()  # can be printed


def test_longest_name_is_a_good_name(tmp_path: Path) -> None:
    write_classes(tmp_path, {"x" * 200: 1})
    assert list(read_folder(tmp_path).classes) == ["x" * 200]


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder whose class `open` holds a locked picture and whose class `shut` is locked, for no root."""
    with tempfile.TemporaryDirectory() as place:  # tmp_path lies below a folder only its owner may enter
        root = write_classes(Path(place) / "root", {"open": 2, "shut": 1})
        Path(place).chmod(0o755)
        (root / "open" / "000.png").chmod(0)
        (root / "shut").chmod(0)
        read_unlabelled(root / "open" / "001.png")  # lets Pillow load what it needs while that is allowed
        was_root = os.geteuid() == 0
        try:
            if was_root:
                os.seteuid(65534)
        except OSError:
            pytest.skip("runs as root and may not give up its rights")
        try:
            yield root
        finally:
            if was_root:
                os.seteuid(0)
            (root / "shut").chmod(0o700)
            root.chmod(0o700)


def test_locked_class_folder_is_a_fault(locked_folder: Path) -> None:
    with pytest.raises(FolderError, match=r"shut: the class folder has no usable picture: .*no permission to read"):
        read_folder(locked_folder)


def test_locked_picture_is_named(locked_folder: Path) -> None:
    folder = read_unlabelled(locked_folder)
    assert [(s.path.name, s.why) for s in folder.skipped] == [
        ("000.png", "no permission to read it"),
        ("shut", "no permission to read it"),
    ]
    assert len(folder.pictures) == 1


def test_locked_root_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(FolderError, match="no permission to read the folder") as caught:
        read_folder(tmp_path / "my pictures")
    assert caught.value.mend == f"Allow it: chmod -R u+rX '{tmp_path}/my pictures'"


def test_a_failing_disk_is_named(tmp_path: Path) -> None:
    write_classes(tmp_path, {"a": 1})
    (tmp_path / "a" / "broken.jpg").symlink_to("/proc/self/mem")  # reading it is an input/output error
    assert [s.why for s in read_folder(tmp_path).skipped] == ["cannot be read: Input/output error"]


# ---- without labels --------------------------------------------------------------------------------------


def test_unlabelled_takes_files_and_folders(tmp_path: Path) -> None:
    make(tmp_path / "r", {"1.png": ONE, "sub/2.png": ONE, "sub/bad.jpg": b"", "photo": TWO})
    folder = read_unlabelled(tmp_path / "r", tmp_path / "r" / "photo")
    assert [(str(p.path.relative_to(tmp_path)), p.label) for p in folder.pictures] == [
        ("r/1.png", ""),
        ("r/photo", ""),
        ("r/sub/2.png", ""),
    ]
    assert {s.path.name: s.why for s in folder.skipped} == {
        "bad.jpg": "zero bytes",
        "photo": "not a picture's file name",
    }


def test_unlabelled_names_every_missing_source(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(ONE)
    with pytest.raises(FolderError) as caught:
        read_unlabelled(tmp_path / "1.png", tmp_path / "x", tmp_path / "y")
    assert caught.value.faults == tuple(f"{tmp_path / n}: missing, or a link to nothing." for n in "xy")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "nothing given"),
        ((".",), "no readable picture: .*zero bytes"),
        (("pipe.jpg",), "not a regular file"),
    ],
)
def test_unlabelled_without_a_picture_is_a_fault(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(FolderError, match=message):
        read_unlabelled(*(tmp_path / name for name in names))


def test_torch_is_not_imported() -> None:
    code = "import sys, edge_cl.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
