"""Benchmarks: streams are cut and figures summed as they should be, and the command really learns."""

from __future__ import annotations

import csv
import json
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from small import BACKBONE, IMAGE_SIZE, drawn, edge_cl, write_looks, write_weights

from edge_cl import benchmark
from edge_cl.benchmark import ARMS, LearnRow, Stream, read_parts, run, summarise
from edge_cl.cli_benchmark import _write
from edge_cl.errors import EdgeClError, FolderError

LOOKS = {"a": 0, "b": 4, "c": 8, "d": 12}
ROW = LearnRow(1, 0, "joint", 2, 10.0, 12.0, 900.0, 700.0, 950.0, 100.0, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_looks(root / "train", LOOKS, 8)
    write_looks(root / "test", LOOKS, 4, first=100)
    return root


@pytest.mark.parametrize(
    ("sizes", "lengths"), [([1], [1, 1, 1, 1]), ([3], [3, 1]), ([9], [4]), ([1, 2], [1, 2, 1]), ([2, 1], [2, 1, 1])]
)
def test_tasks_have_their_sizes(data: Path, sizes: list[int], lengths: list[int]) -> None:
    stream = Stream.of(read_parts(data), sizes, 1993)
    assert list(map(len, stream.tasks)) == lengths
    assert sorted(stream.known(len(lengths) - 1)) == list(LOOKS)
    assert stream.known(0) == stream.tasks[0]


def test_the_seed_shuffles_as_usual(data: Path) -> None:
    """In the way of the published code: numpy's legacy generator permutes the sorted names."""
    names, parts = sorted(LOOKS), read_parts(data)
    for seed in (0, 1993):
        order = [names[i] for i in np.random.RandomState(seed).permutation(4)]
        assert list(Stream.of(parts, [1], seed).known(3)) == order


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FolderError) as caught:
        read_parts(tmp_path)
    assert caught.value.faults == tuple(f"{tmp_path / p}: missing, or a link to nothing." for p in ("train", "test"))
    assert "DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg" in caught.value.mend


def test_faults_of_both_parts_are_named_where_they_lie(tmp_path: Path) -> None:
    write_looks(tmp_path / "train", {"a": 0}, 1)
    (tmp_path / "train" / "b").mkdir()
    write_looks(tmp_path / "val", {"b": 0}, 1)
    (tmp_path / "val" / "a").mkdir()
    with pytest.raises(FolderError) as caught:
        read_parts(tmp_path, "val")
    places = tmp_path / "train" / "b", tmp_path / "val" / "a"
    assert caught.value.faults == tuple(f"{place}: the class folder has no picture." for place in places)


def test_a_task_that_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    write_looks(tmp_path / "train", LOOKS, 1)
    write_looks(tmp_path / "test", {"a": 0, "c": 8}, 1, first=100)
    said: list[str] = []
    parts = read_parts(tmp_path, say=said.append)
    assert said == [f"{tmp_path / 'test'} has no pictures to judge these classes by: b, d."]
    with pytest.raises(FolderError) as caught:
        Stream.of(parts, [1], 0)
    assert caught.value.faults == tuple(f"{tmp_path / 'test'} has no pictures of class {name!r}." for name in "bd")
    stream = Stream.of(parts, [3], 3)  # d, b, a; then c
    assert [path.name for path in stream.folder("test", stream.tasks[0], tmp_path).iterdir()] == ["a"]


def test_classes_are_those_that_a_learn_takes(tmp_path: Path) -> None:
    """No hidden folders or litter; names composed, whatever the folders' are."""
    composed = "caf\u00e9"
    raw = unicodedata.normalize("NFD", composed)
    for part in ("train", "test"):
        write_looks(tmp_path / part, {"a": 0, raw: 4, ".ipynb_checkpoints": 8, "__MACOSX": 12}, 1)
    stream = Stream.of(read_parts(tmp_path), [2], 0)
    assert sorted(stream.known(0)) == ["a", composed]
    (link,) = stream.folder("train", [composed], tmp_path).iterdir()
    assert link.resolve() == tmp_path / "train" / raw


def test_folders_are_links(data: Path, tmp_path: Path) -> None:
    folder = Stream.of(read_parts(data), [2], 0).folder("test", ["a", "c"], tmp_path)
    assert sorted(p.name for p in folder.iterdir()) == ["a", "c"]
    assert (folder / "c").resolve() == (data / "test" / "c").resolve()


def test_a_failing_command_says_why(tmp_path: Path) -> None:
    with pytest.raises(EdgeClError, match=f"(?s)classes --store {tmp_path} failed: error: .*is not a store"):
        run("classes", "--store", tmp_path)


def test_sums_by_hand() -> None:
    rows = [
        ROW,
        replace(ROW, task=1, learn_s=20.0, process_s=23.0, peak_mb=1000.0, accuracy=0.5),
        replace(ROW, arm="edge-cl", learn_s=5.0, process_s=7.0, peak_mb=800.0),
        replace(ROW, arm="edge-cl", task=1, learn_s=5.0, process_s=8.0, peak_mb=850.0, accuracy=0.75),
    ]
    rows += [replace(r, seed=2, learn_s=2 * r.learn_s, accuracy=r.accuracy and r.accuracy + 0.1) for r in rows]
    summary = summarise(rows)
    assert summary["joint"] == {
        "learn_s": 45.0, "process_s": 35.0, "slowest_s": 23.0, "peak_mb": 1000.0, "cuda_peak_mb": 100.0,
        "above_idle_mb": 300.0, "accuracy": pytest.approx(0.55), "speedup": 1.0, "memory_ratio": 1.0,
    }  # fmt: skip
    assert summary["edge-cl"] == {
        "learn_s": 15.0, "process_s": 15.0, "slowest_s": 8.0, "peak_mb": 850.0, "cuda_peak_mb": 100.0,
        "above_idle_mb": 150.0, "accuracy": pytest.approx(0.8), "speedup": 3.0, "memory_ratio": 0.5,
    }  # fmt: skip


