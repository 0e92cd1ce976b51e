"""A store with three tasks on a vision transformer of three blocks, and its bundles, each graph exported once."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import onnx
from small import BACKBONE, CONFIG, IMAGE_SIZE, picture, write_looks

from edge_cl.backbone import Backbone
from edge_cl.export import graphs
from edge_cl.export.exporter import Exported, Snapshot, export_bundle
from edge_cl.learner import Learner
from edge_cl.preprocess import Preprocess
from edge_cl.runtime import Classifier

TASKS = ({"b": 0, "d": 5}, {"a": 9, "c": 14, "e": 2}, {"f": 11, "g": 16})
LOOK = {name: look for task in TASKS for name, look in task.items()}
TINY: dict[str, Any] = {"depth": 3}  # what makes timm's model of six blocks smaller
SOFT = 2000.0  # temperature
MAKERS = {"prefix_graph": graphs.prefix_graph, "suffix_graph": graphs.suffix_graph}
MADE: dict[Any, onnx.ModelProto] = {}  # graphs, by all that decides them
Pixels = npt.NDArray[np.uint8]


def learner_on(root: Path, name: str = BACKBONE, image_size: int = IMAGE_SIZE, **arguments: Any) -> Learner:
    """Make a store around a timm model with random weights, split after its first block."""
    import timm
    import torch
    from safetensors.torch import save_file

    from edge_cl.architecture import BackboneSpec, build
    from edge_cl.config import LearnConfig
    from edge_cl.model import Model
    from edge_cl.statistics import Statistics
    from edge_cl.store import Store

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = timm.create_model(name, img_size=image_size, num_classes=0, **arguments)
        state = {key: value + 0.05 * torch.randn(value.shape) for key, value in vit.state_dict().items()}
    save_file(state, root / "weights.safetensors")
    spec = BackboneSpec(name, image_size, 1, Preprocess(image_size), arguments)
    backbone = build(spec, state)
    width = backbone.depth * backbone.summaries_per_block * backbone.width

    def fill(transaction: Any) -> None:
        transaction.put_file("backbone", root / "weights.safetensors")
        Model(spec, LearnConfig(), Statistics.empty(width)).save(transaction)

    return Learner(Store.create(root / "store", record={"classes": []}, fill=fill), device="cpu")


def snapshot(learner: Learner, number: int | None = None) -> Snapshot:
    """Return a version of a store as it is exported."""
    version = learner.store.head if number is None else learner.store.version(number)
    model, encoder = learner.load(version)
    return Snapshot(model, encoder.backbone, version.objects["backbone"].sha256, version.number)


@contextmanager
def graphs_once() -> Iterator[None]:
    """Make a graph of the same weights and sizes once in a run of the tests: torch takes seconds for each."""

    def once(name: str, backbone: Backbone, size: Preprocess | int | None) -> onnx.ModelProto:
        digest = hashlib.sha256(repr(backbone.vit).encode())
        for value in backbone.vit.state_dict().values():
            digest.update(value.numpy().tobytes())
        key = (name, digest.digest(), backbone.split, size)
        if key not in MADE:
            MADE[key] = MAKERS[name](backbone, size)  # type: ignore[operator]
        return MADE[key]

    with ExitStack() as stack:
        for name in MAKERS:
            stack.enter_context(mock.patch.object(graphs, name, partial(once, name)))
        yield


def export(taken: Snapshot, out: Path, layout: str = "shared", precision: str = "fp32") -> Exported:
    """Export all of a bundle but `classifier.onnx`."""
    with graphs_once():
        return export_bundle(taken, out, layout=layout, precision=precision, classifier=False)


@dataclass
class Deployed:
    """Copies of one store and of its bundles; what is under `root` itself must stay as it is."""

    root: Path
    made: dict[tuple[str, str], Exported] = field(default_factory=dict)

    @classmethod
    def make(cls, root: Path) -> Deployed:
        """Teach a store three tasks, versions 1 to 3; the first is answered by the base branch alone.

        Version 4 answers less surely than such easy pictures let it: answers of 0 and 1 would hide differences.
        """
        learner = learner_on(root, **TINY)
        for i, looks in enumerate(TASKS):
            learner.learn(write_looks(root / f"pictures {i}", looks, 12), CONFIG, task=f"task {i}")
        model = learner.load()[0]
        assert set(model.adapters) == {1, 2}
        branches = {t: replace(b, temperature=SOFT, weight=0.5) for t, b in model.branches.items()}
        with learner.store.write("soften") as transaction:
            replace(model, temperature=SOFT, branches=branches).save(transaction)
            transaction.keep("backbone")
            transaction.commit(kind="soften", record={})
        return cls(root)

    def learner(self, path: Path | None = None) -> Learner:
        """Open the store to read it, or a copy of it at `path`."""
        store = self.root / "store" if path is None else shutil.copytree(self.root / "store", path)
        return Learner.open(store, device="cpu")

    def bundle(self, layout: str = "shared", precision: str = "fp32") -> Path:
        """Return the bundle of version 4; shared fp32 has `classifier.onnx` too, the others were shared fp32 once."""
        key = (layout, precision)
        out = self.root / f"{layout} {precision}"
        if key not in self.made:
            taken = snapshot(self.learner())
            if key == ("shared", "fp32"):
                with graphs_once():
                    self.made[key] = export_bundle(taken, out)
            else:
                shutil.copytree(self.bundle(), out)
                self.made[key] = export(taken, out, layout, precision)
        return out

    def copy(self, path: Path, layout: str = "shared", precision: str = "fp32") -> Path:
        """Return a copy of a bundle."""
        return shutil.copytree(self.bundle(layout, precision), path)


def frames(*names: str, seed: int = 500, side: int = 40) -> list[Pixels]:
    """Return a picture of each class, as a camera gives it."""
    return [np.asarray(picture(LOOK[name], seed + i, side)) for i, name in enumerate(names)]


def posterior(classifier: Classifier, pixels: Pixels) -> tuple[Any, Any]:
    """Return the class probabilities and base scores of input pixels (B, S, S, 3)."""
    recogniser = classifier._loaded.recogniser
    encoding = recogniser.backend.encode(pixels)
    return recogniser.posterior(encoding), recogniser.head.discriminant.scores(encoding.features)
