"""The engines of a bundle: which graphs they are made of, how they are prepared, and how they are found again."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from shlex import quote

from edge_cl.backend import BASE, BATCH_SIZE
from edge_cl.errors import EngineError
from edge_cl.export.bundle import ENGINES, Bundle, Factors, read_manifest
from edge_cl.export.engine import BuildOptions, Say
from edge_cl.export.engine_key import EngineFolder, EngineKey, Platform
from edge_cl.export.engine_source import EngineSource, Weights
from edge_cl.export.ladder import Compiler, EngineRequest, Prepared, prepare_engine
from edge_cl.export.publication import locked
from edge_cl.export.reference import Example, Reference

TIMING_CACHE = "timing.cache"


@dataclass(frozen=True)
class BundleEngine:
    """One engine of a bundle.

    Attributes:
        name: of the engine: "prefix", "suffix", "suffix-base", "suffix-TASK".
        source: what it is made of.
        refittable: names of the weights that a later version of the bundle may change.
    """

    name: str
    source: EngineSource
    refittable: tuple[str, ...]

    def key(self, platform: Platform, profile: tuple[int, int, int]) -> EngineKey:
        """Return the engine's key."""
        return EngineKey.of(self.source, platform, profile, self.refittable)


def folder_of(bundle: Bundle) -> EngineFolder:
    """Return where a bundle's engines lie."""
    return EngineFolder(bundle.path / ENGINES)


def prefix_engine(bundle: Bundle) -> BundleEngine:
    """Return the prefix's engine: one, into which the shared adapter is merged."""
    files, split = bundle.manifest.files, bundle.manifest.shape.split
    merged = "merged/prefix" in files
    overrides = {} if bundle.manifest.layout == "merged" else bundle.shared_projections()
    source = _source(bundle, "merged/prefix" if merged else "prefix", overrides)
    return BundleEngine("prefix", source, _projections(range(split)))


def suffix_engines(bundle: Bundle) -> dict[int, BundleEngine]:
    """Return the suffix's engines by task, `BASE` for the base branch.

    In layout shared there is one, under `BASE`: what a task adds is an input, so no weight of it ever changes.
    """
    manifest = bundle.manifest
    if manifest.layout == "shared":
        return {BASE: BundleEngine("suffix", _source(bundle, "suffix"), ())}
    names = _projections(range(manifest.shape.split, manifest.shape.depth))
    roles = {BASE: "merged/base"} | {task: f"merged/{task}" for task in manifest.tasks}
    return {
        task: BundleEngine(
            f"suffix-{'base' if task == BASE else task}",
            _source(bundle, role if role in manifest.files else "suffix"),
            names,
        )
        for task, role in roles.items()
        if task == BASE or role in manifest.files
    }


def _projections(blocks: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"blocks.{i}.attn.qkv.weight" for i in blocks)


def _source(bundle: Bundle, role: str, overrides: Weights | None = None) -> EngineSource:
    files = bundle.manifest.files
    return EngineSource(
        bundle.file(role), bundle.manifest.precision, files[role].sha256, files["weights"].sha256, overrides or {}
    )


def prepare_engines(
    bundle: Bundle,
    compiler: Compiler,
    *,
    max_batch: int = BATCH_SIZE,
    say: Say,
) -> dict[str, Prepared]:
    """Find, refit or build every engine of a bundle, each checked against the reference before it is put in force.

    The bundle stays locked until all are made: no later version can come, and get its engines, while these are built.

    Args:
        bundle: opened.
        compiler: makes and runs engines.
        max_batch: most pictures at once.
        say: is told every step and why it is taken.

    Returns:
        The engines by name.

    Raises:
        EngineError: one of them cannot be made, those before it are in force; or the bundle is not the one opened.
        BundleError: another process is writing the bundle.
    """
    with locked(bundle.path):
        if read_manifest(bundle.path) != bundle.manifest:
            raise EngineError(
                f"{bundle.path} was updated before its engines were made.", mend="Run the same command again."
            )
        return _prepare_all(bundle, compiler, max_batch, say)


def _prepare_all(bundle: Bundle, compiler: Compiler, max_batch: int, say: Say) -> dict[str, Prepared]:
    folder = folder_of(bundle)
    folder.make()  # now: builds keep their timings in there
    requests = _requests(bundle, max_batch)

    def prepare(request: EngineRequest, *, widened: bool) -> Prepared:
        # A suffix of another task is the same graph with other weights.
        others = [name for name in requests if name != request.name and "prefix" not in (name, request.name)]
        return prepare_engine(replace(request, widened=widened), folder, compiler, previous=others, say=say)

    prepared = {name: prepare(request, widened=False) for name, request in requests.items()}
    if len({engine.precision for engine in prepared.values()}) > 1:  # tokens pass between them
        say("one engine has to be in fp32, so all are.")
        prepared = {name: prepare(request, widened=True) for name, request in requests.items()}
    folder.sweep(requests)
    return prepared


def _requests(bundle: Bundle, max_batch: int) -> dict[str, EngineRequest]:
    prefix = prefix_engine(bundle)
    tried = list(branch_factors(bundle).values())
    # The base branch answers for every picture, and the newest task has not answered for any yet.
    tried = tried[:1] + tried[1:][-1:]

    @functools.cache
    def reference() -> Reference:
        return Reference(prefix.source, bundle.manifest.preprocess.image_size, (1, max_batch))

    def request(engine: BundleEngine) -> EngineRequest:
        @functools.cache
        def examples() -> Sequence[Example]:
            return reference().prefix() if engine is prefix else reference().suffix(engine.source, tried)

        options = BuildOptions(
            max_batch=max_batch,
            refittable=engine.refittable,
            timing_cache=folder_of(bundle).path / TIMING_CACHE,
        )
        return EngineRequest(engine.name, engine.source, examples, options)

    return {engine.name: request(engine) for engine in (prefix, *suffix_engines(bundle).values())}


def branch_factors(bundle: Bundle) -> dict[int, Factors]:
    """Return what the shared suffix is given for each branch, the base branch first; nothing in layout merged."""
    return {} if bundle.manifest.layout == "merged" else bundle.adapters()


def found_engine(bundle: Bundle, engine: BundleEngine, platform: Platform) -> FoundEngine:
    """Return an engine that was prepared for a platform, for whatever batch.

    Raises:
        EngineError: there is none that may be run; the faults say why.
    """
    folder = folder_of(bundle)
    with _mended(bundle, engine):
        profile = folder.sidecar(engine.name).key.profile
        key = engine.key(platform, profile)
        return FoundEngine(bundle, engine, key, folder.find(engine.name, key).engine.sha256)


@dataclass(frozen=True)
class FoundEngine:
    """An engine on disk that may be run.

    Attributes:
        bundle, engine: which.
        key: under which it may be run.
        sha256: of its bytes.
    """

    bundle: Bundle
    engine: BundleEngine
    key: EngineKey
    sha256: str

    def read(self) -> bytes:
        """Return its bytes; raises EngineError where they are not those that were stored."""
        with _mended(self.bundle, self.engine):
            return folder_of(self.bundle).load(self.engine.name, self.key)


@contextlib.contextmanager
def _mended(bundle: Bundle, engine: BundleEngine) -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        raise EngineError(
            f"{bundle.path} has no {engine.name} engine for this board.",
            *error.faults,
            mend=f"Make it here: edge-cl export {quote(str(bundle.path))} --format tensorrt",
        ) from error
