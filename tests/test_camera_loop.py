"""The camera loop: what it is shown is learned beside the frames, and answered afterwards."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from PIL import Image
from small import BACKBONE, IMAGE_SIZE, edge_cl, picture, write_weights

from edge_cl import Learner
from edge_cl.errors import EdgeClError

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import camera_loop
from camera_loop import CameraLoop

MUG, BALL = 0, 9


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store that knows nothing; learns have the priority of the tests beside them."""
    monkeypatch.setattr(os, "nice", lambda more: more)
    weights = write_weights(tmp_path / "weights.safetensors")
    edge_cl("init", "--backbone", BACKBONE, "--weights", weights, "--image-size", IMAGE_SIZE, "--store", tmp_path / "s")
    return tmp_path / "s"


def test_what_is_shown_is_learned_while_frames_are_answered(store: Path, tmp_path: Path) -> None:
    said: list[str] = []
    loop, seeds = CameraLoop(store, tmp_path / "bundle", pictures=6, say=said.append), count()

    def show(look: int, name: str) -> list[str | None]:
        """Teach a thing; return what was answered until it was known."""
        loop.teach(name)
        answers = []
        while loop.busy:
            answer = loop.see(picture(look, next(seeds)))
            answers.append(answer and answer.label)
            time.sleep(0.05)
        loop.wait()
        return answers

    first, second = show(MUG, "mug"), show(BALL, "ball")
    assert first[:6] == [None] * 6 and set(first) <= {None, "mug"}
    assert second[:6] == ["mug"] * 6 and set(second) <= {"mug", "ball"}  # answered while it learns
    assert [loop.see(picture(look, 500)).label for look in (MUG, BALL, MUG)] == ["mug", "ball", "mug"]  # type: ignore[union-attr]
    show(MUG, "mug")  # more of it
    assert {c["name"]: c["pictures"] for c in Learner.open(store).classes()} == {"mug": 12, "ball": 6}
    assert next(line for line in said if "known now" in line) == "mug is known now."
    assert said[-1].startswith("mug is known now; what was known had ")
    Learner.open(store).forget(["ball"])  # while the loop did not run
    again = CameraLoop(store, tmp_path / "another")  # of what the store knows
    assert again.classifier is not None and again.classifier.classes == ["mug"]
    kept = CameraLoop(store, tmp_path / "bundle")
    assert kept.classifier is not None and kept.classifier.classes == ["mug"]
    with pytest.raises(EdgeClError, match=r"There is a bundle at .*, but no store at none"):
        CameraLoop(Path("none"), tmp_path / "bundle")


def test_what_cannot_be_learned_is_said_and_the_loop_goes_on(store: Path, tmp_path: Path) -> None:
    said: list[str] = []
    loop = CameraLoop(store, tmp_path / "bundle", pictures=1, say=said.append)
    loop.teach("a/b")
    loop.teach("mug")
    loop.teach("ball")
    assert said == ["'a/b' cannot be learned: the class name has a slash.", "Show mug from all sides ...", said[2]]
    assert said[2] == "Not now: type ball again when mug is known."
    (store / "HEAD").write_text("7\n")
    assert loop.see(picture(MUG, 0)) is None
    loop.wait()
    assert said[-1].startswith(
        "mug was not learned; when this is mended, show it again. error: Version 7 does not exist"
    )
    assert not loop.busy
    with pytest.raises(EdgeClError, match="Version 7 does not exist"):
        CameraLoop(store, tmp_path / "bundle")


class ReadFirst(threading.Thread):
    """The thread that reads names has read them all before the first frame."""

    def start(self) -> None:
        super().start()
        if self.daemon:
            self.join()


def test_what_is_being_learned_when_the_loop_is_ended_is_learned(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As by Ctrl-C or a service manager; what was not seen long enough is not."""

    def shown(source: str, *, every_s: float) -> Iterator[tuple[float, Image.Image]]:
        yield from ((0.0, picture(MUG, seed)) for seed in range(2))
        os.kill(os.getpid(), signal.SIGTERM)
        yield 0.0, picture(MUG, 2)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(camera_loop, "frames", shown)
    monkeypatch.setattr(threading, "Thread", ReadFirst)
    for pictures in ("3", "2"):
        options = ["--store", str(store), "--bundle", str(tmp_path / "bundle"), "--pictures", pictures]
        monkeypatch.setattr(sys, "argv", ["camera_loop.py", "camera", *options])
        monkeypatch.setattr(sys, "stdin", io.StringIO("mug\n"))
        with pytest.raises(KeyboardInterrupt):
            camera_loop.main()
    signal.signal(signal.SIGTERM, before)
    out = capfd.readouterr().out
    assert "mug was not learned: 2 of 3 frames were seen.\n" in out
    assert "Waiting until mug is learned ...\nmug is known now.\n" in out
    assert [c["name"] for c in Learner.open(store).classes()] == ["mug"]


def test_names_are_read_from_the_input(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(source: str, *, every_s: float) -> Iterator[tuple[float, Image.Image]]:
        assert (source, every_s) == ("camera", 0.5)
        learner, seeds = Learner.open(store), count()
        while not learner.classes():
            yield 0.0, picture(MUG, next(seeds))
            time.sleep(0.05)
        while "mug is known now." not in printed_by(capsys):
            yield 0.0, picture(MUG, next(seeds))
            time.sleep(0.05)
        yield 0.0, picture(MUG, next(seeds))

    lines = list[str]()

    def printed_by(capsys: pytest.CaptureFixture[str]) -> list[str]:
        lines.extend(capsys.readouterr().out.splitlines())
        return lines

    options = ["--store", str(store), "--bundle", str(tmp_path / "bundle"), "--pictures", "3", "--every", "0.5"]
    monkeypatch.setattr(sys, "argv", ["camera_loop.py", "camera", *options])
    monkeypatch.setattr(sys, "stdin", io.StringIO("\nmug\n"))
    monkeypatch.setattr(camera_loop, "frames", shown)
    camera_loop.main()
    assert sorted(printed_by(capsys)) == sorted(
        ["nothing is known yet: type a name", "Show mug from all sides ...", "mug is known now.", "mug"]
    )


def test_a_source_that_cannot_be_opened_is_named() -> None:
    pytest.importorskip("cv2", reason="OpenCV (the extra `video`) is not installed")
    run = subprocess.run([sys.executable, camera_loop.__file__, "none.avi"], input="", capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("none.avi cannot be opened as video.")
