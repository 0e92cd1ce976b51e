"""Writing a bundle in place: whose directories are left alone, and what readers see while updates come and die."""

from __future__ import annotations

import fcntl
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed import Deployed, export, frames, snapshot
from forgeries import at, flipped, raw, say, state

from edge_cl.export.bundle import MANIFEST, Bundle, BundleError, is_bundle_file, read_manifest
from edge_cl.export.exporter import CLASSIFIER
from edge_cl.export.publication import LOCK, Publication, require_vacant
from edge_cl.runtime import Classifier

# -- whose directory it is ----------------------------------------------


def files(*names: str) -> Callable[[Path], None]:
    def make(out: Path) -> None:
        out.mkdir()
        for name in names:
            (out / name).write_text("{}")

    return make


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file": (lambda out: out.write_text("x"), " is a file."),
    "other files": (files("notes.txt"), " holds other files and is no bundle."),
    "a web page": (files(MANIFEST, "index.html"), " holds other files and is no bundle."),
    "a foreign manifest alone": (files(MANIFEST), " holds other files and is no bundle."),
    "models of others": (files("weights-mobilenet.onnx", "a-0123456789abcdeF.onnx"), " holds other files and is no"),
    "a hidden file": (files(".gitkeep"), " holds other files and is no bundle."),
    "below a file": (lambda out: out.parent.rmdir() or out.parent.write_text("x"), " cannot be made in "),
    "a link to nothing": (lambda out: out.symlink_to("nowhere"), ": File exists."),
    "where nothing can be made": (lambda out: out.symlink_to("/proc/self/nothing"), " cannot be written: "),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_directories_are_left_alone(deployed: Deployed, tmp_path: Path, kind: str) -> None:
    make, expected = FOREIGN[kind]
    out = tmp_path / "parent" / "out"
    out.parent.mkdir()
    make(out)
    before = state(out) if out.is_dir() else None
    with pytest.raises(BundleError) as refused:
        export(snapshot(deployed.learner()), out)
    assert expected in refused.value.faults[0]
    assert str(out) in refused.value.faults[0]
    assert refused.value.mend
    assert (state(out) if out.is_dir() else None) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_directory_that_cannot_be_written(deployed: Deployed, tmp_path: Path, mode: int) -> None:
    out = deployed.copy(tmp_path / "out")
    out.chmod(mode)
    try:
        for action in (lambda: require_vacant(out), lambda: export(snapshot(deployed.learner()), out)):
            with pytest.raises(BundleError, match="cannot be written"):
                action()
    finally:
        out.chmod(0o700)


def test_a_later_format_is_not_overwritten(deployed: Deployed, tmp_path: Path) -> None:
    out = deployed.copy(tmp_path / "out")
    say("format", value=2)(out)
    before = state(out)
    with pytest.raises(BundleError, match="it has format 2"):
        export(snapshot(deployed.learner()), out)
    assert state(out) == before


