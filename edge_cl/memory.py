"""How much memory a learn will take, predicted from shapes and settings, and the settings that keep it under a limit.

All terms were checked against the process's high-water mark (docs/training.md). What is counted: the process as it is
when the model is loaded, what libraries take and compile, the decoded pictures, the features of every view, and the
largest of what training, encoding, statistics, saving and the plot need for a moment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from edge_cl.budget import SQUARES, Work
from edge_cl.config import LearnConfig
from edge_cl.errors import EdgeClError
from edge_cl.features import Encoder
from edge_cl.process import MB
from edge_cl.spread import AT_ONCE, KEPT
from edge_cl.statistics import fold_rows, rows_at_once
from edge_cl.training import batch_count

FLOAT = 4  # bytes
HALF = 2  # bytes
SAVED, REDUCED_SAVED = 12, 7.5  # numbers of a token that one block of width 1 saves for the backward pass
PASSING, REDUCED_PASSING = 54, 40  # numbers of a token that one block of width 1 holds for a moment while training, ...
ENCODING = 30  # ... and while encoding
PIXELS = 2  # floating-point copies of a picture on its way into the network
LIBRARIES_MB = 65  # code and buffers of libraries, taken when they are first used (docs/training.md), ...
ALGEBRA_MB = 14  # ... of linear algebra beside them, ...
PLOT_MB = 44  # ... and of plotting
COPIES = 3  # of a tensor while it is saved
EIGEN = 11  # single-precision matrices that eigenvectors take: NumPy works on them in double precision
KERNELS_MB, KERNEL_B = 12.2, 7340  # what is compiled for each number of pictures that bfloat16 trains at once: ...
ENCODED = 0.3  # ... in all, and of a unit of width; and the share of it for each number that is encoded at once


@dataclass(frozen=True)
class Footprint:
    """The sizes that decide how much memory a learn takes.

    Attributes:
        work: pictures and stages.
        width: D of the backbone.
        tokens: N of a picture.
        depth: blocks.
        features: F of a picture.
        image_size: side of the input, pixels.
        matrices: numbers in the weight matrices of a block.
        directions: of the covariance that is known.
        reduced: whether training takes matrix products in bfloat16.
        copies: bytes of the copies that views are cut from, all together.
        decoding: bytes that the largest picture takes while it is decoded.
        classes: of the pictures.
        cpu: whether the processor computes.
    """

    work: Work
    width: int
    tokens: int
    depth: int
    features: int
    image_size: int
    matrices: int
    directions: int = 0
    reduced: bool = False
    copies: int = 0
    decoding: int = 0
    classes: int = 0
    cpu: bool = True

    @classmethod
    def of(
        cls,
        work: Work,
        encoder: Encoder,
        directions: int,
        *,
        reduced: bool,
        copies: int = 0,
        decoding: int = 0,
        classes: int = 0,
    ) -> Footprint:
        """Return the footprint of a learn on a backbone; see the attributes."""
        backbone = encoder.backbone
        matrices = sum(p.numel() for p in backbone.blocks[0].parameters() if p.ndim == 2)
        return cls(
            work,
            backbone.width,
            backbone.tokens,
            backbone.depth,
            encoder.width,
            encoder.preprocess.image_size,
            matrices,
            directions,
            reduced,
            copies,
            decoding,
            classes,
            encoder.device.type == "cpu",
        )

    def peak_mb(self, config: LearnConfig) -> float:
        """Return the most memory that a learn takes under some settings, beyond the loaded model, MB."""
        pictures, features, training = self._pictures_b(), self._features_b(config), self._training_b(config)
        encoding = pictures + features + self._encoding_b(config)
        # Shared and base adapter train on the pictures; a task adapter later, when only their features are left.
        training += pictures if self.work.together or self.work.distils else features
        statistics = features + self._statistics_b(config) + ALGEBRA_MB * MB
        most = max(training, encoding, pictures + self.decoding, statistics, self._ending_b(config))
        return LIBRARIES_MB + self._kernels_mb(config) + most / MB

    def _pictures_b(self) -> float:
        square = 3 * self.image_size**2
        return (SQUARES * (self.work.hold_out + self.work.negatives) + self.work.train) * square + self.copies

    def _at_once(self, config: LearnConfig) -> set[int]:
        """Return how many pictures training takes at once; none where there is none."""
        if not self.work.adapts or config.method == "prototype":
            return set()
        shapes = self.work.together and config.schedule != "joint"
        most = config.shaping_batch if shapes else config.micro_batch
        return {n for batch in _parts(self.work.train, config.batch_size) for n in _parts(batch, most)}

    def _kernels_mb(self, config: LearnConfig) -> float:
        """Return what oneDNN's compiled kernels take: it keeps those of every shape that it has seen."""
        if not (self.reduced and self.cpu):
            return 0.0
        trained = len(self._at_once(config))
        # The teacher sees a part of what is trained; the shared adapter is trained on other tokens than the task's.
        taught = trained * bool(self.work.finer)
        trained *= 1 + (self.work.distils and not self.work.together)
        rest = self.work.train % config.micro_batch
        encoded = {min(config.micro_batch, self.work.train), rest} - {0}
        return (KERNELS_MB + KERNEL_B * self.width / MB) * (trained + ENCODED * (taught + len(encoded)))

    def _training_b(self, config: LearnConfig) -> float:
        work, at_once = self.work, max(self._at_once(config), default=0)
        if not at_once:
            return 0.0
        blocks = self.depth if work.together else self.depth * max(1 - work.prefix, work.prefix * work.distils)
        saved, passing = (REDUCED_SAVED, REDUCED_PASSING) if self.reduced else (SAVED, PASSING)
        held = (blocks + saved if config.recompute else blocks * saved) + passing + ENCODING * work.finer
        pixels = PIXELS * 3 * self.image_size**2
        # A product in half precision saves its copy of the weights too.
        copies = HALF * self.matrices * (1 if config.recompute else blocks) * self.reduced
        return at_once * FLOAT * (work.seen * self.tokens * self.width * held + pixels) + copies

    def _encoding_b(self, config: LearnConfig) -> float:
        pixels = PIXELS * 3 * self.image_size**2
        return config.micro_batch * FLOAT * (self.tokens * self.width * ENCODING + pixels)

    def _features_b(self, config: LearnConfig) -> float:
        branches = 1 + (self.work.adapts and not self.work.together)
        return branches * self._rows(config) * (self.features + self.width) * FLOAT

    def _rows(self, config: LearnConfig) -> int:
        return self.work.train * (1 + config.views) + self.work.hold_out

    def _statistics_b(self, config: LearnConfig) -> float:
        count = self._rows(config)
        at_once, rank = rows_at_once(self.features), config.covariance_rank
        pooled, kept = fold_rows(self.directions, count, at_once, rank)
        # Of the task's branch, on top of the model's: hold-out pictures are not in it.
        own, _ = fold_rows(0, count - self.work.hold_out, at_once, rank)
        gram = min(min(max(self.directions, kept), rank) + min(count, at_once), self.directions + count)
        folding = FLOAT * self.features * max(pooled, kept + own) + EIGEN * FLOAT * gram**2
        # Then the classes' own directions and means, beside the covariance.
        return max(folding, self.features * (FLOAT * kept + HALF * (KEPT + 1) * self.classes))

    def _ending_b(self, config: LearnConfig) -> float:
        """Return what is kept of the classes, and what head, exit, saving or the plot needs beside it."""
        _, kept = fold_rows(self.directions, self._rows(config), rows_at_once(self.features), config.covariance_rank)
        own, wide, n = HALF * (KEPT + 1) * self.classes * self.features, FLOAT * self.features, self.classes
        held = own + wide * (kept + 2 * n)
        at_once = KEPT * min(n, AT_ONCE)
        head = 2 * wide * (n + at_once) + FLOAT * n * (5 * at_once + 8 * n)
        exit = EIGEN * FLOAT * kept**2 + 3 * wide * self.work.prefix * kept + ALGEBRA_MB * MB
        return held + max(COPIES * own, COPIES * wide * (kept + n), head, exit, PLOT_MB * MB)

    def fit(self, config: LearnConfig, idle_mb: float, limit_mb: float) -> LearnConfig:
        """Return the settings nearest to the given ones whose peak stays under a limit.

        Args:
            config: wanted.
            idle_mb: what the process takes with the model loaded.
            limit_mb: most that the process may take.

        Raises:
            EdgeClError: not even the least fits.
        """
        least = config
        for option in _down(config):
            if idle_mb + self.peak_mb(option) <= limit_mb:
                return option
            least = option
        decoded = replace(self, decoding=0).peak_mb(least) < self.peak_mb(least)
        less = "make the largest pictures smaller" if decoded else "learn fewer classes at a time"
        needed = math.ceil(1.02 * (idle_mb + self.peak_mb(least)))  # the next process may begin with a little more
        pictures = self.work.train + self.work.hold_out + self.work.negatives
        raise EdgeClError(
            f"{limit_mb:.0f} MB are not enough: these {pictures} pictures need about "
            f"{needed} MB, {idle_mb:.0f} MB of them for the loaded backbone.",
            mend=f"Pass --memory {needed}MB, {less}, or choose a smaller backbone.",
        )


def _parts(count: int, most: int) -> set[int]:
    """Return the sizes of the even parts, of at most so many, that some pictures are split into."""
    parts = batch_count(count, most)
    return {count // parts, math.ceil(count / parts)} - {0}


def _down(config: LearnConfig) -> Iterator[LearnConfig]:
    """Yield settings that take less and less memory: smaller micro-batches, recomputation, then fewer views."""
    yield config
    sizes = [size for size in (16, 8, 4, 2, 1) if size < config.micro_batch]
    for size in sizes:
        if size >= 8:
            yield replace(config, micro_batch=size)
    for size in (min(8, config.micro_batch), *(size for size in sizes if size < 8)):
        yield replace(config, micro_batch=size, recompute=True)
    for views in range(config.views - 1, -1, -1):
        yield replace(config, micro_batch=1, recompute=True, views=views)
