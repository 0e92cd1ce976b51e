"""The checks of torch, TensorRT, PyCUDA and ONNX Runtime, on libraries that stand for the real ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from machines import NANO, PC, THOR, Libraries, changed, findings, healthy_orin, library, pretend, torch

NO_DRIVER = ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")
NO_TENSORRT = ModuleNotFoundError("No module named 'tensorrt'")
NO_PYCUDA = ModuleNotFoundError("No module named 'pycuda'")


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> Libraries:
    """What importing a library gives: those of a healthy Orin, until a test changes them."""
    found = healthy_orin()
    pretend(monkeypatch, found)
    return found


RUNTIMES: dict[str, tuple[str, Path, Libraries, str, str, str, str]] = {
    "torch on Orin": ("torch", NANO, {}, "ok", "2.8.0, CUDA 12.6 on Orin", "", ""),
    "torch on a PC": ("torch", PC, {"torch": torch()}, "ok", "2.8.0, CPU with 6 threads", "", ""),
    "no torch": (
        "torch",
        PC,
        {"torch": ImportError("No module named 'torch'")},
        "FAULT",
        "No module",
        "pip install",
        "missing",
    ),
    "torch without CUDA": (
        "torch",
        NANO,
        {"torch": torch()},
        "FAULT",
        "CPU with 6 threads",
        "TORCH_WHEEL, with NVIDIA's wheel of torch for JetPack 6.2",
        "this torch is built without CUDA",
    ),
    "torch of another CUDA": (
        "torch",
        NANO,
        {"torch": torch("13.0")},
        "FAULT",
        "CPU",
        "TORCH_WHEEL",
        "this torch is built for CUDA 13.0, and the board has CUDA 12.6.11",
    ),
    "torch without a driver": (
        "torch",
        THOR,
        {"torch": torch("13.0")},
        "FAULT",
        "CPU",
        "",
        "the driver does not answer",
    ),
    "torch for other GPUs": (
        "torch",
        THOR,
        {"torch": torch("13.0", name="Thor", capability=(11, 0), built="sm_90 sm_120")},
        "FAULT",
        "on Thor",
        "TORCH_WHEEL",
        "it is built for sm_90, sm_120, and this GPU has compute capability 11.0",
    ),
    "torch of the same major": (
        "torch",
        NANO,
        {"torch": torch("12.6", name="Orin", built="sm_80")},
        "ok",
        "Orin",
        "",
        "",
    ),
    "torch with PTX": (
        "torch",
        THOR,
        {"torch": torch("13.0", name="Thor", capability=(11, 0), built="sm_90 compute_90")},
        "ok",
        "Thor",
        "",
        "",
    ),
    "TensorRT 10.3": ("tensorrt", NANO, {}, "note", "10.3.0", "", "fp16 engines of a ViT can be wrong"),
    "TensorRT 10.13": ("tensorrt", THOR, {"tensorrt": library("10.13.3.9")}, "ok", "10.13.3.9", "", ""),
    "TensorRT 11.3": (
        "tensorrt",
        PC,
        {"tensorrt": library("11.3.0.1")},
        "note",
        "11.3.0.1",
        "",
        "engines built with REFIT",
    ),
    "TensorRT 11.4": ("tensorrt", PC, {"tensorrt": library("11.4.0.106")}, "ok", "11.4.0.106", "", ""),
    "TensorRT 11.5": (
        "tensorrt",
        PC,
        {"tensorrt": library("11.5.0")},
        "note",
        "11.5.0",
        "export with --format onnx",
        "10.3 to 11.4",
    ),
    "TensorRT 8.6": (
        "tensorrt",
        NANO,
        {"tensorrt": library("8.6.2")},
        "FAULT",
        "8.6.2",
        "Update JetPack",
        "10.3 to 11.4",
    ),
    "TensorRT of pip": (
        "tensorrt",
        NANO,
        {"tensorrt": library("10.13.3.9")},
        "FAULT",
        "10.13.3.9",
        "pip uninstall tensorrt",
        "the board's library is 10.3.0.30",
    ),
    "no TensorRT on a PC": (
        "tensorrt",
        PC,
        {"tensorrt": NO_TENSORRT},
        "ok",
        "not installed, and not needed",
        "",
        "",
    ),
    "PyCUDA": ("pycuda", NANO, {}, "ok", "2025.1", "", ""),
    "no PyCUDA": (
        "pycuda",
        NANO,
        {"pycuda.driver": NO_PYCUDA},
        "FAULT",
        "not installed",
        "pip install 'edge-cl[jetson]'",
        "",
    ),
    "no PyCUDA on a PC": (
        "pycuda",
        PC,
        {"pycuda.driver": NO_PYCUDA},
        "ok",
        "not installed, and not needed",
        "",
        "",
    ),
    "PyCUDA without a driver": (
        "pycuda",
        NANO,
        {"pycuda.driver": NO_DRIVER},
        "FAULT",
        "does not load: libcuda.so.1",
        "See the cuda check",
        "libcuda.so.1 is missing",
    ),
    "ONNX Runtime": ("onnxruntime", PC, {}, "ok", "1.22.0 (CPU)", "", ""),
    "no ONNX Runtime": (
        "onnxruntime",
        PC,
        {"onnxruntime": ImportError("numpy.core\nfailed")},
        "FAULT",
        "does not load: numpy.core failed",
        "pip install --force-reinstall onnxruntime",
        "exported bundles need it",
    ),
}


@pytest.mark.parametrize(("check", "tree", "given", "state", "found", "mend", "cause"), RUNTIMES.values(), ids=RUNTIMES)
def test_a_library(
    libraries: Libraries, check: str, tree: Path, given: Libraries, state: str, found: str, mend: str, cause: str
) -> None:
    libraries.update(given)
    (finding,) = findings(check, tree)
    assert finding.state == state, finding
    assert found in finding.found
    assert mend in finding.mend and (bool(finding.mend) or not mend)
    assert cause in finding.cause and bool(finding.cause) == bool(cause)


@pytest.mark.parametrize(
    ("packages", "minor", "isolated", "mend", "cause"),
    [
        ("", 10, True, "sudo apt update && sudo apt install nvidia-jetpack", "TensorRT comes with JetPack"),
        ("libnvinfer10", 10, True, "sudo apt install python3-libnvinfer", "the package of its Python module"),
        ("libnvinfer10 python3-libnvinfer", 12, True, "python3.10 -m venv", "its module is for Python 3.10"),
        ("libnvinfer10 python3-libnvinfer", 10, True, "python3 -m venv --system-site-packages .venv", "this virtual"),
        ("libnvinfer10 python3-libnvinfer", 10, False, "sudo apt update", "its Python module does not load"),
    ],
)
def test_why_tensorrt_is_not_found_on_a_board(
    libraries: Libraries,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packages: str,
    minor: int,
    isolated: bool,
    mend: str,
    cause: str,
) -> None:
    libraries["tensorrt"] = NO_TENSORRT
    monkeypatch.setattr("edge_cl.devices.runtimes._python", lambda: f"3.{minor}")
    monkeypatch.setattr("edge_cl.devices.runtimes._isolated", lambda: isolated)
    status = "\n".join(
        f"Package: {name}\nStatus: install ok installed\nVersion: 10.3.0.30-1+cuda12.5\n" for name in packages.split()
    )
    (finding,) = findings("tensorrt", changed(NANO, {"var/lib/dpkg/status": status}, tmp_path))
    assert not finding.ok
    assert finding.mend.startswith(mend)
    assert finding.cause.startswith(cause)


def test_the_fault_of_a_gpu_is_named(libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries["tensorrt"] = library("10.16.1")
    for capability, named in (((12, 0), True), ((8, 9), False)):
        monkeypatch.setitem(sys.modules, "torch", torch("12.8", name="GPU", capability=capability))
        (finding,) = findings("tensorrt", PC)
        assert ("4837" in finding.cause and "checked against reference outputs" in finding.cause) is named


@pytest.mark.parametrize(
    ("settings", "isolated"),
    [("include-system-site-packages = true", False), ("include-system-site-packages = false", True), ("", True)],
)
def test_whether_a_virtual_environment_sees_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: str, isolated: bool
) -> None:
    from edge_cl.devices.runtimes import _isolated

    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert _isolated() is False
    (tmp_path / "pyvenv.cfg").write_text(f"home = /usr/bin\n{settings}\n")
    assert _isolated() is isolated
