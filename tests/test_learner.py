"""The learner from end to end on a tiny transformer: nine learns, ids, names, forgetting, updates, refusals."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from small import BACKBONE, CONFIG, LOOKS, copied, drawn, hashes, ids, picture, write_looks
from two_tasks import EVERY, FIRST, SECOND, TASKS, THIRD, means, model, predictions, work

import edge_cl
from edge_cl import LearnConfig, Learner
from edge_cl.adaptation import SCHEDULES, Adapted, Job
from edge_cl.assessment import assess
from edge_cl.budget import Work
from edge_cl.decoded import decode
from edge_cl.errors import EdgeClError, FolderError, StoreError, UsageError
from edge_cl.outcome import require_little_forgetting
from edge_cl.pictures import read_folder
from edge_cl.plan import work_of
from edge_cl.report import LearnReport
from edge_cl.runtime import Classifier
from edge_cl.version import Version

# -- learning -----------------------------------------------------------


def test_nine_tasks_stay_known(blank: Learner, tmp_path: Path, fresh: Path) -> None:
    learner = copied(blank, tmp_path / "store")
    backbone = learner.store.head.objects["backbone"]
    known: dict[str, int] = {}
    for k, task in enumerate(TASKS):
        report = learner.learn(write_looks(tmp_path / f"task {k}", task), CONFIG)
        known |= {name: len(known) + i for i, name in enumerate(sorted(task))}
        assert ids(learner) == known  # earlier ids stay whatever the new names sort to
        assert (report.version, report.task, report.classes) == (k + 1, f"task-{k + 1}", sorted(task))
        assert (report.known_classes, report.images, report.epochs) == (list(known), 16, 2)
        assert len(report.accuracy_matrix) == k + 1
        assert set(report.accuracy_matrix[-1]) == {f"task-{j + 1}" for j in range(k + 1)}
        assert report.holdout_accuracy == report.accuracy_matrix[k][f"task-{k + 1}"] >= 0.5
        assert -1 <= report.forgetting <= 1
        assert (report.old_class_accuracy["before"] is None) == (k == 0)
        assert work(learner) == []
        assert learner.store.head.objects["backbone"] == backbone
    assert [(v.number, v.parent, v.kind) for v in learner.log()] == [
        (0, None, "init"),
        *((k + 1, k, "learn") for k in range(9)),
    ]
    result = learner.evaluate(fresh / "every")
    assert result["images"] == 4 * LOOKS
    assert result["accuracy"] >= 0.9
    assert len(result["per_task"]) == 9
    assert set(result["per_class"]) == set(EVERY)
    assert result["accuracy"] == pytest.approx(np.mean(result["per_task"])) == pytest.approx(result["macro_accuracy"])
    assert result["unknown_rate"] <= 0.5
    assert learner.store.check() == []


def test_evaluation_counts_wrong_answers(learner: Learner, tmp_path: Path) -> None:
    swapped = dict(zip(FIRST, reversed(FIRST.values()), strict=True))
    result = learner.evaluate(write_looks(tmp_path / "swapped", swapped, 4, first=100))
    assert result["accuracy"] == 0
    assert set(result["per_class"].values()) == {0.0}


# Name -> tasks as {class: (look, pictures)}, and whether each is large enough to train adapters on.
TINY_TASKS: dict[str, tuple[list[dict[str, tuple[int, int]]], list[bool]]] = {
    "one class": ([{"a": (0, 6)}], [False]),
    "one picture": ([{"a": (0, 1)}], [False]),
    "a picture each": ([{"a": (0, 1), "b": (4, 1)}], [False]),
    "one and many": ([{"a": (0, 1), "b": (4, 9)}], [True]),
    "one class after another": ([{"b": (0, 6)}, {"a": (4, 6)}], [False, False]),
    "one picture after another": ([{"b": (0, 1)}, {"a": (4, 1)}, {"c": (8, 1)}], [False, False, False]),
    "one picture after a task": ([{"b": (0, 8), "c": (4, 8)}, {"a": (8, 1)}], [True, False]),
    "a task after one picture": ([{"b": (8, 1)}, {"a": (0, 8), "c": (4, 8)}], [False, True]),
}


@pytest.mark.parametrize(("tasks", "adapted"), TINY_TASKS.values(), ids=list(TINY_TASKS))
def test_tiny_tasks(
    blank: Learner, tmp_path: Path, tasks: list[dict[str, tuple[int, int]]], adapted: list[bool]
) -> None:
    learner = copied(blank, tmp_path / "store")
    for k, task in enumerate(tasks):
        for name, (look, count) in task.items():
            write_looks(tmp_path / f"task {k}", {name: look}, count)
            write_looks(tmp_path / "new", {name: look}, 3, first=100)
        report = learner.learn(tmp_path / f"task {k}", CONFIG)
        assert report.epochs == (CONFIG.epochs if adapted[k] else 0)
        assert any("statistics alone" in note for note in report.notes) == (not adapted[k])
        json.dumps(report.to_json(), allow_nan=False)
    assert learner.evaluate(tmp_path / "new")["accuracy"] >= 0.9
    for answer in learner.predict(tmp_path / "new").answers:
        assert sum(p for _, p in answer.prediction.top) == pytest.approx(1, abs=1e-5)


SETTINGS = list(itertools.product(["joint", "two-stage"], ["freeze", "distil", "correct"]))


@pytest.mark.parametrize(("schedule", "shared_update"), SETTINGS)
def test_adapters_after_tasks_too_small_for_them(
    blank: Learner, tmp_path: Path, schedule: Any, shared_update: Any
) -> None:
    config = replace(CONFIG, schedule=schedule, shared_update=shared_update, epochs=4)
    learner = copied(blank, tmp_path / "store")
    small = write_looks(tmp_path / "small", {"9-first": 0})
    assert learner.learn(small, config).epochs == 0
    bare = learner.store.head
    assert not {"shared", "base"} & set(bare.objects)

    assert learner.learn(write_looks(tmp_path / "second", SECOND), config).epochs == 4
    first = learner.store.head
    assert {"shared", "base"} <= set(first.objects)
    assert_follows(learner, bare, first, small)

    assert learner.learn(write_looks(tmp_path / "third", THIRD), config).epochs == 4
    second = learner.store.head
    assert second.objects["base"] == first.objects["base"]
    same = second.objects["shared"] == first.objects["shared"]
    assert same == (shared_update == "freeze"), "freeze leaves the shared adapter as the first adapted task made it"
    if shared_update == "correct":
        assert_follows(learner, first, second, small)
    else:
        row = slice(0, 3)
        np.testing.assert_array_equal(model(learner, second).statistics.means[row], means(learner, first)[row])
    # As published, "distil" lets old features drift; on random weights that costs old classes nearly everything.
    known = THIRD if shared_update == "distil" else {"9-first": 0, **SECOND, **THIRD}
    assert learner.evaluate(write_looks(tmp_path / "new", known, 4, first=100))["accuracy"] >= 0.8


def assert_follows(learner: Learner, before: Version, after: Version, folder: Path) -> None:
    """Check that the mean of the one class in `folder` moved towards where its features now lie."""
    pictures = read_folder(folder).pictures
    _, encoder = learner.load(after)
    pixels = decode(pictures, encoder.preprocess).pixels
    true = np.concatenate([e.features for e in encoder.batches(pixels)]).mean(0)
    old, moved = (means(learner, version)[0] for version in (before, after))
    stayed_off, moved_off = np.linalg.norm(old - true), np.linalg.norm(moved - true)
    assert stayed_off > 1e-4, "the adapters moved no feature"
    assert moved_off < 0.9 * stayed_off


def test_settings_of_an_earlier_release_are_read() -> None:
    saved = CONFIG.to_json()
    assert LearnConfig.from_json(saved) == CONFIG
    assert LearnConfig.from_json({**saved, "statistics_views": 3}) == CONFIG  # it is no more
    assert LearnConfig.from_json({"epochs": 7}) == LearnConfig(epochs=7)


def test_adapters_without_hold_out(taught: Learner, tmp_path: Path) -> None:
    learner = copied(taught, tmp_path / "store")
    report = learner.learn(write_looks(tmp_path / "third", THIRD), replace(CONFIG, hold_out=0.0))
    assert (report.epochs, report.holdout_accuracy) == (2, None)
    assert set(model(learner).adapters) == {1, 2}
    more = learner.learn(write_looks(tmp_path / "more", THIRD, 4, first=30), replace(CONFIG, hold_out=0.0), update=True)
    assert more.images == 4 * len(THIRD)


def test_a_much_larger_task_shapes_the_base_branch_anew(learner: Learner, tmp_path: Path) -> None:
    small, before = write_looks(tmp_path / "small", {"9-first": 0}), learner.store.head
    assert "task/0001/adapter" in before.objects
    large = {name: look for task in TASKS[2:5] for name, look in task.items()}
    learner.learn(write_looks(tmp_path / "large", large), replace(CONFIG, epochs=4))
    after = learner.store.head
    for name in ("shared", "base"):
        assert after.objects[name] != before.objects[name]
    assert not [name for name in after.objects if name.endswith("adapter")], "trained on another prefix"
    assert_follows(learner, before, after, small)
    # The new classes, that is: how well the drift map carries old ones over a random backbone is a matter of luck.
    assert learner.evaluate(write_looks(tmp_path / "new", large, 4, first=100))["accuracy"] >= 0.8
    learner.learn(write_looks(tmp_path / "next", TASKS[5]), CONFIG)
    assert learner.store.head.objects["base"] == after.objects["base"]
    assert "task/0003/adapter" in learner.store.head.objects


def test_the_program_may_change_its_working_directory(
    learner: Learner, fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = learner.store.path
    monkeypatch.chdir(place.parent)
    near = Learner.open(place.name)
    before = len(near.log())
    near.export("bundle")
    classifier = Classifier("bundle")
    monkeypatch.chdir("/")
    assert len(near.log()) == before
    assert near.predict(fresh).answers
    assert classifier.reload() is False


def test_a_head_is_made_once_a_version(learner: Learner) -> None:
    head = learner.recogniser().head
    assert learner.recogniser("base").head is head
    learner.forget(["9-first"])
    assert len(learner.recogniser().head.classes) == len(head.classes) - 1
    learner.rollback()
    assert len(learner.recogniser().head.classes) == len(head.classes)


def test_prototype_trains_nothing(blank: Learner, tmp_path: Path) -> None:
    learner = copied(blank, tmp_path / "store")
    config = replace(CONFIG, method="prototype")
    report = learner.learn(write_looks(tmp_path / "pictures", EVERY, 6), config)
    assert report.epochs == 0
    assert not any("statistics alone" in note for note in report.notes)
    names = set(learner.store.head.objects)
    assert not {name for name in names if name in ("shared", "base") or name.endswith("/adapter")}
    assert learner.evaluate(write_looks(tmp_path / "new", EVERY, 4, first=100))["accuracy"] >= 0.9


def test_a_seed_gives_the_same_bits(taught: Learner, tmp_path: Path) -> None:
    pictures = write_looks(tmp_path / "third", THIRD)
    config = replace(CONFIG, shared_update="distil")
    found = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        learner = copied(taught, tmp_path / name)
        learner.learn(pictures, replace(config, seed=seed))
        found.append(hashes(learner.store.head))
    assert found[0] == found[1]
    for name in ("shared", "task/0002/adapter", "statistics"):
        assert found[0][name] != found[2][name]
    assert found[0]["base"] == found[2]["base"]


def test_tasks_of_one_name_are_told_apart(taught: Learner, tmp_path: Path) -> None:
    """A matrix by name would show one of them alone."""
    learner, names = copied(taught, tmp_path / "store"), ["task-4", None, "task-4", "task-4"]
    told = []
    for k, name in enumerate(names):
        folder = write_looks(tmp_path / f"more {k}", TASKS[2 + k])
        report = learner.learn(folder, replace(CONFIG, method="prototype"), task=name)
        told.append(report.task)
    assert report.notes[-1] == "There is a task 'task-4' already: this one is 'task-4 (4)'."
    assert told == ["task-4", "task-4 (2)", "task-4 (3)", "task-4 (4)"]
    assert list(report.accuracy_matrix[-1]) == ["task-1", "task-2", *told]


@pytest.mark.parametrize("name", ["", " ", "\udcff", "a\nb", "n" * 201])
def test_a_bad_name_of_a_task_is_refused_before_work(taught: Learner, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a task"):
        taught.learn("nowhere", CONFIG, task=name)


def test_a_seed_too_large_to_seed_generators_is_refused(taught: Learner, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seed must be less than 9007199254740992"):
        taught.learn(tmp_path, replace(CONFIG, seed=2**53))
    with pytest.raises(FolderError):  # its folder is empty
        taught.learn(tmp_path, replace(CONFIG, seed=2**53 - 1))


@pytest.mark.parametrize("verb", ["predict", "evaluate"])
def test_pictures_that_go_away_while_they_are_looked_at_are_skipped(
    taught: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A ring of frames on disk, whose oldest are overwritten meanwhile."""
    folder = write_looks(tmp_path / "ring", FIRST, 3, first=50)
    gone = sorted(folder.rglob("*.png"))[1]
    recogniser = Learner.recogniser

    def late(self: Learner, rule: str = "routed") -> Any:
        gone.unlink(missing_ok=True)
        return recogniser(self, rule)

    monkeypatch.setattr(Learner, "recogniser", late)
    reason = {"path": str(gone), "why": "missing, or a link to nothing"}
    if verb == "predict":
        found = taught.predict(folder)
        assert [a.source for a in found.answers] == sorted(folder.rglob("*.png"))
        assert found.skipped == [reason]
    else:
        result = taught.evaluate(folder)
        assert (result["images"], result["skipped"]) == (5, [reason])


