"""The store: exact contents, many readers beside one writer, clear errors."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import TENSORS, assert_whole, child, commit, create, flip, object_file, rollback

from edge_cl import store as store_module
from edge_cl import transaction as transaction_module
from edge_cl.errors import StoreError
from edge_cl.store import Store
from edge_cl.store_files import StoreFiles
from edge_cl.transaction import Transaction
from edge_cl.version import Version, canonical_json

pytestmark = pytest.mark.usefixtures("no_fsync")

# -- crashes ------------------------------------------------------------


# -- contents ------------------------------------------------------------


def test_put_keep_and_read(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    (tmp_path / "weights").write_bytes(b"w" * 3_000_000)
    with store.write("learn") as transaction:
        transaction.put_file("weights", tmp_path / "weights")
        transaction.put_bytes("classes.json", b"[]")
        transaction.put_bytes("a", b"same")
        transaction.put_bytes("b", b"same")
        transaction.keep_all()
        version = transaction.commit(kind="learn", record={"classes": ("x", "y"), "accuracy": 0.25})
        assert transaction.parent == version
    (tmp_path / "weights").write_bytes(b"changed")
    assert Store.open(store.path).head == version
    assert (version.number, version.parent, version.kind) == (1, 0, "learn")
    assert version.record == {"classes": ["x", "y"], "accuracy": 0.25}
    assert store.object_path(version, "weights").read_bytes() == b"w" * 3_000_000
    assert store.read_json(version, "classes.json") == []
    assert store.read_json(store.version(0), "classes.json") == ["cup"]
    np.testing.assert_array_equal(store.read_tensors(version, "backbone")["up"], TENSORS["up"], strict=True)
    assert version.objects["a"] == version.objects["b"]
    assert len(list((store.path / "objects").glob("*/*"))) == 5
    assert [found.number for found in store.versions()] == [0, 1]


@pytest.mark.parametrize(
    "tensor",
    [
        np.arange(6.0).reshape(2, 3).T,
        np.arange(10, dtype=np.int64)[::3],
        np.arange(3, dtype=">f4"),
        np.zeros((0, 4), np.float16),
        np.array(True),
    ],
    ids=["transposed", "strided", "big-endian", "empty", "scalar"],
)
def test_tensors_survive_exactly(tmp_path: Path, tensor: np.ndarray) -> None:
    def put(transaction: Transaction) -> None:
        transaction.put_tensors("one", {"t": tensor, "a": np.ones(1)})
        transaction.put_tensors("other", {"a": np.ones(1), "t": tensor})

    store = Store.create(tmp_path / "store", record={}, fill=put)
    found = store.read_tensors(store.head, "one")["t"]
    np.testing.assert_array_equal(found, tensor)
    assert (found.shape, found.dtype.name) == (tensor.shape, tensor.dtype.name)
    assert store.head.objects["one"] == store.head.objects["other"], "equal tensors must give equal bytes"


def test_golden_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transaction_module, "_now", lambda: "2025-01-02T03:04:05+00:00")
    monkeypatch.setattr(store_module, "edge_cl_version", lambda: "0.1.0")
    store = Store.create(
        tmp_path / "store",
        record={"task": "é"},
        fill=lambda transaction: transaction.put_json("a/b.json", {}),
    )
    sha = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"  # printf '{}' | sha256sum
    assert (store.path / "objects" / "44" / sha).read_bytes() == b"{}"
    assert (store.path / "HEAD").read_bytes() == b"0\n"
    assert (store.path / "format.json").read_bytes() == b'{\n  "edge_cl": "0.1.0",\n  "format": 1\n}\n'
    assert (
        (store.path / "versions" / "000000.json").read_text()
        == """{
  "manifest": {
    "created": "2025-01-02T03:04:05+00:00",
    "kind": "init",
    "objects": {
      "a/b.json": {
        "bytes": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
      }
    },
    "parent": null,
    "record": {
      "task": "\\u00e9"
    },
    "version": 0
  },
  "sha256": "8dc59d9ef69958886684b1f80beac6c827c51a8f246e8c21238303108145bf19"
}
"""
    )


def test_version_numbers_are_not_used_twice(tmp_path: Path) -> None:
    create(tmp_path / "store")
    assert commit(tmp_path / "store").number == 1
    assert rollback(tmp_path / "store").number == 0
    after = commit(tmp_path / "store", 2)
    assert (after.number, after.parent) == (2, 0)


def test_failed_commit_uses_up_its_number(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    with store.write("learn") as transaction:
        (store.path / ".HEAD.tmp").mkdir()
        with pytest.raises(StoreError, match="could not be written"):
            transaction.commit(kind="learn", record={})
        assert store.head.number == 0
        (store.path / ".HEAD.tmp").rmdir()
        assert transaction.commit(kind="learn", record={}).number == 2


def test_a_reader_of_a_version_that_was_deleted_is_told_so(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    old = store.head
    commit(store.path)
    commit(store.path, 2)
    store.prune(1)
    with pytest.raises(StoreError, match="Version 0 was deleted meanwhile") as caught:
        store.read_json(old, "classes.json")
    assert caught.value.mend == "Run the same command again."


def test_a_reader_overtaken_by_a_writer_reads_the_new_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look at HEAD and at the version, another process commits one and deletes the old."""
    store = create(tmp_path / "store")
    load, overtaken = StoreFiles.load, list[int]()

    def late(self: StoreFiles, number: int) -> Version:
        if not overtaken:
            overtaken.append(number)
            with monkeypatch.context() as patch:
                patch.setattr(StoreFiles, "load", load)
                commit(store.path)
                store.prune(1)
        return load(self, number)

    monkeypatch.setattr(StoreFiles, "load", late)
    assert (store.head.number, overtaken) == (1, [0])
    (store.path / "versions" / "000001.json").unlink()
    with pytest.raises(StoreError, match="Version 1 does not exist"):
        _ = store.head


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = create(tmp_path / "store")

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StoreError, match=r"cannot be locked: .*No locks available"), store.write("learn"):
        pass


