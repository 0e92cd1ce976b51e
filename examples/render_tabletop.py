"""Render household things on a table, as a robot's camera sees them, into OUT/{train,test}/CLASS/NNN.jpg.

Shapes, materials, labels and rooms are all made by this program. It needs `pip install .[render]` (Blender
as a Python module, Python 3.11), no display and no GPU. The same command gives the same pictures.

    python examples/render_tabletop.py --out my_pictures --classes mug bowl --train 100 --test 30
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SPLITS = ("train", "test")


def arguments(names: list[str], unlabelled: list[str]) -> argparse.Namespace:
    """Read the command line; `names` are rendered if nothing else is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tabletop", help="folder to write to")
    choices = names + unlabelled
    parser.add_argument(
        "--classes", nargs="+", default=names, choices=choices, metavar="CLASS", help=", ".join(choices)
    )
    parser.add_argument("--train", type=int, default=40, help="training pictures a class")
    parser.add_argument("--test", type=int, default=15, help="test pictures a class")
    parser.add_argument("--first", type=int, default=0, help="number of the first picture, to share work or add more")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 128), metavar=("WIDTH", "HEIGHT"), help="pixels")
    parser.add_argument("--samples", type=int, default=14, help="light paths a pixel, before denoising")
    parser.add_argument("--quality", type=int, default=80, help="JPEG quality")
    parser.add_argument("--seed", type=int, default=1993)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; does not change the pictures")
    parser.add_argument("--keep", action="store_true", help="leave pictures that are already there")
    return parser.parse_args()


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Silence the renderer's own messages, which it writes below Python."""
    sys.stdout.flush()
    saved = os.dup(1)
    with Path(os.devnull).open("w") as sink:
        os.dup2(sink.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def main() -> None:
    """Render all pictures that were asked for."""
    try:
        from tabletop.scene import catalogue, picture
    except ImportError as error:
        sys.exit(f"{error}: rendering needs Blender as a module; with Python 3.11 run: pip install '.[render]'")
    args = arguments(list(catalogue.KINDS), list(catalogue.THINGS))
    numbers = {split: range(args.first, args.first + getattr(args, split)) for split in SPLITS}
    todo = [(split, name, index) for name in args.classes for split in SPLITS for index in numbers[split]]
    start, made = time.monotonic(), 0
    for split, name, index in todo:
        path = args.out / split / name / f"{index:03d}.jpg"
        if args.keep and path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = picture.generator(args.seed, split, name, index)
        with quiet_stdout():
            image = picture.take(rng, name, tuple(args.size), args.samples, args.threads)
        image.save(path, quality=args.quality, optimize=True)
        made += 1
        pace_s = (time.monotonic() - start) / made
        print(f"{path}  {made}/{len(todo)}  {pace_s:.1f} s a picture", file=sys.stderr)


if __name__ == "__main__":
    main()
