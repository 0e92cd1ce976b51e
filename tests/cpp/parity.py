"""Compare the C++ runtime with the Python runtime on real pictures: parity.py LIBRARY BUNDLE PICTURES."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
from c_api import CClassifier, Library, frame
from PIL import Image

from edge_cl.runtime import Classifier


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path, help="libedge_cl.so")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("pictures", type=Path, help="folder with one sub-folder a class")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    paths = sorted(p for p in given.pictures.glob("*/*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(given.count, len(paths))).astype(int)]
    python = Classifier(given.bundle, threads=given.threads)
    recogniser, count = python._loaded.recogniser, len(python.classes)
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    ours = CClassifier(
        Library(given.library), given.bundle, top=count, threads=given.threads, onnxruntime=str(library).encode()
    )
    same = same_unknown = 0
    logits, probabilities = [], []
    seconds = [0.0, 0.0]
    for path in chosen:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        start = time.perf_counter()
        (answer,) = ours.predict([frame(pixels)])
        middle = time.perf_counter()
        expected = python.predict(pixels, top=count)
        seconds[0] += middle - start
        seconds[1] += time.perf_counter() - middle
        same += answer.label == expected.label
        same_unknown += answer.unknown == expected.unknown
        found, wanted = dict(answer.top), dict(expected.top)
        a, b = (np.asarray([values[name] for name in python.classes], np.float64) for values in (found, wanted))
        probabilities.append(np.abs(a - b).max())
        seen = b > 1e-30  # logits up to a constant: the logarithms of the probabilities
        logits.append(np.abs(np.log(a[seen]) - np.log(b[seen])).max())
    figures = {
        "pictures": len(chosen),
        "same_label": same,
        "same_unknown": same_unknown,
        "largest_logit_difference": float(np.max(logits)),
        "largest_probability_difference": float(np.max(probabilities)),
        "ms_a_picture": {"cpp": 1e3 * seconds[0] / len(chosen), "python": 1e3 * seconds[1] / len(chosen)},
        "rule": recogniser.rule,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
