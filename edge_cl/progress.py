"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all)."""


def no_progress(stage: str, done: int, total: int) -> None:
    """Report nothing."""
