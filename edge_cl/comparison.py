"""Benchmark of accuracy: methods of class-incremental learning side by side, on the same streams and pictures."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_cl import benchmark
from edge_cl.backend import BASE, Encoding
from edge_cl.benchmark import Stream, read_parts, require_writable, write
from edge_cl.config import LearnConfig
from edge_cl.decoded import decode_in_portions
from edge_cl.errors import UsageError, did_you_mean
from edge_cl.evaluation import evaluate, measures
from edge_cl.head import Discriminant, precision_of, softmax
from edge_cl.learner import Learner
from edge_cl.pictures import PictureFolder, read_folder
from edge_cl.preprocess import Pixels, Preprocess
from edge_cl.process import peak_mb, reset_peak
from edge_cl.recognition import Recogniser
from edge_cl.statistics import Array, Indices, Statistics
from edge_cl.store import edge_cl_version
from edge_cl.version import Json, canonical_json

if TYPE_CHECKING:
    from edge_cl.features import Encoder, TorchBackend

FORGETTING = "mean over earlier tasks of (best accuracy after any stage - accuracy after the last stage)"
OURS = "edge-cl"  # of the methods
PROJECTED = 2000  # random features of the projection method
SHRINKAGE = 0.2  # of the training-free discriminants


@dataclass(frozen=True)
class Setting:
    """What all methods of one stream share.

    Attributes:
        stream: tasks of a data set.
        seed: of class order and training.
        part: "test" or "val": the pictures judged by.
        init: arguments of `Learner.init` but the path.
        epochs: of every adapter stage.
        scratch: folder for stores.
    """

    stream: Stream
    seed: int
    part: str
    init: Mapping[str, Any]
    epochs: int
    scratch: Path

    @cached_property
    def learner(self) -> Learner:
        """A learner that knows nothing: the frozen backbone."""
        return Learner.init(Path(tempfile.mkdtemp(dir=self.scratch)) / "store", **self.init)

    @cached_property
    def frozen(self) -> Encoder:
        """The frozen backbone."""
        return self.learner.load()[1]

    def pictures(self, part: str, names: Sequence[str]) -> PictureFolder:
        """Read the pictures of some classes."""
        return read_folder(self.stream.folder(part, names, self.scratch))

    @cached_property
    def features(self) -> dict[str, tuple[Array, Indices]]:
        """Features of the frozen backbone of every picture, {part: (n, F) and class number by order of teaching}."""
        names = self.stream.known(len(self.stream.tasks))
        result = {}
        for part in ("train", self.part):
            folder = self.pictures(part, names)
            rows, labels = [], [names.index(p.label) for p in folder.pictures]
            for decoded in decode_in_portions(folder.pictures, self.frozen.preprocess):
                rows += [encoding.features for encoding in self.frozen.batches(decoded.pixels)]
            result[part] = np.concatenate(rows), np.asarray(labels, np.int64)
        return result

    @cached_property
    def encode_ms(self) -> float:
        """Milliseconds that the frozen backbone takes for a picture, in batches, decoding included."""
        folder, start = self.pictures(self.part, self.stream.tasks[0]), time.monotonic()
        some = next(decode_in_portions(folder.pictures, self.frozen.preprocess)).pixels
        for _ in self.frozen.batches(some):
            pass
        return 1000 * (time.monotonic() - start) / len(some)

    @property
    def boundaries(self) -> Indices:
        """Number of classes known after each task."""
        return np.cumsum([len(task) for task in self.stream.tasks])


@dataclass(frozen=True)
class Stage:
    """How a method answers after one task.

    Attributes:
        measured: of `evaluation.measures`.
        passes: backbone passes a picture, 1 for the whole backbone once.
        answer_ms: to answer one picture, backbone included, in batches.
        learn_s: to learn the task.
    """

    measured: Mapping[str, Any]
    passes: float
    answer_ms: float
    learn_s: float


Method = Callable[[Setting], Iterator[Stage]]
METHODS: dict[str, Method] = {}
MEANINGS: dict[str, str] = {}  # of their names, for the legend


def method(name: str, meaning: str) -> Callable[[Method], Method]:
    """Register a method, which yields a stage for every task of a stream."""

    def register(function: Method) -> Method:
        METHODS[name], MEANINGS[name] = function, meaning
        return function

    return register


def _on_frozen(setting: Setting, fit: Callable[[Array, Indices], Callable[[Array], Array]]) -> Iterator[Stage]:
    """Run a method that needs frozen features alone; it is given all pictures so far, as its sums would give it."""
    x, y = setting.features["train"]
    judged, truth = setting.features[setting.part]
    tasks = np.repeat(np.arange(len(setting.stream.tasks)), np.diff(setting.boundaries, prepend=0))
    names = list(setting.stream.known(len(setting.stream.tasks)))
    for known in setting.boundaries:
        start = time.monotonic()
        posterior_of = fit(x[y < known], y[y < known])
        learn_s, seen = time.monotonic() - start, truth < known
        start = time.monotonic()
        posterior = posterior_of(judged[seen])
        answer_ms = setting.encode_ms + 1000 * (time.monotonic() - start) / seen.sum()
        yield Stage(measures(posterior, truth[seen], tasks[:known], names[:known]), 1.0, answer_ms, learn_s)


def _class_means(x: Array, y: Indices) -> Array:
    return np.stack([x[y == c].mean(0) for c in range(int(y.max()) + 1)])


def _last_token(setting: Setting, x: Array) -> Array:
    """Return the last block's class token (or patch mean) of features (n, F)."""
    backbone = setting.frozen.backbone
    return x[:, -backbone.summaries_per_block * backbone.width :][:, : backbone.width]


