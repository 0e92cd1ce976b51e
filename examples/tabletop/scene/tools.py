"""Things to hold and use: fork, spoon, scissors, remote control. Each function draws one new variant."""

from __future__ import annotations

import bpy
import numpy as np
from mathutils import Matrix

from .colours import any_colour, dark, hsv, mix, muted, pale, vivid
from .materials import metal, plain, wood
from .meshes import Array, Part, box, lathe, move, prism, sheet, smooth, soften, thicken, tube


def spoon(rng: np.random.Generator) -> list[Part]:
    """Draw a spoon: tea to serving size, of steel, plastic or wood."""
    head, handle = _cutlery_materials(rng)
    length, half, deep = rng.uniform(0.052, 0.07), rng.uniform(0.019, 0.026), rng.uniform(0.008, 0.014)
    t = np.linspace(0, 1, 22)
    across = np.linspace(-1, 1, 15)
    width = half * np.sqrt(np.clip(1 - (2 * t - 1) ** 2, 0, 1)) * (1 + 0.25 * (0.5 - t)) + 0.0025 * t
    x = -length + length * t[:, None] * 1.03 + 0 * across
    hollow = -deep * (1 - across**2)[None] * (np.sin(np.pi * t) ** 0.7)[:, None]
    head_part = thicken(sheet(np.stack([x, width[:, None] * across, hollow], -1), head), 0.0014)
    neck = rng.uniform(0.0025, 0.004)
    return [head_part, _handle_strip(rng, -0.001, rng.uniform(0.085, 0.12), neck, handle)]


def fork(rng: np.random.Generator) -> list[Part]:
    """Draw a fork of three or four tines, of steel, plastic or wood."""
    head, handle = _cutlery_materials(rng)
    tines = int(rng.choice([3, 4], p=[0.4, 0.6]))
    length, half = rng.uniform(0.068, 0.082), rng.uniform(0.014, 0.0175)
    root = length * rng.uniform(0.34, 0.42)
    dish = rng.uniform(0.006, 0.012)

    def height(along: Array) -> Array:
        return np.asarray(dish * (np.cos(2.6 * (along / length) - 0.2) - 0.98), float)

    across = np.linspace(-1, 1, 9)
    t = np.linspace(0, 1, 14)
    body = np.interp(t, [0, 0.25, 0.7, 1], [0.003, 0.55 * half, half, half])
    along = root * t
    points = np.stack([-along[:, None] + 0 * across, body[:, None] * across, height(along)[:, None] + 0 * across], -1)
    parts = [thicken(sheet(points, head), 0.0018)]
    pitch = 2 * half / (tines - 0.35)
    for i in range(tines):
        middle = -half + pitch * (i + 0.325)
        along = np.linspace(root * 0.97, length * 1.02, 12)
        width = np.interp(np.linspace(0, 1, 12), [0, 0.8, 1], [pitch * 0.29, pitch * 0.21, pitch * 0.1])
        edge = np.linspace(-1, 1, 3)
        strip = np.stack(
            [-along[:, None] + 0 * edge, middle + width[:, None] * edge, height(along)[:, None] + 0 * edge],
            -1,
        )
        parts.append(thicken(sheet(strip, head), 0.0018))
    neck = rng.uniform(0.0028, 0.004)
    return [*parts, _handle_strip(rng, -0.001, rng.uniform(0.085, 0.115), neck, handle)]


def _cutlery_materials(rng: np.random.Generator) -> tuple[bpy.types.Material, bpy.types.Material]:
    """Return what a piece of cutlery's head and handle are made of."""
    kind = rng.choice(4, p=[0.58, 0.2, 0.12, 0.1])
    if kind == 0:
        steel = metal(rng)
        return steel, steel
    if kind == 1:
        return metal(rng), plain(any_colour(rng), 0.35)
    same = wood(rng, 160.0) if kind == 2 else plain(any_colour(rng), 0.35)
    return same, same


def _handle_strip(
    rng: np.random.Generator, start: float, length: float, neck: float, material: bpy.types.Material
) -> Part:
    """Lay a cutlery handle along +x from `start`, thin at the neck and broad at the end, gently arched."""
    t = np.linspace(0, 1, 24)
    end = rng.uniform(0.007, 0.012)
    half = np.interp(t, [0, 0.15, 0.8, 0.95, 1.0], [neck, neck, end, end * 0.9, end * 0.35])
    across = np.linspace(-1, 1, 5)
    x = start + length * t[:, None] + 0 * across
    z = 0.012 * np.sin(np.pi * np.minimum(t * 1.3, 1))[:, None] + 0 * across
    part = sheet(np.stack([x, half[:, None] * across, z], -1), material)
    return thicken(part, rng.uniform(0.0018, 0.0035))