def test_negative_seed_works_or_is_refused_as_bad_usage(taught: Learner, tmp_path: Path) -> None:
    learner = copied(taught, tmp_path / "store")
    pictures = write_looks(tmp_path / "third", THIRD)
    try:
        config = replace(CONFIG, seed=-1)
    except UsageError:
        return
    learner.learn(pictures, config)


def test_frames_are_not_paths(learner: Learner) -> None:
    frame: Any = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(UsageError, match=r"takes paths .*, not ndarray\.\n.*Classifier\(OUT\)\.predict\(frame\)"):
        learner.predict(frame)


def test_the_package_lists_what_it_offers() -> None:
    assert {"EdgeClError", "LearnConfig", "Learner", "__version__"} == set(dir(edge_cl))
    assert all(hasattr(edge_cl, name) for name in dir(edge_cl))


def test_a_report_has_no_heading_with_nothing_below_it(learner: Learner) -> None:
    saved: Any = learner.store.read_json(learner.store.head, "metrics.json")
    mistaken = {"class": "mug", "taken_for": "cup", "count": 2}
    good = LearnReport(**{**saved, "class_accuracy": {"mug": 1.0}, "confusions": []}).to_markdown()
    bad = LearnReport(
        **{**saved, "class_accuracy": {"mug": 0.5}, "class_hold_out": {"mug": 2}, "confusions": [mistaken]}
    ).to_markdown()
    assert "Weakest" not in good and "mistakes" not in good
    assert (
        "## Weakest classes\n\n- mug: 50.0 % (1 of 2)\n\n## Most frequent mistakes\n\n- mug taken for cup: 2\n\n##"
        in bad
    )


