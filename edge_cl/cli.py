"""The command line: `edge-cl VERB`. Messages go to stderr; with --json exactly one JSON object goes to stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path

import typer

from edge_cl.cli_answer import evaluate, predict
from edge_cl.cli_benchmark import benchmark
from edge_cl.cli_deploy import doctor, export
from edge_cl.cli_learn import init, learn
from edge_cl.cli_versions import classes, forget, log, prune, rename, rollback
from edge_cl.console import say
from edge_cl.errors import EdgeClError

# Threads that wait asleep instead of spinning: a robot's other programs need the cores, and beside a busy one a pass is
# nearly twice as fast this way. It must be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NO_TEMPORARY = "No usable temporary directory"
INTERRUPTED = 130  # exit status; typer gives it to Ctrl-C by itself

app = typer.Typer(
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
        for fault in error.faults:
            say(f"error: {fault}")
        if error.mend:
            say(error.mend)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        say("Interrupted." + " The same command goes on where it was." * ("learn" in sys.argv[1:2]))
        sys.exit(INTERRUPTED)
    except OSError as error:  # that no part of the program expects, such as an answer for a full disk
        if not isinstance(error, BrokenPipeError):
            reason = "no permission" if isinstance(error, PermissionError) else error.strerror or str(error)
            say(f"error: {': '.join(filter(None, (error.filename, reason)))}.")
            if NO_TEMPORARY in reason:  # of Python's own `tempfile`, which torch calls as it is loaded
                say("Name a directory that can be written, on a disk with space left: export TMPDIR=DIR")
        if isinstance(sys.stdout, TextIOWrapper):  # what is left in it goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
