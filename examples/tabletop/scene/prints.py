"""Printed matter drawn with PIL: labels, packaging, covers, pages, cloth; all words are invented."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .colours import Colour, mix, palette

Ink = tuple[int, int, int]


def _ink(colour: Colour) -> Ink:
    red, green, blue = (round(255 * channel) for channel in colour)
    return (red, green, blue)


def word(rng: np.random.Generator, syllables: int | None = None) -> str:
    """Invent a pronounceable word."""
    count = syllables or int(rng.integers(2, 4))
    letters = [str(rng.choice(list("bdfgklmnprstvz"))) + str(rng.choice(list("aeiou"))) for _ in range(count)]
    return "".join(letters)


def _text(draw: ImageDraw.ImageDraw, centre: tuple[float, float], text: str, width: float, ink: Ink) -> None:
    """Write a text centred at a point, sized to a width in pixels."""
    size = max(8, int(1.7 * width / max(1, len(text))))
    draw.text(
        centre,
        text,
        font=ImageFont.load_default(size),
        fill=ink,
        anchor="mm",
        stroke_width=size // 18,
        stroke_fill=ink,
    )


def _lines(
    draw: ImageDraw.ImageDraw,
    area: tuple[float, float, float, float],
    rng: np.random.Generator,
    ink: Ink,
    step: int,
) -> None:
    """Fill an area with ragged lines that read as small print."""
    left, top, right, bottom = area
    y = top
    while y < bottom:
        x = left
        end = right if rng.random() < 0.8 else left + (right - left) * rng.uniform(0.3, 0.8)
        while x < end:
            length = rng.uniform(1.0, 3.5) * step
            draw.rectangle((x, y, min(x + length, end), y + step * 0.4), fill=ink)
            x += length + 0.5 * step
        y += step


def _motif(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: tuple[int, int], colours: list[Colour]) -> None:
    """Draw the big shapes of a design: discs, stripes, waves, rays or blobs."""
    width, height = size
    main, accent = _ink(colours[1]), _ink(colours[2])
    kind = rng.choice(["disc", "stripes", "wave", "rays", "blobs", "band"])
    if kind == "disc":
        x, y, r = (
            width * rng.uniform(0.3, 0.7),
            height * rng.uniform(0.4, 0.7),
            min(size) * rng.uniform(0.25, 0.45),
        )
        draw.ellipse((x - r, y - r, x + r, y + r), fill=main)
        draw.ellipse((x - r * 0.6, y - r * 0.7, x + r * 0.5, y + r * 0.4), fill=accent)
    elif kind == "stripes":
        step, lean = width / rng.integers(4, 10), rng.uniform(-0.6, 0.6) * height
        for i in range(-12, 24):
            x = i * step
            draw.polygon([(x, 0), (x + step / 2, 0), (x + step / 2 + lean, height), (x + lean, height)], fill=main)
    elif kind == "wave":
        for base, ink in ((rng.uniform(0.4, 0.6), main), (rng.uniform(0.6, 0.8), accent)):
            phase, turns = rng.uniform(0, 6), rng.uniform(1, 3)
            top = [(x, height * (base + 0.07 * math.sin(phase + turns * 6.283 * x / width))) for x in range(width + 1)]
            draw.polygon([*top, (width, height), (0, height)], fill=ink)
    elif kind == "rays":
        x, y = width * rng.uniform(0.3, 0.7), height * rng.uniform(0.3, 0.8)
        for a in np.linspace(0, 6.283, 13)[:-1]:
            far = 2.0 * max(size)
            ends = [(x + far * math.cos(b), y + far * math.sin(b)) for b in (a, a + 0.26)]
            draw.polygon([(x, y), *ends], fill=main)
    elif kind == "blobs":
        for _ in range(int(rng.integers(5, 22))):
            x, y, r = rng.uniform(0, width), rng.uniform(0, height), min(size) * rng.uniform(0.04, 0.16)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=main if rng.random() < 0.6 else accent)
    else:
        high = height * rng.uniform(0.15, 0.5)
        draw.rectangle((0, high, width, high + height * rng.uniform(0.2, 0.4)), fill=main)
        draw.rectangle((0, height * 0.9, width, height), fill=accent)


def package(rng: np.random.Generator, width: int, height: int, colours: list[Colour] | None = None) -> Image.Image:
    """Draw the front of a package: motif, brand in a plaque, small print."""
    tones = colours or palette(rng)
    image = Image.new("RGB", (width, height), _ink(tones[0]))
    draw = ImageDraw.Draw(image)
    _motif(draw, rng, (width, height), tones)
    y = height * rng.uniform(0.18, 0.42)
    name = word(rng).upper() if rng.random() < 0.6 else word(rng).capitalize()
    if rng.random() < 0.6:
        half = height * rng.uniform(0.07, 0.13)
        draw.rounded_rectangle((width * 0.1, y - half, width * 0.9, y + half), half * 0.6, fill=_ink(tones[3]))
        _text(draw, (width / 2, y), name, width * 0.65, _ink(tones[1]))
    else:
        _text(draw, (width / 2, y), name, width * 0.8, _ink(tones[3]))
    _text(draw, (width / 2, y + height * 0.17), f"{word(rng)} {word(rng, 2)}", width * 0.6, _ink(tones[3]))
    if rng.random() < 0.7:
        _lines(
            draw,
            (width * 0.1, height * 0.84, width * 0.6, height * 0.95),
            rng,
            _ink(tones[3]),
            max(4, height // 50),
        )
    return image


def wrap(rng: np.random.Generator, width: int, height: int, repeats: int = 2) -> Image.Image:
    """Draw a label that runs around a can or bottle: the same front `repeats` times and a table of facts."""
    colours = palette(rng)
    front = package(rng, width // repeats, height, colours)
    image = Image.new("RGB", (width, height), _ink(colours[0]))
    for i in range(repeats):
        image.paste(front, (i * (width // repeats), 0))
    left = width // repeats - width // 14
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, height * 0.15, left + width // 8, height * 0.85), fill=(240, 240, 236))
    _lines(
        draw,
        (left + 4, height * 0.2, left + width // 8 - 4, height * 0.8),
        rng,
        (30, 30, 30),
        max(4, height // 30),
    )
    return image


def side_panel(rng: np.random.Generator, width: int, height: int, colours: list[Colour]) -> Image.Image:
    """Draw a narrow side of a package: a table of facts and a bar code."""
    image = Image.new("RGB", (width, height), _ink(mix(colours[0], colours[1], rng.uniform(0, 0.6))))
    draw = ImageDraw.Draw(image)
    draw.rectangle((width * 0.12, height * 0.1, width * 0.88, height * 0.6), fill=(238, 237, 230))
    _lines(
        draw,
        (width * 0.18, height * 0.14, width * 0.82, height * 0.57),
        rng,
        (40, 40, 40),
        max(4, height // 36),
    )
    draw.rectangle((width * 0.2, height * 0.72, width * 0.8, height * 0.9), fill=(250, 250, 250))
    x = width * 0.25
    while x < width * 0.75:
        bar = rng.uniform(0.01, 0.03) * width
        draw.rectangle((x, height * 0.74, x + bar, height * 0.88), fill=(10, 10, 10))
        x += bar + rng.uniform(0.012, 0.035) * width
    return image


def cover(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw a book cover: a title of one to three words over a motif, a picture or nothing, and an author."""
    colours = palette(rng)
    image = Image.new("RGB", (width, height), _ink(colours[0]))
    draw = ImageDraw.Draw(image)
    look = rng.random()
    if look < 0.45:
        _motif(draw, rng, (width, height), colours)
    elif look < 0.75:
        image.paste(scenery(rng, width, int(height * 0.6)), (0, int(height * rng.uniform(0.15, 0.4))))
    elif look < 0.9:
        inset = width * 0.07
        draw.rectangle(
            (inset, inset, width - inset, height - inset), outline=_ink(colours[2]), width=max(2, width // 50)
        )
    y = height * rng.uniform(0.1, 0.25)
    for _ in range(int(rng.integers(1, 4))):
        _text(draw, (width / 2, y), word(rng).upper(), width * rng.uniform(0.5, 0.8), _ink(colours[3]))
        y += height * 0.13
    _text(draw, (width / 2, height * 0.92), f"{word(rng)} {word(rng)}".title(), width * 0.6, _ink(colours[3]))
    return image


def page(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw a page of a book: text, sometimes with a picture and a heading."""
    image = Image.new("RGB", (width, height), (244, 240, 228))
    draw = ImageDraw.Draw(image)
    step = height // int(rng.integers(26, 40))
    top = height * 0.1
    if rng.random() < 0.35:
        picture = scenery(rng, int(width * 0.76), int(height * 0.3))
        image.paste(picture, (int(width * 0.12), int(top)))
        top += height * 0.34
    _lines(draw, (width * 0.12, top, width * 0.88, height * 0.9), rng, (70, 68, 64), step)
    return image


def scenery(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Paint a blurred landscape or interior of soft patches; also serves as a picture on a wall."""
    cells = rng.integers(3, 9, 2)
    tones = np.array(palette(rng))[rng.integers(0, 4, tuple(cells))] * rng.uniform(0.5, 1.1, (*cells, 1))
    small = Image.fromarray((255 * np.clip(tones, 0, 1)).astype(np.uint8))
    grown = small.resize((width, height), Image.Resampling.BICUBIC)
    return grown.filter(ImageFilter.GaussianBlur(width / 90))


def fabric(rng: np.random.Generator, size: int = 256) -> Image.Image:
    """Draw a tile of a tablecloth: checks, stripes, dots or a plain weave."""
    colours = palette(rng)
    ground, main = np.array(mix(colours[0], (1, 1, 1), 0.3)), np.array(colours[1])
    y, x = np.mgrid[0:size, 0:size] / size
    bands = int(rng.integers(1, 4))
    kind = rng.choice(["checks", "stripes", "dots", "plain"], p=[0.3, 0.25, 0.2, 0.25])
    if kind == "checks":
        weight = ((x * bands % 1 < 0.5) * 0.5 + (y * bands % 1 < 0.5) * 0.5)[..., None]
    elif kind == "stripes":
        weight = ((x * bands % 1 < rng.uniform(0.15, 0.6)) * 0.9)[..., None]
    elif kind == "dots":
        away = np.hypot(x * bands % 1 - 0.5, y * bands % 1 - 0.5)
        weight = ((away < rng.uniform(0.1, 0.3)) * 1.0)[..., None]
    else:
        weight = np.zeros((size, size, 1))
    weave = 0.9 + 0.1 * np.sin(x * size * 1.2) * np.sin(y * size * 1.2)
    tile = (ground * (1 - weight) + main * weight) * weave[..., None]
    return Image.fromarray((255 * np.clip(tile, 0, 1)).astype(np.uint8))
