"""The command line: the whole way as a user goes it, what people read, and what must not be loaded."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from bad_pictures import ACCEPTED, IGNORED, write_bad_folder
from command_line import FIRST, SECOND, flat, init_options, script
from small import BACKBONE, IMAGE_SIZE, edge_cl, write_looks

from edge_cl.config import SHIPPED
from edge_cl.decode import path_text
from edge_cl.store import Store

VERBS = ("init", "learn", "predict", "eval", "classes", "rename", "forget", "log", "rollback", "prune")


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


def test_init_names_the_shipped_backbone_and_not_the_architecture_it_is_a_variant_of(tmp_path: Path) -> None:
    assert f"around {SHIPPED} at 128 px." in flat(edge_cl("init", "--store", tmp_path / "s").err)


def test_the_version_of_the_program() -> None:
    run = edge_cl("--version")
    assert (run.code, run.out) == (0, f"edge-cl {metadata.version('edge-cl')}\n")


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


@pytest.mark.parametrize("args", [["rename", "nut", "x"], ["forget", "nut"], ["rollback", "1"]], ids=lambda a: a[0])
def test_what_a_bundle_still_knows_is_told(store: Path, args: list[str]) -> None:
    said = edge_cl(*args, "--store", store).err
    assert f"A bundle keeps the classes it has until edge-cl export OUT --store {store}\n" in said


def test_log_and_rollback_say_what_was_done(store: Path) -> None:
    edge_cl("rename", "nut", "x", "--store", store)
    edge_cl("forget", "bolt", "x", "--store", store)
    shown = edge_cl("log", "--store", store).out
    assert "rename nut → x " in shown and "forget bolt, x " in shown
    for version, said in (
        (2, "Known again: bolt, x."),
        (1, "Known again: nut. No longer known: x."),
        (0, "No longer known: bolt, nut, washer."),
        (2, "Known again: bolt, x, washer."),
    ):
        assert f"Version {version} is in force. {said}\n" in edge_cl("rollback", version, "--store", store).err
    (store / "HEAD").write_text("x")
    assert "Version 2 is in force.\n" in edge_cl("rollback", "2", "--store", store).err
    assert "Version 2 is in force. It knows the same" in edge_cl("rollback", "2", "--store", store).err


def test_the_limit_of_forgetting_is_of_one_learn_and_so_is_the_row_of_the_report(made: Path, store: Path) -> None:
    words = "that this one learn may cost the old classes (before - after)"
    said = flat(re.sub(r"[│╭╮╰╯─]", "", edge_cl("learn", "--help").out))
    assert words in said
    assert "If the least takes longer, it is done, and said." in said and "takes more, it is refused." in said
    run = edge_cl("learn", "--new-classes", made / "second", "--method", "prototype", "--store", store)
    assert "old classes before → after this learn" in run.out and "forgetting (best so far - now" in run.out
    assert re.search(r"new classes \(hold-out\) +[\d.]+ % \(\d of 2\)", run.out)
    assert re.search(r"old classes before.* % → .* % \(6 pictures\)", run.out)


def test_a_learn_says_how_many_negatives_pass(made: Path, store: Path) -> None:
    args = ("learn", "--new-classes", made / "second", "--method", "prototype", "--store", store)
    run = edge_cl(*args, "--negatives", made / "fresh" / "nut")
    assert run.code == 0, run.err
    assert re.search(r"negatives not called unknown \d+\.\d % ", flat(run.out)), run.out


def test_negatives_are_learned_alone(made: Path, store: Path) -> None:
    learn = ("learn", "--negatives", made / "second", "--store", store)
    looked = edge_cl(*learn, "--dry-run", "--json").json
    assert (looked["classes"], looked["images"], looked["negatives"]) == ([], 0, 16)
    assert Store.open(store).head.number == 1
    shown = edge_cl(*learn, "--time", "1h", "--memory", "64GB")
    assert shown.code == 0 and "version 2 pictures of nothing known 16 classes known 3" in flat(shown.out), shown.err
    assert "negatives not called unknown" in shown.out
    again = edge_cl(*learn, "--json").json
    assert (again["version"], again["notes"]) == (2, ["No picture is new: nothing was changed."])
    first = edge_cl("learn", "--negatives", made / "second", "--store", "new", *init_options(made), "--json").json
    assert (first["version"], first["known_classes"]) == (1, [])


def test_a_learn_of_nothing_says_what_it_needs(store: Path) -> None:
    run = edge_cl("learn", "--store", store, "--json")
    assert (run.code, run.error) == (2, "There is nothing to learn from.")
    assert "--new-classes DIR" in run.err and "--negatives DIR" in run.err


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


def test_store_of_the_environment(made: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CL_STORE", str(store))
    assert len(edge_cl("classes", "--json").json["classes"]) == 3
    run = edge_cl("classes", "--json", "--store", "elsewhere")  # the option beats the environment
    assert run.code == 1
    assert "There is no store at elsewhere." in flat(run.err)
    monkeypatch.delenv("EDGE_CL_STORE")
    assert "There is no store at edge_cl_store." in flat(edge_cl("log").err)


LIGHT = {
    "help": (["--help"], 0),
    "help of learn": (["learn", "--help"], 0),
    "classes": (["classes"], 0),
    "log": (["log"], 0),
    "rename": (["rename", "nut", "x"], 0),
    "rollback": (["rollback"], 0),
    "bad usage": (["learn", "--epochs", "0"], 2),
    "learn what": (["learn"], 2),
    "learn from no folder, no store": (["learn", "--new-classes", "nowhere", "--store", "none"], 1),
    "learn from nothing, no store": (["learn", "--new-classes", "EMPTY", "--store", "none"], 1),
    "dry run, no store": (["learn", "--new-classes", "FIRST", "--dry-run", "--store", "none"], 0),
    "dry run": (["learn", "--new-classes", "SECOND", "--dry-run"], 0),
    "learn what is known": (["learn", "--new-classes", "FIRST"], 1),
    "learn from a folder without sub-folders": (["learn", "--new-classes", "FLAT"], 1),
    "forget what is not known": (["forget", "NOSUCH"], 1),
    "predict, no class": (["predict", "FIRST", "--store", "VACANT"], 1),
    "eval, no class": (["eval", "FIRST", "--store", "VACANT"], 1),
    "export, no class": (["export", "none", "--store", "VACANT"], 1),
    "eval of what is not known": (["eval", "SECOND"], 1),
    "benchmark of no method": (["benchmark", "accuracy", "FIRST", "--method", "edgecl"], 2),
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
    places = {
        "FIRST": made / "first",
        "SECOND": made / "second",
        "EMPTY": tmp_path / "empty",
        "FLAT": made / "first" / "nut",
        "VACANT": made / "vacant",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *(str(places.get(a, a)) for a in args)],
        capture_output=True,
        text=True,
        env={**os.environ, "EDGE_CL_STORE": str(store)},
        cwd=tmp_path,
    )
    assert done.stderr.splitlines()[-1] == str(code), done.stderr
    assert not (tmp_path / "none").exists()


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
