"""What fits into the time of a learn: epochs, chosen before training, and views, chosen before the statistics.

All costs are counted in forward passes of the whole backbone over one picture, whose seconds are measured on the
learn's own pictures first. A prediction that is off is mended on the way: training stops when the time that the
statistics need is reached, and fewer views go into the statistics when training took longer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edge_cl.config import LearnConfig

TRAINING = 2.2  # a forward and backward pass through adapted blocks, in forward passes
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
    """

    train: int
    hold_out: int
    prefix: float
    adapts: bool
    together: bool
    distils: bool

    def training_passes(self, epochs: int, views: int) -> float:
        """Return the passes that training takes."""
        if not self.adapts:
            return 0.0
        teacher = epochs * self.prefix if self.distils else 0.0
        if self.together:
            return self.train * (epochs * TRAINING + teacher)
        shared = epochs * self.prefix * TRAINING + teacher if self.distils else 0.0
        return self.train * (shared + views * self.prefix + epochs * (1 - self.prefix) * TRAINING)

    def statistics_passes(self, views: int) -> float:
        """Return the passes that the statistics take, with so many augmented views of a picture."""
        own_branch = 1 - self.prefix if self.adapts and not self.together else 0.0
        return (self.train * (1 + views) + self.hold_out) * (1 + own_branch)


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

    def statistics_s(self, work: Work, views: int) -> float:
        """Return the seconds from the end of training to the end of the learn."""
        return work.statistics_passes(views) * self.pass_s + (work.train + work.hold_out) * self.decode_s + FINISH_S

    def learn_s(self, work: Work, config: LearnConfig) -> float:
        """Return the seconds of a whole learn under some settings."""
        training = work.training_passes(config.epochs, config.views) * self.pass_s
        reading = work.train * self.decode_s if work.adapts else 0.0
        return reading + training + self.statistics_s(work, config.statistics_views)

    def fit(self, work: Work, config: LearnConfig) -> LearnConfig:
        """Return the settings with as many epochs as fit, else fewer views, else with statistics alone.

        Where not even those fit, the cheapest settings of all are returned.
        """
        left = self.deadline - time.monotonic()
        options = [replace(config, method="prototype", statistics_views=v) for v in _down(config.statistics_views, 0)]
        if work.adapts:
            fewest = min(FEWEST_EPOCHS, config.epochs)
            shorter = [replace(config, epochs=e, views=min(e, config.views)) for e in _down(config.epochs, fewest)]
            fewer = [replace(shorter[-1], statistics_views=v) for v in _down(config.statistics_views, 0)]
            options = [*shorter, *fewer, *options]
        for option in options:
            taken = replace(work, adapts=work.adapts and option.method != "prototype")
            if self.learn_s(taken, option) <= left:
                return option
        return options[-1]

    def fit_views(self, work: Work, views: int) -> int:
        """Return the most augmented views, at most `views`, whose statistics are done in time."""
        left = self.deadline - time.monotonic()
        return next((v for v in _down(views, 0) if self.statistics_s(work, v) <= left), 0)

    def training_deadline(self, work: Work) -> float:
        """Return when training has to end, so that statistics of the centred squares alone are done in time."""
        return self.deadline - self.statistics_s(work, 0)


def _down(most: int, least: int) -> Sequence[int]:
    return range(most, least - 1, -1)
