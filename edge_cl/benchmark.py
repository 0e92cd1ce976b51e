"""Benchmarks over class-incremental streams: every step a process of the command line, as a robot would run it."""

from __future__ import annotations

import csv
import io
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_cl.durable import replace_bytes
from edge_cl.errors import EdgeClError, FolderError, UsageError
from edge_cl.pictures import PictureFolder, path_text, read_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASELINE = "joint"  # as published, answers included
ARMS: Mapping[str, Sequence[str]] = {
    BASELINE: ("--schedule", "joint", "--shared-update", "distil", "--micro-batch", "32"),  # a whole batch at once
    "edge-cl": (),
}
RULES = {BASELINE: "published", "edge-cl": "routed"}
LABELS = {BASELINE: "published (joint)", "edge-cl": "edge-cl"}  # of arms, in tables and plots


def run(*arguments: str | Path) -> Any:
    """Run one command of edge-cl in a process of its own and return its JSON.

    Raises:
        EdgeClError: it failed; with what it said.
    """
    command = [sys.executable, "-m", "edge_cl.cli", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EdgeClError(f"edge-cl {' '.join(map(str, arguments))} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def read_parts(
    data: Path, judged: str = "test", say: Callable[[str], None] = lambda text: None
) -> dict[str, PictureFolder]:
    """Read a folder data set: the pictures to learn from, train, and those to judge by.

    Args:
        data: holds train/<class>/ and the folder to judge by, of the same layout.
        judged: its name.
        say: told which classes have no pictures to judge by.

    Raises:
        FolderError: a part cannot be read; names the faults of both.
    """
    parts, faults, mends = dict[str, PictureFolder](), list[str](), list[str]()
    for part in dict.fromkeys(("train", judged)):
        try:
            parts[part] = read_folder(data / part)
        except FolderError as error:
            faults += error.faults
            mends.append(error.mend)
    if faults:
        layout = f"A stream needs DIR/train/<class>/*.jpg and DIR/{judged}/<class>/*.jpg."
        raise FolderError(*faults, mend=" ".join(dict.fromkeys([*mends, layout])))
    if missing := parts["train"].classes.keys() - parts[judged].classes.keys():
        say(f"{path_text(data / judged)} has no pictures to judge these classes by: {', '.join(sorted(missing))}.")
    return parts


@dataclass(frozen=True)
class Stream:
    """A folder data set cut into tasks.

    Attributes:
        parts: of the data set, as `read_parts` gives them: train, and last the part judged by.
        tasks: class names of each task.
    """

    parts: Mapping[str, PictureFolder]
    tasks: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, parts: Mapping[str, PictureFolder], sizes: Sequence[int], seed: int) -> Stream:
        """Shuffle the classes by a seed and cut them into tasks of the given sizes, of which the last repeats.

        Raises:
            FolderError: there is nothing to judge a task by; names all classes without pictures to judge by.
        """
        names = list(parts["train"].classes)
        *_, judged = parts.values()
        missing = [name for name in names if name not in judged.classes]
        names = [names[i] for i in np.random.RandomState(seed).permutation(len(names))]
        tasks, left = [], list(sizes)
        while names:
            tasks.append(tuple(names[: left[0]]))
            names, left = names[left[0] :], left[1:] or left
        if any(set(task) <= set(missing) for task in tasks):
            raise FolderError(
                *(f"{path_text(judged.root)} has no pictures of class {name!r}." for name in missing),
                mend="Put some there, so that every task can be judged, or make tasks of more classes (--increment).",
            )
        return cls(parts, tuple(tasks))

    def known(self, task: int) -> tuple[str, ...]:
        """Return the classes known after a task."""
        return tuple(name for names in self.tasks[: task + 1] for name in names)

    def folder(self, part: str, names: Sequence[str], scratch: Path) -> Path:
        """Make a folder of links to the folders of some classes of a part; those without pictures are left out."""
        folder, root, classes = Path(tempfile.mkdtemp(dir=scratch)), self.parts[part].root, self.parts[part].classes
        for name in names:
            if name in classes:
                own = classes[name][0].path.relative_to(root).parts[0]
                (folder / own).symlink_to((root / own).resolve())
        return folder


@dataclass(frozen=True)
class LearnRow:
    """What one learn of one arm cost.

    Attributes:
        seed: of class order and training.
        task: number of the task, from 0.
        arm: a key of `ARMS`.
        classes: of the task.
        learn_s: seconds of the learn.
        process_s: seconds of its whole process, start and imports included.
        peak_mb: high-water mark of the process.
        idle_mb: the process with the model loaded.
        predicted_mb: predicted high-water mark.
        cuda_peak_mb: of the peak, the most that CUDA's allocator gave out.
        accuracy: test accuracy over all classes so far; after the last task only.
    """

    seed: int
    task: int
    arm: str
    classes: int
    learn_s: float
    process_s: float
    peak_mb: float
    idle_mb: float
    predicted_mb: float
    cuda_peak_mb: float
    accuracy: float | None


