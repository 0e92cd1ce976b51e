"""What fits into the time of a learn: epochs, chosen before training, and views, chosen before the statistics.

All costs are counted in forward passes of the whole backbone over one picture, whose seconds are measured on the
learn's own pictures first. A prediction that is off is mended on the way: training stops when the time that the
rest needs is reached, and fewer views are encoded when what came before took longer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_cl.config import LearnConfig, Method

TRAINING = 2.2  # a forward and backward pass through adapted blocks, in forward passes, ...
REDUCED_TRAINING = 1.4  # ... and in reduced precision
REDUCED_VIEW = 0.65  # a forward pass in that precision, making the view included
SQUARES = 2  # on which hold-out pictures are seen
FINISH_S = 2.5  # measuring old and new model, report, plot and commit
FEWEST_EPOCHS = 3  # below that, statistics alone are taken


@dataclass(frozen=True)
class Work:
    """The sizes that decide how long a learn takes.

    Attributes:
        train: pictures to learn from.
        hold_out: pictures that measure the result.
        prefix: share of the blocks in the prefix.
        adapts: whether adapters are trained.
        together: whether prefix and suffix train in one stage, on fresh views.
        distils: whether the shared adapter is trained with a teacher.
        seen: share of the tokens that a training step sees.
        training: forward passes that a forward and backward pass is worth.
        view: the same of a pass over a picture to learn from.
        finer: tokens that a teacher of the base branch sees for every token of a training step; 0: there is none.
        negatives: pictures of nothing known whose features are kept.
    """

    train: int
    hold_out: int
    prefix: float
    adapts: bool
    together: bool
    distils: bool
    seen: float = 1.0
    training: float = TRAINING
    view: float = 1.0
    finer: float = 0.0
    negatives: int = 0

    def under(self, config: LearnConfig) -> Work:
        """Return what of the work some settings ask for."""
        finer = self.finer if config.finer_weight else 0.0
        return replace(self, adapts=self.adapts and config.method != "prototype", finer=finer)

    def shared_passes(self, epochs: int) -> float:
        """Return the passes that training through the prefix takes."""
        if not self.adapts:
            return 0.0
        teacher = self.prefix if self.distils else self.finer * self.view
        trained = 1.0 if self.together else self.prefix if self.distils else 0.0
        return self.train * epochs * self.seen * (trained * self.training + teacher)

    def task_passes(self, epochs: int) -> float:
        """Return the passes that training on prefix tokens takes."""
        alone = self.adapts and not self.together
        return self.train * epochs * self.seen * (1 - self.prefix) * self.training if alone else 0.0

    def base_passes(self, views: int) -> float:
        """Return the passes of prefix and base branch over the pictures and so many random views of each."""
        return self.train * self.view * (1 + views) + SQUARES * self.hold_out

    def own_passes(self, views: int) -> float:
        """Return the passes of the task's own branch over the same."""
        alone = self.adapts and not self.together
        return replace(self, view=1.0).base_passes(views) * (1 - self.prefix) if alone else 0.0


@dataclass(frozen=True)
class TimeBudget:
    """How long a learn may still take, and what a pass costs.

    Attributes:
        deadline: when it has to be over, by `time.monotonic`.
        decode_s: seconds to read one picture.
        pass_s: seconds of one forward pass over one picture, making the view included.
    """

    deadline: float
    decode_s: float
    pass_s: float

    def learn_s(self, work: Work, config: LearnConfig) -> float:
        """Return the seconds of a whole learn under some settings."""
        training = work.shared_passes(config.epochs) + work.task_passes(config.epochs)
        return (
            (work.train + work.hold_out + work.negatives) * self.decode_s
            + training * self.pass_s
            + self.encoding_s(work, config.views)
            + self.own_s(work, min(config.views, config.branch_views))
        )

    def encoding_s(self, work: Work, views: int) -> float:
        """Return the seconds of one pass over the pictures and so many random views."""
        return work.base_passes(views) * self.pass_s

    def own_s(self, work: Work, views: int) -> float:
        """Return the seconds from the end of the task adapter's training to the end of the learn."""
        return work.own_passes(views) * self.pass_s + self.finish_s(work)

    def finish_s(self, work: Work) -> float:
        """Return the seconds after the statistics."""
        return SQUARES * work.negatives * self.pass_s + FINISH_S

    def fit(self, work: Work, config: LearnConfig) -> LearnConfig:
        """Return the settings with as many epochs as fit, else without a teacher, fewer views, or statistics alone.

        Where not even those fit, the cheapest settings of all are returned.
        """
        left = self.deadline - time.monotonic()
        cheapest: Method = "prototype" if work.adapts else config.method
        options = [replace(config, method=cheapest, views=v) for v in _down(config.views, 0)]
        if work.adapts:
            fewest = min(FEWEST_EPOCHS, config.epochs)
            shorter = [replace(config, epochs=e) for e in _down(config.epochs, fewest)]
            alone = [replace(option, finer_weight=0.0) for option in shorter] if work.finer else []
            fewer = [replace((shorter + alone)[-1], views=v) for v in _down(config.views, 0)]
            options = [*shorter, *alone, *fewer, *options]
        for option in options:
            if self.learn_s(work.under(option), option) <= left:
                return option
        return options[-1]

    def fit_views(self, work: Work, views: int) -> int:
        """Return the most random views, at most `views`, that can be encoded in time after training."""
        left = self.deadline - time.monotonic() - self.finish_s(work)
        return next((v for v in _down(views, 0) if self.encoding_s(work, v) <= left), 0)

    def fit_own_views(self, work: Work, views: int) -> int:
        """Return the most random views, at most `views`, that the task's own branch can encode in time."""
        left = self.deadline - time.monotonic()
        return next((v for v in _down(views, 0) if self.own_s(work, v) <= left), 0)

    def training_deadline(self, work: Work, *, encoded: bool) -> float:
        """Return when training has to end, so that the least of what follows is done in time.

        Args:
            work: sizes.
            encoded: whether the base branch has seen the pictures already.
        """
        return self.deadline - self.own_s(work, 0) - (0.0 if encoded else self.encoding_s(work, 0))


def _down(most: int, least: int) -> Sequence[int]:
    return range(most, least - 1, -1)
