"""Decode one picture file, whatever its mode and orientation, to upright 8-bit RGB, or say why it cannot be.

Colour profiles are not applied, as when backbones are trained, and of an animation the first frame counts.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from edge_cl.errors import EdgeClError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # and MPO, as JPEG; no other decoder ever runs
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
# Pictures of a kind that is not read: named as such.
# fmt: off
UNSUPPORTED = frozenset({
    ".svg", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf",
    ".rw2", ".raf", ".psd", ".tga", ".ico", ".pdf", ".eps",
})
# fmt: on
FOLDER = "folder"
MIN_SIDE = 8  # pixels
MAX_PIXELS = 178_956_970  # Pillow's own hard limit: 0.7 GB decoded
MAX_BYTES = 512 * 2**20
REDUCED_BYTES = 0.25  # that decoding a picture takes, a pixel of its full size, where it comes scaled down
LAID_BYTES = 15  # a pixel, on top: RGBA, white, one laid on the other, RGB
TURNED_BYTES = 6  # RGB, and turned upright
LARGE_PIXELS, STRIP_PIXELS = 2**22, 2**20  # from there on one is decoded at a time, and turned to RGB in strips

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\0", b"MM\0*")
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"avif": "AVIF"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What counts as white, per mode: the first that no pixel exceeds, or else the brightest pixel.
_WHITES = {"F": (1.0, 255.0, 65535.0), "I": (65535.0,)}

# Pillow logs some faults as errors besides raising them; without a handler they would reach stderr.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class PictureError(EdgeClError):
    """One picture cannot be read.

    Args:
        path: the file.
        why: the reason, in a few words.
    """

    def __init__(self, path: Path, why: str) -> None:
        self.path = path
        self.why = why
        super().__init__(f"{path_text(path)}: {why}.", mend="Replace the file or take it out.")

    def __reduce__(self) -> tuple[type[PictureError], tuple[Path, str]]:
        """Cross from one process to another, where pictures are decoded in a pool of them."""
        return type(self), (self.path, self.why)


def path_text(path: Path | str) -> str:
    """Return the path as text that can always be printed and written as JSON, on one line.

    Bytes that are not UTF-8 and control characters become U+FFFD.
    """
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join("\ufffd" if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in text)


def os_reason(error: OSError) -> str:
    """Return in a few words why a file or folder could not be read."""
    known = {
        errno.EACCES: "no permission to read it",
        errno.EPERM: "no permission to read it",
        errno.ENOENT: "missing, or a link to nothing",
        errno.ELOOP: "a link that leads back to itself",
    }
    return known.get(error.errno or 0, f"cannot be read: {error.strerror or error}")


def path_kind(path: Path) -> str:
    """Return `FOLDER`, "" for a file with a picture's name, or why the path is of no use."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return os_reason(error)
    suffix = path.suffix.lower()
    if stat.S_ISDIR(mode):
        return FOLDER
    if not stat.S_ISREG(mode):
        return "not a regular file"
    if suffix in UNSUPPORTED:
        return f"{suffix[1:].upper()} files are not supported; save it as JPEG or PNG"
    return "" if suffix in SUFFIXES else "not a picture's file name"


