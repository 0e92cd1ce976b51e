"""The accuracy benchmark: measures by hand, baselines against scikit-learn, and the command, which resumes."""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from small import BACKBONE, IMAGE_SIZE, drawn, edge_cl, write_looks, write_weights

from edge_cl import Learner, comparison
from edge_cl.benchmark import Stream, read_parts
from edge_cl.comparison import METHODS, SHRINKAGE, Setting
from edge_cl.evaluation import calibration_error, measures

LOOKS = {"a": 0, "b": 5, "c": 10, "d": 15}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_looks(root / "train", LOOKS, 24)
    write_looks(root / "val", LOOKS, 5, first=100)
    write_weights(root / "weights.safetensors")
    return root


@pytest.fixture
def setting(data: Path, tmp_path: Path) -> Setting:
    init = {"backbone": BACKBONE, "weights": data / "weights.safetensors", "image_size": IMAGE_SIZE, "device": "cpu"}
    return Setting(Stream.of(read_parts(data, "val"), [2], 7), 7, "val", init, 1, tmp_path)


@pytest.mark.parametrize("method", ["ncm", "lda-last", "lda-all", "random-projection"])
def test_a_picture_a_class_is_enough(data: Path, setting: Setting, tmp_path: Path, method: str) -> None:
    write_looks(tmp_path / "few" / "train", LOOKS, 1)
    (tmp_path / "few" / "val").symlink_to(data / "val")
    few = replace(setting, stream=Stream.of(read_parts(tmp_path / "few", "val"), [2], 7))
    *_, last = METHODS[method](few)
    assert last.measured["accuracy"] > 0.5


def test_measures_by_hand() -> None:
    posterior = np.asarray(
        [[0.9, 0.1, 0.0, 0.0], [0.3, 0.2, 0.4, 0.1], [0.5, 0.0, 0.3, 0.2], [0.0, 0.0, 0.2, 0.8]], np.float32
    )
    found = measures(posterior, np.asarray([0, 0, 2, 2]), np.asarray([1, 1, 3, 3]), ["a", "b", "c", "d"])
    assert found["accuracy"] == 0.25
    assert found["per_class"] == {"a": 0.5, "c": 0.0}
    assert found["per_task"] == [None, 0.5, None, 0.0]
    assert found["macro_accuracy"] == 0.25
    assert found["task_choice_accuracy"] == 0.5  # the first and the last
    assert found["known_task_accuracy"] == 0.75  # all but the last
    assert found["calibration_error"] == pytest.approx((0.1 + 0.4 + 0.5 + 0.8) / 4, abs=1e-6)


@pytest.mark.parametrize(
    ("confidence", "hits", "error"),
    [([1.0, 1.0], [True, True], 0.0), ([1.0, 1.0], [True, False], 0.5), ([0.61, 0.63], [True, False], 0.12),
     ([0.1, 0.9], [False, True], 0.1), ([0.0], [True], 1.0)],
)  # fmt: skip
def test_calibration_error_by_hand(confidence: list[float], hits: list[bool], error: float) -> None:
    assert calibration_error(np.asarray(confidence, np.float32), np.asarray(hits)) == pytest.approx(error, abs=1e-6)


def test_discriminant_over_all_blocks_is_scikit_learn_s(setting: Setting) -> None:
    x, y = setting.features["train"]
    judged, truth = setting.features["val"]
    assert x.shape == (96, 6 * 2 * 64)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE, priors=np.full(4, 0.25))
    expected = (reference.fit(x.astype(np.float64), y).predict(judged) == truth).mean()
    *_, last = METHODS["lda-all"](setting)
    assert last.measured["accuracy"] == pytest.approx(expected)


def test_stages_know_only_what_was_taught(setting: Setting) -> None:
    first, last = METHODS["ncm"](setting)
    assert list(first.measured["per_class"]) == sorted(setting.stream.tasks[0])
    assert first.measured["images"] == 10
    assert last.measured["images"] == 20
    assert len(last.measured["per_task"]) == 2


