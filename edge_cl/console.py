"""What the command line writes: messages on stderr, answers on stdout, tables, and progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from rich.console import Console


class Messages(Console):
    """Messages and progress: where nobody reads them any more, the work goes on."""

    def on_broken_pipe(self) -> None:
        """Be quiet from now on, instead of ending the process."""
        self.quiet = True


class Answers(Console):
    """Answers on stdout; `owes_json` from --json on until an object has been printed there."""

    owes_json = False


messages = Messages(stderr=True, highlight=False)
answers = Answers(highlight=False, soft_wrap=True)


def emit(as_json: bool, value: Any, show: Callable[[], None]) -> None:
    """Print a result: as JSON on stdout, or for people."""
    if as_json:
        answers.owes_json = False
        unicode = "utf" in (sys.stdout.encoding or "utf").lower()
        print(json.dumps(value, ensure_ascii=not unicode, allow_nan=False), flush=True)
    else:
        show()


def emit_error(fault: str, mend: str = "") -> None:
    """Print with --json what could not be done as the one object on stdout, unless there is one."""
    if answers.owes_json:
        emit(True, {"error": fault, "mend": mend}, lambda: None)


def say(text: str) -> None:
    """Print a message to stderr, as it stands."""
    messages.print(text, markup=False, soft_wrap=True)


def export_line(export: Mapping[str, Any]) -> str:
    """Return what is said of a bundle that was brought up to date, of the `export` of a command's JSON."""
    seconds, more = export["seconds"], export["classifier_s"]
    return f"exported: {export['path']} in {seconds:.2f} s, and {more:.2f} s more for classifier.onnx"


def warn_skipped(skipped: Any) -> None:
    """Name what was not used, on stderr."""
    for item in skipped:
        say(f"skipped {item['path']}: {item['why']}")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, whole: Sequence[str] = ()) -> Any:
    """Lay out rows of plain text: names may hold what rich would read as markup. Columns in `whole` are not folded."""
    from rich.table import Table
    from rich.text import Text

    laid_out = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        laid_out.add_column(column, overflow="fold", no_wrap=column in whole)
    for row in rows:
        laid_out.add_row(*map(Text, row))
    return laid_out


class Progress:
    """Shows stages, bars and time left on stderr; a line a stage where stderr is no terminal."""

    names: ClassVar[Mapping[str, str]] = {
        "scan": "check the pictures",
        "negatives": "check the negatives",
        "unknown": "check the pictures of nothing known",
        "decode": "decode the pictures",
        "shared": "train shared and base adapter",
        "prefix": "compute prefix tokens",
        "train": "train task adapter",
        "head": "compute statistics",
        "export": "write the bundle",
        "answer": "answer for the pictures",
    }

    def __init__(self, *, passing: bool = False) -> None:
        """Begin to show.

        Args:
            passing: whether bars are gone at the end, and no lines are printed: for what may take a moment alone.
        """
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bars = Bars(*columns, console=messages, disable=not messages.is_terminal, transient=passing)
        self.passing = passing
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> Progress:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that a stage has done so many of its steps."""
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(self.names.get(stage, stage), total=total)
            if not (messages.is_terminal or self.passing):
                say(f"{self.names.get(stage, stage)} ...")
        self.bars.update(self.tasks[stage], completed=done, total=total)
