"""What a learn did and cost, as JSON for scripts, Markdown for people, and a plot."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

POINTS = 100  # accuracies are fractions; people read points
FORGETTING = "forgetting (best so far - now, mean over tasks)"
STAGES = ("total", "scan", "shared", "prefix", "train", "head")
REST = "start and finish"  # loading program and backbone, measuring, plot, saving


@dataclass(frozen=True)
class LearnReport:
    """The report of one learn. Accuracies are fractions 0-1, measured on hold-out pictures.

    Attributes:
        version: the store version that the learn made; where nothing was new, the one in force, None without a store.
        task: name of the task taught, or None where only known classes got pictures.
        classes: names of the new classes.
        updated_classes: known classes that got new pictures.
        known_classes: all classes known now.
        images: pictures learned from, of new and known classes, hold-out included.
        skipped: files not used: {path, why}.
        epochs: of each adapter stage; 0 where statistics alone were taken.
        runtime: what encoded the pictures: "torch", or "onnxruntime" or "tensorrt" with the graphs of a bundle.
        seconds: by stage: total, scan, shared, prefix, train, head.
        budget: {time_s, predicted_s, memory_mb, predicted_mb, idle_mb, cuda_peak_mb}: seconds and MB allowed (None
            where not limited) and predicted before training, the MB of the process with the model loaded, and how much
            of the peak CUDA's allocator gave out.
        peak_memory_mb: high-water mark of the process, the plot included (and of the CUDA allocator where one is used).
        holdout_accuracy: of the new classes, among all classes known; where none is new, of the old ones.
        old_class_accuracy: of the classes known before: {before, after} this learn, on the hold-out pictures of before.
            `LearnConfig.max_forgetting` limits before - after.
        forgetting: mean over earlier tasks of (best accuracy since it last got pictures - accuracy now), on the same:
            what earlier learns cost is in it too.
        accuracy_matrix: row k: accuracy of each task after learn k.
        class_accuracy: by class name.
        confusions: most frequent mistakes: {class, taken_for, count}.
        notes: what the learner decided by itself and the user should know.
        calibration: {temperature, error_before, error_after}: of the base branch's confidence on hold-out pictures; the
            errors are expected calibration errors at temperature 1 and at the one fitted, None where none was held out.
        unknown: {threshold, least_score, false_rejects, false_accepts}: see `Head`; share of the hold-out pictures that
            are answered as unknown, and of the negatives that are not; None where there are none.
        learned_before: pictures of the folder that were passed over, as their class was learned from them before.
        hold_out: how many of `images` were held out.
        negatives: pictures of nothing known that were new.
        class_hold_out: pictures that each of `class_accuracy` is measured on, by class name.
        old_hold_out: pictures that `old_class_accuracy` is measured on.
        export: what bringing a bundle up to date did (see `Learner.export`), with its path; None where none was asked.
    """

    version: int | None
    task: str | None
    classes: Sequence[str]
    updated_classes: Sequence[str]
    known_classes: Sequence[str]
    images: int
    skipped: Sequence[Mapping[str, str]]
    epochs: int
    runtime: str
    seconds: Mapping[str, float]
    budget: Mapping[str, float | None]
    peak_memory_mb: float
    holdout_accuracy: float | None
    old_class_accuracy: Mapping[str, float | None]
    forgetting: float
    accuracy_matrix: Sequence[Mapping[str, float]]
    class_accuracy: Mapping[str, float]
    confusions: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    calibration: Mapping[str, float | None]
    unknown: Mapping[str, float | None]
    learned_before: int = 0
    hold_out: int = 0
    negatives: int = 0
    class_hold_out: Mapping[str, int] = field(default_factory=dict)  # empty in reports of earlier releases
    old_hold_out: int = 0
    export: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the report as a page to read."""
        before, after = self.old_class_accuracy.get("before"), self.old_class_accuracy.get("after")
        joined = "more pictures of known classes" if self.updated_classes else "pictures of nothing known"
        new = [f"| new classes, among all known | {self.new_accuracy()} |"] if self.classes else []
        old = []
        if self.has_old_classes:
            old = [
                f"| old classes before this learn | {percent(before)}{self.old_pictures()} |",
                f"| old classes after it | {percent(after)}{self.old_pictures()} |",
                f"| {FORGETTING} | {self.forgotten()} |",
            ]
        lines = [
            f"# Learned {self.task or joined}",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {count} |" for name, count in self.counts()),
            "",
            "| | hold-out accuracy |",
            "|---|---|",
            *new,
            *old,
            "",
            *self._trust(),
            "## Accuracy of each task after each learn",
            "",
            *self._matrix(),
            "",
            *_section("Weakest classes", [f"{n}: {text}" for n, text in self.weak(8)]),
            *_section(
                "Most frequent mistakes",
                [f"{c['class']} taken for {c['taken_for']}: {c['count']}" for c in self.confusions[:8]],
            ),
            "## Cost",
            "",
            "| stage | seconds |",
            "|---|---|",
            f"| total | {self.seconds['total']:.1f} |",
            *(f"| {stage} | {seconds:.1f} |" for stage, seconds in self.stages().items()),
            "",
            f"Peak memory {self.peak_memory_mb:.0f} MB{self._kept_to_memory()}, {self.epochs} epochs."
            f"{self._kept_to_time()} Pictures encoded by {self.runtime}.",
        ]
        if self.notes:
            lines += ["", "## Notes", "", *(f"- {note}" for note in self.notes)]
        if self.skipped:
            lines += ["", "## Skipped files", "", *(f"- `{s['path']}`: {s['why']}" for s in self.skipped)]
        return "\n".join(lines) + "\n"

    def counts(self) -> list[tuple[str, str]]:
        """Return how many classes and pictures were learned, and how many classes are known, each with its name."""
        new, updated = len(self.classes), len(self.updated_classes)
        counts = [("new classes", f"{new}")] if new else []
        counts += [("known classes with new pictures", f"{updated}")] if updated else []
        held = f", {self.hold_out} of them held out" if self.hold_out else ""  # where none was, a note says so
        counts += [("pictures learned from", f"{self.images}{held}")] if self.images or not self.negatives else []
        counts += [("pictures of nothing known", f"{self.negatives}")] if self.negatives else []
        return [*counts, ("classes known", f"{len(self.known_classes)}")]

    def new_accuracy(self) -> str:
        """Write the accuracy on the new classes, and on how many pictures it was measured."""
        return percent(self.holdout_accuracy) + _of(
            self.holdout_accuracy, sum(self.class_hold_out.get(name, 0) for name in self.classes)
        )

    def old_pictures(self) -> str:
        """Write on how many pictures the accuracy on the old classes was measured, a mean over their tasks."""
        count = self.old_hold_out
        return f" ({count} picture{'s' if count > 1 else ''})" if count else ""

    def weak(self, count: int) -> list[tuple[str, str]]:
        """Return the weakest classes, each with its accuracy and on how many pictures it was measured."""
        return [
            (name, percent(value) + _of(value, self.class_hold_out.get(name, 0)))
            for name, value in weakest(self.class_accuracy, count)
        ]

    def stages(self) -> dict[str, float]:
        """Return the seconds by stage, and those of the rest: together they are the total."""
        stages = {stage: self.seconds[stage] for stage in STAGES if stage != "total"}
        return {**stages, REST: self.seconds["total"] - sum(stages.values())}

    @property
    def has_old_classes(self) -> bool:
        """Whether classes were known before, of which something may have been lost."""
        return len(self.known_classes) > len(self.classes)

    def forgotten(self) -> str:
        """Write the forgetting, where it was measured."""
        measured = self.old_class_accuracy.get("before") is not None
        return f"{self.forgetting * POINTS:.1f} points" if measured else percent(None)

    def _trust(self) -> list[str]:
        """Write how far confidence and the unknown test can be relied on, where that was measured."""
        after = self.calibration["error_after"]
        rejects, accepts = self.unknown["false_rejects"], self.unknown["false_accepts"]
        lines = []
        if after is not None:
            lines.append(
                f"On the hold-out pictures confidence and accuracy are {percent(after)} apart on average. "
                "Confidence is set for pictures to come, which are harder than these."
            )
        if rejects is not None:
            lines.append(f"The unknown test rejects {percent(rejects)} of the hold-out pictures")
            lines[-1] += "." if accepts is None else f", and lets {percent(accepts)} of the negatives pass."
        return ["## Confidence and the unknown", "", *lines, ""] if lines else []

    def _kept_to_memory(self) -> str:
        predicted, idle, allowed = (self.budget[name] for name in ("predicted_mb", "idle_mb", "memory_mb"))
        limit = "" if allowed is None else f", allowed {allowed:.0f} MB"
        return f" (predicted {predicted:.0f} MB{limit}; {idle:.0f} MB before it began)"

    def _kept_to_time(self) -> str:
        allowed, predicted = self.budget["time_s"], self.budget["predicted_s"]
        if allowed is None or predicted is None:
            return ""
        return f" Time allowed {allowed:g} s, predicted {predicted:.1f} s, taken {self.seconds['total']:.1f} s."

    def _matrix(self) -> list[str]:
        tasks = list(dict.fromkeys(name for row in self.accuracy_matrix for name in row))
        if not tasks:
            return ["No picture was held out."]
        names = [t.replace("|", "\\|") for t in tasks]  # as Markdown's tables want it
        lines = ["| after | " + " | ".join(names) + " |", "|---" * (len(tasks) + 1) + "|"]
        for k, row in enumerate(self.accuracy_matrix, 1):
            lines.append(f"| learn {k} | " + " | ".join(percent(row.get(t), "") for t in tasks) + " |")
        return lines

    def plot(self) -> bytes:
        """Draw accuracy after each learn, and of each class now, as a PNG."""
        from matplotlib.figure import Figure

        classes = sorted(self.class_accuracy.items(), key=lambda item: item[1])
        shown = classes[:20]
        figure = Figure(figsize=(10, max(3.5, 0.22 * len(shown) + 1.5)), layout="constrained")
        left, right = figure.subplots(1, 2)
        steps = range(1, len(self.accuracy_matrix) + 1)
        for task in dict.fromkeys(name for row in self.accuracy_matrix for name in row):
            points = [
                (k, row[task] * POINTS) for k, row in zip(steps, self.accuracy_matrix, strict=True) if task in row
            ]
            left.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1, color="0.3", zorder=3)
        means = [sum(row.values()) / len(row) * POINTS if row else float("nan") for row in self.accuracy_matrix]
        left.plot(steps, means, marker="o", markersize=9, linewidth=5, color="C0", alpha=0.5, label="mean over tasks")
        left.plot([], [], marker="o", markersize=3, linewidth=1, color="0.3", label="one task")
        # Tasks lie on their mean, not under it; the axis begins where there is something to see.
        lowest = min((value * POINTS for row in self.accuracy_matrix for value in row.values()), default=0.0)
        bottom = max(min(10 * ((lowest - 2) // 10), 90), 0)
        left.set(xlabel="learn", ylabel="hold-out accuracy, %", title="Accuracy after each learn")
        left.set_ylim(bottom, 100 + 0.04 * (100 - bottom))
        left.grid(axis="y", alpha=0.3)
        left.set_xlim(0.5, max(len(steps), 1) + 0.5)  # there are whole numbers alone, of one learn too
        left.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        left.legend(loc="best")
        right.barh([name for name, _ in shown], [value * POINTS for _, value in shown], color="C0")
        title = (
            "Each class now" if len(shown) == len(classes) else f"The {len(shown)} weakest of {len(classes)} classes"
        )
        right.set(xlabel="hold-out accuracy, %", xlim=(0, 102), title=title)
        right.tick_params(axis="y", labelsize=7)
        right.invert_yaxis()
        for label in right.get_yticklabels():
            label.set_parse_math(False)  # a class name may hold dollars
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a glyph that the font lacks is drawn as a box
            figure.savefig(buffer, format="png")
        return buffer.getvalue()


def _section(title: str, items: Sequence[str]) -> list[str]:
    """Write a list under its heading; nothing where it is empty."""
    return [f"## {title}", "", *(f"- {item}" for item in items), ""] if items else []


def with_names(saved: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a saved report, of this release or an earlier one, with the names that its classes have by now.

    Args:
        saved: as `LearnReport.to_json` gave it.
        names: of its `known_classes`, in the same order. A note says which are others now: the notes of then stay.
    """
    now = dict(zip(saved["known_classes"], names, strict=True))
    others = {old: new for old, new in now.items() if old != new}
    if not others:
        return dict(saved)
    since = ", ".join(f"{old!r} is {new!r}" for old, new in others.items())
    lists = ("classes", "updated_classes", "known_classes")
    return {
        **saved,
        **{field: [now[name] for name in saved[field]] for field in lists if field in saved},
        **{
            field: {now[name]: value for name, value in saved[field].items()}
            for field in ("class_accuracy", "class_hold_out")
            if field in saved
        },
        "confusions": [{**c, "class": now[c["class"]], "taken_for": now[c["taken_for"]]} for c in saved["confusions"]],
        "notes": [*saved["notes"], f"Renamed since: {since}; the plot and the notes above have the old names."],
    }


def percent(value: float | None, none: str = "not measured") -> str:
    """Write a fraction as a percentage."""
    return none if value is None else f"{value * POINTS:.1f} %"


def _of(value: float | None, pictures: int) -> str:
    """Write of how many pictures a fraction is, where that is known."""
    return "" if value is None or not pictures else f" ({round(value * pictures)} of {pictures})"


def weakest(accuracy: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    """Return the classes with the lowest accuracy, lowest first, leaving out perfect ones."""
    below = [(name, value) for name, value in accuracy.items() if value < 1]
    return sorted(below, key=lambda item: item[1])[:count]
