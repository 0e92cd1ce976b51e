"""Which pictures each class was learned from, by their files' SHA-256 alone: none counts twice, and none is kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from edge_cl.version import Version

if TYPE_CHECKING:
    from edge_cl.pictures import Picture
    from edge_cl.store import Store
    from edge_cl.transaction import Transaction

OBJECT = "fingerprints.json"  # of every task
Fingerprints: TypeAlias = Mapping[int, frozenset[str]]
"""SHA-256 in hexadecimal by class id; classes that earlier releases taught are not in it."""


def with_fingerprints(known: Fingerprints, ids: Mapping[str, int], pictures: Iterable[Picture]) -> Fingerprints:
    """Return the fingerprints with those of further pictures, given the ids of their classes by name."""
    result = defaultdict(set, {c: set(hashes) for c, hashes in known.items()})
    for picture in pictures:
        result[ids[picture.label]].add(picture.sha256)
    return {c: frozenset(hashes) for c, hashes in result.items()}


def put_fingerprints(transaction: Transaction, fingerprints: Fingerprints, tasks: Mapping[int, int]) -> None:
    """Put an object for every task, {class id: its hashes}, given the tasks of the classes by id."""
    of_tasks = defaultdict[int, dict[str, list[str]]](dict)
    for c, hashes in fingerprints.items():
        of_tasks[tasks[c]][str(c)] = sorted(hashes)
    for task, own in of_tasks.items():
        transaction.put_json(f"task/{task:04}/{OBJECT}", own)


def read_fingerprints(store: Store, version: Version) -> Fingerprints:
    """Read the fingerprints of a version."""
    tasks: Any = [store.read_json(version, name) for name in version.objects if name.endswith(f"/{OBJECT}")]
    return {int(c): frozenset(hashes) for task in tasks for c, hashes in task.items()}
