"""The backbones that `--backbone list` shows are what timm and the shipped file's sidecar say they are."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from small import edge_cl

from edge_cl.architecture import BackboneSpec, build
from edge_cl.catalogue import Choice, choices
from edge_cl.config import BACKBONES_DIR, SHIPPED
from edge_cl.weights import find_backbone


def by_name(choice: Choice) -> str:
    return choice.name


def test_the_shipped_one_comes_first_and_matches_its_file() -> None:
    first = choices()[0]
    facts = json.loads((BACKBONES_DIR / f"{SHIPPED}.json").read_text())
    vit = timm.create_model(facts["model"], num_classes=0, **facts["kwargs"])
    assert (first.name, first.picture_px) == (SHIPPED, facts["image_size"])
    assert first.parameters_m == round(sum(p.numel() for p in vit.parameters()) / 1e6, 1)
    assert find_backbone(first.name).path.is_file()


@pytest.mark.parametrize("choice", choices()[1:], ids=by_name)
def test_the_others_are_timm_s(choice: Choice) -> None:
    config = timm.get_pretrained_cfg(choice.name, allow_unregistered=False)
    assert config is not None
    assert config.hf_hub_id
    assert (choice.picture_px, choice.licence) == (config.input_size[-1], config.license)
    with torch.device("meta"):
        vit = timm.create_model(choice.name, num_classes=0)
    assert choice.parameters_m == round(sum(p.numel() for p in vit.parameters()) / 1e6, 1)


@pytest.mark.parametrize("choice", [c for c in choices()[1:] if c.parameters_m < 50], ids=by_name)
def test_the_others_make_a_backbone(choice: Choice) -> None:
    vit = timm.create_model(choice.name, img_size=56 if "14" in choice.name else 64, num_classes=0)
    size = int(vit.patch_embed.img_size[0])
    spec = find_backbone(choice.name, BACKBONES_DIR / f"{SHIPPED}.safetensors", size).spec
    assert spec == BackboneSpec(choice.name, size, 6, spec.preprocess)
    assert build(spec, vit.state_dict()).depth == 12


@pytest.mark.parametrize("verb", [["init"], ["learn", "--new-classes", "nowhere"]], ids=["init", "learn"])
def test_list_shows_every_choice_whole(verb: list[str]) -> None:
    value = edge_cl(*verb, "--backbone", "list", "--json").json
    assert [row["name"] for row in value["backbones"]] == [choice.name for choice in choices()]
    assert all(row["cpu_ms"] > 0 for row in value["backbones"])
    shown = edge_cl(*verb, "--backbone", "list")
    assert (shown.code, "Any other plain timm ViT" in shown.err) == (0, True)
    lines = shown.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(choice.name + " ") for line in lines) for choice in choices())
