"""The verbs for the board: `export` and `doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edge_cl.cli_options import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    place,
)
from edge_cl.console import answers, emit, say, table


def export(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", parser=place, help="New directory, or a bundle to bring up to date.")
    ],
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
        if value["removed_classes"]:
            removed = ", ".join(value["removed_classes"])
            say(f"No longer in it, as forgotten, renamed, or of another store: {removed}.")
        megabytes = value["written_bytes"] / 1e6
        say(
            f"Version {value['version']} is at {out}: {value['seconds']:.2f} s, {megabytes:.1f} MB written; "
            f"{value['classifier_s']:.2f} s more for classifier.onnx."
        )
        say(f"Use it: python -c \"from edge_cl.runtime import Classifier; print(Classifier('{out}').classes)\"")

    emit(as_json, value, show)


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
