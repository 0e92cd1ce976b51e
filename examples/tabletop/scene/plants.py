"""Potted plants."""

from __future__ import annotations

import math

import bpy
import numpy as np

from .colours import any_colour, hsv, mix, vivid
from .materials import Graph, any_vessel_material, plain
from .meshes import Array, Part, lathe, sheet, smooth, thicken, tube


def plant(rng: np.random.Generator) -> list[Part]:
    """Draw a potted plant: leafy, rosette, upright blades or cactus."""
    radius = rng.uniform(0.04, 0.06)
    tall = radius * rng.uniform(1.3, 2.0)
    foot = rng.uniform(0.65, 0.95)
    rim = rng.choice([1.0, rng.uniform(1.06, 1.12)])
    pot = [
        (0, 0.0),
        (radius * foot, 0),
        (radius * foot, 0),
        (radius * (foot + 1) / 2, tall * 0.5),
        (radius, tall * 0.8),
    ]
    pot += [
        (radius * rim, tall * 0.8),
        (radius * rim, tall),
        (radius * rim * 0.9, tall),
        (radius * 0.86, tall * 0.85),
    ]
    clay = hsv(rng.uniform(0.03, 0.06), rng.uniform(0.5, 0.65), rng.uniform(0.5, 0.7))
    skin = plain(clay, 0.8) if rng.random() < 0.4 else any_vessel_material(rng, any_colour(rng), 0.0, tall)
    parts = [lathe(smooth(pot, 2), skin)]
    parts.append(lathe(np.array([(radius * 0.88, tall * 0.86), (0, tall * 0.92)]), plain((0.14, 0.09, 0.06), 0.95)))
    grow = {"leafy": _leafy, "rosette": _rosette, "blades": _blades, "cactus": _cactus}
    kind = str(rng.choice(list(grow), p=[0.42, 0.2, 0.23, 0.15]))
    return parts + grow[kind](rng, radius, tall * 0.88)


def _green(rng: np.random.Generator) -> bpy.types.Material:
    """Return leaf green with lighter veins and a little light through it."""
    tone = hsv(rng.uniform(0.22, 0.36), rng.uniform(0.45, 0.8), rng.uniform(0.3, 0.6))
    graph = Graph("leaf")
    rib = graph.math("ABSOLUTE", graph.math("SUBTRACT", graph.axis(graph.coordinates("UV"), "X"), 0.5))
    colour = graph.ramp(
        rib, [(0.0, mix(tone, (0.9, 0.95, 0.6), 0.35)), (0.08, tone), (0.5, mix(tone, (0, 0.1, 0), 0.25))]
    )
    if rng.random() < 0.25:
        colour = graph.ramp(rib, [(0.3, tone), (0.42, mix(tone, (1, 1, 0.8), 0.6))])
    return graph.surface(colour, rng.uniform(0.3, 0.5), Subsurface_Weight=0.1, Subsurface_Radius=(0.005, 0.01, 0.003))


def _blade(
    rng: np.random.Generator,
    base: Array,
    turn: float,
    rise: float,
    length: float,
    half: float,
    droop: float,
    skin: bpy.types.Material,
) -> Part:
    """Grow one leaf from a base, in a direction, rising by an angle and drooping along its length."""
    t = np.linspace(0, 1, 14)
    lean = rise - droop * t
    step = length / 13
    out = np.concatenate([[0], np.cumsum(np.cos(lean[:-1]) * step)])
    up = np.concatenate([[0], np.cumsum(np.sin(lean[:-1]) * step)])
    width = half * np.sin(np.pi * np.clip(t * 0.96 + 0.03, 0, 1) ** rng.uniform(0.7, 1.1)) + 0.0008
    across = np.linspace(-1, 1, 5)
    side = width[:, None] * across
    fold = 0.3 * np.abs(side)
    x = out[:, None] - fold * np.sin(lean)[:, None]
    z = up[:, None] + fold * np.cos(lean)[:, None]
    c, s = math.cos(turn), math.sin(turn)
    return sheet(np.stack([x * c - side * s, x * s + side * c, z], -1) + base, skin)


