"""What a check found: its cause, and the command that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_cl.devices.probe import Machine
from edge_cl.errors import EdgeClError


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        check: what was looked at.
        ok: whether edge-cl can work with it as it is.
        found: what was found.
        mend: the command or change that mends or betters it, "" where nothing is to be done.
        cause: why it is so, or what follows from it, "" where there is nothing to say.
    """

    check: str
    ok: bool
    found: str
    mend: str = ""
    cause: str = ""

    @property
    def state(self) -> str:
        """One word for people: ok; note, where something is worth knowing; FAULT."""
        return "FAULT" if not self.ok else "note" if self.mend or self.cause else "ok"


@dataclass(frozen=True)
class Subject:
    """What is examined: a machine, by its files, and a store."""

    machine: Machine
    store: Path


Check = Callable[[Subject], Iterable[Finding]]


def run(name: str, check: Check, subject: Subject) -> Iterator[Finding]:
    """Run a check; one that fails is a finding itself, so that the others still run."""
    try:
        yield from check(subject)
    except EdgeClError as error:
        yield Finding(name, False, " ".join(error.faults), error.mend)
    except Exception as error:
        yield Finding(
            name,
            False,
            f"the check failed: {type(error).__name__}: {error}",
            "Report this, with the output of edge-cl doctor --json.",
            "a fault of this check, or of a library that it loads",
        )
