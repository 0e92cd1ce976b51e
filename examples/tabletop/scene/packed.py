"""Things sold full: bottle and can. Each function draws one new variant."""

from __future__ import annotations

import math

import numpy as np
from mathutils import Matrix

from . import prints
from .colours import any_colour, dark, hsv, pale, vivid
from .materials import clear, metal, plain, printed
from .meshes import Material, Part, lathe, move, smooth, tube


def bottle(rng: np.random.Generator) -> list[Part]:
    """Draw a bottle: wine, beer, clear water, squeezed sauce, shampoo or steel flask."""
    kind = rng.choice(["wine", "beer", "water", "sauce", "shampoo", "flask"], p=[0.2, 0.16, 0.24, 0.16, 0.14, 0.1])
    radius = rng.uniform(0.027, 0.04)
    tall = radius * rng.uniform(5.2, 7.6)
    neck = radius * rng.uniform(0.3, 0.42)
    shoulder = tall * {"wine": 0.62, "beer": 0.6, "water": 0.72}.get(str(kind), 0.8)
    drop = rng.uniform(0.3, 0.8) * (tall - shoulder)
    body = [
        (0, 0.002),
        (radius * 0.8, 0),
        (radius, 0.004),
        (radius, 0.012),
        (radius, shoulder),
        (radius, shoulder),
    ]
    body += [
        (radius * 0.95, shoulder + drop * 0.35),
        (neck * 1.1, shoulder + drop * 0.9),
        (neck, shoulder + drop),
    ]
    profile = smooth([*body, (neck, tall), (neck, tall), (0, tall)])
    if kind == "water":
        ribs = 1 - 0.035 * (np.sin(profile[:, 1] / radius * rng.uniform(7, 14)) ** 8)
        profile[:, 0] *= ribs
    skin = {
        "wine": lambda: clear(hsv(rng.uniform(0.2, 0.42), rng.uniform(0.5, 0.9), rng.uniform(0.2, 0.6))),
        "beer": lambda: clear(hsv(rng.uniform(0.04, 0.1), 0.9, rng.uniform(0.35, 0.6))),
        "water": lambda: clear(hsv(rng.uniform(0.4, 0.62), rng.uniform(0.02, 0.4), 0.95), 0.05, 1.2),
        "sauce": lambda: plain(hsv(rng.choice([0.0, 0.02, 0.13, 0.3, 0.08]), 0.9, rng.uniform(0.4, 0.85)), 0.3),
        "shampoo": lambda: plain(any_colour(rng), 0.3, coat=0.3),
        "flask": lambda: metal(rng) if rng.random() < 0.4 else plain(vivid(rng), 0.3, coat=0.5),
    }[str(kind)]()
    parts = [lathe(profile, skin)]
    if kind in ("wine", "beer"):
        inner = [
            (0, 0.004),
            (radius * 0.9, 0.004),
            (radius * 0.9, shoulder * rng.uniform(0.5, 0.95)),
            (0, shoulder * 0.9),
        ]
        parts.append(lathe(np.array(inner), plain(hsv(rng.uniform(0, 0.1), 0.8, 0.08), 0.1)))
    parts += _cap(rng, neck, tall, str(kind))
    if kind != "flask" or rng.random() < 0.4:
        parts += _label(rng, radius * 1.012, shoulder)
    if kind == "shampoo":
        move(parts, Matrix.Diagonal((1.0, rng.uniform(0.55, 0.8), 1.0, 1.0)))
    return parts


