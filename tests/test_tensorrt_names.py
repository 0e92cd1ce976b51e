"""Every TensorRT name that edge-cl uses exists in TensorRT 10.3, 10.13 and 11.4: asked of NVIDIA's own Python bindings.

The bindings import without TensorRT once three stub libraries stand in for its own. The names are read from our source,
so that a new one cannot be forgotten here.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ("export/engine.py", "export/compiler.py", "edge_cl/runtime/nvidia.py", "edge_cl/runtime/execution.py",
           "edge_cl/runtime/tensorrt.py")  # fmt: skip
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
BINDINGS = {
    "10.3": ("tensorrt-cu12-bindings==10.3.0", "10"),  # JetPack 6
    "10.13": ("tensorrt-cu12-bindings==10.13.3.9", "10"),  # JetPack 7
    "11.4": ("tensorrt-cu13-bindings==11.4.0.106", "11"),
}

# What our variables hold.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "error": "ParserError",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "loaded": "ICudaEngine",
    "refitter": "Refitter",
    "prototype": "Weights",
    "self._runtime": "Runtime",
    "self._engine": "ICudaEngine",
    "self._context": "IExecutionContext",
}
ELSEWHERE = {("error", "name"), ("error", "strerror")}  # of an ImportError and an OSError
RTX_ONLY = {"ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}


def used_names() -> set[str]:
    """Return dotted names, from the module down, of all that our source reaches."""
    found: set[str] = set()
    seen: set[str] = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse((ROOT / source).read_text())):
            if isinstance(node, ast.Attribute):
                owner = ast.unparse(node.value)
                if owner in ("trt", "self._trt"):
                    found.add(node.attr)
                elif owner.startswith("trt."):
                    found.add(f"{owner.removeprefix('trt.')}.{node.attr}")
                elif owner in CLASSES and (owner, node.attr) not in ELSEWHERE:
                    seen.add(owner)
                    found.add(f"{CLASSES[owner]}.{node.attr}")
    assert seen == set(CLASSES), f"the table names variables that are not there: {set(CLASSES) - seen}"
    return {name for name in found if "__" not in name.split(".", 1)[-1] or name == "__version__"}


def missing_names(module: str, names: set[str], environment: dict[str, str]) -> list[str]:
    """Ask a Python process of its own which names a module has not."""
    program = f"""
import json, sys
import {module} as trt
def lacks(name):
    value = trt
    for part in name.split("."):
        if not hasattr(value, part):
            return True
        value = getattr(value, part)
    return False
print(json.dumps([name for name in json.load(sys.stdin) if lacks(name)]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(sorted(names)),
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Stub libraries of both major versions."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    directory = tmp_path_factory.mktemp("stubs")
    for major in ("10", "11"):
        for library in LIBRARIES:
            name = f"lib{library}.so.{major}"
            source = str(Path(__file__).parent / "tensorrt_stub.c")
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(directory / name), source]
            subprocess.run(command, check=True, capture_output=True)
    yield directory


@pytest.fixture
def bindings(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Install one version's bindings into a directory of their own, by whatever index pip is set up with."""
    requirement, _ = BINDINGS[request.param]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", "--retries=0"]
    try:
        done = subprocess.run(
            [*command, "--target", str(tmp_path), requirement], capture_output=True, text=True, timeout=50, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"pip does not get {requirement} within 50 s")
    if done.returncode:
        pytest.skip(f"pip cannot get {requirement}: {done.stderr.strip().splitlines()[-1:]}")
    return tmp_path


@pytest.mark.parametrize("bindings", BINDINGS, indirect=True)
def test_every_name_exists(bindings: Path, stubs: Path, request: pytest.FixtureRequest) -> None:
    environment = {"PYTHONPATH": str(bindings), "LD_LIBRARY_PATH": str(stubs)}
    names = used_names() - RTX_ONLY
    assert len(names) > 50
    assert missing_names("tensorrt_bindings", names, environment) == []
    # The check itself can fail: 8.x names that are gone, and one that never was.
    gone = {"IExecutionContext.execute_async_v2", "Builder.build_engine", "Refitter.refit_everything"}
    assert set(missing_names("tensorrt_bindings", gone, environment)) == gone


def test_every_name_exists_in_the_compiler_without_a_gpu() -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the extra tensorrt-rtx")
    assert missing_names("tensorrt_rtx", used_names(), {}) == []


def test_the_names_are_read_from_the_source() -> None:
    names = used_names()
    assert names >= RTX_ONLY
    assert {"Refitter.refit_cuda_engine_async", "BuilderFlag.REFIT_INDIVIDUAL", "OnnxParser", "nptype"} <= names
