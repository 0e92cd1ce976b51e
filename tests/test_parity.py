"""Graphs that do not compute what the backbone does in torch are not put in force."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deployed import Deployed, snapshot
from small import CONFIG, edge_cl, write_looks

from edge_cl.backbone import Backbone
from edge_cl.export import graphs
from edge_cl.export.bundle import MANIFEST, BundleError, PrecisionError, UnexportedError, read_manifest
from edge_cl.export.exporter import export_bundle
from edge_cl.export.formats import _bundle
from edge_cl.export.reference import TOLERANCE
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
    with pytest.raises(PrecisionError, match="are inf off those of torch, more than 3e-02") as refused:
        export_bundle(shot, tmp_path / "out", precision="fp16", classifier=False)
    assert refused.value.faults[0].startswith("Half precision is too small for this backbone: the features are inf")
    assert refused.value.mend.endswith("--precision fp32")
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    assert export_bundle(shot, tmp_path / "out", precision="fp32", classifier=False).graphs_built


@pytest.mark.parametrize("layout", ["shared", "merged"])
@pytest.mark.parametrize(
    ("part", "fault"),
    [("patch_embed.proj.bias", 1.0), ("blocks.2.mlp.fc2.bias", 1.0), ("blocks.2.mlp.fc2.bias", 0.05)],
    ids=["prefix", "suffix", "less than what half precision rounds"],
)
def test_wrong_graphs_leave_the_bundle_in_force(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, part: str, fault: float
) -> None:
    shot, out, prepared = snapshot(deployed.learner()), tmp_path / "out", graphs.prepared
    export_bundle(shot, out, precision="fp16", classifier=False)
    before = (out / MANIFEST).read_bytes()

    def wrong(backbone: Backbone, precision: str) -> Backbone:
        result = prepared(backbone, precision)
        with torch.no_grad():
            result.vit.get_parameter(part)[0] += fault  # of all it would be a shift, which layer norms take out
        return result

    monkeypatch.setattr(graphs, "prepared", wrong)
    with pytest.raises(BundleError, match=r"features are \d\.\de[+-]\d\d off those of torch") as refused:
        export_bundle(shot, out, layout=layout, classifier=False)
    deviation = float(refused.value.faults[0].split(" off those")[0].split()[-1])
    assert (deviation < TOLERANCE["fp16"]) == (fault < 1)
    assert "another version of torch" in refused.value.mend
    assert (out / MANIFEST).read_bytes() == before
    assert Classifier(out).classes


def test_the_way_out_of_half_precision_after_a_learn(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its command mends it as it stands."""
    learner, out = deployed.learner(tmp_path / "store"), tmp_path / "out"
    learner.export(out, precision="fp16")
    learner.learn(write_looks(tmp_path / "more", {"h": 3}), CONFIG)
    before = sorted(path.name for path in out.iterdir())
    next(out.glob("prefix-*.onnx")).unlink()  # so that the graphs are made anew
    monkeypatch.setitem(TOLERANCE, "fp16", 0.0)
    with pytest.raises(UnexportedError) as refused:
        learner.learn(write_looks(tmp_path / "yet", {"i": 4}), CONFIG, export=out)
    assert sorted(path.name for path in out.iterdir()) == [n for n in before if not n.startswith("prefix-")]
    command = f"edge-cl export {out} --store {tmp_path / 'store'} --precision fp32"
    assert refused.value.mend == command
    assert edge_cl(*command.split()[1:], "--json").json["version"] == learner.store.head.number


def test_a_precision_that_the_board_chose_gives_way(
    deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setitem(TOLERANCE, "fp16", 0.0)
    shot = snapshot(deployed.learner())
    done = _bundle(shot, tmp_path / "chosen", None, None, said.append, lambda: "fp16")
    assert done["precision"] == read_manifest(tmp_path / "chosen").precision == "fp32"
    assert said[1].endswith("They were not put in force. The bundle is made in fp32.")
    with pytest.raises(PrecisionError):  # asked for
        _bundle(shot, tmp_path / "asked", None, "fp16", said.append, lambda: "fp32")
