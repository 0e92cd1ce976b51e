"""The verbs that answer: `predict` and `eval`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_cl.cli_options import (
    DEFAULT_STORE,
    DeviceOption,
    JsonOption,
    RuleOption,
    StoreOption,
    place,
)
from edge_cl.console import Progress, answers, emit, table, warn_skipped
from edge_cl.errors import EdgeClError


def predict(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Picture, folder, video, /dev/video0, ...")],
    store: StoreOption = DEFAULT_STORE,
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to list.")] = 3,
    every: Annotated[float, typer.Option("--every", metavar="SECONDS", help="Spacing of a video's frames.")] = 1.0,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Most frames of a video; of a camera with --json: 1.")
    ] = None,
    rule: RuleOption = "routed",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Say what is on pictures, videos and cameras (/dev/video0, csi://0, rtsp://...)."""
    from edge_cl.learner import Learner
    from edge_cl.pictures import read_unlabelled

    for source in sources:  # not all of them are paths
        place(source)
    from edge_cl.video import is_camera, is_video

    learner = Learner.open(store, device=device)
    videos = list(filter(is_video, sources))
    pictures = [source for source in sources if source not in videos]
    if videos and pictures:
        read_unlabelled(*map(Path, pictures))  # what is missing shows before a video has run
    rows: list[dict[str, Any]] = []
    skipped: list[Any] = []
    for source in videos:
        most = 1 if frames is None and as_json and is_camera(source) else frames
        try:
            for answer in islice(learner.watch(source, every_s=every, top=top, rule=rule), most):
                if as_json:
                    rows.append(_answer_json(answer))
                else:  # it may go on for months: nothing is kept
                    _show_answer(_answer_json(answer))
        except EdgeClError:
            if rows:  # of a camera that went away
                emit(as_json, {"predictions": rows, "skipped": skipped}, lambda: None)
            raise
    if pictures:
        with Progress(passing=True) as progress:
            result = learner.predict(*pictures, top=top, rule=rule, progress=progress)
        rows += map(_answer_json, result.answers)
        skipped += result.skipped
        warn_skipped(skipped)
        if not as_json:
            for row in rows[-len(result.answers) :]:
                _show_answer(row)
    emit(as_json, {"predictions": rows, "skipped": skipped}, lambda: None)


def _answer_json(answer: Any) -> dict[str, Any]:
    from edge_cl.pictures import path_text

    return {
        "source": path_text(answer.source),
        "label": answer.prediction.label,
        "confidence": answer.prediction.confidence,
        "unknown": answer.prediction.unknown,
        "unknown_score": answer.prediction.unknown_score,
        "top": [{"label": label, "confidence": p} for label, p in answer.prediction.top],
    }


def _show_answer(row: dict[str, Any]) -> None:
    listed = ", ".join(f"{t['label']} {t['confidence']:.2f}" for t in row["top"])
    mark = "  (unknown: unlike every class known)" if row["unknown"] else ""
    answers.print(f"{row['source']}: {row['label']} {row['confidence']:.2f}{mark}  [{listed}]", markup=False)


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", parser=place, help="DIR/<class>/*.jpg")],
    unknown: Annotated[
        Path | None,
        typer.Option("--unknown", metavar="DIR", parser=place, help="Pictures of nothing known: how many are told so."),
    ] = None,
    store: StoreOption = DEFAULT_STORE,
    rule: RuleOption = "routed",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy on a folder of labelled pictures."""
    from edge_cl.learner import Learner
    from edge_cl.report import percent, weakest

    with Progress() as progress:
        result = Learner.open(store, device=device).evaluate(folder, unknown=unknown, rule=rule, progress=progress)
    strange = result["unknown_pictures"]
    warn_skipped(result["skipped"])

    told = []
    if strange is not None:
        told = [("called unknown of --unknown", f"{percent(strange['called_unknown'])} ({strange['images']} pictures)")]

    def show() -> None:
        rows = [
            ("accuracy", percent(result["accuracy"])),
            ("mean over classes", percent(result["macro_accuracy"])),
            ("right task", percent(result["task_choice_accuracy"])),
            ("called unknown", percent(result["unknown_rate"])),
            *told,
            ("calibration error", f"{result['calibration_error']:.3f}"),
            *((f"task {t}", percent(value)) for t, value in enumerate(result["per_task"], 1) if value is not None),
            *((f"weak: {name}", percent(value)) for name, value in weakest(result["per_class"], 5)),
            *((f"{c['class']} taken for {c['taken_for']}", str(c["count"])) for c in result["confusions"][:5]),
        ]
        answers.print(table(("", f"{result['images']} pictures"), rows))

    emit(as_json, result, show)
