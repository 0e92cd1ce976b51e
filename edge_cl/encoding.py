"""Encoding of a task's pictures: features of every view for the statistics, and prefix tokens to train on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from edge_cl.backend import Encoding
from edge_cl.checkpoint import Checkpoint
from edge_cl.decoded import Source
from edge_cl.features import Encoder
from edge_cl.lora import Adapter
from edge_cl.progress import Progress
from edge_cl.statistics import Array
from edge_cl.tokens import TokenCache, Tokens


@dataclass(frozen=True)
class Encoded:
    """What one branch makes of V views of n pictures; view 0 is the centred square.

    Attributes:
        features: (V, n, F).
        last: what the local classifier sees, (V, n, D).
        tokens: prefix tokens of the first of the views; none where they were not asked for.
    """

    features: Array
    last: Array
    tokens: tuple[Tokens, ...] = ()


@dataclass(frozen=True)
class ViewEncoder:
    """Runs views of pictures through the backbone; what is done survives an interruption.

    Attributes:
        encoder: prefix and base branch in force.
        checkpoint: keeps the features.
        cache: keeps the tokens.
        progress: told of every view.
        reduced: whether pictures to learn from, unlike those that measure the answers, are encoded in bfloat16: what
            that changes is little beside what they differ by.
    """

    encoder: Encoder
    checkpoint: Checkpoint
    cache: TokenCache
    progress: Progress
    reduced: bool = False

    @cached_property
    def _prefix(self) -> str:
        return self.encoder.prefix_digest()

    def base(self, name: str, source: Source, views: int, *, keep_tokens: bool) -> Encoded:
        """Run prefix and base branch over pictures.

        Args:
            name: of the pictures, for the checkpoint.
            source: n pictures.
            views: random views of each, beside its centred square.
            keep_tokens: whether to keep prefix tokens, of as many views as the cache has room for, one at least; of no
                pictures there are none.
        """
        backbone = self.encoder.backbone
        shape = (len(source.pictures), backbone.tokens, backbone.width)
        kept = min(1 + views, max(1, self.cache.room(shape))) if keep_tokens and source.pictures else 0
        prefix = self._prefix if kept else ""
        result, tokens = self._empty(1 + views, len(source.pictures)), []
        for view in range(1 + views):
            reduced = self.reduced and source.copies
            stage, key = f"{name}-{view}", {"prefix": prefix, "reduced": reduced, **source.key(view)}
            found = self.cache.find(key, shape) if view < kept else None
            if stage in self.checkpoint and (found is not None or view >= kept):
                self._restore(stage, result, view)
            else:
                passing = _gathered(self.encoder.batches(source.view(view), reduced=reduced), result, view)
                if view < kept:
                    found = self.cache.fill(key, shape, passing)
                else:
                    _exhaust(passing)
                self._save(stage, result, view)
                self.progress("prefix" if kept else "head", view + 1, 1 + views)
            tokens += [found] if found is not None else []
        return replace(result, tokens=tuple(tokens))

    def branch(self, name: str, base: Encoded, adapter: Adapter, views: int) -> Encoded:
        """Run a task branch on the prefix tokens of the first views of pictures that the base branch has seen."""
        views = min(views, len(base.tokens))
        result = self._empty(views, base.features.shape[1])
        for view, tokens in enumerate(base.tokens[:views]):
            stage = f"{name}-own-{view}"
            if stage in self.checkpoint:
                self._restore(stage, result, view)
                continue
            starts = range(0, len(tokens), self.encoder.batch_size)
            batches = (np.arange(start, min(start + self.encoder.batch_size, len(tokens))) for start in starts)
            encodings = (
                self.encoder.branch(tokens.rows(b).to(self.encoder.device), base.features[view, b], adapter)
                for b in batches
            )
            _exhaust(_gathered(encodings, result, view))
            self._save(stage, result, view)
            self.progress("head", view + 1, views)
        return result

    def _empty(self, views: int, pictures: int) -> Encoded:
        widths = (self.encoder.width, self.encoder.backbone.width)
        features, last = (np.empty((views, pictures, width), np.float32) for width in widths)
        return Encoded(features, last)

    def _save(self, stage: str, result: Encoded, view: int) -> None:
        self.checkpoint.save(stage, {"features": result.features[view], "last": result.last[view]})

    def _restore(self, stage: str, result: Encoded, view: int) -> None:
        tensors, _ = self.checkpoint.load(stage)
        result.features[view], result.last[view] = tensors["features"], tensors["last"]


def _gathered(encodings: Iterable[Encoding], result: Encoded, view: int) -> Iterator[Tensor]:
    """Lay encoded batches into a view of the result, and pass their tokens on."""
    start = 0
    for encoding in encodings:
        rows = slice(start, start + len(encoding.features))
        result.features[view, rows], result.last[view, rows] = encoding.features, encoding.last
        start = rows.stop
        yield encoding.tokens


def _exhaust(passing: Iterator[Tensor]) -> None:
    for _ in passing:
        pass