@method("ncm", "nearest class mean")
def nearest_class_mean(setting: Setting) -> Iterator[Stage]:
    """Answer with the class mean of largest cosine, last block's class token, nothing trained."""

    def fit(x: Array, y: Indices) -> Callable[[Array], Array]:
        means = _class_means(_last_token(setting, x), y)
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        return lambda rows: softmax(np.float32(16) * (_last_token(setting, rows) @ means.T))

    return _on_frozen(setting, fit)


def _lda(x: Array, y: Indices) -> Callable[[Array], Array]:
    statistics = Statistics.empty(x.shape[1]).add(x, y, rank=x.shape[1])
    discriminant = Discriminant.of(statistics.means, precision_of(statistics, shrinkage=SHRINKAGE))
    return lambda rows: softmax(discriminant.scores(rows))


@method("lda-last", "discriminant, last block")
def lda_last(setting: Setting) -> Iterator[Stage]:
    """Answer by a linear discriminant of the last block's class token, nothing trained."""

    def fit(x: Array, y: Indices) -> Callable[[Array], Array]:
        posterior_of = _lda(_last_token(setting, x), y)
        return lambda rows: posterior_of(_last_token(setting, rows))

    return _on_frozen(setting, fit)


@method("lda-all", "discriminant, all blocks")
def lda_all(setting: Setting) -> Iterator[Stage]:
    """Answer by a linear discriminant over all blocks, full covariance, nothing trained."""

    def fit(x: Array, y: Indices) -> Callable[[Array], Array]:
        means = _class_means(x, y).astype(np.float64)
        rest = x - means[y]
        covariance = rest.T @ rest / len(rest)
        floor = SHRINKAGE * (np.trace(covariance) / len(covariance) or 1.0)  # 1: nothing spreads
        covariance = (1 - SHRINKAGE) * covariance + floor * np.eye(len(covariance))
        centre = means.mean(0)
        weight = np.linalg.solve(covariance, (means - centre).T)
        bias = -0.5 * ((means - centre).T * weight).sum(0)
        return lambda rows: softmax(((rows - centre) @ weight + bias).astype(np.float32))

    return _on_frozen(setting, fit)


@method("random-projection", "random projection, ridge")
def random_projection(setting: Setting) -> Iterator[Stage]:
    """Answer by ridge regression on random ReLU features of the last class token (RanPAC, NeurIPS 2023)."""
    generator = np.random.default_rng(0)
    width = setting.frozen.backbone.width
    projection = generator.normal(size=(width, PROJECTED)).astype(np.float32)

    def fit(x: Array, y: Indices) -> Callable[[Array], Array]:
        lifted = np.maximum(_last_token(setting, x) @ projection, 0).astype(np.float64)
        onehot = np.eye(int(y.max()) + 1)[y]
        gram, held = lifted.T @ lifted, np.arange(len(lifted)) % 5 == 0
        best, chosen = -1.0, 1.0
        part = lifted[~held].T @ lifted[~held]
        for ridge in 10.0 ** np.arange(-2, 7):  # chosen by a fifth of the training pictures
            trial = np.linalg.solve(part + ridge * np.eye(PROJECTED), lifted[~held].T @ onehot[~held])
            accuracy = float(((lifted[held] @ trial).argmax(1) == y[held]).mean())
            if accuracy > best:
                best, chosen = accuracy, ridge
        weight = np.linalg.solve(gram + chosen * np.eye(PROJECTED), lifted.T @ onehot)

        def answer(rows: Array) -> Array:
            scores = np.maximum(_last_token(setting, rows) @ projection, 0) @ weight
            return softmax(scores.astype(np.float32))

        return answer

    return _on_frozen(setting, fit)