@pytest.mark.parametrize("attempt", [Store.open, Store.exists, create], ids=["open", "exists", "create"])
def test_a_path_that_may_not_be_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attempt: Callable[[Path], object]
) -> None:
    def refuse(path: Path, **_: bool) -> os.stat_result:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="Permission denied") as caught:
        patch.setattr(Path, "stat", refuse)
        attempt(tmp_path / "store")
    assert caught.value.mend == "Check its permissions."


@pytest.mark.parametrize("below", ["", "robots/store"])
@pytest.mark.parametrize("attempt", [Store.open, Store.exists, create], ids=["open", "exists", "create"])
def test_a_link_to_nothing_is_named(tmp_path: Path, attempt: Callable[[Path], object], below: str) -> None:
    """As where the disk that holds the store is not mounted: another store there would hide it."""
    link, target = tmp_path / "a link", tmp_path / "disk"
    link.symlink_to(target)
    with pytest.raises(StoreError, match=f"{link} is a link to {target}, where there is nothing") as caught:
        attempt(link / below)
    assert caught.value.mend.endswith(f"or remove the link: rm '{link}'")
    assert not target.exists()
    target.mkdir()
    assert create(link / below).head.number == 0


def test_a_version_that_cannot_be_looked_at_is_not_called_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path / "store")
    head, stat = store.head, Path.stat
    object_file(store, "classes.json").unlink()

    def fail(path: Path, **options: bool) -> os.stat_result:
        if path.parent.name == "versions":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(StoreError, match="is missing"):
        store.read_json(head, "classes.json")


