"""Things to eat and drink from: bowl, mug, plate, teapot. Each function draws one new variant."""

from __future__ import annotations

import numpy as np
from mathutils import Matrix

from . import prints
from .colours import Colour, any_colour, dark, hsv, mix, muted, pale, vivid
from .materials import Graph, any_vessel_material, ceramic, metal, plain, printed
from .meshes import Array, Material, Part, lathe, move, smooth, tube


def bowl(rng: np.random.Generator) -> list[Part]:
    """Draw a bowl: deep or wide, with or without a foot, now and then filled."""
    radius = rng.uniform(0.06, 0.1)
    high = radius * rng.uniform(0.62, 1.0)
    foot = radius * rng.uniform(0.35, 0.55)
    belly = rng.uniform(0.8, 1.0)
    wall = rng.uniform(0.002, 0.005)
    lip = radius * rng.choice([1.0, 1.0, rng.uniform(1.03, 1.12)])
    outside = [
        (0, 0.003),
        (foot * 0.9, 0.003),
        (foot, 0),
        (foot, 0),
        (foot, high * 0.06),
        (radius * belly, high * 0.42),
    ]
    inside = [(lip - wall, high), (radius * belly - wall, high * 0.46), (foot, high * 0.14), (0, high * 0.1)]
    profile = smooth([*outside, (lip, high), *inside])
    colour = any_colour(rng)
    parts = [lathe(profile, any_vessel_material(rng, colour, 0.0, high))]
    if rng.random() < 0.45:
        lining = profile[np.argmax(profile[:, 1]) :].copy()
        lining[:, 0] *= 0.995
        lining[:, 1] += 0.0006
        parts.append(lathe(lining, ceramic(rng, any_colour(rng), muted(rng), 0, high, "plain")))
    if rng.random() < 0.2:
        level = rng.uniform(0.55, 0.85) * high
        within = profile[: len(profile) // 2 : -1]  # from the bottom up
        parts.append(_filling(rng, float(np.interp(level, within[:, 1], within[:, 0])), level))
    return parts


def _filling(rng: np.random.Generator, radius: float, level: float) -> Part:
    """Fill a vessel to a level with soup, rice or the like."""
    rings = np.linspace(1, 0, 30)
    rough = rng.uniform(0.0, 0.004) * float(rng.random() < 0.6)
    heights = level + 0.12 * radius * (1 - rings**2) * (rough > 0) + rough * rng.normal(0, 0.5, 30)
    food = plain(hsv(rng.uniform(0.02, 0.22), rng.uniform(0.2, 0.85), rng.uniform(0.4, 0.9)), 0.3)
    return lathe(np.column_stack([radius * rings, heights]), food)


def mug(rng: np.random.Generator) -> list[Part]:
    """Draw a mug: straight, tapered, bellied or cup-like, plain, glazed, printed or enamel."""
    radius = rng.uniform(0.034, 0.046)
    tall = radius * rng.uniform(1.75, 2.7)
    foot, belly, top = {
        "straight": (1.0, 1.0, 1.0),
        "tapered": (rng.uniform(0.68, 0.85), rng.uniform(0.88, 0.95), 1.0),
        "bellied": (0.7, rng.uniform(1.05, 1.15), 0.92),
        "conical": (1.12, 1.05, 0.9),
    }[str(rng.choice(["straight", "tapered", "bellied", "conical"], p=[0.45, 0.25, 0.18, 0.12]))]
    wall = rng.uniform(0.0022, 0.0045)
    outside = [(0, 0.002), (radius * foot * 0.85, 0.002), (radius * foot * 0.93, 0), (radius * foot, 0.005)]
    outside += [(radius * belly, tall * 0.45), (radius * top, tall * 0.85), (radius * top, tall)]
    inside = [
        (radius * top - wall, tall),
        (radius * top - wall, tall * 0.85),
        (radius * belly - wall, tall * 0.45),
    ]
    inside += [(radius * foot - wall * 1.5, 0.009), (radius * foot * 0.7, 0.006), (0, 0.006)]
    colour = any_colour(rng)
    body = metal(rng) if rng.random() < 0.12 else ceramic(rng, colour, any_colour(rng), 0.0, tall)
    within = body if rng.random() < 0.5 else ceramic(rng, pale(rng), pale(rng), 0, tall, "plain")
    handle = body if rng.random() < 0.8 else plain(any_colour(rng), 0.3)
    parts = [lathe(smooth(outside), body), lathe(smooth([outside[-1], *inside]), within)]
    parts.append(_handle(rng, radius * (belly + top) / 2, tall, handle))
    if rng.random() < 0.4:
        print_ = printed(prints.wrap(rng, 640, 220, int(rng.integers(1, 4))), 0.25, 0.4)
        heights = np.linspace(0.16, 0.84, 24) * tall
        smooth_outside = smooth(outside)
        at = np.interp(heights, smooth_outside[8:, 1], smooth_outside[8:, 0]) + 0.0005
        parts.append(lathe(np.column_stack([at, heights]), print_))
    if rng.random() < 0.35:
        level = rng.uniform(0.7, 0.88) * tall
        drink = plain(hsv(rng.uniform(0.03, 0.09), rng.uniform(0.5, 0.9), rng.uniform(0.1, 0.5)), 0.08)
        inner = smooth(inside)[::-1]
        reach = float(np.interp(level, inner[:, 1], inner[:, 0]))
        parts.append(lathe(np.array([(reach, level), (0, level)]), drink))
    return parts


def _handle(rng: np.random.Generator, radius: float, tall: float, material: Material, span: float = 1.0) -> Part:
    """Bend a handle of round, square or ear shape onto the +x side of a vessel."""
    low, high = tall * rng.uniform(0.16, 0.28), tall * rng.uniform(0.75, 0.9)
    reach = radius * rng.uniform(1.6, 1.95) * span
    bend = rng.uniform(0.0, 1.0)
    ear = [
        (radius * 0.93, high),
        (reach * 0.9, high + 0.04 * tall * bend),
        (reach, tall * 0.7),
        (reach * 0.98, tall * 0.5),
    ]
    ear += [(radius + (reach - radius) * (0.9 - 0.5 * bend), low + tall * 0.08), (radius * 0.92, low)]
    flat = smooth(ear, 3)
    path = np.column_stack([flat[:, 0], np.zeros(len(flat)), flat[:, 1]])
    return tube(path, radius * rng.uniform(0.11, 0.16), material, 16, flatten=rng.uniform(1.0, 1.6))


def plate(rng: np.random.Generator) -> list[Part]:
    """Draw a plate: rimmed or coupe, plain or with rings, round, rarely oval."""
    radius = rng.uniform(0.085, 0.14)
    deep = radius * rng.uniform(0.09, 0.17)
    well = radius * rng.uniform(0.6, 0.78)
    if rng.random() < 0.65:
        top = [
            (0, 0.005),
            (well * 0.95, 0.005),
            (well, deep * 0.6),
            (well * 1.08, deep * 0.8),
            (radius, deep),
        ]
    else:
        top = [(0, 0.005), (radius * 0.6, 0.005), (radius * 0.9, deep * 0.45), (radius, deep)]
    below = [(radius * 1.005, deep - 0.003), (well, 0.003), (well * 0.9, 0.0), (well * 0.85, 0.0), (0, 0.002)]
    colour = pale(rng) if rng.random() < 0.5 else any_colour(rng)
    glaze = _rings(rng, colour, radius) if rng.random() < 0.5 else any_vessel_material(rng, colour, 0.0, deep)
    parts = [lathe(smooth([*top, *below]), glaze, 72)]
    if rng.random() < 0.12:
        move(parts, Matrix.Diagonal((1.0, rng.uniform(0.65, 0.8), 1.0, 1.0)))
    return parts


def _rings(rng: np.random.Generator, base: Colour, radius: float) -> Material:
    """Return a glaze with coloured rings, or a two-tone one, by distance from the middle."""
    graph = Graph("rings")
    place = graph.coordinates(scale=(1 / radius, 1 / radius, 0.0))
    away = graph.node("VectorMath", {0: place}, operation="LENGTH").outputs["Value"]
    ink = vivid(rng) if rng.random() < 0.6 else dark(rng)
    first = rng.uniform(0.55, 0.8)
    last = rng.uniform(0.88, 0.98)
    stops: list[tuple[float, Colour]] = [
        (0.0, base),
        (first, ink),
        (first + rng.uniform(0.01, 0.06), base),
        (last, ink),
    ]
    if rng.random() < 0.35:
        stops = [(0.0, base), (first, mix(base, ink, 0.7)), (0.99, ink)]
    return graph.surface(graph.ramp(away, stops, hard=True), rng.uniform(0.05, 0.35), Coat_Weight=0.5)


def teapot(rng: np.random.Generator) -> list[Part]:
    """Draw a teapot: round, squat or tall, of pottery, enamel or steel, with a side or an arched handle."""
    radius = rng.uniform(0.06, 0.08)
    tall = radius * rng.uniform(1.2, 2.0)
    foot, neck = radius * rng.uniform(0.5, 0.85), radius * rng.uniform(0.4, 0.62)
    widest = rng.uniform(0.3, 0.55)
    body = [
        (0, 0.002),
        (foot * 0.9, 0.0),
        (foot, 0.004),
        (radius, tall * widest * 0.6),
        (radius, tall * widest * 1.3),
    ]
    profile = smooth([*body, (neck * 1.25, tall * 0.93), (neck, tall), (neck * 0.9, tall)])
    colour = any_colour(rng)
    skin = metal(rng) if rng.random() < 0.2 else ceramic(rng, colour, any_colour(rng), 0.0, tall)
    knob, rise = neck * rng.uniform(0.2, 0.32), tall * rng.uniform(0.08, 0.18)
    lid = [
        (neck * 1.05, tall),
        (neck * 1.05, tall * 1.01),
        (neck * 0.6, tall + rise),
        (knob * 0.6, tall + rise * 1.15),
    ]
    lid += [
        (knob * 0.6, tall + rise * 1.2),
        (knob, tall + rise * 1.2 + knob),
        (knob * 0.8, tall + rise * 1.2 + 1.9 * knob),
    ]
    top = tall + rise * 1.2 + knob * 2
    accent = skin if rng.random() < 0.75 else plain(dark(rng), 0.35)
    parts = [lathe(profile, skin), lathe(smooth([*lid, (0, top)]), accent if rng.random() < 0.4 else skin)]
    parts.append(_spout(rng, radius, tall, skin))
    if rng.random() < 0.7:
        side = _handle(rng, radius * 0.95, tall, accent, 0.95)
        parts.append(side)
    else:
        angle = np.linspace(0.25, np.pi - 0.25, 30)
        arch = np.column_stack([0.85 * radius * np.cos(angle), 0 * angle, tall * 0.75 + radius * 1.25 * np.sin(angle)])
        parts.append(tube(arch, radius * 0.075, accent, 14))
    return parts


def _spout(rng: np.random.Generator, radius: float, tall: float, skin: Material) -> Part:
    """Bend a tapering spout onto the -x side of a pot."""
    out = radius * rng.uniform(1.65, 2.0)
    bend = rng.uniform(-0.05, 0.2)
    line = [
        (-radius * 0.7, tall * 0.3),
        (-radius * 1.15, tall * (0.4 + 0.2 * bend)),
        (-out * 0.85, tall * (0.72 - bend)),
    ]
    flat = smooth([*line, (-out, tall * rng.uniform(0.88, 1.05))])
    path = np.column_stack([flat[:, 0], np.zeros(len(flat)), flat[:, 1]])
    widths: Array = np.linspace(radius * 0.36, radius * rng.uniform(0.11, 0.16), len(flat))
    return tube(path, widths, skin, 20)
