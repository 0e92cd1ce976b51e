"""The resumable state of an interrupted learn: finished stages and the last epoch, kept under STORE/work/."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edge_cl.durable import make_directory, replacing
from edge_cl.errors import StoreError
from edge_cl.version import Json, JsonObject, canonical_json, contiguous

_STAGE = re.compile(r"\w[\w.-]*", re.ASCII)
_JOB = re.compile(r"(?:(\d{6,})-)?[0-9a-f]{64}")  # without a number: of earlier releases


def unfinished(directory: Path, parent: int | None = None) -> list[Path]:
    """Return the directories of jobs that are not done: of all, or of those that began from one version."""
    with suppress(OSError):
        found = [(path, match) for path in directory.iterdir() if (match := _JOB.fullmatch(path.name))]
        return [path for path, match in found if parent is None or int(match[1] or -1) == parent]
    return []


def size_of(path: Path) -> int:
    """Return the bytes of all files in a directory of a job, or of one file; what goes meanwhile counts nothing."""
    size = 0
    for file in (path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)):
        with suppress(FileNotFoundError):
            size += 0 if file.is_dir() else file.lstat().st_size
    return size


def discard(paths: Sequence[Path]) -> None:
    """Delete directories of jobs, as these are done or not wanted any more.

    Raises:
        StoreError: one cannot be deleted.
    """
    try:
        for path in paths:
            with suppress(FileNotFoundError):  # another process may have begun the next job, and deleted it
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        mend = f"Delete {path.parent} yourself."
        raise StoreError(f"An old checkpoint could not be deleted: {error}.", mend=mend) from error


class Checkpoint:
    """Named stages of one job, each tensors plus a JSON value, that survive a power cut.

    One process at a time may use a directory: the one that holds the store's write lock. A damaged stage
    counts as absent, so the worst that damage does is work done again.

    Args:
        directory: where the stages live (`Store.work`); made when the first one is saved.
        key: all that the job's result depends on: settings, hashes of the pictures, the parent version...
            Stages that were saved under another key are deleted.
        parent: number of the version that it began from.

    Attributes:
        directory: of this job alone; all that lies there goes when the job is done, or another one begins.

    Raises:
        StoreError: the stages of another job cannot be deleted.
    """

    def __init__(self, directory: Path, key: JsonObject, parent: int = 0) -> None:
        self.directory = directory / f"{parent:06d}-{hashlib.sha256(canonical_json(key)).hexdigest()}"
        discard([other for other in unfinished(directory) if other != self.directory])

    def __contains__(self, stage: str) -> bool:
        """Return whether a stage was saved and is whole; reads all of it."""
        return self._read(stage) is not None

    def save(self, stage: str, tensors: Mapping[str, np.ndarray], info: Json = None) -> None:
        """Save a stage, durably; what was saved under the same name is replaced.

        Raises:
            StoreError: the directory cannot be written; the earlier save of the stage is then whole.
            ValueError: `stage` is not a word, or `info` is not JSON.
        """
        tensors = contiguous(tensors)
        text = canonical_json(info).decode()
        path = self._path(stage)
        try:
            make_directory(path.parent)
            with replacing(path) as temporary:
                save_file(tensors, temporary, {"info": text, "sha256": _digest(tensors, text)})
        except (OSError, SafetensorError) as error:
            raise _unwritable(path, error) from error

    def load(self, stage: str) -> tuple[dict[str, np.ndarray], Json]:
        """Return the tensors and the JSON value of a stage.

        Raises:
            KeyError: the stage is absent or damaged.
        """
        found = self._read(stage)
        if found is None:
            raise KeyError(stage)
        return found

    def empty(self) -> None:
        """Delete every stage, as the job is committed, but leave the directory: something remains to be done for it.

        Raises:
            StoreError: they cannot be deleted, or the directory cannot be made.
        """
        try:
            make_directory(self.directory)
        except OSError as error:
            raise _unwritable(self.directory, error) from error
        discard(list(self.directory.iterdir()))

    def _path(self, stage: str) -> Path:
        if not _STAGE.fullmatch(stage):
            raise ValueError(f"{stage!r} cannot name a stage: use letters, digits, '_', '-' and '.'")
        return self.directory / f"{stage}.safetensors"

    def _read(self, stage: str) -> tuple[dict[str, np.ndarray], Json] | None:
        try:
            with safe_open(self._path(stage), framework="numpy") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        text = metadata.get("info", "")
        if metadata.get("sha256") != _digest(tensors, text):
            return None
        return tensors, json.loads(text)


def _unwritable(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"The checkpoint {path} could not be written: {error}.",
        mend="Free some space, or mend the cause, and run the same command again: it resumes.",
    )


def _digest(tensors: Mapping[str, np.ndarray], text: str) -> str:
    """Return a SHA-256 over the names, types, shapes and elements of the tensors, and the text."""
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(canonical_json([name, tensor.dtype.name, tensor.shape]))
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
