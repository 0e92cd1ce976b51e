"""What the command line is tried on: a store that knows three classes, and folders to go on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import FIRST, SECOND
from small import BACKBONE, CONFIG, IMAGE_SIZE, write_looks, write_weights

from edge_cl import Learner


@pytest.fixture(autouse=True)
def no_store_in_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGE_CL_STORE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds two files of weights, folders `first`, `second`, `fresh`, stores `vacant` and `store`, knowing `first`."""
    root = tmp_path_factory.mktemp("made")
    write_weights(root / "weights.safetensors")
    write_weights(root / "other.safetensors", seed=1)
    write_looks(root / "first", FIRST)
    write_looks(root / "second", SECOND)
    write_looks(root / "fresh", FIRST, 3, first=100)
    learner = Learner.init(
        root / "store",
        backbone=BACKBONE,
        weights=root / "weights.safetensors",
        image_size=IMAGE_SIZE,
        device="cpu",
    )
    shutil.copytree(root / "store", root / "vacant")
    learner.learn(root / "first", CONFIG, task="parts")
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of the store that knows the first classes."""
    return shutil.copytree(made / "store", tmp_path / "store")
