from __future__ import annotations

from pathlib import Path

import pytest

from edge_cl.devices import BOARDS, recognise


@pytest.mark.parametrize(
    ("compatible", "name"),
    [
        (b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0", "Jetson Orin Nano 8GB"),
        (b"nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0", "Jetson AGX Orin 64GB"),
        (b"nvidia,p3509-0000+p3668-0001\0nvidia,tegra194\0", "Jetson Xavier NX"),
        (b"raspberrypi,5-model-b\0brcm,bcm2712\0", None),
        (b"", None),
    ],
)
def test_a_board_is_recognised_by_its_device_tree(tmp_path: Path, compatible: bytes, name: str | None) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/compatible").write_bytes(compatible)
    board = recognise(tmp_path)
    assert (board.name if board else None) == name


def test_no_device_tree_is_no_board(tmp_path: Path) -> None:
    assert recognise(tmp_path) is None


def test_every_board_is_either_supported_or_refused_with_a_reason() -> None:
    assert all(bool(board.jetpack_floor) != bool(board.refused) for board in BOARDS)
    parts = [part for board in BOARDS for part in board.parts]
    assert len(parts) == len(set(parts))