def open_picture(path: Path, *, at_least: int | None = None, sha256: str | None = None) -> Image.Image:
    """Return a picture as upright 8-bit RGB.

    Args:
        path: a picture file.
        at_least: the shorter side wanted, in pixels; a larger JPEG may then come scaled down by 2, 4 or 8
            while its shorter side stays at least this, which decodes a large photo several times faster, and what still
            has `LARGE_PIXELS` by any whole number, which takes less memory.
        sha256: of the file's bytes, as `check_picture` gave it, if it has to be the same file still.

    Raises:
        PictureError: the file cannot be read, is not a picture, or is another than it was.
    """
    with _explained(path), _opened(path, at_least) as (image, _, data):
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise PictureError(path, "another picture since it was checked")
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image) if at_least is None else _reduced_rgb(image, max(1, min(image.size) // at_least))
        return rgb if turn is None else rgb.transpose(turn)


def check_picture(path: Path) -> tuple[str, tuple[int, int], float]:
    """Read a picture wholly once; return its SHA-256, its upright (width, height), and the bytes a pixel it decodes to.

    Raises:
        PictureError: the file cannot be read, is not a picture, or is too small or too large.
    """
    # The smallest JPEG scale still reads every byte, so a file cut short is found.
    with _explained(path), _opened(path, MIN_SIDE) as (image, (width, height), data):
        _to_rgb(image.crop((0, 0, 1, 1)))  # raises if this mode cannot be converted
        if _orientation(image) >= 5:
            width, height = height, width
        return hashlib.sha256(data).hexdigest(), (width, height), _bytes_a_pixel(image)


def decoding_bytes(size: tuple[int, int], bytes_a_pixel: float, at_least: int) -> int:
    """Return how much memory `open_picture` takes for a picture, about.

    Args:
        size: width and height.
        bytes_a_pixel: see `check_picture`.
        at_least: see `open_picture`.
    """
    pixels = size[0] * size[1]
    if bytes_a_pixel > REDUCED_BYTES and pixels < LARGE_PIXELS:
        return round((bytes_a_pixel + LAID_BYTES) * pixels)
    factor = max(1, min(size) // at_least)
    return round(bytes_a_pixel * pixels + TURNED_BYTES * pixels / factor**2)


def _bytes_a_pixel(image: Image.Image) -> float:
    """Return what a decoder holds of a picture, in bytes a pixel of its full size."""
    if _is_reduced(image):
        return REDUCED_BYTES
    return {"JPEG": 6.0, "MPO": 6.0, "WEBP": 16.0}.get(image.format or "", 4.0)  # all coefficients; copies of its own


def _is_reduced(image: Image.Image) -> bool:
    """Return whether a picture is scaled down while it is decoded: a JPEG that is not progressive."""
    return image.format in ("JPEG", "MPO") and not image.info.get("progressive")


def _contents(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could block for ever
        raise PictureError(path, "not a regular file")
    if status.st_size > MAX_BYTES:
        raise PictureError(path, f"larger than {MAX_BYTES >> 20} MiB")
    data = path.read_bytes()
    if not data:
        raise PictureError(path, "zero bytes")
    return data


@contextmanager
def _opened(path: Path, at_least: int | None) -> Iterator[tuple[Image.Image, tuple[int, int], bytes]]:
    """Yield the decoded picture, its size by the header (before scaling, and turning if not TIFF), and its bytes."""
    data = _contents(path)
    image = Image.open(BytesIO(data), formats=FORMATS)
    size = image.size
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if min(size) < MIN_SIDE:
        raise PictureError(path, f"too small: {size[0]}x{size[1]}, the least is {MIN_SIDE} pixels a side")
    if at_least is not None:
        image.draft(None, (at_least, at_least))  # only JPEG heeds it
    with _one_at_a_time if size[0] * size[1] >= LARGE_PIXELS and not _is_reduced(image) else nullcontext():
        image.load()
        yield image, size, data
        image.close()


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; call it after loading, as Pillow turns TIFF by itself then."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata must not cost a good picture
        return 1
    return value if value in _UPRIGHT else 1


def _reduced_rgb(image: Image.Image, factor: int) -> Image.Image:
    """Return 8-bit RGB, of a large picture reduced by a whole factor and a strip at a time, which takes less memory."""
    width, height = image.size
    if width * height < LARGE_PIXELS:
        return _to_rgb(image)
    result = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    rows, white = max(1, STRIP_PIXELS // (width * factor)), _white(image)
    for row in range(0, result.height, rows):
        strip = image.crop((0, row * factor, width, min((row + rows) * factor, height)))
        result.paste(_to_rgb(strip, white).reduce(factor), (0, row))
    return result


def _to_rgb(image: Image.Image, white: float | None = None) -> Image.Image:
    """Return 8-bit RGB: deep greys scaled to 8 bits, by the white of the whole picture, transparency laid on white."""
    if _is_deep(image):
        white = white or _white(image)
        return Image.fromarray(np.rint(_grey(image).clip(0) * (255.0 / white)).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _is_deep(image: Image.Image) -> bool:
    return image.mode in _WHITES or image.mode.startswith("I;16")


def _grey(image: Image.Image) -> npt.NDArray[np.float32]:
    grey: npt.NDArray[np.float32] = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    return grey


def _white(image: Image.Image) -> float:
    """Return what counts as white in a picture of deep grey."""
    if image.mode not in _WHITES:
        return 65535.0  # of 16 bits
    rows = max(1, STRIP_PIXELS // image.width)
    strips = range(0, image.height, rows)
    parts = (image.crop((0, row, image.width, min(row + rows, image.height))) for row in strips)
    peak = max(float(_grey(part).max()) for part in parts)
    return next((w for w in _WHITES[image.mode] if peak <= w), peak)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever Pillow raises on a damaged file into a `PictureError`, and let it print nothing."""
    try:
        with _pillow_muted:
            yield
    except PictureError:
        raise
    except Image.DecompressionBombError:
        raise PictureError(path, f"more than {MAX_PIXELS // 10**6} megapixels") from None
    except UnidentifiedImageError:
        raise PictureError(path, _unidentified(path)) from None
    except MemoryError:
        raise PictureError(path, "too large for the memory there is") from None
    except OSError as error:
        cut = "damaged or cut short" if error.errno is None else os_reason(error)
        raise PictureError(path, cut) from error
    except Exception as error:  # plugins raise anything from struct.error to SyntaxError
        raise PictureError(path, f"damaged: {' '.join(str(error).split()).rstrip('.')}") from error


def _unidentified(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(12)
    if start[4:8] == b"ftyp" and start[8:12] in _BRANDS:
        return f"{_BRANDS[start[8:12]]} pictures are not supported; save it as JPEG or PNG"
    return "damaged or cut short" if start.startswith(_SIGNATURES) else "not a picture"


class _Muted:
    """Mutes Pillow's warnings while any thread is inside: `catch_warnings` alone is not safe to overlap."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._caught.__exit__(None, None, None)


_pillow_muted = _Muted()
_one_at_a_time = threading.Lock()
