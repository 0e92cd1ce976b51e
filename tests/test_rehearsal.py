"""No rehearsal: what a store keeps of pictures is no picture, and little."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from small import CONFIG, copied, picture, write_looks
from two_tasks import FIRST, SECOND

from edge_cl import Learner

MAGIC = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG\r\n\x1a\n",
    "WebP": b"WEBPVP8",
    "GIF": b"GIF89a",
    "TIFF": b"II*\0\x08\0\0\0",
}


def holds_picture(data: bytes, magic: bytes) -> bool:
    """Return whether a picture begins somewhere in the bytes; a magic of three turns up in tensors by chance."""
    if len(magic) > 3:
        return magic in data
    for found in re.finditer(re.escape(magic), data):
        with contextlib.suppress(UnidentifiedImageError):
            Image.open(io.BytesIO(data[found.start() :]))
            return True
    return False


def test_a_picture_in_other_bytes_is_found() -> None:
    jpeg = io.BytesIO()
    picture(3, 1).save(jpeg, "JPEG")
    noise = MAGIC["JPEG"] + bytes(range(256))
    assert not holds_picture(noise, MAGIC["JPEG"])
    assert holds_picture(noise + jpeg.getvalue() + noise, MAGIC["JPEG"])
    assert holds_picture(noise + MAGIC["PNG"], MAGIC["PNG"])


def test_no_picture_stays_behind(blank: Learner, tmp_path: Path) -> None:
    """Neither files nor pixels nor patch tokens of learned pictures are in the store, as bytes or as tensors."""
    learner = copied(blank, tmp_path / "store")
    taught: list[Path] = []
    for k, task in enumerate((FIRST, SECOND)):
        folder = write_looks(tmp_path / f"task {k}", task)
        learner.learn(folder, replace(CONFIG, shared_update="correct"))
        taught += folder.glob("*/*.png")
    learner.learn(write_looks(tmp_path / "more", FIRST, 4, first=30), CONFIG, update=True)
    files = {path: path.read_bytes() for path in learner.store.path.rglob("*") if path.is_file()}
    plots = {learner.store.object_path(v, "plot.png") for v in learner.log() if "plot.png" in v.objects}
    assert len(plots) == 3
    size = learner.state["backbone"]["image_size"]
    _, encoder = learner.load()
    pieces = {}
    for path in taught:
        data = path.read_bytes()
        pieces[f"{path}: file"] = data[len(data) // 2 :][:24]
        with Image.open(path) as image:
            pieces[f"{path}: row"] = image.convert("RGB").tobytes()[1200:1224]
            centre = encoder.preprocess.centre(image.convert("RGB"))
        pieces[f"{path}: input row"] = centre[size // 2].tobytes()[:24]
        for kind in (np.float32, np.float16):
            pieces[f"{path}: {kind.__name__}"] = encoder.preprocess.normalise(centre).astype(kind)[1, 8, :8].tobytes()
    for path, data in files.items():
        if path not in plots:
            assert not [form for form, magic in MAGIC.items() if holds_picture(data, magic)], path
        assert not [name for name, piece in pieces.items() if piece in data], path

    tokens = (size // 16) ** 2 + 1
    vectors = {encoder.width, encoder.backbone.width, None}
    for version in learner.log():
        for name in version.objects:
            if name in ("backbone", "state", *plots) or name.endswith((".md", ".json", ".png")):
                continue
            for key, tensor in learner.store.read_tensors(version, name).items():
                where = f"{name}/{key} {tensor.shape} of version {version.number}"
                if key in ("A", "B", "log_mu"):
                    assert len(tensor.shape) in (2, 4), where
                    continue
                assert tensor.dtype != np.uint8, where
                assert tensor.ndim <= 2, where  # neither (H, W, 3) nor (N, D) a picture
                assert tensor.ndim < 2 or tensor.shape[1] in vectors or key == "scores", where
                assert tensor.ndim < 2 or tensor.shape[1] not in (tokens * encoder.backbone.width, 3 * size**2), where


def test_probes_are_few(blank: Learner, tmp_path: Path) -> None:
    """Of each class at most `probes` hold-out features stay, however often it is updated."""
    learner = copied(blank, tmp_path / "store")
    config = replace(CONFIG, probes=2)
    learner.learn(write_looks(tmp_path / "first", FIRST, 12), config)
    for k in range(2):
        learner.learn(write_looks(tmp_path / f"more {k}", FIRST, 8, first=20 * (k + 1)), config, update=True)
    probes = learner.store.read_tensors(learner.store.head, "task/0000/probes")
    assert sorted(probes["classes"].tolist()) == [0, 0, 1, 1]
    assert len(probes["features"]) == len(probes["scores"]) == 4
