"""Matrices of few bits: nearest, once and for all, and the very bytes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_cl.rounding import GROUP, dequantise, groups, pack, quantise, rounded, unpack
from edge_cl.statistics import Array

MATRICES = st.tuples(st.integers(0, 3), st.integers(1, 2 * GROUP + 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(-(2.0**100), 2.0**100, width=32))
)


@pytest.mark.parametrize("bits", [8, 4])
@given(matrix=MATRICES)
def test_rounding_is_to_the_nearest_and_done_once(bits: int, matrix: Array) -> None:
    codes, scales = quantise(matrix, bits)
    largest = 2 ** (bits - 1) - 1
    assert (codes.dtype, codes.shape, scales.shape) == (np.int8, matrix.shape, (len(matrix), groups(matrix.shape[1])))
    assert np.abs(codes).max(initial=0) <= largest
    once = dequantise(codes, scales)
    np.testing.assert_array_equal(rounded(once, bits), once)
    np.testing.assert_array_equal(once, codes.astype(np.float64) * np.repeat(scales, GROUP, 1)[:, : codes.shape[1]])
    for start in range(0, matrix.shape[1], GROUP):  # half a step, which is as good as the largest element over 127
        part = (slice(None), slice(start, start + GROUP))
        step = np.abs(matrix[part]).max(1, initial=0, keepdims=True).astype(np.float64) / largest * (1 + 2**-14)
        assert (np.abs(once[part].astype(np.float64) - matrix[part]) <= step / 2 + 1e-42).all()


def test_rounding_by_hand() -> None:
    matrix = np.asarray([[127, -63.4, 0.5, 1.5], [0, 0, 0, 0], [7, -7, 3.4, -3.6]], np.float32)
    assert quantise(matrix[:2], 8)[0].tolist() == [[127, -63, 0, 2], [0, 0, 0, 0]]
    assert quantise(matrix[:2], 8)[1].tolist() == [[1], [0]]
    assert rounded(matrix[2:], 4).tolist() == [[7, -7, 3, -4]]


@given(codes=arrays(np.int8, st.tuples(st.integers(0, 3), st.integers(1, 9)), elements=st.integers(-8, 7)))
def test_four_bits_there_and_back(codes: np.ndarray) -> None:
    pairs = pack(codes)
    assert pairs.shape == (len(codes), (codes.shape[1] + 1) // 2)
    np.testing.assert_array_equal(unpack(pairs, codes.shape[1]), codes)


def test_four_bits_by_hand() -> None:
    assert pack(np.asarray([[-7, 7, 0]], np.int8)).tolist() == [[0xF1, 0x88]]
