from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from edge_cl.errors import EdgeClError, UsageError
from edge_cl.video import frames, is_camera, is_video

FPS = 10


@pytest.fixture
def video(tmp_path: Path) -> str:
    """Three seconds: red, then green, then blue."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV (the extra `video`) is not installed")
    path = str(tmp_path / "colours.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), FPS, (64, 48))
    for bgr in ((0, 0, 255), (0, 255, 0), (255, 0, 0)):
        for _ in range(FPS):
            writer.write(np.full((48, 64, 3), bgr, np.uint8))
    writer.release()
    return path


def test_frames_come_in_rgb_at_the_spacing_asked_for(video: str) -> None:
    seen = [
        (seconds, np.asarray(image).reshape(-1, 3).mean(0).argmax()) for seconds, image in frames(video, every_s=1.0)
    ]
    assert seen == [(0.0, 0), (1.0, 1), (2.0, 2)]
    assert len(list(frames(video, every_s=0.5))) == 6


@pytest.mark.parametrize(
    ("source", "video", "camera"),
    [
        ("film.MP4", True, False),
        ("/dev/video0", True, True),
        ("/dev/v4l/by-id/usb-Camera-video-index0", True, True),
        ("csi://1", True, True),
        ("rtsp://robot/stream", True, True),
        ("photo.jpg", False, False),
        ("/dev/video", False, False),
        ("csi://", False, False),
    ],
)
def test_what_is_video(source: str, video: bool, camera: bool) -> None:
    assert (is_video(source), is_camera(source)) == (video, camera)


def test_a_folder_may_be_named_like_a_video(tmp_path: Path) -> None:
    (tmp_path / "takes.mp4").mkdir()
    assert not is_video(str(tmp_path / "takes.mp4"))


def test_a_source_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV (the extra `video`) is not installed")
    with pytest.raises(EdgeClError, match=r"absent\.mp4 cannot be opened"):
        next(frames(str(tmp_path / "absent.mp4")))


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(EdgeClError, match=r"edge-cl\[video\]"):
        next(frames("film.mp4"))


class Camera:
    """Stands for OpenCV and a camera that gives some frames, and then nothing; it says nonsense of its rate."""

    CAP_PROP_FPS = CAP_GSTREAMER = 0

    def __init__(self, frames: int, rate: float) -> None:
        self.frames, self.rate, self.opened = frames, rate, list[object]()

    def VideoCapture(self, source: object, _: int = 0) -> Camera:  # noqa: N802
        self.opened.append(source)
        return self

    def isOpened(self) -> bool:  # noqa: N802
        return True

    def get(self, _: int) -> float:
        return self.rate

    def grab(self) -> bool:
        self.frames -= 1
        return self.frames >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.zeros((8, 8, 3), np.uint8)

    def release(self) -> None:
        self.opened.append("released")


@pytest.mark.parametrize(
    ("source", "given", "rate", "seen", "fault"),
    [
        ("/dev/video3", 61, 30.0, 3, "/dev/video3 gave no more frames, after 61."),
        ("/dev/video3", 61, -1.0, 3, "/dev/video3 gave no more frames, after 61."),
        ("/dev/video3", 61, float("nan"), 3, "/dev/video3 gave no more frames, after 61."),
        ("/dev/video3", 61, 90000.0, 3, "/dev/video3 gave no more frames, after 61."),
        ("csi://0", 0, 0.0, 0, "csi://0 gave no frames."),
        ("rtsp://robot/stream", 1, 0.0, 1, "rtsp://robot/stream gave no more frames, after 1."),
        ("http://robot/film.mp4", 1, 30.0, 1, None),
        ("film.mp4", 31, 30.0, 2, None),
        ("film.mp4", 0, 30.0, 0, "film.mp4 gave no frames."),
    ],
)
def test_a_file_may_end_but_a_camera_may_not(
    monkeypatch: pytest.MonkeyPatch, source: str, given: int, rate: float, seen: int, fault: str | None
) -> None:
    camera, found = Camera(given, rate), 0
    monkeypatch.setitem(sys.modules, "cv2", camera)  # type: ignore[arg-type]
    with pytest.raises(EdgeClError) if fault else nullcontext() as caught:
        for _ in frames(source):
            found += 1
    assert caught is None or caught.value.faults == (fault,)
    assert found == seen
    assert camera.opened[-1] == "released"


def test_a_link_to_a_camera_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    camera = Camera(1, 30.0)
    monkeypatch.setitem(sys.modules, "cv2", camera)  # type: ignore[arg-type]
    monkeypatch.setattr("os.path.realpath", lambda path: "/dev/video7")
    next(frames("/dev/v4l/by-id/usb-Camera-video-index0"))
    assert camera.opened[0] == 7


@pytest.mark.parametrize("every_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_spacing_is_a_positive_number(every_s: float) -> None:
    with pytest.raises(UsageError, match="seconds apart"):
        next(frames("film.mp4", every_s=every_s))
