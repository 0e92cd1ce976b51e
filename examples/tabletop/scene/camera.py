"""The robot's camera: where it stands, how it frames the object, what lens and sensor do."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import bpy
import numpy as np
from mathutils import Matrix, Vector
from PIL import Image, ImageFilter

from .meshes import Array


def aim(
    rng: np.random.Generator,
    corners: Array,
    size: tuple[int, int],
    tilt_deg: tuple[float, float],
    fill: tuple[float, float],
) -> None:
    """Place a camera on the -y side so that an object with these corners `(V, 3)` fills part of the picture.

    Args:
        rng: Draws height, distance, field of view, roll, aim and focus.
        corners: The object's corners in metres, standing on z = 0 around the origin.
        size: Width and height of the picture in pixels.
        tilt_deg: How far down the camera may look, lowest and highest.
        fill: The share of the picture that the object spans, least and most.
    """
    tilt = math.radians(rng.uniform(*tilt_deg))
    field = math.radians(rng.uniform(38, 68))
    middle = (corners.min(0) + corners.max(0)) / 2
    back = Vector((0, -math.cos(tilt), math.sin(tilt)))
    turn = back.to_track_quat("Z", "Y").to_matrix() @ Matrix.Rotation(rng.normal(0, 0.05), 3, "Z")
    seen = (corners - middle) @ np.asarray(turn)
    span = rng.uniform(*fill)
    reach = math.tan(field / 2) * np.array(size) / max(size)  # half the picture, one metre away
    distance = float(((np.abs(seen[:, :2]) / (span * reach)).max(1) + seen[:, 2]).max())
    slack = max(0.05, 1.04 - span) * distance * reach
    shift = turn @ Vector((*rng.uniform(-0.55, 0.55, 2) * slack, 0))
    data = bpy.data.cameras.new("camera")
    data.angle, data.clip_start = field, 0.005
    data.dof.use_dof, data.dof.focus_distance = True, distance * rng.uniform(0.95, 1.1)
    data.dof.aperture_fstop = rng.uniform(6, 20) * 0.4 / max(distance, 0.2)
    thing = bpy.data.objects.new("camera", data)
    thing.matrix_world = Matrix.Translation(Vector(middle) + shift + back * distance) @ turn.to_4x4()
    bpy.context.scene.collection.objects.link(thing)
    bpy.context.scene.camera = thing


def render(size: tuple[int, int], samples: int, seed: int, threads: int) -> Array:
    """Path-trace the scene and return linear light `(H, W, 3)`."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.resolution_x, scene.render.resolution_y = size
    scene.render.resolution_percentage = 100
    scene.render.threads_mode, scene.render.threads = "FIXED", threads
    cycles = scene.cycles
    cycles.device, cycles.samples, cycles.seed = "CPU", samples, seed % 2**31
    cycles.use_denoising, cycles.denoiser, cycles.denoising_prefilter = True, "OPENIMAGEDENOISE", "FAST"
    cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces, cycles.transmission_bounces = (
        7,
        2,
        3,
        7,
    )
    cycles.caustics_reflective = cycles.caustics_refractive = False
    cycles.sample_clamp_indirect, cycles.use_light_tree = (
        4.0,
        False,
    )  # the light tree rounds differently each run
    scene.render.image_settings.file_format = "OPEN_EXR"
    scene.render.image_settings.color_depth = "32"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.exr"
        scene.render.filepath = str(path)
        bpy.ops.render.render(write_still=True)
        image = bpy.data.images.load(str(path))
        pixels = np.empty(size[0] * size[1] * 4, np.float32)
        image.pixels.foreach_get(pixels)
        bpy.data.images.remove(image)
    return pixels.reshape(size[1], size[0], 4)[::-1, :, :3].astype(float)


def develop(rng: np.random.Generator, light: Array) -> Image.Image:
    """Turn linear light `(H, W, 3)` into the 8-bit picture of a cheap camera.

    In the order of a real one: lens falloff, exposure, white balance, sensor noise, tone curve, blur.
    """
    height, width = light.shape[:2]
    y, x = np.mgrid[0:height, 0:width]
    away = np.hypot((x / width - 0.5), (y / height - 0.5))
    lit = np.nan_to_num(light) * (1 - rng.uniform(0.0, 0.5) * away**2)[..., None]
    luminance = lit @ (0.2126, 0.7152, 0.0722)
    centre = luminance[height // 5 : -height // 5, width // 5 : -width // 5]
    key = 0.6 * np.exp(np.log(luminance + 1e-4).mean()) + 0.4 * centre.mean()
    lit = lit * (0.19 / max(key, 1e-4)) * 2 ** rng.normal(0.0, 0.32)
    grey = lit.mean((0, 1)) / max(lit.mean(), 1e-6)
    lit = lit / grey ** rng.uniform(0.2, 0.7) * (1 + rng.normal(0, 0.035, 3))
    noise = 10 ** rng.uniform(-2.9, -1.75)
    lit = lit + noise * rng.normal(size=lit.shape) * np.sqrt(np.clip(lit, 0, None) + 0.02)
    curved = _tone(np.clip(lit, 0, None), rng.uniform(0.9, 1.2))
    picture = Image.fromarray((255 * curved + 0.5).astype(np.uint8))
    return picture.filter(ImageFilter.GaussianBlur(max(0.0, rng.normal(0.15, 0.3))))


def _tone(lit: Array, contrast: float) -> Array:
    """Roll highlights off smoothly and encode as sRGB, then pivot contrast around middle grey."""
    rolled = np.where(lit < 0.6, lit, 0.6 + 0.4 * (1 - np.exp(-(lit - 0.6) / 0.5)))
    srgb = np.where(rolled <= 0.0031308, 12.92 * rolled, 1.055 * np.maximum(rolled, 1e-9) ** (1 / 2.4) - 0.055)
    return np.asarray(np.clip(0.46 + (srgb - 0.46) * contrast, 0, 1), float)
