"""Where a backbone's weights come from: the file shipped with the package, a local file, or the hub, by timm name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from timm.data.config import resolve_data_config
from torch import Tensor

from edge_cl.architecture import BackboneSpec
from edge_cl.config import SHIPPED, WEIGHTS_DIR
from edge_cl.errors import BackboneError, did_you_mean
from edge_cl.preprocess import Preprocess


@dataclass(frozen=True)
class BackboneSource:
    """A backbone that a store can be made with.

    Attributes:
        spec: how to build it.
        data: the bytes of its safetensors file, or
        path: where that file lies.
    """

    spec: BackboneSpec
    data: bytes | None = None
    path: Path | None = None


def find_backbone(name: str = "", weights: Path | None = None, image_size: int | None = None) -> BackboneSource:
    """Find a backbone and its weights.

    Args:
        name: timm name, or "" or the shipped backbone's name for the one that ships with the package.
        weights: local .safetensors file; without it the hub is asked for a timm name's weights.
        image_size: side of the input, pixels; the model's own if not given.

    Raises:
        BackboneError: unknown name, unreachable hub, or unreadable file.
    """
    if name in ("", SHIPPED) and weights is None:
        return _shipped(image_size)
    if name in ("", SHIPPED):
        raise BackboneError(f"{weights} needs the name of its architecture.", mend="Add --backbone NAME.")
    if not timm.is_model(name):
        known = [SHIPPED, *timm.list_models("vit*"), *timm.list_models("deit*")]
        raise BackboneError(f"timm knows no model {name!r}.", mend=did_you_mean(name, known))
    config = resolve_data_config(pretrained_cfg=_pretrained_config(name))
    size = image_size or int(config["input_size"][-1])
    preprocess = Preprocess(
        size, tuple(config["mean"]), tuple(config["std"]), config["interpolation"], float(config["crop_pct"])
    )
    spec = BackboneSpec(name, size, _half_depth(name, size), preprocess)
    if weights is None:
        return BackboneSource(spec, data=_from_hub(name))
    return BackboneSource(spec, path=weights)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of weights.

    Raises:
        BackboneError: it is missing, or is no safetensors file.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BackboneError(
            f"Cannot read weights from {path}: {error}.",
            mend="Pass a whole .safetensors file to --weights; pickled weights are never loaded.",
        ) from error


def _shipped(image_size: int | None) -> BackboneSource:
    if not (WEIGHTS_DIR / f"{SHIPPED}.json").is_file():
        raise BackboneError(
            f"This installation lacks the shipped backbone: {WEIGHTS_DIR} is incomplete.",
            mend="Install edge-cl again, or name a backbone: --backbone NAME --weights FILE.safetensors.",
        )
    facts: Mapping[str, Any] = json.loads((WEIGHTS_DIR / f"{SHIPPED}.json").read_text())
    kwargs = dict(facts["kwargs"])
    own = int(kwargs.pop("img_size", facts["image_size"]))
    size = image_size or own
    preprocess = Preprocess(size, tuple(facts["mean"]), tuple(facts["std"]))
    depth = int(kwargs.get("depth", 12))
    spec = BackboneSpec(str(facts["model"]), size, depth // 2, preprocess, kwargs)
    return BackboneSource(spec, path=WEIGHTS_DIR / f"{SHIPPED}.safetensors")


def _pretrained_config(name: str) -> dict[str, Any]:
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise BackboneError(
            f"timm has no weights {name!r}: {error}.", mend=f"Use the plain name: {name.partition('.')[0]}."
        ) from error
    return config.to_dict() if config else {}


def _half_depth(name: str, size: int) -> int:
    import torch

    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    return len(getattr(model, "blocks", ())) // 2 or 1


def _from_hub(name: str) -> bytes:
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub client's errors have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackboneError(
            f"The weights of {name} could not be fetched from the hub: {reason}",
            mend=f"Pass a local file with --weights FILE.safetensors, or leave out --backbone to use {SHIPPED}, "
            "which ships with edge-cl.",
        ) from error
    return save({key: value.contiguous() for key, value in model.state_dict().items()})
