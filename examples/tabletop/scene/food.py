"""Fruit: apple and banana. Each function draws one new variant."""

from __future__ import annotations

import math

import bpy
import numpy as np
from mathutils import Matrix

from .colours import Colour, hsv, mix
from .materials import Graph, plain
from .meshes import Array, Part, lathe, move, sheet, smooth, thicken, tube


def apple(rng: np.random.Generator) -> list[Part]:
    """Draw an apple, sometimes two: red, green or yellow, streaked, with a stem and sometimes a leaf."""
    parts = _one_apple(rng)
    if rng.random() < 0.2:
        other = _one_apple(rng)
        turn = rng.uniform(0, 6.28)
        move(other, Matrix.Translation((0.078 * math.cos(turn), 0.078 * math.sin(turn), 0)))
        parts += other
    return parts


def _one_apple(rng: np.random.Generator) -> list[Part]:
    radius = rng.uniform(0.034, 0.042)
    squat = rng.uniform(0.86, 1.06)
    low = [(0, -0.68), (0.12, -0.76), (0.42, -0.9), (0.8, -0.62), (1.02, -0.02)]
    high = [(1.0, 0.5), (0.72, 0.88), (0.36, 0.88), (0.14, 0.72), (0, 0.56)]
    profile = smooth([*low, *high]) * (radius, radius * squat)
    phase, lobes = rng.uniform(0, 6.28), rng.uniform(0.01, 0.05)
    lean, lean_at = rng.uniform(0.0, 0.06), rng.uniform(0, 6.28)

    def wobble(angle: Array, t: Array) -> Array:
        lobed = lobes * np.cos(5 * angle + phase) * (1 - t) ** 2
        return np.asarray(1 + lobed + lean * np.cos(angle - lean_at) * t, float)

    parts = [lathe(profile, _apple_skin(rng, radius), 64, wobble)]
    tip = np.array([rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), rng.uniform(0.95, 1.2)])
    stem = smooth(np.stack([(0, 0, 0.5), (0, 0, 0.8), tip])) * radius
    parts.append(tube(stem, np.linspace(0.034, 0.055, len(stem)) * radius, plain((0.3, 0.2, 0.1), 0.7), 10))
    if rng.random() < 0.3:
        parts.append(_leaf(rng, stem[-4], radius * rng.uniform(0.9, 1.3)))
    move(parts, Matrix.Translation((0, 0, radius * squat * 0.9)))
    return parts


def _apple_skin(rng: np.random.Generator, radius: float) -> bpy.types.Material:
    """Return apple skin: a ground colour, a streaked blush on the sunny side, pale dots."""
    kind = rng.choice(["red", "green", "yellow", "striped"], p=[0.45, 0.22, 0.13, 0.2])
    green = hsv(rng.uniform(0.19, 0.26), rng.uniform(0.6, 0.8), rng.uniform(0.6, 0.8))
    yellow = hsv(rng.uniform(0.12, 0.16), rng.uniform(0.55, 0.75), rng.uniform(0.8, 0.9))
    red = hsv(rng.uniform(0.96, 1.015), rng.uniform(0.75, 0.95), rng.uniform(0.4, 0.72))
    ground, blush = {"red": (mix(red, yellow, 0.25), red), "green": (green, mix(green, yellow, 0.4))}.get(
        str(kind), (yellow, mix(yellow, red, 0.45)) if kind == "yellow" else (mix(yellow, green, 0.3), red)
    )
    graph = Graph("apple")
    streaks = graph.noise(graph.coordinates("UV", (26.0, 2.0, 1.0), rng.uniform(0, 9)), 1.0, 4.0)
    patch = graph.noise(graph.coordinates(shift=rng.uniform(0, 9)), 0.5 / radius, 1.0)
    cover = graph.math("MULTIPLY_ADD", streaks, 0.45, graph.math("MULTIPLY_ADD", patch, 1.1, -0.3))
    colour = graph.ramp(cover, [(0.3, ground), (0.55, blush)])
    dots = graph.ramp(graph.spots(graph.coordinates(), 9 / radius), [(0.07, (1, 1, 1)), (0.13, (0, 0, 0))])
    pale = mix(ground, (1, 1, 0.85), 0.5)
    colour = graph.blend(graph.math("MULTIPLY", dots, 0.5), colour, (*(c**2.2 for c in pale), 1.0))
    v = graph.axis(graph.coordinates("UV"), "Y")
    ends = graph.ramp(v, [(0.04, (1, 1, 1)), (0.12, (0, 0, 0)), (0.86, (0, 0, 0)), (0.95, (1, 1, 1))])
    colour = graph.blend(graph.math("MULTIPLY", ends, 0.65), colour, (0.3, 0.26, 0.05, 1.0))
    return graph.surface(colour, rng.uniform(0.25, 0.45), Coat_Weight=rng.uniform(0.0, 0.4))


