"""From a version of a store to a bundle: graphs once, and after every task the tensors that are new."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from safetensors.numpy import save

from edge_cl.backbone import Backbone
from edge_cl.backend import BASE
from edge_cl.durable import replace_bytes
from edge_cl.export import graphs
from edge_cl.export.bundle import (
    ADAPTERS,
    Bundle,
    BundleClass,
    BundleError,
    Factors,
    FileRef,
    Manifest,
    Shape,
    joint_factors,
    no_factors,
)
from edge_cl.export.classifier import head_tensors
from edge_cl.export.merge import merge_adapters, weighted
from edge_cl.export.parity import require_parity
from edge_cl.export.publication import GRAPHS, Publication
from edge_cl.export.tensors import few_bits, half
from edge_cl.head import BASIS_BITS, EXIT_BITS, WEIGHT_BITS, Head
from edge_cl.lora import Adapter
from edge_cl.model import Model
from edge_cl.spread import SPREAD_BITS
from edge_cl.version import Json, canonical_json, contiguous

EDITION = 2  # raised when the graphs of the same backbone become others
CLASSIFIER_EDITION = 4  # the same of the one-graph classifier alone
CLASSIFIER = "classifier.onnx"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Snapshot:
    """One version of a store, as it is exported.

    Attributes:
        model: what has been learned.
        backbone: frozen, in single precision.
        weights_sha256: of the backbone's weights.
        version: its number.
    """

    model: Model
    backbone: Backbone
    weights_sha256: str
    version: int

    @cached_property
    def head(self) -> Head:
        """What answers."""
        return self.model.head()

    @property
    def shape(self) -> Shape:
        """The numbers of the bundle."""
        b, model = self.backbone, self.model
        every = [a for a in (model.shared, model.base, *model.adapters.values()) if a is not None]
        r = max((a.r for a in every), default=model.config.r)
        return Shape(b.depth, b.split, b.width, b.tokens, b.summaries_per_block, r)


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        manifest: of the bundle.
        seconds: until the bundle was in force; the classifier's graph, which its runtime does not need, comes after.
        written: bytes of new files and the manifest, likewise.
        graphs_built: whether graphs were made anew.
        removed: names of classes that the bundle knew before, and does not know any more.
        classifier_s: seconds that the classifier's graph took; 0 where none was asked for.
    """

    manifest: Manifest
    seconds: float
    written: int
    graphs_built: bool
    removed: tuple[str, ...]
    classifier_s: float = 0.0


def export_bundle(
    snapshot: Snapshot,
    out: Path,
    *,
    layout: str = "shared",
    precision: str = "fp32",
    classifier: bool = True,
    say: Say = lambda text: None,
) -> Exported:
    """Write a bundle, or bring the one that is there up to date.

    Args:
        snapshot: what to export.
        out: directory; new, empty, or a bundle.
        layout: "shared" or "merged".
        precision: of the graphs, "fp32" or "fp16".
        classifier: whether to write `classifier.onnx` too.
        say: told of every long step.

    Raises:
        BundleError: `out` holds something else, cannot be written, or another process is writing it; or the graphs do
            not compute what the backbone does.
    """
    start = time.monotonic()
    with Publication.begin(out) as publication:
        recipe = _recipe(snapshot, layout, precision)
        previous = publication.previous
        built = previous is None or previous.recipe != recipe
        if built:
            say("making the graphs; a new task will reuse them ...")
        backbone = graphs.prepared(snapshot.backbone, precision) if built else None
        files = _adapter_files(snapshot.model) | _head_files(snapshot.head)
        refs = {role: publication.put(role, "safetensors", data) for role, data in files.items()}
        if backbone is not None:
            refs |= _graphs(snapshot, backbone, layout, publication)
        else:
            assert previous is not None
            refs |= {role: previous.files[role] for role in GRAPHS}
        if layout == "merged":
            refs |= _merged(snapshot, refs, precision, publication)
        manifest = _manifest(snapshot, layout, precision, recipe, refs)
        if built:
            require_parity(Bundle(out, manifest), snapshot.model, snapshot.backbone)
        publication.publish(manifest)
        seconds, written = time.monotonic() - start, publication.written
        start = time.monotonic()
        if classifier:
            try:
                _write_classifier(snapshot, out / CLASSIFIER, recipe, precision, say)
            except OSError as error:
                raise BundleError(
                    f"{out / CLASSIFIER} could not be written, and is still of an earlier version if there is one: "
                    f"{error.strerror}. The bundle itself is in force.",
                    mend="Free some space and run the same command again.",
                ) from error
        classifier_s = time.monotonic() - start if classifier else 0.0
    names = {c.name for c in manifest.classes}
    removed = tuple(c.name for c in previous.classes if c.name not in names) if previous else ()
    return Exported(manifest, seconds, written, built, removed, classifier_s)


