"""`--device` on the command line: a board's profile is the default under what is given there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from machines import NANO, PC, XAVIER
from small import BACKBONE, IMAGE_SIZE, edge_cl, write_looks, write_weights

from edge_cl.config import LearnConfig
from edge_cl.errors import EdgeClError
from edge_cl.learner import Learner

ADVICE = "Jetson Orin Nano 8GB: its profile orin-nano-8gb allows a learn 3072 MB (--memory changes it), 16 pictures"


class Recorder:
    """A learner that notes the settings it is asked to learn with, and stops."""

    config: LearnConfig
    state: ClassVar = {"backbone": {"name": BACKBONE, "image_size": IMAGE_SIZE}}

    def learn(self, _: Path, config: LearnConfig, **__: Any) -> None:
        Recorder.config = config
        raise EdgeClError("Noted.")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("EDGE_CL_STORE", raising=False)
    monkeypatch.chdir(tmp_path)
    return write_looks(tmp_path / "pictures", {"nut": 1, "bolt": 6}, 4)


@pytest.mark.parametrize(
    ("root", "options", "memory_mb", "micro_batch", "named"),
    [
        (NANO, [], 3072, 16, True),
        (NANO, ["--device", "auto"], 3072, 16, True),
        (NANO, ["--memory", "1GB"], 1024, 16, True),
        (NANO, ["--device", "cpu"], None, 16, False),
        (NANO, ["--device", "cuda"], None, 16, False),
        (NANO, ["--device", "agx-orin-64gb"], 24576, 64, False),
        (PC, ["--device", "orin-nano-4gb"], 1536, 8, False),
        (PC, ["--device", "orin-nano-4gb", "--memory", "700MB"], 700, 8, False),
        (PC, [], None, 16, False),
        (XAVIER, [], None, 16, False),
    ],
)
def test_the_command_line_beats_the_profile_and_that_the_default(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    options: list[str],
    memory_mb: float | None,
    micro_batch: int,
    named: bool,
) -> None:
    monkeypatch.setattr("edge_cl.devices.probe.ROOT", root)
    monkeypatch.setattr(Learner, "init", lambda *_, **__: Recorder())
    run = edge_cl("learn", "--new-classes", folder, "--seed", 5, *options)
    assert (run.code, run.out) == (1, "")
    assert "Noted." in run.err
    assert Recorder.config == LearnConfig(seed=5, memory_mb=memory_mb, micro_batch=micro_batch)
    assert (ADVICE in run.err) is named


@pytest.mark.parametrize(
    ("device", "code", "messages"),
    [
        ("orin-nano-8gb", 1, ["no CUDA device that torch can use", "--device cpu"]),
        ("orin-nano-8g", 2, ["Unknown device 'orin-nano-8g'.", "Did you mean orin-nano-8gb"]),
        ("xavier-nx", 1, ["Jetson Xavier NX is not supported", "--device cpu"]),
    ],
)
@pytest.mark.parametrize("verb", ["init", "learn", "predict"])
def test_a_profile_that_cannot_serve_makes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, verb: str, device: str, code: int, messages: list[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Learner.init(
        "old",
        backbone=BACKBONE,
        weights=write_weights(folder.parent / "weights.safetensors"),
        image_size=IMAGE_SIZE,
        device="cpu",
    )
    options = {
        "init": ["--store", "new"],
        "learn": ["--new-classes", folder, "--store", "new"],
        "predict": [folder, "--store", "old"],
    }[verb]
    run = edge_cl(verb, *options, "--device", device)
    assert (run.code, run.out) == (code, "")
    assert all(message in run.err for message in messages), run.err
    assert not (folder.parent / "new").exists()


def test_a_learn_on_a_board_names_its_profile(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_cl.devices.probe.ROOT", NANO)
    weights = write_weights(folder.parent / "weights.safetensors")
    init = ["--backbone", BACKBONE, "--weights", weights, "--image-size", IMAGE_SIZE]
    run = edge_cl("learn", "--new-classes", folder, "--method", "prototype", "--json", *init)
    assert run.json["known_classes"] == ["bolt", "nut"]
    assert ADVICE in run.err
