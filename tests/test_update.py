"""More pictures of known classes: they join what is known, each once; a class that is known is refused otherwise."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import CONFIG, copied, edge_cl, hashes, write_looks
from two_tasks import FIRST, SECOND, THIRD, means, model, work

from edge_cl import Learner
from edge_cl.assessment import assess
from edge_cl.decoded import decode
from edge_cl.errors import FolderError, UsageError
from edge_cl.export.bundle import read_manifest
from edge_cl.pictures import read_folder


@pytest.mark.parametrize("method", ["prototype", "cl-lora"])
def test_update_moves_means_as_if_pictures_had_come_at_once(blank: Learner, tmp_path: Path, method: Any) -> None:
    """Means and counts are those of all pictures; the features of adapted tasks stay where their adapters put them."""
    config = replace(CONFIG, method=method, views=0, reduced_precision=False)
    learner = copied(blank, tmp_path / "store")
    learner.learn(write_looks(tmp_path / "first", FIRST, 5), config)
    learner.learn(write_looks(tmp_path / "second", SECOND, 5), config)
    before = learner.store.head
    report = learner.learn(write_looks(tmp_path / "more", FIRST, 7, first=20), config, update=True)
    assert (report.task, report.classes, report.updated_classes) == (None, [], sorted(FIRST))
    assert report.images == 14
    head = learner.store.head
    assert set(head.objects) == set(before.objects)
    adapters = [name for name in head.objects if name in ("shared", "base") or name.endswith("adapter")]
    assert bool(adapters) == (method == "cl-lora")
    assert all(head.objects[name] == before.objects[name] for name in adapters)
    updated = model(learner)
    assert updated.task_names == {0: "task-1", 1: "task-2"}

    at_once = write_looks(write_looks(tmp_path / "at once", FIRST, 5), FIRST, 7, first=20)
    _, encoder = learner.load()
    for row, name in enumerate(sorted(FIRST)):
        pictures = [p for p in read_folder(at_once).pictures if p.label == name]
        pixels = decode(pictures, encoder.preprocess).pixels
        features = np.concatenate([e.features for e in encoder.batches(pixels)])
        np.testing.assert_allclose(updated.statistics.means[row], features.mean(0), atol=2e-6)
    assert updated.statistics.counts.tolist() == [12, 12, 5, 5]
    np.testing.assert_array_equal(updated.statistics.means[2:], means(learner, before)[2:])
    if method == "prototype":
        other = copied(blank, tmp_path / "other")
        other.learn(at_once, config)
        np.testing.assert_allclose(updated.statistics.means[:2], means(other, other.store.head), atol=2e-6)


def test_update_counts_the_pictures_learned_from(learner: Learner, tmp_path: Path) -> None:
    learner.learn(write_looks(tmp_path / "more", FIRST, 3, first=20), CONFIG, update=True)
    assert {c["name"]: c["pictures"] for c in learner.classes()} == dict.fromkeys(FIRST, 11) | dict.fromkeys(SECOND, 8)


def test_update_with_new_classes_too(learner: Learner, tmp_path: Path, fresh: Path) -> None:
    folder = write_looks(write_looks(tmp_path / "mixed", FIRST, 3, first=20), THIRD)
    report = learner.learn(folder, CONFIG, update=True)
    assert (report.task, report.classes, report.updated_classes) == ("task-3", sorted(THIRD), sorted(FIRST))
    assert model(learner).statistics.counts.tolist() == [11, 11, 8, 8, 8, 8]
    assert learner.evaluate(fresh / "two")["accuracy"] >= 0.9


@pytest.mark.parametrize("names", [["9-first"], ["9-first", "z-second"]], ids=["one", "two"])
def test_known_class_without_update_is_refused(learner: Learner, tmp_path: Path, names: list[str]) -> None:
    folder = write_looks(tmp_path / "mixed", {**{name: FIRST[name] for name in names}, "new": 10}, 3)
    before = learner.store.head
    with pytest.raises(FolderError, match=f"already known: {', '.join(map(repr, names))}") as caught:
        learner.learn(folder, CONFIG)
    assert "--update" in caught.value.mend
    assert learner.store.head == before
    assert work(learner) == []


@pytest.mark.parametrize("method", ["prototype", "cl-lora"])
def test_a_class_that_comes_by_single_pictures_is_measured(blank: Learner, tmp_path: Path, method: Any) -> None:
    """One of three, two of six, however few came at a time."""
    learner, folder = copied(blank, tmp_path / "store"), write_looks(tmp_path / "folder", FIRST, 1)
    config = replace(CONFIG, method=method, hold_out=0.25, adapt_pictures=2)
    learner.learn(folder, config)
    assert bool(model(learner).adapters or model(learner).base) == (method == "cl-lora")
    for count in range(2, 9):
        write_looks(folder, FIRST, 1, first=count)
        seen = learner.look(folder, config, update=True)
        assert [c["state"] for c in seen.to_json()["classes"]] == ["known"] * 2
        report = learner.learn(folder, config, update=True)
        assert report.hold_out == len(seen.hold_out) == (2 if count in (3, 6) else 0)
        held = 0 if count < 3 else 2 if count < 6 else 4
        assert sum(len(p.classes) for p in model(learner).probes.values()) == held
        assert (set(report.class_accuracy) == set(FIRST)) == (report.unknown["threshold"] is not None) == (held > 0)
    assert {c["name"]: c["pictures"] for c in learner.classes()} == dict.fromkeys(FIRST, 8)


# -- pictures that were learned before ----------------------------------


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """The folder of the first task, to which one class's pictures were added."""
    return write_looks(write_looks(tmp_path / "grown", FIRST), {"z-second": FIRST["z-second"]}, 3, first=20)