@dataclass
class _Counted:
    """A backend that counts the backbone blocks it runs."""

    backend: TorchBackend
    blocks: int = 0
    pictures: int = 0

    @property
    def preprocess(self) -> Preprocess:
        return self.backend.preprocess

    def prefix(self, pixels: Pixels) -> Encoding:
        self.pictures += len(pixels)
        self.blocks += len(pixels) * self.backend.encoder.backbone.split
        return self.backend.prefix(pixels)

    def encode(self, pixels: Pixels) -> Encoding:
        encoding = self.prefix(pixels)
        return self.branch(encoding, BASE, range(len(pixels)))

    def branch(self, encoding: Encoding, task: int, rows: Sequence[int]) -> Encoding:
        backbone = self.backend.encoder.backbone
        if task == BASE or task in self.backend.adapters:
            self.blocks += len(rows) * (backbone.depth - backbone.split)
        return self.backend.branch(encoding, task, rows)


def _taught(setting: Setting, config: LearnConfig, rule: str, later: LearnConfig | None = None) -> Iterator[Stage]:
    """Teach a learner a stream, later tasks with settings of their own if given, and answer by a rule after each."""
    from edge_cl.features import TorchBackend

    place = Path(tempfile.mkdtemp(dir=setting.scratch)) / "store"
    learner = Learner.init(place, **setting.init)
    for task, names in enumerate(setting.stream.tasks):
        folder = setting.stream.folder("train", names, setting.scratch)
        report = learner.learn(folder, later if later and task else config)
        judged = setting.pictures(setting.part, setting.stream.known(task))
        recogniser = learner.recogniser(rule)
        assert isinstance(recogniser.backend, TorchBackend)
        counted = _Counted(recogniser.backend)
        start = time.monotonic()
        found = evaluate(Recogniser(counted, recogniser.head, recogniser.names, rule), judged)
        answer_ms = 1000 * (time.monotonic() - start) / counted.pictures
        passes = counted.blocks / counted.pictures / counted.backend.encoder.backbone.depth
        yield Stage(found, passes, answer_ms, report.seconds["total"])


@method("cl-lora", "CL-LoRA as published")
def published(setting: Setting) -> Iterator[Stage]:
    """Learn by the published schedule and answer by the published rule."""
    config = LearnConfig(
        epochs=setting.epochs, seed=setting.seed, schedule="joint", shared_update="distil", choose_square=False
    )
    return _taught(setting, config, "published")


@method("adapt-once", "adapted to the first task only")
def adapt_once(setting: Setting) -> Iterator[Stage]:
    """Adapt to the first task, without a teacher; then statistics alone, answered by the base branch on one square."""
    config = LearnConfig(epochs=setting.epochs, seed=setting.seed, finer_weight=0.0, choose_square=False)
    return _taught(setting, config, "base", replace(config, method="prototype"))


@method(OURS, "this library")
def ours(setting: Setting) -> Iterator[Stage]:
    """Learn and answer as edge-cl does."""
    return _taught(setting, LearnConfig(epochs=setting.epochs, seed=setting.seed), "routed")


