"""What was learned, handed to `edge_cl.export`: when it is asked for, or at the end of a learn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from edge_cl.errors import EdgeClError, UsageError, did_you_mean
from edge_cl.export.bundle import PrecisionError, UnexportedError
from edge_cl.export.exporter import Snapshot
from edge_cl.export.formats import FORMATS, format_of
from edge_cl.features import Encoder
from edge_cl.model import Model
from edge_cl.process import peak_mb
from edge_cl.progress import Progress
from edge_cl.report import LearnReport
from edge_cl.version import Version


def snapshot_of(version: Version, model: Model, encoder: Encoder) -> Snapshot:
    """Return a version that has been loaded, or just made, as it is exported."""
    return Snapshot(model, encoder.backbone, version.objects["backbone"].sha256, version.number)


def export_snapshot(
    snapshot: Snapshot,
    out: str | Path,
    *,
    format: str | None = None,
    layout: str | None = None,
    precision: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write a version; see `Learner.export`."""
    format = format or format_of(Path(out))
    if format not in FORMATS:
        raise UsageError(f"Unknown format {format!r}.", mend=did_you_mean(format, list(FORMATS)))
    return FORMATS[format](snapshot, Path(out), layout, precision, say)


def failure(out: str | Path, error: EdgeClError) -> dict[str, Any]:
    """Return what `export` of JSON says where a bundle could not be brought up to date."""
    return {"path": str(out), "error": " ".join(error.faults)}


def way_on(error: EdgeClError, out: str | Path, store: Path) -> str:
    """Return what mends that: the bundle is then exported by itself."""
    command = f"edge-cl export {quote(str(out))} --store {quote(str(store))}"
    half = isinstance(error, PrecisionError)
    return f"{command} --precision fp32" if half else f"{error.mend} Then: {command}".strip()


def export_after(
    report: LearnReport, snapshots: Iterable[Snapshot], out: str | Path, progress: Progress, store: Path
) -> LearnReport:
    """Bring a bundle up to date with a version that has just been learned.

    Args:
        report: of the learn.
        snapshots: the version, and those that others put in force while it was exported.
        out: the bundle.
        progress: told when it begins and ends.
        store: as messages name it.

    Returns:
        The report, with what was done.

    Raises:
        UnexportedError: it could not be done.
    """
    progress("export", 0, 1)  # seconds, where the graphs are still to be made
    try:
        for snapshot in snapshots:
            done = export_snapshot(snapshot, out)
    except EdgeClError as error:
        report = replace(report, export=failure(out, error))
        kept = f"The classes are learned: version {report.version} of {store} holds them."
        raise UnexportedError(*error.faults, kept, mend=way_on(error, out, store), report=report) from error
    progress("export", 1, 1)
    reached, allowed, notes = peak_mb(), report.budget["memory_mb"], list(report.notes)
    if done["graphs_built"] and allowed is not None and report.peak_memory_mb <= allowed < reached:
        notes.append(
            f"Making the bundle's graphs took {reached:.0f} MB, more than the {allowed:.0f} MB allowed; where they are "
            "made already, it does not."
        )
    if done["removed_classes"]:
        notes.append(
            f"The bundle no longer knows {', '.join(map(repr, done['removed_classes']))}, as the store does not "
            "(forgotten, renamed, or of another store)."
        )
    return replace(report, export={"path": str(out), **done}, notes=notes)