def test_a_report_names_the_classes_that_it_did_not_measure(blank: Learner, tmp_path: Path) -> None:
    learner = copied(blank, tmp_path / "store")
    first = learner.learn(write_looks(tmp_path / "first", {"mug": 1}, 8), CONFIG)
    assert any(note.startswith("'mug' is the only class known") for note in first.notes)
    more = write_looks(write_looks(tmp_path / "second", {"hat": 2}, 8), {"cup": 3, "tin": 4}, 2)
    notes = learner.learn(more, replace(CONFIG, max_forgetting=1)).notes
    assert not any("lost more than allowed" in note for note in notes)
    assert any(note.startswith("Too few pictures of 'cup', 'tin' to hold any out") for note in notes)
    assert not any("only class" in note for note in notes)


def test_a_limit_of_forgetting_that_cannot_be_told_is_noted(blank: Learner, tmp_path: Path) -> None:
    learner = copied(blank, tmp_path / "store")
    learner.learn(write_looks(tmp_path / "first", {"mug": 1}, 2), CONFIG)
    report = learner.learn(write_looks(tmp_path / "second", {"hat": 2}, 8), replace(CONFIG, max_forgetting=1))
    assert any("whether they lost more than allowed is not measured" in note for note in report.notes)


def test_a_report_names_a_class_that_was_recorded_standing_still(tmp_path: Path) -> None:
    """Pictures of the demo's things differ; frames of one picture, each a little aside and lighter, hardly do."""
    shown = Path(__file__).parents[1] / "examples/tabletop/train"
    for name in ("ball", "book", "mug"):
        (tmp_path / "things" / name).mkdir(parents=True)
        for i, path in enumerate(sorted((shown / name).glob("*.jpg"))[:12]):
            shutil.copy(path, tmp_path / "things" / name / f"{i}.jpg")
    still = Image.open(next((shown / "remote").glob("*.jpg"))).convert("RGB")
    (tmp_path / "things/remote").mkdir()
    for i in range(12):
        frame = still.crop((i % 4, i // 4, still.width - 4 + i % 4, still.height - 4 + i // 4))
        ImageEnhance.Brightness(frame).enhance(1 + i / 200).save(tmp_path / f"things/remote/{i}.png")
    learner = Learner.init(tmp_path / "store", device="cpu")
    notes = learner.learn(tmp_path / "things", LearnConfig(method="prototype", hold_out=0.25)).notes
    told = [note for note in notes if "hardly differ" in note]
    assert len(told) == 1 and told[0].startswith("The pictures of 'remote' hardly differ")


def test_a_saved_report_is_written_again_as_it_was(learner: Learner) -> None:
    saved: Any = learner.store.read_json(learner.store.head, "metrics.json")
    page = LearnReport(**saved).to_markdown()
    assert "confidence and accuracy are " in page
    assert page == learner.store.read_bytes(learner.store.head, "report.md").decode()


def test_a_report_claims_nothing_of_old_classes_that_was_not_measured(learner: Learner) -> None:
    saved: Any = learner.store.read_json(learner.store.head, "metrics.json")
    measured = LearnReport(**saved).to_markdown()
    assert "| old classes before this learn | " in measured and " points |" in measured
    unmeasured = {**saved, "old_class_accuracy": {"before": None, "after": None}, "forgetting": 0.0}
    assert "now, mean over tasks) | not measured |" in LearnReport(**unmeasured).to_markdown()
    first = LearnReport(**{**unmeasured, "known_classes": saved["classes"]}).to_markdown()
    assert "old classes" not in first and "forgetting" not in first


@pytest.mark.parametrize("learns", [0, 1, 2, 30])
def test_the_plot_counts_learns_in_whole_numbers(learner: Learner, learns: int) -> None:
    saved: Any = learner.store.read_json(learner.store.head, "metrics.json")
    with drawn() as figures:
        LearnReport(**{**saved, "accuracy_matrix": [{"task-1": 0.5}] * learns}).plot()
    left = figures[0].axes[0]
    low, high = left.get_xlim()
    ticks = [tick for tick in left.get_xticks() if low <= tick <= high]
    assert ticks and all(tick == round(tick) for tick in ticks), ticks
    assert low < 1 and high > learns


@pytest.mark.parametrize(("lowest", "bottom"), [(1.0, 90), (0.97, 90), (0.91, 80), (0.5, 40), (0.0, 0)])
def test_the_plot_begins_a_little_under_the_lowest_accuracy(learner: Learner, lowest: float, bottom: float) -> None:
    saved: Any = learner.store.read_json(learner.store.head, "metrics.json")
    with drawn() as figures:
        LearnReport(**{**saved, "accuracy_matrix": [{"one": 1.0}, {"one": lowest, "two": 1.0}]}).plot()
    left = figures[0].axes[0]
    low, high = left.get_ylim()
    assert low == bottom and high > 100
    one, two, mean, _ = left.lines
    assert min(one.get_zorder(), two.get_zorder()) > mean.get_zorder()  # tasks are not hidden below their mean


def test_report_lies_in_the_version(learner: Learner, tmp_path: Path) -> None:
    report = learner.learn(write_looks(tmp_path / "third", THIRD), CONFIG, task="kitchen|hall")
    store, head = learner.store, learner.store.head
    assert store.read_json(head, "metrics.json") == json.loads(json.dumps(report.to_json()))
    text = store.read_bytes(head, "report.md").decode()
    assert text.startswith("# Learned kitchen|hall\n")
    for task in ("task-1", "task-2", r"kitchen\|hall"):
        assert f" {task} " in text
    with Image.open(io.BytesIO(store.read_bytes(head, "plot.png"))) as plot:
        plot.load()
        assert plot.format == "PNG"
        assert plot.width > 300
        assert np.asarray(plot.convert("L")).std() > 5  # something is drawn
    assert head.record["task"] == "kitchen|hall"
    assert head.record["holdout_accuracy"] == report.holdout_accuracy
    stages = report.seconds
    assert set(stages) == {"total", "scan", "shared", "prefix", "train", "head"}
    assert stages["total"] >= max(stages.values())
    assert min(stages[s] for s in ("total", "scan", "prefix", "train", "head")) > 0
    assert report.peak_memory_mb > 10


@pytest.mark.parametrize(("before", "after"), [(0.90, 0.88), (0.57, 0.55), (1.0, 0.98)])
def test_rounding_does_not_decide_what_is_too_costly(before: float, after: float) -> None:
    report = mock.Mock(old_class_accuracy={"before": before, "after": after}, old_hold_out=50)
    require_little_forgetting(report, 2)
    with pytest.raises(EdgeClError, match=r"2\.0 points of accuracy, measured on 50 pictures; 1\.999 are allowed"):
        require_little_forgetting(report, 1.999)


def test_costly_learn_is_refused(blank: Learner, tmp_path: Path) -> None:
    """Classes that look just like old ones take most of their pictures away."""
    learner, alike = copied(blank, tmp_path / "store"), tmp_path / "alike"
    learner.learn(write_looks(tmp_path / "first", FIRST, 20), CONFIG)
    for first in (50, 80):  # few enough classes to leave the base branch alone
        write_looks(alike, {f"like {name} {first}": look for name, look in FIRST.items()}, 20, first=first)
    before, objects = learner.store.head, sorted(learner.store.path.glob("objects/*/*"))
    for method, other in (("cl-lora", True), ("prototype", False)):  # the other way to learn is named, not this one
        config = replace(CONFIG, max_forgetting=1, method=method)
        message = r"would cost the old ones \d+\.\d points of accuracy, measured on 10 pictures; 1 are allowed"
        with pytest.raises(EdgeClError, match=message) as caught:
            learner.learn(alike, config)
        assert ("--method prototype" in caught.value.mend) == other
    assert learner.store.head == before
    assert sorted(learner.store.path.glob("objects/*/*")) == objects
    assert learner.store.check() == []
    report = learner.learn(alike, replace(CONFIG, max_forgetting=100))
    lost = report.old_class_accuracy["before"] - report.old_class_accuracy["after"]  # type: ignore[operator]
    assert lost > 0.01
    assert report.forgetting >= lost


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [48, None, 48]),  # the first task and one with four times the classes shape the base branch
        ({"readapt_factor": 9.0}, [48, None, None]),
        ({"finer_weight": 0.0}, [None, None, None]),
        ({"schedule": "joint", "shared_update": "distil"}, [None, None, None]),
    ],
)
def test_what_shapes_the_base_branch_has_a_teacher(
    tmp_path: Path, tiny_weights: Path, settings: dict[str, Any], sizes: list[int | None]
) -> None:
    """The bare backbone at half as many pixels more; planned for and used by the same tasks."""
    learner = Learner.init(tmp_path / "store", backbone=BACKBONE, weights=tiny_weights, image_size=32, device="cpu")
    config, taught, planned = replace(CONFIG, epochs=1, **settings), list[int | None](), list[float]()

    def spy(schedule: Callable[[Job], Adapted]) -> Callable[[Job], Adapted]:
        def run(job: Job) -> Adapted:
            if job.teacher is not None:
                assert (job.teacher.shared, job.teacher.base) == (None, None)
            taught.append(job.teacher.preprocess.image_size if job.teacher else None)
            return schedule(job)

        return run

    def seen(*arguments: Any) -> Work:
        work = work_of(*arguments)
        planned.append(work.finer)
        return work

    with (
        mock.patch.dict("edge_cl.learning.SCHEDULES", {name: spy(run) for name, run in SCHEDULES.items()}),
        mock.patch("edge_cl.learning.work_of", seen),
    ):
        for i, looks in enumerate(({"a": 0, "b": 4}, {"c": 8, "d": 12}, {f"e{k}": 2 * k + 1 for k in range(8)})):
            learner.learn(write_looks(tmp_path / str(i), looks, 8), config)
    assert taught == sizes
    assert planned == [(9 + 1) / (4 + 1) / 2 if size else 0.0 for size in sizes]  # patches and class token


