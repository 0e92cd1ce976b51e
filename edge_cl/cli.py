"""The command line: `edge-cl VERB`. Messages go to stderr; with --json exactly one JSON object goes to stdout."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from edge_cl.cli_benchmark import benchmark
from edge_cl.cli_options import (
    DEFAULT_STORE,
    DEFAULTS,
    BackboneOption,
    DeviceOption,
    JsonOption,
    RuleOption,
    SizeOption,
    StoreOption,
    StrideOption,
    WeightsOption,
    duration,
    megabytes,
)
from edge_cl.config import KEPT_VERSIONS, SHIPPED, LearnConfig, Method, Schedule, SharedUpdate
from edge_cl.console import Progress, answers, emit, say, table, warn_skipped
from edge_cl.errors import EdgeClError

# Threads that wait asleep instead of spinning: a robot's other programs need the cores, and beside a busy one a pass is
# nearly twice as fast this way. It must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTERRUPTED = 130  # exit status; typer gives it to Ctrl-C by itself

app = typer.Typer(
    help="Teach a robot new things to recognise, on the robot, without forgetting and without keeping old pictures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.command()
def init(
    store: StoreOption = DEFAULT_STORE,
    backbone: BackboneOption = "",
    weights: WeightsOption = None,
    image_size: SizeOption = None,
    patch_stride: StrideOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Make a store around a frozen backbone."""
    if backbone == "list":
        return _list_backbones(as_json)
    from edge_cl.learner import Learner

    _board(device)
    learner = Learner.init(
        store, backbone=backbone, weights=weights, image_size=image_size, patch_stride=patch_stride, device=device
    )
    head = learner.store.head
    value = {"store": str(store), "version": head.number, "backbone": learner.state["backbone"]}
    emit(as_json, value, lambda: _say_made(store, backbone, weights, learner.state["backbone"]))


def _say_made(store: Path, backbone: str, weights: Path | None, spec: dict[str, Any]) -> None:
    name = backbone or (spec["name"] if weights else SHIPPED)
    apart = f", its patches {spec['patch_stride']} px apart (--patch-stride)" if "patch_stride" in spec else ""
    say(f"Made {store} around {name} at {spec['image_size']} px{apart}.")


def _board(device: str) -> Any:
    """Return the profile that --device means, named on stderr, or None."""
    from edge_cl.devices import profile_for

    profile = profile_for(device)
    if profile is not None:
        say(f"{profile.name}: {profile.advice}")
    return profile


def _list_backbones(as_json: bool) -> None:
    from edge_cl.catalogue import choices

    def show() -> None:
        rows = [
            (f"{c.name}\n  {c.note}", f"{c.picture_px}", f"{c.parameters_m:.1f}", f"{c.cpu_ms:.0f}", c.licence)
            for c in choices()
        ]
        answers.print(table(("backbone", "px", "M param.", "CPU ms", "licence"), rows))
        say("Any other plain timm ViT works too. Without a network: --backbone NAME --weights FILE.safetensors.")

    emit(as_json, {"backbones": [vars(c) for c in choices()]}, show)


