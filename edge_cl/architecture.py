"""Building a backbone: which timm vision transformers are supported, and how weights are fitted to them."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from edge_cl.backbone import Backbone
from edge_cl.errors import BackboneError, did_you_mean
from edge_cl.preprocess import Preprocess

# Arguments of `timm.create_model` itself: some name files and addresses to load from.
_NOT_OVERRIDES = {
    name for name, p in inspect.signature(timm.create_model).parameters.items() if p.kind is not p.VAR_KEYWORD
}

MOST_PATCHES = 256**2  # of an input: their embeddings are held before anything else is known of what it takes
FINER = 1.5  # side of the input on which a backbone teaches itself, in input sizes


@dataclass(frozen=True)
class BackboneSpec:
    """What rebuilds a backbone, together with its weights.

    Attributes:
        name: timm architecture name, or the name of the backbone shipped with the package.
        image_size: side of the input, pixels.
        split: number of blocks in the prefix.
        preprocess: how pictures become input.
        overrides: further arguments of the timm model.
        patch_stride: pixels from one patch to the next; None: a patch's side, so that none overlap.
    """

    name: str
    image_size: int
    split: int
    preprocess: Preprocess
    overrides: Mapping[str, Any] = field(default_factory=dict)
    patch_stride: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the specification as plain JSON values: without a stride what it was before there were any."""
        stride = {} if self.patch_stride is None else {"patch_stride": self.patch_stride}
        return {
            "name": self.name,
            "image_size": self.image_size,
            "split": self.split,
            "preprocess": self.preprocess.to_json(),
            "overrides": dict(self.overrides),
            **stride,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BackboneSpec:
        """Read what `to_json` wrote."""
        return cls(**{**values, "preprocess": Preprocess.from_json(values["preprocess"])})


def build(spec: BackboneSpec, weights: Mapping[str, Tensor]) -> Backbone:
    """Build a frozen backbone from its specification and weights.

    Position embeddings are resampled to the input size; a classification head among the weights is left out. The other
    weights are held, not copied, where they are of the backbone's type: beside them it takes no memory.

    Raises:
        BackboneError: an unknown or unsupported architecture, or weights that do not fit it.
    """
    with torch.device("meta"):
        vit = _create(spec)
    belong = "Name the architecture that they belong to with --backbone."
    try:
        state = dict(checkpoint_filter_fn(dict(weights), vit))
    except (RuntimeError, ValueError, IndexError) as error:  # embeddings of another form than timm resamples
        raise BackboneError(f"The weights do not fit {spec.name}: {error}.", mend=belong) from error
    wanted = vit.state_dict()
    heads = ("head.", "head_dist.", "fc.")
    extra = [key for key in state if key not in wanted and not key.startswith(heads)]
    missing = [key for key in wanted if key not in state]
    wrong = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if missing or wrong or extra:
        faults = [*(f"missing {key}" for key in missing), *wrong, *(f"unexpected {key}" for key in extra)]
        raise BackboneError(
            f"The weights do not fit {spec.name}: {'; '.join(faults[:6])}"
            + (f" and {len(faults) - 6} more." if len(faults) > 6 else "."),
            mend=belong,
        )
    vit.load_state_dict({key: state[key].to(wanted[key].dtype).contiguous() for key in wanted}, assign=True)
    return Backbone(vit, spec.split, weights.get("pos_embed"))  # a file of another origin names them otherwise


def finer_size(backbone: Backbone, image_size: int) -> int | None:
    """Return the side of an input that shows a backbone more than its own, pixels: `FINER` times as large.

    It is no larger than what the backbone was pretrained on; None where that leaves nothing to gain, or is not known
    because its position embeddings are not one of each patch of a square.
    """
    vit, positions = backbone.vit, backbone.positions
    if positions is None:
        return None
    cells = positions.shape[1] - (0 if vit.no_embed_class else vit.num_prefix_tokens)
    side, patch = math.isqrt(cells), backbone.patch
    size = min(side * patch, int(FINER * image_size) // patch * patch)
    return size if side**2 == cells and size > image_size else None


def at_size(backbone: Backbone, spec: BackboneSpec, image_size: int) -> Backbone:
    """Return the bare backbone for inputs of another size; all weights but the position embeddings are the same."""
    assert backbone.positions is not None
    weights = dict(backbone.vit.state_dict())
    weights["pos_embed"] = backbone.positions.to(weights["pos_embed"])
    return build(replace(spec, image_size=image_size), weights)


def stride_of(spec: BackboneSpec) -> int:
    """Return the pixels from one patch to the next."""
    with torch.device("meta"):
        return spec.patch_stride or int(_create(spec).patch_embed.patch_size[0])


def patches_of(backbone: Backbone, image_size: int) -> int:
    """Return the number of patches that a backbone sees of an input of some size, pixels."""
    (stride, _) = backbone.vit.patch_embed.proj.stride
    return ((image_size - backbone.patch) // int(stride) + 1) ** 2


def build_empty(spec: BackboneSpec) -> Backbone:
    """Build a backbone whose weights are still to be loaded."""
    return Backbone(_create(spec), spec.split)


def _create(spec: BackboneSpec) -> VisionTransformer:
    if not timm.is_model(spec.name):
        raise BackboneError(
            f"timm knows no architecture {spec.name!r}.",
            mend=did_you_mean(spec.name, [*timm.list_models("*vit*"), *timm.list_models("deit*")]),
        )
    if foreign := sorted(_NOT_OVERRIDES & set(spec.overrides)):
        raise BackboneError(
            f"The specification of {spec.name} would have timm fetch or read files: {', '.join(foreign)}.",
            mend="Take these out of its overrides: weights come from the store or bundle alone.",
        )
    try:
        vit = timm.create_model(spec.name, img_size=spec.image_size, num_classes=0, **spec.overrides)
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise BackboneError(
            f"{spec.name} cannot be built for {spec.image_size} px: {error}.",
            mend="Choose a plain ViT (vit_* or deit_*) and an --image-size that its patch size divides.",
        ) from error
    if not isinstance(vit, VisionTransformer) or not all(map(_has_fused_projection, vit.blocks)):
        raise BackboneError(
            f"{spec.name} is not a plain vision transformer with fused query-key-value projections.",
            mend="Choose a vit_* or deit_* model, for example vit_tiny_patch16_224.",
        )
    (patch, _), depth = vit.patch_embed.patch_size, len(vit.blocks)
    if spec.image_size % patch:
        raise BackboneError(
            f"{spec.name} has patches of {patch} px, which do not divide {spec.image_size} px.",
            mend=f"Choose an --image-size that is a multiple of {patch}.",
        )
    if not 0 < spec.split < depth:
        raise BackboneError(
            f"Cannot split the {depth} blocks of {spec.name} after block {spec.split}.",
            mend=f"Split between 1 and {depth - 1}.",
        )
    if spec.patch_stride is not None:
        _overlap(vit, spec.image_size, spec.patch_stride)
    if (patches := vit.patch_embed.num_patches) > MOST_PATCHES:
        raise BackboneError(
            f"{spec.name} would see {patches} patches of {spec.image_size} px; {MOST_PATCHES} are the most.",
            mend=f"Choose a smaller --image-size{', or a wider --patch-stride' if spec.patch_stride else ''}.",
        )
    return vit


def _overlap(vit: VisionTransformer, image_size: int, stride: int) -> None:
    """Have the patches of an image overlap: one every `stride` pixels, as far as whole ones fit."""
    embed = vit.patch_embed
    patch = embed.patch_size[0]
    if not isinstance(embed, PatchEmbed):
        raise BackboneError("This backbone cuts its patches from the features of another.", mend="Give no stride.")
    if not isinstance(stride, int) or not 0 < stride <= patch:
        raise BackboneError(
            f"Patches of {patch} px cannot lie {stride} px apart.", mend=f"Choose a stride between 1 and {patch}."
        )
    vit.set_input_size(((image_size - patch) // stride + 1) * patch)  # an input of so many patches without overlap
    embed.img_size, embed.proj.stride = (image_size, image_size), (stride, stride)


def _has_fused_projection(block: nn.Module) -> bool:
    return isinstance(getattr(getattr(block, "attn", None), "qkv", None), nn.Linear)
