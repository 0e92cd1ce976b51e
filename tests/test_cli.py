"""The command line: one JSON object, exit statuses, messages that name the way on, and what must not be loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from bad_pictures import ACCEPTED, IGNORED, write_bad_folder
from small import BACKBONE, CONFIG, IMAGE_SIZE, Run, edge_cl, write_looks, write_weights
from typer.testing import CliRunner

from edge_cl import Learner
from edge_cl.cli import app
from edge_cl.config import SHIPPED
from edge_cl.decode import path_text
from edge_cl.store import Store

FIRST = {"nut": 0, "bolt": 5, "washer": 10}
SECOND = {"apple": 14, "pear": 2}
VERBS = ("init", "learn", "predict", "eval", "classes", "rename", "forget", "log", "rollback", "prune")


@pytest.fixture(autouse=True)
def no_store_in_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EDGE_CL_STORE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds two files of weights, the folders `first`, `second` and `fresh`, and `store`, which knows `first`."""
    root = tmp_path_factory.mktemp("made")
    write_weights(root / "weights.safetensors")
    write_weights(root / "other.safetensors", seed=1)
    write_looks(root / "first", FIRST)
    write_looks(root / "second", SECOND)
    write_looks(root / "fresh", FIRST, 3, first=100)
    learner = Learner.init(
        root / "store",
        backbone=BACKBONE,
        weights=root / "weights.safetensors",
        image_size=IMAGE_SIZE,
        device="cpu",
    )
    learner.learn(root / "first", CONFIG, task="parts")
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of the store that knows the first classes."""
    return shutil.copytree(made / "store", tmp_path / "store")


def init_options(made: Path) -> list[object]:
    return ["--backbone", BACKBONE, "--weights", made / "weights.safetensors", "--image-size", IMAGE_SIZE]


def script(*args: object, cwd: Path, **environment: str) -> Run:
    """Run the installed `edge-cl` as its own process."""
    command = [str(Path(sys.executable).parent / "edge-cl"), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})
    return Run(done.returncode, done.stdout, done.stderr)


def flat(text: str) -> str:
    """Return text as one line."""
    return " ".join(text.split())


# -- the whole way, as a user goes it -----------------------------------


def test_first_steps_as_processes(made: Path, tmp_path: Path) -> None:
    """Learn without a store, ask, go on: each its own process, with the default store of the working directory."""
    learned = script("learn", "--new-classes", made / "first", *init_options(made), "--json", cwd=tmp_path)
    assert learned.json["classes"] == sorted(FIRST)
    assert "There is no store at edge_cl_store yet: making one." in learned.err
    assert f"Made edge_cl_store around {BACKBONE} at {IMAGE_SIZE} px." in flat(learned.err)
    assert Store.open(tmp_path / "edge_cl_store").head.number == 1

    asked = script("predict", made / "fresh", "--json", cwd=tmp_path, EDGE_CL_STORE=str(tmp_path / "edge_cl_store"))
    answers = asked.json["predictions"]
    assert [Path(a["source"]).parent.name for a in answers] == [a["label"] for a in answers]

    refused = script("rename", "nutt", "x", "--json", cwd=tmp_path)
    assert refused.code == 1 and refused.error
    assert "Traceback" not in refused.err
    assert flat(refused.err).startswith("error: ")

    usage = script("learn", "--epochs", "0", "--new-classes", "x", cwd=tmp_path)
    assert (usage.code, usage.out) == (2, "")


def test_help(tmp_path: Path) -> None:
    run = edge_cl("--help")
    assert run.code == 0
    assert set(VERBS) <= set(re.findall(r"\w+", run.out))
    for verb in VERBS:
        run = edge_cl(verb, "--help")
        assert run.code == 0
        assert "--json" in run.out
        assert "--store" in run.out
        flags = [line for line in run.out.splitlines() if "<bool>" in line]
        assert all("--help" in line for line in flags)  # that one is typer's own


# -- --json -------------------------------------------------------------


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


def test_init_names_the_shipped_backbone_and_not_the_architecture_it_is_a_variant_of(tmp_path: Path) -> None:
    assert f"around {SHIPPED} at 128 px." in flat(edge_cl("init", "--store", tmp_path / "s").err)


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
    assert value == {"version": 2, "old": "nut", "new": "hex nut"}
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


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_answers_that_cannot_be_written(store: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "edge_cl.cli", "classes", "--store", store, *options]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: No space left on device.\n")
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], capture_output=True, text=True, check=False)
    assert (closed.returncode, closed.stderr) == (0, "")
    command[command.index(store)] = tmp_path / "none"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 2, done.stderr


def test_the_version_of_the_program() -> None:
    run = edge_cl("--version")
    assert (run.code, run.out) == (0, f"edge-cl {metadata.version('edge-cl')}\n")


def test_json_of_what_cannot_be_done(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = edge_cl("forget", "nutt", "bold", "--json", "--store", store)
    faults = ["There is no class 'nutt'. Did you mean nut?", "There is no class 'bold'. Did you mean bolt?"]
    assert (run.code, json.loads(run.out)) == (
        1,
        {"error": " ".join(faults), "mend": f"edge-cl classes --store {store} lists what is known."},
    )
    assert run.err.splitlines() == [*(f"error: {fault}" for fault in faults), json.loads(run.out)["mend"]]
    assert edge_cl("forget", "nutt", "--store", store).out == ""
    assert edge_cl("forget", "--store", store, "--", "nutt", "--json").out == ""  # there it is a class
    assert edge_cl("rollback", "last", "--json").error.startswith("Invalid value for '[VERSION]'")
    assert "No such option" in edge_cl("log", "--repot", "--json").error
    monkeypatch.setattr(Store, "head", property(lambda self: (_ for _ in ()).throw(OSError(5, "Input/output error"))))
    assert edge_cl("log", "--json", "--store", store).error == "Input/output error."


def test_a_program_that_calls_the_app_has_options_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--json"])
    assert CliRunner().invoke(app, ["log", "--repot"]).stdout == ""
    monkeypatch.setattr(sys, "argv", ["program"])
    assert "--repot" in json.loads(CliRunner().invoke(app, ["log", "--repot", "--json"]).stdout)["error"]


@pytest.mark.parametrize(
    "args", [["init"], ["learn", "--new-classes", "FIRST"], ["export", "bundle", "--store", "STORE"]]
)
def test_no_place_for_temporary_files(made: Path, store: Path, tmp_path: Path, args: list[str]) -> None:
    """As where TMPDIR is not set or wrong, and /tmp, /var/tmp and the working directory are full or read-only."""
    places = {"FIRST": made / "first", "STORE": store}
    program = (
        "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/none']; from edge_cl.cli import main; main()"
    )
    command = [sys.executable, "-c", program, *(str(places.get(a, a)) for a in args)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}  # torch sets its own
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean, check=False)
    assert done.returncode == 1 and done.stdout == ""
    fault, mend = done.stderr.splitlines()[-2:]
    assert fault == "error: No usable temporary directory found in ['/none']." and mend.endswith(": export TMPDIR=DIR")


def test_a_terminal_that_cannot_show_a_name(store: Path, tmp_path: Path) -> None:
    edge_cl("rename", "nut", "罐頭 🥫", "--store", store)
    listed = script("classes", "--store", store, cwd=tmp_path, PYTHONIOENCODING="latin-1")
    assert listed.code == 0 and r"\u7f50\u982d" in listed.out
    names = [
        c["name"]
        for c in script("classes", "--store", store, "--json", cwd=tmp_path, PYTHONIOENCODING="latin-1").json["classes"]
    ]
    assert "罐頭 🥫" in names


def test_output_for_people(made: Path, store: Path) -> None:
    """Every verb without --json: it works, and names what it did."""
    for args, shown in {
        ("predict", made / "fresh" / "nut" / "100.png"): "100.png: nut ",
        ("classes",): "washer",
        ("log",): "learn parts",
        ("eval", made / "fresh"): "accuracy",
        ("learn", "--new-classes", made / "second", "--dry-run"): "apple",
        (
            "learn",
            "--new-classes",
            made / "second",
        ): "new classes 2 pictures learned from 16, 2 of them held out classes known 5 accuracy on new",
        ("rename", "nut", "x"): "nut is now x.",
        ("forget", "x"): f"Forgot x; edge-cl rollback --store {store} brings it back.",
        ("rollback",): "is in force.",
        ("prune", "--keep", "1", "--dry-run"): "Versions to delete: 0, 1, 2. To free: ",
        ("prune", "--keep", "1"): "MB. Left: 3, 4.",
    }.items():
        run = edge_cl(*args, "--store", store)
        assert run.code == 0, run.err
        assert shown in flat(run.out + run.err)


def test_the_limit_of_forgetting_is_of_one_learn_and_so_is_the_row_of_the_report(made: Path, store: Path) -> None:
    words = "that this one learn may cost the old classes (before - after)"
    assert words in flat(re.sub(r"[│╭╮╰╯─]", "", edge_cl("learn", "--help").out))
    run = edge_cl("learn", "--new-classes", made / "second", "--method", "prototype", "--store", store)
    assert "old classes before → after this learn" in run.out and "forgetting (best so far - now" in run.out


def test_a_learn_says_how_many_negatives_pass(made: Path, store: Path) -> None:
    args = ("learn", "--new-classes", made / "second", "--method", "prototype", "--store", store)
    run = edge_cl(*args, "--negatives", made / "fresh" / "nut")
    assert run.code == 0, run.err
    assert re.search(r"negatives not called unknown \d+\.\d % ", flat(run.out)), run.out


ODD_NAMES = {
    "plot mathematics": "$\\frac$",
    "two dollars": "$x_{$",
    "markup of nothing": "[bold]",
    "not Latin": "猫 🐈",
    "pipe": "a|b",
    "leading minus": "-x",
    "quotes": 'it\'s "5" `x` {y} %s',
}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=list(ODD_NAMES))
def test_odd_class_names_go_all_the_way(made: Path, store: Path, tmp_path: Path, name: str) -> None:
    folder = write_looks(tmp_path / "odd", {name: 14, "plain": 2}, 5)
    run = edge_cl("learn", "--new-classes", folder, "--task", name, "--store", store)
    assert run.code == 0, run.err
    for args in (["classes"], ["eval", folder], ["predict", folder], ["log"], ["log", "--report"]):
        shown = edge_cl(*args, "--store", store)
        assert shown.code == 0, shown.err
        if args[0] in ("classes", "predict"):
            assert name in shown.out
    known = [c["name"] for c in edge_cl("classes", "--json", "--store", store).json["classes"]]
    assert known == [*sorted(FIRST), *sorted([name, "plain"])]
    assert edge_cl("rename", "--store", store, "--", name, "other").code == 0
    assert edge_cl("rename", "--store", store, "--", "other", name).code == 0
    assert edge_cl("forget", "--store", store, "--", name).code == 0


def test_folder_whose_name_is_not_utf8(store: Path, tmp_path: Path) -> None:
    folder = write_looks(tmp_path / os.fsdecode(b"latin-\xe9"), SECOND, 4)
    run = edge_cl("learn", "--new-classes", folder, "--json", "--store", store)
    assert run.json["classes"] == sorted(SECOND)


# -- what cannot be done ------------------------------------------------

USAGE = {
    "no such verb": ["lern"],
    "no folder": ["learn"],
    "folder of a variable that is not set": ["learn", "--new-classes", "", "--store", "none"],
    "negatives of such": ["learn", "--new-classes", "FIRST", "--negatives", "", "--store", "none"],
    "bundle of such, learn": ["learn", "--new-classes", "FIRST", "--export", "", "--store", "none"],
    "bundle of such": ["export", "", "--store", "STORE"],
    "pictures of such": ["predict", "FIRST", "", "--store", "STORE"],
    "test pictures of such": ["eval", "", "--store", "STORE"],
    "store of such": ["init", "--store", "", "INIT"],
    "store of such, learn": ["learn", "--new-classes", "FIRST", "--store", "", "INIT"],
    "an option for a store": ["learn", "--new-classes", "FIRST", "--store", "--update", "INIT"],
    "an option for pictures": ["learn", "--store", "STORE", "--new-classes", "--dry-run"],
    "weights of such": ["learn", "--new-classes", "FIRST", "--store", "none", "--backbone", BACKBONE, "--weights", ""],
    "pictures of such, benchmark": ["benchmark", "learn", "", "--output", "none"],
    "place of such, benchmark": ["benchmark", "accuracy", "FIRST", "--output", ""],
    "no such method": ["learn", "--new-classes", "x", "--method", "magic"],
    "no such schedule": ["learn", "--new-classes", "x", "--schedule", "magic"],
    "no such shared update": ["learn", "--new-classes", "x", "--shared-update", "magic"],
    "no epochs": ["learn", "--new-classes", "x", "--epochs", "0"],
    "epochs in words": ["learn", "--new-classes", "x", "--epochs", "many"],
    "seed in words": ["learn", "--new-classes", "x", "--seed", "x"],
    "points in words": ["learn", "--new-classes", "x", "--max-forgetting", "few"],
    "points that are no number": ["learn", "--new-classes", "SECOND", "--max-forgetting", "nan", "--store", "STORE"],
    "no such option": ["learn", "--new-classes", "x", "--epoch", "3"],
    "no such device": ["predict", "FIRST", "--device", "tpu", "--store", "STORE"],
    "no such device, learn": ["learn", "--new-classes", "SECOND", "--device", "tpu", "--store", "STORE"],
    "no such device, no store": ["learn", "--new-classes", "FIRST", "--device", "tpu", "--store", "none", "INIT"],
    "no such device, init": ["init", "--device", "tpu", "--store", "none", "INIT"],
    "tiny input": ["init", "--image-size", "4"],
    "dry run, no name of a task": ["learn", "--new-classes", "SECOND", "--dry-run", "--task", " ", "--store", "STORE"],
    "nothing to predict": ["predict", "--store", "STORE"],
    "no top": ["predict", "x", "--top", "0"],
    "no such rule": ["eval", "x", "--rule", "magic"],
    "version in words": ["rollback", "last"],
    "nothing to keep": ["prune", "--keep", "0", "--store", "STORE"],
    "rename to what": ["rename", "nut"],
    "rename to nothing": ["rename", "nut", "", "--store", "STORE"],
    "rename to blanks": ["rename", "nut", " ", "--store", "STORE"],
    "forget what": ["forget"],
}


@pytest.mark.parametrize("args", USAGE.values(), ids=list(USAGE))
def test_bad_usage(made: Path, store: Path, tmp_path: Path, args: list[str]) -> None:
    places = {"FIRST": made / "first", "SECOND": made / "second", "STORE": store}
    given = [part for a in args for part in (init_options(made) if a == "INIT" else [places.get(a, a)])]
    before = Store.open(store).head
    run = edge_cl(*given)
    assert (run.code, run.out) == (2, ""), run.err
    told = edge_cl(*given, "--json")
    assert told.code == 2 and told.error
    assert len(run.err) > 20
    assert Store.open(store).head == before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_learn_without_export_does_not_load_what_exports(made: Path, store: Path) -> None:
    """It takes 30 MB, which a learn under a memory limit would have to count."""
    code = (
        "import sys; from edge_cl import LearnConfig, Learner; "
        "Learner.open(sys.argv[1]).learn(sys.argv[2], LearnConfig(method='prototype')); "
        "print([name for name in ('onnx', 'onnxruntime') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(store), str(made / "second")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_learn_goes_on_where_nobody_reads_its_messages(made: Path, store: Path) -> None:
    """As with `2> >(head -n 1)`, or where what started it has gone."""
    read, write = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        "-m",
        "edge_cl.cli",
        "learn",
        "--new-classes",
        made / "second",
        "--store",
        store,
        "--json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=write, check=False)
    os.close(write)
    assert (done.returncode, json.loads(done.stdout)["version"]) == (0, 2)


def test_an_interrupted_learn_says_how_it_goes_on(store: Path, tmp_path: Path) -> None:
    many = write_looks(tmp_path / "many", SECOND, 30)  # enough to train adapters on, for longer than a test lasts
    options = ["--new-classes", many, "--store", store, "--epochs", 9999, "--json"]
    command = [sys.executable, "-m", "edge_cl.cli", "learn", *options]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell has what it runs behind it ignore the signal
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(list(map(str, command)), **pipes, text=True, preexec_fn=heed) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stderr:
            if line.startswith("train"):
                process.send_signal(signal.SIGINT)
                break
        said, printed = process.stderr.read(), process.stdout.read()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "Interrupted. The same command goes on where it was."
    assert json.loads(printed) == {"error": "Interrupted.", "mend": "The same command goes on where it was."}


FAILURES: dict[str, tuple[list[str], str, str]] = {
    "predict, stranger": (["predict", "no.jpg"], "no.jpg: missing", "Give pictures"),
    "predict, stranger behind a video": (["predict", "no.mp4", "no.jpg"], "no.jpg: missing", "Give pictures"),
    "predict, no picture": (["predict", "EMPTY"], "no readable picture", "Give pictures"),
    "eval, no folder": (["eval", "nowhere"], "nowhere: missing", "DIR/<class>/*.jpg"),
    "eval, unknown class": (["eval", "SECOND"], "'apple' is not a known class. Known: ", "edge-cl classes --store"),
    "rename, unknown": (["rename", "nutt", "x"], "no class 'nutt'. Did you mean nut?", "edge-cl classes --store"),
    "rename, taken": (["rename", "nut", "bolt"], "a class 'bolt' already", "Choose another name"),
    "forget, unknown": (["forget", "wahser", "blot"], "no class 'wahser'. Did you mean washer?", "no class 'blot'"),
    "rollback, no such version": (["rollback", "7"], "Version 7 does not exist", "edge-cl rollback"),
    "learn, no folder": (["learn", "--new-classes", "nowhere"], "nowhere: missing", "DIR/<class>/*.jpg"),
    "learn, known": (["learn", "--new-classes", "FIRST"], "already known: 'bolt', 'nut', 'washer'", "--update"),
    "init, store": (["init", "INIT"], "is a store already", "--store DIR"),
    "learn, weights missing": (
        ["learn", "--new-classes", "SECOND", "--weights", "no.safetensors"],
        "no.safetensors",
        "--weights",
    ),
    "cuda": (["predict", "FIRST", "--device", "cuda"], "no CUDA device", "--device cpu"),
}


@pytest.mark.parametrize(("args", "message", "mend"), FAILURES.values(), ids=list(FAILURES))
def test_what_cannot_be_done(
    made: Path,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    message: str,
    mend: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "empty").mkdir()
    places = {"FIRST": made / "first", "SECOND": made / "second", "EMPTY": tmp_path / "empty"}
    given = [part for a in args for part in (init_options(made) if a == "INIT" else [places.get(a, a)])]
    before = Store.open(store).head
    run = edge_cl(*given, "--store", store, "--json")
    assert run.code == 1 and run.error
    assert message in flat(run.err)
    assert mend in flat(run.err)
    assert Store.open(store).head == before


@pytest.mark.parametrize(
    "args",
    [
        ["predict", "x.jpg"],
        ["eval", "x"],
        ["classes"],
        ["rename", "a", "b"],
        ["forget", "a"],
        ["log"],
        ["rollback"],
        ["prune"],
    ],
    ids=lambda args: args[0],
)
def test_missing_store_is_mended_by_one_command(tmp_path: Path, args: list[str]) -> None:
    """The command to run stands whole on one line, however long the path: it is there to be copied."""
    store = tmp_path / ("long name " * 8).strip()
    run = edge_cl(*args, "--store", store)
    assert (run.code, run.out) == (1, "")
    assert f"There is no store at {store}." in flat(run.err)
    assert f"edge-cl init --store '{store}'" in run.err


@pytest.mark.parametrize(
    "args",
    [
        ["classes", "--store", "rel"],
        ["learn", "--new-classes", "x", "--store", "rel"],
        ["learn", "--new-classes", ".", "--store", "STORE"],
        ["doctor", "--store", "rel"],
    ],
    ids=lambda args: " ".join(args[:1] + args[-1:]),
)
def test_a_working_directory_that_was_deleted_is_named(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    run = edge_cl(*(store if a == "STORE" else a for a in args))
    assert run.code == 1
    said = flat(run.out + run.err)
    assert f"{'.' if 'STORE' in args else 'rel'} cannot be found: the working directory has been deleted." in said
    assert "`cd ~`" in said and "check failed" not in said


def test_nothing_learned_yet(made: Path, tmp_path: Path) -> None:
    edge_cl("init", *init_options(made), "--store", "s")
    for args in (["predict", made / "fresh"], ["eval", made / "fresh"]):
        run = edge_cl(*args, "--store", "s", "--json")
        assert run.code == 1 and run.error
        assert "s knows no class yet" in flat(run.err)
        assert "edge-cl learn --new-classes DIR --store s" in flat(run.err)
    assert edge_cl("classes", "--json", "--store", "s").json == {"classes": []}
    assert edge_cl("forget", "nut", "--store", "s").code == 1
    run = edge_cl("rollback", "--store", "s")
    assert run.code == 1
    assert "there is nothing before it" in flat(run.err)


INIT_FAILURES: dict[str, tuple[list[str], str, str]] = {
    "architecture not named": (["--weights", "WEIGHTS"], "needs the name of its architecture", "--backbone NAME"),
    "misspelt": (["--backbone", "vit_tinny_patch16_224", "--weights", "WEIGHTS"], "timm knows no", "vit_tiny_patch16"),
    "not a ViT": (["--backbone", "resnet18", "--weights", "WEIGHTS"], "resnet18", "Choose a plain ViT"),
    "another architecture": (["--backbone", "test_vit2", "--weights", "WEIGHTS"], "do not fit test_vit2", "--backbone"),
    "no file": (["--backbone", BACKBONE, "--weights", "no"], "Cannot read weights from no", "--weights"),
    "pickled": (["--backbone", BACKBONE, "--weights", "PICKLE"], "Cannot read weights from", "never loaded"),
    "a folder": (["--backbone", BACKBONE, "--weights", "FOLDER"], "Cannot read weights from", "--weights"),
    "wide stride": (
        ["--backbone", BACKBONE, "--weights", "WEIGHTS", "--patch-stride", "17"],
        "Patches of 16 px cannot lie 17 px apart",
        "between 1 and 16",
    ),
    "odd size": (["--backbone", BACKBONE, "--weights", "WEIGHTS", "--image-size", "33"], "33 px", "multiple of 16"),
}


@pytest.mark.parametrize("verb", ["init", "learn"])
@pytest.mark.parametrize(("args", "message", "mend"), INIT_FAILURES.values(), ids=list(INIT_FAILURES))
def test_backbone_that_cannot_be_had(
    made: Path, tmp_path: Path, verb: str, args: list[str], message: str, mend: str
) -> None:
    (tmp_path / "pickled.pt").write_bytes(b"\x80\x04N.")
    places = {"WEIGHTS": made / "weights.safetensors", "PICKLE": tmp_path / "pickled.pt", "FOLDER": tmp_path}
    given: list[object] = [places.get(a, a) for a in args]
    folder = ["--new-classes", made / "first"] if verb == "learn" else []
    run = edge_cl(verb, *folder, *given, "--store", "none", "--json")
    assert run.code == 1 and run.error
    assert message in flat(run.err)
    assert mend in flat(run.err)
    assert not (tmp_path / "none").exists()


def test_other_weights_are_refused_with_both_hashes(made: Path, store: Path) -> None:
    wanted, found = (
        hashlib.sha256((made / f"{name}.safetensors").read_bytes()).hexdigest() for name in ("weights", "other")
    )
    args = ["learn", "--new-classes", made / "second", "--store", store, "--json"]
    run = edge_cl(*args, "--weights", made / "other.safetensors")
    assert run.code == 1 and run.error
    assert f"it wants SHA-256 {wanted}, " in flat(run.err)
    assert f" has {found}." in flat(run.err)
    assert edge_cl(*args, "--weights", made / "weights.safetensors").json["version"] == 2


@pytest.mark.parametrize(
    "options", [["--backbone", "vit_small_patch16_224"], ["--image-size", "64"], ["--patch-stride", "12"]]
)
def test_another_backbone_for_a_store_is_not_passed_over(made: Path, store: Path, options: list[str]) -> None:
    """A store keeps its backbone and size: asking for others must not look as if it had worked."""
    run = edge_cl("learn", "--new-classes", made / "second", *options, "--store", store, "--json")
    assert run.code in (1, 2) or options[1] in run.err


def test_patch_stride_of_a_store_is_known_by_its_patches(made: Path, store: Path) -> None:
    args = ["learn", "--new-classes", made / "second", "--store", store, "--json", "--patch-stride"]
    run = edge_cl(*args, 12)
    assert run.code == 1 and run.error
    assert "was made with patches 16 px apart, not 12 px" in flat(run.err)
    assert edge_cl(*args, 16).json["version"] == 2
    assert json.loads((store / "format.json").read_bytes())["format"] == 1
    init = ["--backbone", BACKBONE, "--weights", made / "weights.safetensors", "--image-size", IMAGE_SIZE]
    made_with = edge_cl("init", *init, "--patch-stride", 12, "--store", "overlapping")
    assert "its patches 12 px apart" in flat(made_with.err)
    assert json.loads(Path("overlapping/format.json").read_bytes())["format"] == 2  # edge-cl of before knows no stride
    assert edge_cl("init", *init, "--patch-stride", 16, "--store", "plain").code == 0
    assert json.loads(Path("plain/format.json").read_bytes())["format"] == 1  # a patch's side: none overlap


def test_costly_learn_exits_1(made: Path, store: Path, tmp_path: Path) -> None:
    alike = write_looks(tmp_path / "alike", {f"like {name}": look for name, look in FIRST.items()}, 40, first=50)
    run = edge_cl("learn", "--new-classes", alike, "--max-forgetting", "0.5", "--json", "--store", store)
    assert run.code == 1 and run.error
    assert re.search(r"cost the old ones \d+\.\d points of accuracy; 0\.5 are allowed", flat(run.err))
    assert "Nothing was changed." in run.err
    assert Store.open(store).head.number == 1


def test_learn_says_at_once_of_a_shut_place_what_doctor_says(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    learned = edge_cl("learn", "--new-classes", made / "second", "--store", tmp_path / "none", "--json")
    checked = edge_cl("doctor", "--store", tmp_path / "none", "--json")
    (disk,) = (finding for finding in json.loads(checked.out)["findings"] if finding["check"] == "disk")
    assert json.loads(learned.out) == {"error": disk["found"], "mend": disk["mend"]}
    assert disk["mend"] == f"Allow it: chmod u+rwX {tmp_path}"
    assert "check the pictures" not in learned.err


def test_lost_head_is_mended_by_rollback(made: Path, store: Path) -> None:
    edge_cl("rename", "nut", "x", "--store", store)
    (store / "HEAD").write_text("garbage")
    run = edge_cl("classes", "--store", store)
    assert run.code == 1
    assert f"edge-cl rollback 2 --store {store}" in flat(run.err)
    assert edge_cl("rollback", "2", "--json", "--store", store).json["version"] == 2
    assert "x" in edge_cl("classes", "--store", store).out


# -- where the store is -------------------------------------------------


def test_store_of_the_environment(made: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CL_STORE", str(store))
    assert len(edge_cl("classes", "--json").json["classes"]) == 3
    run = edge_cl("classes", "--json", "--store", "elsewhere")  # the option beats the environment
    assert run.code == 1
    assert "There is no store at elsewhere." in flat(run.err)
    monkeypatch.delenv("EDGE_CL_STORE")
    assert "There is no store at edge_cl_store." in flat(edge_cl("log").err)


# -- what is loaded -----------------------------------------------------

LIGHT = {
    "help": (["--help"], 0),
    "help of learn": (["learn", "--help"], 0),
    "classes": (["classes"], 0),
    "log": (["log"], 0),
    "rename": (["rename", "nut", "x"], 0),
    "rollback": (["rollback"], 0),
    "bad usage": (["learn", "--epochs", "0"], 2),
    "learn from no folder, no store": (["learn", "--new-classes", "nowhere", "--store", "none"], 1),
    "learn from nothing, no store": (["learn", "--new-classes", "EMPTY", "--store", "none"], 1),
    "dry run, no store": (["learn", "--new-classes", "FIRST", "--dry-run", "--store", "none"], 0),
    "dry run": (["learn", "--new-classes", "SECOND", "--dry-run"], 0),
}
PROBE = """
import sys
from edge_cl.cli import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
heavy = {"torch", "timm", "onnx", "onnxruntime", "matplotlib", "tensorrt"} & set(sys.modules)
print(code, *sorted(heavy), file=sys.stderr)
"""


@pytest.mark.parametrize(("args", "code"), LIGHT.values(), ids=list(LIGHT))
def test_torch_stays_out(made: Path, store: Path, tmp_path: Path, args: list[str], code: int) -> None:
    (tmp_path / "empty" / "class").mkdir(parents=True)
    places = {"FIRST": made / "first", "SECOND": made / "second", "EMPTY": tmp_path / "empty"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *(str(places.get(a, a)) for a in args)],
        capture_output=True,
        text=True,
        env={**os.environ, "EDGE_CL_STORE": str(store)},
        cwd=tmp_path,
    )
    assert done.stderr.splitlines()[-1] == str(code), done.stderr
    assert not (tmp_path / "none").exists()


# -- bad pictures -------------------------------------------------------


def test_every_kind_of_bad_picture_is_skipped_and_named(made: Path, store: Path, tmp_path: Path) -> None:
    outcome = write_bad_folder(tmp_path / "pictures")
    bad = {path_text(path): why for path, why in outcome.items() if why not in (ACCEPTED, IGNORED)}
    assert len(bad) > 40
    run = edge_cl("learn", "--new-classes", tmp_path / "pictures", "--json", "--store", store)
    value = run.json
    skipped = {s["path"]: s["why"] for s in value["skipped"]}
    assert len(skipped) == len(value["skipped"])
    assert set(skipped) == set(bad)
    for path, why in bad.items():
        assert why in skipped[path], path
        assert f"skipped {flat(path)}: " in flat(run.err)
    assert value["classes"] == ["bad", "good"]
    assert value["images"] == sum(why == ACCEPTED for why in outcome.values())
    assert Store.open(store).check() == []
    known = edge_cl("classes", "--json", "--store", store).json["classes"]
    assert sum(c["pictures"] for c in known if c["name"] in ("bad", "good")) == value["images"]
    asked = edge_cl("predict", tmp_path / "pictures", "--json", "--store", store).json
    assert len(asked["predictions"]) >= value["images"]
    json.dumps(asked)


@pytest.mark.parametrize("options", [[], ["--export", "bundle"]])
def test_a_first_learn_of_nothing_so_far_makes_no_store(made: Path, tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "recorded" / "mug").mkdir(parents=True)
    command = ("learn", "--new-classes", "recorded", "--update", *init_options(made), "--store", "place", *options)
    value = edge_cl(*command, "--json").json
    assert (value["version"], value["known_classes"], value["images"], value["export"]) == (None, [], 0, None)
    assert value["skipped"] == [{"path": "recorded/mug", "why": "no picture"}]
    assert value["seconds"]["total"] >= value["seconds"]["scan"]
    assert any("nothing was exported" in note for note in value["notes"]) == bool(options)
    shown = edge_cl(*command)
    assert shown.out.startswith("no store yet") and "note: No picture is new: nothing was changed." in flat(shown.err)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recorded"]
    write_looks(tmp_path / "recorded", {"mug": 2}, 4)
    assert edge_cl(*command[: -len(options) or None], "--json").json["version"] == 1


@pytest.mark.parametrize("options", [["--update"], ["--dry-run"], ["--update", "--dry-run"]])
def test_a_learn_refuses_a_place_where_no_store_can_be(made: Path, tmp_path: Path, options: list[str]) -> None:
    folder = tmp_path / "recorded" if "--update" in options else made / "first"
    (tmp_path / "recorded" / "mug").mkdir(parents=True)
    run = edge_cl("learn", "--new-classes", folder, *options, *init_options(made), "--store", tmp_path, "--json")
    assert run.code == 1 and "holds files that are not a store's: recorded" in run.error


@pytest.mark.parametrize(
    "options",
    [["--backbone", "NOSUCH"], ["--backbone", BACKBONE, "--weights", "none.safetensors"], ["--image-size", 100]],
    ids=lambda options: options[-2],
)
def test_a_first_dry_run_refuses_a_backbone_as_the_learn_does(made: Path, options: list[str]) -> None:
    command = ("learn", "--new-classes", made / "first", "--store", "none", "--json", *options)
    looked, learned = edge_cl(*command, "--dry-run"), edge_cl(*command)
    assert looked.code == 1 and looked.out == learned.out
    assert not Path("none").exists()


def test_a_first_learn_of_nothing_so_far_reads_the_weights(made: Path, tmp_path: Path) -> None:
    (tmp_path / "recorded" / "mug").mkdir(parents=True)
    command = ("learn", "--new-classes", "recorded", "--update", "--store", "place", *init_options(made), "--json")
    run = edge_cl(*command, "--weights", "none.safetensors")
    assert run.code == 1 and run.error.startswith("Cannot read weights from none.safetensors")


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--negatives", "empty"], 1, "empty"),
        (["--negatives", "missing"], 1, "missing"),
        (["--export", "full"], 1, "full holds other files"),
        (["--task", " "], 2, "cannot name a task"),
        (["--seed", 2**53], 2, "The seed must be less"),
    ],
)
def test_what_no_store_could_do_leaves_none_behind(
    made: Path, tmp_path: Path, options: list[object], code: int, named: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    place = tmp_path / "new store"
    run = edge_cl("learn", "--new-classes", made / "second", *options, "--store", place, *init_options(made))
    assert (run.code, run.out) == (code, "") and named in flat(run.err)
    assert not place.exists()