def _leafy(rng: np.random.Generator, radius: float, level: float) -> list[Part]:
    skin, parts = _green(rng), []
    size, broad = radius * rng.uniform(0.9, 1.5), rng.uniform(0.28, 0.48)
    for i in range(int(rng.integers(12, 24))):
        turn, rise = i * 2.4 + rng.uniform(-0.3, 0.3), rng.uniform(0.5, 1.45)
        reach = radius * rng.uniform(0.5, 2.1)
        tip = np.array(
            [
                reach * math.cos(rise) * math.cos(turn),
                reach * math.cos(rise) * math.sin(turn),
                reach * math.sin(rise),
            ]
        )
        stalk = smooth(np.stack([0 * tip, tip * (0.4, 0.4, 0.7), tip]), 2) + np.array([0, 0, level])
        parts.append(tube(stalk, radius * 0.022, skin, 6))
        length = size * rng.uniform(0.7, 1.1)
        parts.append(
            _blade(
                rng,
                stalk[-1],
                turn,
                rise * rng.uniform(0.2, 0.7),
                length,
                length * broad,
                rng.uniform(0.5, 1.6),
                skin,
            )
        )
    return parts


def _rosette(rng: np.random.Generator, radius: float, level: float) -> list[Part]:
    skin, parts = _green(rng), []
    count = int(rng.integers(18, 34))
    for i in range(count):
        share = i / count
        length = radius * (1.5 - 0.9 * share)
        leaf = _blade(rng, np.array([0, 0, level]), i * 2.4, 0.25 + 1.15 * share, length, length * 0.2, -0.25, skin)
        parts.append(thicken(leaf, 0.004))
    return parts


def _blades(rng: np.random.Generator, radius: float, level: float) -> list[Part]:
    skin, parts = _green(rng), []
    droop = rng.choice([rng.uniform(0.0, 0.3), rng.uniform(0.8, 2.4)])
    half = radius * (rng.uniform(0.14, 0.22) if droop < 0.4 else rng.uniform(0.06, 0.12))
    for i in range(int(rng.integers(9, 16) if droop < 0.4 else rng.integers(20, 36))):
        base = np.array([*rng.normal(0, 0.25 * radius, 2), level - 0.01])
        length = radius * rng.uniform(2.0, 3.6)
        parts.append(
            _blade(rng, base, i * 2.4, rng.uniform(1.15, 1.5), length, half, droop * rng.uniform(0.6, 1.2), skin)
        )
    return parts


def _cactus(rng: np.random.Generator, radius: float, level: float) -> list[Part]:
    tone = hsv(rng.uniform(0.25, 0.4), rng.uniform(0.35, 0.6), rng.uniform(0.3, 0.5))
    ribs = int(rng.integers(9, 15))
    graph = Graph("cactus")
    wool = graph.spots(graph.coordinates("UV", (float(ribs), 16.0, 1.0)), 1.0)
    colour = graph.ramp(wool, [(0.1, (0.9, 0.87, 0.7)), (0.2, tone), (0.7, mix(tone, (0, 0.1, 0), 0.3))])
    skin = graph.surface(colour, 0.55)
    r, tall = radius * rng.uniform(0.5, 0.75), radius * rng.uniform(1.0, 3.2)

    def wobble(angle: Array, t: Array) -> Array:
        return np.asarray(1 + 0.07 * np.cos(ribs * angle) + 0 * t, float)

    profile = smooth([(r * 0.8, -0.01), (r, tall * 0.35), (r, tall * 0.7), (r * 0.75, tall * 0.95), (0, tall)])
    body = lathe(profile + np.array([0, level]), skin, 120, wobble)
    if rng.random() < 0.35:
        bloom = tube([(0, 0, level + tall - 0.004), (0, 0, level + tall + 0.006)], r * 0.3, plain(vivid(rng), 0.6), 10)
        return [body, bloom]
    return [body]
