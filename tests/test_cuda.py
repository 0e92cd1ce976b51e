"""Training on a GPU: a captured step computes what a plain one does, and both what the CPU does. Elsewhere skipped."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import IMAGE_SIZE, edge_cl, write_looks, write_weights
from test_training import STAGES, folders, job, prefix_tokens, tensors

from edge_cl.adaptation import Job, train_task_adapter
from edge_cl.backbone import Backbone
from edge_cl.checkpoint import Checkpoint
from edge_cl.lora import Adapter
from edge_cl.training import reduces_precision

__all__ = ["folders"]  # a fixture
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")
SETTINGS = [
    pytest.param({}, id="whole batches"),
    pytest.param({"micro_batch": 3}, id="parts"),
    pytest.param({"micro_batch": 3, "recompute": True}, id="recomputed"),
    pytest.param({"patch_drop_rate": 0.5}, id="half of the patches"),
]


def on_gpu(task: Job) -> Job:
    """Return the same training on the GPU."""
    encoder = task.encoder
    shared, base = (adapter and adapter.to(GPU) for adapter in (encoder.shared, encoder.base))
    encoder = replace(encoder, backbone=encoder.backbone.to(GPU), shared=shared, base=base, device=GPU)
    return replace(task, encoder=encoder, earlier=[adapter.to(GPU) for adapter in task.earlier])


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", STAGES)
def test_captured_steps_train_as_plain_ones_and_as_the_cpu(
    tiny_backbone: Backbone, name: str, settings: dict[str, object]
) -> None:
    run, first, _ = STAGES[name]
    task = job(tiny_backbone, first=first)
    task = replace(task, config=replace(task.config, **settings))  # type: ignore[arg-type]
    expected = tensors(run(task))
    for captured in (False, True):
        there = on_gpu(replace(task, config=replace(task.config, captured_steps=captured)))
        for value, wanted in zip(tensors(run(there)), expected, strict=True):
            np.testing.assert_allclose(value, wanted, atol=2e-3 * np.abs(wanted).max(), err_msg=f"captured: {captured}")
    assert any(wanted.any() for wanted in expected)


def test_reduced_precision_stays_near(tiny_backbone: Backbone) -> None:
    task = on_gpu(job(tiny_backbone, first=False))
    reduced = replace(task, config=replace(task.config, reduced_precision=True))
    assert reduces_precision(reduced.config, GPU)
    run = STAGES["train_task_adapter"][0]
    exact, near = (torch.cat([torch.tensor(x).flatten() for x in tensors(run(t))]) for t in (task, reduced))
    assert torch.cosine_similarity(exact, near, dim=0) > 0.99
    assert not torch.equal(exact, near)


@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_stage_goes_on(tiny_backbone: Backbone, tmp_path: Path, epoch: int) -> None:
    task = on_gpu(job(tiny_backbone, first=False))
    tokens, told = prefix_tokens(task), []
    whole, _ = train_task_adapter(task, tokens)

    def stop(stage: str, done: int, total: int) -> None:
        if done == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_task_adapter(replace(task, checkpoint=Checkpoint(tmp_path, {}), progress=stop), tokens)
    again = replace(task, checkpoint=Checkpoint(tmp_path, {}), progress=lambda stage, done, total: told.append(done))
    resumed, _ = train_task_adapter(again, tokens)
    assert told == list(range(epoch + 1, task.config.epochs + 1))
    close(resumed, whole)


def close(adapter: Adapter, other: Adapter) -> None:
    for value, wanted in zip(tensors((adapter,)), tensors((other,)), strict=True):
        np.testing.assert_allclose(value, wanted, atol=2e-3 * np.abs(wanted).max())


def test_a_deadline_ends_captured_training(tiny_backbone: Backbone) -> None:
    task = replace(on_gpu(job(tiny_backbone, first=False)), deadline=time.monotonic() - 1)
    _, epochs = train_task_adapter(task, prefix_tokens(task))
    assert epochs == 1


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[str, dict[str, int]], Path]:
    def make(name: str, looks: dict[str, int]) -> Path:
        return write_looks(tmp_path / name, looks, 24)

    return make


def test_three_tasks_are_learned_and_answered(tmp_path: Path, folder: Callable[[str, dict[str, int]], Path]) -> None:
    """The whole way with the command line; the answers are right, and the CUDA allocator's peak is reported."""
    store, weights = tmp_path / "store", write_weights(tmp_path / "w.safetensors")
    options = ("--store", store, "--device", "cuda")
    made = edge_cl("init", *options, "--backbone", "test_vit", "--weights", weights, "--image-size", IMAGE_SIZE)
    assert made.code == 0, made.err
    for i, looks in enumerate(({"a": 0, "b": 4}, {"c": 8, "d": 12}, {"e": 2, "f": 15})):
        run = edge_cl("learn", "--new-classes", folder(f"task-{i}", looks), *options, "--json")
        assert run.code == 0, run.err
        budget = run.json["budget"]
        assert budget["cuda_peak_mb"] > 1
        assert budget["idle_mb"] > 0.7 * run.json["peak_memory_mb"]  # CUDA's libraries are loaded before it is taken
    every = folder("every", {"a": 0, "b": 4, "c": 8, "d": 12, "e": 2, "f": 15})
    assert edge_cl("eval", every, *options, "--json").json["accuracy"] > 0.8