def test_files_obey_the_umask_and_objects_are_read_only(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        store = create(tmp_path / "store")
    finally:
        os.umask(before)
    mode = {path.name: path.stat().st_mode & 0o777 for path in store.path.rglob("*") if path.is_file()}
    assert mode.pop("HEAD") == mode.pop("format.json") == mode.pop("lock") == 0o640
    assert set(mode.values()) == {0o440}


OPERATIONS = st.one_of(
    st.dictionaries(st.sampled_from(["a", "b", "c/d"]), st.binary(max_size=3), max_size=3),
    st.integers(0, 5),
    st.none(),
    st.sampled_from(["keep 1", "keep 2", "keep 3"]),
)


@settings(max_examples=25, deadline=None)
@given(st.lists(OPERATIONS, max_size=7))
def test_every_version_stays_readable(operations: list[dict[str, bytes] | int | str | None]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = Store.create(Path(directory) / "store", record={})
        expected: dict[int, dict[str, bytes]] = {0: {}}
        head, made = 0, 1
        for operation in operations:
            if operation is None or isinstance(operation, str):
                for number in store.prune(int(operation[-1]) if operation else None).versions:
                    assert number not in (head, max(expected))
                    del expected[number]
                continue
            with store.write("test") as transaction:
                if isinstance(operation, dict):
                    for name, data in operation.items():
                        transaction.put_bytes(name, data)
                    transaction.keep_all()
                    contents = expected[head] | operation
                    head = transaction.commit(kind="learn", record={}).number
                    assert head == made
                    expected[head], made = contents, made + 1
                else:
                    head = transaction.move_head(sorted(expected)[operation % len(expected)]).number
        assert store.head.number == head
        found = {v.number: {name: store.read_bytes(v, name) for name in v.objects} for v in store.versions()}
        assert found == expected


# -- writers and readers ------------------------------------------------------------


def test_second_writer_is_told_who_writes(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    locked, dying = os.pipe()
    with child() as pid:
        if pid == 0:
            with store.write("learn task mugs"):
                os.write(dying, b"x")
                signal.pause()
        os.read(locked, 1)
        try:
            for attempt in (store.write("x").__enter__, store.prune):
                with pytest.raises(StoreError, match=rf"Process {pid} is writing .*\(learn task mugs\)"):
                    attempt()
            assert_whole(Store.open(store.path), store.head)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert commit(store.path).number == 1, "the lock must end with its process"


def test_writer_can_wait(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    with store.write("first") as transaction, child() as pid:
        if pid == 0:
            signal.alarm(20)
            with store.write("second", wait=True) as second:
                second.commit(kind="learn", record={})
            os._exit(0)
        transaction.commit(kind="learn", record={})
    assert os.waitpid(pid, 0)[1] == 0, "a forked child must not keep its parent's lock"
    assert (store.head.number, store.head.parent) == (2, 1)


def test_failed_block_leaves_nothing(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    before = sorted(store.path.rglob("*"))
    with pytest.raises(FileNotFoundError), store.write("learn") as transaction:
        transaction.put_bytes("x", b"x")
        raise FileNotFoundError("the caller's own")
    assert [path for path in sorted(store.path.rglob("*")) if path.is_file()] == [
        path for path in before if path.is_file()
    ]
    assert commit(store.path).number == 1


def test_readers_see_whole_versions_while_a_writer_commits(tmp_path: Path) -> None:
    path = tmp_path / "store"
    create(path)
    with child() as pid:
        if pid == 0:
            for number in range(1, 101):
                commit(path, number)
            os._exit(0)
        last, reads, done = 0, 0, False
        while not done:
            done = os.waitpid(pid, os.WNOHANG)[0] == pid
            store = Store.open(path)
            version = store.head
            assert version.number >= last
            last, reads = version.number, reads + 1
            if last:
                assert version.record["n"] == last
                assert store.read_json(version, "classes.json") == ["cup", last]
                assert (store.read_tensors(version, "task/adapters")["up"] == last).all()
    assert last == 100
    assert reads > 1


def test_store_without_write_permission_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = create(tmp_path / "store").path
    monkeypatch.chdir(path)
    for file in [path, *path.rglob("*")]:
        file.chmod(0o555 if file.is_dir() else 0o444)
    with child() as pid:
        if pid == 0:
            if os.getuid() == 0:
                os.setuid(65534)
            store = Store.open(".")
            assert_whole(store, store.head)
            with pytest.raises(StoreError, match=r"could not be written.*Permission denied"):
                commit(Path())
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    for file in [path, *path.rglob("*")]:
        file.chmod(0o755)


FULL = OSError(errno.ENOSPC, "No space left on device")
BROKEN = OSError(errno.EIO, "Input/output error")
SHUT = PermissionError(errno.EACCES, "Permission denied", "PARENT/store/lock")
PRUNE = "edge-cl prune --store PARENT/store deletes old versions"
ELSEWHERE = "or name another directory with --store DIR, and run the same command again."
UNWRITTEN: dict[str, tuple[OSError, bool, bool, str]] = {
    "full": (FULL, True, True, f"Free some space ({PRUNE}) and run the same command again."),
    "full, no store": (FULL, False, True, f"Free some space, {ELSEWHERE}"),
    "broken": (BROKEN, True, True, "Mend the cause and run the same command again."),
    "broken, no store": (BROKEN, False, True, f"Mend the cause, {ELSEWHERE}"),
    "shut": (SHUT, True, True, "Allow it: chmod -R u+rwX PARENT/store"),
    "shut, no store": (SHUT, False, True, "Allow it: chmod u+rwX PARENT"),
    "another's": (SHUT, True, False, 'Make it yours: sudo chown -R "$USER" PARENT/store'),
    "another's, no store": (SHUT, False, False, "Name another directory with --store DIR."),
}


@pytest.mark.parametrize(("error", "made", "own", "mend"), UNWRITTEN.values(), ids=list(UNWRITTEN))
def test_what_could_not_be_written_says_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, made: bool, own: bool, mend: str
) -> None:
    path, parent = tmp_path / "store", str(tmp_path)
    store = create(path) if made else Store(path)
    if not own:
        monkeypatch.setattr("os.getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(StoreError, match="could not be written") as caught, store.files.explained():
        raise type(error)(error.errno, error.strerror, str(error.filename).replace("PARENT", parent))
    assert ("The version in force is unchanged." in caught.value.faults[0]) == made
    assert caught.value.mend == mend.replace("PARENT", parent)


def test_what_another_user_made_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after one `sudo edge-cl learn`: some directories of objects are root's."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    path = create(tmp_path / "store").path
    monkeypatch.chdir(path)
    for file in [path, *path.rglob("*")]:
        file.chmod(0o777 if file.is_dir() else 0o666)
    shut = sorted((path / "objects").iterdir())[0]
    shut.chmod(0o755)
    with child() as pid:
        if pid == 0:
            os.setuid(65534)
            with pytest.raises(StoreError, match=f"objects/{shut.name} cannot be written by this user") as refused:  # noqa: SIM117
                with Store.open(".").write("learn"):
                    os._exit(2)
            assert "sudo chown -R" in refused.value.mend
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0


# -- damage ------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "fault", "mend"),
    [
        (lambda s: shutil.rmtree(s), "no store at", "edge-cl init --store"),
        (lambda s: (s.rename(f"{s}.old"), s.write_text("x")), "is a file", "--store"),
        (lambda s: (s / "format.json").unlink(), "not a store", "edge-cl init"),
        (
            lambda s: (shutil.rmtree(s), s.mkdir(), (s / "a.jpg").touch()),
            "not a store",
            "Name the directory of a store",
        ),
        (lambda s: (s / "format.json").write_text('{"format": 3}'), "format 3.*up to 2", "Upgrade edge-cl"),
        (lambda s: (s / "format.json").write_text("{"), "format.json is damaged", "copy"),
        (lambda s: (s / "format.json").write_text('{"format": "1"}'), "format.json is damaged", "copy"),
        (lambda s: (s / "HEAD").unlink(), "HEAD cannot be read", "edge-cl rollback 1 --store"),
        (lambda s: (s / "HEAD").write_text(""), "HEAD holds b''", "edge-cl rollback 1 --store"),
        (lambda s: (s / "HEAD").write_text("../1\n"), "HEAD holds b'../1", "edge-cl rollback 1 --store"),
        (lambda s: (s / "HEAD").write_text("7\n"), "Version 7 does not exist", "edge-cl rollback 1 --store"),
        (lambda s: (s / "versions/000001.json").unlink(), "Version 1 does not", "edge-cl rollback 0 --store"),
        (lambda s: flip(s / "versions/000001.json"), "Version 1 is damaged", "edge-cl rollback 0 --store"),
        (lambda s: shutil.rmtree(s / "versions"), "Version 1 does not exist", "No version is whole: restore"),
    ],
)
def test_open_says_what_is_wrong(tmp_path: Path, damage: Callable[[Path], object], fault: str, mend: str) -> None:
    path = create(tmp_path / "store").path
    commit(path)
    damage(path)
    with pytest.raises(StoreError, match=fault) as caught:
        Store.open(path)
    assert mend in caught.value.mend


@pytest.mark.parametrize(
    ("name", "damage", "fault", "mend"),
    [
        (
            "classes.json",
            flip,
            "SHA-256 [0-9a-f]{64}, expected .* SHA-256 [0-9a-f]{64}",
            "edge-cl rollback 0 --store",
        ),
        ("classes.json", lambda path: path.unlink(), "is missing", "edge-cl rollback 0 --store"),
        ("classes.json", lambda path: path.write_bytes(b""), "has 0 bytes", "edge-cl rollback 0 --store"),
        ("backbone", flip, "SHA-256", "No version is whole: restore"),
    ],
)
@pytest.mark.parametrize("read", [Store.read_bytes, Store.read_json, Store.read_tensors, Store.object_path])
def test_damaged_object(
    tmp_path: Path,
    read: Callable[..., object],
    name: str,
    damage: Callable[[Path], object],
    fault: str,
    mend: str,
) -> None:
    store = create(tmp_path / "store")
    commit(store.path)
    path = object_file(store, name)
    damage(path)
    assert any(name in line for line in store.check())
    with pytest.raises(StoreError, match=fault) as caught:
        read(store, store.head, name)
    assert f"Object '{name}' of version 1: {path}" in caught.value.faults[0]
    assert mend in caught.value.mend
    if "rollback 0" in mend:
        rollback(store.path)
        assert Store.open(store.path).head.number == 0
        with pytest.raises(StoreError, match="expected"), store.write("x") as transaction:
            transaction.move_head(1)
        assert store.head.number == 0


def test_damage_elsewhere_does_not_suggest_a_rollback(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    old = object_file(store, "classes.json")
    commit(store.path)
    flip(old)
    with pytest.raises(StoreError, match=r"Version 1, the one in force, is whole"):
        store.read_json(store.version(0), "classes.json")


def test_a_damaged_report_leads_to_no_other_version(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    with store.write("learn") as transaction:
        transaction.keep_all()
        transaction.put_bytes("report.md", b"learned")
        transaction.commit(kind="learn", record={})
    flip(object_file(store, "report.md"))
    assert store.check() != []
    assert store.files.way_on() == "Version 1 answers as before, without its report; the next learn writes its own."
    flip(object_file(store, "classes.json"))
    assert store.files.way_on() == "No version is whole: restore " + f"{store.path} from a copy."


def test_damage_does_not_lead_to_what_a_rollback_undid(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    first = object_file(store, "classes.json")
    kept, undone = commit(store.path, 1), commit(store.path, 2)
    with store.write("rollback") as transaction:
        transaction.move_head(kept.number)
    assert store.files.way_on() == "Version 1, the one in force, is whole; restore the other from a copy."
    flip(object_file(store, "classes.json"))
    command = f"edge-cl rollback {{}} --store {store.path}"
    assert store.files.way_on() == f"Go back to the newest whole version before it: {command.format(0)}"
    flip(first)
    what = f"The newest whole version is 2 (learn, {undone.created}; a rollback may have undone it)"
    assert store.files.way_on() == f"{what}: {command.format(2)}"


def test_broken_head_is_mended_by_rollback_only(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    (store.path / "HEAD").write_text("?")
    assert len(store.check()) == 1
    repaired = Store.open(store.path, repair=True)
    with pytest.raises(StoreError, match="no version in force"), repaired.write("learn") as transaction:
        transaction.commit(kind="learn", record={})
    rollback(store.path)
    assert store.check() == []
    assert commit(store.path).number == 1


def test_forged_manifest_does_not_lead_out_of_the_store(tmp_path: Path) -> None:
    store = create(tmp_path / "store")
    file = store.path / "versions" / "000000.json"
    manifest = json.loads(file.read_text())["manifest"]
    manifest["objects"]["classes.json"]["sha256"] = "../../../../etc/passwd"
    sha = hashlib.sha256(canonical_json(manifest)).hexdigest()
    file.chmod(0o644)
    file.write_text(json.dumps({"manifest": manifest, "sha256": sha}))
    with pytest.raises(StoreError, match="is not described by a SHA-256"):
        Store.open(store.path)


@pytest.mark.parametrize(
    ("prepare", "fault"),
    [
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: (path.mkdir(), (path / "mine.txt").write_text("x")), "holds files .*mine.txt"),
        (lambda path: (path.mkdir(), (path / "HEAD").write_text("ref: x")), "holds files .*HEAD"),
        (create, "is a store already"),
    ],
)
def test_create_refuses(tmp_path: Path, prepare: Callable[[Path], object], fault: str) -> None:
    path = tmp_path / "store"
    prepare(path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(StoreError, match=fault):
        create(path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("use", "fault"),
    [
        (lambda _, t: t.put_bytes("../x", b""), "cannot name an object"),
        (lambda _, t: t.put_bytes("", b""), "cannot name an object"),
        (lambda _, t: t.keep("backbon"), "no object 'backbon'.\nDid you mean backbone"),
        (lambda s, t: s.read_bytes(t.parent, "x"), "no object 'x'"),
        (lambda _, t: t.put_file("x", "/nowhere/file"), "/nowhere/file"),
        (lambda _, t: t.move_head(9), "Version 9 does not exist"),
        (lambda s, t: s.read_tensors(t.parent, "classes.json"), "has no tensors"),
        (lambda s, t: s.read_json(t.parent, "backbone"), "is not JSON"),
    ],
)
def test_misuse_is_refused(tmp_path: Path, use: Callable[[Store, Transaction], object], fault: str) -> None:
    store = create(tmp_path / "store")
    with pytest.raises(StoreError, match=fault), store.write("test") as transaction:
        use(store, transaction)
    assert store.check() == []
