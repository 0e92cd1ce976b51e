"""Things of no class: random solids in random materials, for pretraining on robot-like pictures without labels."""

from __future__ import annotations

import math

import bpy
import numpy as np
from mathutils import Matrix

from . import prints
from .colours import any_colour, dark, hsv, mix
from .materials import ceramic, clear, metal, plain, printed, wood
from .meshes import Array, Material, Part, box, lathe, move, prism, sheet, smooth, thicken, tube

SIZE = (0.04, 0.18)  # metres, of a solid's longest side


def thing(rng: np.random.Generator) -> list[Part]:
    """Draw one to three random solids, beside, upon or through each other."""
    shapes = (turned, hollow, bent, slab, sheeted, block)
    parts: list[Part] = []
    reach = rng.uniform(*SIZE)
    for _ in range(int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))):
        solid = shapes[int(rng.integers(len(shapes)))](rng, reach * rng.uniform(0.35, 1.0) if parts else reach)
        if parts:
            tilt = Matrix.Rotation(rng.uniform(0, math.pi), 4, rng.normal(size=3)) if rng.random() < 0.5 else Matrix()
            move(solid, Matrix.Translation(rng.uniform(-0.45, 0.45, 3) * reach) @ tilt)
        parts += solid
    return parts


def skin(rng: np.random.Generator, high: float) -> Material:
    """Draw any material there is, for a solid of this height in metres."""
    colour = any_colour(rng)
    kind = rng.choice(["plain", "glazed", "wood", "metal", "printed", "clear"], p=[0.34, 0.2, 0.13, 0.12, 0.15, 0.06])
    if kind == "glazed":
        return ceramic(rng, colour, any_colour(rng), 0.0, high)
    if kind == "wood":
        return wood(rng, rng.uniform(60, 160))
    if kind == "metal":
        return metal(rng, any_colour(rng) if rng.random() < 0.3 else None)
    if kind == "printed":
        design = (prints.package, prints.cover, prints.page)[int(rng.integers(3))](rng, 220, 220)
        return printed(prints.fabric(rng) if rng.random() < 0.25 else design, rng.uniform(0.25, 0.8))
    if kind == "clear":
        return clear(hsv(rng.random(), rng.uniform(0.0, 0.7), rng.uniform(0.4, 0.95)), rng.uniform(0.0, 0.2))
    return plain(colour, rng.uniform(0.1, 0.8), metallic=float(rng.random() < 0.1), coat=float(rng.random() < 0.2))


def outline(rng: np.random.Generator, reach: float, slim: float) -> Array:
    """Draw a profile of (radius, height) rows from the foot to the rim."""
    count = int(rng.integers(3, 7))
    heights = np.concatenate([[0.0], np.sort(rng.random(count - 2)), [1.0]]) * reach
    walk = np.abs(slim + np.cumsum(rng.normal(0, 0.3 * slim, count)))
    rows = np.column_stack([np.clip(walk, 0.15 * slim, 2 * slim) * reach, heights])
    return smooth(np.repeat(rows, 1 + (rng.random(count) < 0.3), axis=0), int(rng.integers(1, 4)))


def turned(rng: np.random.Generator, reach: float) -> list[Part]:
    """Turn a closed profile, round, fluted or squeezed."""
    profile = outline(rng, reach, rng.uniform(0.08, 0.6))
    ends = np.array([(0.0, profile[0, 1])]), np.array([(0.0, profile[-1, 1])])
    flutes, depth = int(rng.integers(3, 16)), rng.choice([0.0, rng.uniform(0.02, 0.2)])

    def wobble(angle: Array, t: Array) -> Array:
        return np.asarray(1 + depth * np.cos(flutes * angle) + 0 * t, float)

    return [lathe(np.concatenate([ends[0], profile, ends[1]]), skin(rng, reach), wobble=wobble)]


