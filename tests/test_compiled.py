"""Compiled graphs in the place of torch: the same features, only for the adapters they were made with, never mixed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deployed import Deployed, export, graphs_once, snapshot
from small import CONFIG, hashes, write_looks

from edge_cl.compiled import with_compiled
from edge_cl.config import LearnConfig
from edge_cl.export.bundle import Bundle
from edge_cl.features import Encoder
from edge_cl.learner import Learner
from edge_cl.lora import Adapter
from edge_cl.report import LearnReport

NEW = {"h": 7, "i": 3}


def compiled(learner: Learner, bundle: Path) -> Encoder:
    return with_compiled(learner.load()[1], snapshot(learner), bundle)


def pixels(count: int = 5, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


# -- the same numbers ---------------------------------------------------


@pytest.mark.parametrize("layout", ["shared", "merged"])
def test_encodes_as_torch_does(deployed: Deployed, layout: str) -> None:
    learner = deployed.learner()
    _, reference = learner.load()
    encoder = compiled(learner, deployed.bundle(layout))
    assert (encoder.runtime, reference.runtime) == ("onnxruntime", "torch")
    found, expected = encoder.encode(pixels()), reference.encode(pixels())
    np.testing.assert_allclose(found.features, expected.features, atol=1e-4)
    assert isinstance(found.tokens, torch.Tensor)
    torch.testing.assert_close(found.tokens, expected.tokens, atol=1e-4, rtol=1e-4)
    assert not np.array_equal(found.features, expected.features)  # else nothing was compared
    unit = expected.last / np.linalg.norm(expected.last, axis=1, keepdims=True)
    np.testing.assert_allclose(found.last / np.linalg.norm(found.last, axis=1, keepdims=True), unit, atol=1e-4)


def test_tokens_of_two_runtimes_have_two_names(deployed: Deployed) -> None:
    learner = deployed.learner()
    encoder = learner.load()[1]
    bundles = [deployed.bundle(), deployed.bundle("merged")]
    digests = {encoder.prefix_digest(), *(compiled(learner, bundle).prefix_digest() for bundle in bundles)}
    assert len(digests) == 3


def test_other_adapters_are_for_torch(deployed: Deployed) -> None:
    encoder = compiled(deployed.learner(), deployed.bundle())
    for moved in (replace(encoder, base=None), replace(encoder, shared=None)):
        assert moved.runtime == "torch"
        assert not np.array_equal(moved.encode(pixels()).features, encoder.encode(pixels()).features)
        assert moved.prefix_digest() != encoder.prefix_digest()


# -- which bundles ------------------------------------------------------


def _damaged(bundle: Path) -> None:
    path = Bundle.open(bundle).file("prefix")
    path.write_bytes(path.read_bytes()[:-1] + b"?")


CHANGES: dict[str, Callable[[Path], object]] = {
    "missing": shutil.rmtree,
    "damaged": _damaged,
    "no manifest": lambda bundle: (bundle / "manifest.json").unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_a_bundle_that_cannot_be_used(deployed: Deployed, tmp_path: Path, change: Callable[[Path], object]) -> None:
    bundle = deployed.copy(tmp_path / "bundle")
    change(bundle)
    assert compiled(deployed.learner(), bundle).runtime == "torch"


def test_half_precision_is_not_used(deployed: Deployed) -> None:
    assert compiled(deployed.learner(), deployed.bundle(precision="fp16")).runtime == "torch"


@pytest.mark.parametrize("adapter", ["shared", "base"])
def test_a_bundle_of_other_adapters(deployed: Deployed, tmp_path: Path, adapter: str) -> None:
    learner = deployed.learner()
    taken = snapshot(learner)
    there: Adapter = getattr(taken.model, adapter)
    moved = {**there.to_numpy(), "B": there.to_numpy()["B"] + np.float32(1e-3)}
    other = Adapter.from_numpy(there.first, moved, shared=there.shared)
    bundle = deployed.copy(tmp_path / "bundle")
    export(replace(taken, model=replace(taken.model, **{adapter: other})), bundle)
    assert compiled(learner, bundle).runtime == "torch"
    export(taken, bundle)
    assert compiled(learner, bundle).runtime == "onnxruntime"


def test_a_bundle_of_other_weights(deployed: Deployed) -> None:
    learner = deployed.learner()
    other = replace(snapshot(learner), weights_sha256="0" * 64)
    assert with_compiled(learner.load()[1], other, deployed.bundle()).runtime == "torch"


# -- learning -----------------------------------------------------------


def learn(learner: Learner, pictures: Path, out: Path | None, config: LearnConfig = CONFIG) -> LearnReport:
    with graphs_once():
        return learner.learn(pictures, config, export=out)


def test_every_learn_that_exports_uses_what_the_last_one_exported(deployed: Deployed, tmp_path: Path) -> None:
    learner, out = deployed.learner(tmp_path / "store"), tmp_path / "bundle"
    first = learn(learner, write_looks(tmp_path / "first", NEW, 12), out)
    second = learn(learner, write_looks(tmp_path / "second", {"j": 4, "k": 13}, 12), out)
    third = learn(learner, write_looks(tmp_path / "third", {"l": 6, "m": 17}, 12), None)
    assert [report.runtime for report in (first, second, third)] == ["torch", "onnxruntime", "torch"]
    assert second.epochs == CONFIG.epochs
    assert "Pictures encoded by onnxruntime." in second.to_markdown()
    assert second.to_json()["runtime"] == "onnxruntime"


def test_what_is_learned_is_what_torch_would(deployed: Deployed, tmp_path: Path) -> None:
    pictures = write_looks(tmp_path / "new", NEW, 12)
    plain, fast = deployed.learner(tmp_path / "plain"), deployed.learner(tmp_path / "fast")
    full = replace(CONFIG, reduced_precision=False)  # torch would encode random views in bfloat16, graphs do not
    learn(plain, pictures, None, full)
    learn(fast, pictures, deployed.copy(tmp_path / "bundle"), full)
    expected, found = (learner.load()[0].statistics.means for learner in (plain, fast))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not np.array_equal(found, expected)


@pytest.mark.parametrize(
    "change", [{"shared_update": "correct"}, {"readapt_factor": 0.5}, {"memory_mb": 1e5}], ids=lambda c: next(iter(c))
)
def test_a_learn_that_torch_encodes(deployed: Deployed, tmp_path: Path, change: dict[str, object]) -> None:
    """One that moves the shared adapter, one that shapes the base branch anew, one with limited memory."""
    learner, out = deployed.learner(tmp_path / "store"), deployed.copy(tmp_path / "bundle")
    config = replace(CONFIG, **change)  # type: ignore[arg-type]
    assert learn(learner, write_looks(tmp_path / "new", NEW, 12), out, config).runtime == "torch"


class Interruption(BaseException):
    pass


def interrupted(stage: str, done: int, total: int) -> None:
    if stage == "train":
        raise Interruption


@pytest.mark.parametrize("lost", [False, True], ids=["bundle there", "bundle lost"])
def test_an_interrupted_learn_never_mixes_runtimes(deployed: Deployed, tmp_path: Path, lost: bool) -> None:
    """It goes on with the same graphs, or begins anew with torch: the bits are those of an uninterrupted learn."""
    pictures, out = write_looks(tmp_path / "new", NEW, 12), deployed.copy(tmp_path / "bundle")
    whole, broken = deployed.learner(tmp_path / "whole"), deployed.learner(tmp_path / "broken")
    learn(whole, pictures, None if lost else deployed.copy(tmp_path / "other"))
    with pytest.raises(Interruption):
        broken.learn(pictures, CONFIG, export=out, progress=interrupted)
    if lost:
        shutil.rmtree(out)
    steps: list[str] = []
    with graphs_once():
        broken.learn(pictures, CONFIG, export=out, progress=lambda stage, done, total: steps.append(stage))
    assert ("prefix" in steps) is lost
    assert hashes(broken.store.head) == hashes(whole.store.head)
