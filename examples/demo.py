"""Teach tabletop objects in three learns with the backbone that ships with edge-cl, and show what came of it.

    python examples/demo.py [--output DIR]

Runs the command line as a user would: learn, eval, predict, forget, rollback. No network, no GPU.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

PICTURES = Path(__file__).parent / "tabletop"
LEARNS = 3
TILE = 120
GREEN, RED, AMBER = "#2e9e44", "#d03a2f", "#e0a000"
console = Console(highlight=False)


def edge_cl(*arguments: str | Path) -> Any:
    """Run one command and return its JSON."""
    command = [str(Path(sys.executable).parent / "edge-cl"), *map(str, arguments), "--json"]
    console.print("$ edge-cl " + " ".join(map(str, arguments)), style="dim")
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def linked(split: str, names: Sequence[str], into: Path) -> Path:
    """Make a folder of links to some classes of a split."""
    into.mkdir(parents=True)
    for name in names:
        (into / name).symlink_to((PICTURES / split / name).resolve())
    return into


def contact_sheet(predictions: Sequence[Any], known: set[str], path: Path) -> None:
    """Draw pictures with their answers: green right, red wrong, amber called unknown."""
    columns = 8
    rows = -(-len(predictions) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, answer in enumerate(predictions):
        left, top = i % columns * TILE, i // columns * (TILE + 16)
        truth = Path(answer["source"]).parent.name
        right = answer["label"] == truth
        colour = AMBER if answer["unknown"] else GREEN if right else RED
        with Image.open(answer["source"]) as picture:
            tile = picture.convert("RGB").resize((TILE - 8, TILE - 8))
        draw.rectangle((left, top, left + TILE - 1, top + TILE + 15), fill=colour)
        sheet.paste(tile, (left + 4, top + 4))
        label = f"{answer['label']}{'?' if answer['unknown'] else ''} {answer['confidence']:.2f}"
        draw.text((left + 4, top + TILE - 1), label if right else f"{label} ({truth})", fill="white")
    sheet.save(path)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    output: Path = parser.parse_args().output
    start = time.monotonic()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    names = sorted(path.name for path in (PICTURES / "train").iterdir())
    random.Random(1993).shuffle(names)
    tasks = [names[i::LEARNS] for i in range(LEARNS)]
    store = output / "store"
    table = Table(title="Three learns", box=None)
    for column in (
        "learn",
        "new classes",
        "test accuracy, all classes so far",
        "old classes lost",
        "seconds",
        "peak MB",
    ):
        table.add_column(column)
    accuracy = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        folders = Path(scratch)
        for k, task in enumerate(tasks, 1):
            learned = edge_cl("learn", "--new-classes", linked("train", task, folders / f"learn{k}"), "--store", store)
            so_far = [name for t in tasks[:k] for name in t]
            result = edge_cl("eval", linked("test", so_far, folders / f"test{k}"), "--store", store)
            accuracy = result["accuracy"]
            table.add_row(
                str(k), ", ".join(task), f"{accuracy:.1%}", f"{learned['forgetting'] * 100:.1f} points",
                f"{learned['seconds']['total']:.0f}", f"{learned['peak_memory_mb']:.0f}",
            )  # fmt: skip
    gone = tasks[0][0]
    edge_cl("forget", gone, "--store", store)
    without = len(edge_cl("classes", "--store", store)["classes"])
    edge_cl("rollback", "--store", store)
    again = len(edge_cl("classes", "--store", store)["classes"])
    pictures = [sorted((PICTURES / "test" / name).iterdir())[i] for name in names for i in (0, 1, 2)]
    predictions = edge_cl("predict", *pictures, "--store", store)["predictions"]
    sheet = output / "recognised.png"
    contact_sheet(predictions, set(names), sheet)
    console.print(table)
    console.print(f"Forgot {gone!r}: {without} classes; rolled back: {again} classes.")
    console.print(f"Accuracy over all {len(names)} classes: {accuracy:.1%}, in {time.monotonic() - start:.0f} s.")
    console.print(f"What it recognised: {sheet} (green right, red wrong, amber unknown)")
    console.print(f"Store: {store}    Report: edge-cl log --report --store {store}")
    console.print("Next, with your own pictures, one sub-folder a class:")
    console.print("    .venv/bin/edge-cl learn --new-classes MY_PICTURES/ --store my_store", style="bold")
    console.print("    .venv/bin/edge-cl predict SOME_PICTURE.jpg --store my_store", style="bold")


if __name__ == "__main__":
    main()
