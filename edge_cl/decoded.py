"""Pictures in memory: the square that is answered on, and the reduced copy that augmented views are cut from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
from PIL import Image

from edge_cl.pictures import Picture, PictureError, Skipped, open_picture
from edge_cl.preprocess import Pixels, Preprocess
from edge_cl.progress import Progress, no_progress
from edge_cl.version import JsonObject

WORKING_COPY = 1.5  # shorter side of the copies that views are cut from, in input sizes
PIXEL = 4  # bytes of one in memory: Pillow keeps a fourth beside red, green and blue
DECODE = 2  # a picture is decoded at no less than this many input sizes
PORTION = 256  # pictures in memory at once where any number may come


@dataclass(frozen=True)
class Decoded:
    """Pictures in memory.

    Attributes:
        pictures: which.
        pixels: the centred square, (S, S, 3) each.
        copies: reduced copies that augmented views are cut from; empty where none are cut.
        closer: the closer square, (S, S, 3) each; empty where it was not asked for.
    """

    pictures: list[Picture]
    pixels: list[Pixels]
    copies: list[Image.Image]
    closer: list[Pixels]

    def of_classes(self, names: Collection[str]) -> Decoded:
        """Return those of some classes."""
        rows = [i for i, picture in enumerate(self.pictures) if picture.label in names]
        return Decoded(*([values[i] for i in rows] if values else [] for values in vars(self).values()))

    def release(self) -> None:
        """Let go of all but the list of the pictures."""
        for values in (self.pixels, self.copies, self.closer):
            values.clear()


def decode(
    pictures: Iterable[Picture],
    spec: Preprocess,
    *,
    copies: bool = False,
    closer: bool = False,
    unchanged: bool = False,
    skipped: list[Skipped] | None = None,
) -> Decoded:
    """Decode pictures once.

    Args:
        pictures: files that were readable a moment ago.
        spec: how they become pixels.
        copies: whether views will be cut from them.
        closer: whether the closer square is wanted too.
        unchanged: whether a file that is another now than when it was checked counts as unreadable.
        skipped: gets those that are not readable any more; without it, they are errors.

    Raises:
        PictureError: one cannot be read any more.
    """
    read = Decoded([], [], [], [])
    for picture in pictures:
        try:
            image = open_picture(
                picture.path, at_least=DECODE * spec.image_size, sha256=picture.sha256 if unchanged else None
            )
        except PictureError as error:
            if skipped is None:
                raise
            skipped.append(Skipped(picture.path, error.why))
            continue
        read.pictures.append(picture)
        read.pixels.append(spec.centre(image))
        if closer:
            read.closer.append(spec.closer().centre(image))
        if copies:
            factor = WORKING_COPY * spec.image_size / min(image.size)
            if factor < 1:
                image = image.resize((round(image.width * factor), round(image.height * factor)), reducing_gap=2.0)
            read.copies.append(image)
    return read


def decode_in_portions(
    pictures: Sequence[Picture],
    spec: Preprocess,
    *,
    skipped: list[Skipped] | None = None,
    progress: Progress = no_progress,
) -> Iterator[Decoded]:
    """Decode any number of pictures to be answered for once, `PORTION` at a time; see `decode`."""
    for start in range(0, len(pictures), PORTION):
        part = pictures[start : start + PORTION]
        yield decode(part, spec, skipped=skipped)
        progress("answer", start + len(part), len(pictures))


def copy_bytes(size: tuple[int, int], spec: Preprocess) -> int:
    """Return the bytes of the reduced copy of a picture of some size (width, height)."""
    factor = min(1.0, WORKING_COPY * spec.image_size / min(size))
    return PIXEL * round(size[0] * factor) * round(size[1] * factor)


@dataclass(frozen=True)
class Source:
    """Pictures of a learn and their views.

    View 0 is the centred square; the others are random, and the same whatever pictures a picture comes with.

    Attributes:
        decoded: the pictures in memory, until they are released.
        spec: how they became pixels.
        seed: of the random views.
        scale: smallest and largest area of a random view, as fractions of the picture.
    """

    decoded: Decoded
    spec: Preprocess
    seed: int
    scale: tuple[float, float]

    @property
    def pictures(self) -> Sequence[Picture]:
        """The files."""
        return self.decoded.pictures

    @property
    def copies(self) -> bool:
        """Whether there are random views."""
        return bool(self.decoded.copies)

    def closer(self) -> Source:
        """Return the same pictures' closer square."""
        return replace(self, decoded=replace(self.decoded, pixels=self.decoded.closer), spec=self.spec.closer())

    def view(self, number: int) -> Sequence[Pixels]:
        """Return a view of every picture, (S, S, 3) each; a random one is cut whenever it is looked at."""
        if number == 0:
            return self.decoded.pixels
        import torch

        return CutViews(self, number, ThreadPoolExecutor(torch.get_num_threads()))

    def key(self, number: int) -> JsonObject:
        """Return all that decides the pixels of a view."""
        drawn = [self.seed, *self.scale, number] if number else []
        return {"spec": self.spec.to_json(), "drawn": drawn, "pictures": [p.sha256 for p in self.pictures]}


@dataclass(frozen=True)
class CutViews(Sequence[Pixels]):
    """A random view of every picture, cut when it is looked at: all of them at once would double the pictures' memory.

    Attributes:
        source: pictures.
        number: of the view, from 1.
        pool: threads that the views of a slice are cut in.
    """

    source: Source
    number: int
    pool: ThreadPoolExecutor

    def __len__(self) -> int:
        return len(self.source.pictures)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pixels]: ...
    def __getitem__(self, index: int | slice) -> Pixels | Sequence[Pixels]:
        if isinstance(index, slice):
            return list(self.pool.map(self._cut, self.source.pictures[index], self.source.decoded.copies[index]))
        return self._cut(self.source.pictures[index], self.source.decoded.copies[index])

    def _cut(self, picture: Picture, copy: Image.Image) -> Pixels:
        source, digest = self.source, int(picture.sha256[:15], 16)
        generator = np.random.default_rng((source.seed, digest, self.number - 1))
        return source.spec.view(copy, generator, scale=source.scale)
