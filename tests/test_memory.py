"""A learn's memory: what is predicted, which settings keep it under a limit, and that they change nothing else."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from small import CONFIG, edge_cl, new_learner, write_looks

from edge_cl.backbone import Backbone
from edge_cl.budget import Work
from edge_cl.cli_options import megabytes
from edge_cl.config import LearnConfig
from edge_cl.decode import decoding_bytes
from edge_cl.decoded import Source, copy_bytes, decode
from edge_cl.errors import EdgeClError, UsageError
from edge_cl.features import Encoder
from edge_cl.learner import Learner
from edge_cl.lora import Adapter
from edge_cl.memory import ALGEBRA_MB, EIGEN, LIBRARIES_MB, PLOT_MB, Footprint
from edge_cl.outcome import with_peak
from edge_cl.pictures import read_folder, read_unlabelled
from edge_cl.preprocess import Pixels, Preprocess
from edge_cl.process import idle_mb, peak_mb, reset_peak
from edge_cl.spread import Spread
from edge_cl.statistics import Scatter, Statistics, _fold

ROUNDING = 1.01  # how much of a library's file counts as the process's is not the same everywhere
COPIES = 100 * 4 * 192 * 256
WORK = Work(100, 10, 0.5, adapts=True, together=True, distils=False)
FIRST = Footprint(WORK, 192, 65, 12, 4608, 128, 12 * 192**2, copies=COPIES)
LATER = replace(FIRST, work=replace(FIRST.work, together=False, seen=0.5))
DEFAULT = LearnConfig()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("micro_batch", [1, 16, 32])
@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("reduced", [True, False])
def test_peak_by_hand(together: bool, micro_batch: int, recompute: bool, reduced: bool) -> None:
    config = replace(DEFAULT, micro_batch=micro_batch, views=0, recompute=recompute)
    # 100 pictures make four batches of 25; where all blocks are trained, at most two thirds as many go at once.
    square, at_once = 3 * 128**2, ({1: 1, 16: 9, 32: 13} if together else {1: 1, 16: 13, 32: 25})[micro_batch]
    pictures = 120 * square + COPIES  # the ten that are held out, on either square
    blocks = 12 if together else 6
    a_block, passing = (7.5, 40) if reduced else (12, 54)
    saved = blocks + a_block if recompute else blocks * a_block
    training = at_once * 4 * ((1 if together else 0.5) * 65 * 192 * (saved + passing) + 2 * square)
    training += 2 * 12 * 192**2 * (1 if recompute else blocks) if reduced else 0
    features = (1 if together else 2) * 110 * (4608 + 192) * 4
    encoding = micro_batch * 4 * (65 * 192 * 30 + 2 * square)
    statistics = 4 * 4608 * (110 + 256 + 110) + 44 * (110 + 110) ** 2  # the model's basis, and the task's own
    peak = max(
        training + (pictures if together else features),
        pictures + features + encoding,
        features + statistics + ALGEBRA_MB * 2**20,
        4608 * 4 * 110 + PLOT_MB * 2**20,  # the directions, and the plot
    )
    # Batches of 25 go through whole, or as (8, 8, 9) or (12, 13); all 100 are encoded by ones, or by 16 or 32 and 4.
    trained, encoded = ({1: 1, 16: 2, 32: 2} if together else {1: 1, 16: 2, 32: 1})[micro_batch], 1 + (micro_batch > 1)
    kernels = (12.2 + 7340 * 192 / 2**20) * (trained + 0.3 * encoded) if reduced else 0
    footprint = replace(FIRST if together else LATER, reduced=reduced)
    assert footprint.peak_mb(config) == pytest.approx(LIBRARIES_MB + kernels + peak / 2**20)
    assert replace(footprint, cpu=False).peak_mb(config) == pytest.approx(LIBRARIES_MB + peak / 2**20)


@pytest.mark.parametrize("held", [0, 24])
@pytest.mark.parametrize("per_class", [12, 96])
@pytest.mark.parametrize(
    ("known", "train", "views", "rank"),
    [(0, 96, 0, 512), (0, 96, 3, 512), (0, 96, 3, 64), (0, 192, 3, 512), (96, 96, 0, 512), (192, 96, 3, 128)],
)
def test_statistics_against_what_they_allocate(
    monkeypatch: pytest.MonkeyPatch, known: int, train: int, views: int, rank: int, per_class: int, held: int
) -> None:
    """The model's and the task's own statistics, of one fold and of several, of few and of all directions."""
    width, labels = 12 * 2 * 384, np.arange(train) // per_class
    drawn = np.random.default_rng(0).normal(size=(1 + views, known + train + held, width)).astype(np.float32)
    before = Statistics.empty(width).add(drawn[0, :known], np.arange(known) // per_class, rank=rank)
    work = replace(FIRST.work, train=train, hold_out=held)
    footprint = replace(FIRST, work=work, features=width, directions=len(before.scatter.energy))
    seen, rest = drawn[:, known : known + train], drawn[:1, known + train :]
    lots = [(seen, labels + len(before)), (rest, labels[:held] + len(before))]
    tracemalloc.start()
    model = before.add_all(lots, rank=rank)
    own = Statistics.empty(width).add(seen, labels, rank=rank)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(model.scatter.energy) >= len(own.scatter.energy)
    monkeypatch.setattr("edge_cl.memory.EIGEN", 5)  # what LAPACK works on is not traced
    predicted = footprint._statistics_b(replace(DEFAULT, views=views, covariance_rank=rank))
    assert 0.97 * peak < predicted < 1.15 * peak


def test_eigenvectors_against_what_they_take() -> None:
    rows = np.random.default_rng(0).normal(size=(1280, 1400)).astype(np.float32)
    Scatter.empty(1400).add([rows[:200]], count=1)  # buffers of first use
    before = idle_mb()
    reset_peak()
    _fold(rows, 0.0, 1024)
    assert peak_mb() - before == pytest.approx(EIGEN * 4 * len(rows) ** 2 / 2**20, rel=0.2)


def test_directions_of_many_classes_against_what_they_allocate() -> None:
    """Where classes are many and pictures few, their own directions take more than the covariance does."""
    width, classes, rank = 12 * 2 * 192, 400, 64
    drawn = np.random.default_rng(0).normal(size=(1, classes, width)).astype(np.float32)
    work = replace(FIRST.work, train=classes, hold_out=0)
    footprint = replace(FIRST, work=work, features=width, directions=0, classes=classes)
    tracemalloc.start()
    pooled = Statistics.empty(width).add(drawn, np.zeros(classes, np.int64), rank=rank)
    spread = Spread.empty(width).add(drawn, np.arange(classes))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(pooled.scatter.energy), len(spread.rows)) == (rank, classes)
    config = replace(DEFAULT, views=0, covariance_rank=rank)
    assert 0.97 * peak < footprint._statistics_b(config) < 1.15 * peak
    assert replace(footprint, classes=0)._statistics_b(config) < 0.5 * peak


@pytest.mark.parametrize("recompute", [True, False])
def test_weights_that_a_training_step_copies(tiny_backbone: Backbone, recompute: bool) -> None:
    """What autograd keeps of no picture at all, in reduced precision: every block's matrices, or none yet."""
    backbone = tiny_backbone
    generator = torch.Generator().manual_seed(0)
    adapter = Adapter.new_task(0, backbone.depth, backbone.width, 1, generator)

    def saved(pictures: int) -> int:
        kept: list[torch.Tensor] = []
        pixels = torch.rand(pictures, 3, 32, 32, generator=generator)
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
        with backbone.run_mode(recompute=recompute, reduced=True), hooks:
            tokens = backbone.run_blocks(backbone.embed(pixels), range(backbone.depth), adapter)
        own = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
        assert tokens.requires_grad
        return sum(size for address, size in storages.items() if address not in own)

    footprint = Footprint.of(LATER.work, Encoder(backbone, Preprocess(32)), 0, reduced=True)
    copies = 0 if recompute else 2 * footprint.matrices * backbone.depth
    assert 2 * saved(1) - saved(2) == pytest.approx(copies, rel=0.1, abs=2000)


