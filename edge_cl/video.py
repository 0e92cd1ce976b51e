"""Frames of video files and cameras, through OpenCV (the extra `video`; on a Jetson, JetPack's own OpenCV)."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import Any

from PIL import Image

from edge_cl.errors import EdgeClError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
_CAMERA = re.compile(r"/dev/video\d+|csi://\d+|(rtsp|rtsps|http|https)://.+")
_CSI = (
    "nvarguscamerasrc sensor-id={} ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1 ! "
    "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1"
)


def is_camera(source: str) -> bool:
    """Return whether a source is a camera or a network stream: /dev/video0, csi://0, rtsp://..."""
    return _CAMERA.fullmatch(source) is not None


def is_video(source: str) -> bool:
    """Return whether a source has frames: a camera, a stream or a video file."""
    return is_camera(source) or source.lower().endswith(VIDEO_SUFFIXES)


def frames(source: str, *, every_s: float = 1.0) -> Iterator[tuple[float, Image.Image]]:
    """Yield (seconds since the start, RGB frame), one frame in every `every_s` seconds.

    Args:
        source: a video file, /dev/videoN, csi://N or a network stream.
        every_s: spacing in seconds of the video's own clock (of a camera: of its nominal frame rate).

    Raises:
        EdgeClError: OpenCV is missing, or the source cannot be opened.
    """
    capture = _open(_opencv(), source)
    try:
        rate = capture.get(_opencv().CAP_PROP_FPS) or 30.0
        step = max(1, round(rate * every_s))
        count = 0
        while capture.grab():
            if count % step == 0:
                ok, frame = capture.retrieve()
                if ok:
                    yield count / rate, Image.fromarray(frame[:, :, ::-1])
            count += 1
    finally:
        capture.release()


def _opencv() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError as error:
        raise EdgeClError(
            "Video and cameras need OpenCV, which is not installed.",
            mend="pip install 'edge-cl[video]'; on a Jetson use JetPack's OpenCV (venv with --system-site-packages).",
        ) from error


def _open(cv2: Any, source: str) -> Any:
    if source.startswith("csi://"):
        capture = cv2.VideoCapture(_CSI.format(source.removeprefix("csi://")), cv2.CAP_GSTREAMER)
    elif source.startswith("/dev/video"):
        capture = cv2.VideoCapture(int(source.removeprefix("/dev/video")))
    else:
        capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise EdgeClError(
            f"{source} cannot be opened as video.", mend="Check that it exists and that no other program holds it."
        )
    return capture
