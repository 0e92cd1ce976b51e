"""From a graph to an engine that is trusted, by the cheapest way that works.

    1. the engine at hand, where its key says that it was made of the same
    2. the same engine under a new name, where only other files changed
    3. a refit of the engine at hand, where only the values of refittable weights changed
    4. a build
    5. a build from the fp32 graph
    6. a refusal: whoever asked answers with ONNX Runtime instead

Every engine of 3 to 5 must reproduce the reference outputs first, also after a plain build: TensorRT has built wrong
engines of vision transformers, without a word (docs/tensorrt.md). The engine in force stays until then.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from edge_cl.errors import EngineError
from edge_cl.export.engine import BuildOptions, Say
from edge_cl.export.engine_key import EngineFolder, EngineKey, Platform, Sidecar
from edge_cl.export.engine_source import Array, EngineGraph, EngineSource, Weights
from edge_cl.export.reference import TOLERANCE, Example
from edge_cl.version import ObjectRef

NOT_YET = ("", ObjectRef("", 0))  # file and hash of an engine that is not stored


class Compiler(Protocol):
    """What makes engines and runs them: TensorRT on a GPU."""

    def platform(self) -> Platform:
        """Say what engines are tied to."""

    def build(self, graph: EngineGraph, options: BuildOptions, *, say: Say) -> bytes:
        """Build an engine; raises EngineError."""

    def refit(self, engine: bytes, weights: Weights, changed: Collection[str]) -> bytes:
        """Return the engine with other weights; raises EngineError."""

    def run(self, engine: bytes, inputs: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
        """Run an engine on inputs, cast to its own precision; raises EngineError."""


@dataclass(frozen=True)
class EngineRequest:
    """One engine that is wanted.

    Attributes:
        name: "prefix", "suffix", or "suffix-TASK".
        source: what it is made of.
        examples: makes the reference examples; asked for every engine that is tried, so not where one is at hand.
        options: how it is built.
        widened: only fp32 will do, because an engine that it works with is in fp32.
    """

    name: str
    source: EngineSource
    examples: Callable[[], Sequence[Example]]
    options: BuildOptions
    widened: bool = False

    def key(self, source: EngineSource, platform: Platform) -> EngineKey:
        """Return the key of the engine that a source gives under the options."""
        profile = (1, self.options.opt_batch, self.options.max_batch)
        return EngineKey.of(source, platform, profile, self.options.refittable)


@dataclass(frozen=True)
class Prepared:
    """An engine that may be run.

    Attributes:
        path: its file.
        made: "at hand", "kept", "refitted", "built" or "built in fp32".
        precision: of the engine.
        deviation: from the reference, see `Example.deviation`.
    """

    path: Path
    made: str
    precision: str
    deviation: float


def prepare_engine(
    request: EngineRequest,
    folder: EngineFolder,
    compiler: Compiler,
    *,
    previous: Sequence[str] = (),
    say: Say,
) -> Prepared:
    """Find, refit or build an engine, and put it in force.

    Args:
        request: what is wanted.
        folder: where the engine in force is, and the new one goes.
        compiler: makes and runs engines.
        previous: names of other engines there that may be refitted: of another task.
        say: is told every step and why it is taken.

    Raises:
        EngineError: no engine could be made that reproduces the reference; the one in force is as it was.
    """
    return _Ladder(request, folder, compiler, say).climb(previous)


@dataclass(frozen=True)
class _Ladder:
    request: EngineRequest
    folder: EngineFolder
    compiler: Compiler
    tell: Say

    def say(self, text: str) -> None:
        self.tell(f"{self.request.name} engine: {text}.")

    def climb(self, previous: Sequence[str]) -> Prepared:
        request = self.request
        key = request.key(request.source, self.compiler.platform())
        if prepared := self._at_hand(key):
            return prepared
        failed: list[str] = []
        if not request.widened and (prepared := self._as_wanted(key, previous, failed)):
            return prepared
        if request.source.precision != "fp32" and (prepared := self._in_fp32(key, failed)):
            return prepared
        raise EngineError(
            f"No {request.name} engine could be made that computes what the graph does.",
            *failed,
            mend="Answer with the ONNX Runtime backend, and tell us the board and its JetPack.",
        )

    def _as_wanted(self, key: EngineKey, previous: Sequence[str], failed: list[str]) -> Prepared | None:
        graph = self.request.source.load()
        new = Sidecar(key, *NOT_YET, graph.structure, graph.hashes(), "built", 0.0)
        for name in (self.request.name, *previous):
            if prepared := self._kept_or_refitted(name, new, graph):
                return prepared
        return self._built(graph, new, failed)

    def _in_fp32(self, wanted: EngineKey, failed: list[str]) -> Prepared | None:
        source = self.request.source.in_fp32()
        graph, key = source.load(), self.request.key(source, wanted.platform)
        new = Sidecar(key, *NOT_YET, graph.structure, graph.hashes(), "built", 0.0, instead_of=wanted.digest)
        return self._built(graph, new, failed)

    def _at_hand(self, key: EngineKey) -> Prepared | None:
        name = self.request.name
        try:
            self.folder.load(name, key)
        except EngineError as error:
            self.say(f"not as it is ({'; '.join(error.faults)})")
            return None
        sidecar = self.folder.sidecar(name)
        if self.request.widened and sidecar.key.precision != "fp32":
            self.say("not in fp16, because another engine of the bundle has to be in fp32")
            return None
        instead = "" if sidecar.key == key else f", in {sidecar.key.precision} because {key.precision} failed here"
        self.say(f"the one at hand{instead}")
        return Prepared(self.folder.path / sidecar.file, "at hand", sidecar.key.precision, sidecar.deviation)

    def _kept_or_refitted(self, name: str, new: Sidecar, graph: EngineGraph) -> Prepared | None:
        refittable = set(self.request.options.refittable)
        try:
            old = self.folder.sidecar(name)
        except EngineError:
            return None
        try:
            if not new.key.refits(old.key) or new.structure != old.structure or set(new.weights) != set(old.weights):
                return None
            changed = sorted(w for w in new.weights if new.weights[w] != old.weights[w])
            if fixed := set(changed) - refittable:
                self.say(f"no refit, because {len(fixed)} weights that are fixed in it changed ({min(fixed)}, ...)")
                return None
            engine = self.folder.read(old)
            if changed:
                self.say(f"refitting {len(changed)} weights")
                engine = self.compiler.refit(engine, graph.weights, changed)
                new = replace(new, made="refitted", deviation=self._check(engine, new.key.precision))
            else:
                self.say("the one before, all of whose weights are the same")
                new = replace(new, made=old.made, deviation=old.deviation)
        except EngineError as error:
            self.say(f"no refit ({'; '.join(error.faults)})")
            return None
        return self._in_force(engine, new, "refitted" if changed else "kept")  # not in the try: a build is no help

    def _built(self, graph: EngineGraph, new: Sidecar, failed: list[str]) -> Prepared | None:
        precision = new.key.precision
        try:
            self.say(f"building it in {precision}, which takes minutes on a board")
            engine = self.compiler.build(graph, self.request.options, say=self.say)
            deviation = self._check(engine, precision)
        except EngineError as error:
            failed += [f"{precision}: {fault}" for fault in error.faults]
            self.say(f"not in {precision} ({'; '.join(error.faults)})")
            return None
        made = "built in fp32" if new.instead_of else "built"
        return self._in_force(engine, replace(new, deviation=deviation), made)

    def _check(self, engine: bytes, precision: str) -> float:
        """Return the deviation from the reference; raises EngineError where it is more than rounding."""
        examples, limit = self.request.examples(), TOLERANCE[precision]
        found = self.compiler.run(engine, [example.inputs for example in examples])
        deviation = max(example.deviation(outputs) for example, outputs in zip(examples, found, strict=True))
        if not deviation <= limit:
            raise EngineError(f"its outputs are {deviation:.1e} off the reference, more than {limit:.0e}")
        self.say(f"outputs are {deviation:.1e} off the reference, within {limit:.0e}")
        return deviation

    def _in_force(self, engine: bytes, sidecar: Sidecar, made: str) -> Prepared:
        path = self.folder.store(self.request.name, engine, sidecar)
        return Prepared(path, made, sidecar.key.precision, sidecar.deviation)