def test_the_command_compares_and_resumes(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    init = (
        "--backbone",
        BACKBONE,
        "--weights",
        data / "weights.safetensors",
        "--image-size",
        IMAGE_SIZE,
        "--patch-stride",
        12,
    )
    seeds = ("--seed", 3, "--seed", 3)  # twice the same: one stream
    command = ("benchmark", "accuracy", data, "--increment", "2", "--part", "val", "--epochs", 1, *seeds, *init,
               "--device", "cpu", "--output", out)  # fmt: skip
    found = edge_cl(*command, "--json").json
    assert [row["method"] for row in found["rows"]] == list(METHODS)
    assert found["methods"].keys() == METHODS.keys()
    for row in found["rows"]:
        assert row["last"] == pytest.approx(np.mean(row["matrix"][-1]))  # tasks are of one size
        assert row["average"] == pytest.approx(np.mean(row["curve"]))
        assert row["forgetting"] == pytest.approx(max(r[0] for r in row["matrix"]) - row["matrix"][1][0])
        assert row["known_task"] >= row["last"]
        assert row["task_choice"] >= row["last"]
        assert row["backbone"].startswith(f"{BACKBONE} {IMAGE_SIZE} px stride 12 ")
    passes = {row["method"]: row["passes"] for row in found["rows"]}
    assert passes["ncm"] == passes["adapt-once"] == 1.0
    assert passes["cl-lora"] == 1.5  # two tasks, of which the base branch answers for one
    assert 1.0 <= passes["edge-cl"] <= 1.5
    lines = list(csv.DictReader((out / "rows.csv").read_text().splitlines()))
    assert [(line["method"], line["backbone"], float(line["last"])) for line in lines] == [
        (row["method"], row["backbone"], row["last"]) for row in found["rows"]
    ]
    assert [line["method"] for line in lines] == list(METHODS)
    assert json.loads((out / "summary.json").read_text())["methods"] == found["methods"]
    assert (out / "plot.png").stat().st_size > 5000

    def fail(setting: Setting) -> None:
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr(comparison, "METHODS", dict.fromkeys(METHODS, fail))
    assert edge_cl(*command, "--json").json["rows"] == found["rows"]
    other = ["16" if part == 12 else part for part in command]
    with pytest.raises(AssertionError, match="was done again"):  # another backbone's rows are not taken for its own
        assert edge_cl(*other, "--json").code == 0


def row_of(name: str) -> dict[str, object]:
    """Return a row of large figures."""
    points = dict.fromkeys(("last", "average", "forgetting", "task_choice", "known_task"), 1.0)
    costs = {"calibration_error": 0.1, "passes": 1.0, "answer_ms": 123.4, "slowest_learn_s": 123.4, "peak_mb": 12345}
    kept = {"backbone": "vit 32 px 0123abcd", "data": "shop", "method": name, "tasks": [2, 1], "curve": [1.0, 0.5]}
    return {**kept, **points, **costs}


def test_the_table_breaks_no_word_at_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(comparison, "compare", lambda *_, **__: list(map(row_of, METHODS)))
    done = edge_cl("benchmark", "accuracy", tmp_path, "--output", tmp_path / "out")
    assert {"last", "avg.", "forgot", "right", "learn", *METHODS} <= set(done.out.split())
    assert max(map(len, done.out.splitlines())) <= 80
    assert f"Forgot: {comparison.FORGETTING}." in done.err
    assert "vit 32 px weights 0123abcd. Rows" in done.err


def test_the_plot_tells_curves_apart_that_lie_on_each_other() -> None:
    with drawn() as figures:
        comparison.plot(list(map(row_of, METHODS)))
    (axes,) = figures[0].axes
    assert {(line.get_marker(), line.get_markerfacecolor()) for line in axes.lines} == {(m, "none") for m in "os^DvPX"}
    widths = [line.get_linewidth() for line in axes.lines]
    assert len(widths) == len(METHODS) and widths == sorted(set(widths), reverse=True)
    ours = axes.lines[list(METHODS).index("edge-cl")]
    assert ours.get_color() == "black" and ours.get_zorder() > max(
        li.get_zorder() for li in axes.lines if li is not ours
    )
    assert [text.get_text().partition(": ")[0] for text in axes.get_legend().get_texts()] == list(METHODS)
    assert all(tick == round(tick) for tick in axes.get_xticks())
    assert axes.get_title() == "shop, vit 32 px"


def simple(data: Path, output: Path, weights: Path) -> tuple[object, ...]:
    """Return the command that measures the cheapest method."""
    init = ("--backbone", BACKBONE, "--weights", weights, "--image-size", IMAGE_SIZE, "--device", "cpu")
    return ("benchmark", "accuracy", data, "--increment", 2, "--method", "ncm", *init, "--output", output, "--json")


def test_rows_of_other_pictures_or_code_are_not_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_looks(tmp_path / "train", LOOKS, 3)
    write_looks(tmp_path / "test", LOOKS, 2, first=100)
    command = simple(tmp_path, tmp_path / "out", data / "weights.safetensors")
    (row,) = edge_cl(*command).json["rows"]
    assert row["last"] >= 0.75
    a, b, aside = (tmp_path / "test" / name for name in ("a", "b", ".aside"))
    for old, new in ((a, aside), (b, a), (aside, b)):
        old.rename(new)
    (swapped,) = edge_cl(*command).json["rows"]
    assert swapped["last"] <= 0.5
    with monkeypatch.context() as patched:
        patched.setattr(comparison, "METHODS", {"ncm": mock.Mock(side_effect=AssertionError("done again"))})
        assert edge_cl(*command).json["rows"] == [swapped]
        patched.setattr(comparison, "edge_cl_version", lambda: "another")
        with pytest.raises(AssertionError, match="done again"):
            edge_cl(*command)


def test_litter_and_decomposed_names_change_no_number(data: Path, tmp_path: Path) -> None:
    names = {"plain": ("a", "caf\u00e9"), "littered": ("a", unicodedata.normalize("NFD", "caf\u00e9"))}
    found = {}
    for kind, (first, second) in names.items():
        for part, start in (("train", 0), ("test", 100)):
            write_looks(tmp_path / kind / part, {first: 0, second: 5}, 3, first=start)
        if kind == "littered":
            write_looks(tmp_path / kind / "train", {".ipynb_checkpoints": 10}, 3)
        command = simple(tmp_path / kind, tmp_path / f"{kind}-out", data / "weights.safetensors")
        (found[kind],) = edge_cl(*command).json["rows"]
    same = ("tasks", "matrix", "calibration_error")
    assert [found["littered"][key] for key in same] == [found["plain"][key] for key in same]


def test_lines_hold_what_commas_and_quotes_are_in() -> None:
    row = {"data": 'shop, "new"', "last": 0.1 + 0.2, "tasks": [2, 2], "matrix": [[1.0]]}
    (line,) = csv.DictReader(comparison.to_csv([row]).splitlines())
    assert line == {"data": row["data"], "last": str(row["last"])}


def test_adapt_once_trains_on_the_first_task_alone(setting: Setting) -> None:
    with mock.patch.object(Learner, "learn", autospec=True, side_effect=Learner.learn) as learn:
        stages = list(METHODS["adapt-once"](setting))
    configs = [call.args[2] for call in learn.call_args_list]
    assert [(c.method, c.finer_weight, c.choose_square) for c in configs] == [
        ("cl-lora" if task == 0 else "prototype", 0.0, False) for task in range(len(stages))
    ]
    assert len(stages) > 1


def test_an_unknown_method_is_named(data: Path, tmp_path: Path) -> None:
    done = edge_cl("benchmark", "accuracy", data, "--method", "lda", "--output", tmp_path)
    assert done.code == 2
    assert "Unknown method 'lda'. Did you mean lda-all?" in done.err


@pytest.mark.parametrize("text", ["x", "", "0", "1,,2", "-3", "1.5"])
def test_increments_that_are_no_numbers_are_refused(data: Path, tmp_path: Path, text: str) -> None:
    done = edge_cl("benchmark", "accuracy", data, f"--increment={text}", "--output", tmp_path)
    assert done.code == 2
    assert f"{text!r}: every number must be a whole one of 1 or more;" in re.sub(r"[\s│]+", " ", done.err)
