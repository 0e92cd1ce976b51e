"""`--json`: one object on stdout for every verb, and its fields."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import FIRST, SECOND, flat, init_options
from small import BACKBONE, CONFIG, IMAGE_SIZE, edge_cl, write_looks
from typer.testing import CliRunner

from edge_cl import Learner
from edge_cl.cli import app
from edge_cl.store import Store


def _learn_fields(value: Mapping[str, Any]) -> None:
    assert isinstance(value["version"], int)
    assert value["epochs"] == 0 or value["epochs"] == 1
    assert set(value["seconds"]) >= {"total", "scan", "shared", "prefix", "train", "head"}
    assert all(isinstance(s, float) and s >= 0 for s in value["seconds"].values())
    assert value["peak_memory_mb"] > 0
    assert set(value["old_class_accuracy"]) == {"before", "after"}
    for fraction in (value["holdout_accuracy"], *value["old_class_accuracy"].values()):
        assert fraction is None or 0 <= fraction <= 1
    assert -1 <= value["forgetting"] <= 1
    assert value["skipped"] == []


def test_json_of_init(made: Path, tmp_path: Path) -> None:
    value = edge_cl("init", *init_options(made), "--json", "--store", tmp_path / "s").json
    assert value["version"] == 0
    assert value["backbone"]["name"] == BACKBONE
    assert value["backbone"]["image_size"] == IMAGE_SIZE
    assert value["store"] == str(tmp_path / "s")
    assert Store.open(tmp_path / "s").check() == []


def test_json_of_learn(made: Path, store: Path) -> None:
    run = edge_cl("learn", "--new-classes", made / "second", "--task", "fruit", "--json", "--store", store)
    value = run.json
    _learn_fields(value)
    assert (value["version"], value["task"], value["classes"]) == (2, "fruit", sorted(SECOND))
    assert value["known_classes"] == [*sorted(FIRST), *sorted(SECOND)]
    assert (value["images"], value["hold_out"]) == (16, 2)
    assert value["old_class_accuracy"]["before"] is not None
    assert "head" in run.err or "statistics" in run.err  # progress goes to stderr


def test_json_of_learn_with_adapters(made: Path, store: Path) -> None:
    more = write_looks(store.parent / "many", {f"c{look}": look for look in (1, 4, 7, 8, 13)}, 12)
    value = edge_cl("learn", "--new-classes", more, "--epochs", "1", "--seed", "4", "--store", store, "--json").json
    _learn_fields(value)
    assert value["epochs"] == 1
    settings = Store.open(store).head.record["settings"]
    assert isinstance(settings, Mapping)
    assert (settings["epochs"], settings["seed"], settings["method"]) == (1, 4, "cl-lora")


def test_json_of_update(made: Path, store: Path) -> None:
    more = write_looks(store.parent / "more", FIRST, 3, first=50)
    value = edge_cl("learn", "--new-classes", more, "--update", "--json", "--store", store).json
    _learn_fields(value)
    assert (value["task"], value["classes"], value["known_classes"]) == (None, [], sorted(FIRST))


def test_json_of_dry_run(made: Path, store: Path, tmp_path: Path) -> None:
    folder = write_looks(write_looks(tmp_path / "mixed", {"nut": 0}, 3, first=50), SECOND)
    (folder / "pear" / "broken.jpg").write_bytes(b"x")
    before = Store.open(store).head
    args = ["learn", "--new-classes", folder, "--dry-run", "--json"]
    value = edge_cl(*args, "--update", "--store", store).json
    assert value["images"] == 19
    assert value["skipped"] == [{"path": str(folder / "pear" / "broken.jpg"), "why": "not a picture"}]
    assert value["classes"] == [
        {"name": "apple", "state": "new", "pictures": 8, "hold_out": 1},
        {"name": "nut", "state": "known", "pictures": 3, "hold_out": 0},
        {"name": "pear", "state": "new", "pictures": 8, "hold_out": 1},
    ]
    assert Store.open(store).head == before
    assert edge_cl(*args, "--store", store).code == 1  # a known class, and no --update
    value = edge_cl(*args, "--store", tmp_path / "none").json
    assert {c["state"] for c in value["classes"]} == {"new"}
    assert not (tmp_path / "none").exists()


def test_json_of_predict(made: Path, store: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"x")
    one = made / "fresh" / "bolt" / "101.png"
    value = edge_cl("predict", made / "fresh", one, broken, "--top", 2, "--json", "--store", store).json
    assert value["skipped"] == [{"path": str(broken), "why": "not a picture"}]
    assert [a["source"] for a in value["predictions"]].count(str(one)) == 2
    assert len(value["predictions"]) == 10
    for answer in value["predictions"]:
        assert {"source", "label", "confidence", "unknown", "top"} <= set(answer)
        assert answer["label"] == Path(answer["source"]).parent.name
        assert isinstance(answer["unknown"], bool)
        assert len(answer["top"]) == 2
        assert answer["top"][0] == {"label": answer["label"], "confidence": answer["confidence"]}
        assert 1 >= answer["confidence"] >= answer["top"][1]["confidence"] >= 0
    everything = edge_cl("predict", one, "--top", 99, "--json", "--store", store).json["predictions"]
    assert len(everything[0]["top"]) == 3


def test_predictions_come_in_the_order_of_the_sources(made: Path, store: Path) -> None:
    sources = [made / "fresh" / f"{name}.png" for name in ("washer/101", "bolt/102", "nut/100", "bolt/101")]
    value = edge_cl("predict", *sources, "--json", "--store", store).json
    assert [a["source"] for a in value["predictions"]] == [str(s) for s in sources]


@pytest.mark.parametrize("rule", ["routed", "base", "published"])
def test_json_of_eval(made: Path, store: Path, rule: str) -> None:
    value = edge_cl("eval", made / "fresh", "--rule", rule, "--json", "--store", store).json
    assert value["images"] == 9
    assert set(value["per_class"]) == set(FIRST)
    for fraction in (value["accuracy"], value["macro_accuracy"], value["unknown_rate"], *value["per_class"].values()):
        assert 0 <= fraction <= 1
    assert value["per_task"] == [value["accuracy"]]
    assert value["accuracy"] >= 0.8
    assert value["seconds"] > 0


def test_eval_tells_strangers_and_what_was_taken_for_what(made: Path, store: Path, tmp_path: Path) -> None:
    fresh = write_looks(tmp_path / "fresh", {"nut": FIRST["nut"], "bolt": FIRST["washer"]}, 3, first=100)  # bolts
    strange = write_looks(tmp_path / "strange", {"deep/down": 17}, 4)
    (strange / "broken.jpg").write_bytes(b"x")
    command = ("eval", fresh, "--store", store)
    value = edge_cl(*command, "--unknown", strange, "--json").json
    assert value["confusions"] == [{"class": "bolt", "taken_for": "washer", "count": 3}]
    assert value["skipped"] == [{"path": str(strange / "broken.jpg"), "why": "not a picture"}]
    answers = edge_cl("predict", strange, "--store", store, "--json").json["predictions"]
    share = sum(a["unknown"] for a in answers) / 4
    assert value["unknown_pictures"] == {"images": 4, "called_unknown": share}
    alone = edge_cl(*command, "--json").json
    measured = value.keys() - {"seconds", "skipped", "unknown_pictures"}
    assert {name: alone[name] for name in measured} == {name: value[name] for name in measured}
    assert alone["unknown_pictures"] is None
    shown = flat(edge_cl(*command, "--unknown", strange).out)
    assert (
        f"called unknown of --unknown {share:.1%} (4 pictures)".replace("%", " %") in shown
        and "bolt taken for washer 3" in shown
    )
    assert "nothing known" not in edge_cl(*command).out
    run = edge_cl(*command, "--unknown", "nowhere", "--json")
    assert run.code == 1 and run.error.startswith("nowhere: missing")


def test_eval_counts_tasks_as_they_were_taught(made: Path, store: Path, tmp_path: Path) -> None:
    Learner.open(store, device="cpu").learn(made / "second", CONFIG)
    fresh = write_looks(tmp_path / "fresh", SECOND, 2, first=100)
    for _ in range(2):  # the second time, the first task is forgotten
        value = edge_cl("eval", fresh, "--json", "--store", store).json
        assert value["per_task"] == [None, value["accuracy"]]
        shown = edge_cl("eval", fresh, "--store", store).out
        assert "task 2" in shown and "task 1" not in shown
        edge_cl("forget", *FIRST, "--store", store)


def test_json_of_classes_rename_forget_rollback(store: Path) -> None:
    table = edge_cl("classes", "--json", "--store", store).json["classes"]
    assert [(c["id"], c["name"], c["task"], c["pictures"]) for c in table] == [
        (i, name, "parts", 8) for i, name in enumerate(sorted(FIRST))
    ]
    value = edge_cl("rename", "nut", "hex nut", "--json", "--store", store).json
    assert value == {"version": 2, "old": "nut", "new": "hex nut", "export": None}
    value = edge_cl("forget", " bolt", "washer", "bolt", "--json", "--store", store).json
    assert (value["version"], value["forgotten"]) == (3, ["bolt", "washer"])
    assert value["known_classes"] == ["hex nut"]
    value = edge_cl("rollback", "--json", "--store", store).json
    assert (value["version"], sorted(value["known_classes"])) == (2, ["bolt", "hex nut", "washer"])
    value = edge_cl("rollback", "1", "--json", "--store", store).json
    assert (value["version"], value["known_classes"]) == (1, sorted(FIRST))


def test_json_of_prune(store: Path) -> None:
    edge_cl("rename", "nut", "hex nut", "--store", store)
    edge_cl("forget", "bolt", "--store", store)
    sizes = [path.stat().st_size for path in (store / "objects").glob("*/*")]
    planned = edge_cl("prune", "--keep", "1", "--dry-run", "--json", "--store", store).json
    assert (planned["removed"], planned["versions"], planned["dry_run"]) == ([0, 1, 2], [3], True)
    assert [v.number for v in Store.open(store).versions()] == [0, 1, 2, 3]
    value = edge_cl("prune", "--keep", "1", "--json", "--store", store).json
    assert value == {**planned, "dry_run": False}
    assert sum(sizes) - value["freed_bytes"] == sum(p.stat().st_size for p in (store / "objects").glob("*/*"))
    run = edge_cl("rollback", "--store", store)
    assert (run.code, "Version 2, the one before, was pruned." in flat(run.err)) == (1, True)
    value = edge_cl("prune", "--json", "--store", store).json
    assert (value["removed"], value["versions"], value["freed_bytes"]) == ([], [3], 0)
    assert [c["name"] for c in edge_cl("classes", "--json", "--store", store).json["classes"]] == ["hex nut", "washer"]


def test_rename_answers_with_the_name_that_is_kept(store: Path) -> None:
    value = edge_cl("rename", "nut", " Cafe\u0301 ", "--json", "--store", store).json
    names = [c["name"] for c in edge_cl("classes", "--json", "--store", store).json["classes"]]
    assert "Caf\u00e9" in names
    assert value["new"] == "Caf\u00e9"


def test_json_of_log(store: Path) -> None:
    edge_cl("forget", "bolt", "--store", store)
    edge_cl("rollback", "--store", store)
    value = edge_cl("log", "--json", "--store", store).json
    assert value["head"] == 1
    assert [(v["version"], v["parent"], v["task"]) for v in value["versions"]] == [
        (0, None, None),
        (1, 0, "parts"),
        (2, 1, None),
    ]
    assert [v["forgotten"] for v in value["versions"]] == [[], [], ["bolt"]]
    for version in value["versions"]:
        assert {"version", "parent", "task", "classes", "created", "holdout_accuracy"} <= set(version)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", version["created"])
    assert value["versions"][1]["classes"] == sorted(FIRST)
    assert 0 <= value["versions"][1]["holdout_accuracy"] <= 1


def test_json_of_saved_report(store: Path) -> None:
    value = edge_cl("log", "--report", "--json", "--store", store).json
    assert (value["version"], value["classes"]) == (1, sorted(FIRST))
    assert all(Path(path).is_file() for path in value["files"].values())
    run = edge_cl("log", "--report", "--store", store)
    assert run.out.startswith("# Learned parts\n")
    subprocess.run(run.err.splitlines()[-1].removeprefix("Its plot, as a file to be opened: "), shell=True, check=True)
    assert Path("plot.png").read_bytes() == Path(value["files"]["plot.png"]).read_bytes()
    edge_cl("forget", "nut", "--store", store)
    run = edge_cl("log", "--report", "--json", "--store", store)
    assert run.code == 1 and run.error
    assert "Version 2 is no learn" in flat(run.err)


def test_saved_report_has_the_names_of_now(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for old, new in (("nut", "x"), ("bolt", "nut"), ("x", "bolt")):  # two swap their names
        edge_cl("rename", old, new, "--store", store)
    edge_cl("rename", "washer", "ring", "--store", store)
    edge_cl("prune", "--keep", "1", "--store", store)
    saved = Learner.open(store).store.read_json(Store.open(store).head, "metrics.json")
    monkeypatch.setitem(saved, "confusions", [{"class": "washer", "taken_for": "nut", "count": 3}])
    monkeypatch.setitem(saved, "class_accuracy", {"nut": 0.25, "bolt": 1.0, "washer": 0.5})
    read = Store.read_json
    monkeypatch.setattr(Store, "read_json", lambda s, v, name: saved if name == "metrics.json" else read(s, v, name))
    value = edge_cl("log", "--report", "--json", "--store", store).json
    assert (value["version"], value["classes"], value["known_classes"]) == (1, *[["nut", "bolt", "ring"]] * 2)
    assert value["class_accuracy"] == {"bolt": 0.25, "nut": 1.0, "ring": 0.5}
    assert value["confusions"] == [{"class": "ring", "taken_for": "bolt", "count": 3}]
    assert "'washer' is 'ring'" in value["notes"][-1]
    page = edge_cl("log", "--report", "--store", store).out
    stages = [line.split(" | ")[0][2:] for line in page.split("| stage ")[1].splitlines()[2:] if line.startswith("|")]
    assert stages == ["total", "scan", "shared", "prefix", "train", "head", "start and finish"]  # as saved
    assert "- ring taken for bolt: 3" in page and "- bolt: 25.0 %" in page
    monkeypatch.delitem(saved, "calibration")  # of an earlier release: the page is as it was saved
    assert edge_cl("log", "--report", "--json", "--store", store).json["classes"] == ["nut", "bolt", "ring"]
    assert edge_cl("log", "--report", "--store", store).out.startswith("# Learned parts\n")


def test_a_program_that_calls_the_app_has_options_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--json"])
    assert CliRunner().invoke(app, ["log", "--repot"]).stdout == ""
    monkeypatch.setattr(sys, "argv", ["program"])
    assert "--repot" in json.loads(CliRunner().invoke(app, ["log", "--repot", "--json"]).stdout)["error"]
