from __future__ import annotations

import timm
import torch

from edge_cl.backbone import Backbone
from edge_cl.export.merge import merge_adapters
from edge_cl.lora import Adapter


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=4, num_heads=3, num_classes=0)


def test_merged_weights_answer_like_the_adapters() -> None:
    plain, generator = vit(), torch.Generator().manual_seed(1)
    backbone = Backbone(vit(), split=2)
    shared = Adapter.new_shared(2, 48, 4, generator)
    task = Adapter.new_task(2, 2, 48, 4, generator)
    for adapter in (shared, task):
        adapter.B.data.normal_(generator=generator)
    pixels = torch.randn(3, 3, 32, 32, generator=generator)
    with torch.no_grad():
        adapted = backbone.final_norm(backbone.suffix(backbone.prefix(pixels, shared), task))
        bare = plain.forward_features(pixels)
        plain.load_state_dict(merge_adapters(plain.state_dict(), [shared, task]))
        merged = plain.forward_features(pixels)
    assert torch.allclose(merged, adapted, atol=1e-4)
    assert not torch.allclose(merged, bare, atol=1e-2)


def test_only_adapted_weights_change() -> None:
    weights = vit().state_dict()
    task = Adapter.new_task(2, 2, 48, 4, torch.Generator().manual_seed(1))
    task.B.data.fill_(0.1)
    merged = merge_adapters(weights, [task])
    changed = {name for name in weights if not torch.equal(weights[name], merged[name])}
    assert changed == {"blocks.2.attn.qkv.weight", "blocks.3.attn.qkv.weight"}
    width = 48
    for name in changed:  # the key rows stay
        assert torch.equal(weights[name][width : 2 * width], merged[name][width : 2 * width])
