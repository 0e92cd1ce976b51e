"""What all tests share: one thread, no network, and the weights of a tiny vision transformer."""

from __future__ import annotations

import os
from pathlib import Path

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",  # read when the hub's client is imported: before any test module
    "HF_HUB_CACHE": "/nonexistent",
}

import pytest
import torch
from deployed import Deployed
from safetensors.torch import save_file
from small import BACKBONE, CONFIG, copied, new_learner, random_weights, write_looks
from two_tasks import EVERY, FIRST, SECOND

from edge_cl import Learner
from edge_cl.architecture import BackboneSpec, build
from edge_cl.backbone import Backbone
from edge_cl.preprocess import Preprocess
from edge_cl.weights import read_weights

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the timm model `test_vit`, at its own 160 px."""
    path = tmp_path_factory.mktemp("weights") / f"{BACKBONE}.safetensors"
    save_file(random_weights(BACKBONE), path)
    return path


@pytest.fixture
def tiny_backbone(tiny_weights: Path) -> Backbone:
    """Those weights as a frozen backbone for 32 px, split after block 3 of 6."""
    return build(BackboneSpec(BACKBONE, 32, 3, Preprocess(32)), read_weights(tiny_weights))


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """A store that knows three tasks, and its bundles, made when they are first asked for."""
    return Deployed.make(tmp_path_factory.mktemp("deployed"))


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A store that knows nothing; tests take copies."""
    return new_learner(tmp_path_factory.mktemp("blank"))


@pytest.fixture(scope="session")
def taught(blank: Learner, tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A store that knows two tasks, each with adapters; tests take copies."""
    root = tmp_path_factory.mktemp("taught")
    learner = copied(blank, root / "store")
    for k, task in enumerate((FIRST, SECOND)):
        learner.learn(write_looks(root / f"task {k}", task), CONFIG)
    return learner


@pytest.fixture
def learner(taught: Learner, tmp_path: Path) -> Learner:
    """A copy of the store that knows two tasks."""
    return copied(taught, tmp_path / "store")


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that nothing learned from: of every class, and of the first two tasks."""
    root = tmp_path_factory.mktemp("fresh")
    write_looks(root / "every", EVERY, 4, first=100)
    write_looks(root / "two", FIRST | SECOND, 4, first=100)
    return root


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the disk: `stores.PowerCut` plays what a missing fsync costs, and a kill does not need a real one."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
