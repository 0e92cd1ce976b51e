"""One picture: draw an object, a table, a room and a camera from one seed, and render them."""

from __future__ import annotations

import math
import zlib

import bpy
import numpy as np
from mathutils import Matrix
from PIL import Image

from . import camera, room
from .catalogue import KINDS, THINGS, stance
from .clutter import strew
from .meshes import resting_pose, vertices_of


def generator(seed: int, split: str, name: str, index: int) -> np.random.Generator:
    """Return the random numbers of one picture; no two pictures of any split share them."""
    return np.random.default_rng([seed, zlib.crc32(split.encode()), zlib.crc32(name.encode()), index])


def take(
    rng: np.random.Generator,
    name: str,
    size: tuple[int, int] = (128, 128),
    samples: int = 14,
    threads: int = 1,
) -> Image.Image:
    """Render one picture of a class.

    Args:
        rng: The only source of chance.
        name: A key of `catalogue.KINDS` or `catalogue.THINGS`.
        size: Width and height in pixels.
        samples: Light paths a pixel.
        threads: CPU threads to render with.
    """
    bpy.ops.wm.read_factory_settings(use_empty=True)
    kind = (KINDS | THINGS)[name]
    parts = kind.draw(rng)
    spin = Matrix.Rotation(rng.uniform(0, 2 * math.pi), 4, "Z")
    pose = spin @ resting_pose(parts, stance(rng, kind))
    for part in parts:
        part.matrix_world = pose
    corners = vertices_of(parts) @ np.asarray(pose.to_3x3()).T + np.asarray(pose.translation)
    reach = float(np.linalg.norm(corners[:, :2], axis=1).max())
    behind = max(0.25 + reach, rng.choice([rng.uniform(0.3, 0.6), rng.uniform(0.6, 1.4)]))
    room.table(rng, behind)
    room.surroundings(rng, behind)
    room.light(rng)
    if rng.random() < 0.6:
        strew(rng, reach, int(rng.integers(1, 5)), in_front=bool(rng.random() < 0.3))
    camera.aim(rng, corners, size, kind.tilt_deg, kind.fill)
    light = camera.render(size, samples, int(rng.integers(2**31)), threads)
    return camera.develop(rng, light)
