"""Matrices of few bits: whole numbers, and a scale for each group of them in a row, as a bundle holds a head's.

A scale has 16 significant bits. Its multiples are then exact in single precision: a matrix that was rounded once is
turned into whole numbers and back without a further change, here and in C++.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edge_cl.statistics import Array

GROUP = 64  # numbers of a row that share a scale; the last of a row may be fewer

Codes = npt.NDArray[np.int8]


def quantise(matrix: Array, bits: int) -> tuple[Codes, Array]:
    """Return the nearest whole numbers of so many bits, symmetric about zero, (n, F), and their scales, (n, G)."""
    largest = 2 ** (bits - 1) - 1
    starts = np.arange(0, matrix.shape[1], GROUP)
    extent = np.maximum.reduceat(np.abs(matrix), starts, axis=1) / np.float32(largest)
    scales = ((extent.view(np.uint32) + 0xFF) & ~np.uint32(0xFF)).view(np.float32)  # upwards, to 16 bits
    codes = np.rint(matrix / _spread(np.where(scales > 0, scales, 1), matrix.shape[1]))
    return codes.astype(np.int8), scales


def dequantise(codes: Codes, scales: Array) -> Array:
    """Return the matrix of whole numbers (n, F) and their scales (n, G)."""
    result: Array = codes * _spread(scales, codes.shape[1])
    return result


def rounded(matrix: Array, bits: int) -> Array:
    """Return the nearest matrix that so many bits hold."""
    return dequantise(*quantise(matrix, bits))


def pack(codes: Codes) -> npt.NDArray[np.uint8]:
    """Lay out numbers of four bits two a byte, the first in the lower half, with 8 added: (n, F) to (n, F / 2).

    An odd last one shares its byte with a zero.
    """
    even = (np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))) + 8).astype(np.uint8)
    result: npt.NDArray[np.uint8] = even[:, ::2] | even[:, 1::2] << np.uint8(4)
    return result


def unpack(pairs: npt.NDArray[np.uint8], width: int) -> Codes:
    """Return the numbers (n, F) of which `pack` made bytes, F = `width`."""
    codes: Codes = np.empty((len(pairs), 2 * pairs.shape[1]), np.int8)
    codes[:, ::2], codes[:, 1::2] = pairs & 0xF, pairs >> 4
    codes -= 8
    return codes[:, :width]


def groups(width: int) -> int:
    """Return G, how many scales a row of F = `width` numbers has."""
    return -(-width // GROUP)


def _spread(scales: Array, width: int) -> Array:
    """Repeat scales (n, G) for each number of their group: (n, F)."""
    return np.repeat(scales, GROUP, axis=1)[:, :width]
