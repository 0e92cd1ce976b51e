"""What is told while pictures are read, learned and judged, and that the pictures are read no more than once."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from small import BACKBONE, CONFIG, IMAGE_SIZE, copied, edge_cl, write_looks, write_weights
from two_tasks import FIRST, THIRD, model

from edge_cl import Learner, intake, pictures
from edge_cl.pictures import read_folder


class Told:
    """Progress that is kept: (done, total) by stage."""

    def __init__(self) -> None:
        self.steps: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.steps[stage].append((done, total))


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Gets every file that is checked."""
    paths, check = list[Path](), pictures.check_picture

    def noted(path: Path) -> Any:
        paths.append(path)
        return check(path)

    monkeypatch.setattr(pictures, "check_picture", noted)
    return paths


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> float:
    """Have the pictures of a folder take some time to be checked; return how many seconds at least."""
    least_s, read = 0.5, pictures.read_folder

    def waited(*args: Any, **options: Any) -> Any:
        time.sleep(least_s)
        return read(*args, **options)

    monkeypatch.setattr(intake, "read_folder", waited)
    return least_s


def every(total: int) -> list[tuple[int, int]]:
    return [(done, total) for done in range(1, total + 1)]


def test_every_picture_that_is_checked_and_decoded_is_told_of(learner: Learner, tmp_path: Path) -> None:
    folder = write_looks(tmp_path / "third", THIRD)
    strange = write_looks(tmp_path / "strange", {"x": 17}, 5)
    (folder / "notes").mkdir()
    (next(folder.iterdir()) / "broken.jpg").write_bytes(b"no picture")
    told = Told()
    report = learner.learn(folder, CONFIG, negatives=strange, update=True, progress=told)
    assert told.steps["scan"] == every(report.images + 1)
    assert told.steps["negatives"] == every(5)
    assert told.steps["decode"] == every(report.images + 5)
    looked = Told()
    learner.look(folder, update=True, progress=looked)
    assert looked.steps == {"scan": every(report.images + 1)}


def test_every_picture_that_is_judged_is_told_of(learner: Learner, fresh: Path) -> None:
    told = Told()
    images = learner.evaluate(fresh / "two", progress=told)["images"]
    assert told.steps["scan"] == every(images)
    assert told.steps["answer"][-1] == (images, images)


def test_every_picture_that_is_answered_for_is_told_of(learner: Learner, fresh: Path) -> None:
    told = Told()
    answers = learner.predict(fresh / "two", progress=told).answers
    assert told.steps["scan"] == every(len(answers))
    assert told.steps["answer"][-1] == (len(answers), len(answers))
    run = edge_cl("predict", fresh / "two", "--store", learner.store.path)
    assert (len(run.out.splitlines()), run.err) == (len(answers), "")


def test_a_folder_that_was_read_before_is_learned_as_if_read_anew(
    taught: Learner, tmp_path: Path, checked: list[Path]
) -> None:
    folder = write_looks(tmp_path / "third", THIRD)
    learner, other = (copied(taught, tmp_path / name) for name in ("store", "other"))
    learner.learn(folder, CONFIG)
    once = len(checked)
    read = read_folder(folder)
    report = other.learn(read, CONFIG)
    assert len(checked) == 2 * once
    assert report.images == once
    assert other.store.head.objects["statistics"] == learner.store.head.objects["statistics"]
    assert model(other).names == model(learner).names


def test_the_first_learn_reads_the_pictures_once(tmp_path: Path, checked: list[Path]) -> None:
    folder, weights = write_looks(tmp_path / "first", FIRST), write_weights(tmp_path / "weights.safetensors")
    options = ("--backbone", BACKBONE, "--weights", weights, "--image-size", IMAGE_SIZE, "--method", "prototype")
    strange = write_looks(tmp_path / "strange", {"x": 17}, 5)
    command = ("learn", "--new-classes", folder, "--negatives", strange, "--store", tmp_path / "store", *options)
    run = edge_cl(*command, "--json")
    assert run.json["images"] + 5 == len(checked) == len(set(checked))
    assert run.json["unknown"]["false_accepts"] is not None
    assert run.err.index("check the pictures ...") < run.err.index("making one") < run.err.index("decode the pictures")


def test_the_first_learn_counts_the_reading_as_its_scan(tmp_path: Path, slowly: float) -> None:
    folder, weights = write_looks(tmp_path / "first", FIRST), write_weights(tmp_path / "weights.safetensors")
    options = ("--backbone", BACKBONE, "--weights", weights, "--image-size", IMAGE_SIZE, "--method", "prototype")
    run = edge_cl("learn", "--new-classes", folder, "--store", tmp_path / "store", *options)
    pattern = r" time (\d+\.\d) s, of it scan (\d+\.\d)(?:, head (\d+\.\d))?, start and finish (\d+\.\d) "
    shown = re.search(pattern, " ".join(run.out.split()))  # the line breaks where head is named too
    assert shown is not None, run.out  # stages that took no time are not named
    total, *stages = (float(number or 0) for number in shown.groups())
    assert total == pytest.approx(sum(stages), abs=0.25)  # each is rounded to 0.1
    assert slowly <= float(shown[2]) <= float(shown[1])
