"""What cannot be done: exit statuses, messages that name the way on, and nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from command_line import FIRST, SECOND, flat, init_options
from small import BACKBONE, IMAGE_SIZE, edge_cl, write_looks

from edge_cl.store import Store


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


USAGE = {
    "no such verb": ["lern"],
    "no folder": ["learn"],
    "no folder, no negatives": ["learn", "--update", "--store", "STORE"],
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
    "vast size": (
        ["--backbone", BACKBONE, "--weights", "WEIGHTS", "--image-size", "2000000"],
        "15625000000 patches of 2000000 px; 65536 are the most",
        "smaller --image-size",
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
    cost = r"cost the old ones \d+\.\d points of accuracy, measured on \d+ pictures; 0\.5 are allowed"
    assert re.search(cost, flat(run.err))
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
