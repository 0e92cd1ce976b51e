"""The command line: `edge-cl VERB`. Messages go to stderr; with --json exactly one JSON object goes to stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from edge_cl.cli_answer import evaluate, predict
from edge_cl.cli_benchmark import benchmark
from edge_cl.cli_deploy import doctor, export
from edge_cl.cli_learn import init, learn
from edge_cl.cli_options import flag
from edge_cl.cli_versions import classes, forget, log, prune, rename, rollback
from edge_cl.console import answers, emit_error, say
from edge_cl.errors import EdgeClError

# Threads that wait asleep instead of spinning: a robot's other programs need the cores, and beside a busy one a pass is
# nearly twice as fast this way. It must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NO_TEMPORARY = "No usable temporary directory"
INTERRUPTED = 130  # exit status; typer gives it to Ctrl-C by itself


class Verbs(TyperGroup):
    """The verbs. What is wrong with their usage is a message of typer's; with --json it is an object on stdout too."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        """Read the arguments before the verb."""
        # Before a verb has read it, which it may not come to:
        answers.owes_json = "--json" in takewhile(lambda argument: argument != "--", args)
        with _usage_told():
            return super().make_context(info_name, args, *more, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Read the verb's arguments, and run it."""
        with _usage_told():
            return super().invoke(ctx)


@contextmanager
def _usage_told() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if message := getattr(error, "format_message", None):  # typer's own
            _say_as_json(message())
        raise


app = typer.Typer(
    cls=Verbs,
    help="Teach a robot new things to recognise, on the robot, without forgetting and without keeping old pictures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

VERBS: dict[str, Callable[..., None]] = {
    "init": init,
    "learn": learn,
    "predict": predict,
    "eval": evaluate,
    "classes": classes,
    "rename": rename,
    "forget": forget,
    "log": log,
    "rollback": rollback,
    "prune": prune,
    "export": export,
    "doctor": doctor,
}


def _show_version(asked: bool) -> None:
    if asked:
        from edge_cl.store import edge_cl_version

        answers.print(f"edge-cl {edge_cl_version()}")
        raise typer.Exit


@app.callback()
def before(
    version: Annotated[
        bool, flag("--version", callback=_show_version, is_eager=True, help="Print the version of edge-cl.")
    ] = False,
) -> None:
    """Read what is asked before any verb."""


for name, verb in VERBS.items():
    app.command(name)(verb)
app.add_typer(benchmark, name="benchmark")


def main() -> None:
    """Run the command line; the exit status is 0 done, 1 could not do it, 2 bad usage, 130 interrupted."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  # it may have been closed
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of a terminal that cannot show a class's name
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # what cannot be written shows here, not when the interpreter ends
    except EdgeClError as error:
        _end(error.exit_code, *error.faults, mend=error.mend)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        way_on = "The same command goes on where it was." if "learn" in sys.argv[1:2] else ""
        say(f"Interrupted. {way_on}".strip())
        _say_as_json("Interrupted.", way_on)
        sys.exit(INTERRUPTED)
    except OSError as error:  # that no part of the program expects, such as an answer for a full disk
        if isinstance(error, BrokenPipeError):
            _end(1)
        reason = "no permission" if isinstance(error, PermissionError) else error.strerror or str(error)
        # Of Python's own `tempfile`, which torch calls as it is loaded:
        temporary = "Name a directory that can be written, on a disk with space left: export TMPDIR=DIR"
        fault = f"{': '.join(filter(None, (error.filename, reason)))}."
        _end(1, fault, mend=temporary if NO_TEMPORARY in reason else "")


def _end(code: int, *faults: str, mend: str = "") -> NoReturn:
    """Say what is wrong, and what mends it, and end."""
    for fault in faults:
        say(f"error: {fault}")
    if mend:
        say(mend)
    _say_as_json(" ".join(faults), mend)
    sys.exit(code)


def _say_as_json(fault: str, mend: str = "") -> None:
    """Say it on stdout too, with --json; where that cannot be written, what is left in it goes nowhere."""
    try:
        emit_error(fault, mend)
        sys.stdout.flush()
    except OSError:
        if isinstance(sys.stdout, TextIOWrapper):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