# -- names, forgetting, going back --------------------------------------


def test_rename_keeps_ids_and_answers(learner: Learner, fresh: Path) -> None:
    old, new = next(iter(FIRST)), "Ünïcode 猫"
    before, answers, parent = ids(learner), predictions(learner, fresh / "two"), learner.store.head
    version = learner.rename(old, new)
    assert (version.kind, version.parent) == ("rename", parent.number)
    assert ids(learner) == {new if name == old else name: number for name, number in before.items()}
    assert list(version.record["classes"]) == list(ids(learner))  # type: ignore[arg-type]
    changed = {name for name in version.objects if version.objects[name] != parent.objects[name]}
    assert changed == {"state"}
    for (path, was), (path_now, now) in zip(answers, predictions(learner, fresh / "two"), strict=True):
        assert path == path_now
        assert now.confidence == was.confidence
        assert now.label == (new if was.label == old else was.label)


BAD_NAMES = {
    "taken": ("9-first", "8-first", EdgeClError, "There is a class '8-first' already"),
    "taken, with blanks": ("9-first", " 8-first ", EdgeClError, "There is a class '8-first' already"),
    "empty": ("9-first", "", UsageError, "blank"),
    "blank": ("9-first", "  ", UsageError, "blank"),
    "not UTF-8": ("9-first", "\udcff", UsageError, "not UTF-8"),
    "long": ("9-first", "n" * 201, UsageError, "longer than 200 characters"),
    "stranger": ("9-frist", "x", EdgeClError, r"no class '9-frist'\. Did you mean 9-first"),
}


