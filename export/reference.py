"""What an engine must compute before it is trusted: what ONNX Runtime gives on the CPU, in fp32, on fixed pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edge_cl.export.bundle import Factors
from edge_cl.export.engine_source import Array, EngineSource
from edge_cl.preprocess import Pixels

TOLERANCE = {"fp32": 2e-3, "fp16": 3e-2}
"""Largest deviation that is still rounding, by precision of the graph (docs/tensorrt.md has the measurements).

Deviations are relative lengths of vectors. fp32 differs by the order of sums alone, some 1e-6 a block. fp16 has eleven
bits, so 5e-4 in every product, which adds up to some 3e-3 over the blocks of a ViT. The faults that are known (a bias
dropped, attention or a normalisation computed wrongly, an overflow) are larger than either limit by far.
"""


@dataclass(frozen=True)
class Example:
    """Inputs of a graph, and what it must answer.

    Attributes:
        inputs: by name; floats are float32 whatever the graph's precision.
        outputs: by name, float32.
        width: D; outputs are compared vector by vector of that length.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, npt.NDArray[np.float32]]
    width: int

    def deviation(self, found: Mapping[str, Array]) -> float:
        """Return the largest relative error of a vector of any output; infinite if something is missing or not finite.

        The errors are relative to the vector's length, or to the mean length where that is larger.
        """
        return max(self._deviation(found.get(name), wanted) for name, wanted in self.outputs.items())

    def _deviation(self, found: Array | None, wanted: npt.NDArray[np.float32]) -> float:
        if found is None or found.shape != wanted.shape or not np.isfinite(found.astype(np.float32)).all():
            return float("inf")
        expected = wanted.reshape(-1, self.width).astype(np.float64)
        lengths = np.linalg.norm(expected, axis=1)
        errors = np.linalg.norm(found.reshape(-1, self.width).astype(np.float64) - expected, axis=1)
        return float((errors / np.maximum(lengths, lengths.mean())).max())


def pictures(count: int, image_size: int, *, seed: int = 0) -> Pixels:
    """Return fixed pictures (B, S, S, 3): by turns smooth and noisy, because a fault may show in one kind only."""
    generator = np.random.default_rng(seed)
    made = []
    for i in range(count):
        cells = 3 if i % 2 == 0 else image_size
        coarse = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8))
        made.append(np.asarray(coarse.resize((image_size, image_size), Image.Resampling.BICUBIC)))
    return np.stack(made)


class Reference:
    """Runs the graphs in fp32 and makes examples of both halves.

    Args:
        prefix: the prefix.
        image_size: side of the pictures, S.
        batches: sizes of the batches that are tried; the smallest and the largest of the engine's are right.
    """

    def __init__(self, prefix: EngineSource, image_size: int, batches: Sequence[int]) -> None:
        session = _session(prefix)
        self._prefix: list[Example] = []
        for seed, batch in enumerate(sorted(set(batches))):
            image = pictures(batch, image_size, seed=seed)
            outputs = _run(session, {"image": image})
            self._prefix.append(Example({"image": image}, outputs, outputs["tokens"].shape[-1]))

    def prefix(self) -> list[Example]:
        """Return examples of the prefix."""
        return self._prefix

    def suffix(self, suffix: EngineSource, adapters: Sequence[Factors] = ()) -> list[Example]:
        """Return examples of a suffix.

        Args:
            suffix: what the engine is made of.
            adapters: lora_down (L, R, D) and lora_up (L, 3D, R) to try; none where the graph has no such inputs.
        """
        session = _session(suffix)
        return [self._example(session, example, given) for example in self._prefix for given in _inputs(adapters)]

    def _example(self, session: Any, prefix: Example, given: Mapping[str, Array]) -> Example:
        inputs = {"tokens": prefix.outputs["tokens"], **given}
        return Example(inputs, _run(session, inputs), prefix.width)


def _inputs(adapters: Sequence[Factors]) -> Iterator[Mapping[str, Array]]:
    if not adapters:
        yield {}
    for down, up in adapters:
        yield {"lora_down": down, "lora_up": up}


def _session(source: EngineSource) -> Any:
    import onnxruntime

    graph = source.in_fp32().load()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    folder = str(graph.path.absolute().parent)
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return onnxruntime.InferenceSession(graph.model, options, providers=["CPUExecutionProvider"])


def _run(session: Any, inputs: Mapping[str, Array]) -> dict[str, npt.NDArray[np.float32]]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
