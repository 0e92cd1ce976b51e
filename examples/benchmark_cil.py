"""The class-incremental benchmark of docs/accuracy.md: three data sets, three seeds, every method, one command.

    python examples/benchmark_cil.py DATA --backbone vit_tiny_patch16_224 --weights FILE --image-size 128

DATA holds grocery81/, clothing10/ and trashnet6/, each with train/<class>/ and test/<class>/. Tasks are of nine, two
and two classes. What has been finished is not done again; every data set's table, CSV, JSON and plot go to OUTPUT/NAME.
Further options go to `edge-cl benchmark accuracy`, whose --help lists them: --method, --part, --epochs, the backbone's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

SETS = {"grocery81": "9", "clothing10": "2", "trashnet6": "2"}
SEEDS = ("1993", "1994", "1995")


def main() -> None:
    """Run the benchmark on every data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmark_cil"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", default=list(SEEDS))
    options, further = parser.parse_known_args()
    for name in options.sets:
        seeds = [part for seed in options.seeds for part in ("--seed", seed)]
        command = [sys.executable, "-m", "edge_cl.cli", "benchmark", "accuracy", str(options.data / name)]
        command += ["--increment", SETS[name], *seeds, "--output", str(options.output / name), *further]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