def hollow(rng: np.random.Generator, reach: float) -> list[Part]:
    """Turn a profile with a wall and an opening, sometimes with a loop on its side."""
    profile = outline(rng, reach, rng.uniform(0.2, 0.7))
    inside = profile[::-1] * (rng.uniform(0.85, 0.97), 1.0) + (0, 0.003)
    closed = np.concatenate([[(0.0, 0.0)], profile, inside, [(0.0, 0.003)]])
    parts = [lathe(closed, skin(rng, reach))]
    if rng.random() < 0.25:
        t = np.linspace(-1.3, 1.3, 24)
        near, span = float(profile[len(profile) // 2, 0]), rng.uniform(0.15, 0.4) * reach
        loop = np.column_stack([near + span * np.cos(t) * 0.8, 0 * t, reach * 0.5 + span * np.sin(t)])
        parts.append(tube(loop, rng.uniform(0.02, 0.06) * reach, skin(rng, reach), 12))
    return parts


def bent(rng: np.random.Generator, reach: float) -> list[Part]:
    """Sweep a rod or strap of changing width along a random curve."""
    count = int(rng.integers(2, 6))
    walk = np.cumsum(rng.normal(0, 1, (count, 3)) * (0.4, 0.4, rng.choice([0.0, 0.3])) + (0.6, 0, 0), axis=0)
    line = smooth(walk, 4 if count > 2 else 5)
    line *= reach / np.ptp(line, axis=0).max()
    stops = np.linspace(0, 1, 5)
    widths = np.interp(np.linspace(0, 1, len(line)), stops, rng.uniform(0.02, 0.13) * reach * rng.uniform(0.4, 1.6, 5))
    return [tube(line, widths, skin(rng, reach), 14, flatten=rng.choice([1.0, rng.uniform(0.2, 0.7)]))]


def slab(rng: np.random.Generator, reach: float) -> list[Part]:
    """Extrude a star, a rounded polygon or a blob."""
    count, rough = int(rng.integers(3, 11)), rng.choice([0.0, 0.15, 0.4])
    angle = np.linspace(0, 2 * np.pi, count + 1)[:-1]
    radius = reach / 2 * (1 + rough * rng.uniform(-1, 1, count))
    if rng.random() < 0.3:
        radius[::2] *= rng.uniform(0.35, 0.8)
    corners = np.column_stack([radius * np.cos(angle), radius * np.sin(angle) * rng.uniform(0.25, 1.0)])
    closed = np.concatenate([corners, corners[:1]])
    flat = smooth(closed, int(rng.integers(1, 4)))[:-1] if rng.random() < 0.7 else corners
    thick = reach * rng.choice([rng.uniform(0.02, 0.12), rng.uniform(0.12, 0.6)])
    return [prism(flat, thick, skin(rng, thick), min(0.003, thick / 5))]


def sheeted(rng: np.random.Generator, reach: float) -> list[Part]:
    """Bend a sheet: a leaf, a cloth, a dish or a folded card."""
    u, v = np.meshgrid(np.linspace(-1, 1, 21), np.linspace(-1, 1, 21), indexing="ij")
    waves = rng.uniform(0, 3, 2)
    lift = rng.uniform(0.0, 0.35) * np.cos(waves[0] * u * np.pi) * np.cos(waves[1] * v * np.pi)
    lift = lift + rng.uniform(-0.3, 0.5) * np.abs(u) ** rng.uniform(1, 3)
    taper = 1 - rng.uniform(0, 0.9) * np.abs(v) ** rng.uniform(1, 3)
    grid = np.stack([u * taper * rng.uniform(0.3, 1.0), v, lift * rng.uniform(0.1, 0.8)], -1) * reach / 2
    return [thicken(sheet(grid, skin(rng, reach)), rng.uniform(0.001, 0.005))]


def block(rng: np.random.Generator, reach: float) -> list[Part]:
    """Draw a box with faces alike or not, and sometimes small parts set into its top."""
    size = reach * rng.uniform((0.5, 0.2, 0.06), (1.0, 0.9, 0.9))
    faces: list[bpy.types.Material] = [skin(rng, size[2])]
    if rng.random() < 0.4:
        faces = faces * 5 + [skin(rng, size[2])]
    parts = [box(size, faces, rng.choice([0.0005, 0.002, 0.005]))]
    if rng.random() < 0.4:
        rows, columns = (int(n) for n in rng.integers(1, 5, 2))
        knob = plain(mix(any_colour(rng), dark(rng), rng.random()), 0.4)
        pitch = size[0] / (rows + 1), size[1] / (columns + 1)
        for i in range(rows):
            for j in range(columns):
                at = ((i + 1) * pitch[0] - size[0] / 2, (j + 1) * pitch[1] - size[1] / 2, size[2] / 2)
                parts.append(box((pitch[0] * 0.6, pitch[1] * 0.6, 0.006), [knob], 0.001, centre=at))
    return parts
