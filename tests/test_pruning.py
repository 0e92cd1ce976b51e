"""Old versions go, for good; what is needed stays, whatever is damaged or killed meanwhile."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from stores import assert_whole, commit, create, cut_power, flip, object_file, rollback

from edge_cl.durable import sync_directory
from edge_cl.errors import StoreError
from edge_cl.pruning import Pruned
from edge_cl.store import Store

pytestmark = pytest.mark.usefixtures("no_fsync")


def test_prune_removes_what_no_version_refers_to(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    orphan = store.path / "objects" / "ab" / ("ab" * 32)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_bytes(b"12345")
    orphan.with_name(f".{orphan.name}.tmp").write_bytes(b"67")
    commit(store.path)
    rollback(store.path)
    assert store.prune() == Pruned([], 7)
    assert store.prune() == Pruned([], 0)
    assert_whole(store, store.version(1))


def test_prune_keeps_the_newest_versions_and_the_one_in_force(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    for number in range(1, 5):
        commit(store.path, number)
    before = sum(path.stat().st_size for path in (store.path / "objects").glob("*/*"))
    planned = store.prune(2, dry_run=True)
    assert [version.number for version in store.versions()] == [0, 1, 2, 3, 4]
    pruned = store.prune(2)
    assert pruned == planned
    assert pruned.versions == [0, 1, 2]
    after = sum(path.stat().st_size for path in (store.path / "objects").glob("*/*"))
    assert 0 < pruned.freed_bytes == before - after
    assert_whole(store, store.version(3))
    assert commit(store.path, 5).number == 5  # a number is not used twice, ...
    with store.write("rollback") as transaction:
        transaction.move_head(3)
    assert store.prune(1).versions == [4]
    assert [version.number for version in store.versions()] == [3, 5]
    assert_whole(store, store.head)
    assert commit(store.path, 6).number == 6  # ... nor after a rollback
    with pytest.raises(StoreError, match="Version 0 does not exist"):
        rollback(store.path)


def test_prune_keeps_what_a_rollback_leads_to(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    for number in range(1, 6):
        commit(store.path, number)
    with store.write("rollback") as transaction:
        transaction.move_head(2)
    commit(store.path, 6)
    assert store.prune(3).versions == [0, 1, 3]
    assert_whole(store, store.version(2))
    assert store.prune(1).versions == [2, 4, 5]
    assert_whole(store, store.head)


def test_prune_syncs_the_head_that_a_killed_writer_did_not(tmp_path: Path) -> None:
    """A writer dies before the new name of HEAD is durable, then a prune, then a power cut."""
    create(tmp_path / "base")
    for number in (1, 2):
        commit(tmp_path / "base", number)
    for step in itertools.count(1):
        path = tmp_path / str(step)
        shutil.copytree(tmp_path / "base", path)

        def killed_then_pruned(root: Path) -> None:
            def die(directory: Path) -> None:
                if directory == root:
                    raise KeyboardInterrupt
                sync_directory(directory)

            with suppress(KeyboardInterrupt), mock.patch("edge_cl.durable.sync_directory", die):
                commit(root, 3)
            Store.open(root).prune(1)

        end = cut_power(killed_then_pruned, path, step, "names")
        store = Store.open(path)
        assert_whole(store, store.head)
        shutil.rmtree(path)
        if end == "done":
            break
    assert step > 8


def test_prune_of_versions_that_cannot_be_listed_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path / "store")
    commit(store.path)
    files = sorted(store.path.rglob("*"))

    def fail(path: Path) -> Iterator[Path]:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", fail)
        for attempt in (partial(store.prune, 1), store.write("learn").__enter__):
            with pytest.raises(StoreError, match="Input/output error"):
                attempt()
    assert sorted(store.path.rglob("*")) == files


def test_prune_past_a_damaged_version_and_strange_files(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    for number in range(1, 4):
        commit(store.path, number)
    flip(store.path / "versions" / "000002.json")
    (store.path / "objects" / "ab" / "folder").mkdir(parents=True)
    (store.path / "objects" / "ab" / "link").symlink_to("nowhere")
    with pytest.raises(StoreError, match="Version 2 is damaged") as caught:
        store.prune(3)
    assert f"keep fewer versions: edge-cl prune --keep N --store {store.path}" in caught.value.mend
    assert store.prune(1).versions == [0, 1, 2]
    assert_whole(store, store.head)


def test_prune_leaves_a_way_back_from_damage(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    commit(store.path)
    flip(object_file(store, "task/adapters"))
    with pytest.raises(StoreError, match="task/adapters") as caught:
        store.prune(1)
    assert "rollback 0" in caught.value.mend
    rollback(store.path)
    assert store.read_json(store.head, "classes.json") == ["cup"]


@pytest.mark.parametrize("keep", [0, -1])
def test_prune_keeps_at_least_one(tmp_path: Path, keep: int) -> None:
    store = create(tmp_path / "store")
    with pytest.raises(StoreError, match="Keep 1 or more"):
        store.prune(keep)
    assert store.head.number == 0


def test_damaged_version_stops_the_removal_of_objects(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    commit(store.path)
    rollback(store.path)
    flip(store.path / "versions" / "000001.json")
    objects = sorted((store.path / "objects").rglob("*"))
    with pytest.raises(StoreError, match="Version 1 is damaged"):
        store.prune()
    assert sorted((store.path / "objects").rglob("*")) == objects
    assert [version.number for version in store.versions()] == [0]


def test_what_would_be_pruned_is_told_of_a_disk_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path / "store")
    for number in range(1, 4):
        commit(store.path, number)
    opened = os.open

    def read_only(path: str | Path, flags: int, *args: int) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        patch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
        planned = store.prune(1, dry_run=True)
        with pytest.raises(StoreError, match="Read-only"):
            store.prune(1)
    assert store.prune(1) == planned and planned.versions == [0, 1, 2]
