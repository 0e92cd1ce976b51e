"""Things of paper and card: book and box. Each function draws one new variant."""

from __future__ import annotations

import math

import bpy
import numpy as np
from mathutils import Matrix

from . import prints
from .colours import any_colour, hsv, mix, palette
from .materials import Graph, plain, printed
from .meshes import Part, box, move, prism, sheet


def book(rng: np.random.Generator) -> list[Part]:
    """Draw a book: hardback or paperback, lying or standing, a pile of two, or open."""
    kind = rng.choice(["lying", "standing", "pile", "open"], p=[0.46, 0.08, 0.14, 0.32])
    if kind == "open":
        return _open_book(rng)
    parts = _closed_book(rng)
    if kind == "pile":
        base = rng.uniform(0.018, 0.035)
        lower = _closed_book(rng, base)
        move(parts, Matrix.Translation((0, 0, base + 0.0005)) @ Matrix.Rotation(rng.uniform(-0.5, 0.5), 4, "Z"))
        parts += lower
    if kind == "standing":
        move(parts, Matrix.Rotation(math.pi / 2, 4, "X"))
    return parts


def _closed_book(rng: np.random.Generator, thick: float | None = None) -> list[Part]:
    """Draw a closed book lying on its back, spine at -x, from z = 0."""
    wide = rng.uniform(0.11, 0.16)
    long = wide * rng.uniform(1.3, 1.55)
    t = thick or rng.uniform(0.014, 0.038)
    board = rng.uniform(0.0015, 0.003)
    inset = rng.choice([0.0006, 0.003, 0.004])
    front = prints.cover(rng, 256, int(256 * long / wide))
    edge = plain(tuple(np.asarray(front.resize((1, 1)).getpixel((0, 0))) / 255 * 0.85), 0.5)
    face = printed(front, rng.uniform(0.25, 0.6), 0.3 * float(rng.random() < 0.4))
    back = box((wide, long, board), [edge] * 5 + [edge], centre=(0, 0, board / 2))
    lid = box((wide, long, board), [edge] * 5 + [face], centre=(0, 0, t - board / 2))
    title = prints.package(rng, 400, 60).rotate(90, expand=True)
    spine = printed(title.rotate(90, expand=True), 0.5) if rng.random() < 0.7 else edge
    rib = box((board, long, t), [spine] + [edge] * 5, 0.0006, centre=(-wide / 2 + board / 2, 0, t / 2))
    block = box((wide - inset - board, long - 2 * inset, t - 2 * board), [_paper()], centre=(-inset / 2, 0, t / 2))
    return [back, lid, rib, block]


def _paper() -> bpy.types.Material:
    """Return the cut edge of many pages."""
    graph = Graph("pages")
    lines = graph.noise(graph.coordinates(scale=(8.0, 8.0, 2500.0)), 1.0, 2.0)
    return graph.surface(graph.ramp(lines, [(0.3, (0.72, 0.68, 0.58)), (0.65, (0.95, 0.92, 0.85))]), 0.8)


def _open_book(rng: np.random.Generator) -> list[Part]:
    """Draw a book lying open: two curved halves with printed pages on a cover."""
    wide, thick = rng.uniform(0.11, 0.15), rng.uniform(0.008, 0.02)
    long = wide * rng.uniform(1.25, 1.5)
    share = rng.uniform(0.3, 0.7)
    parts = [box((2 * wide + 0.01, long + 0.008, 0.002), [plain(any_colour(rng), 0.5)], centre=(0, 0, 0.001))]
    for sign, part in ((-1, share), (1, 1 - share)):
        t = np.linspace(0, 1, 24)
        swell = 2 * thick * part
        top = 0.003 + swell * (1 - (1 - np.minimum(1, t / 0.35)) ** 3) * (1 - 0.35 * t**2) + 0.002
        x = sign * t * wide
        rows = np.array([-long / 2, long / 2])
        order = slice(None) if sign > 0 else slice(None, None, -1)
        grid = np.stack([np.tile(x[order], (2, 1)), np.tile(rows[:, None], (1, 24)), np.tile(top[order], (2, 1))], -1)
        text = printed(prints.page(rng, 256, int(256 * long / wide)), 0.8)
        parts.append(sheet(grid, text))
        outline = [*zip(x, top - 0.0003, strict=True), (x[-1], 0.002), (0, 0.002)]
        side = prism(np.array(outline), long - 0.0005, _paper())
        move([side], Matrix.Rotation(math.pi / 2, 4, "X"))
        parts.append(side)
    return parts


