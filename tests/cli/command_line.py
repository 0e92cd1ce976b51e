"""The command line as a process, and the classes that its tests teach."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from small import BACKBONE, IMAGE_SIZE, Run

FIRST = {"nut": 0, "bolt": 5, "washer": 10}
SECOND = {"apple": 14, "pear": 2}


def init_options(made: Path) -> list[object]:
    return ["--backbone", BACKBONE, "--weights", made / "weights.safetensors", "--image-size", IMAGE_SIZE]


def script(*args: object, cwd: Path, **environment: str) -> Run:
    """Run the installed `edge-cl` as its own process."""
    command = [str(Path(sys.executable).parent / "edge-cl"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})
    return Run(done.returncode, done.stdout, done.stderr)


def flat(text: str) -> str:
    """Return text as one line."""
    return " ".join(text.split())
