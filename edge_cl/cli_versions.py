"""The verbs for what is known: `classes`, `rename`, `forget`, `log`, `rollback` and `prune`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from edge_cl.cli_options import (
    DEFAULT_STORE,
    ExportOption,
    JsonOption,
    StoreOption,
    flag,
)
from edge_cl.config import KEPT_VERSIONS
from edge_cl.console import answers, emit, export_line, say, table
from edge_cl.errors import EdgeClError
from edge_cl.store_files import REPORT


def classes(store: StoreOption = DEFAULT_STORE, as_json: JsonOption = False) -> None:
    """List the classes known."""
    from edge_cl.learner import Learner

    rows = Learner.open(store).classes()

    def show() -> None:
        cells = [(str(c["id"]), c["name"], c["task"], str(c["pictures"])) for c in rows]
        answers.print(table(("id", "class", "task", "pictures"), cells))

    emit(as_json, {"classes": rows}, show)


def rename(
    old: str,
    new: str,
    export: ExportOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Give a class another name."""
    from edge_cl.learner import Learner

    learner = Learner.open(store)
    _require_writable(export)
    version = learner.rename(old, new)
    renamed: Any = version.record["renamed"]
    value = {"version": version.number, "old": renamed[0], "new": renamed[1]}
    _conclude(learner, version, value, f"{renamed[0]} is now {renamed[1]}.", export, as_json)


def forget(
    names: Annotated[list[str], typer.Argument(metavar="CLASS...")],
    export: ExportOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Forget classes, without retraining."""
    from edge_cl.learner import Learner

    learner = Learner.open(store)
    _require_writable(export)
    version = learner.forget(names)
    gone: Any = version.record["forgotten"]
    back = f"{learner.store.command('rollback')} brings {'them' if len(gone) > 1 else 'it'} back"
    value = {"version": version.number, "forgotten": gone, "known_classes": version.record["classes"]}
    _conclude(learner, version, value, f"Forgot {', '.join(gone)}; {back}.", export, as_json)


def _require_writable(out: Path | None) -> None:
    if out is not None:
        from edge_cl.export.publication import require_writable

        require_writable(out)


def _conclude(learner: Any, version: Any, value: dict[str, Any], said: str, out: Path | None, as_json: bool) -> None:
    """Bring the bundle that was named up to date, and print what was done.

    Args:
        learner: whose classes were changed.
        version: in force now.
        value: for JSON; gets `export`, as that of a learn.
        said: for people.
        out: the bundle, or None: then a line says that bundles stay as they are.
        as_json: which of the two is printed.

    Raises:
        EdgeClError: the bundle could not be written, which is printed too.
    """
    exported: dict[str, Any] | None = None
    failed: EdgeClError | None = None
    lines = [said]
    if out is None:
        lines.append(f"A bundle keeps the classes it has until {learner.store.command('export OUT')}")
    elif not learner.classes():
        lines.append(f"No class is known: {out} is left as it is.")
    else:
        from edge_cl.deployment import failure, way_on

        try:
            exported = {"path": str(out), **learner.export(out, say=say)}
            lines.append(export_line(exported))
        except EdgeClError as error:
            exported, done = failure(out, error), f"Version {version.number} of {learner.store.given} is in force."
            failed = EdgeClError(*error.faults, done, mend=way_on(error, out, learner.store.given))
    emit(as_json, {**value, "export": exported}, lambda: say("\n".join(lines)))
    if failed is not None:
        raise failed


def log(
    store: StoreOption = DEFAULT_STORE,
    report: Annotated[bool, flag("--report", help="Print the report of the version in force.")] = False,
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
            "renamed": v.record.get("renamed", []),
            "forgotten": v.record.get("forgotten", []),
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
                f"{row['kind']} {row['task'] or ' → '.join(row['renamed']) or ', '.join(row['forgotten'])}".strip(),
                str(len(row["classes"])),
                percent(row["holdout_accuracy"], ""),
                row["created"],
            )
            for row in rows
        ]
        columns = ("", "version", "parent", "what", "classes", "hold-out", "created")
        answers.print(table(columns, cells, whole=("created",)))

    emit(as_json, {"versions": rows, "head": head.number}, show)


def _show_saved_report(learner: Any, as_json: bool) -> None:
    from edge_cl.report import LearnReport, with_names

    store, head = learner.store, learner.store.head
    if "report.md" not in head.objects:
        raise EdgeClError(
            f"Version {head.number} is no learn: it has no report.", mend=f"{store.command('log')} lists the versions."
        )
    saved = store.read_json(head, "metrics.json")
    report = with_names(saved, [c["name"] for c in learner.classes()])
    value = {
        **report,
        "files": {name: str(store.object_path(head, name)) for name in REPORT},
    }

    def show() -> None:
        page = store.read_bytes(head, "report.md").decode()
        if report != saved:
            with suppress(TypeError, KeyError):  # the report of an earlier release, which lacks fields
                page = LearnReport(**report).to_markdown()
        answers.print(page, markup=False)
        say(f"Its plot, as a file to be opened: cp {quote(value['files']['plot.png'])} plot.png")

    emit(as_json, value, show)


def rollback(
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", help="The one before, if not given.")] = None,
    export: ExportOption = None,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Put an earlier version in force."""
    from edge_cl.learner import Learner

    learner = Learner.open(store, repair=True)
    _require_writable(export)
    before: Any = None
    with suppress(EdgeClError):  # it is damaged
        before = learner.store.head.record.get("classes", [])
    head = learner.rollback(version)
    now: Any = head.record.get("classes", [])
    said = f"Version {head.number} is in force.{'' if before is None else _difference(before, now)}"
    _conclude(learner, head, {"version": head.number, "known_classes": now}, said, export, as_json)


def _difference(before: Sequence[str], now: Sequence[str]) -> str:
    """Write which classes are known again, and which no longer are, as sentences that go behind another."""
    again, gone = [c for c in now if c not in before], [c for c in before if c not in now]
    parts = (("Known again", again), ("No longer known", gone))
    return "".join(f" {what}: {', '.join(names)}." for what, names in parts if names) or " It knows the same classes."


def prune(
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="How many of the newest stay; 1: none to roll back to.")
    ] = KEPT_VERSIONS,
    dry_run: Annotated[bool, flag("--dry-run", help="Only say what would go.")] = False,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
) -> None:
    """Delete old versions, and what learns that were cut off left, for good.

    The one in force stays, and its parent too, unless --keep is 1.
    """
    from edge_cl.learner import Learner

    learner = Learner.open(store)
    pruned = learner.prune(keep, dry_run=dry_run)
    left = [v.number for v in learner.log() if v.number not in pruned.versions]
    value = {"removed": pruned.versions, "versions": left, "freed_bytes": pruned.freed_bytes, "dry_run": dry_run}

    what = f"Versions {'to delete' if dry_run else 'deleted'}: {', '.join(map(str, pruned.versions)) or 'none'}"
    space = f"{'To free' if dry_run else 'Freed'}: {pruned.freed_bytes / 1e6:.1f} MB"
    emit(as_json, value, lambda: say(f"{what}. {space}. Left: {', '.join(map(str, left))}."))
