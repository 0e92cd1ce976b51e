"""A lesson: what one learn was asked to do, whether a version is its result already, and making that version.

Only the last loads torch: what cannot be learned shows before.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.intake import Intake, Pictures, read_folders
from edge_cl.pictures import PictureFolder
from edge_cl.process import give_back, peak_mb
from edge_cl.progress import Progress
from edge_cl.report import LearnReport
from edge_cl.stopwatch import Stopwatch
from edge_cl.store import edge_cl_version
from edge_cl.transaction import Transaction
from edge_cl.version import Version, canonical_json

if TYPE_CHECKING:
    from edge_cl.features import Encoder
    from edge_cl.model import Model


@dataclass(frozen=True)
class Lesson:
    """What a learn was asked to do.

    Attributes:
        folder: pictures by class.
        negatives: pictures of nothing that is or will be known, or None.
        config: settings.
        task: name of the task, or None.
    """

    folder: PictureFolder
    negatives: PictureFolder | None
    config: LearnConfig
    task: str | None

    @classmethod
    def read(
        cls,
        new_classes: Pictures | None,
        negatives: Pictures | None,
        config: LearnConfig,
        task: str | None,
        *,
        update: bool,
        progress: Progress,
    ) -> Lesson:
        """Read the folders; see `read_folders`."""
        return cls(*read_folders(new_classes, negatives, growing=update, progress=progress), config, task)

    def digest(self, parent: int | None) -> str:
        """Return a SHA-256 of all that was asked for, whatever it may cost, and of the version that it begins from."""
        asked = {
            "parent": parent,
            "config": {name: value for name, value in self.config.to_json().items() if name != "max_forgetting"},
            "task": self.task,
            "pictures": sorted([p.label, p.sha256] for p in self.folder.pictures),  # whatever the files are called
            "negatives": sorted(p.sha256 for p in self.negatives.pictures) if self.negatives else [],
        }
        return hashlib.sha256(canonical_json(asked)).hexdigest()

    def without(self, gone: Collection[Path]) -> Lesson:
        """Return the lesson without some files."""

        def left(folder: PictureFolder) -> PictureFolder:
            return replace(folder, pictures=tuple(p for p in folder.pictures if p.path not in gone))

        return replace(self, folder=left(self.folder), negatives=self.negatives and left(self.negatives))

    def made(self, version: Version) -> bool:
        """Return whether a version is what this very lesson made of the one before."""
        return version.record.get("job") == self.digest(version.parent)

    def intake(self, known: Mapping[str, Collection[str]], negatives: Collection[str], *, update: bool) -> Intake:
        """Hold the pictures against what is known; see `Intake.of`."""
        return Intake.of(self.folder, self.negatives, known, negatives, update=update, hold_out=self.config.hold_out)

    def learn(
        self,
        transaction: Transaction,
        intake: Intake,
        old: Model,
        encoder: Encoder,
        *,
        work: Path,
        progress: Progress,
        stopwatch: Stopwatch,
        started: float,
    ) -> tuple[Version, Model, LearnReport]:
        """Learn, and commit the result; the checkpoint's directory stays, empty, until the caller discards it.

        Args:
            transaction: of the store.
            intake: the pictures, as the version in force sees them.
            old: what it knows.
            encoder: the backbone with its adapters.
            work: where checkpoints live.
            progress: told of every step.
            stopwatch: gets the seconds of each stage.
            started: when the time that the settings allow began, by `time.monotonic`.

        Raises:
            EdgeClError: old classes would lose more than `max_forgetting`; nothing is committed then.
        """
        from edge_cl.learning import learn
        from edge_cl.outcome import measure_outcome, require_little_forgetting, with_peak
        from edge_cl.tokens import TokenCache

        parent, config, before_mb = transaction.parent, self.config, peak_mb()
        assert parent is not None
        asked = {"job": self.digest(parent.number), **_means(parent, encoder)}
        checkpoint = Checkpoint(work, asked, parent.number)
        cache = TokenCache(checkpoint.directory / "tokens", config.cache_mb << 20)
        learned = learn(
            old, encoder, intake, config, self.task,
            checkpoint=checkpoint, cache=cache, progress=progress, stopwatch=stopwatch, started=started,
        )  # fmt: skip
        gone = {s.path for s in learned.intake.skipped} - {s.path for s in intake.skipped}
        gone |= {p.path for p in intake.folder.pictures} - {p.path for p in learned.intake.folder.pictures}
        model, report = measure_outcome(old, learned, config, stopwatch.seconds)
        require_little_forgetting(report, config.max_forgetting)
        report = replace(report, version=transaction.next_number, notes=[*report.notes, *self._notes(report)])
        give_back()  # what measuring took, so that saving and the plot do not come on top of it
        model.save(transaction)
        transaction.keep("backbone")
        give_back()
        transaction.put_bytes("plot.png", report.plot())
        total = round(time.monotonic() - started, 3)  # all but the commit
        report = with_peak(replace(report, seconds={**report.seconds, "total": total}), before_mb)
        transaction.put_bytes("report.md", report.to_markdown().encode())
        transaction.put_json("metrics.json", report.to_json())
        record = {
            "classes": list(report.known_classes),
            "task": report.task,
            "learned": list(report.classes),
            "holdout_accuracy": report.holdout_accuracy,
            "settings": asdict(model.config),
            "job": self.without(gone).digest(parent.number),  # when they are back, they are new
            "checkpoint": checkpoint.directory.name,
        }
        version = transaction.commit(kind="learn", record=record)
        checkpoint.empty()
        return version, model, report

    def _notes(self, report: LearnReport) -> list[str]:
        if self.task is None or report.task in (None, self.task):
            return []
        return [f"There is a task {self.task!r} already: this one is {report.task!r}."]


def _means(parent: Version, encoder: Encoder) -> dict[str, Any]:
    """Name all else that the result depends on, so that no learn goes on with other means than it began with."""
    import torch

    return {
        "state": parent.objects["state"].sha256,
        "device": str(encoder.device),
        "compiled": encoder.graphs and encoder.graphs.digest,
        "edge_cl": edge_cl_version(),
        "torch": torch.__version__,
    }
