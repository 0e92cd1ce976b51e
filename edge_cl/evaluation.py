"""Accuracy of a recogniser on labelled pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_cl.decoded import decode
from edge_cl.errors import FolderError, did_you_mean
from edge_cl.intake import skipped_json
from edge_cl.pictures import PictureFolder, path_text
from edge_cl.recognition import Recogniser

DECODE_AT_ONCE = 256


def evaluate(recogniser: Recogniser, folder: PictureFolder) -> dict[str, Any]:
    """Return accuracy over all pictures, by class and by task, and the share called unknown.

    Raises:
        FolderError: the folder holds classes that the recogniser does not know.
    """
    known = list(recogniser.names.values())
    strangers = [name for name in folder.classes if name not in known]
    if strangers:
        raise FolderError(
            *(
                f"{path_text(folder.root)}: {name!r} is not a known class. {did_you_mean(name, known)}"
                for name in strangers
            ),
            mend="Take these folders away, or learn them first; edge-cl classes lists what is known.",
        )
    labels, right, unknown = [], [], []
    for start in range(0, len(folder.pictures), DECODE_AT_ONCE):
        part = folder.pictures[start : start + DECODE_AT_ONCE]
        pixels = decode(part, recogniser.backend.preprocess, copies=False).pixels
        for picture, answer in zip(part, recogniser.predict(pixels, top=1), strict=True):
            labels.append(picture.label)
            right.append(answer.label == picture.label)
            unknown.append(answer.unknown)
    hits, names = np.asarray(right), np.asarray(labels)
    per_class = {name: float(hits[names == name].mean()) for name in folder.classes}
    task_of = {
        recogniser.names[int(c)]: int(t) for c, t in zip(recogniser.head.classes, recogniser.head.tasks, strict=True)
    }
    tasks = np.asarray([task_of[name] for name in labels])
    return {
        "images": len(right),
        "accuracy": float(hits.mean()),
        "macro_accuracy": float(np.mean(list(per_class.values()))),
        "per_class": per_class,
        "per_task": [float(hits[tasks == t].mean()) for t in np.unique(tasks)],
        "unknown_rate": float(np.mean(unknown)),
        "skipped": skipped_json(folder),
    }
