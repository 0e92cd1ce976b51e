"""A learn's time: what is predicted, what is left out to fit, and that training ends when it has to."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from small import CONFIG, edge_cl, new_learner, write_looks

from edge_cl.budget import FINISH_S, SQUARES, TRAINING, TimeBudget, Work
from edge_cl.cli_options import duration
from edge_cl.config import LearnConfig
from edge_cl.errors import UsageError

FIRST = Work(train=100, hold_out=10, prefix=0.5, adapts=True, together=True, distils=False)
LATER = replace(FIRST, together=False)
STATISTICS = replace(FIRST, adapts=False)
CONFIG10 = LearnConfig(epochs=10, views=3)


@pytest.mark.parametrize(
    ("work", "shared", "task", "own"),
    [
        (FIRST, 100 * 10 * TRAINING, 0, 0),
        (LATER, 0, 100 * 10 * 0.5 * TRAINING, 420 * 0.5),
        (replace(LATER, seen=0.5), 0, 100 * 10 * 0.25 * TRAINING, 420 * 0.5),
        (replace(LATER, distils=True), 100 * 10 * 0.5 * (TRAINING + 1), 100 * 10 * 0.5 * TRAINING, 420 * 0.5),
        (replace(FIRST, distils=True), 100 * 10 * (TRAINING + 0.5), 0, 0),
        (replace(FIRST, finer=1.2), 100 * 10 * (TRAINING + 1.2), 0, 0),
        (replace(FIRST, finer=2.4, training=1.4), 100 * 10 * (1.4 + 2.4), 0, 0),
        (replace(FIRST, seen=0.25), 100 * 10 * 0.25 * TRAINING, 0, 0),
        (STATISTICS, 0, 0, 0),
    ],
)
def test_passes_counted_by_hand(work: Work, shared: float, task: float, own: float) -> None:
    assert work.shared_passes(10) == pytest.approx(shared)
    assert work.task_passes(10) == pytest.approx(task)
    assert work.base_passes(3) == 100 * 4 + SQUARES * 10
    assert replace(work, view=0.5).base_passes(3) == pytest.approx(100 * 2 + SQUARES * 10)
    assert work.own_passes(3) == pytest.approx(own)
    assert replace(work, view=0.5).shared_passes(10) == pytest.approx(shared - 100 * 10 * 0.5 * work.finer)


def budget(seconds: float) -> TimeBudget:
    return TimeBudget(deadline=time.monotonic() + seconds, decode_s=0.01, pass_s=0.02)


def test_enough_time_changes_nothing() -> None:
    assert budget(3600).fit(LATER, CONFIG10) == CONFIG10


@pytest.mark.parametrize("work", [FIRST, LATER], ids=["first", "later"])
def test_less_time_takes_epochs_then_views_then_training(work: Work) -> None:
    fits = [budget(seconds).fit(work, CONFIG10) for seconds in range(60, 0, -1)]
    order = [(f.method == "cl-lora", f.views if f.method == "prototype" else f.epochs + f.views) for f in fits]
    assert order == sorted(order, reverse=True)
    epochs = {(f.epochs, f.views) for f in fits if f.method == "cl-lora"}
    assert {(9, 3), (3, 3), (3, 0)} <= epochs
    assert (fits[-1].method, fits[-1].views) == ("prototype", 0)


@pytest.mark.parametrize("work", [FIRST, LATER, STATISTICS])
@pytest.mark.parametrize("seconds", [15, 25, 40])
def test_what_is_chosen_is_predicted_to_fit(work: Work, seconds: int) -> None:
    given = budget(seconds)
    chosen = given.fit(work, CONFIG10)
    taken = replace(work, adapts=work.adapts and chosen.method != "prototype")
    assert given.learn_s(taken, chosen) <= seconds


def test_negatives_take_a_pass_on_either_square() -> None:
    given, work = budget(0), replace(LATER, negatives=50)
    more = SQUARES * 50 * 0.02
    decoded = 50 * 0.01  # once, before anything else
    assert given.learn_s(work, CONFIG10) == pytest.approx(given.learn_s(LATER, CONFIG10) + more + decoded)
    assert given.training_deadline(work, encoded=True) == pytest.approx(
        given.training_deadline(LATER, encoded=True) - more
    )
    enough = budget(FINISH_S + given.encoding_s(LATER, 3) + more / 2)
    assert enough.fit_views(LATER, 3) == 3 > enough.fit_views(work, 3)


def test_a_teacher_goes_before_the_views() -> None:
    work = replace(FIRST, finer=1.2)
    fits = [budget(seconds).fit(work, CONFIG10) for seconds in range(90, 0, -1)]
    order = list(dict.fromkeys((f.method, f.finer_weight > 0, f.epochs, f.views) for f in fits))
    assert order[:9] == [("cl-lora", True, e, 3) for e in range(10, 2, -1)] + [("cl-lora", False, 4, 3)]
    assert ("cl-lora", False, 3, 0) in order
    assert work.under(replace(CONFIG10, finer_weight=0.0)).finer == 0
    assert work.under(replace(CONFIG10, method="prototype")).adapts is False


def test_training_leaves_time_for_what_follows() -> None:
    given = budget(100)
    encoding = 120 * 0.02  # the pictures have been read
    assert given.deadline - given.training_deadline(FIRST, encoded=False) == pytest.approx(encoding + FINISH_S)
    own = 120 * 0.5 * 0.02
    assert given.deadline - given.training_deadline(LATER, encoded=False) == pytest.approx(encoding + own + FINISH_S)
    assert given.deadline - given.training_deadline(LATER, encoded=True) == pytest.approx(own + FINISH_S)


def test_late_encoding_takes_fewer_views() -> None:
    assert budget(100).fit_views(FIRST, 3) == 3
    assert budget(FINISH_S + 120 * 0.02 + 2.5).fit_views(FIRST, 3) == 1
    assert budget(0).fit_views(FIRST, 3) == 0
    assert budget(100).fit_own_views(LATER, 3) == 3
    assert budget(FINISH_S + 120 * 0.01 + 1.5).fit_own_views(LATER, 3) == 1
    assert budget(0).fit_own_views(LATER, 3) == 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("30", 30), ("5min", 300), ("2 m", 120), ("1.5h", 5400), ("45 sec", 45)]
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-3s", "soon", "5 days", "1e3s", "s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="write 30s, 5min or 1h"):
        duration(text)
    assert edge_cl("learn", "--new-classes", "x", f"--time={text}").code == 2


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_time_must_be_positive(seconds: float) -> None:
    with pytest.raises(UsageError, match="time_s must be positive"):
        LearnConfig(time_s=seconds)


def test_a_learn_ends_in_time_and_says_what_it_left_out(tmp_path: Path) -> None:
    learner = new_learner(tmp_path)
    pictures = write_looks(tmp_path / "pictures", {"a": 0, "b": 4, "c": 8}, 12)
    config = replace(CONFIG, epochs=20_000, time_s=8.0)  # far more than there is time for
    report = learner.learn(pictures, config)
    assert 1 <= report.epochs < 20_000
    assert report.seconds["total"] < 8.0 * 1.2
    assert any(note.startswith(f"To keep to 8 s: {report.epochs} instead of 20000 epochs") for note in report.notes)
    assert report.budget["time_s"] == 8.0
    assert 0 < (report.budget["predicted_s"] or 0) <= 8.0
    assert "Time allowed 8 s, predicted" in report.to_markdown()
    assert [c["name"] for c in learner.classes()] == ["a", "b", "c"]


def test_too_little_time_still_commits_and_names_the_least(tmp_path: Path) -> None:
    learner = new_learner(tmp_path)
    report = learner.learn(write_looks(tmp_path / "pictures", {"a": 0, "b": 4}, 12), replace(CONFIG, time_s=0.01))
    assert (report.epochs, report.version) == (0, 1)
    left_out = "no adapter was trained (statistics alone, as by --method prototype), 0 instead of 1 random views"
    assert f"To keep to 0.01 s: {left_out} of each picture." in report.notes
    assert any(note.startswith("Even the least takes longer than 0.01 s: about ") for note in report.notes)


def test_without_a_limit_nothing_is_said_of_time(tmp_path: Path) -> None:
    report = new_learner(tmp_path).learn(write_looks(tmp_path / "pictures", {"a": 0, "b": 4}, 12), CONFIG)
    assert (report.budget["time_s"], report.budget["predicted_s"]) == (None, None)
    assert not any("time" in note for note in report.notes)
    assert "Time allowed" not in report.to_markdown()
