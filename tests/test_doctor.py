"""The checks of `edge-cl doctor`, on file trees that stand for machines (tests/device_trees/SOURCE.md)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from machines import AGX, DAMAGED, NANO, PC, THOR, XAVIER, changed, findings, healthy_orin, pretend
from small import edge_cl
from stores import commit, create, flip, object_file
from typer.testing import CliRunner

from edge_cl.cli import app
from edge_cl.devices import doctor
from edge_cl.devices.doctor import CHECKS, Finding, examine
from edge_cl.devices.finding import Subject
from edge_cl.store import Store


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries of a healthy Orin."""
    pretend(monkeypatch, healthy_orin())


@pytest.mark.parametrize(
    ("check", "tree", "state", "found", "mend", "cause"),
    [
        ("board", NANO, "ok", "Jetson Orin Nano 8GB, profile orin-nano-8gb", "", ""),
        ("board", XAVIER, "FAULT", "Jetson Xavier NX", "Use an Orin or Thor board", "its last JetPack is 5"),
        ("board", PC, "ok", "no Jetson", "", ""),
        ("board", DAMAGED, "ok", "no Jetson", "", ""),
        ("jetpack", NANO, "ok", "JetPack 6.2, Jetson Linux 36.4.3", "", ""),
        ("jetpack", THOR, "ok", "JetPack 7.0, Jetson Linux 38.2.0", "", ""),
        ("power mode", NANO, "note", "mode 0 (15W)", "sudo nvpmodel -m 2", "MAXN_SUPER is faster"),
        ("power mode", AGX, "ok", "mode 0 (MAXN)", "", ""),
        ("power mode", THOR, "note", "mode 1 (120W)", "sudo nvpmodel -m 0", "MAXN is faster"),
        ("cuda", NANO, "ok", "CUDA 12.6.11, driver library /usr/lib/aarch64-linux-gnu/nvidia/", "", ""),
        ("cuda", PC, "ok", "CUDA 12.8.90, driver library /usr/lib/x86_64-linux-gnu/libcuda.so.1", "", ""),
        ("cuda", DAMAGED, "ok", "no driver: edge-cl runs on the CPU", "", ""),
        ("memory", NANO, "ok", "5759 of 7619 MB free, 3809 MB of swap (zram", "", ""),
        ("memory", PC, "ok", "25600 of 32000 MB free, 1953 MB of swap", "", ""),
    ],
)
def test_a_check_on_a_tree(check: str, tree: Path, state: str, found: str, mend: str, cause: str) -> None:
    (finding,) = findings(check, tree)
    assert (finding.check, finding.state) == (check, state)
    assert finding.found.startswith(found)
    assert finding.mend.startswith(mend) and bool(finding.mend) == bool(mend)
    assert finding.cause.startswith(cause) and bool(finding.cause) == bool(cause)


@pytest.mark.parametrize(
    ("check", "tree"), [("jetpack", PC), ("jetpack", XAVIER), ("power mode", PC), ("memory", DAMAGED)]
)
def test_what_does_not_apply_is_not_reported(check: str, tree: Path) -> None:
    assert findings(check, tree) == []


