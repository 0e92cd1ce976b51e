"""File trees and libraries that stand for machines in tests."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_cl.devices import read_machine
from edge_cl.devices.doctor import CHECKS, Finding
from edge_cl.devices.finding import Subject, run

TREES = Path(__file__).parent / "device_trees"
NANO, AGX, THOR, XAVIER, PC, DAMAGED = (
    TREES / name for name in ("orin_nano_8gb", "agx_orin_64gb", "thor_t5000", "xavier_nx", "pc", "damaged")
)
Libraries = dict[str, Any]


def findings(check: str, root: Path) -> list[Finding]:
    """Return what one check finds on a tree."""
    return list(run(check, CHECKS[check], Subject(read_machine(root), Path("no store"))))


def changed(tree: Path, changes: dict[str, str | None], place: Path) -> Path:
    """Copy a tree with other contents of some files, or without them."""
    root = shutil.copytree(tree, place / "root")
    for path, content in changes.items():
        (root / path).unlink()
        if content is not None:
            (root / path).write_text(content)
    return root


def torch(
    cuda: str | None = None, *, name: str = "", capability: tuple[int, int] = (8, 7), built: str = "sm_87"
) -> Any:
    """Make a torch built for a CUDA; with the name of a GPU, one that it can use."""
    gpu = SimpleNamespace(
        is_available=lambda: bool(name),
        get_device_name=lambda: name,
        get_device_capability=lambda: capability,
        get_arch_list=built.split,
    )
    return SimpleNamespace(__version__="2.8.0", version=SimpleNamespace(cuda=cuda), cuda=gpu, get_num_threads=lambda: 6)


def library(version: str) -> Any:
    """Make a library that has a version and nothing else."""
    return SimpleNamespace(__version__=version)


def healthy_orin() -> Libraries:
    """Return the libraries of an Orin where all is well."""
    return {
        "torch": torch("12.6", name="Orin"),
        "tensorrt": library("10.3.0"),
        "pycuda": SimpleNamespace(VERSION=(2025, 1)),
        "pycuda.driver": SimpleNamespace(),
        "onnxruntime": SimpleNamespace(__version__="1.22.0", get_available_providers=lambda: ["CPUExecutionProvider"]),
    }


def pretend(monkeypatch: pytest.MonkeyPatch, libraries: Libraries) -> None:
    """Let importlib give these libraries, or raise those that are errors, on the board's own Python."""
    real: Callable[..., Any] = importlib.import_module

    def load(name: str, package: str | None = None) -> Any:
        if name not in libraries:
            return real(name, package)
        if isinstance(libraries[name], Exception):
            raise libraries[name]
        return libraries[name]

    monkeypatch.setattr(importlib, "import_module", load)
    monkeypatch.setattr("edge_cl.devices.runtimes._python", lambda: "3.10")
    monkeypatch.setattr("edge_cl.devices.runtimes._isolated", lambda: False)
