"""What a learn changed: the new model measured against the one before it, as a report."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import replace

from edge_cl.assessment import Assessment, assess
from edge_cl.config import LearnConfig
from edge_cl.errors import EdgeClError
from edge_cl.intake import Intake, skipped_json
from edge_cl.learning import Learned
from edge_cl.model import Model
from edge_cl.report import LearnReport

STAGES = ("total", "scan", "shared", "prefix", "train", "head")


def measure_outcome(
    old: Model, learned: Learned, asked: LearnConfig, intake: Intake, seconds: Mapping[str, float]
) -> tuple[Model, LearnReport]:
    """Measure the new model against the old one; return it with its history, and the report."""
    new, task = learned.model, learned.task
    before, after = assess(old), assess(new)
    history = (*new.history, after.per_task)
    new = replace(new, history=history)
    earlier = {c.task for c in old.classes}
    lost = [max(row.get(t, 0.0) for row in history) - after.per_task[t] for t in earlier if t in after.per_task]
    names = {**old.names, **new.names}
    notes = _notes(old, learned, after) + _time_notes(learned, asked)
    report = LearnReport(
        version=None,
        task=new.task_names[task] if task is not None else None,
        classes=list(intake.new),
        updated_classes=list(intake.known),
        known_classes=[c.name for c in new.classes],
        images=len(intake.folder.pictures),
        skipped=skipped_json(intake.folder),
        epochs=learned.epochs,
        seconds={stage: round(seconds.get(stage, 0.0), 3) for stage in STAGES},
        budget={"time_s": asked.time_s, "predicted_s": learned.predicted_s and round(learned.predicted_s, 1)},
        peak_memory_mb=round(peak_memory_mb(), 1),
        holdout_accuracy=after.per_task.get(task) if task is not None else after.accuracy(earlier),
        old_class_accuracy={"before": before.accuracy(earlier), "after": after.accuracy(earlier)},
        forgetting=sum(lost) / len(lost) if lost else 0.0,
        accuracy_matrix=[{new.task_names[t]: a for t, a in row.items()} for row in history],
        class_accuracy={names[c]: a for c, a in after.per_class.items()},
        confusions=[{"class": names[a], "taken_for": names[b], "count": n} for a, b, n in after.confusions],
        notes=notes,
    )
    return new, report


def _notes(old: Model, learned: Learned, after: Assessment) -> list[str]:
    notes, model = [], learned.model
    if old.classes and model.shared is not old.shared:
        notes.append(
            "The shared adapter moved, and with it the features of the old classes: "
            "their accuracy is an estimate from their old or corrected statistics, and may be too high."
        )
    if learned.task is not None and learned.epochs == 0 and model.config.method != "prototype":
        notes.append("Too few classes or pictures to train adapters on: statistics alone were taken.")
    if not after.pictures:
        notes.append("Too few pictures to hold any out: accuracy, confidence and the unknown test are not calibrated.")
    return notes


def _time_notes(learned: Learned, asked: LearnConfig) -> list[str]:
    if asked.time_s is None or learned.predicted_s is None:
        return []
    used = learned.model.config
    allowed = [
        f"{now} of {wanted} {what}"
        for now, wanted, what in (
            (learned.epochs, asked.epochs, "epochs"),
            (used.statistics_views, asked.statistics_views, "views for the statistics"),
        )
        if now < wanted and (what != "epochs" or learned.epochs)
    ]
    if used.method != asked.method:
        allowed.append("statistics alone")
    notes = [f"The time of {asked.time_s:g} s allowed {' and '.join(allowed)}."] if allowed else []
    if learned.predicted_s > asked.time_s:
        notes.append(f"Even the least takes longer than {asked.time_s:g} s: about {learned.predicted_s:.0f} s.")
    return notes


def require_little_forgetting(report: LearnReport, limit: float | None) -> None:
    """Raise EdgeClError if the old classes lost more than `limit` points (hundredths)."""
    before, after = report.old_class_accuracy["before"], report.old_class_accuracy["after"]
    if limit is None or before is None or after is None:
        return
    lost = (before - after) * 100
    if lost > limit:
        raise EdgeClError(
            f"Learning these classes would cost the old ones {lost:.1f} points of accuracy; {limit:g} are allowed.",
            mend="Nothing was changed. Raise --max-forgetting, give more pictures, or try --method prototype.",
        )


def peak_memory_mb() -> float:
    """Return the high-water mark of this process's memory, with CUDA's allocator where it is in use, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        peak += torch.cuda.max_memory_allocated() / 2**20
    return peak
