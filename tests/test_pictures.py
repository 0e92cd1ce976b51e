import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bad_pictures import (
    ACCEPTED,
    IGNORED,
    encoded,
    noise,
    oriented,
    png,
    png_chunk,
    write_bad_folder,
    write_classes,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_cl import pictures as module
from edge_cl.errors import FolderError
from edge_cl.pictures import (
    Picture,
    PictureError,
    PictureFolder,
    open_picture,
    path_text,
    read_folder,
    read_unlabelled,
    split_hold_out,
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


# ---- one picture -----------------------------------------------------------------------------------------


def flat(mode: str, colour: object, form: str = "PNG", **options: object) -> bytes:
    return encoded(Image.new(mode, (8, 8), colour), form, **options)


def values(array: np.ndarray) -> bytes:
    """A TIFF with these values in its first row, zero below."""
    grid = np.zeros((8, 8), array.dtype)
    grid[0, : len(array)] = array
    return encoded(Image.fromarray(grid), "TIFF")


def deep_png(colour: int, *samples: int, extra: bytes = b"") -> bytes:
    """A 16-bit PNG of one colour."""
    return png(8, 8, 16, colour, [struct.pack(f">{len(samples)}H", *samples) * 8] * 8, extra)


def palette(*, clear: int | None = None) -> bytes:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return encoded(image, "PNG", **({} if clear is None else {"transparency": clear}))


def frames(form: str, **options: object) -> bytes:
    images = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    return encoded(images[0], form, save_all=True, append_images=images[1:], **options)


WHITE = (255, 255, 255)
CONVERSIONS: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "grey": (flat("L", 100), (100, 100, 100)),
    "colour": (flat("RGB", (1, 2, 3)), (1, 2, 3)),
    "bitmap": (flat("RGB", (1, 2, 3), "BMP"), (1, 2, 3)),
    "1 bit set": (flat("1", 1), WHITE),
    "1 bit clear": (flat("1", 0), (0, 0, 0)),
    "palette": (palette(), (10, 20, 30)),
    "palette, clear colour": (palette(clear=1), WHITE),
    "palette, other colour clear": (palette(clear=0), (10, 20, 30)),
    # on white: 255 * 128 / 255 + 255 * 127 / 255, and 0 + 127
    "alpha": (flat("RGBA", (255, 0, 0, 128)), (255, 127, 127)),
    "clear": (flat("RGBA", (9, 9, 9, 0)), WHITE),
    "grey alpha": (flat("LA", (0, 51)), (204, 204, 204)),
    "clear colour key": (flat("RGB", (1, 2, 3), transparency=(1, 2, 3)), WHITE),
    "clear grey key": (flat("L", 7, transparency=7), WHITE),
    # (255 - C) * (255 - K) / 255
    "CMYK": (flat("CMYK", (0, 128, 255, 0), "TIFF"), (255, 127, 0)),
    "CMYK, key": (flat("CMYK", (0, 102, 255, 51), "TIFF"), (204, 122, 0)),
    "16-bit grey": (deep_png(0, 200 * 257), (200, 200, 200)),
    "16-bit grey, dark": (deep_png(0, 300), (1, 1, 1)),
    "16-bit grey, rounded up": (deep_png(0, 32768), (128, 128, 128)),
    "16-bit grey, white": (deep_png(0, 65535), WHITE),
    "16-bit colour": (deep_png(2, 10 * 257, 100 * 257, 250 * 257), (10, 100, 250)),
    "16-bit grey alpha": (deep_png(4, 0, 51 * 257), (204, 204, 204)),
    "16-bit alpha": (deep_png(6, 65535, 0, 0, 128 * 257), (255, 127, 127)),
    "16-bit TIFF": (values(np.array([25700], np.uint16)), (100, 100, 100)),
    "16-bit TIFF, big-endian": (values(np.array([25700], ">u2")), (100, 100, 100)),
    "32-bit TIFF in 16 bits": (values(np.array([25700], np.int32)), (100, 100, 100)),
    "32-bit TIFF": (values(np.array([2**30, 2**31 - 1], np.int32)), (128, 128, 128)),
    "float TIFF to 1": (values(np.array([0.2, 1.0], np.float32)), (51, 51, 51)),
    "float TIFF to 255": (values(np.array([100, 255], np.float32)), (100, 100, 100)),
    "float TIFF to 65535": (values(np.array([25700, 65535], np.float32)), (100, 100, 100)),
    "float TIFF beyond": (values(np.array([1e9, 2e9], np.float32)), (128, 128, 128)),
    "float TIFF, negative": (values(np.array([-5, 1], np.float32)), (0, 0, 0)),
    "float TIFF, not a number": (values(np.array([np.nan, 1], np.float32)), (0, 0, 0)),
    "float TIFF, infinite": (values(np.array([np.inf, 1], np.float32)), (0, 0, 0)),
    "float TIFF, black": (values(np.zeros(2, np.float32)), (0, 0, 0)),
    "first frame, GIF": (frames("GIF"), (255, 0, 0)),
    "first frame, WebP": (frames("WEBP", lossless=True), (255, 0, 0)),
    "first frame, PNG": (frames("PNG"), (255, 0, 0)),
    "first page, TIFF": (frames("TIFF"), (255, 0, 0)),
    "misnamed": (flat("RGB", (1, 2, 3), "GIF"), (1, 2, 3)),
}


@pytest.mark.parametrize(("content", "expected"), CONVERSIONS.values(), ids=CONVERSIONS)
def test_every_mode_becomes_8_bit_rgb(tmp_path: Path, content: bytes, expected: tuple[int, int, int]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    image = open_picture(path)
    assert image.mode == "RGB"
    assert image.getpixel((0, 0)) == expected
    assert read_unlabelled(tmp_path).pictures[0].size == (8, 8)


TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
    9: lambda a: a,  # no such orientation
}


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("value", "turn"), TURNS.items())
def test_orientation_is_applied(
    tmp_path: Path, form: str, value: int, turn: Callable[[np.ndarray], np.ndarray]
) -> None:
    stored = noise(1, (30, 20))
    options = {"lossless": True} if form == "WEBP" else {}
    (tmp_path / "a.png").write_bytes(encoded(stored, form, exif=oriented(value), **options))
    upright = turn(np.asarray(stored))
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "a.png")), upright)
    assert read_unlabelled(tmp_path).pictures[0].size == (upright.shape[1], upright.shape[0])


