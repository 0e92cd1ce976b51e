"""A whole version after a crash at any step, and with a full disk."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from stores import CRASHES, assert_whole, commit, create, cut_power, rollback

from edge_cl.errors import StoreError
from edge_cl.pruning import Pruned
from edge_cl.store import Store
from edge_cl.version import Version

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.mark.parametrize("lost", CRASHES)
@pytest.mark.parametrize(
    ("action", "versions", "old", "new"), [(commit, 1, 0, 1), (commit, 2, 1, 2), (rollback, 2, 1, 0)]
)
def test_crash_leaves_the_old_or_the_new_version(
    tmp_path: Path, action: Callable[[Path], Version], versions: int, old: int, new: int, lost: str
) -> None:
    create(tmp_path / "base")
    for _ in range(versions - 1):
        commit(tmp_path / "base")
    seen = set()
    for step in itertools.count(1):
        path = tmp_path / str(step)
        shutil.copytree(tmp_path / "base", path)
        end = cut_power(action, path, step, lost)
        store = Store.open(path)
        seen.add(store.head.number)
        assert store.head.number in ({new} if end == "done" else {old, new})
        assert_whole(store, store.head)
        if end == "refused":
            assert not list(path.rglob("*.tmp"))
        last = store.versions()[-1].number
        assert commit(path, 7).number == last + 1
        assert_whole(store, store.head)
        shutil.rmtree(path)
        if end == "done":
            break
    assert step > 4
    assert seen == {old, new}


@pytest.mark.parametrize("lost", [*CRASHES, "some"])
def test_crash_while_pruning_leaves_whole_versions(tmp_path: Path, lost: str) -> None:
    create(tmp_path / "base")
    for number in range(1, 5):
        commit(tmp_path / "base", number)
    for step in itertools.count(1):
        path = tmp_path / str(step)
        shutil.copytree(tmp_path / "base", path)
        end = cut_power(lambda root: Store.open(root).prune(2), path, step, lost)
        store = Store.open(path)
        assert store.head.number == 4
        found = store.versions()
        assert {3, 4} <= {version.number for version in found}
        for version in found:
            assert_whole(store, version)
        assert store.prune(2).versions == [version.number for version in found[:-2]]
        assert [version.number for version in store.versions()] == [3, 4]
        assert_whole(store, store.head)
        assert store.prune(2) == Pruned([], 0)
        shutil.rmtree(path)
        if end == "done":
            break
    assert step > (2 if lost == "full" else 8)


@pytest.mark.parametrize("lost", [*CRASHES, "some"])
def test_crash_while_creating_leaves_no_store_or_a_whole_one(tmp_path: Path, lost: str) -> None:
    for step in itertools.count(1):
        path = tmp_path / str(step) / "new" / "store"
        path.parent.parent.mkdir()
        end = cut_power(lambda root: create(root / "new" / "store"), path.parent.parent, step, lost)
        if end == "done" or (path / "format.json").exists():
            store = Store.open(path)
        else:
            with pytest.raises(StoreError, match=r"no store at|is not a store"):
                Store.open(path)
            store = create(path)
        assert_whole(store, store.head)
        assert commit(path).number == 1
        assert_whole(store, store.head)
        if end == "done":
            break
    assert step > 20


def test_torn_object_of_a_crash_is_replaced(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    with store.write("trial") as transaction:
        transaction.put_bytes("pictures", b"whole")
        torn = transaction._new[0]
    assert not torn.exists()
    torn.write_bytes(b"who")
    with store.write("learn") as transaction:
        transaction.put_bytes("pictures", b"whole")
        version = transaction.commit(kind="learn", record={})
    assert store.read_bytes(version, "pictures") == b"whole"
