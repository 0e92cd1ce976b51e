"""What else lies on a table: small things that belong to no class, near the object or in its way."""

from __future__ import annotations

import math

import numpy as np
from mathutils import Matrix

from . import prints
from .colours import any_colour, dark, hsv, pale, vivid
from .materials import metal, plain, printed, wood
from .meshes import Part, box, lathe, prism, resting_pose, smooth, tube, vertices_of


def toy_block(rng: np.random.Generator) -> list[Part]:
    """Draw a wooden or painted block."""
    size = rng.uniform((0.02, 0.02, 0.02), (0.06, 0.035, 0.035))
    skin = wood(rng, 150.0) if rng.random() < 0.4 else plain(vivid(rng), 0.45)
    return [box(size, [skin], 0.0015)]


def pen(rng: np.random.Generator) -> list[Part]:
    """Draw a pen or pencil."""
    colour, r, long = (
        vivid(rng) if rng.random() < 0.7 else dark(rng),
        rng.uniform(0.0035, 0.0055),
        rng.uniform(0.12, 0.16),
    )
    barrel = [(0, 0), (r, 0), (r, 0), (r, long * 0.86), (r * 0.9, long * 0.88), (r * 0.25, long), (0, long)]
    part = lathe(smooth(barrel, 1), plain(colour, 0.35), 12)
    ring = lathe(np.array([(r * 1.1, long * 0.6), (r * 1.1, long * 0.68)]), metal(rng), 12)
    return [part, ring]


def paper(rng: np.random.Generator) -> list[Part]:
    """Draw a note, a card or a printed sheet."""
    wide = rng.uniform(0.06, 0.15)
    tall = wide * rng.uniform(0.7, 1.4)
    design = prints.page(rng, 200, int(200 * tall / wide)) if rng.random() < 0.5 else prints.package(rng, 200, 200)
    side = plain(pale(rng), 0.8)
    return [box((wide, tall, 0.0012), [side] * 5 + [printed(design, 0.7)])]


def tape_roll(rng: np.random.Generator) -> list[Part]:
    """Draw a roll of tape."""
    outer, high = rng.uniform(0.022, 0.045), rng.uniform(0.012, 0.025)
    inner = outer * rng.uniform(0.6, 0.8)
    ring = np.array(
        [
            (inner, 0),
            (outer, 0),
            (outer, 0),
            (outer, high),
            (outer, high),
            (inner, high),
            (inner, high),
            (inner, 0),
        ]
    )
    return [lathe(ring, plain(any_colour(rng), 0.3), 40)]


def cable(rng: np.random.Generator) -> list[Part]:
    """Draw a loose length of cable."""
    turns = np.linspace(0, rng.uniform(3, 11), 70)
    reach = np.linspace(rng.uniform(0.02, 0.05), rng.uniform(0.03, 0.08), 70)
    x, y = reach * np.cos(turns) * 1.4, reach * np.sin(turns) + np.linspace(0, rng.uniform(0, 0.08), 70)
    colour = dark(rng) if rng.random() < 0.6 else pale(rng)
    return [
        tube(
            np.column_stack([x, y, np.linspace(0, 0.006, 70)]),
            rng.uniform(0.0018, 0.003),
            plain(colour, 0.5),
            8,
        )
    ]


def nut(rng: np.random.Generator) -> list[Part]:
    """Draw a hexagonal nut or a washer-like disc."""
    r, sides = rng.uniform(0.008, 0.018), int(rng.choice([6, 32]))
    angle = np.linspace(0, 2 * np.pi, sides + 1)[:-1]
    return [prism(np.column_stack([np.cos(angle), np.sin(angle)]) * r, r * 0.7, metal(rng), 0.0008)]


def napkin(rng: np.random.Generator) -> list[Part]:
    """Draw a folded cloth."""
    size = rng.uniform(0.07, 0.13)
    return [box((size, size * rng.uniform(0.6, 1), 0.006), [printed(prints.fabric(rng), 0.9)], 0.0025)]


def jar_lid(rng: np.random.Generator) -> list[Part]:
    """Draw a jar's lid or a coaster."""
    r, high = rng.uniform(0.018, 0.045), rng.uniform(0.005, 0.012)
    profile = smooth([(0, 0), (r, 0), (r, 0), (r, high), (r * 0.96, high), (0, high)], 2)
    return [lathe(profile, plain(any_colour(rng), 0.35, metallic=float(rng.random() < 0.3)))]


KINDS = (toy_block, pen, paper, tape_roll, cable, nut, napkin, jar_lid)
SOLID = (toy_block, tape_roll, napkin, jar_lid, nut)


def strew(rng: np.random.Generator, reach: float, count: int, in_front: bool) -> None:
    """Put `count` things around an object of radius `reach` metres, the first before it if asked."""
    placed: list[tuple[float, float, float]] = []
    for i in range(count):
        front = in_front and i == 0
        kinds = SOLID if front else KINDS
        draw = kinds[int(rng.integers(len(kinds)))]
        parts = draw(rng)
        lay_down = Matrix.Rotation(math.pi / 2 if draw is pen else 0.0, 4, "Y")
        pose = Matrix.Rotation(rng.uniform(0, 6.28), 4, "Z") @ resting_pose(parts, lay_down)
        corners = vertices_of(parts)
        own = float(np.linalg.norm(corners - corners.mean(0), axis=1).max())
        for _ in range(12):
            turn = -math.pi / 2 + rng.normal(0, 0.35) if front else rng.uniform(-0.4, math.pi + 0.4)
            away = reach + own * (0.75 if front else 1.05) + (0.0 if front else rng.uniform(0.005, 0.9 * reach + 0.06))
            x, y = away * math.cos(turn), away * math.sin(turn)
            if all(math.hypot(x - a, y - b) > own + c for a, b, c in placed):
                break
        else:
            for part in parts:
                part.hide_render = True
            continue
        placed.append((x, y, own))
        for part in parts:
            part.matrix_world = Matrix.Translation((x, y, 0.0003)) @ pose


def far_things(rng: np.random.Generator, count: int, near: float, far: float) -> None:
    """Stand tall shapes well behind the object, between two distances, to be blurred by the lens."""
    for _ in range(count):
        wide, tall = rng.uniform(0.03, 0.14), rng.uniform(0.05, 0.35)
        colour = any_colour(rng)
        if rng.random() < 0.5:
            depth = rng.uniform(0.03, 0.15)
            faces = [printed(prints.package(rng, 96, 160), 0.5) if rng.random() < 0.5 else plain(colour, 0.5)]
            parts = [box((wide, depth, tall), faces, 0.002, centre=(0, 0, tall / 2))]
        else:
            r = wide / 2
            shape = [
                (0, 0),
                (r, 0),
                (r * rng.uniform(0.7, 1.2), tall * 0.6),
                (r * rng.uniform(0.3, 1.0), tall),
                (0, tall),
            ]
            skin = plain(hsv(0.6, 0.02, 0.7), 0.25, 1.0) if rng.random() < 0.2 else plain(colour, rng.uniform(0.1, 0.6))
            parts = [lathe(smooth(shape, 2), skin, 32)]
        y = rng.uniform(near, far)
        place = Matrix.Translation((rng.uniform(-0.9, 0.9) * (0.25 + 0.6 * y), y, 0))
        for part in parts:
            part.matrix_world = place @ Matrix.Rotation(rng.uniform(0, 6.28), 4, "Z")
