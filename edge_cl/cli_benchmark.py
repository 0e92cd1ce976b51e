"""The command line's `edge-cl benchmark`: speed, memory and accuracy, each with a table, CSV, JSON and a plot."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from edge_cl.cli_options import (
    DEFAULT_STORE,
    DEFAULTS,
    BackboneOption,
    DeviceOption,
    JsonOption,
    SizeOption,
    StoreOption,
    StrideOption,
    WeightsOption,
    place,
)
from edge_cl.console import answers, emit, say, table

SeedsOption = Annotated[
    list[int] | None,
    typer.Option("--seed", min=0, max=2**32 - 1, help="Of a stream; may be repeated. If not given: 1993."),
]

DataArgument = Annotated[
    Path,
    typer.Argument(metavar="DIR", parser=place, help="DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg"),
]
OutputOption = Annotated[Path, typer.Option("--output", metavar="DIR", parser=place, help="Where to write.")]

benchmark = typer.Typer(no_args_is_help=True, help="Measure speed, memory and accuracy on a folder data set.")


@benchmark.command("learn")
def benchmark_learn(
    data: DataArgument,
    increment: Annotated[int, typer.Option("--increment", min=1, help="Classes a task.")] = 9,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of every adapter stage.")] = 8,
    seeds: SeedsOption = None,
    output: OutputOption = Path("benchmark_learn"),
    backbone: BackboneOption = "",
    weights: WeightsOption = None,
    image_size: SizeOption = None,
    patch_stride: StrideOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare learning with the published schedule: seconds, memory and accuracy, side by side."""
    from edge_cl import benchmark as bench

    options = {
        "--backbone": backbone,
        "--weights": weights,
        "--image-size": image_size,
        "--patch-stride": patch_stride,
    }
    init = [str(part) for pair in options.items() if pair[1] for part in pair]
    bench.require_writable(output)
    rows = []
    for row in bench.learn_rows(data, [increment], seeds or [1993], epochs, init, device, say):
        rows.append(row)
        bench.write(output / "rows.csv", bench.to_csv(list(map(vars, rows))).encode())
        say(f"seed {row.seed} task {row.task + 1} {bench.LABELS[row.arm]}: {row.learn_s:.1f} s, {row.peak_mb:.0f} MB")
    summary, machine = bench.summarise(rows), bench.machine()
    value = {"machine": machine, "data": str(data), "epochs": epochs, "arms": summary, "output": str(output)}
    _write(output, value, bench.to_csv(list(map(vars, rows))), bench.plot(rows))

    def show() -> None:
        cells = [
            (bench.LABELS[arm], f"{v['learn_s']:.1f}", f"{v['speedup']:.2f}", f"{v['slowest_s']:.1f}",
             f"{v['peak_mb']:.0f}", f"{v['cuda_peak_mb']:.0f}", f"{v['above_idle_mb']:.0f}", f"{v['memory_ratio']:.2f}",
             f"{100 * v['accuracy']:.1f} %")
            for arm, v in summary.items()
        ]  # fmt: skip
        columns = (
            "", "learning, s", "times faster", "slowest process, s", "peak MB", "of it CUDA", "above idle",
            "of published", "last",
        )  # fmt: skip
        answers.print(_narrow(columns, cells))
        say(f"{machine}. Rows, summary and plot: {output}")

    emit(as_json, value, show)


