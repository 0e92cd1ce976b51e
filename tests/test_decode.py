"""One picture: every mode, depth and turn becomes upright 8-bit RGB, and what is damaged is named."""

import pickle
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bad_pictures import (
    encoded,
    noise,
    oriented,
    png,
    png_chunk,
)
from PIL import Image

from edge_cl.errors import FolderError
from edge_cl.pictures import (
    PictureError,
    open_picture,
    read_unlabelled,
)


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
