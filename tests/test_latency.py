"""The benchmark of answering: every way is measured beside the bare backbone, and really answers."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from deployed import Deployed, graphs_once
from PIL import Image
from small import drawn, edge_cl

from edge_cl.errors import EdgeClError
from edge_cl.latency import BARE, PredictRow, _Arm, _fresh, plot, with_tasks


@pytest.mark.parametrize("count", [1, 2, 5])
def test_tasks_are_repeated_each_with_a_branch_that_is_asked(deployed: Deployed, count: int) -> None:
    model = deployed.learner().snapshot().model
    grown = with_tasks(model, count)
    assert sorted(grown.task_names) == sorted(grown.branches) == sorted(grown.adapters) == list(range(count))
    assert [c.id for c in grown.classes] == list(range(len(grown.classes))) and len(grown.statistics) == len(
        grown.classes
    )
    head, rows = grown.head(), grown.statistics.means
    routes = head.route(head.base_posterior(rows))
    assert all(len(route) == 1 for route in routes)  # every picture goes to a branch: the dearest case


def test_the_command_measures_every_way(deployed: Deployed, tmp_path: Path) -> None:
    store, out = deployed.learner().store.path, tmp_path / "out"
    command = ("benchmark", "predict", "--store", store, "--tasks", "3,1", "--rounds", 3, "--output", out, "--json")
    with graphs_once():
        done = edge_cl(*command)
    rows = done.json["rows"]
    assert json.loads((out / "summary.json").read_text())["rows"] == rows
    assert rows[0]["arm"] == BARE and rows[0]["ratio"] == 1.0
    assert [row["arm"] for row in rows[1:3]] == ["1 task, routed", "3 tasks, routed"]
    ways = [(row["tasks"], row["layout"], row["precision"], row["backend"], row["rule"]) for row in rows[1:]]
    assert ways == [
        (1, "shared", "fp32", "onnxruntime", "routed"),
        (3, "shared", "fp32", "onnxruntime", "routed"),
        (3, "merged", "fp32", "onnxruntime", "routed"),
        (3, "shared", "fp16", "onnxruntime", "routed"),
        (3, "shared", "fp32", "onnxruntime", "base"),
        (3, "shared", "fp32", "onnxruntime", "published"),
        (3, "shared", "fp32", "torch", "routed"),
    ]
    for row in rows:
        assert 0 < row["median_ms"] <= row["p99_ms"]
        assert row["ratio"] == pytest.approx(row["median_ms"] / rows[0]["median_ms"])
        assert row["frames_s"] > 0
    for row in rows[1:]:
        assert 0 < row["start_s"] < 60 and 20 < row["memory_mb"] < 4000
    assert rows[-1]["memory_mb"] > 1.5 * rows[1]["memory_mb"]  # torch
    assert len(list(csv.DictReader((out / "rows.csv").read_text().splitlines()))) == len(rows)
    with Image.open(out / "plot.png") as image:
        assert image.size[0] > 600


PUBLISHED = PredictRow(
    "50 tasks, published", "onnxruntime", "shared", "fp32", 50, "published", 283.7, 300.0, 23.8, 5, 0.56, 138
)  # fmt: skip
ROWS = [
    replace(PUBLISHED, arm=BARE, layout="", tasks=0, rule="", median_ms=11.9, start_s=None, memory_mb=None),
    replace(PUBLISHED, arm="50 tasks, routed", rule="routed", median_ms=20.3),
    PUBLISHED,
]


def test_the_plot_names_what_it_leaves_out() -> None:
    with drawn() as figures:
        plot(ROWS)
    (axes,) = figures[0].axes
    assert len(axes.patches) == 2
    assert axes.get_xlabel().endswith("\nnot shown: 50 tasks, published shared fp32 onnxruntime: 283.7 ms")


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    arm = _Arm("1 task, routed", tmp_path, "onnxruntime", "shared", "fp32", 1, "routed", lambda frames: None)
    with pytest.raises(EdgeClError) as failed:
        _fresh(arm, 1)
    assert failed.value.faults[0] == f"A process that answers from {tmp_path} ended with status 1."
    assert f"{tmp_path} is no bundle: it has no manifest.json." in failed.value.faults[1]
    assert failed.value.mend.endswith(f"-m edge_cl.latency {tmp_path} onnxruntime routed 1")