CHANGES: dict[str, tuple[str, Path, dict[str, str | None], str, str, str, str]] = {
    "JetPack 6.0": (
        "jetpack",
        NANO,
        {"etc/nv_tegra_release": "# R36 (release), REVISION: 3.0,", "var/lib/dpkg/status": None},
        "FAULT",
        "JetPack 6.0, Jetson Linux 36.3.0",
        "sudo apt update && sudo apt install nvidia-jetpack; or: Flash",
        "JetPack 6.1",
    ),
    "JetPack 5": (
        "jetpack",
        NANO,
        {"etc/nv_tegra_release": "# R35 (release), REVISION: 4.1,", "var/lib/dpkg/status": None},
        "FAULT",
        "JetPack 5.1.2",
        "Flash JetPack 6.1 or newer",
        "edge-cl needs JetPack 6.1",
    ),
    "JetPack by release": (
        "jetpack",
        NANO,
        {"var/lib/dpkg/status": None},
        "note",
        "JetPack 6.2",
        "sudo apt update && sudo apt install nvidia-jetpack",
        "the package nvidia-jetpack is not",
    ),
    "no JetPack": (
        "jetpack",
        NANO,
        {"var/lib/dpkg/status": None, "etc/nv_tegra_release": None},
        "note",
        "version unknown",
        "Run edge-cl doctor on the board itself",
        "usual in a container",
    ),
    "unknown part": (
        "board",
        THOR,
        {"proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0004\0nvidia,tegra264\0"},
        "note",
        "(tegra264, p4071-0000 and p3834-0004)",
        "--device thor-t4000",
        "its part number is in no profile",
    ),
    "unknown part of an old chip": (
        "board",
        XAVIER,
        {"proc/device-tree/compatible": "nvidia,p9999-0001\0nvidia,tegra194\0"},
        "FAULT",
        "tegra194",
        "Use an Orin or Thor board.",
        "its last JetPack is 5",
    ),
    "chip of no profile": (
        "board",
        XAVIER,
        {"proc/device-tree/compatible": "nvidia,p3448-0000\0nvidia,tegra210\0"},
        "FAULT",
        "tegra210",
        "Use an Orin or Thor board.",
        "no profile with its chip",
    ),
    "no Super modes": (
        "power mode",
        NANO,
        {"etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n"},
        "note",
        "mode 0 (15W)",
        "Flash JetPack 6.2",
        "this board has faster Super modes",
    ),
    "mode of no name": (
        "power mode",
        AGX,
        {"var/lib/nvpmodel/status": "pmode:0009"},
        "note",
        "mode 9 (of unknown name)",
        "sudo nvpmodel -m 0",
        "MAXN is faster",
    ),
    "modes by watts": (
        "power mode",
        XAVIER,
        {"etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MODE_10W >\n< POWER_MODEL ID=4 NAME=MODE_20W_6CORE >\n"},
        "note",
        "mode 2 (MODE_10W)",
        "sudo nvpmodel -m 4",
        "MODE_20W_6CORE is faster",
    ),
    "no driver": (
        "cuda",
        NANO,
        {"usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1": None},
        "FAULT",
        "CUDA 12.6.11, no driver library",
        "sudo apt install --reinstall nvidia-l4t-cuda",
        "libcuda.so.1 is missing",
    ),
    "too little memory": (
        "memory",
        NANO,
        {"proc/meminfo": "MemTotal: 7802664 kB\nMemAvailable: 2048000 kB\nSwapFree: 3901320 kB\n"},
        "FAULT",
        "2000 of 7619 MB free",
        "End other programs, or learn with less: edge-cl learn --memory 1500MB",
        "3072 MB",
    ),
    "memory with swap": (
        "memory",
        NANO,
        {"proc/meminfo": "MemTotal: 7802664 kB\nMemAvailable: 2048000 kB\nSwapFree: 3901320 kB\n", "proc/swaps": None},
        "note",
        "2000 of 7619 MB free",
        "End other programs",
        "would swap",
    ),
}


@pytest.mark.parametrize(("check", "tree", "changes", "state", "found", "mend", "cause"), CHANGES.values(), ids=CHANGES)
def test_a_check_on_a_changed_tree(
    tmp_path: Path,
    check: str,
    tree: Path,
    changes: dict[str, str | None],
    state: str,
    found: str,
    mend: str,
    cause: str,
) -> None:
    (finding,) = findings(check, changed(tree, changes, tmp_path))
    assert finding.state == state
    assert found in finding.found
    assert mend in finding.mend
    assert cause in finding.cause


# The whole report -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tree", [NANO, AGX, THOR, XAVIER, PC, DAMAGED], ids=lambda tree: tree.name)
def test_every_tree_gives_a_report(libraries: None, tmp_path: Path, tree: Path) -> None:
    report = examine(tmp_path / "none", tree)
    assert [f.check for f in report if not f.ok] == {
        THOR: ["tensorrt"],  # the stand-ins are those of an Orin
        XAVIER: ["board"],
    }.get(tree, [])
    assert {"python", "board", "torch", "disk", "store"} <= {f.check for f in report}
    assert all(f.mend for f in report if not f.ok)


def test_a_check_that_fails_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Subject) -> Iterator[Finding]:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setitem(CHECKS, "torch", broken)
    report = {f.check: f for f in examine(tmp_path, PC)}
    assert not report["torch"].ok
    assert "ZeroDivisionError" in report["torch"].found
    assert report["torch"].mend
    assert report["store"].ok


