"""Teach a folder data set class by class through the command line, and print accuracy after every learn.

    python examples/stream.py [DATA] [--increment N | --sizes 1,2,30,48] [--learn="--schedule joint"] [init options]

DATA holds train/<class>/ and test/<class>/; without it, the tabletop pictures that ship with edge-cl are taught. The
class order is shuffled by the seed. At the end every answering rule is measured on the same store.
"""

from __future__ import annotations

import argparse
import json
import shlex
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from edge_cl.benchmark import Stream, read_parts, run

TABLETOP = Path(__file__).parent / "tabletop"
RULES = ("routed", "base", "published")


def main() -> None:
    """Run one stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=TABLETOP)
    parser.add_argument("--increment", type=int, default=4, help="classes a task")
    parser.add_argument("--sizes", help="classes of each task, for example 1,2,30,48")
    parser.add_argument("--seed", type=int, default=1993)
    parser.add_argument("--device", default="auto", help="of every command")
    parser.add_argument("--learn", default="", help="further options of edge-cl learn")
    options, init = parser.parse_known_args()
    sizes = [int(size) for size in options.sizes.split(",")] if options.sizes else [options.increment]
    stream = Stream.of(read_parts(options.data), sizes, options.seed)
    curve, seconds = [], []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        store = ("--store", place / "store", "--device", options.device)
        run("init", *store, *init)
        for k, task in enumerate(stream.tasks):
            train = stream.folder("train", task, place)
            further = ("--seed", str(options.seed), *shlex.split(options.learn))
            learned = run("learn", "--new-classes", train, *further, *store)
            test = stream.folder("test", stream.known(k), place)
            curve.append(run("eval", test, *store)["accuracy"])
            seconds.append(learned["seconds"]["total"])
            row = {"task": k, "classes": len(task), "seconds": seconds[-1], "accuracy": curve[-1]}
            print(json.dumps({**row, "forgetting": learned["forgetting"], "peak_mb": learned["peak_memory_mb"]}))
        results = {rule: run("eval", test, "--rule", rule, *store) for rule in RULES}
    tasks = "1 task" if len(curve) == 1 else f"{len(curve)} tasks"
    title = f"{options.data.name}, {tasks}: last {curve[-1]:.1%}, average {np.mean(curve):.1%}"
    table = Table(title=title, box=None)
    for column in ("rule", "accuracy", "mean over classes", "seconds"):
        table.add_column(column)
    for rule, result in results.items():
        table.add_row(rule, f"{result['accuracy']:.1%}", f"{result['macro_accuracy']:.1%}", f"{result['seconds']:.0f}")
    Console().print(table)
    summary = {"last": curve[-1], "average": float(np.mean(curve)), "slowest_s": max(seconds), "total_s": sum(seconds)}
    print(json.dumps({**summary, "rules": {rule: result["accuracy"] for rule, result in results.items()}}))


if __name__ == "__main__":
    main()