def _leaf(rng: np.random.Generator, base: Array, length: float) -> Part:
    t = np.linspace(0, 1, 12)
    half = 0.28 * length * np.sin(np.pi * t**0.8)
    across = np.linspace(-1, 1, 5)
    turn = rng.uniform(0, 6.28)
    x = t[:, None] * length + 0 * across
    y = half[:, None] * across
    z = 0.25 * length * np.sin(2.2 * t)[:, None] + 0.35 * np.abs(y)
    points = np.stack([x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn), z], -1)
    return thicken(sheet(points + base, plain(hsv(0.28, 0.7, rng.uniform(0.25, 0.45)), 0.4)), 0.0006, 0)


def banana(rng: np.random.Generator) -> list[Part]:
    """Draw one to four bananas of a bunch, green-tipped to spotted."""
    count = int(rng.choice([1, 2, 3, 4], p=[0.55, 0.2, 0.15, 0.1]))
    skin = _banana_skin(rng)
    length, arc = rng.uniform(0.15, 0.2), rng.uniform(0.9, 1.9)
    parts = []
    for i in range(count):
        one = _one_banana(rng, length * rng.uniform(0.93, 1.05), arc * rng.uniform(0.9, 1.1), skin)
        fan = (i - (count - 1) / 2) * rng.uniform(0.2, 0.3)
        lift = Matrix.Rotation(fan, 4, "X") if count > 1 else Matrix.Identity(4)
        move([one], Matrix.Translation((0, 0.013 * (i - (count - 1) / 2), 0)) @ lift)
        parts.append(one)
    move(parts, Matrix.Rotation(math.pi / 2 if rng.random() < 0.75 or count == 1 else 0.0, 4, "X"))
    return parts


def _one_banana(rng: np.random.Generator, length: float, arc: float, skin: bpy.types.Material) -> Part:
    """Sweep a rounded pentagon along an arc in the xz plane, from the stem to the blossom end."""
    t = np.linspace(0, 1, 60)
    bend = length / arc
    angle = arc * (t - 0.5)
    path = np.column_stack([bend * np.sin(angle), 0 * t, bend * (1 - np.cos(angle))])
    stem = 0.1
    widths = np.interp(
        t,
        [0, 0.02, stem, stem + 0.12, 0.4, 0.7, 0.9, 0.965, 0.985, 1],
        [0.3, 0.33, 0.3, 0.72, 1, 1, 0.7, 0.36, 0.24, 0.22],
    )
    kernel = np.ones(5) / 5
    widths = np.convolve(np.pad(widths, 2, mode="edge"), kernel, mode="valid") * length * rng.uniform(0.092, 0.11)
    phase = rng.uniform(0, 6.28)
    return tube(path, widths, skin, 40, section=lambda a: 1 + 0.035 * np.cos(5 * a + phase))


def _banana_skin(rng: np.random.Generator) -> bpy.types.Material:
    """Return banana skin: yellow, greenish or brown at the ends, with specks when ripe."""
    ripe = rng.random()
    body: Colour = hsv(
        0.145 - 0.02 * ripe + 0.05 * max(0.0, 0.2 - ripe), rng.uniform(0.72, 0.88), rng.uniform(0.82, 0.95)
    )
    ends = mix(hsv(0.2, 0.7, 0.65), hsv(0.11, 0.6, 0.55), ripe)
    brown = (0.2, 0.12, 0.05)
    graph = Graph("banana")
    along = graph.axis(graph.coordinates("UV"), "Y")
    stops = [
        (0.0, brown),
        (0.035, ends),
        (0.16, ends),
        (0.3, body),
        (0.85, body),
        (0.95, ends),
        (0.985, brown),
    ]
    colour = graph.ramp(along, stops)
    speck = graph.noise(graph.coordinates("UV", (9.0, 34.0, 1.0), rng.uniform(0, 9)), 1.0, 4.0)
    edge = 0.8 - 0.2 * ripe
    mask = graph.ramp(speck, [(edge, (0, 0, 0)), (edge + 0.05, (1, 1, 1))])
    colour = graph.blend(graph.math("MULTIPLY", mask, 0.8), colour, (0.13, 0.07, 0.02, 1.0))
    shade = graph.noise(graph.coordinates(), 40.0, 3.0)
    colour = graph.blend(graph.math("MULTIPLY", shade, 0.25), colour, (0.55, 0.36, 0.05, 1.0))
    return graph.surface(colour, rng.uniform(0.4, 0.55))