def test_loading_a_backbone_takes_its_weights_once(tmp_path: Path) -> None:
    """Neither the store's file nor weights that the backbone begins with come beside them, at any moment."""
    with torch.device("meta"):
        wanted = timm.create_model("vit_small_patch16_224", img_size=32, num_classes=0).state_dict()
    weights = tmp_path / "small.safetensors"
    save_file({name: torch.zeros(value.shape) for name, value in wanted.items()}, weights)
    size = weights.stat().st_size / 2**20
    new_learner(tmp_path).load()  # imports
    before = idle_mb()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    learner = Learner.init(
        tmp_path / "small", backbone="vit_small_patch16_224", weights=weights, image_size=32, device="cpu"
    )
    assert 0.9 * size < peak_mb() - before < 1.3 * size
    learner.load()
    assert idle_mb() - before > 0.9 * size
    assert peak_mb() - before < 1.3 * size


@pytest.mark.parametrize("footprint", [FIRST, LATER], ids=["first", "later"])
def test_every_step_down_takes_less(footprint: Footprint) -> None:
    least = footprint.peak_mb(replace(DEFAULT, micro_batch=1, recompute=True, views=0))
    limits = range(400, math.ceil(least), -1)
    wanted = [footprint.fit(DEFAULT, 700, 700 + limit) for limit in limits]
    assert all(footprint.peak_mb(config) <= limit for config, limit in zip(wanted, limits, strict=True))
    assert wanted[0] == DEFAULT
    order = list(dict.fromkeys((c.micro_batch, c.recompute, c.views) for c in wanted))
    assert order[:2] == [(16, False, 3), (8, False, 3)]
    assert order == sorted(order, key=lambda o: (o[2], o[0], not o[1]), reverse=True)
    assert order[-1][2] < 2