@benchmark.command("accuracy")
def benchmark_accuracy(
    data: DataArgument,
    increment: Annotated[str, typer.Option("--increment", help="Classes a task, or of each: 1,2,30.")] = "9",
    seeds: SeedsOption = None,
    methods: Annotated[list[str] | None, typer.Option("--method", help="May be repeated; all, if not given.")] = None,
    part: Annotated[str, typer.Option("--part", help="Pictures to judge by: test or val.")] = "test",
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Of every adapter stage.")] = DEFAULTS.epochs,
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", parser=place, help="Where to write; a run resumes there.")
    ] = Path("benchmark_accuracy"),
    backbone: BackboneOption = "",
    weights: WeightsOption = None,
    image_size: SizeOption = None,
    patch_stride: StrideOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare methods of class-incremental learning on the same streams: accuracy, forgetting, calibration, cost."""
    from edge_cl import comparison
    from edge_cl.benchmark import machine, require_writable

    require_writable(output)
    init = {
        "backbone": backbone,
        "weights": weights,
        "image_size": image_size,
        "patch_stride": patch_stride,
        "device": device,
    }
    sizes = _numbers(increment)
    chosen = methods or list(comparison.METHODS)
    rows = comparison.compare(
        data, output / "runs", sizes=sizes, seeds=seeds or [1993], methods=chosen, part=part, epochs=epochs, init=init,
        say=say,
    )  # fmt: skip
    summary = comparison.summarise(rows)
    value = {"machine": machine(), "forgetting": comparison.FORGETTING, "methods": summary, "rows": rows}
    _write(output, value, comparison.to_csv(rows), comparison.plot(rows))

    def show() -> None:
        points = ("last", "average", "forgetting", "task_choice", "known_task")
        cells = [
            (name, *(f"{100 * v[key]:.1f}" for key in points), f"{v['calibration_error']:.3f}", f"{v['passes']:.2f}",
             f"{v['answer_ms']:.1f}", f"{v['slowest_learn_s']:.1f}", f"{v['peak_mb']:.0f}")
            for name, v in summary.items()
        ]  # fmt: skip
        columns = (
            "",
            "last",
            "avg.",
            "forgot",
            "right task",
            "if told",
            "ECE",
            "passes",
            "ms",
            "learn s",
            "MB",
        )
        answers.print(_narrow(columns, cells))
        say(f"Forgot: {comparison.FORGETTING}.")
        say(f"{' weights '.join(rows[0]['backbone'].rsplit(' ', 1))}. Rows, summary and plot: {output}")

    emit(as_json, {**value, "output": str(output)}, show)


@benchmark.command("predict")
def benchmark_predict(
    store: StoreOption = DEFAULT_STORE,
    tasks: Annotated[str, typer.Option("--tasks", help="Numbers of tasks; those learned are repeated.")] = "1,10,50",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Frames of each way.")] = 100,
    threads: Annotated[int, typer.Option("--threads", min=1, help="CPU threads.")] = 1,
    output: OutputOption = Path("benchmark_predict"),
    as_json: JsonOption = False,
) -> None:
    """Measure latency, throughput and memory of answering by number of tasks, beside the bare backbone."""
    import tempfile

    from edge_cl import latency
    from edge_cl.benchmark import machine, require_writable, to_csv
    from edge_cl.learner import Learner

    require_writable(output)
    counts, snapshot = _numbers(tasks), Learner.open(store, device="cpu").snapshot()
    with tempfile.TemporaryDirectory() as folder:
        rows = latency.measure(snapshot, Path(folder), counts=counts, threads=threads, rounds=rounds, say=say)
    records = [vars(row) for row in rows]
    value = {"machine": machine(), "backbone": snapshot.model.spec.name, "rows": records}
    _write(output, value, to_csv(records), latency.plot(rows))

    def show() -> None:
        cells = [
            (f"{row.arm} ({', '.join(filter(None, (row.backend, row.layout, row.precision)))})", f"{row.median_ms:.1f}",
             f"{row.p99_ms:.1f}", f"{row.ratio:.2f}", f"{row.frames_s:.0f}", _or_dash(row.start_s, ".2f"),
             _or_dash(row.memory_mb, ".0f"))
            for row in rows
        ]  # fmt: skip
        columns = ("", "median ms", "p99 ms", "of bare", "frames/s", "start, s", "MB")
        answers.print(table(columns, cells))
        say(f"{value['machine']}. Rows, summary and plot: {output}")

    emit(as_json, value, show)


def _narrow(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Any:
    """Lay out a table such that 80 columns do for it: a word a line in its header, a blank between columns."""
    laid_out = table([column.replace(" ", "\n") for column in columns], rows)
    laid_out.padding = (0, 1, 0, 0)
    return laid_out


def _numbers(text: str) -> list[int]:
    """Read numbers from 1 on, such as 1,10,50."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r}: every number must be a whole one of 1 or more; write 9 or 1,10,50.")
    return [int(part) for part in parts]


def _write(output: Path, summary: object, rows: str, plot: bytes) -> None:
    from edge_cl.benchmark import write

    text = json.dumps(summary, indent=2, allow_nan=False)
    for name, content in {"rows.csv": rows.encode(), "plot.png": plot, "summary.json": text.encode()}.items():
        write(output / name, content)


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
