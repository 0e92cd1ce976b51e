"""Pictures in memory: the square that is answered on, and the reduced copy that augmented views are cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from edge_cl.pictures import Picture, open_picture
from edge_cl.preprocess import Pixels, Preprocess

WORKING_COPY = 1.5  # shorter side of the copies that views are cut from, in input sizes
DECODE = 2  # a picture is decoded at no less than this many input sizes


@dataclass(frozen=True)
class Decoded:
    """Pictures in memory.

    Attributes:
        pixels: the centred square that is answered on, (S, S, 3) each.
        copies: reduced copies that augmented views are cut from; empty for hold-out pictures.
    """

    pixels: Sequence[Pixels]
    copies: Sequence[Image.Image]


def decode(pictures: Sequence[Picture], spec: Preprocess, *, copies: bool) -> Decoded:
    """Decode pictures once."""
    pixels, reduced = [], []
    for picture in pictures:
        image = open_picture(picture.path, at_least=DECODE * spec.image_size)
        pixels.append(spec.centre(image))
        if copies:
            factor = WORKING_COPY * spec.image_size / min(image.size)
            if factor < 1:
                image = image.resize((round(image.width * factor), round(image.height * factor)), reducing_gap=2.0)
            reduced.append(image)
    return Decoded(pixels, reduced)
