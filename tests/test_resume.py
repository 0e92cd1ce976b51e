"""An interrupted learn goes on where it was, or begins anew where the job has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from small import CONFIG, copied, hashes, picture, write_looks
from two_tasks import FIRST, SECOND, THIRD, work

from edge_cl import LearnConfig, Learner
from edge_cl.checkpoint import Checkpoint
from edge_cl.errors import EdgeClError, FolderError
from edge_cl.export.bundle import read_manifest


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


def pictures_of(learner: Learner) -> dict[str, int]:
    return {c["name"]: c["pictures"] for c in learner.classes()}


@pytest.mark.parametrize("update", [False, True], ids=["new classes", "more pictures of known ones"])
@pytest.mark.parametrize("moment", ["commit", "export"])
def test_a_learn_cut_off_after_its_commit_is_not_learned_twice(
    taught: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, update: bool
) -> None:
    pictures = write_looks(tmp_path / "pictures", SECOND if update else THIRD, first=500)
    learner, bundle = copied(taught, tmp_path / "store"), tmp_path / "bundle"
    learn = partial(learner.learn, pictures, CONFIG, update=update, export=bundle)
    with pytest.raises(Interruption), monkeypatch.context() as patch:
        if moment == "commit":
            patch.setattr(Checkpoint, "empty", raise_interruption)
        learn(progress=interrupt("export", 0))
    committed, counts = learner.store.head, pictures_of(learner)
    assert committed.parent == taught.store.head.number
    assert not (bundle / "manifest.json").exists()

    learner.prune(1)  # deletes what the learn went on with, but not that something is left to do
    first = min(pictures.rglob("*.png"))
    first.rename(first.with_name("zz.png"))  # the same pictures, whatever they are called
    report = learn()
    assert learner.store.head == committed and pictures_of(learner) == counts
    assert report.version == committed.number and report.export is not None
    assert f"Version {committed.number} has learned these very pictures already" in report.notes[-1]
    assert read_manifest(bundle).version == committed.number
    assert work(learner) == []


@pytest.mark.parametrize("moment", [("head", 1), ("export", 0)], ids=["before its commit", "after it"])
def test_negatives_alone_go_on_where_they_were(taught: Learner, tmp_path: Path, moment: tuple[str, int]) -> None:
    learner, bundle = copied(taught, tmp_path / "store"), tmp_path / "bundle"
    learn = partial(learner.learn, config=CONFIG, negatives=write_looks(tmp_path / "nothing", THIRD), export=bundle)
    with pytest.raises(Interruption):
        learn(progress=interrupt(*moment))
    assert work(learner)
    assert learn().version == learner.store.head.number == read_manifest(bundle).version == 3
    assert work(learner) == []


def test_what_changes_nothing_leaves_an_earlier_learn_its_export(taught: Learner, tmp_path: Path) -> None:
    learner, bundle = copied(taught, tmp_path / "store"), tmp_path / "bundle"
    pictures = write_looks(tmp_path / "third", THIRD)
    with pytest.raises(Interruption):
        learner.learn(pictures, CONFIG, export=bundle, progress=interrupt("export", 0))
    assert learner.learn(write_looks(tmp_path / "second", SECOND), CONFIG, update=True).images == 0
    report = learner.learn(pictures, CONFIG, export=bundle)
    assert "has learned these very pictures already" in report.notes[-1]
    assert read_manifest(bundle).version == learner.store.head.number == 3


def raise_interruption(_: Checkpoint) -> None:
    raise Interruption


def test_a_learn_that_is_done_is_refused_or_changes_nothing(taught: Learner, tmp_path: Path) -> None:
    learner, pictures = copied(taught, tmp_path / "store"), write_looks(tmp_path / "third", THIRD)
    learner.learn(pictures, CONFIG)
    done = learner.store.head
    with pytest.raises(FolderError, match="already known"):
        learner.learn(pictures, CONFIG)
    learner.learn(pictures, CONFIG, update=True)
    assert learner.store.head == done
    (learner.store.work / f"{done.parent:06d}-{'0' * 64}").mkdir()  # of another job
    with pytest.raises(FolderError, match="already known"):
        learner.learn(pictures, CONFIG)


def test_a_refused_learn_goes_on_with_another_limit(taught: Learner, tmp_path: Path) -> None:
    learner, pictures = copied(taught, tmp_path / "store"), write_looks(tmp_path / "third", THIRD)
    with pytest.raises(EdgeClError, match="would cost the old ones"):
        learner.learn(pictures, replace(CONFIG, max_forgetting=-101.0))
    steps: list[str] = []
    learner.learn(pictures, CONFIG, progress=lambda name, done, total: steps.append(name))
    assert "train" not in steps and "prefix" not in steps


def test_prune_leaves_what_an_interrupted_learn_goes_on_with(taught: Learner, tmp_path: Path) -> None:
    """Features of single pictures go with the last way to go on: with a newer version, or where nothing old stays."""
    learner, pictures = copied(taught, tmp_path / "store"), write_looks(tmp_path / "third", THIRD)

    def cut() -> None:
        with pytest.raises(Interruption):
            learner.learn(pictures, CONFIG, progress=interrupt("head", 2))
        assert work(learner)

    cut()
    learner.prune(2)
    assert work(learner)
    learner.rename(next(iter(FIRST)), "renamed")  # now the learn would begin anew
    held = sum(path.stat().st_size for path in work(learner) if path.is_file())
    assert 0 < held <= learner.prune(9, dry_run=True).freed_bytes == learner.prune(9).freed_bytes
    assert work(learner) == []
    cut()
    learner.prune(1)
    assert work(learner) == []


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
