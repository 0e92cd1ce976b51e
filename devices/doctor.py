"""Checks of the machine and of a store: each finding says what was found, why, and the command that mends it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from edge_cl.checkpoint import size_of, unfinished
from edge_cl.config import KEPT_VERSIONS
from edge_cl.devices import hardware, runtimes
from edge_cl.devices.finding import Check, Finding, Subject, run
from edge_cl.devices.probe import read_machine
from edge_cl.errors import StoreError
from edge_cl.store import Store
from edge_cl.store_files import nearest_there

__all__ = ["CHECKS", "Finding", "examine"]

FREE_MB = 500  # a version of a ViT-B store and its checkpoints need less


def check_python(_: Subject) -> Iterator[Finding]:
    """Look at the version of Python."""
    enough = sys.version_info >= (3, 10)
    version = ".".join(map(str, sys.version_info[:3]))
    advice = () if enough else ("Use 3.10 or newer.", "edge-cl is not written for older ones")
    yield Finding("python", enough, version, *advice)


def check_disk(subject: Subject) -> Iterator[Finding]:
    """Look at the disk that the store is on, or will be."""
    store = subject.store
    place, files = nearest_there(store), Store(store).files
    free_mb = shutil.disk_usage(place).free // 2**20
    try:
        with files.explained():
            files.require_writable()
    except StoreError as error:
        yield Finding("disk", False, error.faults[0], error.mend, "nothing that is learned could be kept")
        return
    if free_mb <= FREE_MB:
        cause = f"a learn needs up to {FREE_MB} MB for checkpoints and the new version"
        prune = f"Delete old versions: {Store(store).command('prune')}"
        mend = prune if len(list((store / "versions").glob("*.json"))) > KEPT_VERSIONS else "Free some space."
        yield Finding("disk", False, f"{free_mb} MB free at {place}", mend, cause)
    else:
        yield Finding("disk", True, f"{free_mb} MB free at {place}")


def check_store(subject: Subject) -> Iterator[Finding]:
    """Verify every object of the store."""
    path = subject.store
    if not Store.exists(path):
        Store(path).require_vacant()
        yield Finding("store", True, f"none at {path} yet")
        return
    store = Store.open(path)
    faults = store.check()
    if faults:
        whole, mend, cause = _way_on(store)
        for fault in faults:
            yield Finding("store", whole, fault, mend, cause)
    else:
        versions = store.versions()
        sizes = {ref.sha256: ref.size for version in versions for ref in version.objects.values()}
        held = f"{len(versions)} versions" if len(versions) > 1 else "one version"
        begun = sum(map(size_of, unfinished(store.work)))
        more = f", {begun / 1e6:.0f} MB of a learn that is not done" if begun else ""
        yield Finding("store", True, f"{path}: {sum(sizes.values()) / 1e6:.0f} MB in {held}, every object whole{more}")


def _way_on(store: Store) -> tuple[bool, str, str]:
    """Return whether a damaged store's version in force is whole all the same, what mends the store, and the cause."""
    head, numbers = store.head.number, store.files.numbers()
    if store.files.faults(head, {}):
        return False, store.files.way_on(), ""
    prune = store.command("prune --keep 1")
    if numbers[-1] != head and store.files.faults(numbers[-1], {}):  # the newest stays: its number is not used again
        prune = f"After the next learn, which makes a newer version: {prune}"
    return True, prune, f"version {head}, the one in force, is whole; to delete the others clears it"


CHECKS: dict[str, Check] = {  # in the order of the report
    "python": check_python,
    "board": hardware.check_board,
    "jetpack": hardware.check_jetpack,
    "power mode": hardware.check_power,
    "cuda": hardware.check_driver,
    "torch": runtimes.check_torch,
    "tensorrt": runtimes.check_tensorrt,
    "pycuda": runtimes.check_pycuda,
    "onnxruntime": runtimes.check_onnxruntime,
    "memory": hardware.check_memory,
    "disk": check_disk,
    "store": check_store,
}


def examine(store: Path, root: Path | None = None) -> list[Finding]:
    """Look at Python, the board, the libraries that compute, memory, disk and a store.

    Args:
        store: directory of a store; it need not exist.
        root: of the file system whose board is looked at; a captured tree may be given.
    """
    subject = Subject(read_machine(root), store)
    return [finding for name, check in CHECKS.items() for finding in run(name, check, subject)]
