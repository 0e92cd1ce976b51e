"""Golden vectors that the Python tests make and both sides are held to: python tests/cpp/golden.py writes them anew.

Each file is safetensors; `tests/test_cpp.py` compares what is there with what this Python computes, and the C++ tests
with what C++ computes. The bundles are of a vision transformer of two blocks. Two are as earlier commits
wrote them, with heads in single and in half precision: they are read, and never written anew.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import numpy.typing as npt
from PIL import Image
from safetensors.numpy import load_file, save, save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from small import CONFIG, picture, write_looks

from edge_cl.export.bundle import FileRef, joint_factors, read_manifest
from edge_cl.head import Branch, Discriminant, Exit, Head
from edge_cl.learner import Learner
from edge_cl.preprocess import Preprocess
from edge_cl.runtime import Classifier
from edge_cl.spread import Quadratic
from edge_cl.statistics import Precision

GOLDEN = Path(__file__).parent / "golden"
EARLIER = ("earlier", "halves")
BUNDLES = {"shared": ("shared", "fp32"), "merged": ("merged", "fp32"), "half": ("shared", "fp16")}
Tensors = Mapping[str, npt.NDArray[np.generic]]

# Width, height, side of the input, crop fraction, interpolation.
RESAMPLINGS = {
    "smaller": (40, 30, 16, 0.9, "bicubic"),
    "larger": (11, 9, 32, 1.0, "bicubic"),
    "same": (24, 24, 24, 1.0, "bicubic"),
    "bilinear": (37, 29, 16, 0.875, "bilinear"),
    "wide": (90, 20, 16, 1.0, "bicubic"),
    "upright": (30, 44, 16, 0.95, "bicubic"),
    "tall": (20, 60, 16, 0.9, "bicubic"),  # Pillow resamples down first, since version 13
    "one pixel": (1, 1, 8, 1.0, "bicubic"),
    "narrow": (3, 5, 16, 0.7, "bilinear"),
    "much smaller": (200, 150, 8, 1.0, "bicubic"),
}


def noise(width: int, height: int, seed: int) -> npt.NDArray[np.uint8]:
    """Return a picture of independent pixels: what shows every difference."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resampling() -> Tensors:
    """Return pictures and what preprocessing makes of them, by case: in, out, and [S, crop fraction, bicubic]."""
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    for i, (name, (width, height, side, crop, interpolation)) in enumerate(RESAMPLINGS.items()):
        pixels = noise(width, height, i)
        spec = Preprocess(side, interpolation=interpolation, crop_fraction=crop)
        tensors[f"{name}/in"] = pixels
        tensors[f"{name}/out"] = spec.centre(Image.fromarray(pixels))
        tensors[f"{name}/spec"] = np.asarray([side, crop, interpolation == "bicubic"], np.float32)
    return tensors


