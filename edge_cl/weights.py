"""Where a backbone's weights come from: the file shipped with the package, a local file, or the hub, by timm name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError, safe_open
from timm.data.config import resolve_data_config
from torch import Tensor

from edge_cl.architecture import BackboneSpec, build
from edge_cl.backbone import Backbone
from edge_cl.config import BACKBONES_DIR, SHIPPED
from edge_cl.errors import BackboneError, did_you_mean
from edge_cl.preprocess import Preprocess


@dataclass(frozen=True)
class BackboneSource:
    """A backbone that a store can be made with.

    Attributes:
        spec: how to build it.
        path: where its safetensors file lies.
    """

    spec: BackboneSpec
    path: Path


def find_backbone(
    name: str = "", weights: Path | None = None, image_size: int | None = None, patch_stride: int | None = None
) -> BackboneSource:
    """Find a backbone and its weights.

    Args:
        name: timm name, or "" or the shipped backbone's name for the one that ships with the package.
        weights: local .safetensors file; without it the hub is asked for a timm name's weights.
        image_size: side of the input, pixels; the model's own if not given.
        patch_stride: pixels from one patch to the next; a patch's side if not given, so that none overlap.

    Raises:
        BackboneError: unknown name, unreachable hub, or unreadable file.
    """
    if name in ("", SHIPPED) and weights is None:
        return _shipped(image_size, patch_stride)
    if name in ("", SHIPPED):
        raise BackboneError(f"{weights} needs the name of its architecture.", mend="Add --backbone NAME.")
    if not timm.is_model(name):
        known = [SHIPPED, *timm.list_models("vit*"), *timm.list_models("deit*")]
        mend = f"{did_you_mean(name, known)} `edge-cl init --backbone list` shows the choices."
        raise BackboneError(f"timm knows no model {name!r}.", mend=mend)
    config = resolve_data_config(pretrained_cfg=_pretrained_config(name))
    size = image_size or int(config["input_size"][-1])
    preprocess = Preprocess(
        size, tuple(config["mean"]), tuple(config["std"]), config["interpolation"], float(config["crop_pct"])
    )
    spec = BackboneSpec(name, size, _depth(name) // 2 or 1, preprocess, patch_stride=patch_stride)
    return BackboneSource(spec, weights or _from_hub(name))


def load_backbone(
    name: str = "", weights: Path | None = None, image_size: int | None = None, patch_stride: int | None = None
) -> tuple[BackboneSource, Backbone]:
    """Find and build a backbone that a store can be made with.

    Args:
        name: as of `find_backbone`, like the others.
        weights: likewise.
        image_size: likewise.
        patch_stride: likewise.

    Raises:
        BackboneError: see `find_backbone`; or the weights do not fit, or are no finite numbers.
    """
    source = find_backbone(name, weights, image_size, patch_stride)
    tensors = read_weights(source.path)
    require_numbers(tensors, source.path)
    return source, build(source.spec, tensors)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of weights.

    The file is mapped anew for every tensor: what was read of a mapped file counts as the process's memory until it is
    closed, and would double the peak.

    Raises:
        BackboneError: it is missing, or is no safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
        return {name: _read_tensor(path, name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise BackboneError(
            f"Cannot read weights from {path}: {error}.",
            mend="Pass a whole .safetensors file to --weights; pickled weights are never loaded.",
        ) from error


def require_numbers(weights: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights that hold values that are no numbers, or infinite.

    Raises:
        BackboneError: some do.
    """
    if damaged := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise BackboneError(
            f"{path} holds values that are not finite, in {', '.join(damaged[:3])}.", mend="Get the file again."
        )


def _read_tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor.clone()


def _shipped(image_size: int | None, patch_stride: int | None) -> BackboneSource:
    if not (BACKBONES_DIR / f"{SHIPPED}.json").is_file():
        raise BackboneError(
            f"This installation lacks the shipped backbone: {BACKBONES_DIR} is incomplete.",
            mend="Install edge-cl again, or name a backbone: --backbone NAME --weights FILE.safetensors.",
        )
    facts: Mapping[str, Any] = json.loads((BACKBONES_DIR / f"{SHIPPED}.json").read_text())
    kwargs = dict(facts["kwargs"])
    own = int(kwargs.pop("img_size", facts["image_size"]))
    size = image_size or own
    preprocess = Preprocess(size, tuple(facts["mean"]), tuple(facts["std"]))
    depth = int(kwargs.get("depth", 12))
    spec = BackboneSpec(str(facts["model"]), size, depth // 2, preprocess, kwargs, patch_stride)
    return BackboneSource(spec, BACKBONES_DIR / f"{SHIPPED}.safetensors")


def _pretrained_config(name: str) -> dict[str, Any]:
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        raise BackboneError(
            f"timm has no weights {name!r}: {error}.", mend=f"Use the plain name: {name.partition('.')[0]}."
        ) from error
    return config.to_dict() if config else {}


def _depth(name: str) -> int:
    """Return the number of blocks; 0 where there are none."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    return len(getattr(model, "blocks", ()))


def _from_hub(name: str) -> Path:
    """Return the hub's safetensors file of a timm name's weights, from the local cache if it was fetched before."""
    from huggingface_hub import get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    local = f"Pass a local file with --weights FILE.safetensors, or leave out --backbone to use {SHIPPED}"
    if config is None or not config.hf_hub_id:
        raise BackboneError(f"There are no weights of {name} on the hub.", mend=f"{local}.")
    # timm may name a pickled file; the safetensors one lies beside it
    filename = (config.hf_hub_filename or "model.safetensors").replace("pytorch_model.bin", "model.safetensors")
    cached = try_to_load_from_cache(config.hf_hub_id, filename)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # Asked once first: the hub's client tries for a minute and a half before it admits that there is no network.
        get_session().head(hf_hub_url(config.hf_hub_id, filename), timeout=10)
        return Path(hf_hub_download(config.hf_hub_id, filename))
    except Exception as error:  # the hub client's errors have no common base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackboneError(
            f"The weights of {name} could not be fetched from the hub: {reason}",
            mend=f"{local}, which ships with edge-cl.",
        ) from error