def test_too_little_names_the_least() -> None:
    with pytest.raises(EdgeClError, match=r"^710 MB are not enough: these 110 pictures need about (\d+) MB") as caught:
        FIRST.fit(DEFAULT, 700, 710)
    least = int(str(caught.value).split("about ")[1].split(" MB")[0])
    assert f"--memory {least}MB" in caught.value.mend
    assert FIRST.fit(DEFAULT, 707, least)  # the next process begins with a little more
    with pytest.raises(EdgeClError):
        FIRST.fit(DEFAULT, 730, least)


def test_the_largest_picture_is_decoded_under_the_limit_too() -> None:
    large = replace(FIRST, decoding=500 * 2**20)
    assert large.peak_mb(DEFAULT) > 500 > FIRST.peak_mb(replace(DEFAULT, method="prototype"))
    with pytest.raises(EdgeClError, match="MB are not enough") as caught:
        large.fit(DEFAULT, 200, 700)
    assert "make the largest pictures smaller" in caught.value.mend


@pytest.mark.parametrize("size", [(1920, 1080), (480, 640), (4000, 600), (100, 100), (192, 192)])
def test_what_the_copy_of_a_picture_takes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    (copy,) = decode(read_unlabelled(tmp_path).pictures, Preprocess(128), copies=True).copies
    before = idle_mb()
    copies = [copy.copy() for _ in range(2**26 // copy_bytes(size, Preprocess(128)))]
    assert idle_mb() - before == pytest.approx(64, abs=3)
    del copies


def test_views_are_cut_as_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's alone, the same whichever others come with it."""
    cut: list[Image.Image] = []
    view = Preprocess.view

    def counted(self: Preprocess, image: Image.Image, *args: Any, **options: Any) -> Pixels:
        cut.append(image)
        return view(self, image, *args, **options)

    monkeypatch.setattr(Preprocess, "view", counted)
    pictures = read_folder(write_looks(tmp_path, {"a": 0, "b": 4}, 4)).pictures
    source = Source(decode(pictures, Preprocess(32), copies=True), Preprocess(32), 0, (0.4, 1.0))
    views = source.view(1)
    assert (len(views), len(cut)) == (8, 0)
    some = views[2:5]
    assert cut == list(source.decoded.copies[2:5])
    np.testing.assert_array_equal(np.stack(some), np.stack([views[i] for i in (2, 3, 4)]))
    assert not np.array_equal(some[0], source.view(2)[2])


@pytest.mark.parametrize(
    ("form", "options", "size", "taken"),
    [
        ("PNG", {}, (100, 100), 19e4),
        ("PNG", {}, (4000, 3000), 4 * 12e6 + 6 * 12e6 / 11**2),  # a strip at a time
        ("PNG", {}, (20000, 300), 10 * 6e6),  # nothing to reduce
        ("WEBP", {}, (4000, 3000), 16 * 12e6 + 6 * 12e6 / 11**2),
        ("JPEG", {}, (400, 300), 6.25 * 12e4),
        ("JPEG", {}, (4000, 3000), 12e6 / 4 + 6 * 12e6 / 11**2),  # scaled down while it is decoded
        ("JPEG", {"progressive": True}, (4000, 3000), 6 * 12e6 + 6 * 12e6 / 11**2),  # not before all is read
    ],
)
def test_what_a_picture_takes_while_it_is_decoded(
    tmp_path: Path, form: str, options: dict[str, Any], size: tuple[int, int], taken: float
) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png", form, **options)
    (found,) = read_unlabelled(tmp_path).pictures
    assert decoding_bytes(found.size, found.bytes_a_pixel, 256) == pytest.approx(taken, rel=1e-6)


@pytest.mark.parametrize(("text", "amount"), [("800MB", 800), ("2GB", 2048), ("1.5g", 1536), ("512 MiB", 512)])
def test_amounts(text: str, amount: float) -> None:
    assert megabytes(text) == amount


@pytest.mark.parametrize("text", ["", "0MB", "-2GB", "much", "800", "5 TB"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="write 800MB or 2GB"):
        megabytes(text)
    assert edge_cl("learn", "--new-classes", "x", f"--memory={text}").code == 2


@pytest.mark.parametrize("amount", [0.0, -1.0, float("inf"), float("nan")])
def test_memory_must_be_positive(amount: float) -> None:
    with pytest.raises(UsageError, match="memory_mb must be positive"):
        LearnConfig(memory_mb=amount)


def test_counters_agree_with_the_kernel() -> None:
    before = idle_mb()
    block = bytearray(64 << 20)
    assert 60 < idle_mb() - before < 70
    assert peak_mb() >= idle_mb() - 2  # the kernel counts some pages late
    del block


def test_too_little_memory_stops_before_work(tmp_path: Path) -> None:
    learner = new_learner(tmp_path)
    pictures = write_looks(tmp_path / "pictures", {"a": 0, "b": 4}, 8)
    with pytest.raises(EdgeClError, match="MB are not enough"):
        learner.learn(pictures, replace(CONFIG, memory_mb=50.0))
    assert [v.number for v in learner.log()] == [0]


def test_a_learn_keeps_to_its_memory_and_says_how(tmp_path: Path) -> None:
    """In a process of its own: settings that need less are chosen, and the high-water mark stays below the limit."""
    pictures = write_looks(tmp_path / "pictures", {"a": 0, "b": 4, "c": 8}, 16)
    free = _learned(pictures, tmp_path / "free")
    limit = _least(pictures, tmp_path / "refused")
    assert limit < free["budget"]["predicted_mb"]
    kept = _learned(pictures, tmp_path / "kept", "--memory", f"{limit}MB")
    assert kept["budget"]["memory_mb"] == limit
    assert kept["budget"]["predicted_mb"] <= limit
    assert kept["peak_memory_mb"] <= ROUNDING * limit
    how = rf"To stay under {limit} MB: (\d+ instead of \d+ (pictures at once|random views)|results computed again)"
    assert any(re.match(how, note) for note in kept["notes"])
    assert kept["holdout_accuracy"] == pytest.approx(free["holdout_accuracy"], abs=0.35)  # one of three pictures


TABLETOP = Path(__file__).parents[1] / "examples" / "tabletop" / "train"
TURNS = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180)


def test_many_pictures_are_learned_under_the_least_that_is_offered_and_under_more(tmp_path: Path) -> None:
    """Under the tool's own suggestion and a middle value, for as long as the process lives."""
    pictures = tmp_path / "pictures"
    for path in (path for name in ("book", "bowl", "can", "plate") for path in (TABLETOP / name).iterdir()):
        (pictures / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            for turn in TURNS:
                image.transpose(turn).save(pictures / path.parent.name / f"{path.stem}-{turn}.png")
    least = _least(pictures, tmp_path / "refused")
    for limit in (least, least + 25):
        learned = _learned(pictures, tmp_path / f"{limit}", "--memory", f"{limit}MB")
        assert learned["process_mb"] <= ROUNDING * limit
        assert learned["process_mb"] - 5 < learned["peak_memory_mb"]  # after the report little is done
        assert learned["budget"]["predicted_mb"] < 1.08 * learned["process_mb"]


@pytest.mark.parametrize(
    ("before", "reached", "way"),
    [
        (600, 820, "pass --memory 780MB or learn fewer classes at a time."),
        (600, 1010, "learn fewer classes at a time."),  # 590 MB are less than the process takes before it learns
        (600, 800, ""),
        (810, 820, ""),
    ],
)
def test_a_limit_that_was_passed_is_named(
    learner: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, reached: int, way: str
) -> None:
    report = learner.learn(write_looks(tmp_path / "more", {"x": 10, "y": 14}), CONFIG)
    report = replace(report, budget={**report.budget, "memory_mb": 800.0, "idle_mb": 600.0})
    monkeypatch.setattr("edge_cl.outcome.peak_mb", lambda: float(reached))
    found = with_peak(report, before)
    assert found.peak_memory_mb == reached
    more = f"The process reached {reached} MB, more than the 800 MB allowed: to keep under 800 MB, {way}"
    assert found.notes == [*report.notes, *([more] if way else [])]


LEARN = """
import atexit, sys
from edge_cl.cli import main
from edge_cl.process import peak_mb
atexit.register(lambda: print(f"reached {peak_mb()}", file=sys.stderr))
main()
"""


def _learn(pictures: Path, store: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Learn with the shipped backbone, one epoch, in a process of its own."""
    what = ["learn", "--new-classes", str(pictures), "--store", str(store), "--epochs", "1", "--json", *options]
    return subprocess.run([sys.executable, "-c", LEARN, *what], capture_output=True, text=True, check=False)


def _least(pictures: Path, store: Path) -> int:
    """Return the least memory that the tool offers to learn pictures in, MB."""
    refused = _learn(pictures, store, "--memory", "500MB")
    return int(re.search(r"Pass --memory (\d+)MB", refused.stderr)[1])  # type: ignore[index]


def _learned(pictures: Path, store: Path, *options: str) -> dict[str, Any]:
    """Return the report of such a learn, and as `process_mb` the peak when its process ended."""
    done = _learn(pictures, store, *options)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return {**report, "process_mb": float(done.stderr.split("reached ")[-1])}


def test_the_peak_begins_anew() -> None:
    size = 200
    held = np.ones(size << 20, np.uint8)
    assert peak_mb() >= size
    high = peak_mb()
    del held
    reset_peak()
    assert peak_mb() < high - 0.8 * size