def test_locked_by_another_process(deployed: Deployed, tmp_path: Path) -> None:
    out = deployed.copy(tmp_path / "out")
    with (out / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another open file: as another process has it
        before = state(out)
        with pytest.raises(BundleError, match="Another process is writing the bundle"):
            export(snapshot(deployed.learner()), out)
        assert state(out) == before
    export(snapshot(deployed.learner()), out)


DAMAGED = {
    "no manifest": lambda out: (out / MANIFEST).unlink(),
    "truncated manifest": lambda out: os.truncate(out / MANIFEST, 100),
    "foreign manifest": raw(b"{}"),
    "altered manifest": lambda out: raw((out / MANIFEST).read_bytes().replace(b"task 1", b"task 7"))(out),
    "altered head": at("head", flipped),
    "truncated adapter": at("adapter/1", lambda path: os.truncate(path, 5)),
    "missing branch": at("branch/2", lambda path: path.unlink()),
    "adapter replaced by a link": at("adapter/1", lambda path: (path.unlink(), path.symlink_to(CLASSIFIER))),
    "altered weights": at("weights", flipped),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_bundle_is_mended(deployed: Deployed, tmp_path: Path, kind: str, monkeypatch: Any) -> None:
    """As the error on opening it says. Graphs are made again only where they or the manifest are in doubt."""
    out, whole = deployed.copy(tmp_path / "out"), deployed.bundle()
    DAMAGED[kind](out)
    with pytest.raises(BundleError):
        Bundle.open(out)
    made = []

    def graphs_of(whole_bundle: Path) -> Callable[..., Any]:
        def put(taken: Any, backbone: Any, layout: str, publication: Publication) -> Any:
            made.append(layout)
            held = read_manifest(whole_bundle).files
            roles = {"weights": "safetensors", "prefix": "onnx", "suffix": "onnx"}
            return {r: publication.put(r, s, (whole_bundle / held[r].name).read_bytes()) for r, s in roles.items()}

        return put

    monkeypatch.setattr("edge_cl.export.exporter._graphs", graphs_of(whole))
    export(snapshot(deployed.learner()), out)
    assert made == (["shared"] if "manifest" in kind or "weights" in kind else [])
    assert Bundle.open(out).manifest == Bundle.open(whole).manifest
    assert {p.name for p in out.iterdir()} == {p.name for p in whole.iterdir()}


def test_what_is_ours_goes_and_nothing_else(deployed: Deployed, tmp_path: Path) -> None:
    """Files live on for one version more, for readers that have just opened it; then they go, half written ones too."""
    out = deployed.copy(tmp_path / "out")
    half = out / ".adapter-9-0123456789abcdef.safetensors.tmp"
    foreign = [out / n for n in ("README.txt", "model-abcdefghijklmnop.onnx", "x.onnx", "head.safetensors", ".x.tmp")]
    for path in (half, *foreign):
        path.write_text("x")
    learner, first = deployed.learner(), read_manifest(out)
    export(snapshot(learner, 1), out)
    second = read_manifest(out)
    assert [c.name for c in second.classes] == ["b", "d"]
    assert not half.exists()
    ours = {p.name for p in out.iterdir() if is_bundle_file(p.name)}
    assert ours == {ref.name for m in (first, second) for ref in m.files.values()}
    export(snapshot(learner, 1), out)
    assert {p.name for p in out.iterdir() if is_bundle_file(p.name)} == {r.name for r in second.files.values()}
    assert all(path.read_text() == "x" for path in foreign)


def test_full_disk(deployed: Deployed, tmp_path: Path, monkeypatch: Any) -> None:
    out = deployed.copy(tmp_path / "out")
    before = state(out)

    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(BundleError) as refused:
        patched.setattr(Path, "write_bytes", full)
        export(snapshot(deployed.learner(), 2), out)
    assert refused.value.faults == (f"The bundle {out} could not be written: No space left on device.",)
    assert state(out) == before
    assert Classifier(out).version == 4


# -- readers, while updates come and die --------------------------------

# Exports the versions it is given over and over, each in a process of its own, until it is killed.
WRITER = """
import os, sys
sys.path.insert(0, sys.argv[4])
import torch
torch.set_num_threads(1)
from pathlib import Path
from deployed import export, snapshot
from edge_cl.learner import Learner
learner = Learner.open(sys.argv[1], device="cpu")
snapshots = [snapshot(learner, int(n)) for n in sys.argv[3].split(",")]
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        try:
            for i in range(int(line)):
                export(snapshots[i % len(snapshots)], Path(sys.argv[2]))
        except BaseException as error:
            print("failed:", error, file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

# Opens the bundle over and over, and reloads one that it keeps open; every answer must be one of a whole version.
READER = """
import json, select, sys
import numpy as np
from edge_cl.runtime import Classifier
path, batch, expected = sys.argv[1], np.load(sys.argv[2]), json.loads(sys.argv[3])
kept, seen, reads = Classifier(path, threads=1), set(), 0
while not select.select([sys.stdin], [], [], 0)[0]:
    kept.reload()
    for classifier in (kept, Classifier(path, threads=1)):
        found = [p.label for p in classifier.predict(batch)]
        assert found == expected[str(classifier.version)], (classifier.version, found)
        seen.add(classifier.version)
    reads += 1
print(json.dumps([reads, sorted(seen)]))
"""
VERSIONS = (1, 2, 3)


@contextmanager
def process(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *map(str, args)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = subprocess.Popen(command, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)
    try:
        yield running
    finally:
        running.kill()
        running.communicate()


def line(running: subprocess.Popen[str]) -> str:
    assert running.stdout is not None
    text = running.stdout.readline().strip()
    assert text, running.communicate()[1]
    return text


def write_versions(writer: subprocess.Popen[str], count: int, kill_after_s: float | None = None) -> int:
    """Let the writer export so many times; return its exit status, -9 when it was killed first."""
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write(f"{count}\n")
    writer.stdin.flush()
    pid = int(line(writer))
    if kill_after_s is not None and not select.select([writer.stdout], [], [], kill_after_s)[0]:
        os.kill(pid, signal.SIGKILL)  # it has not been reaped: its end would have been told
    return int(line(writer))


@pytest.mark.parametrize("kills", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_readers_never_fail_while_writers_die(deployed: Deployed, tmp_path: Path, kills: int) -> None:
    """Updates come as fast as they can, some are killed at random moments: no reader fails or sees half a state."""
    store, out = deployed.root / "store", deployed.copy(tmp_path / "out")
    learner, batch = deployed.learner(), np.stack(frames("b", "d", "a", "c", "e", "f", "g"))
    expected = {}
    for number in (*VERSIONS, 4):
        export(snapshot(learner, number), out)
        expected[number] = [p.label for p in Classifier(out).predict(batch)]
    assert len({tuple(labels) for labels in expected.values()}) == 3  # version 4 says what version 3 says
    np.save(tmp_path / "batch.npy", batch)
    generator, deaths = random.Random(kills), 0
    reading = process(READER, out, tmp_path / "batch.npy", json.dumps(expected))
    writing = process(WRITER, store, out, ",".join(map(str, VERSIONS)), Path(__file__).parent)
    with writing as writer, reading as reader:
        assert line(writer) == "ready"
        assert write_versions(writer, 30) == 0
        for _ in range(kills):
            deaths += write_versions(writer, 1000, generator.uniform(0.001, 0.2)) == -signal.SIGKILL
            manifest = Bundle.open(out).manifest
            assert str(manifest.version) in "1234"
            assert write_versions(writer, 1) == 0, "the export after a kill"
        assert reader.poll() is None, reader.communicate()[1]
        told, errors = reader.communicate("end\n", timeout=60)
    assert errors == ""
    reads, seen = json.loads(told)
    assert deaths == kills
    assert reads >= 5
    assert set(seen) >= {1, 2, 3}
    export(snapshot(learner), out)
    export(snapshot(learner), out)
    whole = {p.name for p in deployed.bundle().iterdir()}
    assert {p.name for p in out.iterdir()} - {f".{MANIFEST}.tmp"} == whole


def test_a_first_export_that_dies_is_finished_by_the_next(deployed: Deployed, tmp_path: Path) -> None:
    """There is no manifest yet, but files of ours: nobody else's directory."""
    held, out = read_manifest(deployed.bundle()), tmp_path / "out"
    for name in (f".{held.files['head'].name}.tmp", held.files["weights"].name):
        out.mkdir()
        (out / LOCK).touch()
        (out / name).write_bytes(b"half")
        require_vacant(out)
        with Publication.begin(out) as publication:
            assert publication.previous is None
            data = (deployed.bundle() / held.files["weights"].name).read_bytes()
            assert publication.put("weights", "safetensors", data) == held.files["weights"]
            publication.publish(held)
        assert {p.name for p in out.iterdir()} == {LOCK, MANIFEST, held.files["weights"].name}
        for path in out.iterdir():
            path.unlink()
        out.rmdir()


@pytest.mark.parametrize("back", [False, True], ids=["another version", "the same version again"])
def test_a_reader_slower_than_updates(deployed: Deployed, tmp_path: Path, monkeypatch: Any, back: bool) -> None:
    """Two updates between a reader's look at the manifest and its files sweep those away: it looks again.

    A rollback may have put the very same manifest in force by then, which is no sign of damage either.
    """
    out, learner = deployed.copy(tmp_path / "out"), deployed.learner()
    snapshots = {n: snapshot(learner, n) for n in (*VERSIONS, 4)}
    overtaken: list[int] = []
    head = Bundle.head

    def slow_head(self: Bundle) -> Any:
        version = self.manifest.version
        if len(overtaken) < 4:
            overtaken.append(version)
            for number in [*[n for n in VERSIONS if n != version][-2:], *([version] if back else [])]:
                export(snapshots[number], out)
            if back:  # at the moment that its files are away
                (out / self.manifest.files["head"].name).rename(out / "away")
                try:
                    return head(self)
                finally:
                    (out / "away").rename(out / self.manifest.files["head"].name)
        return head(self)

    monkeypatch.setattr(Bundle, "head", slow_head)
    classifier = Classifier(out)
    assert overtaken == ([4] * 4 if back else [4, 3, 2, 3])
    assert classifier.version == (4 if back else 2)
    assert [p.label for p in classifier.predict(frames("b", "a"))] == ["b", "a"]