@app.command()
def learn(
    new_classes: Annotated[
        Path, typer.Option("--new-classes", metavar="DIR", help="One sub-folder of pictures a class.")
    ],
    store: StoreOption = DEFAULT_STORE,
    task: Annotated[str | None, typer.Option("--task", help="Name of the task.")] = None,
    method: Annotated[Method, typer.Option("--method", help="prototype: statistics alone.")] = DEFAULTS.method,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = DEFAULTS.epochs,
    seed: Annotated[int, typer.Option("--seed")] = DEFAULTS.seed,
    schedule: Annotated[
        Schedule, typer.Option("--schedule", help="joint: the published schedule, for comparison.")
    ] = DEFAULTS.schedule,
    shared_update: Annotated[
        SharedUpdate, typer.Option("--shared-update", help="What later tasks do to the shared adapter.")
    ] = DEFAULTS.shared_update,
    max_forgetting: Annotated[
        float | None,
        typer.Option("--max-forgetting", metavar="POINTS", help="Most that old classes may lose."),
    ] = None,
    time_budget: Annotated[
        float | None,
        typer.Option("--time", metavar="TIME", parser=duration, help="Most it may take: 30s, 5min, 1h."),
    ] = None,
    memory_budget: Annotated[
        float | None,
        typer.Option("--memory", metavar="SIZE", parser=megabytes, help="Most that the process may take: 800MB, 2GB."),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option("--micro-batch", min=1, help="Most pictures that training takes at once; fewer need less memory."),
    ] = None,
    negatives: Annotated[
        Path | None,
        typer.Option("--negatives", metavar="DIR", help="Pictures of nothing known; they tighten the unknown test."),
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="OUT", help="Bundle to make, or to bring up to date, at the end.")
    ] = None,
    update: Annotated[bool, typer.Option("--update", help="New pictures of known classes join.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the table of classes; learn nothing.")] = False,
    backbone: BackboneOption = "",
    weights: WeightsOption = None,
    image_size: SizeOption = None,
    patch_stride: StrideOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Learn the classes of a folder as one task, and put the result in force."""
    started = time.monotonic()  # before the imports that take seconds
    if backbone == "list":
        return _list_backbones(as_json)
    from edge_cl.export.bundle import UnexportedError
    from edge_cl.learner import Learner
    from edge_cl.pictures import read_folder, read_unlabelled
    from edge_cl.store import Store

    profile = _board(device)
    base = profile.settings(DEFAULTS) if profile else DEFAULTS
    config = replace(
        base,
        method=method,
        epochs=epochs,
        seed=seed,
        schedule=schedule,
        shared_update=shared_update,
        max_forgetting=max_forgetting,
        time_s=time_budget,
        memory_mb=memory_budget or base.memory_mb,
        micro_batch=micro_batch or base.micro_batch,
    )
    if Store.exists(store):
        learner = Learner.open(store, device=device)
        learner.require_backbone(backbone, weights, image_size, patch_stride)
    else:
        read_folder(new_classes)
        if negatives is not None:
            read_unlabelled(negatives)
        if dry_run:
            learner = None
        else:
            say(f"There is no store at {store} yet: making one.")
            learner = Learner.init(
                store, backbone=backbone, weights=weights, image_size=image_size, patch_stride=patch_stride,
                device=device,
            )  # fmt: skip
            _say_made(store, backbone, weights, learner.state["backbone"])
    if dry_run:
        _dry_run(learner, new_classes, config, update, as_json)
        return
    assert learner is not None
    unexported: UnexportedError | None = None
    try:
        with Progress() as progress:
            report = learner.learn(
                new_classes, config, task=task, update=update, negatives=negatives, export=export,
                progress=progress, started=started,
            )  # fmt: skip
    except UnexportedError as error:  # learned all the same
        unexported, report = error, error.report
    warn_skipped(report.skipped)
    emit(as_json, report.to_json(), lambda: _show_report(report, store))
    if unexported:
        raise unexported


def _dry_run(learner: Any, new_classes: Path, config: LearnConfig, update: bool, as_json: bool) -> None:
    from edge_cl.intake import Intake
    from edge_cl.pictures import read_folder

    if learner is None:
        intake = Intake.of(read_folder(new_classes), {}, update=update, hold_out=config.hold_out)
    else:
        intake = learner.look(new_classes, config, update=update)
    value = intake.to_json()

    def show() -> None:
        rows = [(c["name"], c["state"], str(c["pictures"]), str(c["hold_out"])) for c in value["classes"]]
        answers.print(table(("class", "state", "pictures", "held out"), rows))
        say("Dry run: nothing was learned.")

    warn_skipped(value["skipped"])
    emit(as_json, value, show)


def _show_report(report: Any, store: Path) -> None:
    from edge_cl.report import percent, weakest

    old = report.old_class_accuracy
    rows = [
        ("new classes", f"{len(report.classes)} from {report.images} pictures"),
        ("known classes", str(len(report.known_classes))),
        ("accuracy on new classes (hold-out)", percent(report.holdout_accuracy)),
        ("old classes before → after", f"{percent(old['before'])} → {percent(old['after'])}"),
        ("forgetting", f"{report.forgetting * 100:.1f} points"),
        ("time", ", ".join(f"{k} {v:.1f} s" for k, v in report.seconds.items())),
        ("peak memory", f"{report.peak_memory_mb:.0f} MB, predicted {report.budget['predicted_mb']:.0f} MB"),
    ]
    answers.print(table((f"version {report.version}", ""), rows))
    for name, accuracy in weakest(report.class_accuracy, 3):
        say(f"weak: {name} ({percent(accuracy)})")
    for note in report.notes:
        say(f"note: {note}")
    if report.export is not None and "error" not in report.export:
        say(f"exported: {report.export['path']} in {report.export['seconds'] * 1000:.0f} ms")
    say(f"Full report: edge-cl log --report --store {quote(str(store))}")


@app.command()
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
        result = learner.predict(*pictures, top=top, rule=rule)
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
        "top": [{"label": label, "confidence": p} for label, p in answer.prediction.top],
    }


def _show_answer(row: dict[str, Any]) -> None:
    listed = ", ".join(f"{t['label']} {t['confidence']:.2f}" for t in row["top"])
    mark = "  (unknown: unlike every class known)" if row["unknown"] else ""
    answers.print(f"{row['source']}: {row['label']} {row['confidence']:.2f}{mark}  [{listed}]", markup=False)


@app.command("eval")
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="DIR/<class>/*.jpg")],
    store: StoreOption = DEFAULT_STORE,
    rule: RuleOption = "routed",
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy on a folder of labelled pictures."""
    from edge_cl.learner import Learner
    from edge_cl.report import percent, weakest

    result = Learner.open(store, device=device).evaluate(folder, rule=rule)
    warn_skipped(result["skipped"])

    def show() -> None:
        rows = [
            ("accuracy", percent(result["accuracy"])),
            ("mean over classes", percent(result["macro_accuracy"])),
            ("right task", percent(result["task_choice_accuracy"])),
            ("called unknown", percent(result["unknown_rate"])),
            ("calibration error", f"{result['calibration_error']:.3f}"),
            *((f"task {t}", percent(value)) for t, value in enumerate(result["per_task"], 1) if value is not None),
            *((f"weak: {name}", percent(value)) for name, value in weakest(result["per_class"], 5)),
        ]
        answers.print(table(("", f"{result['images']} pictures"), rows))

    emit(as_json, result, show)


