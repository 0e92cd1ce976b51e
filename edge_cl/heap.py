"""The process's heap: what was freed goes back to the system, so that what comes next does not lie on top of it."""

from __future__ import annotations

import contextlib
import ctypes


def give_back() -> None:
    """Give memory that was freed back to the system."""
    with contextlib.suppress(AttributeError):  # not every C library has it
        ctypes.CDLL(None).malloc_trim(0)
