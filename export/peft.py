"""Adapters in the format of PEFT, one folder a task: `PeftModel.from_pretrained(timm_model, OUT/base)` loads them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from edge_cl.durable import make_directory, replace_bytes
from edge_cl.errors import EdgeClError
from edge_cl.export.bundle import BundleError, joint_factors
from edge_cl.export.merge import weighted
from edge_cl.lora import Adapter
from edge_cl.model import Model

FILES = WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_FOLDER = re.compile(r"base|task-\d+", re.ASCII)


def export_peft(model: Model, out: Path) -> list[Path]:
    """Write one PEFT adapter for the base branch and one a task: shared adapter and branch adapter together.

    Our deltas on query and value are one delta of the fused projection, of rank 2r, scaled by 1 (`lora_alpha` = `r`).

    Args:
        model: what has been learned.
        out: directory; new, empty, or an earlier such export, whose tasks that are no more go.

    Returns:
        The folders written.

    Raises:
        EdgeClError: nothing has been adapted yet.
        BundleError: the directory holds something else, or cannot be written.
    """
    if model.shared is None or model.base is None:
        raise EdgeClError(
            "No adapter has been trained yet: statistics alone answer.",
            mend="Learn a task with --method cl-lora first.",
        )
    adapters = {"base": model.base, **{f"task-{t}": a for t, a in model.adapters.items()}}
    _clear(out, adapters)
    folders = []
    for name, adapter in adapters.items():
        tensors = {**_factors(model.shared), **_factors(adapter)}
        folder = out / name
        try:
            make_directory(folder)
            replace_bytes(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
            replace_bytes(folder / CONFIG, json.dumps(_config(model, tensors), indent=2).encode())
        except OSError as error:
            raise BundleError(f"{folder} cannot be written: {error.strerror}.", mend="Choose another place.") from error
        folders.append(folder)
    return folders


def _clear(out: Path, names: Collection[str]) -> None:
    """Delete the folders of an earlier export that have none of the names; refuse a directory of anything else."""
    try:
        there = list(out.iterdir()) if out.exists() else []
        if not all(_FOLDER.fullmatch(path.name) and set(map(_whole, path.iterdir())) <= set(FILES) for path in there):
            raise BundleError(f"{out} holds other files than adapters for PEFT.", mend="Name a new directory.")
        for path in there:
            if path.name not in names:
                shutil.rmtree(path)
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror}.", mend="Choose another place.") from error


def _whole(path: Path) -> str:
    """Return the name that a file was to have, if it was cut off while it was written."""
    return path.name.removeprefix(".").removesuffix(".tmp")


def _factors(adapter: Adapter) -> dict[str, npt.NDArray[np.float32]]:
    down, up = joint_factors(**weighted(adapter), r=adapter.r)
    result: dict[str, npt.NDArray[np.float32]] = {}
    for i in range(adapter.depth):
        layer = f"base_model.model.blocks.{adapter.first + i}.attn.qkv"
        result |= {f"{layer}.lora_A.weight": down[i].copy(), f"{layer}.lora_B.weight": up[i].copy()}
    return result


def _config(model: Model, tensors: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, object]:
    ranks = {name.split(".lora_A")[0].removeprefix("base_model.model."): len(value)
             for name, value in tensors.items() if "lora_A" in name}  # fmt: skip
    r = max(ranks.values())
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": f"timm/{model.spec.name}",
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "rank_pattern": {layer: rank for layer, rank in ranks.items() if rank != r},
        "alpha_pattern": {layer: rank for layer, rank in ranks.items() if rank != r},
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }
