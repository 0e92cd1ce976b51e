"""What a training step costs on a GPU, plain and captured: pictures a second, and launches a step.

    python examples/step_costs.py DIR/train --backbone NAME --weights FILE --image-size 128

trains on up to 256 pictures of the class folders: shared and task adapter together on fresh views (as the first task,
but without its teacher at more pixels, and in single precision as published), and a task adapter alone on prefix tokens
(as every later task).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
from torch.profiler import ProfilerActivity, profile

from edge_cl import Learner
from edge_cl.adaptation import SCHEDULES, Job, train_task_adapter
from edge_cl.benchmark import machine
from edge_cl.checkpoint import Checkpoint
from edge_cl.config import LearnConfig
from edge_cl.decoded import Source, decode
from edge_cl.encoding import ViewEncoder
from edge_cl.features import Encoder
from edge_cl.pictures import read_folder
from edge_cl.tokens import TokenCache, Tokens

PICTURES = 256
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def make_job(encoder: Encoder, folder: Path, config: LearnConfig) -> Job:
    """Return the training of a task of up to 256 pictures from a folder of class folders."""
    found = read_folder(folder)
    names = sorted(found.classes)
    some = [found.pictures[i] for i in np.random.default_rng(0).permutation(len(found.pictures))[:PICTURES]]
    return Job(
        encoder=encoder,
        source=Source(decode(some, encoder.preprocess, copies=True), encoder.preprocess, 0, (config.view_scale, 1.0)),
        labels=np.asarray([names.index(p.label) for p in some], np.int64),
        classes=len(names),
        earlier=[],
        update_shared=False,
        config=config,
        seed=0,
        checkpoint=None,
        progress=lambda stage, done, total: None,
        stage=lambda name: nullcontext(),
    )


def run(job: Job, tokens: list[Tokens] | None) -> list[float]:
    """Train; return the times at which the epochs ended."""
    ends: list[float] = []
    job = replace(job, progress=lambda stage, done, total: ends.append(time.perf_counter()))
    if tokens is None:
        SCHEDULES[job.config.schedule](job)
    else:
        train_task_adapter(job, tokens)
    return ends


def launches(job: Job, tokens: list[Tokens] | None) -> float:
    """Return the kernel and graph launches of a step, of those after the first epoch; over two batches' pictures."""
    job, counts = replace(job, labels=job.labels[: 2 * job.config.batch_size]), []
    for epochs in (1, 2):
        with profile(activities=[ProfilerActivity.CUDA]) as profiled:
            run(replace(job, config=replace(job.config, epochs=epochs)), tokens)
        events = Counter({event.key: event.count for event in profiled.key_averages()})
        counts.append(sum(events[name] for name in LAUNCHES))
    return (counts[1] - counts[0]) / 2


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backbone", default="")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--patch-stride", type=int)
    parser.add_argument("--epochs", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        learner = Learner.init(
            place / "store",
            backbone=options.backbone,
            weights=options.weights,
            image_size=options.image_size,
            patch_stride=options.patch_stride,
            device="cuda",
        )
        _, encoder = learner.load()
        config = LearnConfig(epochs=options.epochs)
        task = make_job(encoder, options.folder, config)
        cache = TokenCache(place, 1 << 32)
        encode = ViewEncoder(encoder, Checkpoint(place / "work", {}), cache, lambda *told: None)
        views = list(encode.base("train", task.source, config.views, keep_tokens=True).tokens)
        shared = SCHEDULES["two-stage"](replace(task, config=replace(config, epochs=1))).shared
        later = replace(task, encoder=replace(encoder, shared=shared))
        rows = {
            "published, 12 blocks, single precision": (
                replace(later, config=replace(config, schedule="joint", micro_batch=32)), None),
            "first task, 12 blocks": (task, None),
            "later task, suffix, 16 at once": (later, views),
            "later task, suffix, 32 at once": (replace(later, config=replace(config, micro_batch=32)), views),
        }  # fmt: skip
        print(machine())
        print(f"{'':42}{'pictures/s':>12}{'captured':>12}{'launches':>10}{'captured':>10}")
        for name, (job, tokens) in rows.items():
            cells: list[list[float]] = [[], []]
            for captured in (False, True):
                chosen = replace(job, config=replace(job.config, captured_steps=captured))
                ends = run(chosen, tokens)
                cells[0].append(len(job.labels) / median(np.diff(ends)))
                cells[1].append(launches(chosen, tokens))
            print(f"{name:42}{cells[0][0]:12.0f}{cells[0][1]:12.0f}{cells[1][0]:10.0f}{cells[1][1]:10.0f}", flush=True)


if __name__ == "__main__":
    main()
