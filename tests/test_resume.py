"""An interrupted learn goes on where it was, or begins anew where the job has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small import CONFIG, copied, hashes, picture, write_looks
from two_tasks import THIRD, work

from edge_cl import LearnConfig, Learner


class Interruption(BaseException):
    """Stands for Ctrl-C at a known moment."""


def interrupt(stage: str, step: int) -> Callable[[str, int, int], None]:
    def progress(name: str, done: int, total: int) -> None:
        if (name, done) == (stage, step):
            raise Interruption

    return progress


MOMENTS = {
    "shared, epoch 1": (("shared", 1), "shared", [2, 3]),
    "shared, epoch 2": (("shared", 2), "shared", [3]),
    "shared, last epoch": (("shared", 3), "shared", []),
    "prefix": (("prefix", 1), "prefix", [2, 1, 1]),  # the other view, and the hold-out pictures on either square
    "train, epoch 1": (("train", 1), "train", [2, 3]),
    "train, last epoch": (("train", 3), "train", []),
    "head": (("head", 2), "train", []),
}


@pytest.mark.parametrize(("moment", "stage", "redone"), MOMENTS.values(), ids=list(MOMENTS))
def test_interrupted_learn_resumes(
    taught: Learner, tmp_path: Path, moment: tuple[str, int], stage: str, redone: list[int]
) -> None:
    pictures = write_looks(tmp_path / "third", THIRD)
    config = replace(CONFIG, epochs=3, shared_update="correct")
    whole, broken = copied(taught, tmp_path / "whole"), copied(taught, tmp_path / "broken")
    whole.learn(pictures, config)
    before = broken.store.head
    with pytest.raises(Interruption):
        broken.learn(pictures, config, progress=interrupt(*moment))
    assert broken.store.head == before
    assert broken.store.check() == []
    assert work(broken)

    steps: list[tuple[str, int]] = []
    again = Learner.open(broken.store.path, device="cpu")
    again.learn(pictures, config, progress=lambda name, done, total: steps.append((name, done)))
    assert [done for name, done in steps if name == stage] == redone
    assert hashes(again.store.head) == hashes(whole.store.head)
    assert work(again) == []


CHANGES: dict[str, Callable[[Path], LearnConfig]] = {
    "settings": lambda pictures: replace(CONFIG, seed=9),
    "pictures": lambda pictures: _with_another_picture(pictures),
}


def _with_another_picture(pictures: Path) -> LearnConfig:
    picture(17, 999).save(pictures / next(iter(THIRD)) / "another.png")
    return CONFIG


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_changed_job_starts_anew(taught: Learner, tmp_path: Path, change: Callable[[Path], LearnConfig]) -> None:
    pictures = write_looks(tmp_path / "third", THIRD)
    whole, broken = copied(taught, tmp_path / "whole"), copied(taught, tmp_path / "broken")
    with pytest.raises(Interruption):
        broken.learn(pictures, CONFIG, progress=interrupt("head", 2))
    config = change(pictures)
    for learner in (whole, broken):
        learner.learn(pictures, config)
    assert hashes(broken.store.head) == hashes(whole.store.head)
    assert work(broken) == []
