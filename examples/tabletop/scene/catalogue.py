"""The classes: which function draws an object, how it may lie, and from how high it is seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mathutils import Matrix

from . import balls, food, packed, paperware, plants, things, tools, vessels
from .meshes import Part


@dataclass(frozen=True)
class Kind:
    """One class of object.

    Attributes:
        draw: Makes a new variant from random numbers.
        lying: The share of pictures in which it lies on its side.
        inverted: The share of pictures in which it stands upside down.
        tilt_deg: How far down the camera looks, lowest and highest.
        fill: The share of the picture's width or height that the object spans, least and most.
    """

    draw: Callable[[np.random.Generator], list[Part]]
    lying: float = 0.0
    inverted: float = 0.0
    tilt_deg: tuple[float, float] = (14.0, 62.0)
    fill: tuple[float, float] = (0.64, 0.95)


FLAT = (46.0, 84.0)
SLIM = (0.78, 1.0)
KINDS: dict[str, Kind] = {
    "apple": Kind(food.apple, lying=0.2),
    "ball": Kind(balls.ball),
    "banana": Kind(food.banana, tilt_deg=(22.0, 75.0)),
    "book": Kind(paperware.book, tilt_deg=(28.0, 70.0)),
    "bottle": Kind(packed.bottle, lying=0.25, tilt_deg=(8.0, 50.0)),
    "bowl": Kind(vessels.bowl, inverted=0.05, tilt_deg=(16.0, 52.0)),
    "box": Kind(paperware.carton, lying=0.06, tilt_deg=(15.0, 48.0)),
    "can": Kind(packed.can, lying=0.14, tilt_deg=(12.0, 46.0)),
    "fork": Kind(tools.fork, tilt_deg=FLAT, fill=SLIM),
    "mug": Kind(vessels.mug, lying=0.06, inverted=0.02, tilt_deg=(14.0, 52.0)),
    "plant": Kind(plants.plant, tilt_deg=(8.0, 50.0)),
    "plate": Kind(vessels.plate, inverted=0.04, tilt_deg=(20.0, 75.0)),
    "remote": Kind(tools.remote, tilt_deg=FLAT, fill=SLIM),
    "scissors": Kind(tools.scissors, tilt_deg=FLAT, fill=SLIM),
    "spoon": Kind(tools.spoon, tilt_deg=FLAT, fill=SLIM),
    "teapot": Kind(vessels.teapot, tilt_deg=(10.0, 48.0)),
}
THINGS: dict[str, Kind] = {
    "thing": Kind(things.thing, lying=0.3, inverted=0.1, tilt_deg=(10.0, 82.0), fill=(0.55, 0.95))
}


def stance(rng: np.random.Generator, kind: Kind) -> Matrix:
    """Draw the turn an object is put down with: upright, on its side or upside down, any way round."""
    draw = rng.random()
    spin = Matrix.Rotation(rng.uniform(0, 2 * math.pi), 4, "Z")
    if draw < kind.lying:
        return Matrix.Rotation(math.pi / 2, 4, "X") @ spin
    if draw < kind.lying + kind.inverted:
        return Matrix.Rotation(math.pi, 4, "X") @ spin
    return spin
