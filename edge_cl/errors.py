"""Errors a user can mend: each says what is wrong, where, and the one change or command that mends it."""

from __future__ import annotations

from collections.abc import Sequence

FEW = 8  # names that are listed at most


class EdgeClError(Exception):
    """Something could not be done (exit status 1).

    Args:
        *faults: one sentence each, naming the path or value at fault; all faults of one input at once.
        mend: the one change or command that mends them.
    """

    exit_code = 1

    def __init__(self, *faults: str, mend: str = "") -> None:
        self.faults: tuple[str, ...] = faults
        self.mend = mend
        super().__init__("\n".join((*faults, mend) if mend else faults))


class UsageError(EdgeClError):
    """The request itself is malformed: an unknown name, a bad value (exit status 2)."""

    exit_code = 2


class FolderError(EdgeClError):
    """A picture folder cannot be learned from."""


class BackboneError(EdgeClError):
    """A backbone is unknown, unsupported, or its weights do not fit it."""


class StoreError(EdgeClError):
    """A store cannot be opened, read or written."""


class EngineError(EdgeClError):
    """A TensorRT engine cannot be built, refitted, trusted or run."""


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return the known names closest to `name`, or else the first of them, as the end of an error message."""
    from difflib import get_close_matches

    if near := get_close_matches(name, known):
        return f"Did you mean {' or '.join(near)}?"
    return f"Known: {listed(known) or 'none'}."


def listed(names: Sequence[str]) -> str:
    """Write the first few names, and how many more there are."""
    more = len(names) - FEW
    return ", ".join(names[:FEW]) + (f" and {more} more" if more > 0 else "")