def test_the_command_compares_both_schedules(data: Path, tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights.safetensors")
    init = ("--backbone", BACKBONE, "--weights", weights, "--image-size", IMAGE_SIZE, "--device", "cpu")
    out = tmp_path / "out"
    seeds = ("--seed", 3, "--seed", 3)  # twice the same: one stream
    with mock.patch.object(benchmark, "run", side_effect=run) as commands:
        done = edge_cl(
            "benchmark", "learn", data, "--increment", 2, "--epochs", 1, *seeds, *init, "--output", out, "--json"
        )
    verbs = [call.args[0] for call in commands.call_args_list]
    assert verbs == [*["init"] * 2, *["learn"] * 3, "eval", "learn", "eval"]
    assert all("--device cpu" in " ".join(map(str, call.args)) for call in commands.call_args_list)
    summary = done.json
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["arms"].keys() == ARMS.keys()
    rows = list(csv.DictReader((out / "rows.csv").read_text().splitlines()))
    assert [(row["task"], row["arm"]) for row in rows] == [(t, arm) for t in "01" for arm in ARMS]
    for arm, values in summary["arms"].items():
        own = [row for row in rows if row["arm"] == arm]
        assert values["learn_s"] == pytest.approx(sum(float(row["learn_s"]) for row in own))
        assert [row["accuracy"] != "" for row in own] == [False, True]
        assert values["accuracy"] == float(own[-1]["accuracy"]) >= 0.25
        assert all(0 < float(row["idle_mb"]) <= float(row["peak_mb"]) for row in own)
    with Image.open(out / "plot.png") as image:
        assert image.size[0] > 600
    assert "task 2 edge-cl:" in done.err


def both(cost: float) -> list[LearnRow]:
    """Return rows of a task, the arms alike but for the memory."""
    ours = replace(ROW, arm="edge-cl", learn_s=cost, peak_mb=701.0, accuracy=0.5)
    return [replace(ROW, learn_s=cost, accuracy=0.5), ours]


def test_the_table_breaks_no_word_at_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(benchmark, "learn_rows", lambda *_: iter(both(1234.5)))
    done = edge_cl("benchmark", "learn", tmp_path, "--output", tmp_path / "out")
    assert {"learning,", "faster", "slowest", "process,", "published", "last"} <= set(done.out.split())
    assert "\npublished (joint) 1234.5 " in done.out
    assert "seed 1 task 1 published (joint): 1234.5 s" in done.err
    assert max(map(len, done.out.splitlines())) <= 80


@pytest.mark.parametrize("cost", [0.0, 100.0])
def test_no_point_of_the_plot_is_cut(cost: float) -> None:
    with drawn() as figures:
        benchmark.plot([replace(row, task=task) for row in both(cost) for task in range(2)])
    for axes, highest in zip(figures[0].axes, (cost, 200.0), strict=True):
        assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 1.05 * highest
        assert [line.get_label() for line in axes.lines] == ["published (joint)", "edge-cl"]


def test_an_interruption_loses_no_finished_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Iterator[LearnRow]:
        yield ROW
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "learn_rows", interrupted)
    assert edge_cl("benchmark", "learn", tmp_path, "--output", tmp_path).code == 130
    (row,) = csv.DictReader((tmp_path / "rows.csv").read_text().splitlines())
    assert row == {name: "" if value is None else str(value) for name, value in vars(ROW).items()}


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.csv").mkdir()
    monkeypatch.setattr(benchmark, "learn_rows", lambda *_: iter([ROW]))
    done = edge_cl("benchmark", "learn", tmp_path, "--output", tmp_path)
    assert done.code == 1
    assert f"error: {tmp_path / 'rows.csv'} cannot be written: Is a directory." in done.err


@pytest.mark.parametrize("output", ["file", "file/out", "/sys", "/sys/out"])
@pytest.mark.parametrize("command", [("learn", "no-data"), ("accuracy", "no-data"), ("predict", "--store", "no-store")])
def test_an_output_that_cannot_be_is_refused_at_once(command: tuple[str, ...], output: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = edge_cl("benchmark", *command, "--output", tmp_path / output)
    assert done.code == 2
    assert f"error: Nothing can be written to {tmp_path / output}: " in done.err
    assert "--output" in done.err


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("verb", ["learn", "accuracy"])
def test_seeds_that_no_generator_takes_are_refused(verb: str, seed: int, tmp_path: Path) -> None:
    done = edge_cl("benchmark", verb, tmp_path, f"--seed={seed}", "--output", tmp_path / "out")
    assert done.code == 2
    assert "--seed" in done.err


def test_a_summary_is_valid_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        _write(tmp_path, {"last": math.nan}, "", b"")
    assert list(tmp_path.iterdir()) == []
