"""A vision transformer that learns in a second, pictures it can tell apart, and the command line in-process."""

from __future__ import annotations

import colorsys
import io
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from edge_cl.cli import main
from edge_cl.config import LearnConfig
from edge_cl.learner import Learner
from edge_cl.version import Version

BACKBONE = "test_vit"  # timm: 6 blocks of width 64, patches of 16 px
IMAGE_SIZE = 32
LOOKS = 18  # that `picture` can draw
CONFIG = LearnConfig(epochs=2, batch_size=8, views=1, branch_views=1, hold_out=0.25, adapt_pictures=8)
MEASURED = {"report.md", "metrics.json"}  # objects that hold seconds and megabytes, which no seed fixes


def write_weights(path: Path, *, seed: int = 0) -> Path:
    """Write random weights of the small vision transformer."""
    import timm
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = timm.create_model(BACKBONE, img_size=IMAGE_SIZE, num_classes=0)
        state = {name: value + 0.05 * torch.randn(value.shape) for name, value in vit.state_dict().items()}
    save_file(state, path)
    return path


def random_weights(name: str, **arguments: object) -> dict[str, Any]:
    """Return weights of a timm model that leave no parameter at a trivial zero or one."""
    import timm
    import torch

    generator = torch.Generator().manual_seed(0)
    state: dict[str, torch.Tensor] = timm.create_model(name, num_classes=0, **arguments).state_dict()
    return {
        key: 0.1 * torch.randn(value.shape, generator=generator) + (1.0 if "norm" in key and "weight" in key else 0.0)
        for key, value in state.items()
    }


def picture(look: int, seed: int, side: int = 40) -> Image.Image:
    """Return a noisy picture of upright stripes: nine hues, bright or dark."""
    generator = np.random.default_rng((look, seed))
    hue = (look // 2) / (LOOKS // 2) + generator.uniform(-0.01, 0.01)
    colour = np.asarray(colorsys.hsv_to_rgb(hue % 1, 0.95, 0.95 if look % 2 else 0.4))
    stripes = 1 + 0.1 * np.sin(np.arange(side) * 2 * np.pi / 8 + generator.uniform(0, 2 * np.pi))
    grid = colour * stripes[None, :, None] * np.ones((side, 1, 1))
    noisy = grid + generator.normal(0, 0.03, grid.shape)
    return Image.fromarray((noisy.clip(0, 1) * 255).astype(np.uint8))


def write_looks(root: Path, looks: Mapping[str, int], count: int = 8, *, first: int = 0) -> Path:
    """Write a folder of classes, each `count` pictures of one look, and return it; other `first`, other pictures."""
    for name, look in looks.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for seed in range(first, first + count):
            picture(look, seed).save(root / name / f"{seed:03}.png")
    return root


def new_learner(root: Path) -> Learner:
    """Make a store around the small vision transformer."""
    weights = write_weights(root / "weights.safetensors")
    return Learner.init(root / "store", backbone=BACKBONE, weights=weights, image_size=IMAGE_SIZE, device="cpu")


def copied(learner: Learner, path: Path) -> Learner:
    """Return a learner on a copy of another's store."""
    shutil.copytree(learner.store.path, path)
    return Learner.open(path, device="cpu")


def hashes(version: Version) -> dict[str, str]:
    """Return the SHA-256 of each object of a version that the seed fixes."""
    return {name: ref.sha256 for name, ref in version.objects.items() if name not in MEASURED}


def ids(learner: Learner) -> dict[str, int]:
    """Return the permanent ids of the classes known."""
    return {c["name"]: c["id"] for c in learner.classes()}


@dataclass(frozen=True)
class Run:
    """How a command ended: its exit status, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout, of a command that succeeded."""
        assert self.code == 0, self.err
        assert self.out.endswith("\n")
        value = json.loads(self.out)  # fails on a second value, and on any other text
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> str:
        """What the one JSON object on stdout says is wrong, of a command with --json that failed."""
        assert self.code in (1, 2, 130) and self.out.endswith("\n"), self.err
        value = json.loads(self.out)
        assert value.keys() == {"error", "mend"}
        assert value["mend"] in " ".join(self.err.split())
        assert isinstance(value["error"], str)
        return value["error"]


@contextmanager
def drawn() -> Iterator[list[Any]]:
    """Collect the figures that are saved meanwhile."""
    from matplotlib.figure import Figure

    figures: list[Any] = []
    with mock.patch.object(Figure, "savefig", lambda figure, *_, **__: figures.append(figure)):
        yield figures


def edge_cl(*args: object) -> Run:
    """Run `edge-cl ARGS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        mock.patch.object(sys, "argv", ["edge-cl", *map(str, args)]),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Run(code, out.getvalue(), err.getvalue())