def _recipe(snapshot: Snapshot, layout: str, precision: str) -> str:
    """Name all that decides the graphs: everything but what a task changes."""
    spec, shape = snapshot.model.spec.to_json(), asdict(snapshot.shape)
    parts: Sequence[Json] = [EDITION, spec, snapshot.weights_sha256, layout, precision, shape]
    return hashlib.sha256(canonical_json(parts)).hexdigest()[:16]


def encodes_alike(manifest: Manifest, snapshot: Snapshot) -> bool:
    """Return whether a bundle has a snapshot's prefix and base branch: same backbone, preprocessing and adapters."""
    files = {role: data for role, data in _adapter_files(snapshot.model).items() if role in ADAPTERS}
    wanted = {role: hashlib.sha256(data).hexdigest() for role, data in files.items()}
    found = {role: ref.sha256 for role, ref in manifest.files.items() if role in ADAPTERS}
    return found == wanted and manifest.recipe == _recipe(snapshot, manifest.layout, manifest.precision)


def _manifest(snapshot: Snapshot, layout: str, precision: str, recipe: str, refs: Mapping[str, FileRef]) -> Manifest:
    model = snapshot.model
    return Manifest(
        layout=layout,
        precision=precision,
        recipe=recipe,
        version=snapshot.version,
        backbone=replace(model.spec, preprocess=model.preprocess).to_json(),
        shape=snapshot.shape,
        classes=tuple(BundleClass(c.id, c.name, c.task) for c in model.classes),
        task_names={t: name for t, name in model.task_names.items() if any(c.task == t for c in model.classes)},
        temperature=model.temperature,
        threshold=model.threshold,
        least_score=model.least_score,
        files=dict(sorted(refs.items())),
    )


def _adapter_files(model: Model) -> dict[str, bytes]:
    """Return the adapters: those that encode every picture as they are, those of tasks in half precision."""
    encoding = zip(ADAPTERS, (model.shared, model.base), strict=True)
    files = {role: save(weighted(adapter)) for role, adapter in encoding if adapter is not None}
    for task, adapter in model.adapters.items():
        files[f"adapter/{task}"] = save({name: half(value) for name, value in weighted(adapter).items()})
    return files


def _head_files(head: Head) -> dict[str, bytes]:
    result = {"head": save(contiguous(_discriminant(head, WEIGHT_BITS)))}
    for task, branch in head.branches.items():
        stored = branch.to_numpy() | few_bits("weight", branch.discriminant.weight, WEIGHT_BITS)
        result[f"branch/{task}"] = save(contiguous(stored))
    if head.quadratic is not None:
        gains = head.quadratic
        stored = few_bits("weight", gains.weight, SPREAD_BITS) | {"offset": gains.offset, "cost": gains.cost}
        result["spread"] = save(contiguous(stored))
    if head.exit is not None:
        early = head.exit.head
        fit = np.asarray([early.temperature, early.threshold, head.exit.confidence], np.float32)
        result["exit"] = save(contiguous(_discriminant(early, EXIT_BITS) | {"fit": fit}))
    return result


def _discriminant(head: Head, bits: int) -> dict[str, npt.NDArray[np.generic]]:
    """Return the tensors of a head without branches and what is fitted; its weights have so many bits."""
    return {
        **few_bits("weight", head.discriminant.weight, bits),
        "bias": head.discriminant.bias,
        "centre": head.discriminant.centre,
        **few_bits("basis", head.precision.basis, BASIS_BITS),
        "gain": head.precision.gain,
        "variance": np.asarray([head.precision.variance], np.float32),
    }


