"""Backbones: prefix and suffix make up timm's own model, and what cannot be a backbone is refused with the reason."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from small import BACKBONE, random_weights
from torch import Tensor, nn

from edge_cl.architecture import BackboneSpec, at_size, build, build_empty, finer_size, patches_of
from edge_cl.backbone import Backbone
from edge_cl.errors import BackboneError
from edge_cl.learner import Learner
from edge_cl.lora import Adapter
from edge_cl.preprocess import Preprocess
from edge_cl.weights import find_backbone, read_weights

SMALL = {"embed_dim": 32, "depth": 4, "num_heads": 2}


@dataclass(frozen=True)
class Case:
    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    image_size: int = 32
    class_token: bool = True
    prefix_tokens: int = 1
    norm: str = "norm"

    @property
    def spec(self) -> BackboneSpec:
        overrides = {**SMALL, **self.overrides}
        return BackboneSpec(self.name, self.image_size, 2, Preprocess(self.image_size), overrides)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"img_size": self.image_size, **self.spec.overrides}

    def reference(self, weights: dict[str, Tensor]) -> Any:
        vit = timm.create_model(self.name, num_classes=0, **self.arguments)
        vit.load_state_dict(weights)
        return vit.eval()


AVERAGE = {"class_token": False, "global_pool": "avg"}
CASES = {
    "class-token": Case("vit_tiny_patch16_224"),
    "deit3": Case("deit3_small_patch16_224"),  # no position embedding for the class token, LayerScale
    "registers": Case("vit_small_patch14_reg4_dinov2", image_size=28, prefix_tokens=5),
    "registers-average": Case(
        "vit_medium_patch16_reg4_gap_256", class_token=False, prefix_tokens=4, norm="fc_norm", overrides={}
    ),
    "average": Case("vit_tiny_patch16_224", AVERAGE, class_token=False, prefix_tokens=0, norm="fc_norm"),
    "average-final-norm": Case(
        "vit_tiny_patch16_224", {**AVERAGE, "fc_norm": False}, class_token=False, prefix_tokens=0
    ),
    "average-beside-class-token": Case("vit_tiny_patch16_224", {"global_pool": "avg"}, norm="fc_norm"),
    "layer-scale": Case("vit_tiny_patch16_224", {"init_values": 0.1}),
    "qk-norm": Case("vit_tiny_patch16_224", {"qk_norm": True}),
    "no-qkv-bias": Case("vit_tiny_patch16_224", {"qkv_bias": False}),
    "distilled": Case("deit_tiny_distilled_patch16_224", prefix_tokens=2),
    "pre-norm": Case("vit_base_patch16_clip_224"),
    "attention-pool": Case("vit_base_patch16_siglip_224", class_token=False, prefix_tokens=0),
    "drop": Case("vit_tiny_patch16_224", {"proj_drop_rate": 0.5, "drop_path_rate": 0.5, "pos_drop_rate": 0.5}),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@torch.no_grad()
def test_halves_make_up_timm_s_model(case: Case) -> None:
    weights = random_weights(case.name, **case.arguments)
    backbone, reference = build(case.spec, weights).train(), case.reference(weights)
    pixels = torch.randn(2, 3, case.image_size, case.image_size, generator=torch.Generator().manual_seed(0))
    summaries: list[Tensor] = []
    after = backbone.suffix(backbone.prefix(pixels, summaries=summaries), summaries=summaries)
    normed = backbone.final_norm(after)

    norm = getattr(reference, case.norm)
    assert isinstance(norm, nn.LayerNorm)
    blocks = reference.forward_intermediates(
        pixels, norm=False, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
    )
    assert len(summaries) == len(blocks) == backbone.depth == 4
    for summary, block in zip(summaries, blocks, strict=True):
        patches, special = block if isinstance(block, tuple) else (block, torch.empty(2, 0, 32))
        assert special.shape[1] == case.prefix_tokens
        expected = [norm(patches).mean(1)]
        if case.class_token:
            expected.insert(0, norm(special[:, 0]))
        assert backbone.summaries_per_block == len(expected)
        torch.testing.assert_close(summary, torch.stack(expected, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.classify_token(after), summaries[-1][:, 0], rtol=1e-5, atol=1e-5)

    features = reference.forward_features(pixels)  # after timm's final norm, if that comes before the pooling
    torch.testing.assert_close(normed if case.norm == "norm" else after, features, rtol=1e-5, atol=1e-5)
    reference.norm = nn.Identity()
    torch.testing.assert_close(after, reference.forward_features(pixels), rtol=1e-5, atol=1e-5)
    if case.class_token and case.norm == "norm" and case.name != "deit_tiny_distilled_patch16_224":
        pooled = reference.forward_head(features, pre_logits=True)
        torch.testing.assert_close(backbone.classify_token(after), pooled, rtol=1e-5, atol=1e-5)


def test_backbone_is_frozen(case: Case) -> None:
    backbone = build(case.spec, random_weights(case.name, **case.arguments)).train()
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    shared, task = (
        Adapter.new_shared(2, 32, 2, torch.Generator().manual_seed(0)),
        Adapter.new_task(2, 2, 32, 2, torch.Generator().manual_seed(0)),
    )
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, case.image_size, case.image_size, generator=generator)
    tokens = backbone.classify_token(backbone.suffix(backbone.prefix(pixels, shared), task))
    direction = torch.randn(tokens.shape, generator=generator)  # the plain sum of a normed token hardly moves
    (tokens * direction).sum().backward()
    assert all(p.grad is None for p in backbone.parameters())
    for adapter in (shared, task):
        assert adapter.B.grad is not None
        assert adapter.B.grad.abs().amax((2, 3)).min() > 0  # every block's query and value feel the loss


def test_delta_is_withdrawn_when_a_block_fails(tiny_backbone: Backbone) -> None:
    task = Adapter.new_task(3, 3, 64, 2, torch.Generator().manual_seed(0))
    with pytest.raises(RuntimeError):
        tiny_backbone.suffix(torch.randn(1, 5, 63), task)
    assert all(block.attn.qkv.low_rank is None for block in tiny_backbone.blocks)


@pytest.mark.parametrize("name", ["class-token", "deit3", "registers", "registers-average", "average", "distilled"])
@torch.no_grad()
def test_at_another_size_it_is_the_backbone_built_for_it(name: str) -> None:
    """From the position embeddings as pretrained, not from those resampled before; all other weights are the same."""
    case, patch = CASES[name], CASES[name].image_size // 2
    weights = random_weights(case.name, **{**case.arguments, "img_size": 4 * patch})
    spec = replace(case.spec, image_size=2 * patch)
    small, whole = build(spec, weights), build(replace(spec, image_size=4 * patch), weights)
    again = at_size(small, spec, 4 * patch)
    pixels = torch.randn(1, 3, 4 * patch, 4 * patch, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.prefix(pixels), whole.prefix(pixels))
    kept = small.vit.state_dict()
    for key, value in again.vit.state_dict().items():
        assert key == "pos_embed" or value.data_ptr() == kept[key].data_ptr(), key
    assert finer_size(small, 2 * patch) == 3 * patch  # half as much again
    assert finer_size(build(replace(spec, image_size=3 * patch), weights), 3 * patch) == 4 * patch  # as pretrained
    assert finer_size(whole, 4 * patch) is None
    assert finer_size(Backbone(small.vit, 2), 2 * patch) is None  # nobody knows what it was pretrained on


@pytest.mark.parametrize("name", ["class-token", "deit3", "registers", "registers-average", "average", "distilled"])
@torch.no_grad()
def test_position_embeddings_are_resampled(name: str) -> None:
    case = CASES[name]
    weights = random_weights(case.name, **case.arguments)
    size = case.image_size * 2
    spec = BackboneSpec(case.name, size, 2, Preprocess(size), case.spec.overrides)
    backbone, reference = build(spec, weights), case.reference(weights)
    reference.set_input_size((size, size))
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    reference.norm = nn.Identity()
    after = backbone.suffix(backbone.prefix(pixels))
    assert after.shape == (1, 16 + case.prefix_tokens, 32)
    torch.testing.assert_close(after, reference.forward_features(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["class-token", "deit3", "registers", "average"])
@pytest.mark.parametrize(("patch_stride", "side"), [(None, 2), (1, 1), (0.75, 2), (0.5, 3), (0.4, 3)])
@torch.no_grad()
def test_patches_overlap(name: str, patch_stride: float | None, side: int) -> None:
    """A patch's token is that of the same pixels in an input of their own, at the position embedding of its place."""
    case = CASES[name]
    patch = case.image_size // 2
    size = 2 * patch if patch_stride != 1 else patch
    stride = patch_stride and int(patch_stride * patch)
    weights = random_weights(case.name, **case.arguments)
    spec = replace(case.spec, image_size=size, patch_stride=stride)
    backbone = build(spec, weights)
    assert backbone.tokens == backbone.fixed_tokens + side**2 == backbone.fixed_tokens + patches_of(backbone, size)
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = backbone.vit.patch_embed(pixels)
    step = stride or patch
    for row in range(side):
        for column in range(side):
            corner = pixels[..., row * step : row * step + patch, column * step : column * step + patch]
            token = (backbone.vit.patch_embed.proj.weight * corner).sum((1, 2, 3)) + backbone.vit.patch_embed.proj.bias
            torch.testing.assert_close(found[0, row * side + column], token, rtol=1e-4, atol=1e-4)
    plain = build(replace(case.spec, image_size=side * patch), weights)
    assert torch.equal(backbone.vit.pos_embed, plain.vit.pos_embed)
    for wrong in (patch + 1, 0, "14", 3.5):
        with pytest.raises(BackboneError, match=f"Patches of {patch} px cannot lie {wrong} px apart"):
            build(replace(spec, patch_stride=wrong), weights)  # type: ignore[arg-type]
    bigger = at_size(backbone, spec, 4 * patch)
    assert bigger.tokens - bigger.fixed_tokens == patches_of(backbone, 4 * patch) == ((3 * patch) // step + 1) ** 2


@pytest.mark.parametrize("head", ["head.weight", "head_dist.bias", "fc.weight"])
def test_classification_head_is_left_out(head: str) -> None:
    case = CASES["class-token"]
    weights = random_weights(case.name, **case.arguments)
    backbone = build(case.spec, weights | {head: torch.ones(10, 32)})
    assert set(backbone.vit.state_dict()) == set(weights)


def test_half_precision_weights_are_read_as_single() -> None:
    case = CASES["class-token"]
    weights = {key: value.half() for key, value in random_weights(case.name, **case.arguments).items()}
    state = build(case.spec, weights).vit.state_dict()
    assert all(torch.equal(state[key], weights[key].float()) for key in weights)
    assert {value.dtype for value in state.values()} == {torch.float32}


def test_spec_survives_json() -> None:
    spec = replace(CASES["qk-norm"].spec, patch_stride=14)
    assert BackboneSpec.from_json(spec.to_json()) == spec
    plain = replace(spec, patch_stride=None)
    assert BackboneSpec.from_json(plain.to_json()) == plain
    assert "patch_stride" not in plain.to_json()  # nor is it in stores and bundles written earlier: they stay the same


def spec_of(name: str = "vit_tiny_patch16_224", image_size: int = 32, split: int = 2, **more: Any) -> BackboneSpec:
    return BackboneSpec(name, image_size, split, Preprocess(image_size), {**SMALL, **more})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            spec_of("vit_tyni_patch16_224"),
            "timm knows no architecture 'vit_tyni_patch16_224'.\nDid you mean .*vit_tiny_patch16_224",
        ),
        (
            BackboneSpec("resnet18", 32, 2, Preprocess(32)),
            "resnet18 cannot be built for 32 px: .*\nChoose a plain ViT",
        ),
        (spec_of(nonsense=1), "vit_tiny_patch16_224 cannot be built for 32 px: .*nonsense"),
        (spec_of(num_heads=3), "cannot be built for 32 px: .*"),
        (
            BackboneSpec("swin_tiny_patch4_window7_224", 224, 2, Preprocess(224), {"embed_dim": 12}),
            "is not a plain vision transformer .*\nChoose a vit_\\* or deit_\\* model, for example vit_tiny_patch16",
        ),
        (
            BackboneSpec("eva02_tiny_patch14_224", 28, 2, Preprocess(28), SMALL),
            "eva02_tiny_patch14_224 is not a plain vision transformer",
        ),
        (
            BackboneSpec("vit_small_patch16_18x2_224", 32, 2, Preprocess(32), SMALL),  # parallel blocks
            "is not a plain vision transformer with fused query-key-value",
        ),
        (
            spec_of(image_size=33),
            "has patches of 16 px, which do not divide 33 px.\nChoose an --image-size that is a multiple of 16",
        ),
        (spec_of(split=0), "Cannot split the 4 blocks of .* after block 0.\nSplit between 1 and 3."),
        (spec_of(split=4), "Cannot split the 4 blocks of .* after block 4.\nSplit between 1 and 3."),
    ],
)
def test_architectures_are_refused_with_the_reason(spec: BackboneSpec, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        build(spec, {})


def without(weights: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {k: value for k, value in weights.items() if k != key}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: without(w, "norm.bias"),
            "The weights do not fit vit_tiny_patch16_224: missing norm.bias.\nName the",
        ),
        (lambda w: w | {"blocks.4.norm1.bias": w["norm.bias"]}, "fit .*: unexpected blocks.4.norm1.bias.\n"),
        (lambda w: w | {"norm.bias": torch.zeros(33)}, r"fit .*: norm.bias is \(33,\), not \(32,\).\n"),
        (
            lambda w: without(w, "norm.bias") | {"x": w["norm.bias"], "norm.weight": torch.zeros(3)},
            r"fit .*: missing norm.bias; norm.weight is \(3,\), not \(32,\); unexpected x.\n.*--backbone.$",
        ),
        (lambda w: {}, "missing cls_token; .* and 48 more.\n"),
        (lambda w: w | {"pos_embed": w["pos_embed"][:, :3]}, "fit vit_tiny_patch16_224: .*\n.*--backbone.$"),
        (lambda w: w | {"pos_embed": w["pos_embed"][0]}, "fit vit_tiny_patch16_224: .*\n.*--backbone.$"),
    ],
    ids=["missing", "unexpected", "shape", "all", "empty", "no square", "two dimensions"],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    case = CASES["class-token"]
    with pytest.raises(BackboneError, match=message):
        build(case.spec, change(random_weights(case.name, **case.arguments)))


