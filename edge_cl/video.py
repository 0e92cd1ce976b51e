"""Frames of video files and cameras, through OpenCV (the extra `video`; on a Jetson, JetPack's own OpenCV)."""

from __future__ import annotations

import importlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from edge_cl.errors import EdgeClError, UsageError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
_CAMERA = re.compile(r"/dev/video\d+|/dev/v4l/.+|csi://\d+|(rtsp|rtsps|http|https)://.+")
MOST_RATE = 1000.0  # frames a second
_CSI = (
    "nvarguscamerasrc sensor-id={} ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1 ! "
    "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1"
)


def is_camera(source: str) -> bool:
    """Return whether a source is a camera or a network stream: /dev/video0, /dev/v4l/by-id/..., csi://0, rtsp://..."""
    return _CAMERA.fullmatch(source) is not None


def is_video(source: str) -> bool:
    """Return whether a source has frames: a camera, a stream or a video file."""
    return is_camera(source) or (source.lower().endswith(VIDEO_SUFFIXES) and not Path(source).is_dir())


def frames(source: str, *, every_s: float = 1.0) -> Iterator[tuple[float, Image.Image]]:
    """Yield (seconds since the start, RGB frame), one frame in every `every_s` seconds.

    Args:
        source: a video file, /dev/videoN or a link to it under /dev/v4l, csi://N or a network stream.
        every_s: spacing in seconds of the video's own clock (of a camera: of its nominal frame rate).

    Raises:
        UsageError: the spacing is no positive number.
        EdgeClError: OpenCV is missing, the source cannot be opened, or gives no frame, or a camera gives no more.
    """
    if not 0 < every_s < math.inf:
        raise UsageError(f"Frames cannot be {every_s} seconds apart.", mend="Give a positive number: --every 1")
    capture = _open(_opencv(), source)
    try:
        rate = capture.get(_opencv().CAP_PROP_FPS)
        if not 0 < rate <= MOST_RATE:  # cameras that do not know it say 0, -1, 90000 or NaN
            rate = 30.0
        step = max(1, round(rate * every_s))
        count = 0
        while capture.grab():
            if count % step == 0:
                ok, frame = capture.retrieve()
                if ok:
                    yield count / rate, Image.fromarray(frame[:, :, ::-1])
            count += 1
        endless = is_camera(source) and not source.startswith("http")  # where a file may lie
        if count == 0 or endless:
            mend = "Check its cable and power, then run the same command again." if endless else ""
            raise EdgeClError(f"{source} gave no {f'more frames, after {count}' if count else 'frames'}.", mend=mend)
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
    elif device := re.fullmatch(r"/dev/video(\d+)", os.path.realpath(source)):
        capture = cv2.VideoCapture(int(device[1]))
    else:
        capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise EdgeClError(
            f"{source} cannot be opened as video.", mend="Check that it exists and that no other program holds it."
        )
    return capture