def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=100 << 20))
    (finding,) = findings("disk", PC)
    assert (finding.state, finding.mend) == ("FAULT", "Free some space.")
    monkeypatch.setattr("os.access", lambda *_: False)
    (finding,) = findings("disk", PC)
    assert finding.mend.startswith("Allow it: chmod u+rwX /") and not finding.ok


def test_a_full_disk_with_a_store_can_be_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.create(tmp_path / "a store", record={})
    with store.write("learn") as transaction:
        transaction.put_bytes("features", bytes(3_000_000))
        transaction.commit(kind="learn", record={})
        transaction.put_bytes("features", bytes(3_000_000))  # the same object
        transaction.commit(kind="learn", record={})
        assert doctor.KEPT_VERSIONS == 3
        transaction.commit(kind="forget", record={})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=100 << 20))
    report = {f.check: f for f in examine(store.path, PC)}
    assert report["disk"].mend == f"Delete old versions: edge-cl prune --store '{store.path}'"
    assert report["store"].found == f"{store.path}: 3 MB in 4 versions, every object whole"


def store_findings(path: Path) -> list[tuple[str, str]]:
    """Return (state, mend) of each finding about a store."""
    return [(f.state, f.mend) for f in examine(path, PC) if f.check == "store"]


def test_a_path_that_no_store_can_be_made_at_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a store")
    assert store_findings(tmp_path / "file") == [("FAULT", "Name another with --store DIR.")]
    assert store_findings(tmp_path) == [("FAULT", "Name an empty or a new directory with --store DIR.")]
    assert store_findings(tmp_path / "none") == [("ok", "")]


def test_a_damaged_version_in_force_is_mended_by_commands_as_they_are_typed(tmp_path: Path, no_fsync: None) -> None:
    store = create(tmp_path / "a store")
    commit(store.path)
    flip(object_file(store, "task/adapters"))
    back = f"Go back to the newest whole version before it: edge-cl rollback 0 --store '{store.path}'"
    assert store_findings(store.path) == [("FAULT", back)]
    assert edge_cl(*shlex.split(back.partition(": edge-cl ")[2])).code == 0

    prune = f"edge-cl prune --keep 1 --store '{store.path}'"
    assert store_findings(store.path) == [("note", f"After the next learn, which makes a newer version: {prune}")]
    commit(store.path, 2)
    assert store_findings(store.path) == [("note", prune)]
    assert edge_cl(*shlex.split(prune)[1:]).code == 0
    assert store_findings(store.path) == [("ok", "")]


@pytest.mark.parametrize("name", ["versions/000001.json", "task/adapters"])
def test_damage_behind_the_version_in_force_is_a_note(
    libraries: None, tmp_path: Path, no_fsync: None, name: str
) -> None:
    store = create(tmp_path / "store")
    commit(store.path, 1)
    old = store.path / name if name.startswith("versions") else object_file(store, name)
    commit(store.path, 2)
    flip(old)
    prune = f"edge-cl prune --keep 1 --store {store.path}"
    assert store_findings(store.path) == [("note", prune)]
    assert edge_cl("doctor", "--root", PC, "--store", store.path).code == 0
    assert edge_cl(*prune.split()[1:]).code == 0
    assert store_findings(store.path) == [("ok", "")]


@pytest.mark.parametrize(("tree", "code"), [(PC, 0), (XAVIER, 1)], ids=["pc", "xavier"])
def test_the_command(libraries: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree: Path, code: int) -> None:
    monkeypatch.setattr("edge_cl.devices.probe.ROOT", tree)
    result = CliRunner().invoke(app, ["doctor", "--json", "--store", str(tmp_path / "none")])
    given = CliRunner().invoke(app, ["doctor", "--json", "--root", str(tree), "--store", str(tmp_path / "none")])
    value, same = json.loads(result.stdout), json.loads(given.stdout)

    def lasting(found: Any) -> list[Any]:
        return [f for f in found["findings"] if f["check"] != "disk"]  # other programs write to it meanwhile

    assert lasting(same) == lasting(value)
    assert result.exit_code == code
    assert value["ok"] is (code == 0)
    assert all(set(f) == {"check", "ok", "found", "mend", "cause"} for f in value["findings"])
    table = CliRunner().invoke(app, ["doctor", "--store", str(tmp_path / "none")])
    assert table.exit_code == code
    assert ("FAULT" in table.stdout) is (code == 1)
