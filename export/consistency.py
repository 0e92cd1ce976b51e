"""What a manifest must satisfy beyond its hash: whoever wrote it, it must make sense and not ask for much."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_cl.errors import EdgeClError

if TYPE_CHECKING:
    from edge_cl.export.bundle import Manifest

MOST = {"depth": 256, "split": 255, "width": 1 << 14, "tokens": 1 << 16, "summaries": 2, "r": 1 << 10}
FACTORS = 1 << 26  # depth times width times r: adapters filled up to the largest rank have twelve times as many
SIDE_PX = 1 << 12  # of the input
IDS = 1 << 24  # class ids stay exact as single-precision numbers
REQUIRED = ("head", "prefix", "suffix", "weights")


def manifest_faults(manifest: Manifest) -> list[str]:
    """Return what is wrong with a manifest's content, in the words that follow "it"; nothing if it can be used."""
    faults = [*_shape_faults(manifest), *_class_faults(manifest), *_file_faults(manifest)]
    with np.errstate(over="ignore", under="ignore"):
        temperature = np.float32(manifest.temperature)  # as the head divides by it
    if not (np.isfinite(temperature) and temperature > 0):
        faults.append(f"says temperature {manifest.temperature}")
    try:
        side = manifest.preprocess.image_size
        if type(side) is not int or side > SIDE_PX:
            faults.append(f"says an input of {side} px")
    except (EdgeClError, ValueError, KeyError, TypeError, AttributeError):
        faults.append("does not say how pictures become input")
    return faults


def _shape_faults(manifest: Manifest) -> list[str]:
    shape = manifest.shape
    sizes = vars(shape)
    whole = all(type(n) is int and 0 < n <= MOST[name] for name, n in sizes.items())
    whole = whole and shape.split < shape.depth and shape.r <= shape.width
    few = whole and shape.depth * shape.width * shape.r <= FACTORS
    return [] if few else [f"says a shape of {sizes}"]


def _class_faults(manifest: Manifest) -> list[str]:
    faults = []
    for what, values in (("ids", [c.id for c in manifest.classes]), ("names", [c.name for c in manifest.classes])):
        if len(set(values)) < len(values):
            faults.append(f"has two classes of the same {what[:-1]}")
    if any(not 0 <= n < IDS for c in manifest.classes for n in (c.id, c.task)):
        faults.append(f"has a class whose id or task is not from 0 to {IDS - 1}")
    return faults


def _file_faults(manifest: Manifest) -> list[str]:
    files = manifest.files
    wanted = list(REQUIRED)
    if manifest.layout == "merged":  # an adapter that is folded in nowhere would silently not count
        folded = [role.partition("/")[2] for role in files if role.startswith("adapter/")]
        wanted += [f"merged/{'prefix' if name == 'shared' else name}" for name in folded]
    return [f"names no {role!r}" for role in wanted if role not in files]
