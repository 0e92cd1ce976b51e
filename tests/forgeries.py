"""Damage to bundles: by accident, and by a forger who gets every hash right."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import load, save

from edge_cl.export.bundle import MANIFEST, BundleError, FileRef, read_manifest
from edge_cl.version import canonical_json

Damage = Callable[[Path], object]


def value_of(bundle: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((bundle / MANIFEST).read_bytes())["manifest"]
    return value


def write_manifest(bundle: Path, value: Any) -> None:
    """Write a manifest whose own hash is right, as a forger does."""
    digest = hashlib.sha256(canonical_json(value)).hexdigest()
    (bundle / MANIFEST).write_text(json.dumps({"sha256": digest, "manifest": value}))


def say(*keys: str, value: Any) -> Damage:
    """Forge one value of the manifest; `...` for a value takes the key out."""

    def damage(bundle: Path) -> None:
        whole = value_of(bundle)
        part = whole
        for key in keys[:-1]:
            part = part[int(key)] if isinstance(part, list) else part[key]
        if value is ...:
            del part[keys[-1]]
        else:
            part[keys[-1]] = value
        write_manifest(bundle, whole)

    return damage


def raw(data: bytes) -> Damage:
    return lambda bundle: (bundle / MANIFEST).write_bytes(data)


def at(role: str, damage: Damage) -> Damage:
    """Damage the file of a role, but not the manifest."""
    return lambda bundle: damage(bundle / read_manifest(bundle).files[role].name)


def forge(role: str, change: Callable[[bytes], bytes]) -> Damage:
    """Put another file in a role's place, named and described as it should be."""

    def damage(bundle: Path) -> None:
        old = read_manifest(bundle).files[role]
        data = change((bundle / old.name).read_bytes())
        digest = hashlib.sha256(data).hexdigest()
        name = f"forged-{digest[:16]}.{old.name.rpartition('.')[2]}"
        (bundle / name).write_bytes(data)
        say("files", role, value=vars(FileRef(name, digest, len(data))))(bundle)

    return damage


def tensors(role: str, **changes: Any) -> Damage:
    """Forge a file of tensors: None takes one out, a function changes one."""

    def change(data: bytes) -> bytes:
        held = load(data)
        for name, how in changes.items():
            if how is None:
                del held[name]
            else:
                held[name] = np.ascontiguousarray(how(held[name]))
        return save(held)

    return forge(role, change)


def replace_by(make: Callable[[Path], object]) -> Damage:
    """Return a damage that puts something else in a file's place."""

    def damage(path: Path) -> None:
        path.rename(path.with_name("moved"))
        make(path)

    return damage


def outside(location: str) -> Callable[[bytes], bytes]:
    """Make a suffix graph point elsewhere for its weights."""

    def change(data: bytes) -> bytes:
        model = onnx.load_from_string(data)
        held = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
        next(entry for entry in held.external_data if entry.key == "location").value = location
        return bytes(model.SerializeToString())

    return change


def other_graph(data: bytes) -> bytes:
    """Return a whole graph that takes and gives other tensors."""
    one = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", one[:1], one[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def nan(value: Any) -> Any:
    value = value.copy()
    value.flat[-1] = np.nan
    return value


def assert_refused(action: Callable[[], object], bundle: Path, expected: str) -> None:
    """Expect one clear error, and nothing changed."""
    before = state(bundle)
    with pytest.raises(BundleError) as refused:
        action()
    assert expected in " ".join(refused.value.faults)
    assert str(bundle) in refused.value.faults[0]
    assert refused.value.mend
    assert state(bundle) == before


def state(bundle: Path) -> dict[str, Any]:
    return {p.name: (p.lstat().st_mode, p.lstat().st_size, p.lstat().st_mtime_ns) for p in bundle.iterdir()}