def test_a_folder_that_grew_counts_each_picture_once(taught: Learner, tmp_path: Path, grown: Path) -> None:
    """It leaves the very bits that the new pictures alone leave."""
    learner, other = copied(taught, tmp_path / "store"), copied(taught, tmp_path / "other")
    report = learner.learn(grown, CONFIG, update=True)
    assert (report.images, report.classes, report.updated_classes) == (3, [], ["z-second"])
    assert (report.learned_before, report.skipped) == (16, [])
    assert {c["name"]: c["pictures"] for c in learner.classes()} == {"9-first": 8, "z-second": 11} | dict.fromkeys(
        SECOND, 8
    )
    other.learn(write_looks(tmp_path / "alone", {"z-second": FIRST["z-second"]}, 3, first=20), CONFIG, update=True)
    assert hashes(learner.store.head) == hashes(other.store.head)


@pytest.mark.parametrize("before", ["learn", "rename", "forget"])
def test_where_nothing_is_new_nothing_changes(taught: Learner, tmp_path: Path, grown: Path, before: str) -> None:
    learner, bundle = copied(taught, tmp_path / "store"), tmp_path / "bundle"
    learner.learn(grown, CONFIG, update=True)
    if before == "rename":
        learner.rename("9-first", "9-other")
        (grown / "9-first").rename(grown / "9-other")
    if before == "forget":
        learner.forget(sorted(SECOND))
    head = learner.store.head
    learns = len(model(learner).history)
    for config in (CONFIG, replace(CONFIG, seed=5)):  # the command of before, and another
        report = learner.learn(grown, config, update=True, export=bundle)
        assert learner.store.head == head and work(learner) == []
        assert (report.version, report.images, report.hold_out, report.learned_before) == (head.number, 0, 0, 19)
        assert (report.task, report.classes, report.updated_classes) == (None, [], [])
        assert report.notes == ["Every picture was learned before: nothing was changed."]
        assert report.known_classes == [c["name"] for c in learner.classes()]
        assert report.old_class_accuracy["before"] == report.old_class_accuracy["after"] is not None
        assert len(report.accuracy_matrix) == learns
        assert report.seconds["total"] > report.seconds["scan"] > 0
        assert read_manifest(bundle).version == head.number


