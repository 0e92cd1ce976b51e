"""Prefix tokens on disk: computed once a view, read back by the row, of a size that no memory has to hold."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edge_cl.durable import make_directory, replacing
from edge_cl.errors import StoreError
from edge_cl.statistics import Indices
from edge_cl.version import JsonObject, canonical_json

DIGEST = 32  # bytes of SHA-256 behind the tokens
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True)
class Tokens:
    """Prefix tokens of one view of n pictures, (n, N, D) in half precision, in a memory-mapped file."""

    mapped: np.memmap[tuple[int, int, int], np.dtype[np.float16]]

    def __len__(self) -> int:
        return len(self.mapped)

    def rows(self, pictures: Indices, kept: Indices | None = None) -> Tensor:
        """Return the tokens of some pictures in single precision, (B, K, D), on the CPU.

        Args:
            pictures: which pictures, (B,).
            kept: which tokens of each, (B, K); all, if not given.
        """
        rows = self.mapped[pictures] if kept is None else self.mapped[pictures[:, None], kept]
        self.mapped._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # read pages are not ours to hold
        return torch.from_numpy(np.asarray(rows)).float()


@dataclass(frozen=True)
class ResidentTokens:
    """Prefix tokens of V views of n pictures, (V, n, N, D) in half precision, in the memory of a device."""

    held: Tensor

    @classmethod
    def of(cls, views: Sequence[Tokens], device: torch.device) -> ResidentTokens:
        """Bring the tokens of some views of the same pictures to a device."""
        held = torch.empty((len(views), *views[0].mapped.shape), dtype=torch.float16, device=device)
        for target, view in zip(held, views, strict=True):
            target.copy_(torch.from_numpy(np.array(view.mapped)))
        return cls(held)

    def rows(self, view: Tensor, pictures: Tensor, kept: Tensor | None = None) -> Tensor:
        """Return the tokens of some pictures in single precision, (B, K, D); see `Tokens.rows`.

        Args:
            view: which view, (1,); like the others on the device.
            pictures: which pictures, (B,).
            kept: which tokens of each, (B, K); all, if not given.
        """
        rows = self.held[view, pictures] if kept is None else self.held[view[:, None], pictures[:, None], kept]
        return rows.float()


@dataclass(frozen=True)
class TokenCache:
    """Token files by the hash of everything that decides their content.

    A file is the tokens and their SHA-256; one that is damaged counts as absent. One process at a time writes.

    Attributes:
        directory: where the files live; made when the first is written.
        limit_bytes: most that they take together; the oldest give way.
    """

    directory: Path
    limit_bytes: int

    def room(self, shape: tuple[int, int, int]) -> int:
        """Return how many files of tokens (n, N, D) there is room for."""
        return int(self.limit_bytes // (2 * int(np.prod(shape)) + DIGEST))

    def find(self, key: JsonObject, shape: tuple[int, int, int]) -> Tokens | None:
        """Return the tokens that were stored under a key, or None."""
        path = self._path(key)
        if not path.is_file() or not _is_whole(path, 2 * int(np.prod(shape))):
            return None
        path.touch()
        return Tokens(np.memmap(path, np.float16, "r", shape=shape))

    def fill(self, key: JsonObject, shape: tuple[int, int, int], batches: Iterable[Tensor]) -> Tokens:
        """Store tokens (n, N, D) under a key, durably; what was there is replaced.

        Args:
            key: all that decides the tokens: prefix, preprocessing, pictures, views.
            shape: n, N, D.
            batches: tokens of the pictures in order, (B, N, D) each.

        Raises:
            StoreError: the file cannot be written.
        """
        path, size, digest = self._path(key), 2 * int(np.prod(shape)), hashlib.sha256()
        try:
            make_directory(self.directory)
            self._make_room(size + DIGEST)
            with replacing(path) as temporary, temporary.open("wb") as file:
                for tokens in batches:
                    data = tokens.half().cpu().numpy().tobytes()
                    digest.update(data)
                    file.write(data)
                if file.tell() != size:
                    raise ValueError(f"{file.tell()} bytes of tokens were produced, {size} were announced")
                file.write(digest.digest())
        except OSError as error:
            raise StoreError(
                f"The prefix tokens could not be written to {path}: {error}.",
                mend="Free some space and run the same command again: it resumes.",
            ) from error
        return Tokens(np.memmap(path, np.float16, "r", shape=shape))

    def _make_room(self, size: int) -> None:
        files = sorted(self.directory.glob("*.f16"), key=lambda path: path.stat().st_mtime_ns)
        while files and sum(path.stat().st_size for path in files) + size > self.limit_bytes:
            files.pop(0).unlink()

    def _path(self, key: JsonObject) -> Path:
        return self.directory / f"{hashlib.sha256(canonical_json(key)).hexdigest()}.f16"


def _is_whole(path: Path, size: int) -> bool:
    """Return whether a file is so many bytes and then their SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (data := file.read(min(size, CHUNK))):
            digest.update(data)
            size -= len(data)
        return size == 0 and file.read(DIGEST + 1) == digest.digest()