@pytest.mark.parametrize(("old", "new", "error", "message"), BAD_NAMES.values(), ids=list(BAD_NAMES))
def test_bad_rename_is_refused(learner: Learner, old: str, new: str, error: type[EdgeClError], message: str) -> None:
    before = learner.store.head
    with pytest.raises(error, match=message):
        learner.rename(old, new)
    assert learner.store.head == before
    assert learner.store.check() == []


@pytest.mark.parametrize("shared_update", ["freeze", "distil", "correct"])
def test_forgetting_the_new_classes_restores_the_table(
    learner: Learner, tmp_path: Path, fresh: Path, shared_update: Any
) -> None:
    before = learner.classes()
    learner.learn(write_looks(tmp_path / "third", THIRD), replace(CONFIG, shared_update=shared_update))
    assert len(learner.classes()) == len(before) + len(THIRD)
    version = learner.forget(list(THIRD))
    assert learner.classes() == before
    assert not {name for name in version.objects if name.startswith("task/0002/")}
    assert {a.prediction.label for a in learner.predict(fresh / "every").answers} <= set(FIRST | SECOND)
    if shared_update != "distil":  # which lets old features drift, as published
        assert learner.evaluate(fresh / "two")["accuracy"] >= 0.9
    report = learner.learn(tmp_path / "third", CONFIG)
    assert [ids(learner)[name] for name in sorted(THIRD)] == [6, 7], "an id is never given twice"
    assert report.known_classes[:4] == [c["name"] for c in before]


