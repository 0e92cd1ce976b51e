"""What a learn changed: the new model measured against the one before it, as a report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from edge_cl.architecture import BackboneSpec
from edge_cl.assessment import Assessment, assess, hardly_varied, look_alikes
from edge_cl.config import LearnConfig
from edge_cl.errors import EdgeClError, listed
from edge_cl.intake import Intake, skipped_json
from edge_cl.learning import Learned
from edge_cl.model import Model
from edge_cl.pictures import PictureFolder
from edge_cl.plan import Plan
from edge_cl.process import cuda_peak_mb, idle_mb, peak_mb
from edge_cl.report import STAGES, LearnReport
from edge_cl.statistics import Statistics

NOT_EXPORTED = "No class is known yet: nothing was exported."
MOST_ALIKE = 5  # pairs of look-alikes that are named


def measure_outcome(
    old: Model, learned: Learned, asked: LearnConfig, seconds: Mapping[str, float]
) -> tuple[Model, LearnReport]:
    """Measure the new model against the old one; return it with its history, and the report."""
    new, task, intake = learned.model, learned.task, learned.intake
    before, after = assess(old), assess(new)
    same = assess(new.seen_by(old)) if intake.known else after  # the old classes, on the pictures that `before` is of
    earlier, updated = {c.task for c in old.classes}, {c.task for c in old.classes if c.name in intake.known}
    rows = (*old.history, same.per_task)
    lost = [max(row.get(t, 0.0) for row in rows) - now for t, now in same.per_task.items() if t in earlier]
    history = (*new.history, after.per_task)
    # What an updated task was worth before is of other pictures: it is no measure for later learns.
    kept = [{t: a for t, a in row.items() if t not in updated} for row in new.history]
    new = replace(new, history=(*kept, after.per_task))
    names = {**old.names, **new.names}
    notes = (
        _notes(old, learned, after) + _copy_notes(intake) + _time_notes(learned, asked) + _memory_notes(learned, asked)
    )
    report = LearnReport(
        version=None,
        task=new.task_names[task] if task is not None else None,
        classes=list(intake.new),
        updated_classes=list(intake.known),
        known_classes=[c.name for c in new.classes],
        images=len(intake.folder.pictures),
        hold_out=len(intake.hold_out),
        negatives=len(intake.negatives.pictures) if intake.negatives else 0,
        learned_before=intake.learned_before,
        skipped=skipped_json(intake.skipped),
        epochs=learned.epochs,
        runtime=learned.runtime,
        seconds={stage: round(seconds.get(stage, 0.0), 3) for stage in STAGES},
        budget={
            "time_s": asked.time_s,
            "predicted_s": learned.plan.predicted_s and round(learned.plan.predicted_s, 1),
            "memory_mb": asked.memory_mb,
            "predicted_mb": round(learned.plan.predicted_mb, 1),
            "idle_mb": round(learned.plan.idle_mb, 1),
            "cuda_peak_mb": round(cuda_peak_mb(), 1),
        },
        peak_memory_mb=round(peak_mb(), 1),
        holdout_accuracy=after.per_task.get(task) if task is not None else after.accuracy(earlier),
        old_class_accuracy={"before": before.accuracy(earlier), "after": same.accuracy(earlier)},
        forgetting=sum(lost) / len(lost) if lost else 0.0,
        accuracy_matrix=[{new.task_names[t]: a for t, a in row.items()} for row in history],
        class_accuracy={names[c]: a for c, a in after.per_class.items()},
        class_hold_out={names[c]: n for c, n in after.class_pictures.items()},
        old_hold_out=before.pictures,
        confusions=[{"class": names[a], "taken_for": names[b], "count": n} for a, b, n in after.confusions],
        notes=notes,
        calibration={
            "temperature": new.temperature,
            "error_before": after.calibration and after.calibration[0],
            "error_after": after.calibration and after.calibration[1],
        },
        unknown={
            "threshold": new.threshold if np.isfinite(new.threshold) else None,
            "least_score": new.least_score if np.isfinite(new.least_score) else None,
            "false_rejects": after.false_rejects,
            "false_accepts": after.false_accepts,
        },
    )
    return new, report


def nothing_new(
    model: Model, asked: LearnConfig, intake: Intake, version: int | None, seconds: Mapping[str, float], started: float
) -> LearnReport:
    """Return the report of a learn without a picture that is new: the version in force, measured again.

    Args:
        model: what is known.
        asked: settings.
        intake: the pictures, none of which is new.
        version: in force; None where there is no store yet.
        seconds: by stage.
        started: when the learn began, by `time.monotonic`.
    """
    plan = Plan(asked, None, idle_mb(), idle_mb())
    _, report = measure_outcome(model, Learned(model, None, 0, plan, "torch", intake), asked, seconds)
    passed = intake.learned_before + report.images
    return replace(
        report,
        version=version,
        images=0,
        hold_out=0,
        negatives=0,
        learned_before=passed,
        updated_classes=[],
        accuracy_matrix=report.accuracy_matrix[:-1],
        seconds={**report.seconds, "total": round(time.monotonic() - started, 3)},
        notes=[f"{'Every picture was learned before' if passed else 'No picture is new'}: nothing was changed."],
    )


def nothing_yet(
    spec: BackboneSpec,
    asked: LearnConfig,
    folder: PictureFolder,
    negatives: PictureFolder | None,
    *,
    export: bool,
    scan_s: float,
    started: float,
) -> LearnReport:
    """Return the report of a first learn without a picture, for which no store is made: see `nothing_new`."""
    intake = Intake.of(folder, negatives, update=True, hold_out=asked.hold_out)
    model = Model(spec, asked, Statistics.empty(0))
    report = nothing_new(model, asked, intake, None, {"scan": scan_s}, started)
    return replace(report, notes=[*report.notes, NOT_EXPORTED]) if export else report


def with_peak(report: LearnReport, before_mb: float) -> LearnReport:
    """Return the report of a learn with the peak memory of all of it, and a note where that passed the limit.

    Args:
        report: complete but for that.
        before_mb: the process's peak before the learn began; where that was above the limit, nobody can tell.
    """
    reached, allowed, notes = peak_mb(), report.budget["memory_mb"], list(report.notes)
    if allowed is not None and before_mb <= allowed < reached:
        lower = 2 * allowed - reached
        way = f"pass --memory {lower:.0f}MB or " if lower > (report.budget["idle_mb"] or 0) else ""
        notes.append(
            f"The process reached {reached:.0f} MB, more than the {allowed:.0f} MB allowed: to keep under "
            f"{allowed:.0f} MB, {way}learn fewer classes at a time."
        )
    return replace(report, peak_memory_mb=round(reached, 1), notes=notes)


def measured_anew(model: Model, tasks: set[int]) -> Model:
    """Return the model with what some tasks were worth before struck from its history: they had other classes then.

    What they are worth now takes the place of the latest, so that a later learn is not blamed for the difference.
    """
    now = {t: a for t, a in assess(model).per_task.items() if t in tasks}
    rows = [{t: a for t, a in row.items() if t not in now} for row in model.history]
    return replace(model, history=(*rows[:-1], {**rows[-1], **now}) if rows else ())


def _notes(old: Model, learned: Learned, after: Assessment) -> list[str]:
    notes, model = [], learned.model
    if old.classes and model.shared is not old.shared:
        notes.append(
            "The shared adapter moved, and with it the features of the old classes: "
            "their accuracy is an estimate from their old or corrected statistics, and may be too high."
        )
    if old.classes and not old.probes and model.config.max_forgetting is not None:
        notes.append("No picture of the old classes was held out: whether they lost more than allowed is not measured.")
    if learned.task is not None and learned.epochs == 0 and model.config.method != "prototype":
        notes.append("Too few classes or pictures to train adapters on: statistics alone were taken.")
    if model.closer != old.closer:
        side = f"{model.preprocess.crop_fraction:.0%} of a frame's shorter side"
        notes.append(
            f"Pictures are now answered on a closer square, {side}: the hold-out pictures are recognised better on it."
            if model.closer
            else f"Pictures are answered on the wider square again, {side}."
        )
    known = set[str]().union(*model.fingerprints.values())
    if wrong := sum(sha in known for sha in old.negative_hashes):
        notes.append(
            f"Negatives that are pictures of a known class now, and tighten the unknown test no more: {wrong}."
        )
    alike = [] if learned.task is None else look_alikes(model, learned.task)
    for one, other in alike[:MOST_ALIKE]:
        notes.append(
            f"{model.names[one]!r} looks much like {model.names[other]!r}, which another task taught: they will be "
            "taken for each other. More varied pictures of both may tell them apart."
        )
    taught = [model.ids[name] for name in (*learned.intake.new, *learned.intake.known)]
    still = [repr(model.names[c]) for c in hardly_varied(model, taught)]
    if still:
        notes.append(
            f"The pictures of {listed(still)} hardly differ: those held out are recognised, yet other views of the "
            "same thing may not be known. Turn and move it while its pictures are taken."
        )
    unmeasured = [repr(name) for name in learned.intake.new if model.ids[name] not in after.per_class]
    if not model.classes:
        notes.append("No class is known yet: the pictures of nothing known are kept for the classes to come.")
    elif not after.pictures:
        notes.append("Too few pictures to hold any out: accuracy, confidence and the unknown test are not calibrated.")
    elif unmeasured:
        notes.append(
            f"Too few pictures of {listed(unmeasured)} to hold any out: how well they are recognised is not in the "
            "accuracy on new classes."
        )
    if len(model.classes) == 1:
        notes.append(
            f"{model.classes[0].name!r} is the only class known: what is not called unknown gets its name, at a "
            "confidence of 100 %. Teach a second class; pictures of nothing known (--negatives) tighten that test."
        )
    return notes


def _copy_notes(intake: Intake) -> list[str]:
    notes = []
    for name, others in intake.copies.items():
        total = len(intake.folder.classes[name])
        if name in intake.new and sum(others.values()) == total:
            notes.append(
                f"All pictures of {name!r} were learned as {' and '.join(map(repr, others))} before. "
                "If they are the same, forget one, and give the folder the name of the other."
            )
            continue
        notes += [
            f"New pictures of {name!r} that were learned as {other!r} before, and count for both: {count} of {total}. "
            f"If they do not show {other!r}, forget it and learn it again without them."
            for other, count in others.items()
        ]
    return notes


def _time_notes(learned: Learned, asked: LearnConfig) -> list[str]:
    used, predicted_s = learned.model.config, learned.plan.predicted_s
    if asked.time_s is None or predicted_s is None:
        return []
    how = []
    if used.method != asked.method:
        how.append("no adapter was trained (statistics alone, as by --method prototype)")
    elif 0 < learned.epochs < asked.epochs:
        how.append(f"{learned.epochs} instead of {asked.epochs} epochs of training")
    how += _fewer_views(used, asked)
    notes = [f"To keep to {asked.time_s:g} s: {', '.join(how)}."] if how else []
    if predicted_s > asked.time_s:
        notes.append(f"Even the least takes longer than {asked.time_s:g} s: about {predicted_s:.0f} s.")
    return notes


def _memory_notes(learned: Learned, asked: LearnConfig) -> list[str]:
    used, how = learned.plan.config, []
    if used.micro_batch < asked.micro_batch:
        how.append(f"{used.micro_batch} instead of {asked.micro_batch} pictures at once")
    if used.recompute and not asked.recompute:
        how.append("results computed again instead of kept, which takes longer")
    if asked.time_s is None:
        how += _fewer_views(used, asked)
    return [f"To stay under {asked.memory_mb:.0f} MB: {', '.join(how)}."] if how and asked.memory_mb else []


def _fewer_views(used: LearnConfig, asked: LearnConfig) -> list[str]:
    return [f"{used.views} instead of {asked.views} random views of each picture"] if used.views < asked.views else []


def require_little_forgetting(report: LearnReport, limit: float | None) -> None:
    """Raise EdgeClError if the old classes lost more than `limit` points (hundredths)."""
    before, after = report.old_class_accuracy["before"], report.old_class_accuracy["after"]
    if limit is None or before is None or after is None:
        return
    lost = (before - after) * 100
    if round(lost - limit, 9) > 0:  # (0.90 - 0.88) * 100 is a little more than 2
        way = ", give more pictures, or try --method prototype" if report.epochs else " or give more pictures"
        raise EdgeClError(
            f"Learning these classes would cost the old ones {lost:.1f} points of accuracy, measured on "
            f"{report.old_hold_out} pictures; {limit:g} are allowed.",
            mend=f"Nothing was changed. Raise --max-forgetting{way}.",
        )
