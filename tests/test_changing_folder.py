"""A folder that changes while it is learned: each picture is learned as it was checked, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import CONFIG, copied, hashes, picture, write_looks
from two_tasks import FIRST, SECOND, THIRD, model, work

from edge_cl import Learner, learning
from edge_cl.errors import FolderError
from edge_cl.pictures import read_folder, split_hold_out

CHANGED, GONE = "another picture since it was checked", "missing, or a link to nothing"
Disturb = Callable[[Callable[[], object]], None]


@pytest.fixture
def once_checked(monkeypatch: pytest.MonkeyPatch) -> Disturb:
    """Have something happen between the check of the pictures and their decoding."""

    def disturb(happens: Callable[[], object]) -> None:
        make_plan = learning.make_plan

        def disturbed(*args: Any) -> Any:
            monkeypatch.setattr(learning, "make_plan", make_plan)  # once
            happens()
            return make_plan(*args)

        monkeypatch.setattr(learning, "make_plan", disturbed)

    return disturb


def replaced(path: Path, seed: int = 500) -> None:
    """Put another picture in the place of one, as a recorder that uses its names again does."""
    new = path.with_suffix(".part")
    picture(11, seed).save(new, "PNG")
    new.replace(path)


def test_what_goes_or_changes_once_checked_is_skipped(taught: Learner, tmp_path: Path, once_checked: Disturb) -> None:
    learner, folder = copied(taught, tmp_path / "store"), write_looks(tmp_path / "third", THIRD)
    train, held = split_hold_out(read_folder(folder).pictures)
    lost, others = train[0].path, (train[1].path, held[0].path)

    def happens() -> None:
        lost.unlink()
        for i, path in enumerate(others):
            replaced(path, 500 + i)

    once_checked(happens)
    report = learner.learn(folder, CONFIG)
    assert report.images == 13
    assert report.skipped == sorted(
        ({"path": str(path), "why": CHANGED if path in others else GONE} for path in (lost, *others)),
        key=lambda item: item["path"],
    )
    learned = model(learner)
    behind = {sha for c in learned.classes if c.name in THIRD for sha in learned.fingerprints[c.id]}
    gone = {train[0].sha256, held[0].sha256, train[1].sha256}
    assert behind == {p.sha256 for p in (*train, *held)} - gone
    assert learned.statistics.counts.sum() == 32 + 13
    assert sum(c.pictures for c in learned.classes) == 32 + 13
    again = learner.learn(folder, CONFIG, update=True)  # what took a file's place is a picture like any other
    assert (again.images, again.learned_before, again.skipped) == (2, 13, [])


def test_what_happens_later_changes_nothing(taught: Learner, tmp_path: Path) -> None:
    """Once its pictures are decoded, a learn needs the folder no more."""
    folder = write_looks(tmp_path / "third", THIRD)
    learner, other = copied(taught, tmp_path / "store"), copied(taught, tmp_path / "other")
    other.learn(folder, CONFIG)

    def progress(stage: str, done: int, total: int) -> None:
        if stage in {"scan", "decode"}:
            return
        for i, path in enumerate(sorted(folder.glob("*/*.png"))):
            replaced(path) if i % 2 else path.unlink()

    assert learner.learn(folder, CONFIG, progress=progress).skipped == []
    assert hashes(learner.store.head) == hashes(other.store.head)


def test_a_class_that_goes_is_not_learned(taught: Learner, tmp_path: Path, once_checked: Disturb) -> None:
    """Neither where a hold-out picture of it is left alone."""
    learner, folder = copied(taught, tmp_path / "store"), write_looks(tmp_path / "third", THIRD)
    name = sorted(THIRD)[0]
    train, held = split_hold_out([p for p in read_folder(folder).pictures if p.label == name])
    once_checked(lambda: [p.path.unlink() for p in train])
    report = learner.learn(folder, CONFIG)
    assert (report.classes, report.images) == ([n for n in THIRD if n != name], 8)
    assert {"path": str(held[0].path), "why": "no other of its class is left"} in report.skipped
    assert len(report.skipped) == 8
    assert name not in report.known_classes


def test_a_known_class_that_goes_is_not_updated(taught: Learner, tmp_path: Path, once_checked: Disturb) -> None:
    learner, folder = copied(taught, tmp_path / "store"), write_looks(tmp_path / "more", FIRST, 3, first=40)
    name, other = sorted(FIRST)
    once_checked(lambda: [path.unlink() for path in (folder / name).iterdir()])
    report = learner.learn(folder, CONFIG, update=True)
    assert (report.updated_classes, report.images) == ([other], 3)


def test_what_a_learn_has_done_of_other_pictures_is_done_again(
    taught: Learner, tmp_path: Path, once_checked: Disturb
) -> None:
    """It is cut off while a class is away, which is back when the same command is given again."""
    folder, away = write_looks(tmp_path / "third", {**THIRD, "more": 13}), tmp_path / "away"
    learner, other = copied(taught, tmp_path / "store"), copied(taught, tmp_path / "other")
    other.learn(folder, CONFIG)
    once_checked(lambda: (folder / "more").rename(away))

    def cut_off(stage: str, done: int, total: int) -> None:
        if stage == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn(folder, CONFIG, progress=cut_off)
    away.rename(folder / "more")
    report = learner.learn(folder, CONFIG)
    assert (report.images, report.skipped) == (24, [])
    assert hashes(learner.store.head) == hashes(other.store.head)


@pytest.mark.parametrize("what", ["some of new classes", "a new class", "some of known classes", "negatives"])
def test_what_comes_back_is_learned(taught: Learner, tmp_path: Path, once_checked: Disturb, what: str) -> None:
    """By the very command before which it went, and what was learned of the rest is not learned again."""
    learner, away = copied(taught, tmp_path / "store"), tmp_path / "away"
    folder = write_looks(tmp_path / "folder", FIRST if "known" in what else THIRD, first=40)
    nothing = write_looks(tmp_path / "nothing", {"x": 15}, 5)
    taken = nothing / "x" if what == "negatives" else folder / min(path.name for path in folder.iterdir())
    lost = sorted(taken.iterdir())[: None if what == "a new class" else 4]
    away.mkdir()
    once_checked(lambda: [path.rename(away / path.name) for path in lost])
    first = learner.learn(folder, CONFIG, update=True, negatives=nothing)
    assert len(first.skipped) == len(lost) and work(learner) == []
    still = learner.learn(folder, CONFIG, update=True, negatives=nothing)
    assert (still.version, still.images) == (first.version, 0)
    for path in away.iterdir():
        path.rename(taken / path.name)
    again = learner.learn(folder, CONFIG, update=True, negatives=nothing)
    assert (again.version, again.images + first.images) == (4, 16)
    assert (again.classes == [taken.name]) == (what == "a new class")
    assert len(model(learner).negatives) == 5
    assert learner.learn(folder, CONFIG, update=True, negatives=nothing).version == 4


def test_where_all_go_nothing_is_learned(taught: Learner, tmp_path: Path, once_checked: Disturb) -> None:
    learner, folder = copied(taught, tmp_path / "store"), write_looks(tmp_path / "third", THIRD)
    once_checked(lambda: [replaced(path) for path in folder.glob("*/*.png")])
    head = learner.store.head
    with pytest.raises(FolderError, match="no picture is any more what it was when it was checked") as caught:
        learner.learn(folder, CONFIG)
    assert "at rest" in caught.value.mend
    assert learner.store.head == head


def test_negatives_that_go_are_skipped(taught: Learner, tmp_path: Path, once_checked: Disturb) -> None:
    learner, nothing = copied(taught, tmp_path / "store"), write_looks(tmp_path / "nothing", {"x": 7, "y": 9}, 4)
    lost, other = nothing / "x" / "000.png", nothing / "y" / "000.png"
    once_checked(lambda: (lost.unlink(), replaced(other)))
    report = learner.learn(write_looks(tmp_path / "third", THIRD), CONFIG, negatives=nothing)
    assert report.skipped == [{"path": str(lost), "why": GONE}, {"path": str(other), "why": CHANGED}]
    assert (report.classes, report.images) == (sorted(THIRD), 16)
    assert len(model(learner).negatives) == len(model(learner).closer_negatives) == 6
    head = learner.store.head
    once_checked(lambda: [path.unlink() for path in nothing.glob("*/*.png")])
    with pytest.raises(FolderError, match="no picture is any more"):
        learner.learn(tmp_path / "third", CONFIG, update=True, negatives=nothing)
    assert learner.store.head == head


# -- negatives that were learned before ----------------------------------


def test_negatives_count_once(taught: Learner, tmp_path: Path) -> None:
    """Given again, whatever else is asked for, they change nothing; of more, those that are new are kept."""
    learner, nothing = copied(taught, tmp_path / "store"), write_looks(tmp_path / "nothing", {"x": 7, "w": 7}, 6)
    folder = write_looks(tmp_path / "first", FIRST)  # the same six lie in two folders
    assert learner.learn(folder, CONFIG, update=True, negatives=nothing).version == 3
    write_looks(nothing, {"y": 7}, 6)  # the same pictures under other names
    report = learner.learn(folder, CONFIG, update=True, negatives=nothing)
    assert (report.version, report.images, len(model(learner).negatives)) == (3, 0, 6)
    write_looks(nothing, {"z": 3}, 2, first=40)
    assert learner.learn(folder, CONFIG, update=True, negatives=nothing).version == 4
    kept = model(learner)
    assert len(kept.negatives) == len(kept.closer_negatives) == len(kept.negative_hashes) == 8
    assert learner.learn(write_looks(tmp_path / "third", THIRD), CONFIG, negatives=nothing).version == 5
    assert len(model(learner).negatives) == 8
    learner.forget([sorted(SECOND)[0]])
    assert learner.learn(folder, CONFIG, update=True, negatives=nothing).version == 6


def test_of_many_negatives_the_latest_are_kept(
    taught: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_cl import intake

    for module in (intake, learning):
        monkeypatch.setattr(module, "NEGATIVES", 5)
    learner, folder = copied(taught, tmp_path / "store"), write_looks(tmp_path / "first", FIRST)
    for first in (0, 20):
        nothing = write_looks(tmp_path / f"nothing {first}", {"x": 7}, 9, first=first)
        learner.learn(folder, CONFIG, update=True, negatives=nothing)
        kept = model(learner)
        assert len(kept.negatives) == len(set(kept.negative_hashes)) == 5
        assert set(kept.negative_hashes) <= {p.sha256 for p in read_folder(nothing).pictures}
        version = learner.store.head.number
        assert learner.learn(folder, CONFIG, update=True, negatives=nothing).version == version
