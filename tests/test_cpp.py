"""The C++ runtime: its golden vectors are what this Python computes, and its C API answers as Python does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from cpp import golden
from cpp.c_api import CApiError, CClassifier, Library, frame
from forgeries import nan, say, tensors, value_of
from PIL import Image
from safetensors.numpy import load_file
from small import new_learner, write_looks

from edge_cl.export.bundle import Bundle, BundleError
from edge_cl.learner import Learner
from edge_cl.runtime import Classifier

ROOT = Path(__file__).parents[1]


def _onnxruntime() -> bytes:
    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    return str(library).encode()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The shared library: the one that `cmake --build --preset default` made, or one built here."""
    named = os.environ.get("EDGE_CL_LIBRARY")
    built = Path(named) if named else ROOT / "build" / "default" / "export" / "cpp" / "libedge_cl.so"
    if built.exists():
        return Library(built)
    for program in ("cmake", "c++"):
        if shutil.which(program) is None:
            pytest.skip(f"the C++ runtime is not built, and {program} is not installed")
    out = tmp_path_factory.mktemp("cpp")
    settings = ["-DEDGE_CL_TESTS=OFF", "-DEDGE_CL_EXAMPLES=OFF"]
    configured = subprocess.run(["cmake", "-S", ROOT, "-B", out, *settings], capture_output=True, text=True)
    if configured.returncode or "without the ONNX Runtime backend" in configured.stderr:
        pytest.skip(f"the C++ runtime cannot be built here: {configured.stderr.strip()[-300:]}")
    subprocess.run(["cmake", "--build", out, "-j2"], check=True, capture_output=True)
    return Library(out / "export" / "cpp" / "libedge_cl.so")


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Learner:
    """A learner of two tasks."""
    root = tmp_path_factory.mktemp("learner")
    made = new_learner(root)
    made.learn(write_looks(root / "first", {"red": 1, "green": 7}), golden.CONFIG)
    made.learn(write_looks(root / "second", {"yellow": 3, "violet": 15}), golden.CONFIG)
    return made