def compare(
    data: Path,
    output: Path,
    *,
    sizes: Sequence[int],
    seeds: Sequence[int],
    methods: Sequence[str],
    part: str,
    epochs: int,
    init: Mapping[str, Any],
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Run methods over streams; what a run before has finished is read from `output` and not done again.

    That is what was found on the same pictures, tasks and device, with the same settings, backbone and edge-cl.

    Returns:
        A row for every seed and method: backbone, data, seed, method, matrix (accuracy of each task after each), curve,
        last, average, forgetting, task_choice, known_task, calibration_error, passes, answer_ms, slowest_learn_s,
        peak_mb (of the whole process while the method ran).

    Raises:
        UsageError: an unknown method, or an output folder that cannot be written to.
        FolderError: see `read_parts` and `Stream.of`.
        EdgeClError: a result cannot be written.
    """
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(*(f"Unknown method {n!r}. {did_you_mean(n, list(METHODS))}" for n in unknown))
    require_writable(output)
    parts = read_parts(data, part, say)
    pictures: Json = [sorted([p.label, p.sha256] for p in folder.pictures) for folder in parts.values()]
    streams = {seed: Stream.of(parts, sizes, seed) for seed in seeds}
    rows = []
    for seed, stream in streams.items():
        with tempfile.TemporaryDirectory() as scratch:
            setting = Setting(stream, seed, part, init, epochs, Path(scratch))
            for name in methods:
                key: Sequence[Json] = [
                    edge_cl_version(),
                    pictures,
                    str(data.resolve()),
                    [list(t) for t in stream.tasks],
                    seed,
                    name,
                    part,
                    epochs,
                    _weights(setting),
                    setting.learner.state["backbone"],
                    setting.learner.device,
                ]
                place = output / f"{hashlib.sha256(canonical_json(key)).hexdigest()[:16]}.json"
                if not place.exists():
                    say(f"seed {seed}: {name} ...")
                    write(place, json.dumps(_row(setting, data, name), allow_nan=False).encode())
                rows.append(json.loads(place.read_text()))
                say(f"seed {seed} {name}: last {rows[-1]['last']:.1%}, average {rows[-1]['average']:.1%}")
    return rows


def _weights(setting: Setting) -> str:
    return setting.learner.store.head.objects["backbone"].sha256


def _row(setting: Setting, data: Path, name: str) -> dict[str, Any]:
    reset_peak()
    stages = list(METHODS[name](setting))
    matrix = [stage.measured["per_task"] for stage in stages]
    curve = [stage.measured["accuracy"] for stage in stages]
    last = stages[-1]
    best = [max(row[t] for row in matrix if len(row) > t) for t in range(len(matrix))]
    spec = setting.learner.state["backbone"]
    stride = f" stride {spec['patch_stride']}" if spec.get("patch_stride") else ""
    return {
        "backbone": f"{spec['name']} {spec['image_size']} px{stride} {_weights(setting)[:8]}",
        "data": data.name,
        "part": setting.part,
        "seed": setting.seed,
        "method": name,
        "epochs": setting.epochs,
        "tasks": [len(task) for task in setting.stream.tasks],
        "matrix": matrix,
        "curve": curve,
        "last": curve[-1],
        "average": float(np.mean(curve)),
        "forgetting": float(np.mean([b - now for b, now in zip(best[:-1], matrix[-1], strict=False)] or [0.0])),
        "task_choice": last.measured["task_choice_accuracy"],
        "known_task": last.measured["known_task_accuracy"],
        "calibration_error": last.measured["calibration_error"],
        "passes": last.passes,
        "answer_ms": last.answer_ms,
        "slowest_learn_s": max(stage.learn_s for stage in stages),
        "peak_mb": peak_mb(),
    }


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return means over the seeds by method."""
    numbers = ("last", "average", "forgetting", "task_choice", "known_task", "calibration_error", "passes",
               "answer_ms", "slowest_learn_s", "peak_mb")  # fmt: skip
    names = list(dict.fromkeys(row["method"] for row in rows))
    return {
        name: {key: float(np.mean([row[key] for row in rows if row["method"] == name])) for key in numbers}
        for name in names
    }


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write one line a row; matrix and curve stay in the JSON."""
    flat = [{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]
    return benchmark.to_csv(flat)


def plot(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw accuracy over all classes so far after every task, a line a method, mean over the seeds, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    summary = summarise(rows)
    looks = itertools.cycle(("o--", "s-", "^--", "D-", "v--", "P-", "X--"))
    for name, width, look in zip(summary, np.linspace(4, 2, len(summary)), looks, strict=False):
        # What lies below another curve shows at its edges, through its gaps and in its hollow markers.
        curves = np.asarray([row["curve"] for row in rows if row["method"] == name])
        known = np.cumsum(rows[0]["tasks"])
        own: dict[str, Any] = (
            {"color": "black", "linestyle": "-", "alpha": 1.0, "zorder": 3} if name == OURS else {"alpha": 0.6}
        )
        axes.plot(
            known, 100 * curves.mean(0), marker=look[0], linewidth=width, markersize=4 + 2 * width,
            markerfacecolor="none", label=f"{name}: {MEANINGS.get(name, '')}", **{"linestyle": look[1:], **own},
        )  # fmt: skip
        if len(curves) > 1:
            colour = axes.lines[-1].get_color()
            axes.fill_between(known, 100 * curves.min(0), 100 * curves.max(0), alpha=0.15, color=colour)
    backbone, _ = rows[0]["backbone"].rsplit(" ", 1)  # but for the hash of its weights
    axes.set(xlabel="classes known", ylabel="accuracy over them, %", title=f"{rows[0]['data']}, {backbone}")
    axes.locator_params("x", integer=True)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    return benchmark.to_png(figure)
