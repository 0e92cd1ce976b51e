"""Prefix tokens in device memory, lent to the encodings that hold them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


class TokenBuffer:
    """Device memory for the tokens of one batch; when it is forgotten, the memory is lent again."""

    def __init__(self, memory: Any) -> None:
        self.address = int(memory)


class TokenPool:
    """Lends device memory for tokens.

    Args:
        allocate: makes memory for one more batch.
        pictures: in a batch, at most.
        row_bytes: of the tokens of one picture.
        count: batches that have memory from the start; more is made when more are held at once.
        read: copies the tokens of some pictures to the host.
    """

    def __init__(
        self,
        allocate: Callable[[int], Any],
        pictures: int,
        row_bytes: int,
        count: int,
        read: Callable[[DeviceTokens], npt.NDArray[np.generic]],
    ) -> None:
        self.pictures, self.row_bytes, self.read = pictures, row_bytes, read
        self._allocate = allocate
        self._free = [self._new() for _ in range(count)]

    def _new(self) -> Any:
        return self._allocate(self.pictures * self.row_bytes)

    def borrow(self) -> TokenBuffer:
        """Lend memory for one batch, for as long as the buffer is held."""
        memory = self._free.pop() if self._free else self._new()
        buffer = TokenBuffer(memory)
        # Appending to a list may happen at any moment and in any thread; a call into CUDA might not.
        weakref.finalize(buffer, self._free.append, memory).atexit = False
        return buffer


@dataclass(frozen=True)
class DeviceTokens:
    """Prefix tokens of some pictures.

    Attributes:
        pool: whose memory it is.
        buffers: of `pool.pictures` pictures each.
        rows: of each picture: its place when the buffers are counted through.
    """

    pool: TokenPool
    buffers: tuple[TokenBuffer, ...]
    rows: tuple[int, ...]

    def __getitem__(self, rows: Sequence[int]) -> DeviceTokens:
        """Return the tokens of some of the pictures; nothing is copied."""
        return DeviceTokens(self.pool, self.buffers, tuple(self.rows[i] for i in rows))

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        """Return a copy in host memory, (B, N, D), as `numpy.asarray` asks for it."""
        del copy
        return np.asarray(self.pool.read(self), dtype)

    def stretches(self) -> Iterator[tuple[int, int]]:
        """Yield address and number of pictures of each stretch that lies in one piece, in the order of the pictures."""
        start, size = 0, self.pool.pictures
        for i in range(1, len(self.rows) + 1):
            if i == len(self.rows) or self.rows[i] != self.rows[i - 1] + 1 or self.rows[i] % size == 0:
                first = self.rows[start]
                yield self.buffers[first // size].address + first % size * self.pool.row_bytes, i - start
                start = i
