"""`edge-cl export` and `edge-cl learn --export`: one JSON object, what is refused before any work, and what is kept."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from deployed import LOOK, Deployed, frames, graphs_once
from forgeries import state
from small import Run, edge_cl, write_looks

from edge_cl import deployment
from edge_cl.deployment import export_after
from edge_cl.durable import replace_bytes
from edge_cl.export.bundle import ENGINES
from edge_cl.export.exporter import CLASSIFIER, Snapshot
from edge_cl.export.publication import LOCK
from edge_cl.learner import Learner
from edge_cl.progress import no_progress
from edge_cl.report import LearnReport
from edge_cl.runtime import Classifier
from edge_cl.runtime.nvidia import WITH_JETPACK


@pytest.fixture
def store(deployed: Deployed, tmp_path: Path) -> Path:
    return deployed.learner(tmp_path / "store").store.path


def learn(store: Path, *options: object) -> Run:
    folder = write_looks(store.parent / "new", {"h": 7, "i": 3}, 6)
    with graphs_once():
        return edge_cl("learn", "--new-classes", folder, "--method", "prototype", "--store", store, *options)


def flat(run: Run) -> str:
    return " ".join(run.err.split())


def test_json_of_export(deployed: Deployed, store: Path, tmp_path: Path) -> None:
    out = deployed.copy(tmp_path / "bundle")
    value: dict[str, Any] = edge_cl("export", out, "--store", store, "--json").json
    assert value.pop("seconds") > 0 and value.pop("classifier_s") > 0
    assert value.pop("written_bytes") == (out / "manifest.json").stat().st_size
    expected = {"path": str(out), "format": "onnx", "version": 4, "layout": "shared", "precision": "fp32"}
    assert value == {**expected, "graphs_built": False, "removed_classes": []}
    run = edge_cl("export", out, "--store", store)
    assert (run.code, run.out) == (0, "")
    assert f"Version 4 is at {out}: " in flat(run)


def test_learn_updates_a_bundle(deployed: Deployed, store: Path, tmp_path: Path) -> None:
    out = deployed.copy(tmp_path / "bundle")
    classifier = Classifier(out)
    run = learn(store, "--export", out, "--json")
    value = run.json
    assert "write the bundle ..." in run.err
    assert value["version"] == value["export"]["version"] == 5
    assert value["export"]["path"] == str(out)
    assert value["export"]["graphs_built"] is False
    assert {"layout", "precision", "seconds", "written_bytes"} <= set(value["export"])
    assert classifier.reload()
    assert classifier.version == 5
    assert classifier.classes == [*LOOK, "h", "i"]
    names = ["b", "a", "f"]
    assert [p.label for p in classifier.predict(frames(*names))] == names
    assert (out / CLASSIFIER).stat().st_mtime_ns > (deployed.bundle() / CLASSIFIER).stat().st_mtime_ns


@pytest.mark.parametrize("verb", ["export", "learn"])
def test_an_export_that_is_overtaken_does_not_put_the_older_version_back(
    deployed: Deployed, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Between its look at the store and its work, another process forgets a class, and exports that."""
    out = deployed.copy(tmp_path / "bundle")
    write, taken = deployment.export_snapshot, list[int]()

    def late(snapshot: Snapshot, out: Path, **options: Any) -> dict[str, Any]:
        taken.append(snapshot.version)
        if len(taken) == 1:
            other = Learner.open(store, device="cpu")
            other.forget(["c"])
            write(other.snapshot(), out)
        return write(snapshot, out, **options)

    monkeypatch.setattr(deployment, "export_snapshot", late)
    if verb == "export":
        with graphs_once():
            value = edge_cl("export", out, "--store", store, "--json").json
    else:
        value = learn(store, "--export", out, "--json").json["export"]
    head = Learner.open(store).store.head
    assert taken == [head.number - 1, head.number]
    assert value["version"] == Classifier(out).version == head.number
    assert Classifier(out).classes == head.record["classes"]
    assert "c" not in Classifier(out).classes