def head() -> Tensors:
    """Return a head of two tasks, features, and every number on the way to the answer."""
    generator = np.random.default_rng(7)

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return generator.normal(0, 1, shape).astype(np.float32)

    count, features, rank, pictures = 5, 48, 6, 9
    basis = np.linalg.qr(normal(features, rank).astype(np.float64))[0].T.astype(np.float32, order="C")
    gain = -generator.uniform(0.1, 0.9, rank).astype(np.float32)
    ids, tasks = np.asarray([10, 11, 12, 20, 21]), np.asarray([0, 0, 0, 3, 3])
    base = Discriminant(normal(count, features), normal(count), normal(features))
    branch = Branch(ids[[4, 3]], Discriminant(normal(2, features), normal(2), normal(features)), normal(2, 8), 0.4, 1.7)
    drawn = [np.random.default_rng(8).normal(0, 0.1, size).astype(np.float32) for size in ((10, count), 10, count)]
    quadratic = Quadratic(*drawn)
    made = Head(ids, tasks, base, Precision(basis, gain, 0.8), {3: branch}, temperature=6.5, quadratic=quadratic)
    x, own = normal(pictures, features), normal(pictures, features)
    scores, distance, posterior = base.scores(x), made.distance(x), made.base_posterior(x)
    routes = made.route(posterior)
    fused = posterior.copy()
    for i, route in enumerate(routes):
        for task in route:
            fused[i : i + 1] = made.fuse(fused[i : i + 1], task, branch.discriminant.scores(own[i : i + 1]))
    assert 0 < sum(map(len, routes)) < pictures
    split = features // 3
    fitted = Discriminant(normal(count, split), normal(count), normal(split))
    early = Head(ids, tasks, fitted, Precision(basis[:2, :split] / 2, gain[:2], 0.9), temperature=5.0, threshold=14.5)
    first, stands, _ = Exit(early, 0.48).answers(x)
    assert stands.any() and not stands.all()
    unsure = replace(made, exit=Exit(early, 0.48)).unsure(posterior)
    return {
        "weight": base.weight, "bias": base.bias, "centre": base.centre, "basis": basis, "gain": gain,
        "scalars": np.asarray([0.8, 6.5, branch.weight, branch.temperature], np.float32),
        "tasks": np.asarray([0, 0, 0, 1, 1], np.int64), "columns": np.asarray([4, 3], np.int64),
        "own_weight": branch.discriminant.weight, "own_bias": branch.discriminant.bias,
        "own_centre": branch.discriminant.centre, "x": x, "own": own, "scores": scores, "distance": distance,
        "best": made.whole(scores).max(1), "posterior": posterior, "fused": fused,
        "spread_weight": quadratic.weight, "spread_offset": quadratic.offset, "spread_cost": quadratic.cost,
        "routed": np.asarray([len(route) for route in routes], np.int64), "exit_weight": fitted.weight,
        "exit_bias": fitted.bias, "exit_centre": fitted.centre, "exit_basis": early.precision.basis,
        "exit_gain": early.precision.gain, "exit_scalars": np.asarray([0.9, 5.0, 14.5, 0.48], np.float32),
        "exit_posterior": first, "exit_stands": stands.astype(np.int64),
        "unsure": np.isin(np.arange(pictures), unsure).astype(np.int64),
    }  # fmt: skip


def numbers() -> Tensors:
    """Return single-precision numbers with their halves, and an adapter with its joint factors."""
    generator = np.random.default_rng(3)
    values = np.concatenate(
        (
            generator.normal(0, 1, 200),
            generator.normal(0, 1e-6, 200),
            generator.normal(0, 1e5, 50),
            np.ldexp(1.0, np.arange(-27, 17)),
            1 + np.arange(16) * 2.0**-12,  # halfway between two halves
            [0.0, -0.0, 65504, 65519.99, 65520, np.inf, -np.inf],
        )
    ).astype(np.float32)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    A = generator.normal(0, 1, (3, 2, 2, 8)).astype(np.float32)
    B = generator.normal(0, 1, (3, 2, 8, 2)).astype(np.float32)
    down, up = joint_factors(A, B, 4)
    bits = halves.view(np.uint16).astype(np.int64)
    wide = halves.astype(np.float32)
    return {"values": values, "halves": bits, "widened": wide, "A": A, "B": B, "down": down, "up": up}


FILES = {"resampling": resampling, "head": head, "numbers": numbers}


