"""The verbs that teach: `init` and `learn`."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge_cl.cli_options import (
    DEFAULT_STORE,
    DEFAULTS,
    BackboneOption,
    DeviceOption,
    ExportOption,
    JsonOption,
    SizeOption,
    StoreOption,
    StrideOption,
    WeightsOption,
    duration,
    flag,
    megabytes,
    place,
)
from edge_cl.config import SHIPPED, LearnConfig, Method, Schedule, SharedUpdate
from edge_cl.console import Progress, answers, emit, export_line, say, table, warn_skipped

if TYPE_CHECKING:
    from edge_cl.intake import Pictures
    from edge_cl.store import Store


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


def learn(
    new_classes: Annotated[
        Path | None,
        typer.Option(
            "--new-classes",
            metavar="DIR",
            parser=place,
            help="One sub-folder of pictures a class; with --negatives it may be left out.",
        ),
    ] = None,
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
        typer.Option(
            "--max-forgetting",
            metavar="POINTS",
            help="Most points of hold-out accuracy that this one learn may cost the old classes (before - after).",
        ),
    ] = None,
    time_budget: Annotated[
        float | None,
        typer.Option(
            "--time",
            metavar="TIME",
            parser=duration,
            help="To be kept to: 30s, 5min, 1h. If the least takes longer, it is done, and said.",
        ),
    ] = None,
    memory_budget: Annotated[
        float | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            parser=megabytes,
            help="Most that the process may take: 800MB, 2GB. If the least takes more, it is refused.",
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option("--micro-batch", min=1, help="Most pictures that training takes at once; fewer need less memory."),
    ] = None,
    negatives: Annotated[
        Path | None,
        typer.Option(
            "--negatives", metavar="DIR", parser=place, help="Pictures of nothing known; they tighten the unknown test."
        ),
    ] = None,
    export: ExportOption = None,
    update: Annotated[bool, flag("--update", help="New pictures of known classes join.")] = False,
    dry_run: Annotated[bool, flag("--dry-run", help="Print the table of classes; learn nothing.")] = False,
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
    from edge_cl.intake import read_folders, require_given
    from edge_cl.learner import Learner, check_asked
    from edge_cl.store import Store

    require_given(new_classes, negatives)
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
    learner = Learner.open(store, device=device) if Store.exists(store) else None
    if learner is not None:
        learner.require_backbone(backbone, weights, image_size, patch_stride)
    else:
        Store(store).require_vacant()
    check_asked(config, task, export)  # before a store is made for it
    if dry_run:
        if learner is None and (backbone or weights or image_size or patch_stride):
            from edge_cl.weights import load_backbone

            load_backbone(backbone, weights, image_size, patch_stride)
        _dry_run(learner, new_classes, negatives, config, update, as_json)
        return
    lesson: tuple[Pictures | None, Pictures | None] = new_classes, negatives
    scan_s = 0.0
    if learner is None:
        Store(store).files.require_writable()
        begun = time.monotonic()
        with Progress() as progress:
            lesson = folders = read_folders(*lesson, growing=update, progress=progress)
        scan_s = time.monotonic() - begun
        if not any(folder and folder.pictures for folder in folders):  # so far
            from edge_cl.outcome import nothing_yet
            from edge_cl.weights import load_backbone

            # If it cannot be used, that shows now, not with the first picture:
            spec = load_backbone(backbone, weights, image_size, patch_stride)[0].spec
            report = nothing_yet(spec, config, *folders, export=export is not None, scan_s=scan_s, started=started)
            warn_skipped(report.skipped)
            emit(as_json, report.to_json(), lambda: _show_report(report, None))
            return
        say(f"There is no store at {store} yet: making one.")
        learner = Learner.init(
            store, backbone=backbone, weights=weights, image_size=image_size, patch_stride=patch_stride, device=device
        )
        _say_made(store, backbone, weights, learner.state["backbone"])
    unexported: UnexportedError | None = None
    try:
        with Progress() as progress:
            report = learner.learn(
                lesson[0], config, task=task, update=update, negatives=lesson[1], export=export,
                progress=progress, started=started, scan_s=scan_s,
            )  # fmt: skip
    except UnexportedError as error:  # learned all the same
        unexported, report = error, error.report
    warn_skipped(report.skipped)
    emit(as_json, report.to_json(), lambda: _show_report(report, learner.store))
    if unexported:
        raise unexported


def _dry_run(
    learner: Any,
    new_classes: Path | None,
    negatives: Path | None,
    config: LearnConfig,
    update: bool,
    as_json: bool,
) -> None:
    from edge_cl.intake import Intake, read_folders

    with Progress(passing=True) as progress:
        if learner is not None:
            intake = learner.look(new_classes, config, update=update, negatives=negatives, progress=progress)
        else:
            folders = read_folders(new_classes, negatives, growing=update, progress=progress)
            intake = Intake.of(*folders, update=update, hold_out=config.hold_out)
    value = intake.to_json()

    def show() -> None:
        rows = [(c["name"], c["state"], str(c["pictures"]), str(c["hold_out"])) for c in value["classes"]]
        if rows:
            answers.print(table(("class", "state", "pictures", "held out"), rows))
        else:
            say("There is no new picture to learn from.")
        if value["negatives"]:
            say(f"The unknown test would be tightened by {value['negatives']} pictures.")
        if value["learned_before"]:
            say(f"It would pass over {value['learned_before']} pictures that were learned before.")
        say("Dry run: nothing was learned.")

    warn_skipped(value["skipped"])
    emit(as_json, value, show)


def _show_report(report: Any, store: Store | None) -> None:
    from edge_cl.report import FORGETTING, percent

    old, passed = report.old_class_accuracy, report.unknown["false_accepts"]
    stages = ", ".join(f"{k} {v:.1f}" for k, v in report.stages().items() if v >= 0.05)
    new = [("accuracy on new classes (hold-out)", report.new_accuracy())] if report.classes else []
    lost = []
    if report.has_old_classes:
        lost = [
            (
                "old classes before → after this learn",
                f"{percent(old['before'])} → {percent(old['after'])}{report.old_pictures()}",
            ),
            (FORGETTING, report.forgotten()),
        ]
    rows = [
        *report.counts(),
        *new,
        *lost,
        *([] if passed is None else [("negatives not called unknown", percent(passed))]),
        ("time", f"{report.seconds['total']:.1f} s{f', of it {stages}' if stages else ''}"),
        ("peak memory", f"{report.peak_memory_mb:.0f} MB, predicted {report.budget['predicted_mb']:.0f} MB"),
    ]
    answers.print(table((f"version {report.version}" if store else "no store yet", ""), rows))
    for name, accuracy in report.weak(3):
        say(f"weak: {name}, {accuracy}")
    if report.learned_before:
        say(f"passed over: {report.learned_before} pictures that were learned before")
    for note in report.notes:
        say(f"note: {note}")
    if report.export is not None and "error" not in report.export:
        say(export_line(report.export))
    if store and "report.md" in store.head.objects:
        say(f"Full report: {store.command('log --report')}")
