"""Checkpoints: what was saved comes back exactly, or counts as absent."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stores import CRASHES, cut_power, flip

from edge_cl.checkpoint import Checkpoint, discard, size_of, unfinished
from edge_cl.errors import StoreError
from edge_cl.version import JsonObject

pytestmark = pytest.mark.usefixtures("no_fsync")

KEY: JsonObject = {"epochs": 3, "pictures": ["ab", "cd"]}
TENSORS = {
    "tokens": np.arange(12, dtype=np.float16).reshape(3, 4).T,
    "step": np.array(7),
    "none": np.zeros((0, 2), np.float32),
}


def save(directory: Path, epoch: int) -> None:
    Checkpoint(directory, KEY).save("train", {"w": np.full(1000, epoch)}, {"epoch": epoch})


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


def test_stages_come_back_exactly(tmp_path: Path) -> None:
    Checkpoint(tmp_path / "work", KEY).save("prefix", TENSORS, {"loss": 0.1, "classes": ["a", "é"]})
    checkpoint = Checkpoint(tmp_path / "work", dict(reversed(list(KEY.items()))))
    assert "prefix" in checkpoint
    assert "train" not in checkpoint
    tensors, info = checkpoint.load("prefix")
    assert info == {"loss": 0.1, "classes": ["a", "é"]}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, TENSORS[name], strict=True)


def test_saving_again_replaces(tmp_path: Path) -> None:
    for epoch in range(3):
        save(tmp_path, epoch)
    assert len(files(tmp_path)) == 1
    tensors, info = Checkpoint(tmp_path, KEY).load("train")
    assert info == {"epoch": 2}
    assert (tensors["w"] == 2).all()


def test_stage_without_tensors(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, KEY)
    checkpoint.save("scan", {}, ["a"])
    assert checkpoint.load("scan") == ({}, ["a"])


@pytest.mark.parametrize("key", [{}, KEY | {"epochs": 4}, KEY | {"pictures": ["cd", "ab"]}])  # type: ignore[operator]
def test_another_key_discards(tmp_path: Path, key: JsonObject) -> None:
    save(tmp_path, 1)
    (tmp_path / "foreign").write_text("stays")
    assert "train" not in Checkpoint(tmp_path, key)
    assert files(tmp_path) == [tmp_path / "foreign"]
    assert "train" not in Checkpoint(tmp_path, KEY)


def test_discard(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, KEY)
    discard([checkpoint.directory])
    save(tmp_path, 1)
    discard(unfinished(tmp_path))
    assert list(tmp_path.iterdir()) == []
    save(tmp_path, 2)
    assert "train" in checkpoint


def test_what_an_interrupted_job_left_is_told_by_the_version_that_it_began_from(tmp_path: Path) -> None:
    """An emptied checkpoint, whose job is committed but not all done, counts; another job's goes when one begins."""
    former = tmp_path / ("0" * 64)  # as earlier releases named it
    former.mkdir()
    (tmp_path / "000002-notes").mkdir()
    assert unfinished(tmp_path) == [former] and unfinished(tmp_path, 2) == []
    checkpoint = Checkpoint(tmp_path, KEY, 2)
    assert unfinished(tmp_path) == []
    checkpoint.save("train", TENSORS)
    assert size_of(checkpoint.directory) > sum(tensor.nbytes for tensor in TENSORS.values())
    (stage,) = checkpoint.directory.iterdir()
    assert size_of(checkpoint.directory) == size_of(stage) == stage.stat().st_size
    assert size_of(checkpoint.directory / "gone") == 0
    checkpoint.empty()
    assert "train" not in checkpoint and size_of(checkpoint.directory) == 0
    assert unfinished(tmp_path, 2) == [checkpoint.directory] and unfinished(tmp_path, 3) == []


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"epoch", b"epocj")),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.unlink(),
    ],
    ids=["bit", "cut", "info", "empty", "noise", "directory", "missing"],
)
def test_damaged_stage_is_absent(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    save(tmp_path, 1)
    damage(*files(tmp_path))
    checkpoint = Checkpoint(tmp_path, KEY)
    assert "train" not in checkpoint
    with pytest.raises(KeyError, match="train"):
        checkpoint.load("train")


@pytest.mark.parametrize("lost", CRASHES)
def test_crash_leaves_the_old_or_the_new_stage(tmp_path: Path, lost: str) -> None:
    save(tmp_path / "base", 1)
    seen = set()
    for step in itertools.count(1):
        path = tmp_path / str(step)
        shutil.copytree(tmp_path / "base", path)
        end = cut_power(lambda path: save(path, 2), path, step, lost)
        tensors, info = Checkpoint(path, KEY).load("train")
        assert info in ([{"epoch": 2}] if end == "done" else [{"epoch": 1}, {"epoch": 2}])
        assert isinstance(info, dict)
        seen.add(info["epoch"])
        assert (tensors["w"] == info["epoch"]).all()
        save(path, 3)
        assert Checkpoint(path, KEY).load("train")[1] == {"epoch": 3}
        if end == "done":
            break
    assert step > 3
    assert seen == {1, 2}


@pytest.mark.parametrize("stage", ["", "../x", "a/b", "a b"])
def test_stage_names_are_words(tmp_path: Path, stage: str) -> None:
    with pytest.raises(ValueError, match="cannot name a stage"):
        Checkpoint(tmp_path, KEY).save(stage, {})


def test_unwritable_directory_is_explained(tmp_path: Path) -> None:
    (tmp_path / "work").write_text("a file")
    with pytest.raises(StoreError, match="could not be written"):
        Checkpoint(tmp_path / "work", KEY).save("train", {})