@pytest.mark.parametrize(
    ("form", "at_least", "size"),
    [
        ("JPEG", None, (640, 480)),
        ("JPEG", 480, (640, 480)),
        ("JPEG", 241, (640, 480)),
        ("JPEG", 240, (320, 240)),
        ("JPEG", 120, (160, 120)),
        ("JPEG", 8, (80, 60)),
        ("JPEG", 5000, (640, 480)),
        ("PNG", 8, (640, 480)),
    ],
)
def test_draft_decoding_keeps_the_shorter_side(
    tmp_path: Path, form: str, at_least: int | None, size: tuple[int, int]
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(noise(1, (640, 480)), form))
    assert open_picture(path, at_least=at_least).size == size
    assert read_unlabelled(path).pictures[0].size == (640, 480)


def test_turned_jpeg_is_turned_after_draft_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(noise(1, (640, 480)), "JPEG", exif=oriented(6)))
    assert open_picture(path, at_least=240).size == (240, 320)
    assert read_unlabelled(path).pictures[0].size == (480, 640)


def deep(kind: type[np.generic], most: float) -> Image.Image:
    """A large grey picture, its brightest pixel in the last strip."""
    grey = np.random.default_rng(0).uniform(0, most / 2, (1500, 901)).astype(kind)
    grey[-1, -1] = most
    return Image.fromarray(grey)


LARGE: dict[str, tuple[str, Callable[[], Image.Image]]] = {
    **{mode: ("PNG", partial(noise, 1, (901, 1500), mode)) for mode in ("RGB", "RGBA", "P", "L", "LA", "1")},
    "16 bits": ("PNG", partial(deep, np.uint16, 40000)),
    "32 bits": ("TIFF", partial(deep, np.int32, 100000)),
    "fractions": ("TIFF", partial(deep, np.float32, 1.0)),
    "floating point": ("TIFF", partial(deep, np.float32, 200.0)),
}


@pytest.mark.parametrize(("form", "make"), LARGE.values(), ids=list(LARGE))
def test_a_large_picture_is_reduced_a_strip_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, make: Callable[[], Image.Image]
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(make(), form, exif=oriented(6)))
    whole = np.asarray(open_picture(path).reduce(2))
    monkeypatch.setattr("edge_cl.decode.LARGE_PIXELS", 2**20)
    monkeypatch.setattr("edge_cl.decode.STRIP_PIXELS", 2**16)
    np.testing.assert_array_equal(np.asarray(open_picture(path, at_least=450)), whole)
    assert open_picture(path).size == (1500, 901)
    assert read_unlabelled(path).pictures[0].size == (1500, 901)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_jpeg_cut_anywhere_is_found(tmp_path: Path, options: dict[str, object]) -> None:
    whole = encoded(noise(1, (200, 160)), "JPEG", **options)
    path = tmp_path / "a.jpg"
    for cut in [*range(1, len(whole) - 64, 997), *range(len(whole) - 64, len(whole) - 2, 7)]:
        path.write_bytes(whole[:cut])
        with pytest.raises(FolderError, match=r"damaged or cut short|not a picture"):
            read_unlabelled(path)


