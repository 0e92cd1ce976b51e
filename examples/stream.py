"""Teach a folder data set class by class through the command line, and print accuracy after every learn.

    python examples/stream.py [DATA] [--increment N | --sizes 1,2,30,48] [--learn="--schedule joint"] [init options]

DATA holds train/<class>/ and test/<class>/; without it, the tabletop pictures that ship with edge-cl are taught. The
class order is shuffled by the seed. At the end every answering rule is measured on the same store.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

TABLETOP = Path(__file__).parent / "tabletop"
RULES = ("routed", "base", "published")


def edge_cl(*arguments: str | Path) -> Any:
    """Run one command and return its JSON."""
    command = [str(Path(sys.executable).parent / "edge-cl"), *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}")
    return json.loads(done.stdout)


def split(names: Sequence[str], sizes: Sequence[int]) -> Iterator[list[str]]:
    """Cut names into tasks of the given sizes; the last size repeats."""
    start = 0
    while start < len(names):
        size = sizes[0]
        yield list(names[start : start + size])
        start, sizes = start + size, sizes[1:] or sizes


def linked(data: Path, part: str, names: Sequence[str], scratch: Path) -> Path:
    """Make a folder of links to some classes of train or test."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    for name in names:
        if (data / part / name).is_dir():
            (folder / name).symlink_to((data / part / name).resolve())
    return folder


def main() -> None:
    """Run one stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=TABLETOP)
    parser.add_argument("--increment", type=int, default=4, help="classes a task")
    parser.add_argument("--sizes", help="classes of each task, for example 1,2,30,48")
    parser.add_argument("--seed", type=int, default=1993)
    parser.add_argument("--learn", default="", help="further options of edge-cl learn")
    options, init = parser.parse_known_args()
    sizes = [int(size) for size in options.sizes.split(",")] if options.sizes else [options.increment]
    names = sorted(path.name for path in (options.data / "train").iterdir())
    names = [names[i] for i in np.random.RandomState(options.seed).permutation(len(names))]
    tasks = list(split(names, sizes))
    curve, seconds = [], []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        store = ("--store", place / "store")
        edge_cl("init", *store, *init)
        for k, task in enumerate(tasks):
            train = linked(options.data, "train", task, place)
            learned = edge_cl(
                "learn", "--new-classes", train, "--seed", str(options.seed), *shlex.split(options.learn), *store
            )
            test = linked(options.data, "test", [name for t in tasks[: k + 1] for name in t], place)
            curve.append(edge_cl("eval", test, *store)["accuracy"])
            seconds.append(learned["seconds"]["total"])
            row = {"task": k, "classes": len(task), "seconds": seconds[-1], "accuracy": curve[-1]}
            print(
                json.dumps({**row, "forgetting": learned["forgetting"], "peak_mb": learned["peak_memory_mb"]}),
                flush=True,
            )
        results = {rule: edge_cl("eval", test, "--rule", rule, *store) for rule in RULES}
    table = Table(
        title=f"{options.data.name}, {len(tasks)} tasks: last {curve[-1]:.1%}, average {np.mean(curve):.1%}", box=None
    )
    for column in ("rule", "accuracy", "mean over classes", "seconds"):
        table.add_column(column)
    for rule, result in results.items():
        table.add_row(rule, f"{result['accuracy']:.1%}", f"{result['macro_accuracy']:.1%}", f"{result['seconds']:.0f}")
    Console().print(table)
    summary = {"last": curve[-1], "average": float(np.mean(curve)), "slowest_s": max(seconds), "total_s": sum(seconds)}
    print(json.dumps({**summary, "rules": {rule: result["accuracy"] for rule, result in results.items()}}))


if __name__ == "__main__":
    main()
