"""Benchmark of answering: latency, throughput and memory of a bundle by number of tasks, beside the bare backbone.

python -m edge_cl.latency BUNDLE BACKEND RULE THREADS     one classifier in a process of its own: start and memory
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_cl.errors import EdgeClError
from edge_cl.process import peak_mb

if TYPE_CHECKING:
    from edge_cl.export.exporter import Snapshot
    from edge_cl.model import Model

BARE = "bare backbone"
BATCH = 16  # frames at once, for the throughput
FRAME = (480, 640, 3)


@dataclass(frozen=True)
class PredictRow:
    """What answering cost in one way.

    Attributes:
        arm: the bare backbone, or how the tasks answer.
        backend: what ran it.
        layout, precision: of the bundle.
        tasks: number of tasks.
        rule: how branches are combined.
        median_ms, p99_ms: of a frame, preprocessing included.
        ratio: median over the bare backbone's of the same run.
        frames_s: frames a second in batches of `BATCH`.
        start_s: a process from its start to its first answer.
        memory_mb: high-water mark of that process.
    """

    arm: str
    backend: str
    layout: str
    precision: str
    tasks: int
    rule: str
    median_ms: float
    p99_ms: float
    ratio: float
    frames_s: float
    start_s: float | None
    memory_mb: float | None


@dataclass(frozen=True)
class _Arm:
    name: str
    bundle: Path
    backend: str
    layout: str
    precision: str
    tasks: int
    rule: str
    answer: Callable[[Any], Any]


def with_tasks(model: Model, count: int) -> Model:
    """Return a model of so many tasks, each of which has an adapter of its own and is asked: the dearest case.

    It has no exit: every picture goes through the prefix, the base branch and a task branch.

    Tasks are repeated, their class means moved a little, so that every number of tasks costs what real ones would.
    """
    from edge_cl.model import KnownClass

    generator = np.random.default_rng(0)
    sources = sorted(t for t in model.branches if len(model.branches[t].classes) > 1)
    if not sources:
        raise EdgeClError("No task knows two classes: nothing would be asked of a branch.", mend="Teach another class.")
    own = {t: model.adapters.get(t, model.base) for t in sources}
    classes: list[KnownClass] = []
    rows: list[int] = []
    adapters, branches, spreads = {}, {}, {}
    place = {c.id: i for i, c in enumerate(model.classes)}
    for task in range(count):
        source = sources[task % len(sources)]
        branch, adapter = model.branches[source], own[source]
        ids = np.arange(len(classes), len(classes) + len(branch.classes))
        rows += [place[int(c)] for c in branch.classes]
        classes += [KnownClass(int(i), f"class {i}", task, 1) for i in ids]
        branches[task] = replace(branch, classes=ids.astype(np.int64), weight=branch.weight or 0.5)
        if adapter is not None:
            adapters[task] = adapter
        if source in model.spreads:
            renamed = dict(zip(branch.classes.tolist(), ids.tolist(), strict=True))
            spread = model.spreads[source]
            spreads[task] = replace(spread, classes=np.asarray([renamed[int(c)] for c in spread.classes], np.int64))
    means = model.statistics.means[rows]
    means = means + generator.normal(0, 0.01 * means.std(), means.shape).astype(np.float32)
    statistics = replace(model.statistics, means=means, counts=model.statistics.counts[rows])
    return replace(
        model,
        classes=tuple(classes),
        task_names={t: f"task {t}" for t in range(count)},
        statistics=statistics,
        adapters=adapters,
        branches=branches,
        spreads=spreads,
        probes={},
        closer_probes={},
        exit=None,
    )


def measure(
    snapshot: Snapshot,
    place: Path,
    *,
    counts: Sequence[int],
    threads: int = 1,
    rounds: int = 100,
    say: Callable[[str], None] = lambda text: None,
) -> list[PredictRow]:
    """Measure every way of answering in turns: one frame each, round after round, in one process.

    A shared bundle in single precision is measured at all numbers of tasks; other bundles, rules and backends at the
    largest.

    Args:
        snapshot: what has been learned; at least one task of two classes with an adapter.
        place: folder for bundles.
        counts: numbers of tasks.
        threads: CPU threads of every backend.
        rounds: frames of each way.
        say: told of every long step.
    """
    import torch

    from edge_cl.runtime import Classifier

    torch.set_num_threads(threads)
    counts = sorted(set(counts))
    kinds = [
        *((count, "shared", "fp32") for count in counts),
        (counts[-1], "merged", "fp32"),
        (counts[-1], "shared", "fp16"),
    ]
    made = [(*kind, _bundle(snapshot, *kind, place, say)) for kind in kinds]
    largest = made[len(counts) - 1]
    wanted = [(*bundle, "onnxruntime", "routed") for bundle in made]
    wanted += [(*largest, "onnxruntime", "base"), (*largest, "onnxruntime", "published"), (*largest, "torch", "routed")]
    arms = [_bare(snapshot, place, threads)]
    for count, layout, precision, out, name, rule in wanted:
        answer = Classifier(out, backend=name, threads=threads, rule=rule).predict
        arms.append(_Arm(f"{count} task{'s' * (count > 1)}, {rule}", out, name, layout, precision, count, rule, answer))
    say(f"measuring {len(arms)} ways of answering, {rounds} frames each ...")
    return _rows(arms, _latencies(arms, rounds), threads)


def _bundle(
    snapshot: Snapshot, count: int, layout: str, precision: str, place: Path, say: Callable[[str], None]
) -> Path:
    """Export a bundle of so many tasks; return its directory."""
    from edge_cl.export.exporter import export_bundle

    out = place / f"{layout}-{precision}-{count}"
    grown = replace(snapshot, model=with_tasks(snapshot.model, count))
    export_bundle(grown, out, layout=layout, precision=precision, classifier=False, say=say)
    return out


def _bare(snapshot: Snapshot, place: Path, threads: int) -> _Arm:
    """Return the backbone alone, one graph from picture to class token, with the same preprocessing."""
    import onnxruntime as ort
    from PIL import Image

    from edge_cl.export.graphs import bare_graph, prepared

    preprocess = snapshot.model.preprocess
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    graph = bare_graph(prepared(snapshot.backbone, "fp32"), preprocess).SerializeToString()
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def answer(frames: Any) -> Any:
        many = frames if isinstance(frames, list) else [frames]
        return session.run(None, {"image": np.stack([preprocess.centre(Image.fromarray(f)) for f in many])})

    return _Arm(BARE, place, "onnxruntime", "", "fp32", 0, "", answer)


def _latencies(arms: Sequence[_Arm], rounds: int) -> list[list[float]]:
    frame = np.random.default_rng(0).integers(0, 256, FRAME, np.uint8)
    seconds: list[list[float]] = [[] for _ in arms]
    for turn in range(3 + rounds):
        for arm, taken in zip(arms, seconds, strict=True):
            start = time.perf_counter()
            arm.answer(frame)
            if turn >= 3:  # after warming up
                taken.append(time.perf_counter() - start)
    return seconds


def _rows(arms: Sequence[_Arm], seconds: Sequence[Sequence[float]], threads: int) -> list[PredictRow]:
    batch = list(np.random.default_rng(1).integers(0, 256, (BATCH, *FRAME), np.uint8))
    bare, rows = float(np.median(seconds[0])), []
    for arm, taken in zip(arms, seconds, strict=True):
        start = time.perf_counter()
        for _ in range(3):
            arm.answer(batch)
        frames_s = 3 * BATCH / (time.perf_counter() - start)
        fresh = _fresh(arm, threads) if arm.tasks else {}
        median = float(np.median(taken))
        rows.append(
            PredictRow(
                arm.name, arm.backend, arm.layout, arm.precision, arm.tasks, arm.rule,
                1000 * median, 1000 * float(np.percentile(taken, 99)), median / bare, frames_s,
                fresh.get("start_s"), fresh.get("memory_mb"),
            )
        )  # fmt: skip
    return rows


def _fresh(arm: _Arm, threads: int) -> dict[str, float]:
    """Start a process that loads the bundle and answers once; raises EdgeClError where it fails."""
    start = time.time()
    command = [sys.executable, "-m", __name__, str(arm.bundle), arm.backend, arm.rule, str(threads)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise EdgeClError(
            f"A process that answers from {arm.bundle} ended with status {run.returncode}.",
            run.stderr.strip() or "It said nothing: it may have been killed, as where memory is short.",
            mend=f"Run it by itself: {shlex.join(command)}",
        )
    done = json.loads(run.stdout)
    return {"start_s": done["answered"] - start, "memory_mb": done["memory_mb"]}


def plot(rows: Sequence[PredictRow]) -> bytes:
    """Draw the latency of every way as bars, the bare backbone's as a line, as a PNG."""
    from matplotlib.figure import Figure

    from edge_cl.benchmark import to_png

    figure = Figure(figsize=(9, 0.5 + 0.38 * len(rows)), layout="constrained")
    axes = figure.subplots()
    shown = [row for row in rows if row.rule != "published"]
    left_out = [f"\nnot shown: {_name(row)}: {row.median_ms:.1f} ms" for row in rows if row not in shown]
    names = list(map(_name, shown))
    axes.barh(names, [row.median_ms for row in shown], color=["#888888", *["#2a6fbb"] * (len(shown) - 1)])
    axes.plot([row.p99_ms for row in shown], names, "|", color="black", markersize=12, label="99th percentile")
    axes.axvline(shown[0].median_ms, color="#888888", linewidth=1)
    axes.invert_yaxis()
    axes.set(xlabel="".join(["milliseconds a frame, median", *left_out]), xlim=(0, None))
    axes.legend()
    return to_png(figure)


def _name(row: PredictRow) -> str:
    return " ".join(filter(None, (row.arm, row.layout, row.precision, row.backend)))


def main() -> None:
    """Load a bundle, answer one frame, and print when that was and how much memory it took."""
    from edge_cl.runtime import Classifier

    bundle, backend, rule, threads = sys.argv[1:]
    frame = np.zeros(FRAME, np.uint8)
    Classifier(bundle, backend=backend, rule=rule, threads=int(threads)).predict(frame)
    answered = time.time()
    print(json.dumps({"answered": answered, "memory_mb": peak_mb()}))


if __name__ == "__main__":
    main()