@pytest.mark.parametrize("content", [None, b"", b"text"], ids=["missing", "empty", "text"])
def test_open_picture_names_the_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PictureError, match=r"a\.jpg: (missing|zero bytes|not a picture)") as caught:
        open_picture(path)
    assert caught.value.path == path


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
        read_folder(tmp_path)
    assert caught.value.mend == f"Allow it: chmod -R u+rX {tmp_path}"


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


# ---- the hold-out split ----------------------------------------------------------------------------------

pictures_of_classes = st.dictionaries(
    st.sampled_from("abcd"), st.sets(st.integers(0, 2**32), min_size=1, max_size=40), min_size=1
).map(
    lambda classes: [
        Picture(Path(f"{label}/{n}.jpg"), label, f"{n:064x}", (8, 8)) for label, ns in classes.items() for n in ns
    ]
)
fractions = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("n", "fraction", "held"),
    [
        (1, 0.1, 0),
        (2, 0.1, 0),
        (3, 0.1, 0),
        (4, 0.1, 1),
        (14, 0.1, 1),
        (16, 0.1, 2),
        (100, 0.1, 10),
        (2, 0.9, 1),
        (1, 0.9, 0),
        (10, 0.99, 9),
        (10, 0.0, 0),
    ],
)
def test_hold_out_takes_the_lowest_hashes(n: int, fraction: float, held: int) -> None:
    ordered = [Picture(Path(f"{n - i}.jpg"), "a", f"{i:064x}", (8, 8)) for i in range(n)]
    assert split_hold_out(ordered[::-1], fraction=fraction) == (ordered[held:], ordered[:held])


@given(pictures_of_classes, fractions, st.randoms(use_true_random=False))
def test_split_does_not_depend_on_order_or_names(
    pictures: list[Picture], fraction: float, shuffle: random.Random
) -> None:
    expected = split_hold_out(pictures, fraction=fraction)
    shuffled = shuffle.sample(pictures, len(pictures))
    assert split_hold_out(shuffled, fraction=fraction) == expected
    renamed = [Picture(Path(f"{shuffle.random()}"), p.label, p.sha256, p.size) for p in pictures]
    for part, named in zip(split_hold_out(renamed, fraction=fraction), expected, strict=True):
        assert [(p.label, p.sha256) for p in part] == [(p.label, p.sha256) for p in named]


@given(pictures_of_classes, fractions)
def test_split_loses_nothing_and_empties_no_class(pictures: list[Picture], fraction: float) -> None:
    train, hold_out = split_hold_out(pictures, fraction=fraction)
    assert sorted([*train, *hold_out], key=str) == sorted(pictures, key=str)
    assert {p.label for p in train} == {p.label for p in pictures}


@given(pictures_of_classes, fractions)
def test_split_of_a_class_does_not_depend_on_the_others(pictures: list[Picture], fraction: float) -> None:
    _, together = split_hold_out(pictures, fraction=fraction)
    for label in {p.label for p in pictures}:
        _, alone = split_hold_out([p for p in pictures if p.label == label], fraction=fraction)
        assert alone == [p for p in together if p.label == label]


@given(pictures_of_classes, fractions, st.integers(2**32 + 1, 2**33) | st.integers(0, 2**32))
def test_a_new_picture_moves_at_most_one_other(pictures: list[Picture], fraction: float, n: int) -> None:
    new = Picture(Path("new.jpg"), "a", f"{n:064x}", (8, 8))
    before = set(split_hold_out(pictures, fraction=fraction)[1])
    after = set(split_hold_out([*pictures, new], fraction=fraction)[1])
    assert len((before ^ after) - {new}) <= 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_refuses_a_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction is"):
        split_hold_out([], fraction=fraction)


def test_torch_is_not_imported() -> None:
    code = "import sys, edge_cl.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_damaged_metadata_does_not_cost_the_picture(tmp_path: Path) -> None:
    exif = png_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")
    (tmp_path / "a.png").write_bytes(png(8, 8, 8, 0, [bytes([9] * 8)] * 8, exif))
    assert open_picture(tmp_path / "a.png").getpixel((0, 0)) == (9, 9, 9)


def test_a_fault_crosses_from_process_to_process() -> None:
    """As it has to where pictures are decoded in a pool of processes."""
    fault = PictureError(Path("a/b.jpg"), "it is empty")
    again = pickle.loads(pickle.dumps(fault))
    assert (type(again), str(again), again.path, again.why) == (PictureError, str(fault), fault.path, fault.why)
    assert (again.faults, again.mend) == (fault.faults, fault.mend)
