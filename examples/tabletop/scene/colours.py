"""Colours by name of a mood, as sRGB triples in 0-1."""

from __future__ import annotations

import colorsys

import numpy as np

Colour = tuple[float, float, float]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """Return the sRGB colour of a hue (turns), saturation and value."""
    return colorsys.hsv_to_rgb(hue % 1.0, float(np.clip(saturation, 0, 1)), float(np.clip(value, 0, 1)))


def linear(colour: Colour) -> tuple[float, float, float, float]:
    """Return the linear RGBA colour a renderer wants for an sRGB one."""
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return (red, green, blue, 1.0)


def mix(first: Colour, second: Colour, weight: float) -> Colour:
    """Return the colour a share `weight` of the way from the first to the second."""
    red, green, blue = (a + (b - a) * weight for a, b in zip(first, second, strict=True))
    return (red, green, blue)


def vivid(rng: np.random.Generator) -> Colour:
    """Draw a strong colour: toys, packaging, plastic."""
    return hsv(rng.random(), rng.uniform(0.6, 0.95), rng.uniform(0.5, 0.95))


def muted(rng: np.random.Generator) -> Colour:
    """Draw a quiet colour: glazes, fabrics, walls."""
    return hsv(rng.random(), rng.uniform(0.08, 0.45), rng.uniform(0.35, 0.85))


def pale(rng: np.random.Generator) -> Colour:
    """Draw an off-white."""
    return hsv(rng.uniform(0.02, 0.17), rng.uniform(0.0, 0.14), rng.uniform(0.78, 0.95))


def dark(rng: np.random.Generator) -> Colour:
    """Draw a near-black."""
    return hsv(rng.random(), rng.uniform(0.0, 0.5), rng.uniform(0.05, 0.25))


def any_colour(rng: np.random.Generator) -> Colour:
    """Draw from the moods above as household goods do."""
    mood = rng.choice(4, p=[0.35, 0.25, 0.28, 0.12])
    return (vivid, muted, pale, dark)[int(mood)](rng)


def palette(rng: np.random.Generator) -> list[Colour]:
    """Draw four colours that go together: ground, main, accent, ink."""
    hue = rng.random()
    ground = hsv(hue, rng.uniform(0.0, 0.9), rng.uniform(0.35, 0.98))
    main = hsv(hue + rng.choice([0.08, 0.33, 0.5, 0.62]), rng.uniform(0.5, 1.0), rng.uniform(0.4, 0.95))
    accent = hsv(hue + rng.uniform(0.1, 0.9), rng.uniform(0.3, 1.0), rng.uniform(0.6, 1.0))
    ink = (0.06, 0.06, 0.08) if sum(ground) > 1.4 else (0.97, 0.96, 0.93)
    return [ground, main, accent, ink]