def tiny_learner(root: Path) -> Learner:
    """Teach two tasks to a vision transformer of two blocks of width 16."""
    import timm
    import torch

    from edge_cl.architecture import BackboneSpec

    overrides = {"depth": 2, "embed_dim": 16, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = timm.create_model("test_vit", img_size=32, num_classes=0, **overrides)
        state = {name: (v + 0.3 * torch.randn(v.shape)).numpy() for name, v in vit.state_dict().items()}
    root.mkdir(parents=True, exist_ok=True)
    save_file(state, root / "weights.safetensors")
    spec = BackboneSpec("test_vit", 32, 1, Preprocess(32, crop_fraction=0.9), overrides)
    source = SimpleNamespace(spec=spec, path=root / "weights.safetensors")
    with mock.patch("edge_cl.weights.find_backbone", lambda *_: source):
        learner = Learner.init(root / "store", device="cpu")
    config = replace(CONFIG, epochs=4)
    with mock.patch.multiple("edge_cl.assessment", FEWEST_PROBES=6, EXIT_AGREEMENT=0.0):  # so that there is an exit
        learner.learn(write_looks(root / "first", {"red": 1, "green": 6, "dark blue": 12}), config)
        learner.learn(write_looks(root / "second", {"yellow": 3, "violet": 15, "teal": 9}), config)
    return learner


def soften(bundle: Path) -> None:
    """Let answers be in doubt, branches share in them and some stand at the exit: sure answers hide differences."""
    manifest, files, (fit, least_score) = read_manifest(bundle), {}, limits(bundle)
    for role, ref in manifest.files.items():
        files[role] = ref
        if role.startswith("branch/"):
            changed = {"share": np.asarray([0.5, 200], np.float32)}
        elif role == "exit":
            changed = {"fit": fit}
        else:
            continue
        data = save({**load_file(bundle / ref.name), **changed})
        digest = hashlib.sha256(data).hexdigest()
        files[role] = FileRef(f"{role.replace('/', '-')}-{digest[:16]}.safetensors", digest, len(data))
        (bundle / ref.name).unlink()
        (bundle / files[role].name).write_bytes(data)
    manifest = replace(manifest, temperature=400.0, least_score=least_score, files=files)
    (bundle / "manifest.json").write_bytes(manifest.encode())


def limits(bundle: Path) -> tuple[npt.NDArray[np.float32], float]:
    """Return limits that some of the looks are beyond, and none at the edge of.

    Returns:
        Temperature, threshold and confidence of the exit, (3,), and the least score, of those that are near enough.
    """
    recogniser = Classifier(bundle, threads=1)._loaded.recogniser
    head, exit, spec = recogniser.head, recogniser.head.exit, recogniser.backend.preprocess
    assert exit is not None
    features = recogniser.backend.encode(np.stack([spec.centre(Image.fromarray(frame)) for frame in looks()])).features
    prefix = features[:, : len(exit.head.discriminant.centre)]
    early = replace(exit.head, temperature=400.0)
    sure, distances = (np.sort(v) for v in (early.base_posterior(prefix).max(1), early.distance(prefix)))
    middle, high = len(sure) // 2, 4 * len(sure) // 5
    near = head.distance(features) <= head.threshold
    best = np.sort(head.whole(head.discriminant.scores(features[near])).max(1))
    fit = np.asarray([400, distances[high : high + 2].mean(), sure[middle : middle + 2].mean()], np.float32)
    return fit, float(best[len(best) // 2 - 1 : len(best) // 2 + 1].mean())


def looks() -> npt.NDArray[np.uint8]:
    """Return frames of every look, (B, 40, 40, 3)."""
    return np.stack([np.asarray(picture(look, 99)) for look in range(18)])


def answers(bundle: Path) -> Tensors:
    """Return what the Python runtime makes of the frames: probabilities by class, and whether and how far unknown."""
    tensors: dict[str, npt.NDArray[np.generic]] = {"frames": looks()}
    for rule in ("routed", "base"):
        classifier = Classifier(bundle, threads=1, rule=rule)
        found = classifier.predict(list(looks()), top=len(classifier.classes))
        by_name = [dict(p.top) for p in found]
        tensors[rule] = np.asarray([[p[name] for name in classifier.classes] for p in by_name], np.float32)
        tensors["routed_unknown" if rule == "routed" else "unknown"] = np.asarray([p.unknown for p in found], np.int64)
        tensors[f"{rule}_unknown_score"] = np.asarray([p.unknown_score for p in found], np.float32)
    return tensors


def write(out: Path) -> None:
    """Write everything."""
    out.mkdir(parents=True, exist_ok=True)
    for name, make in FILES.items():
        save_file(dict(make()), out / f"{name}.safetensors")
    with tempfile.TemporaryDirectory() as scratch:
        learner = tiny_learner(Path(scratch))
        for name, (layout, precision) in BUNDLES.items():
            bundle = out / f"bundle-{name}"
            shutil.rmtree(bundle, ignore_errors=True)
            learner.export(bundle, layout=layout, precision=precision)
            (bundle / "classifier.onnx").unlink()  # no part of what the runtimes read
            (bundle / ".lock").unlink()
            soften(bundle)
            save_file(dict(answers(bundle)), out / f"answers-{name}.safetensors")


if __name__ == "__main__":
    write(GOLDEN)