def pickled(path: Path) -> None:
    torch.save({"norm.bias": torch.zeros(3)}, path)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"norm.bias": [0.0]}))


def cut(path: Path) -> None:
    save_file({"norm.bias": torch.zeros(300)}, path)
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    "make", [pickled, plain_pickle, cut, Path.touch, Path.mkdir, lambda path: None], ids=lambda make: make.__name__
)
def test_unreadable_weights_are_refused(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "weights.safetensors"
    make(path)
    with pytest.raises(BackboneError) as error:
        read_weights(path)
    assert error.value.faults[0].startswith(f"Cannot read weights from {path}: ")
    assert error.value.mend == "Pass a whole .safetensors file to --weights; pickled weights are never loaded."


def test_weights_file_is_read_as_it_is(tiny_weights: Path) -> None:
    weights, expected = read_weights(tiny_weights), random_weights(BACKBONE)
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_offline_mode_names_both_ways_on() -> None:
    with pytest.raises(BackboneError) as error:
        find_backbone(BACKBONE)
    (fault,) = error.value.faults
    assert fault.startswith(f"The weights of {BACKBONE} could not be fetched from the hub: ")
    assert len(fault.splitlines()) == 1
    assert "--weights FILE.safetensors" in error.value.mend
    assert "leave out --backbone to use edge_vit_tiny" in error.value.mend


def test_a_model_without_weights_on_the_hub() -> None:
    with pytest.raises(BackboneError, match="There are no weights of vit_base_patch16_gap_224 on the hub"):
        find_backbone("vit_base_patch16_gap_224")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "vit_tiny_patch16_225",
            None,
            "timm knows no model 'vit_tiny_patch16_225'.\nDid you mean .*vit_tiny_patch16_224",
        ),
        ("edge_vit_tyny", None, "timm knows no model 'edge_vit_tyny'.\nDid you mean .*edge_vit_tiny"),
        ("", Path("w.safetensors"), "w.safetensors needs the name of its architecture.\nAdd --backbone NAME."),
        ("edge_vit_tiny", Path("w.safetensors"), "w.safetensors needs the name of its architecture.\n"),
    ],
)
def test_unknown_backbones_are_refused(name: str, weights: Path | None, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        find_backbone(name, weights)


@pytest.mark.parametrize(("asked", "patches"), [(None, 64), (16, 64), (14, 81), (12, 100)])
def test_patches_overlap_if_asked(tiny_weights: Path, asked: int | None, patches: int) -> None:
    for name, weights in ((BACKBONE, tiny_weights), ("", None)):
        source = find_backbone(name, weights, 128, asked)
        assert source.spec.patch_stride == asked
        backbone = build(source.spec, read_weights(source.path))
        assert backbone.tokens == backbone.fixed_tokens + patches


def test_patches_cut_from_features_do_not_overlap(tiny_weights: Path) -> None:
    source = find_backbone("vit_tiny_r_s16_p8_224", tiny_weights, 128)
    assert source.spec.patch_stride is None
    with pytest.raises(BackboneError, match="cuts its patches from the features of another"):
        build_empty(replace(source.spec, patch_stride=2))


@pytest.mark.parametrize(("image_size", "side"), [(None, 160), (64, 64)])
def test_local_weights_take_the_model_s_own_preprocessing(
    tiny_weights: Path, image_size: int | None, side: int
) -> None:
    source = find_backbone(BACKBONE, tiny_weights, image_size)
    preprocess = Preprocess(side, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic", 0.95)
    assert source.spec == BackboneSpec(BACKBONE, side, 3, preprocess)
    assert source.path == tiny_weights
    backbone = build(source.spec, read_weights(tiny_weights))
    assert backbone.prefix(torch.zeros(1, 3, side, side)).shape == (1, (side // 16) ** 2 + 1, 64)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, tiny_weights: Path) -> None:
    weights = read_weights(tiny_weights)
    weights["norm.bias"][3] = torch.nan
    save_file(weights, tmp_path / "damaged.safetensors")
    with pytest.raises(BackboneError, match=r"damaged\.safetensors holds values that are not finite, in norm\.bias\."):
        Learner.init(tmp_path / "store", backbone=BACKBONE, weights=tmp_path / "damaged.safetensors", image_size=32)
    assert not (tmp_path / "store").exists()
