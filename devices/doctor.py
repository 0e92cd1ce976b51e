"""Checks of the machine and of a store: each finding says what was found and the command that mends it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_cl.devices.board import recognise
from edge_cl.errors import StoreError
from edge_cl.store import Store

FREE_MB = 500  # a version of a ViT-B store and its checkpoints need less


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        check: what was looked at.
        ok: whether it is as it should be.
        found: what was found.
        mend: the command or change that mends it, "" where nothing is to be done.
    """

    check: str
    ok: bool
    found: str
    mend: str = ""


def examine(store: Path) -> list[Finding]:
    """Look at Python, torch, the board, the optional runtimes, the disk and a store."""
    return [_python(), _torch(), _board(), *_optional(), _disk(store), *_store(store)]


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 10), version, "" if sys.version_info >= (3, 10) else "Use 3.10+.")


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("torch", False, str(error), "pip install torch")
    if torch.cuda.is_available():
        return Finding("torch", True, f"{torch.__version__}, CUDA on {torch.cuda.get_device_name()}")
    if recognise() is not None:
        mend = "Install NVIDIA's torch wheel for this JetPack in a venv made with --system-site-packages."
        return Finding("torch", False, f"{torch.__version__}, but it cannot use this board's GPU", mend)
    return Finding("torch", True, f"{torch.__version__}, CPU with {torch.get_num_threads()} threads")


def _board() -> Finding:
    board = recognise()
    if board is None:
        return Finding("board", True, "no Jetson")
    if board.refused:
        return Finding("board", False, f"{board.name}: {board.refused}", "Use an Orin or Thor board.")
    return Finding("board", True, f"{board.name}, JetPack {board.jetpack_floor} or newer is needed")


def _optional() -> Iterator[Finding]:
    needed = recognise() is not None
    for module, mend in (
        ("tensorrt", "It comes with JetPack: make the venv with --system-site-packages."),
        ("pycuda", "pip install 'edge-cl[jetson]'"),
    ):
        found = importlib.util.find_spec(module) is not None
        state = "installed" if found else "not installed" + ("" if needed else ", and not needed here")
        yield Finding(module, found or not needed, state, "" if found or not needed else mend)


def _disk(store: Path) -> Finding:
    place = next(path for path in (store, *store.absolute().parents) if path.exists())
    free_mb = shutil.disk_usage(place).free // 2**20
    if not os.access(place, os.W_OK):
        return Finding("disk", False, f"{place} cannot be written", f"Mend its permissions: chmod u+w {place}")
    mend = "" if free_mb > FREE_MB else "Free some space."
    return Finding("disk", free_mb > FREE_MB, f"{free_mb} MB free at {place}", mend)


def _store(path: Path) -> Iterator[Finding]:
    if not Store.exists(path):
        yield Finding("store", True, f"none at {path} yet")
        return
    try:
        store = Store.open(path)
        faults = store.check()
    except StoreError as error:
        yield Finding("store", False, " ".join(error.faults), error.mend)
        return
    for fault in faults:
        yield Finding("store", False, fault, f"edge-cl rollback VERSION --store {path}, to a whole version")
    if not faults:
        yield Finding("store", True, f"{path}: {len(store.versions())} versions, every object whole")
