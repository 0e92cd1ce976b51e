"""Opening a bundle: every way in which one can be damaged, altered or foreign, and the words it is refused with."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import Deployed
from forgeries import (
    Damage,
    assert_refused,
    at,
    flipped,
    forge,
    nan,
    other_graph,
    outside,
    raw,
    replace_by,
    say,
    tensors,
    value_of,
)
from safetensors.numpy import load_file

from edge_cl.export.bundle import MANIFEST, Bundle, BundleError, Manifest, joint_factors, read_manifest
from edge_cl.runtime import Classifier


@pytest.fixture
def bundle(deployed: Deployed, tmp_path: Path) -> Path:
    (tmp_path / "secret.bin").write_bytes(b"\0" * 64)
    return deployed.copy(tmp_path / "bundle")


QKV = "blocks.0.attn.qkv.weight"
NO_USE = "manifest.json is no manifest that can be used: "
SHAPE = {"depth": 3, "split": 1, "width": 64, "tokens": 5, "summaries": 2, "r": 10}
MANIFESTS: dict[str, tuple[Damage, str]] = {
    "missing": (lambda b: (b / MANIFEST).unlink(), "is no bundle: it has no manifest.json."),
    "empty": (raw(b""), NO_USE + "Expecting value"),
    "no JSON": (raw(b"hello"), NO_USE + "Expecting value"),
    "not UTF-8": (raw(b'{"manifest": "\xff"}'), NO_USE + "'utf-8' codec can't decode"),
    "a number": (raw(b"7"), NO_USE + "'int' object is not subscriptable"),
    "a list": (raw(b"[]"), NO_USE + "list indices must be"),
    "of a web page": (raw(b'{"name": "app", "icons": []}'), NO_USE + "it has no 'manifest'."),
    "deeply nested": (raw(b'{"manifest":' * 100_000), NO_USE + "maximum recursion depth exceeded"),
    "truncated": (lambda b: os.truncate(b / MANIFEST, 900), NO_USE),
    "too large": (raw(b" " * (8 << 20) + b"{}"), NO_USE + "it is larger than 8 MiB."),
    "a directory": (lambda b: ((b / MANIFEST).unlink(), (b / MANIFEST).mkdir()), NO_USE + "it is no plain file."),
    "a pipe": (lambda b: ((b / MANIFEST).unlink(), os.mkfifo(b / MANIFEST)), NO_USE + "it is no plain file."),
    "altered": (
        lambda b: (b / MANIFEST).write_text((b / MANIFEST).read_text().replace('"task 1"', '"task 7"')),
        NO_USE + "its content has SHA-256 ",
    ),
    "of a later format": (say("format", value=2), NO_USE + "it has format 2, and this edge-cl reads format 1."),
    "no format": (say("format", value=...), NO_USE + "it has no 'format'."),
    "unknown layout": (say("layout", value="split"), NO_USE + "it says layout 'split' and precision 'fp32'."),
    "unknown precision": (say("precision", value="int8"), NO_USE + "it says layout 'shared' and precision 'int8'."),
    "negative shape": (say("shape", "width", value=-64), NO_USE + "it says a shape of {"),
    "huge shape": (say("shape", "depth", value=1 << 40), NO_USE + "it says a shape of {"),
    "huge rank": (say("shape", "r", value=1 << 19), NO_USE + "it says a shape of {"),
    "factors beyond memory": (
        say("shape", value={**SHAPE, "depth": 200, "width": 9000, "r": 900}),
        NO_USE + "it says a shape of {",
    ),
    "fraction in the shape": (say("shape", "width", value=64.5), NO_USE + "it says a shape of {"),
    "all blocks in the prefix": (say("shape", "split", value=3), NO_USE + "it says a shape of {"),
    "no shape": (say("shape", value={}), NO_USE + "Shape.__init__() missing 6 required"),
    "no preprocessing": (
        say("backbone", "preprocess", value=...),
        NO_USE + "it does not say how pictures become input.",
    ),
    "huge input": (say("backbone", "preprocess", "image_size", value=10**9), NO_USE + "it says an input of 1000000000"),
    "unknown interpolation": (
        say("backbone", "preprocess", "interpolation", value="eval"),
        NO_USE + "it does not say how pictures become input.",
    ),
    "temperature of zero": (say("temperature", value=0), NO_USE + "it says temperature 0.0."),
    "temperature beyond numbers": (say("temperature", value=10**400), NO_USE + "int too large to convert to float."),
    "temperature beyond single precision": (say("temperature", value=1e300), NO_USE + "it says temperature 1e+300."),
    "temperature below single precision": (say("temperature", value=1e-60), NO_USE + "it says temperature 1e-60."),
    "threshold as text": (say("threshold", value="far"), NO_USE + "could not convert string to float: 'far'."),
    "least score as text": (say("least_score", value="low"), NO_USE + "could not convert string to float: 'low'."),
    "least score as a list": (say("least_score", value=[1]), NO_USE + "float() argument must be a string or a real"),
    "two classes of an id": (say("classes", "1", "id", value=0), NO_USE + "it has two classes of the same id."),
    "two classes of a name": (say("classes", "1", "name", value="b"), NO_USE + "it has two classes of the same name."),
    "class of a negative task": (say("classes", "0", "task", value=-1), NO_USE + "it has a class whose id or task is"),
    "class without a name": (say("classes", "0", "name", value=...), NO_USE + "it has no 'name'."),
    "no weights": (say("files", "weights", value=...), NO_USE + "it names no 'weights'."),
    "no head": (say("files", "head", value=...), NO_USE + "it names no 'head'."),
    "file name with ..": (
        say("files", "head", "name", value="../secret.bin"),
        NO_USE + "its file 'head' is not described by a name, a SHA-256 and a size.",
    ),
    "absolute file name": (say("files", "head", "name", value="/etc/passwd"), NO_USE + "its file 'head' is not "),
    "file name with a line": (say("files", "head", "name", value="head-0123456789abcdef.onnx\n"), NO_USE),
    "file name of another hash": (say("files", "head", "sha256", value="0" * 64), NO_USE + "its file 'head' is not "),
    "file name that is none": (say("files", "head", "name", value=7), NO_USE + "expected string or bytes-like object"),
    "file size as text": (say("files", "head", "size", value="7"), NO_USE + "its file 'head' is not "),
    "file of a negative size": (say("files", "head", "size", value=-1), " bytes, expected -1."),
}
FILES: dict[str, tuple[Damage, str]] = {
    "missing": (at("head", lambda p: p.unlink()), "cannot be read: No such file or directory."),
    "truncated": (at("weights", lambda p: os.truncate(p, 1000)), "has 1000 bytes, expected "),
    "empty": (at("branch/1", lambda p: os.truncate(p, 0)), "has 0 bytes, expected "),
    "longer than said": (at("head", lambda p: p.write_bytes(p.read_bytes() + b"\0")), " bytes, expected "),
    "one bit altered": (at("suffix", flipped), "has other content than its manifest says (SHA-256 "),
    "one bit of the weights altered": (at("weights", flipped), "has other content than its manifest says"),
    "a link out of the directory": (
        at("head", replace_by(lambda p: p.symlink_to("../secret.bin"))),
        "is no plain file.",
    ),
    "a link to the same content": (at("head", replace_by(lambda p: p.symlink_to("moved"))), "is no plain file."),
    "a directory": (at("head", replace_by(lambda p: p.mkdir())), "is no plain file."),
    "a pipe": (at("head", replace_by(lambda p: os.mkfifo(p))), "is no plain file."),
}
FORGED: dict[str, tuple[Damage, str]] = {
    "tensor of the wrong shape": (tensors("head", centre=lambda v: v[:-1]), "centre is (383,), not (384,)."),
    "tensor of other dimensions": (tensors("head", bias=lambda v: v[None]), "bias is missing, or not of 1 dimensions."),
    "tensor missing": (tensors("head", weight=None), "weight is missing, or not of 2 dimensions."),
    "matrix of another width": (tensors("head", weight=lambda v: v[:, :-1]), "weight is int8 (7, 383), not of 384 col"),
    "matrix without scales": (tensors("head", basis_scale=None), "basis has scales none, not (64, 6)."),
    "matrix of fewer scales": (
        tensors("branch/1", weight_scale=lambda v: v[:, :-1]),
        "weight has scales (3, 5), not (3, 6).",
    ),
    "matrix of a scale a number": (tensors("exit", weight_scale=lambda v: v[0]), "weight has scales (2,), not (7, 2)."),
    "scale of NaN": (tensors("head", weight_scale=nan), "weight holds values that are not finite."),
    "vector in whole numbers": (
        tensors("head", gain=lambda v: v.astype(np.int8)),
        "gain is int8, which only a matrix can be.",
    ),
    "tensor with NaN": (tensors("branch/1", centre=nan), "centre holds values that are not finite."),
    "tensor beyond single precision": (
        tensors("head", bias=lambda v: v.astype(np.float64) * 1e300),
        "bias holds values that are not finite.",
    ),
    "adapter with NaN": (tensors("adapter/2", B=nan), "B holds values that are not finite."),
    "adapter of other blocks": (tensors("adapter/1", A=lambda v: v[:1]), "A is (1, 2, 10, 64), not (2, 2, None, 64)."),
    "adapter of a larger rank": (
        tensors("adapter/1", A=lambda v: np.repeat(v, 2, 2), B=lambda v: np.repeat(v, 2, 3)),
        "A and B have ranks 20 and 20, and the graphs take 10.",
    ),
    "adapter of two ranks": (
        tensors("adapter/1", A=lambda v: v[:, :, :3]),
        "A and B have ranks 3 and 10, and the gr",
    ),
    "weights without one": (tensors("weights", **{QKV: None}), QKV + " is missing, or not of 2 dimensions."),
    "weights of another shape": (tensors("weights", **{QKV: lambda v: v.T}), QKV + " is (192, 64), not (64, 192)."),
    "basis without its gain": (tensors("head", gain=lambda v: v[:-1]), "its basis, gain and variance do not go toge"),
    "variance of zero": (tensors("head", variance=np.zeros_like), "its basis, gain and variance do not go together."),
    "branch of other classes": (
        tensors("branch/1", classes=lambda v: v + 1),
        "cannot be used: it speaks of classes that are not the task's.",
    ),
    "branch of one class twice": (tensors("branch/1", classes=lambda v: v[[0, 0, 1]]), "it speaks of classes that are"),
    "branch of temperature zero": (tensors("branch/1", share=lambda v: v * [1, 0]), "its temperature 0.0."),
    "branch of a share beyond one": (tensors("branch/1", share=lambda v: v * [0, 1] + [5, 0]), "its share is 5.0, its"),
    "exit of temperature zero": (tensors("exit", fit=lambda v: v * [0, 1, 1]), "its temperature is 0.0, its con"),
    "exit without what was fitted": (tensors("exit", fit=None), "fit is missing, or not of 1 dimensions."),
    "exit over other features": (tensors("exit", weight=lambda v: v[:, :-1]), ": weight is "),
    "exit of no spread": (tensors("exit", variance=np.zeros_like), "its basis, gain and variance do not go together."),
    "spread of other classes": (tensors("spread", cost=lambda v: v[:-1]), "cost is (6,), not (7,)."),
    "spread of an odd number of rows": (
        tensors("spread", weight=lambda v: v[:-1], weight_scale=lambda v: v[:-1], offset=lambda v: v[:-1]),
        "its weight, offset and cost do not go together.",
    ),
    "spread of fewer offsets": (tensors("spread", offset=lambda v: v[:-1]), "its weight, offset and cost do not go to"),
    "spread with NaN": (tensors("spread", offset=nan), "offset holds values that are not finite."),
    "no safetensors": (forge("head", lambda data: b"x" * 99), "cannot be read: "),
    "safetensors of a huge header": (forge("head", lambda data: b"\xff" * 8 + data[8:]), "cannot be read: "),
    "graph that is none": (forge("suffix", lambda data: b"not a graph"), "ONNX Runtime refuses "),
    "graph of no bytes": (forge("prefix", lambda data: b""), "ONNX Runtime refuses "),
    "graph cut short": (forge("suffix", lambda data: data[: len(data) // 2]), "ONNX Runtime refuses "),
    "graph of another kind": (forge("suffix", other_graph), " takes {'x': (1,)}, not {'tokens': (None, 5, 64), "),
    "prefix of another kind": (forge("prefix", other_graph), "ONNX Runtime refuses "),
    "graph with weights outside": (forge("suffix", outside("../secret.bin")), "External data path escapes model dir"),
    "graph with weights at a path": (forge("suffix", outside("/etc/passwd")), "Absolute path not allowed"),
    "graph with weights of a device": (forge("suffix", outside("/dev/zero")), "Absolute path not allowed"),
    "shape of another rank": (say("shape", "r", value=11), " takes {'tokens': (None, 5, 64), 'lora_down': (2, 20, 64)"),
    "shape of more tokens": (say("shape", "tokens", value=50), " gives {'tokens': (None, 5, 64), "),
    "no class": (say("classes", value=[]), ""),
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_manifest(bundle: Path, kind: str) -> None:
    damage, expected = MANIFESTS[kind]
    damage(bundle)
    assert_refused(lambda: Bundle.open(bundle), bundle, expected)
    assert_refused(lambda: Classifier(bundle), bundle, expected)


@pytest.mark.parametrize("kind", FILES)
def test_file(bundle: Path, kind: str) -> None:
    damage, expected = FILES[kind]
    damage(bundle)
    assert_refused(lambda: Bundle.open(bundle), bundle, expected)
    assert_refused(lambda: Classifier(bundle), bundle, expected)


@pytest.mark.parametrize("kind", FORGED)
def test_forged_with_right_hashes(bundle: Path, kind: str) -> None:
    damage, expected = FORGED[kind]
    damage(bundle)
    Bundle.open(bundle)
    assert_refused(lambda: Classifier(bundle), bundle, expected)


def test_all_faults_at_once(bundle: Path) -> None:
    for role in ("head", "suffix"):
        at(role, lambda p: p.unlink())(bundle)
    with pytest.raises(BundleError) as refused:
        Bundle.open(bundle)
    assert len(refused.value.faults) == 2
    assert refused.value.mend == f"Export it again: edge-cl export {bundle}"


def test_a_later_format_says_what_to_do(bundle: Path) -> None:
    say("format", value=2)(bundle)
    with pytest.raises(BundleError) as refused:
        Bundle.open(bundle)
    assert refused.value.mend == "Install the edge-cl that wrote it, or export to another directory."


@pytest.mark.parametrize(("name", "value"), [("pretrained", True), ("checkpoint_path", "/tmp/x.pth")])
def test_a_foreign_backbone_loads_nothing(bundle: Path, name: str, value: Any) -> None:
    from edge_cl.errors import BackboneError

    say("backbone", "overrides", name, value=value)(bundle)
    with pytest.raises(BackboneError, match=f"would have timm fetch or read files: {name}"):
        Classifier(bundle, backend="torch")


def test_foreign_weights_in_torch(bundle: Path) -> None:
    tensors("weights", cls_token=None)(bundle)
    assert_refused(lambda: Classifier(bundle, backend="torch"), bundle, "cls_token")


def test_merged_bundle_without_a_merged_graph(deployed: Deployed, tmp_path: Path) -> None:
    bundle = deployed.copy(tmp_path / "bundle", "merged")
    say("files", "merged/1", value=...)(bundle)
    assert_refused(lambda: Bundle.open(bundle), bundle, "it names no 'merged/1'.")


def test_a_manifest_says_again_what_it_read(deployed: Deployed) -> None:
    manifest = read_manifest(deployed.bundle())
    assert Manifest.decode(manifest.encode()) == manifest
    assert vars(manifest.shape) == SHAPE
    assert manifest.tasks == [0, 1, 2]
    assert dict(manifest.task_names) == {0: "task 0", 1: "task 1", 2: "task 2"}
    assert np.isfinite([manifest.threshold, manifest.least_score]).all()
    endless = replace(manifest, threshold=float("inf"), least_score=-float("inf"))
    assert Manifest.decode(endless.encode()) == endless


def test_a_least_score_that_is_null_or_absent_is_none(bundle: Path) -> None:
    """Bundles of earlier releases lack it."""
    assert Classifier(bundle)._loaded.recogniser.head.least_score == value_of(bundle)["least_score"]
    for value in (None, ...):
        say("least_score", value=value)(bundle)
        assert Classifier(bundle)._loaded.recogniser.head.least_score == -np.inf
        say("least_score", value=-3)(bundle)
        assert read_manifest(bundle).least_score == -3


def test_joint_factors_by_hand() -> None:
    """Queries first, then keys (zero), then values; a smaller rank is filled up with zeros."""
    A = np.asarray([[[[1, 2]], [[3, 4]]]], np.float32)  # one block, rank 1, width 2
    B = np.asarray([[[[5], [6]], [[7], [8]]]], np.float32)
    down, up = joint_factors(A, B, 2)
    assert down.tolist() == [[[1, 2], [0, 0], [3, 4], [0, 0]]]
    assert up.tolist() == [[[5, 0, 0, 0], [6, 0, 0, 0], [0] * 4, [0] * 4, [0, 0, 7, 0], [0, 0, 8, 0]]]


def test_factors_are_the_adapters(deployed: Deployed) -> None:
    bundle, adapter = Bundle.open(deployed.bundle()), deployed.learner().load()[0].adapters[1]
    down, up = bundle.factors("adapter/1")
    for i in range(2):
        expected = adapter.factors(adapter.first + i)
        assert expected is not None
        assert np.allclose(down[i], expected[0].detach(), rtol=2**-11, atol=1e-6)
        assert np.allclose(up[i], expected[1].detach(), rtol=2**-11, atol=1e-6)
    assert load_file(bundle.file("head"))["weight"].shape == (7, 384)
