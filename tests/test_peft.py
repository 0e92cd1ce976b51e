"""Adapters for PEFT: what PEFT itself makes of them on the same timm model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import timm
import torch
from deployed import TINY, Deployed, learner_on
from small import BACKBONE, CONFIG, IMAGE_SIZE, edge_cl, picture, write_looks
from torch import Tensor

from edge_cl.errors import EdgeClError
from edge_cl.export.bundle import BundleError
from edge_cl.export.peft import export_peft


def plain_vit(deployed: Deployed) -> Any:
    """Build timm's own model, without any code of ours, with the store's weights."""
    vit = timm.create_model(BACKBONE, img_size=IMAGE_SIZE, num_classes=0, **TINY).eval()
    learner = deployed.learner()
    vit.load_state_dict(learner.load()[1].backbone.vit.state_dict())
    return vit


@pytest.fixture(scope="module")
def pixels(deployed: Deployed) -> Tensor:
    spec = deployed.learner().load()[0].spec.preprocess
    return torch.from_numpy(spec.normalise(np.stack([np.asarray(picture(k, 9, IMAGE_SIZE)) for k in range(6)])))


@torch.no_grad()
@pytest.mark.parametrize("merged", [False, True])
def test_peft_computes_what_we_compute(deployed: Deployed, pixels: Tensor, tmp_path: Path, merged: bool) -> None:
    model, encoder = deployed.learner().load()
    folders = export_peft(model, tmp_path)
    assert [folder.name for folder in folders] == ["base", "task-1", "task-2"]
    adapters = {"base": model.base, "task-1": model.adapters[1], "task-2": model.adapters[2]}
    bare, seen = plain_vit(deployed).forward_features(pixels), []
    for folder in folders:
        loaded = peft.PeftModel.from_pretrained(plain_vit(deployed), folder)
        vit = loaded.merge_and_unload() if merged else loaded.base_model.model
        found = vit.forward_features(pixels)
        tokens = encoder.backbone.prefix(pixels, model.shared)
        expected = encoder.backbone.final_norm(encoder.backbone.suffix(tokens, adapters[folder.name]))
        assert torch.allclose(found, expected, atol=1e-4)
        assert not torch.allclose(found, bare, atol=1e-2)
        seen.append(found)
    assert all(not torch.allclose(a, b, atol=1e-2) for i, a in enumerate(seen) for b in seen[:i])


def test_several_adapters_on_one_model(deployed: Deployed, pixels: Tensor, tmp_path: Path) -> None:
    """As a user of PEFT has them: loaded side by side and switched."""
    base, *others = export_peft(deployed.learner().load()[0], tmp_path)
    loaded = peft.PeftModel.from_pretrained(plain_vit(deployed), base, adapter_name="base")
    loaded.load_adapter(others[0], "one")
    with torch.no_grad():
        before = loaded.base_model.model.forward_features(pixels)
        loaded.set_adapter("one")
        other = loaded.base_model.model.forward_features(pixels)
        loaded.set_adapter("base")
        assert torch.equal(loaded.base_model.model.forward_features(pixels), before)
    assert not torch.allclose(other, before, atol=1e-2)


def test_adapters_of_two_ranks(deployed: Deployed, pixels: Tensor, tmp_path: Path) -> None:
    """PEFT takes a rank and a scale by layer: here 20 in the prefix, and 4 after."""
    from dataclasses import replace

    from edge_cl.lora import Adapter

    model, encoder = deployed.learner().load()
    narrow = Adapter.new_task(1, 2, 64, 2, torch.Generator().manual_seed(0))
    narrow.B.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    (folder, *_) = export_peft(replace(model, base=narrow), tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 20
    assert set(config["rank_pattern"].values()) == set(config["alpha_pattern"].values()) == {4}
    loaded = peft.PeftModel.from_pretrained(plain_vit(deployed), folder)
    with torch.no_grad():
        found = loaded.base_model.model.forward_features(pixels)
        tokens = encoder.backbone.prefix(pixels, model.shared)
        expected = encoder.backbone.final_norm(encoder.backbone.suffix(tokens, narrow))
    assert torch.allclose(found, expected, atol=1e-4)


def test_command(deployed: Deployed, tmp_path: Path) -> None:
    store = deployed.root / "store"
    for _ in range(2):  # over itself
        run = edge_cl("export", tmp_path / "out", "--format", "peft", "--store", store, "--json")
        folders = [str(tmp_path / "out" / name) for name in ("base", "task-1", "task-2")]
        assert run.json == {"path": str(tmp_path / "out"), "format": "peft", "version": 4, "folders": folders}
    (tmp_path / "out" / "base").rename(tmp_path / "out" / "task-7")  # of a task that was forgotten since
    run = edge_cl("export", tmp_path / "out", "--format", "peft", "--store", store)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["base", "task-1", "task-2"]
    assert "base, task-1, task-2" in " ".join(run.err.split())


def test_no_adapters(tmp_path: Path) -> None:
    from dataclasses import replace

    learner = learner_on(tmp_path, depth=2)
    learner.learn(write_looks(tmp_path / "one", {"b": 0, "a": 9}, 3), replace(CONFIG, method="prototype"))
    with pytest.raises(EdgeClError, match="No adapter has been trained yet"):
        learner.export(tmp_path / "out", format="peft")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("other", ["notes.txt", "task-1/notes.txt", "pictures/"])
def test_a_directory_of_something_else_is_left_alone(deployed: Deployed, tmp_path: Path, other: str) -> None:
    (tmp_path / "out" / other).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "out" / other).mkdir() if other.endswith("/") else (tmp_path / "out" / other).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BundleError, match="holds other files than adapters for PEFT"):
        deployed.learner().export(tmp_path / "out", format="peft")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_in_the_way(deployed: Deployed, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(BundleError, match=r"out cannot be written: "):
        deployed.learner().export(tmp_path / "out", format="peft")
    assert (tmp_path / "out").read_text() == "x"
