"""The demo: its pictures, and a contact sheet with a frame in the colour of the verdict around each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageColor

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import demo


def answer(truth: str, number: int, label: str, unknown: bool = False) -> dict[str, Any]:
    source = demo.PICTURES / "test" / truth / f"{number:03}.jpg"
    return {"source": str(source), "label": label, "confidence": 0.8, "unknown": unknown}


@pytest.mark.parametrize(
    ("label", "unknown", "colour"),
    [("mug", False, demo.GREEN), ("can", False, demo.RED), ("mug", True, demo.AMBER), ("can", True, demo.AMBER)],
)
def test_frames_show_the_verdict(tmp_path: Path, label: str, unknown: bool, colour: str) -> None:
    first = [answer("mug", i, "mug") for i in range(demo.COLUMNS + 1)]
    demo.contact_sheet({"first": first, "second": [answer("mug", 0, label, unknown)]}, tmp_path / "sheet.png")
    height = demo.TILE + demo.CAPTION
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (demo.COLUMNS * demo.TILE, 2 * demo.TITLE + 3 * height)
        frames = [(0, demo.TITLE), ((demo.COLUMNS - 1) * demo.TILE, demo.TITLE), (0, demo.TITLE + height)]
        assert {sheet.getpixel(frame) for frame in frames} == {ImageColor.getrgb(demo.GREEN)}
        assert sheet.getpixel((0, 2 * demo.TITLE + 2 * height)) == ImageColor.getrgb(colour)
        assert sheet.getpixel((demo.TILE, 2 * demo.TITLE + 2 * height)) == (255, 255, 255)


def test_a_folder_of_the_users_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        demo.main()
    assert (end.value.code, (tmp_path / "thesis.txt").read_text()) == (2, "mine")
    assert f"{tmp_path} is not empty" in capsys.readouterr().err


def test_every_class_of_the_demo_has_its_pictures() -> None:
    counts = {
        split: {folder.name: len(list(folder.iterdir())) for folder in (demo.PICTURES / split).iterdir()}
        for split in ("train", "test")
    }
    assert counts["train"].keys() == counts["test"].keys()
    assert len(counts["train"]) >= 12
    assert min(counts["train"].values()) >= 40
    assert min(counts["test"].values()) >= 15
    size = sum(path.stat().st_size for path in demo.PICTURES.rglob("*.jpg"))
    assert size <= 4e6