def test_negatives_are_learned_where_no_other_picture_is_new(taught: Learner, tmp_path: Path, grown: Path) -> None:
    learner, nothing = copied(taught, tmp_path / "store"), write_looks(tmp_path / "nothing", THIRD)
    learner.learn(grown, CONFIG, update=True)
    head = learner.store.head
    report = learner.learn(grown, CONFIG, update=True, negatives=nothing)
    assert (report.version, report.images) == (head.number + 1, 0)
    assert len(model(learner).negatives) == 16
    assert learner.learn(grown, CONFIG, update=True, negatives=nothing).version == report.version
    assert len(model(learner).negatives) == 16
    np.testing.assert_array_equal(means(learner, learner.store.head), means(learner, head))


def test_negatives_alone_do_as_with_a_folder_of_nothing_new(taught: Learner, tmp_path: Path, grown: Path) -> None:
    nothing = write_looks(tmp_path / "nothing", THIRD)
    learner, other = copied(taught, tmp_path / "store"), copied(taught, tmp_path / "other")
    (tmp_path / "none" / "mug").mkdir(parents=True)
    other.learn(tmp_path / "none", CONFIG, update=True, negatives=nothing)
    assert learner.look(negatives=nothing).to_json()["negatives"] == 16
    report = learner.learn(config=CONFIG, negatives=nothing)
    assert (report.version, report.images, report.classes) == (3, 0, [])
    assert hashes(learner.store.head) == hashes(other.store.head) != hashes(taught.store.head)
    with pytest.raises(UsageError, match="nothing to learn from"):
        learner.learn()


def test_negatives_that_came_before_any_class_go_along_with_the_adapters(blank: Learner, tmp_path: Path) -> None:
    learner, nothing = copied(blank, tmp_path / "store"), write_looks(tmp_path / "nothing", THIRD)
    (tmp_path / "none yet" / "mug").mkdir(parents=True)
    learner.learn(tmp_path / "none yet", CONFIG, update=True, negatives=nothing)
    before = model(learner).negatives
    assert len(before) == 16
    learner.learn(write_looks(tmp_path / "first", FIRST), CONFIG)
    assert model(learner).shared is not None
    assert not np.array_equal(model(learner).negatives, before)


def test_a_class_that_was_forgotten_is_learned_again(taught: Learner, tmp_path: Path, grown: Path) -> None:
    learner = copied(taught, tmp_path / "store")
    learner.forget(["z-second"])
    kept = learner.store.read_json(learner.store.head, "task/0000/fingerprints.json")
    assert kept == {"0": sorted(p.sha256 for p in read_folder(grown).classes["9-first"])}
    report = learner.learn(grown, CONFIG, update=True)
    assert (report.classes, report.updated_classes, report.images) == (["z-second"], [], 11)


def test_what_a_rollback_undid_is_learned_again(taught: Learner, tmp_path: Path, grown: Path) -> None:
    learner = copied(taught, tmp_path / "store")
    for version in (3, 4):
        assert learner.learn(grown, CONFIG, update=True).version == version
        assert learner.rollback().number == 2


@pytest.mark.parametrize("name", ["new", "z-second"])
def test_some_pictures_of_another_class_are_learned_and_told(taught: Learner, tmp_path: Path, name: str) -> None:
    """Which of the two labels is right, nobody can tell; the later was given by someone who may know."""
    learner, folder = copied(taught, tmp_path / "store"), write_looks(tmp_path / "more", {name: FIRST["9-first"]}, 9)
    write_looks(folder, {"8-first": SECOND["8-first"]}, 3, first=40)
    report = learner.learn(folder, CONFIG, update=True)
    assert report.images == 12
    assert [note for note in report.notes if "before" in note] == [
        f"New pictures of {name!r} that were learned as '9-first' before, and count for both: 8 of 9. "
        "If they do not show '9-first', forget it and learn it again without them."
    ]


