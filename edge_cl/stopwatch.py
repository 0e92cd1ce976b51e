"""The seconds of each stage of a learn. Nothing here loads torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edge_cl.process import give_back


@dataclass
class Stopwatch:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time inside to a stage; when it ends, its memory goes back to the system."""
        start = time.monotonic()
        try:
            yield
        finally:
            give_back()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
