"""What has been learned, as one value: classes, tasks, adapters, statistics; and how it lies in a store version."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_cl.architecture import BackboneSpec
from edge_cl.config import LearnConfig
from edge_cl.fingerprints import Fingerprints, put_fingerprints, read_fingerprints
from edge_cl.head import EXIT_BITS, UNKNOWN_RANK, WEIGHT_BITS, Branch, Exit, Head
from edge_cl.lora import Adapter
from edge_cl.preprocess import Preprocess
from edge_cl.spread import Spread
from edge_cl.statistics import Array, Indices, Statistics
from edge_cl.store import Store
from edge_cl.transaction import Transaction
from edge_cl.version import Version


@dataclass(frozen=True)
class KnownClass:
    """One class; its id is permanent, its name can change.

    Attributes:
        id: permanent number.
        name: as shown.
        task: the task that taught it.
        pictures: how many have been learned from.
    """

    id: int
    name: str
    task: int
    pictures: int


@dataclass(frozen=True)
class Probes:
    """Features of a task's hold-out pictures: what is left to measure forgetting by, once the pictures are gone.

    Attributes:
        features: in the base branch, (P, F), half precision.
        classes: permanent class ids, (P,).
        scores: by the task's own branch over its classes, (P, C_t).
        pooled: whether each is in the pooled scatter too, and not in its class mean alone, (P,).
    """

    features: npt.NDArray[np.float16]
    classes: Indices
    scores: Array
    pooled: npt.NDArray[np.bool_]

    def select(self, rows: npt.NDArray[np.bool_], columns: npt.NDArray[np.bool_]) -> Probes:
        """Return some probes and some classes' scores."""
        return Probes(self.features[rows], self.classes[rows], self.scores[rows][:, columns], self.pooled[rows])

    def limited(self, most: int | Mapping[int, int]) -> Probes:
        """Return at most so many probes a class (of each by its id, none of those not named), the earlier first."""
        limits = [most if isinstance(most, int) else most.get(int(c), 0) for c in self.classes]
        rank = [int((self.classes[:i] == c).sum()) for i, c in enumerate(self.classes)]
        return self.select(np.asarray(rank, int) < limits, np.ones(self.scores.shape[1], bool))

    def joined(self, other: Probes, most: int) -> Probes:
        """Return these and further probes of the same task, at most so many a class."""
        parts = zip(vars(self).values(), vars(other).values(), strict=True)
        return Probes(*(np.concatenate(pair) for pair in parts)).limited(most)


@dataclass(frozen=True)
class ExitFit:
    """What was fitted of the exit (see `Exit`).

    Attributes:
        width: features of the prefix, Fp.
        temperature, threshold: of its head.
        confidence: above which it is sure.
    """

    width: int
    temperature: float
    threshold: float
    confidence: float


