"""Which Jetson board this is, by the device tree the kernel shows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Board:
    """Facts of one kind of board.

    Attributes:
        name: as sold.
        parts: module part numbers.
        compute_capability: of its GPU.
        memory_gb: sizes sold; CPU and GPU share it.
        bandwidth_gb_s: of that memory.
        jetpack_floor: oldest JetPack supported, "" where none is.
        refused: why it is not supported, "" where it is.
    """

    name: str
    parts: tuple[str, ...]
    compute_capability: str
    memory_gb: tuple[int, ...]
    bandwidth_gb_s: float
    jetpack_floor: str = ""
    refused: str = ""


def _read() -> tuple[Board, ...]:
    facts: dict[str, dict[str, Any]] = tomllib.loads(
        (Path(__file__).parent / "boards.toml").read_text(encoding="utf-8")
    )

    def plain(value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    return tuple(Board(name, **{key: plain(v) for key, v in values.items()}) for name, values in facts.items())


BOARDS = _read()


def recognise(root: Path = Path("/")) -> Board | None:
    """Return the board that a file system's device tree names, or None where it is no known Jetson.

    Args:
        root: of the file system; a captured tree may be given.
    """
    try:
        compatible = (root / "proc/device-tree/compatible").read_bytes().decode("ascii", "replace")
    except OSError:
        return None
    names = [name.removeprefix("nvidia,") for name in compatible.split("\0")]
    for board in BOARDS:
        if any(part in name for name in names for part in board.parts):
            return board
    return None
