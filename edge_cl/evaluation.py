"""Accuracy and calibration of answers on labelled pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_cl.calibration import calibration_error
from edge_cl.decoded import decode_in_portions
from edge_cl.errors import FolderError, did_you_mean
from edge_cl.intake import skipped_json
from edge_cl.pictures import Picture, PictureFolder, path_text
from edge_cl.progress import Progress, no_progress
from edge_cl.recognition import Recogniser
from edge_cl.statistics import Array, Indices


def evaluate(
    recogniser: Recogniser,
    folder: PictureFolder,
    progress: Progress = no_progress,
    *,
    unknown: PictureFolder | None = None,
    list_command: str = "edge-cl classes",
) -> dict[str, Any]:
    """Measure a recogniser on pictures; see `Learner.evaluate` for what is returned.

    Args:
        recogniser: what answers.
        folder: pictures by class.
        progress: told of every picture.
        unknown: pictures without labels, of nothing known.
        list_command: what lists the known classes, for the message about others.

    Raises:
        FolderError: the folder holds classes that the recogniser does not know.
    """
    require_known(folder, list(recogniser.names.values()), list_command)
    posteriors, called_unknown = [], []
    read, skipped = list[Picture](), [*folder.skipped, *(unknown.skipped if unknown else ())]
    pictures, spec = (*folder.pictures, *(unknown.pictures if unknown else ())), recogniser.backend.preprocess
    for decoded in decode_in_portions(pictures, spec, skipped=skipped, progress=progress):
        read += decoded.pictures
        for posterior, strange in recogniser.posteriors(decoded.pixels):
            posteriors.append(posterior)
            called_unknown.append(strange > 1)
    labels = [p.label for p in read if p.label]  # the others have none, and come last
    if not labels:
        raise FolderError(
            f"{path_text(folder.root)}: no picture can be read any more.",
            mend="Copy them to a folder that nobody changes.",
        )
    column = {recogniser.names[int(c)]: i for i, c in enumerate(recogniser.head.classes)}
    targets = np.asarray([column[label] for label in labels], np.int64)
    posterior, rejected = np.concatenate(posteriors)[: len(labels)], np.concatenate(called_unknown)
    own, others = rejected[: len(labels)], rejected[len(labels) :]
    strangers_found = {"images": len(others), "called_unknown": float(others.mean()) if len(others) else None}
    return {
        **measures(posterior, targets, recogniser.head.tasks, list(column)),
        "confusions": _confusions(posterior, targets, list(column)),
        "unknown_rate": float(own.mean()),
        "unknown_pictures": strangers_found if unknown else None,
        "skipped": skipped_json(skipped),
    }


def _confusions(posterior: Array, targets: Indices, names: list[str]) -> list[dict[str, Any]]:
    """Return which class was taken for which, and how often, most frequent first; see `measures`."""
    pairs = zip(targets.tolist(), posterior.argmax(1).tolist(), strict=True)
    found = Counter(pair for pair in pairs if pair[0] != pair[1]).most_common()
    return [{"class": names[a], "taken_for": names[b], "count": n} for (a, b), n in found]


def require_known(folder: PictureFolder, known: Sequence[str], list_command: str) -> None:
    """Raise FolderError if a folder holds other classes than the known ones; see `evaluate`."""
    strangers = [name for name in folder.classes if name not in known]
    if strangers:
        raise FolderError(
            *(
                f"{path_text(folder.root)}: {name!r} is not a known class. {did_you_mean(name, known)}"
                for name in strangers
            ),
            mend=f"Take these folders away, or learn them first; {list_command} lists what is known.",
        )


def measures(posterior: Array, targets: Indices, tasks: Indices, names: list[str]) -> dict[str, Any]:
    """Return what is measured of answers to labelled pictures; `per_task` by task number, None where none was judged.

    Args:
        posterior: class probabilities, (n, C).
        targets: column of each picture's class, (n,).
        tasks: task of each column, (C,).
        names: of the columns.
    """
    hits = posterior.argmax(1) == targets
    own = tasks[targets]
    per_class = {names[c]: float(hits[targets == c].mean()) for c in np.unique(targets)}
    inside = np.where(tasks[None] == own[:, None], posterior, -1.0)
    return {
        "images": len(hits),
        "accuracy": float(hits.mean()),
        "macro_accuracy": float(np.mean(list(per_class.values()))),
        "per_class": dict(sorted(per_class.items())),
        "per_task": [float(hits[own == t].mean()) if t in own else None for t in range(int(tasks.max()) + 1)],
        "task_choice_accuracy": float((tasks[posterior.argmax(1)] == own).mean()),
        "known_task_accuracy": float((inside.argmax(1) == targets).mean()),
        "calibration_error": calibration_error(posterior.max(1), hits),
    }
