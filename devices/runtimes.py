"""Checks of the libraries that compute: torch, TensorRT, PyCUDA, ONNX Runtime. Each is loaded when it is looked at."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_cl.devices.finding import Finding, Subject
from edge_cl.devices.hardware import INSTALL_JETPACK, same_cuda
from edge_cl.devices.probe import Machine, numbers

TENSORRT_OLDEST, TENSORRT_NEWEST = "10.3", "11.4"  # the versions that export and runtime are written for
JETPACK_PYTHON = {6: "3.10", 7: "3.12"}  # Python that the board's tensorrt module is built for
SYSTEM_VENV = "python3 -m venv --system-site-packages .venv"
CHECKED = "engines are checked against reference outputs before use"


@dataclass(frozen=True)
class Fault:
    """A known fault of TensorRT.

    Attributes:
        version: releases that have it, by major and minor number; "" is every one.
        compute_capability: GPUs that have it; "" is every one.
        text: what goes wrong, and where it is reported.
    """

    version: str
    compute_capability: str
    text: str


FAULTS = (
    Fault("10.3", "", "fp16 engines of a ViT can be wrong (TensorRT issue 4723)"),
    Fault("11.3", "", "engines built with REFIT can lose the bias of a matrix product"),
    Fault("", "12.0", "fp16 fused attention can be wrong on this GPU (TensorRT issue 4837)"),
)


def check_torch(subject: Subject) -> Iterator[Finding]:
    """Load torch, and say what it computes on."""
    machine = subject.machine
    try:
        torch: Any = importlib.import_module("torch")
    except (ImportError, OSError) as error:
        yield Finding("torch", False, _one_line(error), _torch_mend(machine), "torch is missing, or a library of it is")
        return
    if not torch.cuda.is_available():
        found = f"{torch.__version__}, CPU with {torch.get_num_threads()} threads"
        if machine.supported:
            yield Finding("torch", False, found, _torch_mend(machine), _no_cuda(torch, machine))
        else:
            yield Finding("torch", True, found)
        return
    found = f"{torch.__version__}, CUDA {torch.version.cuda} on {torch.cuda.get_device_name()}"
    capability, built = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if built and not _runs_on(built, capability):
        cause = (
            f"it is built for {', '.join(built)}, and this GPU has compute capability {'.'.join(map(str, capability))}"
        )
        yield Finding("torch", False, found, _torch_mend(machine), cause)
    else:
        yield Finding("torch", True, found)


def _no_cuda(torch: Any, machine: Machine) -> str:
    if torch.version.cuda is None:
        return "this torch is built without CUDA, so this board's GPU is not used"
    if not same_cuda(torch.version.cuda, machine):
        return f"this torch is built for CUDA {torch.version.cuda}, and the board has CUDA {machine.cuda}"
    return "the driver does not answer: in a container, start it with --runtime nvidia; else see the cuda check"


def _torch_mend(machine: Machine) -> str:
    if not machine.supported:
        return "pip install --force-reinstall torch"
    release = f"JetPack {machine.jetpack}" if machine.jetpack else "this JetPack"
    return f"pip install --force-reinstall TORCH_WHEEL, with NVIDIA's wheel of torch for {release} (docs/boards.md)"


def _runs_on(built: list[str], capability: tuple[int, int]) -> bool:
    """Whether code for some GPUs runs on one: binaries within a major version, intermediate code on newer ones."""
    for kind, major, minor in re.findall(r"\b(sm|compute)_(\d+)(\d)[af]?\b", " ".join(built)):
        target = (int(major), int(minor))
        if target <= capability and (kind == "compute" or target[0] == capability[0]):
            return True
    return False


def check_tensorrt(subject: Subject) -> Iterator[Finding]:
    """Load TensorRT where it is installed; hold its version against ours and against its package."""
    machine = subject.machine
    try:
        tensorrt: Any = importlib.import_module("tensorrt")
        version = str(tensorrt.__version__)
    except (ImportError, OSError, AttributeError) as error:
        yield _no_tensorrt(machine, error)
        return
    if not numbers(TENSORRT_OLDEST) <= numbers(version)[:2] <= numbers(TENSORRT_NEWEST):
        cause = f"edge-cl is written for TensorRT {TENSORRT_OLDEST} to {TENSORRT_NEWEST}"
        mend = "Update JetPack, or export with --format onnx."
        yield Finding("tensorrt", not machine.supported, version, mend, cause)
        return
    package = machine.tensorrt
    if machine.supported and package and numbers(package)[:3] != numbers(version)[:3]:
        cause = f"the board's library is {package}: engines of one version do not load in the other"
        mend = f"pip uninstall tensorrt, and use the board's: {SYSTEM_VENV}"
        yield Finding("tensorrt", False, version, mend, cause)
        return
    faults = [f.text for f in FAULTS if _has(f, version, _compute_capability(machine))]
    yield Finding("tensorrt", True, version, cause=f"{'; '.join(faults)}: {CHECKED}" if faults else "")


def _has(fault: Fault, version: str, capability: str) -> bool:
    return (not fault.version or numbers(version)[:2] == numbers(fault.version)) and (
        not fault.compute_capability or fault.compute_capability == capability
    )


def _compute_capability(machine: Machine) -> str:
    if machine.profile:
        return machine.profile.compute_capability
    torch = sys.modules.get("torch")  # an earlier check loaded it, where it could be
    if torch is None or not torch.cuda.is_available():
        return ""
    return ".".join(map(str, torch.cuda.get_device_capability()))


def _no_tensorrt(machine: Machine, error: Exception) -> Finding:
    missing = isinstance(error, ModuleNotFoundError)
    if not machine.supported:
        state = "not installed, and not needed here" if missing else f"does not load: {_one_line(error)}"
        return Finding("tensorrt", True, state)
    if not machine.tensorrt:
        return Finding("tensorrt", False, "not installed", INSTALL_JETPACK, "TensorRT comes with JetPack")
    found = f"package {machine.tensorrt}, but: {_one_line(error)}"
    if "python3-libnvinfer" not in machine.packages:
        mend = "sudo apt install python3-libnvinfer"
        return Finding("tensorrt", False, found, mend, "the package of its Python module is not installed")
    python = JETPACK_PYTHON.get(numbers(machine.jetpack or "0")[0])
    if python and _python() != python:
        cause = f"its module is for Python {python}, the Python of the board, and this is Python {_python()}"
        return Finding("tensorrt", False, found, SYSTEM_VENV.replace("python3", f"python{python}"), cause)
    if _isolated():
        return Finding(
            "tensorrt", False, found, SYSTEM_VENV, "this virtual environment does not see the system's packages"
        )
    return Finding("tensorrt", False, found, INSTALL_JETPACK, "its Python module does not load")


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _isolated() -> bool:
    try:
        settings = (Path(sys.prefix) / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:  # no virtual environment
        return False
    return re.search(r"include-system-site-packages\s*=\s*true", settings) is None


def check_pycuda(subject: Subject) -> Iterator[Finding]:
    """Load PyCUDA's driver interface, which needs the driver library."""
    needed = subject.machine.supported
    try:
        importlib.import_module("pycuda.driver")
        version: Any = importlib.import_module("pycuda").VERSION
        yield Finding("pycuda", True, ".".join(map(str, version)))
    except ModuleNotFoundError:
        state = "not installed" if needed else "not installed, and not needed here"
        yield Finding("pycuda", not needed, state, "pip install 'edge-cl[jetson]'" if needed else "")
    except (ImportError, OSError) as error:
        library = re.search(r"lib[\w.+-]+\.so[.\d]*", str(error))
        cause = f"{library[0]} is missing" if library else "a library that it needs is missing"
        mend = "See the cuda check; if that is well: pip install --force-reinstall --no-binary :all: pycuda"
        yield Finding("pycuda", not needed, f"does not load: {_one_line(error)}", mend if needed else "", cause)


def check_onnxruntime(subject: Subject) -> Iterator[Finding]:
    """Load ONNX Runtime, which runs exported bundles where TensorRT is not."""
    try:
        onnxruntime: Any = importlib.import_module("onnxruntime")
        providers = ", ".join(p.removesuffix("ExecutionProvider") for p in onnxruntime.get_available_providers())
        yield Finding("onnxruntime", True, f"{onnxruntime.__version__} ({providers})")
    except (ImportError, OSError, AttributeError) as error:
        mend = "pip install --force-reinstall onnxruntime"
        yield Finding("onnxruntime", False, f"does not load: {_one_line(error)}", mend, "exported bundles need it")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