def test_pictures_put_in_the_right_class_are_told(taught: Learner, tmp_path: Path, grown: Path) -> None:
    """They are all that is new of it."""
    learner = copied(taught, tmp_path / "store")
    for path in sorted((grown / "9-first").iterdir())[:4]:
        path.rename(grown / "z-second" / f"moved {path.name}")
    for path in (grown / "z-second").glob("02*.png"):
        path.unlink()
    report = learner.learn(grown, CONFIG, update=True)
    assert (report.images, report.updated_classes) == (4, ["z-second"])
    assert any(
        note.startswith("New pictures of 'z-second' that were learned as '9-first' before") for note in report.notes
    )


def test_the_old_folder_of_a_class_that_was_renamed_is_told(taught: Learner, tmp_path: Path, grown: Path) -> None:
    learner = copied(taught, tmp_path / "store")
    learner.rename("9-first", "9-other")
    report = learner.learn(grown, CONFIG, update=True)
    assert (report.classes, report.updated_classes) == (["9-first"], ["z-second"])
    assert [note for note in report.notes if note.startswith("All pictures of")] == [
        "All pictures of '9-first' were learned as '9-other' before. If they are the same, forget one, and give the "
        "folder the name of the other."
    ]


def test_what_an_update_cost_is_measured_on_the_pictures_of_before(taught: Learner, tmp_path: Path) -> None:
    """More hold-out pictures, that are harder, are no loss."""
    learner = copied(taught, tmp_path / "store")
    old = model(learner)
    swapped = dict(zip(FIRST, reversed(FIRST.values()), strict=True))
    hard = write_looks(tmp_path / "hard", swapped, 4, first=300)  # labelled the wrong way round
    report = learner.learn(hard, CONFIG, update=True)
    new = model(learner)
    same, every = new.seen_by(old), assess(new)
    classes = [{t: p.classes.tolist() for t, p in m.probes.items()} for m in (old, same)]
    assert classes[0] == classes[1]
    np.testing.assert_array_equal(same.probes[0].features, old.probes[0].features)
    assert len(new.probes[0].classes) == len(new.closer_probes[0].classes) == len(old.probes[0].classes) + 2
    assert report.old_class_accuracy["after"] == assess(same).accuracy({0, 1}) != every.accuracy({0, 1})
    assert report.forgetting == pytest.approx(
        np.mean([max(0, old.history[-1][t] - assess(same).per_task[t]) for t in (0, 1)])
    )
    assert [0 in row for row in new.history] == [False, False, True]  # of other pictures than those to come
    assert len(report.accuracy_matrix[0]) == 1  # what it showed then is shown


def test_pictures_that_an_earlier_release_learned_count_again(taught: Learner, tmp_path: Path, grown: Path) -> None:
    learner = copied(taught, tmp_path / "store")
    with learner.store.write("test") as transaction:
        kept = [name for name in transaction.parent.objects if "fingerprints" not in name]  # type: ignore[union-attr]
        for name in kept:
            transaction.keep(name)
        transaction.commit(kind="learn", record={})
    assert learner.learn(grown, CONFIG, update=True).images == 19
    assert learner.learn(grown, CONFIG, update=True).images == 0
    assert learner.learn(grown, replace(CONFIG, seed=5), update=True).images == 0
    shutil.rmtree(grown / "z-second")
    assert learner.learn(write_looks(grown, SECOND), CONFIG, update=True).images == 16