def _graphs(snapshot: Snapshot, backbone: Backbone, layout: str, publication: Publication) -> dict[str, FileRef]:
    """Write the graphs and their weights: the bare backbone, once for all tasks."""
    r = snapshot.shape.r if layout == "shared" else None
    prefix = graphs.prefix_graph(backbone, snapshot.model.spec.preprocess)
    suffix = graphs.suffix_graph(backbone, r)
    data = save(graphs.weights_of(prefix, suffix))
    weights = publication.put("weights", "safetensors", data)
    places = graphs.places(data)

    def put(role: str, model: onnx.ModelProto) -> FileRef:
        outside = graphs.externalise(model, weights.name, places)
        return publication.put(role, "onnx", outside.SerializeToString(deterministic=True))

    return {"weights": weights, "prefix": put("prefix", prefix), "suffix": put("suffix", suffix)}


def _merged(
    snapshot: Snapshot, refs: Mapping[str, FileRef], precision: str, publication: Publication
) -> dict[str, FileRef]:
    """Fold the adapters into graphs of their own: the bare prefix and suffix with other projections."""
    model = snapshot.model
    bare = {role: onnx.load(publication.path(refs[role]), load_external_data=False) for role in ("prefix", "suffix")}
    result = {}
    adapters = {"merged/prefix": model.shared, "merged/base": model.base}
    adapters |= {f"merged/{task}": adapter for task, adapter in model.adapters.items()}
    for role, adapter in adapters.items():
        if adapter is not None:
            part = bare["prefix" if adapter.shared else "suffix"]
            bound = graphs.bind(part, _projections(snapshot.backbone, adapter, precision))
            result[role] = publication.put(role, "onnx", bound.SerializeToString(deterministic=True))
    return result


def _projections(backbone: Backbone, adapter: Adapter, precision: str) -> dict[str, npt.NDArray[np.generic]]:
    """Return the fused projections that an adapter changes, merged, laid out (in, out)."""
    names = [f"blocks.{i}.attn.qkv.weight" for i in range(adapter.first, adapter.first + adapter.depth)]
    state = backbone.vit.state_dict()
    merged = merge_adapters({name: state[name] for name in names}, [adapter])
    return {name: value.to(graphs.PRECISIONS[precision]).cpu().numpy().T for name, value in merged.items()}


def _write_classifier(snapshot: Snapshot, path: Path, recipe: str, precision: str, say: Say) -> None:
    """Write the one-graph classifier, from the one that is there if only tensors have changed."""
    if not snapshot.model.classes:
        return
    tensors = _classifier_tensors(snapshot, precision)
    recipe = f"{recipe}.{CLASSIFIER_EDITION}"
    model = _classifier_there(path, recipe)
    if model is None:
        say(f"making {path.name} ...")
        backbone = graphs.prepared(snapshot.backbone, precision)
        head = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tensors.items()}
        model = graphs.classifier_graph(backbone, snapshot.model.spec.preprocess, head)
    if snapshot.model.shared is not None:
        tensors |= _projections(snapshot.backbone, snapshot.model.shared, precision)
    model = graphs.bind(model, tensors)
    names = [c.name for c in snapshot.model.classes]
    facts: Mapping[str, Json] = {
        "edge_cl.recipe": recipe,
        "edge_cl.version": snapshot.version,
        "edge_cl.classes": names,
        "edge_cl.preprocess": snapshot.model.preprocess.to_json(),
    }
    onnx.helper.set_model_props(model, {key: canonical_json(value).decode() for key, value in facts.items()})
    replace_bytes(path, model.SerializeToString(deterministic=True))


def _classifier_tensors(snapshot: Snapshot, precision: str) -> dict[str, npt.NDArray[np.generic]]:
    model, shape = snapshot.model, snapshot.shape
    adapters: dict[int, Factors] = {BASE: no_factors(shape)}
    for task, adapter in {BASE: model.base, **model.adapters}.items():
        if adapter is not None:
            adapters[task] = joint_factors(**weighted(adapter), r=shape.r)
    return dict(head_tensors(snapshot.head, adapters, precision, shape.prefix_features))


def _classifier_there(path: Path, recipe: str) -> onnx.ModelProto | None:
    try:
        model = onnx.load(path) if path.is_file() else None
    except Exception:  # none, or none that can be read: it is made anew
        return None
    facts = {entry.key: entry.value for entry in model.metadata_props} if model is not None else {}
    return model if facts.get("edge_cl.recipe") == canonical_json(recipe).decode() else None