def _cap(rng: np.random.Generator, neck: float, tall: float, kind: str) -> list[Part]:
    """Close a bottle with what its kind has: foil, crown cap, screw cap, spout."""
    colour = dark(rng) if rng.random() < 0.3 else vivid(rng) if rng.random() < 0.6 else pale(rng)
    if kind == "wine":
        low = tall * rng.uniform(0.8, 0.88)
        foil = smooth([(neck * 1.06, low), (neck * 1.06, tall * 1.005), (neck * 1.06, tall * 1.005), (0, tall * 1.006)])
        return [lathe(foil, plain(colour, 0.35, metallic=0.6))]
    if kind == "beer":
        crown = smooth([(neck * 1.25, tall * 0.97), (neck * 1.2, tall), (neck, tall * 1.01), (0, tall * 1.012)])
        ripple = lathe(crown, plain(colour, 0.3, metallic=0.8), wobble=lambda a, t: 1 + 0.05 * np.cos(21 * a) * (1 - t))
        return [ripple]
    wide, high = neck * rng.uniform(1.15, 1.7), neck * rng.uniform(1.0, 1.8)
    low = tall - high * 0.5
    tip = neck * 0.4 if kind == "sauce" else wide * 0.95
    cap = smooth(
        [
            (wide, low),
            (wide, low),
            (wide, low + high * 0.6),
            (tip, low + high),
            (tip, low + high),
            (0, low + high),
        ],
        2,
    )
    return [lathe(cap, plain(colour, 0.4), wobble=lambda a, t: 1 + 0.02 * np.cos(40 * a) * (t < 0.6))]


def _label(rng: np.random.Generator, radius: float, shoulder: float) -> list[Part]:
    """Wrap a printed label around a bottle's body."""
    low, high = sorted(rng.uniform((0.1, 0.55), (0.3, 0.95)) * shoulder)
    paper = printed(prints.wrap(rng, 512, 200), rng.uniform(0.3, 0.7))
    return [lathe(np.array([(radius, low), (radius, high)]), paper)]


def can(rng: np.random.Generator) -> list[Part]:
    """Draw a can: drink with a pull tab, tall food tin with ribs, or flat fish tin."""
    kind = rng.choice(["drink", "food", "flat"], p=[0.52, 0.38, 0.1])
    radius = {"drink": 0.033, "food": 0.037, "flat": 0.042}[str(kind)] * rng.uniform(0.9, 1.1)
    ratio = {"drink": (3.2, 5.0), "food": (2.2, 3.1), "flat": (0.9, 1.3)}[str(kind)]
    tall = radius * rng.uniform(*ratio)
    tin = plain(hsv(0.6, 0.02, 0.8), 0.28, metallic=1.0)
    rim = radius * (0.84 if kind == "drink" else 1.0)
    chamfer = tall * 0.09 if kind == "drink" else 0.003
    lower = [(0, 0.004), (rim * 0.8, 0.004), (rim * 0.88, 0), (rim, 0.001), (radius, chamfer)]
    upper = [
        (radius, tall - chamfer),
        (rim, tall - 0.003),
        (rim * 1.02, tall),
        (rim * 0.95, tall),
        (rim * 0.92, tall - 0.004),
    ]
    parts = [lathe(smooth([*lower, *upper, (rim * 0.9, tall - 0.005), (0, tall - 0.005)], 2), tin)]
    heights = np.linspace(chamfer, tall - chamfer, 60)
    ribs = np.zeros(60)
    if kind == "food":
        middle = np.abs(heights / tall - 0.5) < 0.28
        ribs = 0.02 * np.sin(heights / tall * 2 * np.pi * 9) * middle
    bare = kind == "food" and rng.random() < 0.06
    if not bare:
        design = prints.wrap(rng, 640, max(96, int(640 * tall / (2 * math.pi * radius))), int(rng.integers(1, 3)))
        shiny = kind == "drink"
        skin = printed(design, 0.3 if shiny else 0.5, 0.4 * shiny, 0.55 * shiny)
        parts.append(lathe(np.column_stack([radius * (1.006 + ribs), heights]), skin, 72))
    if kind != "food" or rng.random() < 0.4:
        parts += _pull_tab(radius, tall - 0.004, tin)
    move(parts, Matrix.Rotation(rng.uniform(0, 6.28), 4, "Z"))
    return parts


def _pull_tab(radius: float, level: float, tin: Material) -> list[Part]:
    """Lay a ring-pull on a can's lid."""
    angle = np.linspace(0, 2 * np.pi, 25)[:-1]
    ring = np.column_stack([0.3 * np.cos(angle), 0.2 * np.sin(angle), np.zeros(24)]) * radius
    ring += (0.32 * radius, 0, level + 0.0015)
    bar = [(-0.1 * radius, 0, level), (0.1 * radius, 0, level + 0.001)]
    return [tube(ring, radius * 0.07, tin, 8, closed=True), tube(bar, radius * 0.12, tin, 8)]