def test_a_learn_whose_version_is_undone_meanwhile_keeps_its_report(
    deployed: Deployed, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in force then knows no class, and cannot be exported."""
    out, write = deployed.copy(tmp_path / "bundle"), deployment.export_snapshot

    def late(snapshot: Snapshot, out: Path, **options: Any) -> dict[str, Any]:
        Learner.open(store, device="cpu").rollback(0)
        return write(snapshot, out, **options)

    monkeypatch.setattr(deployment, "export_snapshot", late)
    run = learn(store, "--export", out, "--json")
    assert (run.code, json.loads(run.out)["version"]) == (1, 5)
    assert "knows no class yet" in run.err and Learner.open(store).store.head.number == 0


def test_learn_without_export(store: Path) -> None:
    assert learn(store, "--json").json["export"] is None


def test_a_foreign_directory_stops_the_learn_before_it_begins(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("x")
    before = state(out)
    run = learn(store, "--export", out, "--json")
    assert run.code == 1 and run.error
    assert "holds other files and is no bundle. Name a new directory, or a bundle to bring up to date." in flat(run)
    assert "statistics" not in run.err  # no stage was begun
    assert Learner.open(store).store.head.number == 4
    assert state(out) == before


def test_classes_that_leave_a_bundle_are_told(deployed: Deployed, store: Path, tmp_path: Path) -> None:
    """They were forgotten; or the bundle was another store's, and the path a mistake."""
    out = deployed.copy(tmp_path / "bundle")
    edge_cl("forget", "c", "f", "--store", store)
    value = learn(store, "--export", out, "--json").json
    assert value["export"]["removed_classes"] == ["c", "f"]
    gone = "The bundle no longer knows 'c', 'f', as the store does not (forgotten, renamed, or of another store)."
    assert value["notes"][-1] == gone
    edge_cl("rename", "a", "z", "--store", store)
    said = flat(edge_cl("export", out, "--store", store))
    assert "No longer in it, as forgotten, renamed, or of another store: a." in said
    assert re.search(r": \d+\.\d\d s, [\d.]+ MB written; \d+\.\d\d s more for classifier\.onnx\.", said)


def test_a_learn_says_the_seconds_of_its_export(store: Path, tmp_path: Path) -> None:
    said = flat(learn(store, "--export", tmp_path / "bundle"))
    assert re.search(r"exported: \S+ in \d+\.\d\d s, and \d+\.\d\d s more for classifier\.onnx", said)


def test_a_bundle_goes_along_with_rename_forget_and_rollback(deployed: Deployed, store: Path, tmp_path: Path) -> None:
    out = deployed.copy(tmp_path / "bundle")
    common = ("--export", out, "--store", store)
    value = edge_cl("rename", "a", "z", *common, "--json").json
    assert (value["export"]["path"], value["export"]["version"]) == (str(out), 5)
    assert value["export"]["removed_classes"] == ["a"] and "z" in Classifier(out).classes
    said = edge_cl("forget", "z", "c", *common).err
    assert "Forgot z, c; " in said and f"exported: {out} in " in said and "A bundle keeps" not in said
    assert not {"a", "c", "z"} & set(Classifier(out).classes)
    assert edge_cl("rollback", "4", *common, "--json").json["export"]["version"] == 4
    assert Classifier(out).classes == Classifier(deployed.bundle()).classes
    said = edge_cl("rollback", "0", *common).err
    assert f"No class is known: {out} is left as it is." in said and Classifier(out).version == 4
    assert edge_cl("rollback", "0", *common, "--json").json["export"] is None


def test_a_bundle_that_cannot_be_written_undoes_nothing(deployed: Deployed, store: Path, tmp_path: Path) -> None:
    out = deployed.copy(tmp_path / "bundle")
    with (out / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = edge_cl("forget", "c", "--export", out, "--store", store, "--json")
    forgotten = json.loads(run.out)
    assert (run.code, forgotten["version"], forgotten["forgotten"]) == (1, 5, ["c"])
    assert forgotten["export"]["error"].startswith("Another process is writing the bundle")
    assert f"Version 5 of {store} is in force." in flat(run)
    assert f"edge-cl export {out} --store {store}" in flat(run)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    run = edge_cl("forget", "b", "--export", tmp_path / "mine", "--store", store, "--json")
    assert run.code == 1 and "holds other files" in run.error
    assert Learner.open(store).store.head.number == 5


def test_a_bundle_that_cannot_be_written_after_the_learn(deployed: Deployed, store: Path, tmp_path: Path) -> None:
    """The classes are learned, and the message says so, and how to go on."""
    out = deployed.copy(tmp_path / "bundle")
    with (out / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = learn(store, "--export", out, "--json")
    learned = json.loads(run.out)
    assert (run.code, learned["version"], learned["classes"]) == (1, 5, ["h", "i"])
    assert learned["export"]["path"] == str(out)
    assert learned["export"]["error"].startswith("Another process is writing the bundle")
    assert "Another process is writing the bundle" in flat(run)
    assert f"The classes are learned: version 5 of {store} holds them." in flat(run)
    assert f"edge-cl export {out} --store {store}" in flat(run)
    assert Learner.open(store).store.head.number == 5
    assert Classifier(out).version == 4
    assert edge_cl("export", out, "--store", store, "--json").json["version"] == 5


def test_graphs_that_take_more_memory_than_was_allowed_are_told(
    deployed: Deployed, store: Path, tmp_path: Path
) -> None:
    """They are made after the learn, which kept to its limit."""
    learner = Learner.open(store)
    kept = LearnReport(**learn(store, "--json").json)
    kept = replace(kept, peak_memory_mb=1.0, budget={**kept.budget, "memory_mb": 2.0})
    with graphs_once():
        first, second = (
            export_after(kept, [learner.snapshot()], tmp_path / "bundle", no_progress, store) for _ in range(2)
        )
    assert re.fullmatch(r"Making the bundle's graphs took \d+ MB, more than the 2 MB allowed; .*", first.notes[-1])
    assert second.notes == kept.notes


def test_engines_that_cannot_be_made_here_stop_the_learn_before_it_begins(
    deployed: Deployed, store: Path, tmp_path: Path
) -> None:
    out = deployed.copy(tmp_path / "a bundle")
    (out / ENGINES).mkdir()
    run = learn(store, "--export", out, "--json")
    assert run.code == 1 and run.error
    assert f"tensorrt is not installed. {WITH_JETPACK} Or leave --export out, then:" in flat(run)
    assert f"edge-cl export '{out}' --format onnx" in flat(run)
    assert Learner.open(store).store.head.number == 4
    assert edge_cl("export", out, "--format", "onnx", "--store", store).code == 0


def test_a_full_disk_says_which_file_stayed_behind(deployed: Deployed, store: Path, tmp_path: Path) -> None:
    out = deployed.copy(tmp_path / "bundle")
    (out / CLASSIFIER).write_bytes(b"")
    learn(store)

    def full(path: Path, data: bytes) -> None:
        if path.name == CLASSIFIER:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace_bytes(path, data)

    with mock.patch("edge_cl.export.exporter.replace_bytes", full), graphs_once():
        run = edge_cl("export", out, "--store", store, "--json")
    assert run.code == 1 and run.error
    assert f"{out / CLASSIFIER} could not be written" in flat(run)
    assert "No space left on device. The bundle itself is in force." in flat(run)
    assert Classifier(out).version == 5