FORGOTTEN = {
    "one of a task": ["9-first"],
    "a task": list(FIRST),
    "the same twice": ["9-first", "9-first"],
    "of two tasks": ["9-first", "y-second"],
    "all but one": [*FIRST, "y-second"],
}


@pytest.mark.parametrize("names", FORGOTTEN.values(), ids=list(FORGOTTEN))
def test_rollback_undoes_forget(learner: Learner, fresh: Path, names: list[str]) -> None:
    head, table, answers = learner.store.head, learner.classes(), predictions(learner, fresh / "two")
    forgotten = learner.forget(names)
    assert (forgotten.kind, forgotten.number, forgotten.parent) == ("forget", 3, 2)
    left = [c for c in table if c["name"] not in names]
    assert learner.classes() == left
    kept = {c["name"] for c in left}
    labels = {a.prediction.label: a.source.parent.name for a in learner.predict(fresh / "two").answers}
    assert set(labels) == kept
    result = learner.predict(fresh / "two").answers
    right = [a.prediction.label == a.source.parent.name for a in result if a.source.parent.name in kept]
    assert np.mean(right) >= 0.9
    assert learner.rollback() == head
    assert learner.store.head == head
    assert learner.classes() == table
    assert predictions(learner, fresh / "two") == answers


def test_everything_can_be_forgotten_and_learned_again(learner: Learner, tmp_path: Path, fresh: Path) -> None:
    learner.forget(list(FIRST | SECOND))
    assert learner.classes() == []
    with pytest.raises(EdgeClError, match="knows no class yet"):
        learner.predict(fresh / "two")
    learner.learn(write_looks(tmp_path / "again", FIRST | SECOND), CONFIG)
    assert sorted(ids(learner).values()) == [4, 5, 6, 7]
    assert learner.evaluate(fresh / "two")["accuracy"] >= 0.9


