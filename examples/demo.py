"""Teach tabletop objects in three learns with the backbone that ships with edge-cl, and show what came of it.

    python examples/demo.py [--output DIR]

DIR is new or empty; without it, demo_output is written anew.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Table

PICTURES = Path(__file__).parent / "tabletop"
OUTPUT = Path("demo_output")
LEARNS = 3
TILE, CAPTION, TITLE, COLUMNS = 132, 16, 30, 8  # pixels; tiles across
STRANGERS = 8  # pictures of the forgotten class that are shown while it is forgotten
GREEN, RED, AMBER = "#2e9e44", "#d03a2f", "#e0a000"
console = Console(highlight=False)


def say(text: str, style: str = "") -> None:
    """Print a line, unbroken, so that paths and commands can be copied."""
    console.print(text, style=style, soft_wrap=True)


def edge_cl(*arguments: str | Path) -> Any:
    """Run one command and return its JSON."""
    command = [str(Path(sys.executable).parent / "edge-cl"), *map(str, arguments), "--json"]
    say("$ edge-cl " + " ".join(map(str, arguments)), style="dim")
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


def pictures(name: str, count: int) -> list[Path]:
    """Return the first test pictures of a class."""
    return sorted((PICTURES / "test" / name).iterdir())[:count]


def contact_sheet(sections: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Draw titled sections of pictures with their answers: green right, red wrong, amber called unknown."""
    heights = [TITLE + -(-len(answers) // COLUMNS) * (TILE + CAPTION) for answers in sections.values()]
    sheet = Image.new("RGB", (COLUMNS * TILE, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    title_font, font = ImageFont.load_default(15), ImageFont.load_default(11)
    for k, (title, answers) in enumerate(sections.items()):
        start = sum(heights[:k])
        draw.text((6, start + 6), title, fill="black", font=title_font)
        for i, answer in enumerate(answers):
            left, top = i % COLUMNS * TILE, start + TITLE + i // COLUMNS * (TILE + CAPTION)
            truth, label = Path(answer["source"]).parent.name, answer["label"]
            colour = AMBER if answer["unknown"] else GREEN if label == truth else RED
            with Image.open(answer["source"]) as picture:
                tile = picture.convert("RGB").resize((TILE - 8, TILE - 8))
            draw.rectangle((left, top, left + TILE - 2, top + TILE + CAPTION - 3), fill=colour)
            sheet.paste(tile, (left + 3, top + 3))
            said = f"unknown ({label}?)" if answer["unknown"] else f"{label} {answer['confidence']:.0%}"
            wrong = "" if answer["unknown"] or label == truth else f", is {truth}"
            draw.text((left + 4, top + TILE - 4), said + wrong, fill="white", font=font)
    sheet.save(path)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="DIR", type=Path)
    given: Path | None = parser.parse_args().output
    output, start = given or OUTPUT, time.monotonic()
    if given is None:
        shutil.rmtree(output, ignore_errors=True)
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()):
            parser.error(f"{output} is not empty. Name a new directory.")
    except OSError as error:
        parser.error(f"{output} cannot be used: {error.strerror}. Name a new directory.")
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
    strangers = edge_cl("predict", *pictures(gone, STRANGERS), "--store", store)["predictions"]
    edge_cl("rollback", "--store", store)
    again = len(edge_cl("classes", "--store", store)["classes"])
    known = [picture for name in names for picture in pictures(name, 3)]
    sheet = output / "recognised.png"
    sections = {
        f"Test pictures, after {LEARNS} learns (green right, red wrong, amber called unknown)": edge_cl(
            "predict", *known, "--store", store
        )["predictions"],
        f"{gone!r} while it was forgotten": strangers,
    }
    contact_sheet(sections, sheet)
    console.print(table)
    refused = sum(answer["unknown"] for answer in strangers)
    say(f"Forgot {gone!r}: {without} classes, {refused} of its {len(strangers)} pictures called unknown.")
    say(f"Rolled back: {again} classes.")
    say(f"Accuracy over all {len(names)} classes: {accuracy:.1%}, in {time.monotonic() - start:.0f} s.")
    say(f"What it recognised: {sheet} (green right, red wrong, amber unknown)")
    say(f"Store: {store}    Report: edge-cl log --report --store {store}")
    say("Next, with your own pictures, one sub-folder a class:")
    say("    .venv/bin/edge-cl learn --new-classes MY_PICTURES/ --store my_store", style="bold")
    say("    .venv/bin/edge-cl predict SOME_PICTURE.jpg --store my_store", style="bold")


if __name__ == "__main__":
    main()