@pytest.fixture(scope="module")
def exported(learner: Learner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Its bundles by layout; no test changes them."""
    root = tmp_path_factory.mktemp("exported")
    for layout in ("shared", "merged"):
        learner.export(root / layout, layout=layout)
    return {layout: root / layout for layout in ("shared", "merged")}


@pytest.fixture
def bundle(exported: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle that the test may change."""
    return Path(shutil.copytree(exported["shared"], tmp_path / "bundle"))


@pytest.fixture
def opened(library: Library) -> Iterator[Callable[..., CClassifier]]:
    """Opens classifiers that are closed at the end."""
    made: list[CClassifier] = []

    def open_(path: Path, **options: object) -> CClassifier:
        made.append(CClassifier(library, path, onnxruntime=_onnxruntime(), threads=1, **options))
        return made[-1]

    yield open_
    for classifier in made:
        classifier.close()


@pytest.mark.parametrize("name", golden.FILES)
def test_golden_vectors_are_what_python_computes(name: str) -> None:
    there = load_file(golden.GOLDEN / f"{name}.safetensors")
    computed = golden.FILES[name]()
    assert there.keys() == computed.keys()
    for key, value in computed.items():
        if key == "tall/out" and int(PIL.__version__.split(".")[0]) < 13:
            continue  # earlier ones resample across first
        assert there[key].dtype == value.dtype
        exact = value.dtype.kind != "f" or name == "numbers"
        np.testing.assert_allclose(there[key], value, rtol=0 if exact else 1e-4, atol=0 if exact else 1e-5, err_msg=key)


@pytest.mark.parametrize("name", [*golden.BUNDLES, *golden.EARLIER])
def test_golden_answers_are_what_python_gives(name: str) -> None:
    there = load_file(golden.GOLDEN / f"answers-{name}.safetensors")
    for key, value in golden.answers(golden.GOLDEN / f"bundle-{name}").items():
        np.testing.assert_allclose(there[key], value, atol=2e-5, err_msg=key)


def test_the_golden_manifest_is_read_back_as_it_is_written() -> None:
    for name in golden.BUNDLES:
        path = golden.GOLDEN / f"bundle-{name}"
        assert Bundle.open(path).manifest.encode() == (path / "manifest.json").read_bytes()
    for name in golden.EARLIER:
        path = golden.GOLDEN / f"bundle-{name}"
        written = json.loads(Bundle.open(path).manifest.encode())["manifest"]
        assert written == {**value_of(path), "least_score": None}


@pytest.mark.parametrize("layout", ["shared", "merged"])
@pytest.mark.parametrize("rule", ["routed", "base"])
def test_answers_are_those_of_python(
    exported: dict[str, Path], opened: Callable[..., CClassifier], layout: str, rule: str
) -> None:
    python = Classifier(exported[layout], threads=1, rule=rule)
    frames = [*golden.looks(), golden.noise(64, 48, 1), golden.noise(200, 31, 2)]
    wanted = python.predict(frames, top=9)
    classifier = opened(exported[layout], rule=rule.encode(), top=9, unknown_score=1)
    for found in (classifier.predict([frame(f) for f in frames]), [classifier.predict([frame(f)])[0] for f in frames]):
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.unknown == theirs.unknown
            assert ours.unknown_score == pytest.approx(theirs.unknown_score, rel=1e-3, abs=1e-3)
            assert ours.version == python.version
            assert ours.label == theirs.label or abs(theirs.top[0][1] - theirs.top[1][1]) < 1e-4
            assert dict(ours.top) == pytest.approx(dict(theirs.top), abs=1e-4)


def test_frames_of_other_formats_and_with_gaps(bundle: Path, opened: Callable[..., CClassifier]) -> None:
    classifier, pixels = opened(bundle), golden.noise(40, 30, 5)
    expected = classifier.predict([frame(pixels)])
    wide = np.zeros((30, 64, 3), np.uint8)
    wide[:, :40] = pixels
    alpha = np.concatenate((pixels, np.full((30, 40, 1), 9, np.uint8)), 2)
    bgr, bgra = np.ascontiguousarray(pixels[..., ::-1]), np.ascontiguousarray(alpha[..., [2, 1, 0, 3]])
    views = [frame(wide[:, :40]), frame(bgr, "bgr8"), frame(alpha, "rgba8"), frame(bgra, "bgra8")]
    for view in views:
        assert classifier.predict([view]) == expected


@pytest.mark.parametrize("fmt", ["nv12", "yuyv"])
def test_camera_formats_are_those_of_opencv(bundle: Path, opened: Callable[..., CClassifier], fmt: str) -> None:
    cv2 = pytest.importorskip("cv2")
    generator = np.random.default_rng(4)
    shape = (45, 40, 1) if fmt == "nv12" else (30, 40, 2)
    raw = generator.integers(16, 235, shape, dtype=np.uint8)
    rgb = cv2.cvtColor(raw, cv2.COLOR_YUV2RGB_NV12 if fmt == "nv12" else cv2.COLOR_YUV2RGB_YUYV)
    classifier = opened(bundle, top=9)
    view = frame(raw, fmt)
    view.height = 30
    (found,), (wanted,) = classifier.predict([view]), classifier.predict([frame(rgb)])
    assert dict(found.top) == pytest.approx(dict(wanted.top), abs=0.05)  # a rounding apart in single pixels


def test_a_new_task_is_taken_over(learner: Learner, bundle: Path, tmp_path: Path, library: Library) -> None:
    classifier = CClassifier(library, bundle, onnxruntime=_onnxruntime(), threads=1, top=9)
    assert classifier.reload() is False
    copy = Learner.open(shutil.copytree(learner.store.path, tmp_path / "store"), device="cpu")
    copy.learn(write_looks(tmp_path / "third", {"teal": 9, "blue": 11}), golden.CONFIG)
    copy.export(bundle)
    assert classifier.reload() is True
    python, frames = Classifier(bundle, threads=1), list(golden.looks())
    for ours, theirs in zip(classifier.predict([frame(f) for f in frames]), python.predict(frames, top=9), strict=True):
        assert dict(ours.top) == pytest.approx(dict(theirs.top), abs=1e-4)
        assert ours.version == python.version
    classifier.close()


def _change(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


FAULTS: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda b: (b / "manifest.json").unlink(),
    "empty manifest": lambda b: (b / "manifest.json").write_text(""),
    "altered manifest": lambda b: (b / "manifest.json").write_text(
        _change((b / "manifest.json").read_text(), '"version": 2', '"version": 3')
    ),
    "no head": lambda b: next(b.glob("head-*")).unlink(),
    "short head": lambda b: next(b.glob("head-*")).write_bytes(next(b.glob("head-*")).read_bytes()[:-1]),
    "altered head": lambda b: next(b.glob("head-*")).write_bytes(bytes(next(b.glob("head-*")).stat().st_size)),
    "linked head": lambda b: next(b.glob("head-*")).rename(b / "h") and (b / "x").symlink_to(b / "h"),
    "huge rank": say("shape", "r", value=1 << 19),
    "class of a negative task": say("classes", "0", "task", value=-1),
    "two classes of a name": say("classes", "1", "name", value="green"),
    "temperature below single precision": say("temperature", value=1e-60),
    "tensor beyond single precision": tensors("head", bias=lambda v: v.astype(np.float64) * 1e300),
    "no weights": say("files", "weights", value=...),
    "huge input": say("backbone", "preprocess", "image_size", value=(1 << 12) + 1),
    "share beyond one": tensors("branch/1", share=lambda v: v * [0, 1] + np.float32([5, 0])),
    "matrix without scales": tensors("head", weight_scale=None),
    "matrix of fewer scales": tensors("branch/1", weight_scale=lambda v: v[:, :-1]),
    "matrix of another width": tensors("head", basis=lambda v: v[:, :-1]),
    "scale of NaN": tensors("head", basis_scale=nan),
    "altered graph": lambda b: next(b.glob("suffix-*")).write_bytes(bytes(next(b.glob("suffix-*")).stat().st_size)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_both_refuse_the_same_bundles(bundle: Path, library: Library, fault: str) -> None:
    FAULTS[fault](bundle)
    with pytest.raises(BundleError):
        Classifier(bundle)
    with pytest.raises(CApiError, match="edge-cl export") as error:
        CClassifier(library, bundle, onnxruntime=_onnxruntime())
    assert error.value.code in (1, 2)


def test_both_refuse_answers_that_are_no_numbers(bundle: Path, library: Library) -> None:
    say("temperature", value=1e-44)(bundle)  # scores over it are infinite
    with pytest.raises(BundleError, match="are no numbers"), np.errstate(all="ignore"):
        Classifier(bundle, threads=1, rule="base")
    with pytest.raises(CApiError, match="are no numbers") as error:
        CClassifier(library, bundle, onnxruntime=_onnxruntime(), threads=1, rule=b"base")
    assert error.value.code == 4


def test_both_take_a_threshold_beyond_single_precision_alike(bundle: Path, opened: Callable[..., CClassifier]) -> None:
    say("threshold", value=-1e300)(bundle)
    with np.errstate(over="ignore"):
        assert Classifier(bundle, threads=1, rule="base").predict(golden.noise(40, 40, 3)).unknown
    assert opened(bundle, rule=b"base").predict([frame(golden.noise(40, 40, 3))])[0].unknown


@pytest.mark.parametrize("least_score", [..., None, -1e300, "between", 1e300])
def test_both_call_unknown_by_the_least_score_alike(
    bundle: Path, opened: Callable[..., CClassifier], least_score: Any
) -> None:
    """Nothing is too far. A limit beyond single precision is one that all or none reach."""
    recogniser, looks = Classifier(bundle, threads=1)._loaded.recogniser, golden.looks()
    spec, head = recogniser.backend.preprocess, recogniser.head
    features = recogniser.backend.encode(np.stack([spec.centre(Image.fromarray(f)) for f in looks])).features
    best = np.sort(head.whole(head.discriminant.scores(features)).max(1))
    least_score = float(best[8:10].mean()) if least_score == "between" else least_score
    say("threshold", value=None)(bundle)
    say("least_score", value=least_score)(bundle)
    with np.errstate(over="ignore"):
        found = [p.unknown for p in Classifier(bundle, threads=1, rule="base").predict(list(looks))]
    assert sum(found) == (0 if least_score in (..., None) else (best.astype(float) < least_score).sum())
    assert [p.unknown for p in opened(bundle, rule=b"base").predict([frame(f) for f in looks])] == found


def test_errors_are_values(bundle: Path, opened: Callable[..., CClassifier], library: Library) -> None:
    classifier = opened(bundle)
    bad = frame(golden.noise(4, 4, 0))
    bad.stride = 1
    with pytest.raises(CApiError, match="stride") as error:
        classifier.predict([bad])
    assert error.value.code == 5
    with pytest.raises(CApiError, match="was not found") as missing:
        CClassifier(library, bundle, onnxruntime=b"/nowhere.so", backend=b"onnxruntime")
    assert missing.value.code == 3


def test_the_library_has_the_version_of_the_package(library: Library) -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{library.c.edge_cl_version().decode()}"' in text
