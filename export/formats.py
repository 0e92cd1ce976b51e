"""The formats that `edge-cl export` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_cl.errors import UsageError, did_you_mean
from edge_cl.export.bundle import ENGINES, LAYOUTS, Bundle, BundleError, PrecisionError, read_manifest
from edge_cl.export.exporter import Say, Snapshot, export_bundle
from edge_cl.export.graphs import PRECISIONS
from edge_cl.export.peft import export_peft

Write = Callable[[Snapshot, Path, "str | None", "str | None", Say], dict[str, Any]]
FORMATS: dict[str, Write] = {}


def export_format(name: str) -> Callable[[Write], Write]:
    """Register what writes a snapshot to a directory; it is given layout and precision, None where not asked for."""

    def register(write: Write) -> Write:
        FORMATS[name] = write
        return write

    return register


@export_format("onnx")
def _onnx(snapshot: Snapshot, out: Path, layout: str | None, precision: str | None, say: Say) -> dict[str, Any]:
    return _bundle(snapshot, out, layout, precision, say, lambda: "fp32")


def _bundle(
    snapshot: Snapshot, out: Path, layout: str | None, precision: str | None, say: Say, default: Callable[[], str]
) -> dict[str, Any]:
    """Write a bundle: one that is there keeps its layout and precision, a new one is shared and of the default."""
    for what, value, known in (("layout", layout, LAYOUTS), ("precision", precision, PRECISIONS)):
        if value is not None and value not in known:
            raise UsageError(f"Unknown {what} {value!r}.", mend=did_you_mean(value, list(known)))
    chosen = False
    try:
        there = read_manifest(out)
        layout, precision = layout or there.layout, precision or there.precision
    except BundleError:
        chosen = precision is None
        layout, precision = layout or "shared", precision or default()
    try:
        done = export_bundle(snapshot, out, layout=layout, precision=precision, say=say)
    except PrecisionError as error:
        if not chosen:
            raise
        say(f"{error.faults[0]} The bundle is made in fp32.")
        precision = "fp32"
        done = export_bundle(snapshot, out, layout=layout, precision=precision, say=say)
    return {
        "format": "onnx",
        "version": snapshot.version,
        "layout": layout,
        "precision": precision,
        "seconds": done.seconds,
        "classifier_s": done.classifier_s,
        "written_bytes": done.written,
        "graphs_built": done.graphs_built,
        "removed_classes": list(done.removed),
    }


@export_format("tensorrt")
def _tensorrt(snapshot: Snapshot, out: Path, layout: str | None, precision: str | None, say: Say) -> dict[str, Any]:
    from edge_cl.export.compiler import TensorRTCompiler
    from edge_cl.export.engines import prepare_engines

    compiler = TensorRTCompiler()  # says what is missing before anything is written
    done = _bundle(snapshot, out, layout, precision, say, lambda: _precision_here(say))
    engines = prepare_engines(Bundle.open(out), compiler, say=say)
    made = {name: {**vars(engine), "path": str(engine.path)} for name, engine in engines.items()}
    return {**done, "format": "tensorrt", "engines": made}


def _precision_here(say: Say) -> str:
    """Return the precision of a new bundle with engines: that of the board's profile, where it is recognised."""
    from edge_cl.devices import profile_for

    profile = profile_for("auto")
    if profile is None or profile.defaults is None:
        return "fp32"
    precision = profile.defaults.precision
    say(f"{profile.name}: its profile {profile.key} makes engines in {precision} (--precision changes it).")
    return precision


def format_of(out: Path) -> str:
    """Return the format that brings a bundle up to date: with its engines, where it has some."""
    return "tensorrt" if (out / ENGINES).is_dir() else "onnx"


@export_format("peft")
def _peft(snapshot: Snapshot, out: Path, layout: str | None, precision: str | None, say: Say) -> dict[str, Any]:
    if layout is not None or precision is not None:
        raise UsageError("PEFT's format has no layout or precision.", mend="Leave out --layout and --precision.")
    folders = export_peft(snapshot.model, out)
    return {"format": "peft", "version": snapshot.version, "folders": [str(folder) for folder in folders]}
