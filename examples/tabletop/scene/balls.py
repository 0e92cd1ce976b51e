"""Balls for every game."""

from __future__ import annotations

import math
from itertools import combinations

import bpy
import numpy as np
from mathutils import Matrix
from PIL import Image

from .colours import hsv, pale, vivid
from .materials import Graph, as_image
from .meshes import Array, Part, lathe, move

GOLDEN = (1 + math.sqrt(5)) / 2


def ball(rng: np.random.Generator) -> list[Part]:
    """Draw a ball: tennis, football, basketball, beach ball, baseball or a striped toy one."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 40)
    radius = rng.uniform(0.035, 0.1)
    profile = np.column_stack([np.cos(angle), np.sin(angle)]) * radius
    part = lathe(profile, _ball_skin(rng, radius), 72)
    turn = Matrix.Rotation(rng.uniform(0, 6.28), 4, "X") @ Matrix.Rotation(rng.uniform(0, 6.28), 4, "Y")
    move([part], turn @ Matrix.Rotation(rng.uniform(0, 6.28), 4, "Z"))
    return [part]


def _ball_skin(rng: np.random.Generator, radius: float) -> bpy.types.Material:
    """Return a ball's cover, drawn over the directions of a sphere."""
    kind = str(
        rng.choice(
            ["tennis", "football", "basketball", "beach", "baseball", "stripe"],
            p=[0.2, 0.26, 0.18, 0.14, 0.1, 0.12],
        )
    )
    tall = 192
    v, u = np.mgrid[0:tall, 0 : 2 * tall]
    lat, lon = (0.5 - (v + 0.5) / tall) * np.pi, (u + 0.5) / tall * np.pi
    way = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], -1)
    colour, seam = _ball_pattern(rng, kind, way)
    rgb = Image.fromarray((255 * np.clip(colour, 0, 1)).astype(np.uint8))
    relief = Image.fromarray((255 * np.clip(seam, 0, 1)).astype(np.uint8)).convert("RGB")
    graph = Graph("ball")
    fuzz = graph.noise(graph.coordinates(), {"tennis": 90.0, "basketball": 60.0}.get(kind, 8.0) / radius, 3.0)
    height = graph.math("MULTIPLY_ADD", fuzz, 0.35, graph.picture(as_image(relief)))
    gloss = {"tennis": 0.95, "basketball": 0.55, "baseball": 0.5}.get(kind, rng.uniform(0.15, 0.4))
    normal = graph.bump(height, 0.6, radius * 0.02)
    return graph.surface(graph.picture(as_image(rgb)), gloss, Normal=normal, Sheen_Weight=0.6 * (kind == "tennis"))


def _ball_pattern(rng: np.random.Generator, kind: str, way: Array) -> tuple[Array, Array]:
    """Return the colour `(H, W, 3)` and relief `(H, W)` of a ball over unit directions `(H, W, 3)`."""
    x, y, z = way[..., 0], way[..., 1], way[..., 2]
    flat = np.ones_like(x)
    if kind == "football":
        signs = [(a, b) for a in (-1, 1) for b in (-1, 1)]
        corner = np.array([(0, a, b * GOLDEN) for a, b in signs]) / math.hypot(1, GOLDEN)
        tips = np.concatenate([np.roll(corner, turn, axis=1) for turn in range(3)])
        triples = combinations(tips, 3)
        centres = [a + b + c for a, b, c in triples if min(a @ b, b @ c, a @ c) > 0.4]
        faces = np.array(centres) / np.linalg.norm(centres, axis=1, keepdims=True)
        near = np.concatenate(
            [np.arccos(np.clip(way @ tips.T, -1, 1)) + 0.06, np.arccos(np.clip(way @ faces.T, -1, 1))], -1
        )
        order = np.sort(near, axis=-1)
        seam = np.clip((order[..., 1] - order[..., 0]) / 0.05, 0, 1)
        five = near.argmin(-1) < 12
        ink = np.array((0.05, 0.05, 0.06) if rng.random() < 0.6 else vivid(rng))
        colour = np.where(five[..., None], ink, np.array(pale(rng))) * (0.35 + 0.65 * seam[..., None])
        return colour, seam
    if kind in ("tennis", "baseball"):
        turn = np.arctan2(y, x)
        away = np.abs(z - 0.62 * np.sin(2 * turn) * np.sqrt(1 - z**2 * 0.5))
        seam = np.clip(away / (0.09 if kind == "tennis" else 0.05), 0, 1)
        felt = hsv(rng.uniform(0.16, 0.22), rng.uniform(0.55, 0.8), rng.uniform(0.75, 0.95))
        ground, line = (felt, (0.93, 0.93, 0.88)) if kind == "tennis" else ((0.9, 0.88, 0.83), (0.7, 0.1, 0.1))
        hard = (seam > 0.8)[..., None]
        return np.where(hard, np.array(ground), np.array(line)), seam
    if kind == "basketball":
        curve = np.abs(np.abs(y) - 0.52 - 0.28 * x**2)
        away = np.minimum(np.minimum(np.abs(x), np.abs(z)), np.where(np.abs(y) > 0.3, curve, 1))
        seam = np.clip(away / 0.035, 0, 1)
        orange = np.array(hsv(rng.uniform(0.03, 0.07), rng.uniform(0.7, 0.9), rng.uniform(0.55, 0.8)))
        return np.where((seam > 0.75)[..., None], orange, np.array((0.06, 0.05, 0.05))), seam
    if kind == "beach":
        count = int(rng.choice([6, 8]))
        tones = np.array([pale(rng), vivid(rng), pale(rng), vivid(rng)])
        gore = np.floor((np.arctan2(y, x) / (2 * np.pi) + 0.5) * count).astype(int) % 4
        colour = tones[gore]
        colour = np.where((np.abs(z) > 0.96)[..., None], tones[0], colour)
        return colour, flat
    tones = np.array([vivid(rng), pale(rng), vivid(rng)])
    edge = rng.uniform(0.15, 0.4)
    return tones[np.digitize(z, [-edge, edge])], flat