@dataclass(frozen=True)
class Model:
    """The state of a learner, never changed in place.

    Attributes:
        spec: the backbone.
        config: of the latest learn; its head settings are in force.
        classes: in the order of the rows of `statistics`.
        task_names: by task number, in order of teaching.
        shared: shared adapter, or None before the first adapted task.
        base: adapter of the base branch, likewise.
        base_classes: number of classes that it was trained on.
        adapters: task adapters by task; tasks without one are answered by the base branch.
        statistics: of the base branch's features.
        branches: of every task.
        spreads: of every task's classes; those that earlier releases taught have none.
        probes: of every task that had pictures to hold out.
        negatives: features of pictures of nothing known, in the base branch, (M, F), half precision; M may be 0.
        negative_hashes: SHA-256 of these; of the last of them, where an earlier release kept the others.
        closer: whether pictures are answered on the closer square (`Preprocess.closer`) instead of the one learned on.
        closer_probes, closer_negatives: of the same pictures, on that square; none of those of earlier releases.
        fingerprints: of the pictures that were learned.
        history: hold-out accuracy by task after each learn, {task: accuracy}.
        next_class: the id the next new class gets.
        temperature, threshold, least_score: see `Head`.
        unknown_rank: directions of the distance that the threshold was fitted to; None: all of them.
        rounded: whether it was fitted to a head whose matrices have few bits, as a bundle holds them.
        exit: what was fitted of the exit; None where there is none.
    """

    spec: BackboneSpec
    config: LearnConfig
    statistics: Statistics
    classes: tuple[KnownClass, ...] = ()
    task_names: Mapping[int, str] = field(default_factory=dict)
    shared: Adapter | None = None
    base: Adapter | None = None
    base_classes: int = 0
    adapters: Mapping[int, Adapter] = field(default_factory=dict)
    branches: Mapping[int, Branch] = field(default_factory=dict)
    spreads: Mapping[int, Spread] = field(default_factory=dict)
    probes: Mapping[int, Probes] = field(default_factory=dict)
    negatives: npt.NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), np.float16))
    negative_hashes: tuple[str, ...] = ()
    closer: bool = False
    closer_probes: Mapping[int, Probes] = field(default_factory=dict)
    closer_negatives: npt.NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), np.float16))
    fingerprints: Fingerprints = field(default_factory=dict)
    history: tuple[Mapping[int, float], ...] = ()
    next_class: int = 0
    temperature: float = 1.0
    threshold: float = float("inf")
    least_score: float = -float("inf")
    unknown_rank: int | None = UNKNOWN_RANK
    rounded: bool = True
    exit: ExitFit | None = None

    @property
    def names(self) -> dict[int, str]:
        """Class names by id."""
        return {c.id: c.name for c in self.classes}

    @property
    def ids(self) -> dict[str, int]:
        """Class ids by name."""
        return {c.name: c.id for c in self.classes}

    @property
    def preprocess(self) -> Preprocess:
        """How pictures that are to be answered become input."""
        return self.spec.preprocess.closer() if self.closer else self.spec.preprocess

    @property
    def seen_probes(self) -> Mapping[int, Probes]:
        """The probes on the square that is answered on."""
        return self.closer_probes if self.closer else self.probes

    @property
    def seen_negatives(self) -> npt.NDArray[np.float16]:
        """The negatives on the square that is answered on."""
        return self.closer_negatives if self.closer else self.negatives

    @property
    def next_task(self) -> int:
        """The number the next task gets."""
        return max(self.task_names, default=-1) + 1

    def head(self) -> Head:
        """Build the head from the statistics."""
        head = replace(
            self.head_of(self.statistics, spreads=self.spreads.values()),
            branches=self.branches,
            temperature=self.temperature,
            threshold=self.threshold,
            least_score=self.least_score,
        )
        if self.exit is None:
            return head
        fit = self.exit
        early = self.head_of(self.exit_statistics, EXIT_BITS)
        early = replace(early, temperature=fit.temperature, threshold=fit.threshold)
        return replace(head, exit=Exit(early, fit.confidence))

    @property
    def exit_statistics(self) -> Statistics:
        """Statistics of the prefix's features alone, where there is an exit."""
        assert self.exit is not None
        return self.statistics.of_first(self.exit.width)

    def head_of(self, statistics: Statistics, bits: int = WEIGHT_BITS, spreads: Iterable[Spread] = ()) -> Head:
        """Build a head of the classes known, its weights of so many bits, from statistics; nothing is fitted in it."""
        exact = Head.of(
            statistics,
            np.asarray([c.id for c in self.classes], np.int64),
            np.asarray([c.task for c in self.classes], np.int64),
            shrinkage=self.config.shrinkage,
            unknown_rank=self.unknown_rank,
            spreads=spreads,
        )
        return exact.rounded(bits) if self.rounded else exact

    def without(self, names: set[str]) -> Model:
        """Return the model with some classes forgotten: their means, probes, branch rows and fingerprints are gone.

        The pooled covariance, shared by all classes, keeps its value: no class can be read from it. A task whose
        last class goes loses its adapter too.
        """
        gone = {c.id for c in self.classes if c.name in names}
        classes = tuple(c for c in self.classes if c.id not in gone)
        alive = {c.task for c in classes}
        branches, spreads = {}, {}
        kept: tuple[dict[int, Probes], dict[int, Probes]] = ({}, {})
        for task in alive & set(self.branches):
            stays = np.asarray([int(c) not in gone for c in self.branches[task].classes])
            branches[task] = self.branches[task].without(gone)
            if task in self.spreads:
                spreads[task] = self.spreads[task].without(gone)
            for every, left in zip((self.probes, self.closer_probes), kept, strict=True):
                if task in every:
                    rows = np.asarray([int(c) not in gone for c in every[task].classes], bool)
                    if rows.any():
                        left[task] = every[task].select(rows, stays)
        rows = np.asarray([i for i, c in enumerate(self.classes) if c.id in gone], np.int64)
        return replace(
            self,
            classes=classes,
            adapters={t: a for t, a in self.adapters.items() if t in alive},
            branches=branches,
            spreads=spreads,
            probes=kept[0],
            closer_probes=kept[1],
            fingerprints={c: hashes for c, hashes in self.fingerprints.items() if c not in gone},
            statistics=self.statistics.without(rows),
        )

    def without_negatives(self, hashes: Collection[str]) -> Model:
        """Return the model without the negatives of some SHA-256; those of earlier releases, that have none, stay."""
        stay = [sha not in hashes for sha in self.negative_hashes]

        def left(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
            rows = ([True] * len(features) + stay)[len(stay) :]  # the hashes are of the last
            kept: npt.NDArray[np.float16] = features[np.asarray(rows, bool)]
            return kept

        return replace(
            self,
            negatives=left(self.negatives),
            closer_negatives=left(self.closer_negatives),
            negative_hashes=tuple(sha for sha in self.negative_hashes if sha not in hashes),
        )

    def seen_by(self, older: Model) -> Model:
        """Return the model with the probes alone that an older one had: both are measured on the same pictures then."""
        counts = Counter(c for probes in older.probes.values() for c in probes.classes.tolist())

        def first(probes: Mapping[int, Probes]) -> dict[int, Probes]:
            limited = {t: p.limited(counts) for t, p in probes.items()}
            return {t: p for t, p in limited.items() if len(p.classes)}

        return replace(self, probes=first(self.probes), closer_probes=first(self.closer_probes))

    def moved(self, points: Callable[[Array], Array]) -> Model:
        """Return the model whose kept features of pictures have gone through a map, (n, F) to (n, F)."""

        def half(features: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
            return points(features.astype(np.float32)).astype(np.float16) if len(features) else features

        def probes(every: Mapping[int, Probes]) -> dict[int, Probes]:
            return {t: replace(p, features=half(p.features)) for t, p in every.items()}

        return replace(
            self,
            spreads={t: spread.moved(points) for t, spread in self.spreads.items()},
            probes=probes(self.probes),
            closer_probes=probes(self.closer_probes),
            negatives=half(self.negatives),
            closer_negatives=half(self.closer_negatives),
        )

    def save(self, transaction: Transaction) -> None:
        """Put every object but the backbone's weights."""
        if self.shared is not None and self.base is not None:
            transaction.put_tensors("shared", self.shared.to_numpy())
            transaction.put_tensors("base", self.base.to_numpy())
        transaction.put_tensors("statistics", self.statistics.to_numpy())
        for task, adapter in self.adapters.items():
            transaction.put_tensors(_object(task, "adapter"), adapter.to_numpy())
        for task, branch in self.branches.items():
            transaction.put_tensors(_object(task, "branch"), branch.to_numpy())
        for task, spread in self.spreads.items():
            transaction.put_tensors(_object(task, "spread"), spread.to_numpy())
        for kind, every in (("probes", self.probes), ("closer-probes", self.closer_probes)):
            for task, probes in every.items():
                transaction.put_tensors(_object(task, kind), vars(probes))
        for name, negatives in (("negatives", self.negatives), ("closer-negatives", self.closer_negatives)):
            if len(negatives):
                transaction.put_tensors(name, {"features": negatives})
        put_fingerprints(transaction, self.fingerprints, {c.id: c.task for c in self.classes})
        transaction.put_json("state", self.state())

    def state(self) -> dict[str, Any]:
        """Return everything but the tensors, as plain JSON values."""
        return {
            "backbone": self.spec.to_json(),
            "config": self.config.to_json(),
            "classes": [asdict(c) for c in self.classes],
            "task_names": {str(t): name for t, name in self.task_names.items()},
            "history": [{str(t): a for t, a in row.items()} for row in self.history],
            "next_class": self.next_class,
            "base_classes": self.base_classes,
            "temperature": self.temperature,
            "threshold": self.threshold if np.isfinite(self.threshold) else None,
            "least_score": self.least_score if np.isfinite(self.least_score) else None,
            "unknown_rank": self.unknown_rank,
            "rounded": self.rounded,
            "exit": None if self.exit is None else asdict(self.exit),
            "closer": self.closer,
            "negatives": list(self.negative_hashes),
        }

    @classmethod
    def load(cls, store: Store, version: Version) -> Model:
        """Read the model of a version, every object verified."""
        state: Any = store.read_json(version, "state")
        spec = BackboneSpec.from_json(state["backbone"])

        def read(task: int, kind: str) -> Any:
            name = _object(task, kind)
            return store.read_tensors(version, name) if name in version.objects else None

        tasks = sorted(int(t) for t in state["task_names"])
        adapters = {t: Adapter.from_numpy(spec.split, a) for t in tasks if (a := read(t, "adapter"))}
        shared = base = None
        if "shared" in version.objects:
            shared = Adapter.from_numpy(0, store.read_tensors(version, "shared"), shared=True)
            base = Adapter.from_numpy(spec.split, store.read_tensors(version, "base"))
        threshold, least_score = state["threshold"], state.get("least_score")
        return cls(
            spec=spec,
            config=LearnConfig.from_json(state["config"]),
            statistics=Statistics.from_numpy(store.read_tensors(version, "statistics")),
            classes=tuple(KnownClass(**c) for c in state["classes"]),
            task_names={int(t): name for t, name in state["task_names"].items()},
            shared=shared,
            base=base,
            adapters={t: a.requires_grad_(False) for t, a in adapters.items()},
            branches={t: Branch.from_numpy(b) for t in tasks if (b := read(t, "branch"))},
            spreads={t: Spread.from_numpy(s) for t in tasks if (s := read(t, "spread"))},
            probes={t: _probes(p) for t in tasks if (p := read(t, "probes"))},
            negatives=_negatives(store, version, "negatives"),
            negative_hashes=tuple(state.get("negatives", ())),
            closer=state.get("closer", False),
            closer_probes={t: _probes(p) for t in tasks if (p := read(t, "closer-probes"))},
            closer_negatives=_negatives(store, version, "closer-negatives"),
            fingerprints=read_fingerprints(store, version),
            history=tuple({int(t): a for t, a in row.items()} for row in state["history"]),
            next_class=state["next_class"],
            base_classes=state["base_classes"],
            temperature=state["temperature"],
            threshold=float("inf") if threshold is None else threshold,
            least_score=-float("inf") if least_score is None else least_score,
            unknown_rank=state.get("unknown_rank"),  # states of earlier commits do not say: they took all directions
            rounded=state.get("rounded", False),  # likewise: their matrices had all their digits
            exit=ExitFit(**state["exit"]) if state.get("exit") else None,
        )


def _probes(tensors: Mapping[str, Any]) -> Probes:
    """Rebuild probes; those of earlier commits do not say whether they are pooled: they were not."""
    return Probes(**{"pooled": np.zeros(len(tensors["classes"]), bool), **tensors})


def _negatives(store: Store, version: Version, name: str) -> npt.NDArray[np.float16]:
    if name not in version.objects:
        return np.zeros((0, 0), np.float16)
    return store.read_tensors(version, name)["features"].astype(np.float16)


def _object(task: int, kind: str) -> str:
    return f"task/{task:04}/{kind}"