def learn_rows(
    data: Path,
    sizes: Sequence[int],
    seeds: Sequence[int],
    epochs: int,
    init: Sequence[str | Path],
    device: str,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[LearnRow]:
    """Teach every arm the same streams, in turns, a learn at a time.

    Args:
        data: holds train/<class>/ and test/<class>/.
        sizes: classes of each task; the last repeats.
        seeds: one stream each; one that is repeated counts once.
        epochs: of every adapter stage, in every arm.
        init: options of `edge-cl init` but the device.
        device: of every command.
        say: see `read_parts`.

    Raises:
        FolderError: see `read_parts` and `Stream.of`.
        EdgeClError: a command failed.
    """
    parts = read_parts(data, say=say)
    streams = {seed: Stream.of(parts, sizes, seed) for seed in seeds}
    for seed, stream in streams.items():
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            for arm in ARMS:
                run("init", "--store", place / arm, *init, "--device", device)
            test = stream.folder("test", stream.known(len(stream.tasks)), place)
            for task, names in enumerate(stream.tasks):
                train = stream.folder("train", names, place)
                for arm, options in ARMS.items():
                    store, start = ("--store", place / arm, "--device", device), time.monotonic()
                    common = ("--epochs", str(epochs), "--seed", str(seed))
                    report = run("learn", "--new-classes", train, *common, *options, *store)
                    process_s, last = time.monotonic() - start, task == len(stream.tasks) - 1
                    budget = report["budget"]
                    yield LearnRow(
                        seed, task, arm, len(names), report["seconds"]["total"], round(process_s, 3),
                        report["peak_memory_mb"], budget["idle_mb"], budget["predicted_mb"], budget["cuda_peak_mb"],
                        run("eval", test, "--rule", RULES[arm], *store)["accuracy"] if last else None,
                    )  # fmt: skip


def summarise(rows: Sequence[LearnRow]) -> dict[str, dict[str, float]]:
    """Return for every arm the medians over the seeds, and the ratios to the published schedule."""
    result: dict[str, dict[str, float]] = {}
    for arm in ARMS:
        streams = [[row for row in rows if (row.arm, row.seed) == (arm, seed)] for seed in {row.seed for row in rows}]
        own = [row for stream in streams for row in stream]
        result[arm] = {
            "learn_s": statistics.median(sum(row.learn_s for row in stream) for stream in streams),
            "process_s": statistics.median(sum(row.process_s for row in stream) for stream in streams),
            "slowest_s": max(row.process_s for row in own),
            "peak_mb": max(row.peak_mb for row in own),
            "cuda_peak_mb": max(row.cuda_peak_mb for row in own),
            "above_idle_mb": statistics.median(max(row.peak_mb - row.idle_mb for row in stream) for stream in streams),
            "accuracy": statistics.mean(row.accuracy for row in own if row.accuracy is not None),
        }
    for values in result.values():
        values["speedup"] = result[BASELINE]["learn_s"] / values["learn_s"]
        values["memory_ratio"] = values["above_idle_mb"] / result[BASELINE]["above_idle_mb"]
    return result


def to_csv(rows: Sequence[Mapping[str, object]]) -> str:
    """Write rows of the same columns as comma-separated values."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def to_png(figure: Figure) -> bytes:
    """Write a figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def require_writable(folder: Path) -> None:
    """Make a folder for results, before there are any.

    Raises:
        UsageError: it cannot be made, or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"Nothing can be written to {path_text(folder)}: {error.strerror}.",
            mend="Give --output a folder that can be written to.",
        ) from error


def write(path: Path, content: bytes) -> None:
    """Make or replace a file of results.

    Raises:
        EdgeClError: it cannot be written.
    """
    try:
        replace_bytes(path, content)
    except OSError as error:
        raise EdgeClError(
            f"{path_text(path)} cannot be written: {error.strerror}.",
            mend="Make room there, or give --output another folder.",
        ) from error


def plot(rows: Sequence[LearnRow]) -> bytes:
    """Draw seconds and memory of every task, medians over the seeds, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    tasks = sorted({row.task for row in rows})
    costs: list[tuple[Any, str, Callable[[LearnRow], float]]] = [
        (left, "seconds of a learn", lambda row: row.learn_s),
        (right, "MB above the idle process", lambda row: row.peak_mb - row.idle_mb),
    ]
    for axes, label, cost in costs:
        highest = 0.0
        for arm in ARMS:
            own = [statistics.median(cost(row) for row in rows if (row.arm, row.task) == (arm, t)) for t in tasks]
            axes.plot([t + 1 for t in tasks], own, marker="o", markersize=4, label=LABELS[arm])
            highest = max(highest, *own)
        axes.set(xlabel="task", title=label, ylim=(0, 1.08 * highest or 1))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend()
    return to_png(figure)


def machine() -> str:
    """Return a line that names the processor, the GPU if there is one, and the versions that matter."""
    import torch

    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    processor = models[0] if models else platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"
