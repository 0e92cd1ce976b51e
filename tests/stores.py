"""A small store, what is done with it, and a power cut at any step on disk."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edge_cl.errors import StoreError
from edge_cl.store import Store
from edge_cl.transaction import Transaction
from edge_cl.version import Version

CRASHES = ["nothing", "data", "names", "full"]  # what a power cut takes, see `PowerCut`
TENSORS = {"up": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.float16(2) * np.ones(())}


class PowerCut:
    """Stops this process before its n-th step on disk.

    `lost` says what goes besides: "nothing" (a kill), "data" (the bytes of unsynced files), "names" (also the
    names in unsynced directories), "some" (every other of these names), or "full" (the process lives, but
    from then on the disk is full).
    """

    def __init__(self, root: Path, step: int, lost: str) -> None:
        self.root, self.left, self.lost = root, step, lost
        self.torn: set[Path] = set()
        self.undo: list[tuple[Path, Callable[[], object]]] = []
        self.idle = False
        os.fsync = self.fsync  # type: ignore[assignment]
        sys.addaudithook(self.audit)

    def fsync(self, descriptor: int) -> None:
        self.step()
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.torn.discard(path)
        self.undo = [(directory, undo) for directory, undo in self.undo if directory != path]

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if (
            self.idle
            or event not in ("open", "os.mkdir", "os.rename", "os.remove")
            or not isinstance(args[0], str | Path)
        ):
            return
        path = Path(args[0])
        if not path.is_relative_to(self.root):
            return
        if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
            self.step()
            if not path.exists():
                self.undo.append((path.parent, partial(path.unlink, missing_ok=True)))
            self.torn.add(path)
        elif event == "os.mkdir" and not path.exists():
            self.step()
            self.undo.append((path.parent, partial(shutil.rmtree, path)))
        elif event == "os.remove" and path.exists() and self.lost != "full":  # a full disk lets files go
            self.step()
            self.undo.append((path.parent, partial(path.write_bytes, path.read_bytes())))
        elif event == "os.rename":
            self.step()
            target = Path(args[1])
            old = target.read_bytes() if target.exists() else None
            restore = target.unlink if old is None else partial(target.write_bytes, old)
            self.undo.append((target.parent, restore))
            (self.torn.add if path in self.torn else self.torn.discard)(target)
            self.torn.discard(path)

    def step(self) -> None:
        self.left -= 1
        if self.left <= 0 and self.lost == "full":
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.left == 0:
            self.lose()
            os.kill(os.getpid(), signal.SIGKILL)

    def lose(self) -> None:
        """Take away what a power cut would take now."""
        self.idle = True
        every = {"names": 1, "some": 2}.get(self.lost)
        for path in self.torn if self.lost == "data" or every else ():
            if path.exists():
                os.truncate(path, 0)
        for _, undo in reversed(self.undo[::every] if every else ()):
            undo()


def cut_power(action: Callable[[Path], object], root: Path, step: int, lost: str) -> str:
    """Run an action in a child that stops at a step; return how it ended: "done", "killed" or "refused"."""
    with child() as pid:
        if pid == 0:
            cut = PowerCut(root, step, lost)
            try:
                action(root)
            except StoreError:
                os._exit(3)
            cut.lose()  # also a power cut right after the end takes nothing that was promised
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return "killed"
    return {0: "done", 3: "refused"}[os.WEXITSTATUS(status)]


@contextmanager
def child() -> Iterator[int]:
    """Fork; in the child nothing goes on after the block."""
    pid = os.fork()
    try:
        yield pid
    finally:
        if pid == 0:
            os._exit(1)


def fill(transaction: Transaction) -> None:
    transaction.put_tensors("backbone", TENSORS)
    transaction.put_json("classes.json", ["cup"])


def create(path: Path) -> Store:
    return Store.create(path, record={"task": None}, fill=fill)


def commit(path: Path, number: int = 1) -> Version:
    """Commit a version whose contents tell its number."""
    with Store.open(path).write("learn") as transaction:
        transaction.keep("backbone")
        transaction.put_tensors("task/adapters", {"up": np.full((2, 2), number)})
        transaction.put_json("classes.json", ["cup", number])
        return transaction.commit(kind="learn", record={"n": number})


def rollback(path: Path) -> Version:
    with Store.open(path, repair=True).write("rollback") as transaction:
        return transaction.move_head(0)


def assert_whole(store: Store, version: Version) -> None:
    assert store.check() == []
    backbone = store.read_tensors(version, "backbone")
    assert backbone.keys() == TENSORS.keys()
    for name, tensor in backbone.items():
        np.testing.assert_array_equal(tensor, TENSORS[name], strict=True)
    if version.number == 0:
        assert store.read_json(version, "classes.json") == ["cup"]
    else:
        number = version.record["n"]
        assert store.read_json(version, "classes.json") == ["cup", number]
        assert (store.read_tensors(version, "task/adapters")["up"] == number).all()


def flip(path: Path) -> None:
    """Alter one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def object_file(store: Store, name: str) -> Path:
    sha = store.head.objects[name].sha256
    return store.path / "objects" / sha[:2] / sha