def test_class_folders_without_a_usable_picture_are_passed_over(taught: Learner, tmp_path: Path, grown: Path) -> None:
    """Of one class they were taken away once they were learned, of another they are still to come."""
    learner = copied(taught, tmp_path / "store")
    for path in (grown / "9-first").iterdir():
        path.unlink()
    (grown / "coming").mkdir()
    (grown / "half").mkdir()
    (grown / "half" / "1.png").touch()
    with pytest.raises(FolderError, match="9-first: the class folder has no picture") as caught:
        learner.learn(grown, CONFIG)
    assert len(caught.value.faults) == 3
    report = learner.learn(grown, CONFIG, update=True)
    assert (report.images, report.updated_classes, report.learned_before) == (3, ["z-second"], 8)
    assert report.skipped == [
        {"path": str(grown / "9-first"), "why": "no picture"},
        {"path": str(grown / "coming"), "why": "no picture"},
        {"path": str(grown / "half" / "1.png"), "why": "zero bytes"},
    ]
    assert "coming" not in report.known_classes and "9-first" in report.known_classes


@pytest.mark.parametrize("store", ["blank", "taught"])
def test_where_no_picture_has_come_yet_nothing_changes(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    learner, folder = copied(request.getfixturevalue(store), tmp_path / "store"), tmp_path / "folder"
    (folder / "coming").mkdir(parents=True)
    head = learner.store.head
    report = learner.learn(folder, CONFIG, update=True)
    assert (report.images, report.notes) == (0, ["No picture is new: nothing was changed."])
    assert learner.store.head == head
    bundle = tmp_path / "bundle"
    report = learner.learn(folder, CONFIG, update=True, export=bundle)
    assert bundle.exists() == (store == "taught")
    assert ("No class is known yet: nothing was exported." in report.notes) == (store == "blank")
    run = edge_cl("learn", "--new-classes", folder, "--update", "--dry-run", "--store", learner.store.path)
    assert "There is no new picture to learn from." in run.err and "held out" not in run.out


def test_a_folder_without_anything_so_far_is_no_fault(taught: Learner, tmp_path: Path) -> None:
    """Neither that of the classes, with a store or without, nor that of the negatives beside new pictures."""
    store, folder, nothing = copied(taught, tmp_path / "store").store.path, tmp_path / "folder", tmp_path / "nothing"
    folder.mkdir()
    nothing.mkdir()
    (nothing / "broken.jpg").touch()
    for place in (store, tmp_path / "none"):
        for more in ([], ["--negatives", nothing], ["--dry-run"]):
            args = ["learn", "--new-classes", folder, "--store", place, *more, "--json"]
            assert edge_cl(*args, "--update").json["images"] == 0
            assert f"{folder} has no class folders" in edge_cl(*args).error
    assert not (tmp_path / "none").exists()
    write_looks(folder, THIRD)
    args = ["learn", "--new-classes", folder, "--store", store, "--negatives", nothing, "--json"]
    assert "no readable picture" in edge_cl(*args).error
    value = edge_cl(*args, "--update").json
    assert (value["images"], value["skipped"]) == (16, [{"path": str(nothing / "broken.jpg"), "why": "zero bytes"}])


def test_pictures_of_no_class_are_a_fault_of_a_growing_folder_too(tmp_path: Path) -> None:
    write_looks(tmp_path, {"folder": 0}, 2)
    with pytest.raises(FolderError, match="2 pictures lie directly in it"):
        read_folder(tmp_path / "folder", growing=True)


def test_a_dry_run_looks_at_negatives_too(taught: Learner, tmp_path: Path, grown: Path) -> None:
    store, nothing = copied(taught, tmp_path / "store").store.path, write_looks(tmp_path / "nothing", THIRD)
    args = ["learn", "--new-classes", grown, "--update", "--dry-run", "--store", store, "--negatives"]
    broken = next(nothing.iterdir()) / "broken.jpg"
    broken.write_bytes(b"no picture")
    value = edge_cl(*args, nothing, "--json").json
    assert value["negatives"] == 16
    assert value["skipped"] == [{"path": str(broken), "why": "not a picture"}]
    assert "The unknown test would be tightened by 16 pictures." in edge_cl(*args, nothing).err
    assert edge_cl(*args, tmp_path / "missing").code == 1


def test_a_dry_run_without_a_store_takes_a_growing_folder_and_negatives(tmp_path: Path) -> None:
    folder, nothing = write_looks(tmp_path / "folder", FIRST), write_looks(tmp_path / "nothing", THIRD, 2)
    (folder / "coming").mkdir()
    (nothing / "broken.jpg").write_bytes(b"no picture")
    args = ("learn", "--new-classes", folder, "--dry-run", "--store", tmp_path / "none", "--negatives", nothing)
    value = edge_cl(*args, "--update", "--json").json
    assert ([c["name"] for c in value["classes"]], value["negatives"]) == (sorted(FIRST), 2 * len(THIRD))
    assert value["skipped"] == [
        {"path": str(folder / "coming"), "why": "no picture"},
        {"path": str(nothing / "broken.jpg"), "why": "not a picture"},
    ]
    assert "coming: the class folder has no picture" in edge_cl(*args).err
    assert not (tmp_path / "none").exists()


def test_a_dry_run_tells_what_is_new(taught: Learner, tmp_path: Path, grown: Path) -> None:
    store = copied(taught, tmp_path / "store").store.path
    value = edge_cl("learn", "--new-classes", grown, "--update", "--dry-run", "--json", "--store", store).json
    assert value["classes"] == [{"name": "z-second", "state": "known", "pictures": 3, "hold_out": 0}]
    assert (value["images"], value["skipped"], value["learned_before"]) == (3, [], 16)
    run = edge_cl("learn", "--new-classes", grown, "--update", "--dry-run", "--store", store)
    assert "It would pass over 16 pictures that were learned before." in run.err


def test_pictures_learned_before_take_one_line(taught: Learner, tmp_path: Path, grown: Path) -> None:
    store = copied(taught, tmp_path / "store").store.path
    args: list[object] = ["learn", "--new-classes", grown, "--update", "--store", store]
    for command, passed_over in ((args, 16), ([*args, "--seed", 5], 19)):
        run = edge_cl(*command)
        assert run.code == 0 and "skipped" not in run.err
        assert f"passed over: {passed_over} pictures that were learned before" in run.err
        assert "log --report" in run.err
    edge_cl("forget", "8-first", "--store", store)
    assert "log --report" not in edge_cl(*args).err  # the version in force is no learn, and has none


def test_the_report_tells_new_classes_from_known_ones(taught: Learner, tmp_path: Path, grown: Path) -> None:
    """In words and in Markdown; where no class is new, there is no accuracy of new ones."""
    store = copied(taught, tmp_path / "store").store.path
    looks = {"new": THIRD, "nothing": {"x": 15}}
    new, nothing = (write_looks(tmp_path / name, look) for name, look in looks.items())
    learn: list[object] = ["learn", "--update", "--store", store, "--new-classes"]
    write_looks(new, {"z-second": FIRST["z-second"]}, 1, first=200)
    both = (
        ("new classes", 2),
        ("known classes with new pictures", 1),
        ("pictures learned from", "17, 2 of them held out"),
    )
    known = (("known classes with new pictures", 1), ("pictures learned from", 3))
    none = (("pictures learned from", 0),)
    for args, counts, title in (
        ([new], both, "task-3"),
        ([grown], known, "more pictures of known classes"),
        ([grown], none, ""),
        ([grown, "--negatives", nothing], (("pictures of nothing known", 8),), "pictures of nothing known"),
    ):
        out = " ".join(edge_cl(*learn, *args).out.split())
        expected = [*counts, ("classes known", 6)]
        assert " ".join(f"{name} {count}" for name, count in expected) in out
        assert ("new classes" in out) == ("accuracy on new classes" in out) == (counts is both)
        page = edge_cl("log", "--report", "--store", store).out
        if title:  # else no version was made
            assert page.startswith(f"# Learned {title}\n\n| | |\n|---|---|\n")
            assert "".join(f"| {name} | {count} |\n" for name, count in expected) in page
            assert ("| new classes, among all known |" in page) == (counts is both)
