"""Graphs that do not compute what the backbone does in torch are not put in force."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deployed import Deployed, snapshot

from edge_cl.backbone import Backbone
from edge_cl.export import graphs
from edge_cl.export.bundle import MANIFEST, BundleError
from edge_cl.export.exporter import export_bundle
from edge_cl.runtime import Classifier

LARGE = 1e6  # more than half precision holds


def test_half_precision_that_a_backbone_leaves_is_refused(deployed: Deployed, tmp_path: Path) -> None:
    shot = snapshot(deployed.learner())
    backbone = copy.deepcopy(shot.backbone)
    mlp = backbone.blocks[1].mlp
    with torch.no_grad():  # its hidden values are large, and what comes out is as before
        mlp.fc1.weight *= LARGE
        mlp.fc1.bias *= LARGE
        mlp.fc2.weight /= LARGE
    shot = replace(shot, backbone=backbone, weights_sha256="0" * 64)
    with pytest.raises(BundleError, match="are inf off those of torch, more than 3e-02") as refused:
        export_bundle(shot, tmp_path / "out", precision="fp16", classifier=False)
    assert refused.value.mend.endswith("--precision fp32")
    assert not (tmp_path / "out" / MANIFEST).exists()
    assert export_bundle(shot, tmp_path / "out", precision="fp32", classifier=False).graphs_built


@pytest.mark.parametrize("layout", ["shared", "merged"])
@pytest.mark.parametrize("part", ["patch_embed.proj.bias", "blocks.2.mlp.fc2.bias"], ids=["prefix", "suffix"])
def test_wrong_graphs_leave_the_bundle_in_force(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, part: str
) -> None:
    shot, out, prepared = snapshot(deployed.learner()), tmp_path / "out", graphs.prepared
    export_bundle(shot, out, precision="fp16", classifier=False)
    before = (out / MANIFEST).read_bytes()

    def wrong(backbone: Backbone, precision: str) -> Backbone:
        result = prepared(backbone, precision)
        with torch.no_grad():
            result.vit.get_parameter(part)[0] += 1  # of all it would be a shift, which layer norms take out
        return result

    monkeypatch.setattr(graphs, "prepared", wrong)
    with pytest.raises(BundleError, match=r"features are \d\.\de[+-]\d\d off those of torch") as refused:
        export_bundle(shot, out, layout=layout, classifier=False)
    assert "another version of torch" in refused.value.mend
    assert (out / MANIFEST).read_bytes() == before
    assert Classifier(out).classes
