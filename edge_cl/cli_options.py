"""Options that several verbs of the command line share, and how durations and amounts of memory are written."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from edge_cl.config import LearnConfig, Rule


def place(text: str | Path) -> Path:
    """Read a path. An empty one, as of a shell's variable that is not set, would be the working directory.

    Where the path behind an option was forgotten, the next option is taken for it.

    Raises:
        typer.BadParameter: it is empty, or an option.
    """
    if not text:
        raise typer.BadParameter("the path is empty; for the working directory write a dot.")
    if str(text).startswith("--"):  # of a default, it is a path already
        raise typer.BadParameter(f"the path is missing: {text} is an option; a path of that name is ./{text}")
    return Path(text)


def duration(text: str) -> float:
    """Read a duration, such as 30s, 5min or 1.5h, as seconds.

    Raises:
        typer.BadParameter: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)?", text.strip().lower())
    seconds = float(match[1]) * {"m": 60, "h": 3600}.get((match[2] or "s")[0], 1) if match else 0.0
    if seconds <= 0:
        raise typer.BadParameter(f"{text!r} is no duration; write 30s, 5min or 1h.")
    return seconds


def megabytes(text: str) -> float:
    """Read an amount of memory, such as 800MB or 2GB, in units of 2^20 bytes.

    Raises:
        typer.BadParameter: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([mg])i?b?", text.strip().lower())
    amount = float(match[1]) * {"m": 1, "g": 1024}[match[2]] if match else 0.0
    if amount <= 0:
        raise typer.BadParameter(f"{text!r} is no amount of memory; write 800MB or 2GB.")
    return amount


flag = partial(typer.Option, metavar="")  # in the help, where <bool> would look like a value to be given

StoreOption = Annotated[
    Path,
    typer.Option(
        "--store",
        metavar="DIR",
        parser=place,
        envvar="EDGE_CL_STORE",
        help="Where the learner lives.",
    ),
]
JsonOption = Annotated[bool, flag("--json", help="Print one JSON object on stdout, and nothing else there.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or a board's profile (orin-nano-8gb).")]
BackboneOption = Annotated[
    str, typer.Option("--backbone", help="timm name, the shipped backbone if not given; `list` shows choices.")
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", parser=place, help="Local .safetensors file of its weights."),
]
SizeOption = Annotated[int | None, typer.Option("--image-size", min=8, help="Side of the input, pixels.")]
StrideOption = Annotated[
    int | None,
    typer.Option(
        "--patch-stride",
        min=1,
        help="Pixels from one patch to the next: fewer make more patches, and cost more. If not given: no overlap.",
    ),
]
ExportOption = Annotated[
    Path | None,
    typer.Option("--export", metavar="OUT", parser=place, help="Bundle to make, or to bring up to date, at the end."),
]
RuleOption = Annotated[Rule, typer.Option("--rule", help="How branches are combined.")]
DEFAULT_STORE = Path("edge_cl_store")
DEFAULTS = LearnConfig()