def carton(rng: np.random.Generator) -> list[Part]:
    """Draw a box: printed packet of cereal to tea size, or a brown parcel with tape, sometimes open."""
    if rng.random() < 0.35:
        return _parcel(rng)
    wide = rng.uniform(0.08, 0.16)
    tall, deep = wide * rng.uniform(0.9, 1.6), wide * rng.uniform(0.45, 0.9)
    colours = palette(rng)
    gloss, coat = rng.uniform(0.3, 0.6), 0.3 * float(rng.random() < 0.5)
    front = printed(prints.package(rng, 300, int(300 * tall / wide), colours), gloss, coat)
    side = printed(prints.side_panel(rng, 160, int(160 * tall / deep), colours), gloss, coat)
    lid = printed(prints.package(rng, 300, int(300 * deep / wide), colours), gloss, coat)
    parts = [box((wide, deep, tall), [side, side, front, front, lid, lid], 0.001)]
    seam = plain(mix(colours[0], (0, 0, 0), 0.35), 0.7)
    parts.append(box((wide * 0.998, 0.0008, 0.0005), [seam], centre=(0, deep * 0.12, tall / 2)))
    return parts


def _parcel(rng: np.random.Generator) -> list[Part]:
    """Draw a cardboard parcel: closed with tape and a label, or with its flaps open."""
    wide, deep, tall = rng.uniform(0.12, 0.22), rng.uniform(0.1, 0.16), rng.uniform(0.06, 0.15)
    graph = Graph("cardboard")
    flutes = graph.noise(graph.coordinates(scale=(12.0, 12.0, 700.0)), 1.0, 3.0)
    tan = hsv(rng.uniform(0.075, 0.1), rng.uniform(0.35, 0.5), rng.uniform(0.55, 0.75))
    board = graph.surface(graph.ramp(flutes, [(0.3, mix(tan, (0, 0, 0), 0.15)), (0.7, tan)]), 0.8)
    label = printed(prints.side_panel(rng, 200, 150, [(0.95, 0.95, 0.93), (0.9, 0.9, 0.9)]), 0.5)
    parts = [box((wide * 0.35, 0.0006, tall * 0.45), [label], centre=(wide * 0.15, -deep / 2 - 0.0004, 0))]
    if rng.random() < 0.55:
        tape = plain(hsv(0.09, rng.uniform(0.1, 0.6), rng.uniform(0.5, 0.8)), 0.2)
        parts.append(box((wide, deep, tall), [board], 0.0015))
        parts.append(box((wide * 1.003, deep * 0.18, tall * 1.004), [tape]))
        return parts
    wall = 0.003
    for sign in (-1, 1):
        parts.append(box((wall, deep, tall), [board], centre=(sign * wide / 2, 0, 0)))
        parts.append(box((wide, wall, tall), [board], centre=(0, sign * deep / 2, 0)))
        for size, axis, at in (
            ((wide, deep * 0.45, wall), "X", (0, 1)),
            ((deep * 0.45, deep, wall), "Y", (1, 0)),
        ):
            flap = box(size, [board])
            reach = deep * 0.225
            tilt = rng.uniform(0.2, 1.2) * sign * (1 if axis == "X" else -1)
            shift = Matrix.Translation((at[0] * sign * reach, at[1] * sign * reach, 0))
            hinge = Matrix.Translation((at[0] * sign * wide / 2, at[1] * sign * deep / 2, tall / 2))
            move([flap], hinge @ Matrix.Rotation(-tilt, 4, axis) @ shift)
            parts.append(flap)
    parts.append(box((wide, deep, wall), [board], centre=(0, 0, -tall / 2)))
    return parts