def scissors(rng: np.random.Generator) -> list[Part]:
    """Draw scissors, closed to wide open, with plastic or steel finger loops."""
    blade = rng.uniform(0.075, 0.11)
    steel = metal(rng, (0.78, 0.79, 0.81))
    grip = steel if rng.random() < 0.15 else plain(vivid(rng) if rng.random() < 0.65 else dark(rng), 0.35)
    opening = rng.uniform(0.06, 0.5)
    loop, wide = rng.uniform(0.017, 0.022), rng.uniform(0.007, 0.0095)
    parts = []
    for sign in (-1, 1):
        edge = [
            (0, 0.5 * sign),
            (0.5, 0.75 * sign),
            (0.85, 0.35 * sign),
            (1.0, -0.28 * sign),
            (0.9, -0.34 * sign),
            (0.1, -0.45 * sign),
        ]
        outline = np.array([(-0.12, -0.3 * sign), *edge[::-1], (-0.3, 0.5 * sign)])[::-sign] * (blade, wide)
        half = [prism(outline, 0.0018, steel, 0.0003)]
        centre = np.array([-blade * 0.62, -sign * loop * 1.0])
        shank = smooth([(0.004, 0.0), (-blade * 0.2, -sign * 0.004), (centre[0] + loop * 1.1, centre[1] * 0.75)], 3)
        path = np.column_stack([shank, np.zeros(len(shank))])
        half.append(tube(path, np.linspace(0.0045, 0.006, len(path)), grip, 12, flatten=0.7))
        angle = np.linspace(0, 2 * np.pi, 33)[:-1]
        stretch = rng.uniform(1.15, 1.6)
        ring = np.column_stack([loop * stretch * np.cos(angle), loop * np.sin(angle), np.zeros(32)])
        ring[:, :2] += centre
        half.append(tube(ring, 0.0048, grip, 12, flatten=1.0, closed=True))
        move(half, Matrix.Translation((0, 0, 0.0011 * sign)) @ Matrix.Rotation(sign * opening / 2, 4, "Z"))
        parts += half
    parts.append(_key(0.0045, (0, 0, 0.0025), steel, True))
    return parts


def remote(rng: np.random.Generator) -> list[Part]:
    """Draw a remote control: a slim bar with rows of buttons, some coloured, perhaps a ring or a screen."""
    wide, thick = rng.uniform(0.036, 0.054), rng.uniform(0.012, 0.022)
    long = wide * rng.uniform(3.0, 4.4)
    shell = dark(rng) if rng.random() < 0.62 else pale(rng) if rng.random() < 0.6 else muted(rng)
    parts = [
        soften(
            box((wide, long, thick), [plain(shell, rng.uniform(0.25, 0.55))]),
            wide * rng.uniform(0.08, 0.16),
            4,
        )
    ]
    key = plain(mix(shell, (1, 1, 1) if sum(shell) < 1.4 else (0, 0, 0), rng.uniform(0.3, 0.75)), 0.6)
    top, y = thick / 2, long * 0.43
    power = plain(hsv(rng.uniform(0.97, 1.02), 0.85, 0.75), 0.5)
    parts.append(_key(wide * 0.11, (wide * rng.choice([-0.28, 0.28, 0.0]), y, top), power, True))
    y -= long * 0.07
    if rng.random() < 0.3:
        parts.append(
            box(
                (wide * 0.75, long * 0.12, 0.001),
                [plain((0.3, 0.36, 0.3), 0.15)],
                centre=(0, y - long * 0.05, top),
            )
        )
        y -= long * 0.15
    columns, round_ = int(rng.choice([3, 3, 4])), bool(rng.random() < 0.45)
    step = wide * 0.78 / columns
    ring_row = int(rng.integers(1, 5))
    row = 0
    while y > -long * 0.42:
        if row == ring_row:
            angle = np.linspace(0, 2 * np.pi, 33)[:-1]
            r = wide * 0.27
            ring = np.column_stack([r * np.cos(angle), r * np.sin(angle) + y - r, np.full(32, top)])
            parts += [
                tube(ring, wide * 0.075, key, 10, closed=True),
                _key(wide * 0.12, (0, y - r, top), key, True),
            ]
            y -= 2.5 * r
        else:
            special = rng.random() < 0.12
            for i in range(columns):
                at = (step * (i - (columns - 1) / 2), y, top)
                lid = plain(hsv(i / columns, 0.8, 0.7), 0.5) if special else key
                parts.append(_key(step * 0.34, at, lid, round_))
            y -= step * rng.uniform(0.8, 0.95)
        row += 1
    return parts


def _key(half: float, at: tuple[float, float, float], material: bpy.types.Material, round_: bool) -> Part:
    if round_:
        profile = smooth([(half, -0.001), (half, 0.001), (half * 0.9, 0.0018), (0, 0.002)], 2)
        part = lathe(profile, material, 16)
        move([part], Matrix.Translation(at))
        return part
    return box((2 * half, 1.3 * half, 0.0035), [material], 0.0006, centre=at)
