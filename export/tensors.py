"""How a bundle's tensors are stored, and what a reader makes of them: all in single precision, as wanted or refused.

A matrix of few bits is whole numbers, int8 or two of four bits in a uint8, and scales beside it under its name and
`_scale` (see `edge_cl.rounding`). Any other is in single or half precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edge_cl.rounding import dequantise, groups, pack, quantise, unpack
from edge_cl.statistics import Array

Stored = npt.NDArray[np.generic]
Tensors = Mapping[str, Stored]


def few_bits(name: str, matrix: Array, bits: int) -> dict[str, Stored]:
    """Return how a matrix of so many bits, 8 or 4, is stored.

    One that needs more is stored in half precision: stores that earlier commits fitted have such.
    """
    codes, scales = quantise(matrix, bits)
    if not np.array_equal(dequantise(codes, scales), matrix):
        return {name: half(matrix)}
    return {name: pack(codes) if bits == 4 else codes, _scale(name): scales}


def half(tensor: Array) -> npt.NDArray[np.float16] | Array:
    """Return a tensor in half precision if that rounds it by no more than 2^-11 of its largest element, else as it is.

    Elements beyond 65504 would be infinite in half precision, and a tensor of tiny ones would lose their digits.
    """
    with np.errstate(over="ignore"):
        halves = tensor.astype(np.float16)
    largest = np.abs(tensor).max(initial=0)
    return halves if np.abs(halves - tensor).max(initial=0) <= largest * 2**-11 else tensor


def read(path: Path, shapes: Mapping[str, Sequence[int | None]]) -> tuple[dict[str, Array], list[str]]:
    """Read tensors, each of a shape given (None: any size) and finite.

    Returns:
        Those that are as wanted, and what is wrong with the others.

    Raises:
        Exception: the file cannot be read; the reader raises its own, OSError and KeyError.
    """
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:  # not the rest of a file of weights
        wanted = {*shapes, *map(_scale, shapes)}
        held: Tensors = {name: file.get_tensor(name) for name in wanted.intersection(file.keys())}
    found, faults = {}, []
    for name, shape in shapes.items():
        try:
            found[name] = _single(held, name, shape)
        except ValueError as error:
            faults.append(f"{path}: {name} {error}.")
    return found, faults


def _single(held: Tensors, name: str, shape: Sequence[int | None]) -> Array:
    """Return a tensor in single precision; raises ValueError with what is wrong, in the words that follow its name."""
    value = held.get(name)
    if value is not None and value.dtype in (np.int8, np.uint8):
        value = _of_few_bits(value, held.get(_scale(name)), shape)
    if value is None or value.ndim != len(shape):
        raise ValueError(f"is missing, or not of {len(shape)} dimensions")
    if any(want is not None and want != size for want, size in zip(shape, value.shape, strict=True)):
        raise ValueError(f"is {value.shape}, not {tuple(shape)}")
    with np.errstate(over="ignore"):
        single: Array = value.astype(np.float32)
    if not np.isfinite(single).all():
        raise ValueError("holds values that are not finite")
    return single


def _of_few_bits(codes: Stored, scales: Stored | None, shape: Sequence[int | None]) -> Array:
    width = shape[-1]
    if len(shape) != 2 or width is None:
        raise ValueError(f"is {codes.dtype}, which only a matrix can be")
    stored = width if codes.dtype == np.int8 else -(-width // 2)
    if codes.ndim != 2 or codes.shape[1] != stored:
        raise ValueError(f"is {codes.dtype} {codes.shape}, not of {stored} columns")
    if scales is None or scales.shape != (len(codes), groups(width)):
        found = "none" if scales is None else scales.shape
        raise ValueError(f"has scales {found}, not {(len(codes), groups(width))}")
    whole = codes.astype(np.int8) if codes.dtype == np.int8 else unpack(codes.astype(np.uint8), width)
    return dequantise(whole, scales.astype(np.float32))


def _scale(name: str) -> str:
    return f"{name}_scale"