def test_what_forget_costs_is_not_laid_on_the_next_learn(learner: Learner, tmp_path: Path) -> None:
    """The task that lost a class is measured anew by what is left of it; a learn of nothing harmful forgets nothing."""
    name = next(iter(FIRST))
    learner.forget([name])
    kept = model(learner)
    now = assess(kept).per_task
    assert [0 in row for row in kept.history] == [False, True]
    assert kept.history[-1] == {0: now[0], 1: kept.history[-1][1]}
    report = learner.learn(write_looks(tmp_path / "third", THIRD), replace(CONFIG, method="prototype"))
    rows, after = model(learner).history, report.accuracy_matrix[-1]
    lost = [max(row.get(t, 0.0) for row in rows) - after[f"task-{t + 1}"] for t in (0, 1)]
    assert report.forgetting == pytest.approx(sum(lost) / 2)


def test_names_of_classes_may_be_typed_decomposed(learner: Learner, tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    learner.learn(write_looks(tmp_path / "third", {apart: 3, "tea": 4}), replace(CONFIG, method="prototype"))
    learner.rename(apart, "na\u0308me")
    assert "n\u00e4me" in ids(learner) and composed not in ids(learner)
    assert learner.forget(["na\u0308me"]).record["forgotten"] == ["n\u00e4me"]


def test_a_single_name_to_forget_is_no_list_of_letters(blank: Learner, tmp_path: Path) -> None:
    learner = copied(blank, tmp_path / "store")
    learner.learn(write_looks(tmp_path / "first", {"A": 0, "B": 5, "AB": 10}), replace(CONFIG, method="prototype"))
    assert learner.forget("AB").record["forgotten"] == ["AB"]
    assert set(ids(learner)) == {"A", "B"}


def test_where_no_class_is_known_the_error_says_so(blank: Learner) -> None:
    with pytest.raises(EdgeClError, match=r"no class 'nut'\. Known: none\."):
        blank.forget(["nut"])


def test_unknown_classes_are_all_named(learner: Learner) -> None:
    before = learner.store.head
    with pytest.raises(EdgeClError) as caught:
        learner.forget(["9-first", "nein", "8-frist"])
    assert len(caught.value.faults) == 2
    assert "'nein'" in caught.value.faults[0]
    assert "Did you mean 8-first" in caught.value.faults[1]
    assert learner.store.head == before


def test_learn_after_rollback(learner: Learner, tmp_path: Path, fresh: Path) -> None:
    assert learner.rollback().number == 1
    assert list(ids(learner)) == sorted(FIRST)
    report = learner.learn(write_looks(tmp_path / "third", THIRD), CONFIG)
    head = learner.store.head
    assert (report.version, head.number, head.parent) == (3, 3, 1)
    assert list(ids(learner)) == [*sorted(FIRST), *sorted(THIRD)]
    assert list(ids(learner).values()) == [0, 1, 2, 3]
    assert learner.rollback(2).number == 2
    assert learner.evaluate(fresh / "two")["accuracy"] >= 0.9
    assert learner.rollback(0).number == 0
    assert learner.classes() == []
    with pytest.raises(StoreError, match="is the first: there is nothing before it"):
        learner.rollback()
    with pytest.raises(StoreError, match="Version 9 does not exist"):
        learner.rollback(9)
    assert learner.store.head.number == 0


# -- what stops a learn before it starts --------------------------------


def _empty(root: Path) -> Path:
    root.mkdir()
    return root


def _empty_class(root: Path) -> Path:
    (write_looks(root, {"full": 3}, 2) / "hollow").mkdir()
    return root


def _unreadable_class(root: Path) -> Path:
    write_looks(root, {"full": 3}, 2)
    (root / "broken").mkdir()
    (root / "broken" / "x.jpg").write_bytes(b"no picture")
    return root


def _loose(root: Path) -> Path:
    root.mkdir()
    picture(0, 0).save(root / "loose.png")
    return root


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda root: root, "missing"),
    "a file": (lambda root: (root.write_text("x"), root)[1], "is a file, not a folder"),
    "empty": (_empty, "has no class folders"),
    "loose pictures": (_loose, "1 pictures lie directly in it"),
    "empty class": (_empty_class, "hollow: the class folder has no picture"),
    "unreadable class": (_unreadable_class, r"broken: the class folder has no usable picture: x\.jpg \(not a picture"),
}


