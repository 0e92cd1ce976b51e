"""From a picture to network input: one serialisable specification for training, export and the runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from edge_cl.errors import UsageError, did_you_mean

Pixels = npt.NDArray[np.uint8]

CLOSER = 5 / 6  # side of the closer square, as a share of the centred one
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes pixels and pixels become network input.

    Attributes:
        image_size: side of the square input, pixels.
        mean: per-channel mean subtracted after scaling to 0-1 (R, G, B).
        std: per-channel divisor.
        interpolation: "bilinear" or "bicubic", antialiased as in Pillow.
        crop_fraction: side of the centred square that is kept, as a fraction of the picture's shorter side.
    """

    image_size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_fraction: float = 1.0

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise UsageError(
                f"Unknown interpolation {self.interpolation!r}.",
                mend=did_you_mean(self.interpolation, list(INTERPOLATIONS)),
            )
        if self.image_size < 1 or not 0 < self.crop_fraction <= 1 or not min(self.std) > 0:
            raise UsageError(f"Bad preprocessing: {self}.", mend="Sizes are positive, fractions in (0, 1].")

    def to_json(self) -> dict[str, Any]:
        """Return the specification as plain JSON values."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocess:
        """Read what `to_json` wrote."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def closer(self) -> Preprocess:
        """Return the specification under which `centre` is a smaller square, so that things look larger."""
        return replace(self, crop_fraction=CLOSER * self.crop_fraction)

    def centre(self, image: Image.Image) -> Pixels:
        """Return the centred square of an RGB picture, resampled: (S, S, 3) uint8."""
        side = min(image.size) * self.crop_fraction
        left, top = (image.width - side) / 2, (image.height - side) / 2
        return self._resample(image, (left, top, left + side, top + side))

    def view(self, image: Image.Image, generator: np.random.Generator, *, scale: tuple[float, float]) -> Pixels:
        """Return a random augmented view: a crop of random area and aspect, flipped half of the time.

        Args:
            image: RGB picture.
            generator: source of randomness.
            scale: smallest and largest crop, as fractions of the picture's area.

        Returns:
            (S, S, 3) uint8.
        """
        width, height = image.size
        for _ in range(10):
            area = width * height * generator.uniform(*scale)
            aspect = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = np.sqrt(area * aspect), np.sqrt(area / aspect)
            if w <= width and h <= height:
                break
        else:
            w = h = float(min(width, height))
        left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
        pixels = self._resample(image, (left, top, left + w, top + h))
        return np.ascontiguousarray(pixels[:, ::-1]) if generator.random() < 0.5 else pixels

    def normalise(self, pixels: Pixels) -> npt.NDArray[np.float32]:
        """Scale pixels to network input: (..., S, S, 3) uint8 to (..., 3, S, S) float32."""
        scaled = np.ascontiguousarray(np.moveaxis(pixels, -1, -3)).astype(np.float32)  # bytes are moved faster
        scaled *= np.float32(1 / 255)
        scaled -= np.asarray(self.mean, np.float32)[:, None, None]
        scaled /= np.asarray(self.std, np.float32)[:, None, None]
        return scaled

    def _resample(self, image: Image.Image, box: tuple[float, float, float, float]) -> Pixels:
        size = (self.image_size, self.image_size)
        return np.asarray(image.resize(size, INTERPOLATIONS[self.interpolation], box=box))
