"""The curve of accuracy against cost, on a tiny store: every way of answering, from half a pass to two."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
from PIL import Image
from small import CONFIG, new_learner, write_looks
from two_tasks import FIRST, SECOND

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import cost_curve


def test_the_curve_reaches_from_the_exit_alone_to_two_branches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learner = new_learner(tmp_path)
    for k, looks in enumerate((FIRST, SECOND)):  # enough pictures for adapters, and hold-out for an exit
        learner.learn(write_looks(tmp_path / str(k), looks, 60), replace(CONFIG, epochs=1))
    fresh = write_looks(tmp_path / "fresh", FIRST | SECOND, 3, first=100)
    output = tmp_path / "curve"
    with mock.patch.object(sys, "argv", ["cost_curve.py", *map(str, (learner.store.path, fresh, "--output", output))]):
        cost_curve.main()
    with output.with_suffix(".csv").open() as file:
        rows = {row["what"]: (float(row["passes"]), float(row["accuracy"])) for row in csv.DictReader(file)}
    passes = [cost for what, (cost, _) in rows.items() if what.endswith("then the base branch")]
    assert len(passes) == len(cost_curve.CONFIDENCES)
    assert passes == sorted(passes) and passes[0] >= 0.5
    assert rows["base branch"] == (1.0, learner.evaluate(fresh, rule="base")["accuracy"])
    assert 1.0 < rows["one task branch always"][0] <= rows["two task branches always"][0] <= 2.0
    assert Image.open(output.with_suffix(".png")).size[0] > 500
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
