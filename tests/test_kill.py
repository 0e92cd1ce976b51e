"""`edge-cl learn` killed at random moments and run again: the same bits as undisturbed, and readers never notice."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small import BACKBONE, CONFIG, IMAGE_SIZE, hashes, new_learner, write_looks

from edge_cl import Learner
from edge_cl.store import Store
from edge_cl.version import Version

FIRST = {"b": 0, "d": 5}
SECOND = {"a": 9, "c": 14, "e": 2}
COUNT = 20  # pictures a class: enough to train adapters with the command line's settings

# Forks a process for each command line it is sent, with torch loaded already, and tells its id, then how it ended.
FORKS = """
import json, os, sys
import torch, timm, matplotlib.backends.backend_agg, matplotlib.figure
import edge_cl.evaluation, edge_cl.learner, edge_cl.report
from edge_cl.cli import main
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        sys.argv = json.loads(line)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

# Opens the store again and again, as a robot's other processes do, and tells how often, until its stdin closes.
READER = """
import select, sys, time
from edge_cl.learner import Learner
from edge_cl.store import Store
reads, seen = 0, set()
while not select.select([sys.stdin], [], [], 0.01)[0]:
    learner = Learner.open(sys.argv[1])
    names = [c["name"] for c in learner.classes()]
    head = learner.store.head
    assert names, head
    assert head.number in [v.number for v in learner.log()]
    faults = Store.open(sys.argv[1]).check()
    assert not faults, faults
    for name in head.objects:
        learner.store.read_bytes(head, name)
    reads += 1
    seen.add(len(names))
print(reads, *sorted(seen))
"""


class Forks:
    """Real processes of the command line that start at once."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.server = subprocess.Popen(
            [sys.executable, "-c", FORKS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._line() == "ready", log.read_text()

    def _line(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline().strip()

    def run(self, args: list[object], kill_after_s: float | None = None) -> int:
        """Run `edge-cl ARGS`; return its exit status, or -9 when it was killed first."""
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(["edge-cl", *map(str, args)]) + "\n")
        self.server.stdin.flush()
        pid = int(self._line())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            # Its parent, the server, may have reaped it: a process of another id is not at risk in so short a time.
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
        code = int(self._line())
        assert code in (0, -signal.SIGKILL), self.log.read_text()[-3000:]
        return code

    def close(self) -> None:
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(60)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks(tmp_path_factory.mktemp("forks") / "log")
    yield server
    server.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `weights.safetensors`, `pictures`, and `store`, which knows a first task with adapters."""
    root = tmp_path_factory.mktemp("made")
    learner = new_learner(root)
    learner.learn(write_looks(root / "first", FIRST), CONFIG)
    write_looks(root / "pictures", SECOND, COUNT)
    return root


def learn_command(root: Path, store: Path) -> list[object]:
    """Return a learn that goes through every stage: shared adapter, prefix tokens, task adapter, head."""
    options = ["--shared-update", "correct", "--epochs", 12, "--task", "second", "--device", "cpu"]
    return ["learn", "--new-classes", root / "pictures", *options, "--store", store, "--json"]


def undisturbed(forks: Forks, command: list[object], store: Path) -> tuple[Version, dict[str, Any], float]:
    """Run a command to its end; return the version it made, its metrics but for the cost, and its seconds."""
    start = time.monotonic()
    assert forks.run(command) == 0
    return Store.open(store).head, metrics(store), time.monotonic() - start


def metrics(store: Path) -> dict[str, Any]:
    opened = Store.open(store)
    values = opened.read_json(opened.head, "metrics.json")
    assert isinstance(values, dict)
    return {
        key: value for key, value in values.items() if key not in ("seconds", "budget", "peak_memory_mb", "version")
    }


def disturb(forks: Forks, made: Path, tmp_path: Path, kills: int, seed: int) -> None:
    """Kill learns until so many have died, each time running the same command again until it is done."""
    shutil.copytree(made / "store", tmp_path / "whole")
    shutil.copytree(made / "store", tmp_path / "store")
    expected, figures, seconds = undisturbed(forks, learn_command(made, tmp_path / "whole"), tmp_path / "whole")
    assert {"shared", "base", "task/0001/adapter", "task/0001/branch"} <= set(expected.objects)
    path, command = tmp_path / "store", learn_command(made, tmp_path / "store")
    base = Store.open(path).head
    generator = random.Random(seed)
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    killed = done = resumed = 0
    while killed < kills or not resumed or not done:
        delay = generator.uniform(0.02, 0.9) * seconds if killed < kills or not resumed else None
        forks.run(command, delay)
        store = Store.open(path)
        assert store.check() == []
        head = store.head
        if head == base:  # whatever was in progress when it died
            killed += 1
            resumed += any(store.work.rglob("*.safetensors"))  # a stage or an epoch that need not be redone
            continue
        done += 1
        assert (head.parent, head.kind) == (base.number, "learn")
        assert hashes(head) == hashes(expected)
        assert metrics(path) == figures
        assert Learner.open(path).classes() == Learner.open(tmp_path / "whole").classes()
        assert forks.run(["rollback", base.number, "--store", path]) == 0
        assert done + killed < 20 * kills, "too few learns died to tell anything"
    out, _ = reader.communicate(timeout=120)
    assert reader.returncode == 0
    reads, *seen = map(int, out.split())
    assert reads > killed
    assert set(seen) <= {len(FIRST), len(FIRST) + len(SECOND)}
    assert store.prune().versions == []
    assert store.check() == []


def test_kills_leave_the_same_bits(forks: Forks, made: Path, tmp_path: Path) -> None:
    disturb(forks, made, tmp_path, kills=6, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_kills_leave_the_same_bits(forks: Forks, made: Path, tmp_path: Path, seed: int) -> None:
    disturb(forks, made, tmp_path, kills=30, seed=seed)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_kills_before_there_is_a_store(forks: Forks, made: Path, tmp_path: Path, kills: int) -> None:
    """The first learn makes the store: killed at any moment, there is a whole store or none."""
    options = ["--backbone", BACKBONE, "--weights", made / "weights.safetensors", "--image-size", IMAGE_SIZE]
    whole = tmp_path / "whole"
    expected, figures, seconds = undisturbed(forks, [*learn_command(made, whole), *options], whole)
    generator = random.Random(kills)
    killed = 0
    for attempt in range(20 * kills):
        path = tmp_path / f"store {attempt}"
        ended = False
        while not ended:
            delay = generator.uniform(0, 1) * seconds if killed < kills else None
            ended = forks.run([*learn_command(made, path), *options], delay) == 0
            killed += not ended
            if Store.exists(path):
                assert Store.open(path).check() == []
                ended = ended or Store.open(path).head.kind == "learn"
        head = Store.open(path).head
        assert (head.parent, hashes(head), metrics(path)) == (0, hashes(expected), figures)
        if killed >= kills:
            return
    pytest.fail("too few learns died to tell anything")


def test_another_seed_gives_other_bits(made: Path, tmp_path: Path) -> None:
    """What the tests above compare does depend on the training."""
    found = []
    for seed in (0, 1):
        learner = Learner(Store.open(shutil.copytree(made / "store", tmp_path / str(seed))), device="cpu")
        learner.learn(made / "pictures", replace(CONFIG, shared_update="correct", seed=seed))
        found.append(hashes(learner.store.head))
    for name in ("shared", "task/0001/adapter", "statistics"):
        assert found[0][name] != found[1][name]