@app.command()
def classes(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the classes known."""
    from edge_cl.learner import Learner

    rows = Learner.open(store).classes()

    def show() -> None:
        cells = [(str(c["id"]), c["name"], c["task"], str(c["pictures"])) for c in rows]
        answers.print(table(("id", "class", "task", "pictures"), cells))

    emit(as_json, {"classes": rows}, show)


@app.command()
def rename(old: str, new: str, store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """Give a class another name."""
    from edge_cl.learner import Learner

    version = Learner.open(store).rename(old, new)
    renamed: Any = version.record["renamed"]
    value = {"version": version.number, "old": renamed[0], "new": renamed[1]}
    emit(as_json, value, lambda: say(f"{renamed[0]} is now {renamed[1]}."))


@app.command()
def forget(
    names: Annotated[list[str], typer.Argument(metavar="CLASS...")],
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Forget classes, without retraining."""
    from edge_cl.learner import Learner

    version = Learner.open(store).forget(names)
    value = {"version": version.number, "forgotten": names, "known_classes": version.record["classes"]}
    emit(as_json, value, lambda: say(f"Forgot {', '.join(names)}; edge-cl rollback brings them back."))


@app.command()
def log(
    store: StoreOption = DEFAULT_STORE,
    report: Annotated[bool, typer.Option("--report", help="Print the report of the version in force.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the versions."""
    from edge_cl.learner import Learner
    from edge_cl.report import percent

    learner = Learner.open(store)
    head = learner.store.head
    if report:
        _show_saved_report(learner, as_json)
        return
    rows: list[dict[str, Any]] = [
        {
            "version": v.number,
            "parent": v.parent,
            "kind": v.kind,
            "task": v.record.get("task"),
            "classes": v.record.get("classes", []),
            "created": v.created,
            "holdout_accuracy": v.record.get("holdout_accuracy"),
        }
        for v in learner.log()
    ]

    def show() -> None:
        cells = [
            (
                "→" if row["version"] == head.number else "",
                str(row["version"]),
                "" if row["parent"] is None else str(row["parent"]),
                f"{row['kind']} {row['task'] or ''}".strip(),
                str(len(row["classes"])),
                percent(row["holdout_accuracy"], ""),
                row["created"],
            )
            for row in rows
        ]
        columns = ("", "version", "parent", "what", "classes", "hold-out", "created")
        answers.print(table(columns, cells))

    emit(as_json, {"versions": rows, "head": head.number}, show)


def _show_saved_report(learner: Any, as_json: bool) -> None:
    store, head = learner.store, learner.store.head
    if "report.md" not in head.objects:
        raise EdgeClError(
            f"Version {head.number} is no learn: it has no report.", mend="edge-cl log lists the versions."
        )
    value = {
        **store.read_json(head, "metrics.json"),
        "files": {name: str(store.object_path(head, name)) for name in ("report.md", "metrics.json", "plot.png")},
    }

    def show() -> None:
        answers.print(store.read_bytes(head, "report.md").decode(), markup=False)
        say(f"Plot: {value['files']['plot.png']}")

    emit(as_json, value, show)


@app.command()
def rollback(
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", help="The one before, if not given.")] = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Put an earlier version in force."""
    from edge_cl.learner import Learner

    head = Learner.open(store, repair=True).rollback(version)
    value = {"version": head.number, "known_classes": head.record.get("classes", [])}
    emit(as_json, value, lambda: say(f"Version {head.number} is in force."))


@app.command()
def prune(
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="How many of the newest stay; 1: none to roll back to.")
    ] = KEPT_VERSIONS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Delete old versions, and what learns that were cut off left, for good; the one in force and its parent stay."""
    from edge_cl.learner import Learner

    learner = Learner.open(store)
    pruned = learner.prune(keep, dry_run=dry_run)
    left = [v.number for v in learner.log() if v.number not in pruned.versions]
    value = {"removed": pruned.versions, "versions": left, "freed_bytes": pruned.freed_bytes, "dry_run": dry_run}

    what = f"Versions {'to delete' if dry_run else 'deleted'}: {', '.join(map(str, pruned.versions)) or 'none'}"
    space = f"{'To free' if dry_run else 'Freed'}: {pruned.freed_bytes / 1e6:.1f} MB"
    emit(as_json, value, lambda: say(f"{what}. {space}. Left: {', '.join(map(str, left))}."))


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New directory, or a bundle to bring up to date.")],
    store: StoreOption = DEFAULT_STORE,
    layout: Annotated[str | None, typer.Option("--layout", help="shared (default) or merged.")] = None,
    format: Annotated[str | None, typer.Option("--format", help="onnx (default), tensorrt or peft.")] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32 or fp16; default: fp32, for engines the board's.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write what the store knows as a bundle that runs without torch."""
    from edge_cl.learner import Learner

    learner = Learner.open(store, device="cpu")
    done = learner.export(out, layout=layout, format=format, precision=precision, say=say)
    value = {"path": str(out), **done}

    def show() -> None:
        if "folders" in value:
            say(f"Version {value['version']} is at {out}: {', '.join(Path(f).name for f in value['folders'])}.")
            return
        megabytes = value["written_bytes"] / 1e6
        say(f"Version {value['version']} is at {out}: {value['seconds']:.2f} s, {megabytes:.1f} MB written.")
        say(f"Use it: python -c \"from edge_cl.runtime import Classifier; print(Classifier('{out}').classes)\"")

    emit(as_json, value, show)


@app.command()
def doctor(
    store: StoreOption = DEFAULT_STORE,
    root: Annotated[
        Path | None,
        typer.Option("--root", metavar="DIR", exists=True, file_okay=False, help="File tree of a board, captured."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the machine and the store; exit status 1 if something needs mending."""
    from edge_cl.devices.doctor import examine

    findings = examine(store, root)

    def show() -> None:
        rows = [(f.state, f.check, "\n".join(filter(None, (f.found, f.cause, f.mend)))) for f in findings]
        answers.print(table(("", "check", "found, why, and what mends it"), rows))

    emit(as_json, {"findings": [vars(f) for f in findings], "ok": all(f.ok for f in findings)}, show)
    if not all(f.ok for f in findings):
        raise typer.Exit(1)


app.add_typer(benchmark, name="benchmark")


def main() -> None:
    """Run the command line; the exit status is 0 done, 1 could not do it, 2 bad usage, 130 interrupted."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  # it may have been closed
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of a terminal that cannot show a class's name
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # what cannot be written shows here, not when the interpreter ends
    except EdgeClError as error:
        for fault in error.faults:
            say(f"error: {fault}")
        if error.mend:
            say(error.mend)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        say("Interrupted." + " The same command goes on where it was." * ("learn" in sys.argv[1:2]))
        sys.exit(INTERRUPTED)
    except OSError as error:  # that no part of the program expects, such as an answer for a full disk
        if not isinstance(error, BrokenPipeError):
            reason = "no permission" if isinstance(error, PermissionError) else error.strerror or str(error)
            say(f"error: {': '.join(filter(None, (error.filename, reason)))}.")
        if isinstance(sys.stdout, TextIOWrapper):  # what is left in it goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