@pytest.mark.parametrize(("write", "message"), BAD_FOLDERS.values(), ids=list(BAD_FOLDERS))
def test_bad_folder_stops_before_a_model_is_loaded(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], Path], message: str
) -> None:
    def load(self: Learner, version: Version | None = None) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Learner, "load", load)
    before = learner.store.head
    with pytest.raises(FolderError, match=message):
        learner.learn(write(tmp_path / "pictures"), CONFIG)
    assert learner.store.head == before


def test_second_writer_is_refused(learner: Learner, tmp_path: Path) -> None:
    pictures = write_looks(tmp_path / "third", THIRD)
    actions: Mapping[str, Callable[[], object]] = {
        "learn": lambda: learner.learn(pictures, CONFIG),
        "forget": lambda: learner.forget(["9-first"]),
        "rename": lambda: learner.rename("9-first", "x"),
        "rollback": lambda: learner.rollback(),
    }
    with learner.store.write("count the spoons"):
        for action in actions.values():
            with pytest.raises(StoreError, match=r"is writing the store .* \(count the spoons\)"):
                action()
        assert list(ids(learner)) == [*sorted(FIRST), *sorted(SECOND)]  # readers go on
    learner.rename("9-first", "x")


@pytest.mark.parametrize(("made_with", "refused"), [("", False), (BACKBONE, True)])
def test_the_shipped_backbone_is_known_by_its_weights(
    blank: Learner, tmp_path: Path, made_with: str, refused: bool
) -> None:
    learner = blank if made_with else Learner.init(tmp_path / "shipped", device="cpu")
    if refused:
        with pytest.raises(StoreError, match="made with other weights"):
            learner.require_backbone("edge_vit_tiny")
    else:
        learner.require_backbone("edge_vit_tiny")
