"""Replace a bundle at random moments, as learning does: python tests/cpp/republish.py BUNDLE OTHER SECONDS.

The bundle alternates between its own files and those of another of the same backbone, through `Publication`: new files,
one rename of the manifest, old files swept away.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edge_cl.export.bundle import FileRef, Manifest, read_manifest
from edge_cl.export.publication import Publication


def contents(bundle: Path) -> tuple[Manifest, Mapping[str, bytes]]:
    """Return a bundle's manifest and the bytes of its files by role."""
    manifest = read_manifest(bundle)
    return manifest, {role: (bundle / ref.name).read_bytes() for role, ref in manifest.files.items()}


def publish(bundle: Path, manifest: Manifest, files: Mapping[str, bytes], version: int) -> None:
    """Put a version in force."""
    with Publication.begin(bundle) as publication:
        refs: dict[str, FileRef] = {}
        for role, data in files.items():
            suffix = manifest.files[role].name.rpartition(".")[2]
            refs[role] = publication.put(role, suffix, data)
        publication.publish(replace(manifest, version=version, files=refs))


def main() -> None:
    """Run until the time is over; print how many versions were published."""
    bundle, other, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    generator = random.Random(0)
    sides, version, end = [contents(bundle), contents(other)], 1000, time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(generator.uniform(0.05, 6))
        version += 1
        manifest, files = sides[version % 2]
        publish(bundle, manifest, files, version)
    print(json.dumps({"published": version - 1000}))


if __name__ == "__main__":
    main()
