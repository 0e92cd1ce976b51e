"""Backbones to choose from: the one that ships with the package, and timm models known to work."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache

from edge_cl.config import BACKBONES_DIR

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Choice:
    """A backbone that is known to work.

    Attributes:
        name: what `--backbone` takes.
        picture_px: side of the input it was trained for.
        parameters_m: millions of parameters.
        cpu_ms: one picture of that size on one CPU thread (the machine is named in catalogue.toml).
        licence: SPDX identifier of the weights' licence.
        note: what it is good for.
    """

    name: str
    picture_px: int
    parameters_m: float
    cpu_ms: float
    licence: str
    note: str


@cache
def choices() -> tuple[Choice, ...]:
    """Return the backbones to choose from, the shipped one first."""
    facts = tomllib.loads((BACKBONES_DIR / "catalogue.toml").read_text(encoding="utf-8"))
    return tuple(Choice(**backbone) for backbone in facts["backbone"])
