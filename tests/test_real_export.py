"""Bundles of a real backbone on photographs: the same answers as the learner's, by every way there is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from deployed import graphs_once
from PIL import Image
from test_real import CONFIG, WEIGHTS, groceries

from edge_cl import Learner
from edge_cl.decode import open_picture
from edge_cl.decoded import decode
from edge_cl.export.exporter import CLASSIFIER, export_bundle
from edge_cl.pictures import Picture, read_folder
from edge_cl.runtime import Classifier

pytestmark = pytest.mark.shared_data
__all__ = ["groceries"]

SIZE = 96
STRIDE = 12  # patches of 16 px that overlap
PICTURES = 64
KINDS = list(product(("shared", "merged"), ("fp32", "fp16")))
# Measured on photographs of 7 classes, ViT-Ti at 96 px: every label the same. Largest difference of a logit, in the
# picture's largest one: 2.4e-6 in fp32, 1.5e-3 in fp16; of a probability, 1.1e-5 and 1.1e-2.


@pytest.fixture(scope="module")
def taught(groceries: Path, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    learner = Learner.init(
        tmp_path_factory.mktemp("taught") / "store",
        backbone="vit_tiny_patch16_224",
        weights=WEIGHTS,
        image_size=SIZE,
        patch_stride=STRIDE,
        device="cpu",
    )
    for name in ("first", "second"):
        learner.learn(groceries / name, CONFIG, task=name)
    assert set(learner.load()[0].adapters) == {1}
    return learner


@pytest.fixture(scope="module")
def pictures(groceries: Path) -> Sequence[Picture]:
    listed = read_folder(groceries / "test").pictures
    return listed[:: max(1, len(listed) // PICTURES)][:PICTURES]


@pytest.fixture(scope="module")
def expected(taught: Learner, pictures: Sequence[Picture]) -> tuple[Any, Any, Any]:
    """Hold the input pixels, and the learner's posterior and base scores."""
    recogniser = taught.recogniser()
    pixels = np.stack(decode(pictures, recogniser.backend.preprocess).pixels)
    encoding = recogniser.backend.encode(pixels)
    return pixels, recogniser.posterior(encoding), recogniser.head.discriminant.scores(encoding.features)


@pytest.fixture(scope="module")
def bundles(taught: Learner, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    root, result, taken = tmp_path_factory.mktemp("bundles"), {}, taught.snapshot()
    with graphs_once():
        for kind in KINDS:
            result[kind] = root / " ".join(kind)
            export_bundle(taken, result[kind], layout=kind[0], precision=kind[1], classifier=kind == KINDS[0])
    return result


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_layouts_precisions_and_backends_agree(bundles: Any, expected: Any, kind: Any, backend: str) -> None:
    pixels, posterior, logits = expected
    recogniser = Classifier(bundles[kind], backend=backend, threads=1)._loaded.recogniser
    encoding = recogniser.backend.encode(pixels)
    found, scores = recogniser.posterior(encoding), recogniser.head.discriminant.scores(encoding.features)
    same = (found.argmax(1) == posterior.argmax(1)).mean()
    off = (np.abs(scores - logits).max(1) / np.abs(logits).max(1)).max()
    if kind[1] == "fp32":
        assert same == 1.0
        assert off <= 1e-3
    else:
        assert same >= 0.995
        assert off <= 0.03


def test_one_graph_agrees(bundles: Any, expected: Any) -> None:
    pixels, posterior, _ = expected
    session = ort.InferenceSession(bundles[KINDS[0]] / CLASSIFIER, providers=["CPUExecutionProvider"])
    scores = session.run(None, {"image": pixels.transpose(0, 3, 1, 2).astype(np.float32)})[0]
    assert (scores.argmax(1) == posterior.argmax(1)).all()
    assert np.abs(scores - posterior).max() <= 1e-3


def test_frames_of_photographs(bundles: Any, expected: Any, pictures: Sequence[Picture], tmp_path: Path) -> None:
    """Whole frames give the very pixels of training; of a JPEG that training decodes at half its size, nearly."""
    pixels, posterior, _ = expected
    classifier = Classifier(bundles["shared", "fp32"])
    recogniser = classifier._loaded.recogniser
    spec, names = recogniser.backend.preprocess, recogniser.names
    frames = [np.asarray(open_picture(p.path)) for p in pictures]
    assert np.array_equal(np.stack([spec.centre(Image.fromarray(frame)) for frame in frames]), pixels)
    expected_labels = [names[int(recogniser.head.classes[i])] for i in posterior.argmax(1)]
    assert [p.label for p in classifier.predict(frames)] == expected_labels
    for path in (p.path for p in pictures[:4]):
        large = open_picture(path).resize((6 * SIZE, 6 * SIZE))
        large.save(tmp_path / "large.jpg", quality=92)
        whole, half = (spec.centre(open_picture(tmp_path / "large.jpg", at_least=n)) for n in (None, 2 * SIZE))
        assert 0 < np.abs(whole.astype(int) - half).max() <= 8  # measured: 3
