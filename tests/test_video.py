from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edge_cl.errors import EdgeClError
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
        ("csi://1", True, True),
        ("rtsp://robot/stream", True, True),
        ("photo.jpg", False, False),
        ("/dev/video", False, False),
        ("csi://", False, False),
    ],
)
def test_what_is_video(source: str, video: bool, camera: bool) -> None:
    assert (is_video(source), is_camera(source)) == (video, camera)


def test_a_source_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="OpenCV (the extra `video`) is not installed")
    with pytest.raises(EdgeClError, match=r"absent\.mp4 cannot be opened"):
        next(frames(str(tmp_path / "absent.mp4")))


def test_without_opencv_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(EdgeClError, match=r"edge-cl\[video\]"):
        next(frames("film.mp4"))
