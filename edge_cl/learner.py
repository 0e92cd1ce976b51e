"""The learner: one store directory, everything that can be done with it. The command line is a thin layer over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edge_cl.config import BACKBONES_DIR, KEPT_VERSIONS, MOST_SEED, SHIPPED, LearnConfig
from edge_cl.errors import BackboneError, EdgeClError, StoreError, UsageError, did_you_mean
from edge_cl.progress import Progress, no_progress
from edge_cl.pruning import Pruned
from edge_cl.store import Store
from edge_cl.version import JsonObject, Version, hash_file

if TYPE_CHECKING:
    from edge_cl.export.exporter import Snapshot
    from edge_cl.features import Encoder
    from edge_cl.head import Head
    from edge_cl.intake import Intake, Pictures
    from edge_cl.model import Model
    from edge_cl.recognition import Prediction, Recogniser
    from edge_cl.report import LearnReport


@dataclass(frozen=True)
class Answer:
    """The prediction for one picture file, or for one frame of a video ("FILE@SECONDS")."""

    source: Path | str
    prediction: Prediction


@dataclass(frozen=True)
class Answers:
    """The answers for the pictures of some sources.

    Attributes:
        answers: one a picture, in the order of the sources.
        skipped: files that could not be read: {path, why}.
    """

    answers: Sequence[Answer]
    skipped: Sequence[Mapping[str, str]]


class Learner:
    """Learns classes, answers for pictures, and keeps versions, in one store directory.

    Torch is loaded when it is first needed: `log`, `classes`, `rename` and `rollback` do without.
    """

    def __init__(self, store: Store, *, device: str = "auto") -> None:
        self.store = store
        self.device = device

    @classmethod
    def init(
        cls,
        path: str | Path,
        *,
        backbone: str = "",
        weights: str | Path | None = None,
        image_size: int | None = None,
        patch_stride: int | None = None,
        device: str = "auto",
    ) -> Learner:
        """Make a store around a frozen backbone; its weights are copied in.

        Args:
            path: directory of the store.
            backbone: timm name; the shipped backbone if not given.
            weights: local .safetensors file; the hub is asked if not given.
            image_size: side of the input, pixels.
            patch_stride: pixels from one patch to the next; see `find_backbone` for what it is if not given.
            device: "auto", "cpu", "cuda" or the name of a board's profile, which means "cuda".

        Raises:
            BackboneError: unknown backbone, unreachable hub, weights that do not fit.
            StoreError: there is a store already.
        """
        from edge_cl.model import Model
        from edge_cl.statistics import Statistics
        from edge_cl.weights import load_backbone

        _device(device)
        source, vit = load_backbone(backbone, Path(weights) if weights else None, image_size, patch_stride)

        def fill(transaction: Any) -> None:
            transaction.put_file("backbone", source.path)
            model.save(transaction)

        spec = replace(source.spec, patch_stride=None) if source.spec.patch_stride == vit.patch else source.spec
        model = Model(spec, LearnConfig(), Statistics.empty(vit.depth * vit.summaries_per_block * vit.width))
        record: JsonObject = {"backbone": spec.name, "image_size": spec.image_size, "classes": []}
        number = 1 if spec.patch_stride is None else 2
        return cls(Store.create(path, record=record, fill=fill, format=number), device=device)

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", repair: bool = False) -> Learner:
        """Open an existing store.

        Args:
            path: directory of the store.
            device: "auto", "cpu", "cuda" or the name of a board's profile, which means "cuda".
            repair: open it even when HEAD is damaged, to roll back.
        """
        return cls(Store.open(path, repair=repair), device=device)

    def require_backbone(
        self,
        backbone: str = "",
        weights: str | Path | None = None,
        image_size: int | None = None,
        patch_stride: int | None = None,
    ) -> None:
        """Refuse a backbone other than the one the store was made with; what is not given is not compared.

        Raises:
            StoreError: another name, input size or patch stride, or weights whose SHA-256 is not the one recorded.
        """
        spec, faults = self.state["backbone"], []
        if backbone == SHIPPED:  # an architecture of timm's under our own name: its weights tell
            backbone, weights = "", weights or BACKBONES_DIR / f"{SHIPPED}.safetensors"
        if backbone and backbone != spec["name"]:
            faults.append(f"{self.store.given} was made with the backbone {spec['name']}, not {backbone}.")
        if image_size is not None and image_size != spec["image_size"]:
            faults.append(f"{self.store.given} was made for {spec['image_size']} px, not {image_size} px.")
        if patch_stride is not None:
            from edge_cl.architecture import BackboneSpec, stride_of

            if patch_stride != (own := stride_of(BackboneSpec.from_json(spec))):
                faults.append(f"{self.store.given} was made with patches {own} px apart, not {patch_stride} px.")
        if weights is not None:
            wanted = self.store.head.objects["backbone"].sha256
            try:
                found = hash_file(Path(weights)).sha256
            except OSError as error:
                raise BackboneError(
                    f"Cannot read weights from {weights}: {error.strerror}.", mend="Leave out --weights."
                ) from error
            if found != wanted:
                faults.append(
                    f"{self.store.given} was made with other weights: it wants SHA-256 {wanted}, {weights} has {found}."
                )
        if faults:
            mend = "Leave these options out (the store keeps its own backbone), or learn into a new --store."
            raise StoreError(*faults, mend=mend)

    # What is known ------------------------------------------------------------------------------------------------

    @property
    def state(self) -> Mapping[str, Any]:
        """The JSON state of the version in force."""
        state: Any = self.store.read_json(self.store.head, "state")
        return state  # type: ignore[no-any-return]

    def classes(self) -> list[dict[str, Any]]:
        """Return the classes known: id, name, task, pictures."""
        state = self.state
        return [{**c, "task": state["task_names"][str(c["task"])]} for c in state["classes"]]

    def log(self) -> list[Version]:
        """Return the versions, oldest first."""
        return self.store.versions()

    @cached_property
    def _loaded(self) -> dict[int, tuple[Model, Encoder]]:
        return {}

    @cached_property
    def _heads(self) -> dict[int, Head]:
        return {}

    def load(self, version: Version | None = None) -> tuple[Model, Encoder]:
        """Return the model of a version (HEAD if not given) and the backbone with its adapters."""
        from edge_cl.architecture import build
        from edge_cl.features import Encoder
        from edge_cl.model import Model
        from edge_cl.weights import read_weights

        version = version or self.store.head
        found = self._loaded.get(version.number)  # another thread may clear it at any time
        if found is None:
            model = Model.load(self.store, version)
            backbone = build(model.spec, read_weights(self.store.object_path(version, "backbone")))
            device = _device(self.device)
            for adapter in (model.shared, model.base, *model.adapters.values()):
                if adapter is not None:
                    adapter.to(device)
            encoder = Encoder(backbone.to(device), model.spec.preprocess, model.shared, model.base, device)
            found = model, encoder
            self._loaded.clear()
            self._loaded[version.number] = found
        return found

    def recogniser(self, rule: str = "routed") -> Recogniser:
        """Return what answers, for the version in force.

        Raises:
            UsageError: unknown rule.
            EdgeClError: nothing has been learned yet.
        """
        from edge_cl.recognition import RULES, Recogniser

        if rule not in RULES:
            raise UsageError(f"Unknown rule {rule!r}.", mend=did_you_mean(rule, list(RULES)))
        if self.device != "auto":
            _device(self.device)
        version = self.store.head
        self._require_classes(version)
        from edge_cl.features import TorchBackend

        model, encoder = self.load(version)
        head = self._heads.get(version.number)
        if head is None:  # of a thousand classes it takes seconds to make
            head = model.head()
            self._heads.clear()
            self._heads[version.number] = head
        encoder = replace(encoder, preprocess=model.preprocess)
        return Recogniser(TorchBackend(encoder, model.adapters), head, model.names, rule)

    # Learning -----------------------------------------------------------------------------------------------------

    def look(
        self,
        new_classes: Pictures | None = None,
        config: LearnConfig | None = None,
        *,
        update: bool = False,
        negatives: Pictures | None = None,
        progress: Progress = no_progress,
    ) -> Intake:
        """Read what `learn` would, and hold it against the known classes; load no model, change nothing."""
        from edge_cl.intake import Intake, read_folders

        folders = read_folders(new_classes, negatives, growing=update, progress=progress)
        known, hold_out = self._learned_from(self.store.head), (config or LearnConfig()).hold_out
        return Intake.of(*folders, *known, update=update, hold_out=hold_out)

    def learn(
        self,
        new_classes: Pictures | None = None,
        config: LearnConfig | None = None,
        *,
        task: str | None = None,
        update: bool = False,
        negatives: Pictures | None = None,
        export: str | Path | None = None,
        progress: Progress = no_progress,
        started: float | None = None,
        scan_s: float = 0.0,
    ) -> LearnReport:
        """Learn the classes of a folder, one sub-folder a class, and commit a new version.

        Args:
            new_classes: the folder, or what `edge_cl.pictures.read_folder` made of it; None for `negatives` alone.
            config: settings.
            task: name of the task.
            update: let new pictures of known classes join their statistics. Pictures that their class was learned from
                are passed over, and so are class folders without a usable one; where none is left, no version is made.
            negatives: folder of pictures, at any depth, of nothing that is or will be known, or what `read_unlabelled`
                made of it: the unknown test is tightened by them, and by those of earlier learns. A version is made
                for them alone too, unless all of them are kept already.
            export: a bundle to make, or to bring up to date, once the new version is in force. Where its graphs are
                those of the version before, and the task leaves prefix and base branch alone, they encode the pictures.
            progress: told (stage, steps done, steps in all).
            started: when the time that `config` allows began, by `time.monotonic`; now, if not given.
            scan_s: seconds that folders which were read before took; they count as this learn's stage "scan".

        Raises:
            FolderError: the folder cannot be learned from; no model has been loaded then.
            UsageError: neither classes nor negatives are given.
            StoreError: another process is writing, or the store is damaged.
            EdgeClError: old classes would lose more than `max_forgetting`; nothing is committed then.
            BundleError: the bundle cannot be written. Where that shows only after the learn, it is an
                `edge_cl.export.bundle.UnexportedError`, which has the report: the new version is in force.
            EngineError: the bundle has engines, and TensorRT is missing; nothing is learned then.
        """
        from edge_cl.checkpoint import discard
        from edge_cl.lesson import Lesson
        from edge_cl.pictures import PictureFolder
        from edge_cl.report import LearnReport
        from edge_cl.stopwatch import Stopwatch

        config = config or LearnConfig()
        task = check_asked(config, task, export)
        start, stopwatch = started or time.monotonic(), Stopwatch({"scan": scan_s})
        given = negatives if new_classes is None else new_classes
        place = given.root if isinstance(given, PictureFolder) else given
        with self.store.write(f"learn from {place}") as transaction:
            with stopwatch.stage("scan"):
                lesson = Lesson.read(new_classes, negatives, config, task, update=update, progress=progress)
            parent = transaction.parent
            assert parent is not None
            made = lesson.made(parent)
            if made and self._left(parent).is_dir():  # cut off after its commit
                report = LearnReport(**cast("Mapping[str, Any]", self.store.read_json(parent, "metrics.json")))
                again = f"Version {parent.number} has learned these very pictures already: nothing was changed."
                report = replace(report, notes=[*report.notes, again])
                version, made_of = parent, None
            else:
                intake = lesson.intake(*self._learned_from(parent), update=update)
                # Not before: a folder that cannot be learned from is refused without loading torch.
                from edge_cl.compiled import with_compiled
                from edge_cl.outcome import nothing_new
                from edge_cl.plan import keeps_encoder

                old, encoder = self.load(parent)
                if intake.is_empty or made:  # or of an earlier release, that kept no fingerprints
                    report = nothing_new(old, config, intake, parent.number, stopwatch.seconds, start)
                    version, made_of = parent, (old, encoder)
                else:
                    # Graphs hold weights of their own: not for a learn whose memory is limited.
                    limited = config.memory_mb is not None
                    if export and old.classes and not limited and keeps_encoder(replace(old, config=config), intake):
                        encoder = with_compiled(encoder, self.snapshot(), Path(export))
                    version, new, report = lesson.learn(
                        transaction, intake, old, encoder,
                        work=self.store.work, progress=progress, stopwatch=stopwatch, started=start,
                    )  # fmt: skip
                    made_of = new, encoder
        if export:
            # Not before: the memory that it takes is not the learn's.
            from edge_cl.deployment import export_after, snapshot_of
            from edge_cl.outcome import NOT_EXPORTED

            learned = snapshot_of(version, *(made_of or self.load(version)))
            if learned.model.classes:
                report = export_after(report, self._until_in_force(learned), export, progress, self.store.given)
            else:
                report = replace(report, notes=[*report.notes, NOT_EXPORTED])
        if made or version is not parent:
            discard([self._left(version)])
        return report

    def _learned_from(self, version: Version) -> tuple[Mapping[str, Collection[str]], Collection[str]]:
        """Return the SHA-256 of the pictures behind each known class, by its name, and of negatives; load no model."""
        from edge_cl.fingerprints import read_fingerprints

        hashes, state = read_fingerprints(self.store, version), cast("Any", self.store.read_json(version, "state"))
        return {c["name"]: hashes.get(c["id"], frozenset()) for c in state["classes"]}, state.get("negatives", ())

    def _left(self, version: Version) -> Path:
        """Return the directory that a learn's checkpoint had, which stays until all is done that was asked for."""
        return self.store.work / str(version.record["checkpoint"])

    def export(
        self,
        out: str | Path,
        *,
        layout: str | None = None,
        format: str | None = None,
        precision: str | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> dict[str, Any]:
        """Write the version in force as a bundle, or bring the bundle that is there up to date.

        Args:
            out: directory; new, empty, or a bundle.
            layout: "shared" or "merged"; a bundle that is there keeps its own, a new one is shared.
            format: "onnx"; "tensorrt", which adds engines for this board; or "peft" for adapters that PEFT loads. Not
                given: "onnx", and the engines too where the bundle that is there has some.
            precision: "fp32" or "fp16"; a bundle that is there keeps its own, a new one has fp32.
            say: told of every long step.

        Returns:
            format, version, layout, precision, seconds, classifier_s (for classifier.onnx, after that), written_bytes,
            graphs_built, removed_classes (that the bundle knew before: forgotten, renamed, or of another store); for
            TensorRT also engines; for PEFT format, version, folders.

        Raises:
            UsageError: an unknown layout, format or precision.
            BundleError: `out` holds something else, or cannot be written.
            EngineError: TensorRT is missing, or an engine cannot be made.
            EdgeClError: nothing has been learned yet.
        """
        first = self.snapshot()
        from edge_cl.deployment import export_snapshot

        for snapshot in self._until_in_force(first):
            done = export_snapshot(snapshot, out, format=format, layout=layout, precision=precision, say=say)
        return done

    def _until_in_force(self, snapshot: Snapshot) -> Iterator[Snapshot]:
        """Yield a version to be exported, and then the one in force, until that is what was exported.

        Another process may have put a version in force meanwhile, and have exported it before this one was done.
        """
        yield snapshot
        while self.store.head.number != snapshot.version:
            snapshot = self.snapshot()
            yield snapshot

    def snapshot(self) -> Snapshot:
        """Return the version in force as it is exported.

        Raises:
            EdgeClError: nothing has been learned yet.
        """
        head = self.store.head
        self._require_classes(head)
        from edge_cl.deployment import snapshot_of

        return snapshot_of(head, *self.load(head))

    def _require_classes(self, version: Version) -> None:
        state: Any = self.store.read_json(version, "state")
        if not state["classes"]:
            raise EdgeClError(
                f"{self.store.given} knows no class yet.",
                mend=f"Teach some: {self.store.command('learn --new-classes DIR')}",
            )

    def rename(self, old: str, new: str) -> Version:
        """Give a class another name; its id stays."""
        from edge_cl.pictures import class_name

        old, new = class_name(old), _named(new, "class")
        with self.store.write(f"rename {old}") as transaction:
            state = dict(self.state)
            self._require_known([old], state)
            names = [c["name"] for c in state["classes"]]
            if new in names and new != old:
                raise EdgeClError(f"There is a class {new!r} already.", mend="Choose another name, or forget it first.")
            state["classes"] = [{**c, "name": new if c["name"] == old else c["name"]} for c in state["classes"]]
            transaction.put_json("state", state)
            transaction.keep_all()
            return transaction.commit(kind="rename", record=_summary(state, renamed=[old, new]))

    def forget(self, names: str | Sequence[str]) -> Version:
        """Forget classes, or a single one, without retraining."""
        from edge_cl.pictures import class_name

        names = [names] if isinstance(names, str) else names  # not its letters
        names = list(dict.fromkeys(map(class_name, names)))
        with self.store.write(f"forget {', '.join(names)}") as transaction:
            self._require_known(names, self.state)
            from edge_cl.assessment import calibrated, with_exit
            from edge_cl.outcome import measured_anew

            model, encoder = self.load(transaction.parent)
            reduced = {c.task for c in model.classes if c.name in names}
            model = with_exit(calibrated(model.without(set(names))), encoder.prefix_width)
            model = measured_anew(model, reduced)
            model.save(transaction)
            transaction.keep("backbone")
            return transaction.commit(kind="forget", record=_summary(model.state(), forgotten=names))

    def rollback(self, number: int | None = None) -> Version:
        """Put an earlier version in force: the given one, else the parent of the one in force."""
        with self.store.write("roll back") as transaction:
            if number is None:
                number = self.store.head.parent
                if number is None:
                    raise StoreError(
                        "The version in force is the first: there is nothing before it.",
                        mend=f"Name a version: {self.store.command('log')} lists them.",
                    )
                if number not in self.store.files.numbers():
                    raise StoreError(
                        f"Version {number}, the one before, was pruned.",
                        mend=f"Name another: {self.store.command('log')} lists them.",
                    )
            return transaction.move_head(number)

    def prune(self, keep: int = KEPT_VERSIONS, *, dry_run: bool = False) -> Pruned:
        """Delete old versions for good, to free space, but the newest `keep`, the one in force and its parent.

        What only they knew can then not be brought back. To be rid of a forgotten class keep 1: then no parent stays.

        Raises:
            StoreError: see `Store.prune`.
        """
        return self.store.prune(keep, dry_run=dry_run)

    def _require_known(self, names: Sequence[str], state: Mapping[str, Any]) -> None:
        known = [c["name"] for c in state["classes"]]
        faults = [f"There is no class {n!r}. {did_you_mean(n, known)}" for n in names if n not in known]
        if faults:
            raise EdgeClError(*faults, mend=f"{self.store.command('classes')} lists what is known.")

    # Answering ----------------------------------------------------------------------------------------------------

    def predict(
        self, *sources: str | Path, top: int = 5, rule: str = "routed", progress: Progress = no_progress
    ) -> Answers:
        """Answer for picture files and folders of pictures.

        Raises:
            UsageError: a source is no path.
        """
        from edge_cl.decoded import decode_in_portions
        from edge_cl.intake import skipped_json
        from edge_cl.pictures import read_unlabelled

        for source in sources:
            if not isinstance(source, str | PathLike):
                raise UsageError(
                    f"Learner.predict takes paths of pictures and folders, not {type(source).__name__}.",
                    mend="For frames: export OUT, then edge_cl.runtime.Classifier(OUT).predict(frame).",
                )
        folder = read_unlabelled(*map(Path, sources), on_progress=partial(progress, "scan"))
        recogniser = self.recogniser(rule)
        rank = {source: i for i, source in reversed(list(enumerate(map(Path, sources))))}
        places = [min(rank.get(p, len(rank)) for p in (q.path, *q.path.parents)) for q in folder.pictures]
        pictures = [p for _, p in sorted(zip(places, folder.pictures, strict=True), key=lambda pair: pair[0])]
        answers, skipped = list[Answer](), list(folder.skipped)
        spec = recogniser.backend.preprocess
        for decoded in decode_in_portions(pictures, spec, skipped=skipped, progress=progress):
            found = recogniser.predict(decoded.pixels, top=top)
            answers += (Answer(p.path, a) for p, a in zip(decoded.pictures, found, strict=True))
        return Answers(answers, skipped_json(skipped))

    def watch(self, source: str, *, every_s: float = 1.0, top: int = 5, rule: str = "routed") -> Iterator[Answer]:
        """Answer for frames of a video file or camera, one in every `every_s` seconds, until it ends.

        Raises:
            EdgeClError: see `edge_cl.video.frames`; a camera that gives no more frames is one case.
        """
        from edge_cl.video import frames

        recogniser = self.recogniser(rule)
        for seconds, image in frames(source, every_s=every_s):
            pixels = recogniser.backend.preprocess.centre(image)
            yield Answer(f"{source}@{seconds:.2f}", recogniser.predict([pixels], top=top)[0])

    def evaluate(
        self,
        folder: str | Path,
        *,
        unknown: str | Path | None = None,
        rule: str = "routed",
        progress: Progress = no_progress,
    ) -> dict[str, Any]:
        """Measure on a folder of pictures, one sub-folder a class.

        Args:
            folder: pictures of known classes.
            unknown: folder of pictures, at any depth, of nothing known, to see how many are called unknown.
            rule: how branches are combined.
            progress: told (stage, steps done, steps in all).

        Returns:
            images, accuracy, macro_accuracy, per_class {name: accuracy}, per_task [accuracy, None where no picture is
            of the task], task_choice_accuracy (the class answered is of the right task), known_task_accuracy (if the
            task were told), calibration_error, confusions [{class, taken_for, count}] with the most frequent first,
            unknown_rate (of the folder), unknown_pictures ({images, called_unknown} of `unknown`, None without), rule,
            seconds, skipped.

        Raises:
            FolderError: a folder cannot be read, or holds a class that is not known.
        """
        from edge_cl.evaluation import evaluate, require_known
        from edge_cl.pictures import read_folder, read_unlabelled

        start, list_command = time.monotonic(), self.store.command("classes")
        pictures = read_folder(Path(folder), on_progress=partial(progress, "scan"))
        if known := [c["name"] for c in self.classes()]:  # before torch is loaded
            require_known(pictures, known, list_command)
        strange = None if unknown is None else read_unlabelled(Path(unknown), on_progress=partial(progress, "unknown"))
        found = evaluate(self.recogniser(rule), pictures, progress, unknown=strange, list_command=list_command)
        return {**found, "rule": rule, "seconds": time.monotonic() - start}


def check_asked(config: LearnConfig, task: str | None, export: str | Path | None) -> str | None:
    """Refuse what `Learner.learn` could not do in any store; return the name of the task as it is kept.

    Raises:
        UsageError: the seed is too large, or the text cannot name a task.
        BundleError: the bundle cannot be written.
        EngineError: it has engines, and TensorRT is missing.
    """
    if export is not None:
        from edge_cl.export.publication import require_writable

        require_writable(Path(export))
    if config.seed >= MOST_SEED:
        raise UsageError(f"The seed must be less than {MOST_SEED}, not {config.seed}.", mend="Pass a smaller --seed.")
    return None if task is None else _named(task, "task")


def _device(name: str) -> Any:
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        from edge_cl.devices import find_profile

        find_profile(name)
        name = "cuda"
    if name == "cuda" and not torch.cuda.is_available():
        raise EdgeClError("There is no CUDA device that torch can use.", mend="Pass --device cpu, or --device auto.")
    return torch.device(name)


def _named(text: str, what: str) -> str:
    """Return the name of a class or task that a user's text stands for, or raise UsageError."""
    from edge_cl.pictures import class_name, name_fault

    if fault := name_fault(text, what):
        raise UsageError(f"{text!r} cannot name a {what}: {fault}.", mend="Choose another name.")
    return class_name(text)


def _summary(state: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {"classes": [c["name"] for c in state["classes"]], **more}
