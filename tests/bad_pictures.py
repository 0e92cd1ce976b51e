"""Writes folders of broken, odd and hostile input, each path with the outcome it must have."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

ACCEPTED = ""  # the outcome of a picture that is odd but good
IGNORED = "(ignored)"  # the outcome of what is passed over in silence

DAMAGED = "damaged"
NOT_A_PICTURE = "not a picture"
NOT_A_NAME = "not a picture's file name"


def noise(seed: int, size: tuple[int, int] = (32, 24), mode: str = "RGB") -> Image.Image:
    """Return a picture no other seed gives."""
    grid = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(grid).convert(mode)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    out = BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: Iterable[bytes], extra: bytes = b"") -> bytes:
    """Return a PNG written by hand: Pillow cannot write 16-bit colour, nor lie in a header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", body) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return one PNG chunk with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def oriented(value: int) -> Image.Exif:
    """Return EXIF data with one orientation tag."""
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes(b ^ 0xFF for b in data[at : at + 64]) + data[at + 64 :]


def _bad_files() -> dict[str, tuple[bytes, str]]:
    """Return name -> (content, what the reason must contain)."""
    jpeg = encoded(noise(1, (200, 160)), "JPEG")
    progressive = encoded(noise(2, (200, 160)), "JPEG", progressive=True)
    good_png, webp = encoded(noise(3, (64, 64)), "PNG"), encoded(noise(4, (64, 64)), "WEBP")
    bmp, gif = encoded(noise(5, (64, 64)), "BMP"), encoded(noise(6, (64, 64)), "GIF")
    tiff = encoded(noise(7, (64, 64)), "TIFF")
    huge = struct.pack("<2sIIIIiiHH", b"BM", 0, 0, 54, 40, 60000, 60000, 1, 24) + bytes(24)
    bomb_text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20)))
    return {
        "empty.jpg": (b"", "zero bytes"),
        "text.jpg": (b"This is not a picture.\n" * 20, NOT_A_PICTURE),
        "page.png": (b"<!DOCTYPE html><html><body>404</body></html>", NOT_A_PICTURE),
        "vector inside.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', NOT_A_PICTURE),
        "random.webp": (np.random.default_rng(0).bytes(4096), NOT_A_PICTURE),
        "zeros.bmp": (bytes(4096), NOT_A_PICTURE),
        "postscript.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", NOT_A_PICTURE),
        "document.png": (b"%PDF-1.4\n%%EOF\n", NOT_A_PICTURE),
        "archive.jpg": (b"PK\x03\x04" + bytes(60), NOT_A_PICTURE),
        "targa.jpg": (encoded(noise(8), "TGA"), NOT_A_PICTURE),
        "icon.png": (encoded(noise(9), "ICO"), NOT_A_PICTURE),
        "portable.jpg": (encoded(noise(10), "PPM"), NOT_A_PICTURE),
        "iphone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "HEIC pictures are not supported"),
        "avif.png": (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1" + bytes(64), "AVIF pictures are not supported"),
        "signature only.jpg": (b"\xff\xd8\xff\xe0", DAMAGED),
        "half.jpg": (jpeg[: len(jpeg) // 2], DAMAGED),
        "tail lost.jpg": (jpeg[:-200], DAMAGED),
        "half progressive.jpg": (progressive[: len(progressive) // 2], DAMAGED),
        "half.png": (good_png[: len(good_png) // 2], DAMAGED),
        "signature only.png": (good_png[:8], DAMAGED),
        "checksum.png": (_flipped(good_png, 18), DAMAGED),
        "flipped.png": (_flipped(good_png, 2000), DAMAGED),
        "no pixels.png": (png(16, 16, 8, 2, []), DAMAGED),
        "half.webp": (webp[: len(webp) // 2], DAMAGED),
        "half.bmp": (bmp[: len(bmp) // 2], DAMAGED),
        "half.gif": (gif[: len(gif) // 2], DAMAGED),
        "half.tif": (tiff[: len(tiff) // 2], DAMAGED),
        "no directory.tif": (b"II*\0\xff\xff\xff\x7f", DAMAGED),
        "many samples.tif": (_tiff_with_samples(900), DAMAGED),
        "text bomb.png": (png(16, 16, 8, 0, [bytes(16)] * 16, extra=bomb_text), DAMAGED),
        "one pixel.png": (encoded(noise(11, (1, 1)), "PNG"), "too small: 1x1"),
        "thin.png": (encoded(noise(12, (200, 7)), "PNG"), "too small: 200x7"),
        "bomb.png": (png(50000, 50000, 1, 0, [b""]), "more than 178 megapixels"),
        "bomb.bmp": (huge, "more than 178 megapixels"),
        "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + gif[10:], "more than 178 megapixels"),
        "bomb.jpg": (_jpeg_claiming(jpeg, 65000, 65000), "more than 178 megapixels"),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG files are not supported"),
        "photo.HEIC": (b"\0\0\0\x18ftypheic" + bytes(64), "HEIC files are not supported"),
        "camera.CR2": (b"II*\0" + bytes(64), "CR2 files are not supported"),
        "labels.txt": (b"cat\n", NOT_A_NAME),
        "annotations.json": (b"{}", NOT_A_NAME),
        "clip.mp4": (b"\0\0\0\x18ftypmp42" + bytes(64), NOT_A_NAME),
        "no suffix": (jpeg, NOT_A_NAME),
    }


def _tiff_with_samples(count: int) -> bytes:
    """Return a TIFF that claims a senseless number of samples per pixel."""
    tags = [(256, 3, 16), (257, 3, 16), (258, 3, 8), (259, 3, 1), (262, 3, 2), (273, 4, 8), (277, 3, count)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(900)


def _jpeg_claiming(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header claims another size."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def _odd_files() -> dict[str, bytes]:
    """Return name -> content of pictures that are odd, but good."""
    grey = noise(31, mode="L")
    frames = [noise(seed) for seed in (32, 33, 34)]
    animation = {"save_all": True, "append_images": frames[1:]}
    clear = noise(35, mode="P")
    deep = np.random.default_rng(36).integers(0, 65536, (24, 32), dtype=np.uint16)
    wide = [np.random.default_rng(37 + y).bytes(32 * 6) for y in range(24)]
    big_endian = [row.astype(">u2").tobytes() for row in deep]
    bad_exif = encoded(noise(38), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(20))
    return {
        "GREY.JPG": encoded(grey, "JPEG"),
        "cmyk.jpeg": encoded(noise(40, mode="CMYK"), "JPEG"),
        "turned.jpg": encoded(noise(41), "JPEG", exif=oriented(6)),
        "bad exif.jpg": bad_exif,
        "progressive.jpg": encoded(noise(42), "JPEG", progressive=True),
        "two pictures.jpg": encoded(noise(43), "MPO", save_all=True, append_images=[noise(44)]),
        "png inside.jpg": encoded(noise(45), "PNG"),
        "deep grey.png": png(32, 24, 16, 0, big_endian),
        "deep colour.png": png(32, 24, 16, 2, wide),
        "one bit.png": encoded(noise(46, mode="1"), "PNG"),
        "grey alpha.png": encoded(noise(47, mode="LA"), "PNG"),
        "alpha.png": encoded(noise(48, mode="RGBA"), "PNG"),
        "palette.png": encoded(noise(49, mode="P"), "PNG"),
        "palette clear.png": encoded(clear, "PNG", transparency=0),
        "moving.png": encoded(frames[0], "PNG", **animation),
        "moving.gif": encoded(frames[1], "GIF", **animation),
        "moving.webp": encoded(frames[2], "WEBP", **animation),
        "lossless.webp": encoded(noise(50, mode="RGBA"), "WEBP", lossless=True),
        "bitmap.BMP": encoded(noise(51), "BMP"),
        "float.tif": encoded(Image.fromarray(deep.astype(np.float32) / 65535), "TIFF"),
        "deep.tiff": encoded(Image.fromarray(deep), "TIFF", compression="tiff_lzw"),
        "two pages.tiff": encoded(noise(52), "TIFF", save_all=True, append_images=[noise(53)]),
        "just enough.png": encoded(noise(54, (8, 8)), "PNG"),
        "Ünïcode 猫 🐈.png": encoded(noise(55), "PNG"),
        "new\nline.png": encoded(noise(56), "PNG"),
        "trailing bytes.jpg": encoded(noise(57), "JPEG") + b"\0trailing" * 50,
    }


def write_bad_folder(root: Path, good: Iterable[Path] | None = None) -> dict[Path, str]:
    """Write `root` with the classes "bad" (also holding good pictures) and "good".

    Args:
        root: made if missing.
        good: pictures to copy into class "good"; without them some are made.

    Returns:
        For each path what its reason must contain; `ACCEPTED` for good pictures and `IGNORED` for litter.
    """
    bad, fine = root / "bad", root / "good"
    for folder in (bad, fine):
        folder.mkdir(parents=True)
    outcome: dict[Path, str] = {}

    def write(path: Path, content: bytes, expected: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        outcome[path] = expected

    for name, (content, expected) in _bad_files().items():
        write(bad / name, content, expected)
    for name, content in _odd_files().items():
        write(bad / name, content, ACCEPTED)
    for index, source in enumerate(good or ()):
        write(fine / f"given {index}{source.suffix}", source.read_bytes(), ACCEPTED)
    for index in range(6):
        write(fine / f"made {index}.png", encoded(noise(70 + index), "PNG"), ACCEPTED)

    write(bad / "deep" / Path(*["d"] * 200) / "far.png", encoded(noise(80), "PNG"), ACCEPTED)
    write(bad / "folder.jpg" / "inside.png", encoded(noise(81), "PNG"), ACCEPTED)
    write(bad / os.fsdecode(b"latin-\xe9.png"), encoded(noise(82), "PNG"), ACCEPTED)
    write(bad / os.fsdecode(b"latin-\xff.jpg"), b"", "zero bytes")
    write(bad / "z copy.png", encoded(noise(81), "PNG"), "duplicate of bad/folder.jpg/inside.png")
    write(bad / "both.png", encoded(noise(83), "PNG"), "also in class good")
    write(fine / "both.png", encoded(noise(83), "PNG"), "also in class bad")
    write(root / "loose.jpg", encoded(noise(84), "JPEG"), "not in a class folder")
    write(root / "README.md", b"# pictures\n", NOT_A_NAME)
    for litter in (
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
        "._alpha.png",
        ".hidden/x.png",
        "__MACOSX/._x.jpg",
    ):
        write(bad / litter, b"litter", IGNORED)
    write(root / "__MACOSX" / "bad" / "x.jpg", b"litter", IGNORED)
    write(root / ".git" / "x.jpg", b"litter", IGNORED)
    outcome |= _write_links_and_devices(root)
    return outcome


def _write_links_and_devices(root: Path) -> dict[Path, str]:
    bad, outside = root / "bad", root.parent / f"{root.name} outside"
    outside.mkdir()
    (outside / "linked.png").write_bytes(encoded(noise(90), "PNG"))
    with (bad / "sparse.png").open("wb") as file:
        file.truncate(600 << 20)
    os.mkfifo(bad / "pipe.jpg")
    links = {
        "link.png": (outside / "linked.png", ACCEPTED),
        "nowhere.jpg": (root / "missing.jpg", "a link to nothing"),
        "itself.jpg": (bad / "itself.jpg", "leads back to itself"),
        "null.jpg": (Path(os.devnull), "not a regular file"),
        "loop here": (bad, "the same folder as"),
        "loop to root": (root, "the same folder as"),
        "loop to top": (Path("/"), "the same folder as"),
        "sibling": (root / "good", "the same folder as"),
    }
    outcome = {bad / "sparse.png": "larger than 512 MiB", bad / "pipe.jpg": "not a regular file"}
    for name, (target, expected) in links.items():
        (bad / name).symlink_to(target)
        outcome[bad / name] = expected
    (root / "up").symlink_to(root)
    (root / "dangling class").symlink_to(root / "missing")
    return outcome | {root / "up": "which holds it", root / "dangling class": "a link to nothing"}


def write_classes(root: Path, classes: dict[str, int]) -> Path:
    """Write a plain good folder with this many pictures a class, and return it."""
    seed = 1000
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            seed += 1
            (root / name / f"{index:03}.png").write_bytes(encoded(noise(seed), "PNG"))
    return root
