"""Profiles: the facts of each board as data, one TOML file a board, and the defaults that suit it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from edge_cl.config import LearnConfig
from edge_cl.errors import EdgeClError, UsageError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROFILES_DIR = Path(__file__).parent / "profiles"
DEVICES = ("auto", "cpu", "cuda")  # what --device takes beside the names of profiles
CERTAINTIES = ("calculated", "unconfirmed", "chosen")  # a fact that is not in [certainty] is published by its source

_Types = Mapping[str, tuple[type, ...]]
_NUMBER = (int, float)
FACTS: _Types = {
    "soc": (str,),
    "parts": (list,),
    "compute_capability": (str,),
    "memory_gb": (list,),
    "bandwidth_gb_s": _NUMBER,
    "sm_count": (int,),
    "sm_mhz": _NUMBER,
    "fp16_tflops": _NUMBER,
    "dla_count": (int,),
}
SUPPORT: _Types = {
    "jetpack_floor": (str,),
    "refused": (str,),
    "defaults": (dict,),
    "super": (dict,),
    "power_modes": (dict,),
}
SUPER: _Types = {"bandwidth_gb_s": _NUMBER, "sm_mhz": _NUMBER, "fp16_tflops": _NUMBER}
DEFAULTS: _Types = {"precision": (str,), "batch": (int,), "memory_mb": (int,)}
POWER_MODES: _Types = {"standard": (list,), "super": (list,)}


@dataclass(frozen=True)
class Defaults:
    """What edge-cl does on a board unless told otherwise.

    Attributes:
        precision: of exported engines: "fp16" or "fp32".
        batch: pictures that go through the backbone at once.
        memory_mb: memory that a learn may take, 2^20 bytes; the rest is for the robot's own programs.
    """

    precision: str
    batch: int
    memory_mb: int


@dataclass(frozen=True)
class SuperMode:
    """What the Super power modes of JetPack 6.2 make of a board; the part stays the same."""

    bandwidth_gb_s: float
    sm_mhz: float
    fp16_tflops: float


@dataclass(frozen=True)
class Profile:
    """Facts of one kind of board.

    Attributes:
        key: name of the profile, as `--device` takes it; the stem of its file.
        name: as sold.
        soc: of the device tree's `compatible`, without the vendor.
        parts: module part numbers, with or without the variant (p3767-0005, p3668); none where it is not known.
        compute_capability: of its GPU.
        memory_gb: sizes sold; CPU and GPU share it.
        bandwidth_gb_s: of that memory.
        sm_count: streaming multiprocessors.
        sm_mhz: their highest clock, without Super modes.
        fp16_tflops: dense, at that clock.
        dla_count: deep learning accelerators (edge-cl does not use them).
        sources: where each fact is from.
        certainty: of facts that their source does not state: "calculated: ...", "unconfirmed: ...", "chosen: ...".
        jetpack_floor: oldest JetPack supported, "" where none is.
        refused: why it is not supported, "" where it is.
        defaults: what edge-cl does on it, None where it is refused.
        super_mode: what Super power modes make of it, None where it has none that we know.
        power_modes: names of nvpmodel's modes in the order of their numbers, by configuration ("standard", "super").
    """

    key: str
    name: str
    soc: str
    parts: tuple[str, ...]
    compute_capability: str
    memory_gb: tuple[int, ...]
    bandwidth_gb_s: float
    sm_count: int
    sm_mhz: float
    fp16_tflops: float
    dla_count: int
    sources: Mapping[str, str]
    certainty: Mapping[str, str]
    jetpack_floor: str = ""
    refused: str = ""
    defaults: Defaults | None = None
    super_mode: SuperMode | None = None
    power_modes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def has_part(self, part: str) -> bool:
        """Return whether a part number of the device tree (p3767-0005) is one of this board's."""
        return any(part == own or part.startswith(f"{own}-") for own in self.parts)

    @property
    def advice(self) -> str:
        """What the profile makes of a learn, for people."""
        if self.defaults is None:
            return f"not supported: {self.refused}"
        memory, batch = self.defaults.memory_mb, self.defaults.batch
        return f"its profile {self.key} allows a learn {memory} MB (--memory changes it), {batch} pictures at once"

    def settings(self, base: LearnConfig) -> LearnConfig:
        """Return settings of a learn with this board's defaults in place.

        What is learned stays the same within rounding, unless the memory is too little for all views of the pictures.
        """
        if self.defaults is None:
            return base
        return replace(base, micro_batch=self.defaults.batch, memory_mb=float(self.defaults.memory_mb))


def read_profile(path: Path) -> Profile:
    """Read and check one profile.

    Raises:
        EdgeClError: it cannot be read, or a fact is missing, unknown, of the wrong type or without a source.
    """
    mend = f"Mend {path}, or install edge-cl again."
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EdgeClError(f"Cannot read the profile {path}: {error}.", mend=mend) from error
    faults = _faults(values)
    if faults:
        raise EdgeClError(*(f"{path.name}: {fault}" for fault in faults), mend=mend)
    facts: dict[str, Any] = {key: tuple(values[key]) if FACTS[key] == (list,) else values[key] for key in FACTS}
    return Profile(
        key=path.stem,
        name=values["name"],
        **facts,
        sources={fact: source for source, facts in values["sources"].items() for fact in facts},
        certainty=values.get("certainty", {}),
        jetpack_floor=values.get("jetpack_floor", ""),
        refused=values.get("refused", ""),
        defaults=Defaults(**values["defaults"]) if "defaults" in values else None,
        super_mode=SuperMode(**values["super"]) if "super" in values else None,
        power_modes={kind: tuple(names) for kind, names in values.get("power_modes", {}).items()},
    )


def _faults(values: Mapping[str, Any]) -> list[str]:
    known: _Types = {"name": (str,), **FACTS, **SUPPORT, "sources": (dict,), "certainty": (dict,)}
    faults = _type_faults("", values, known, needed=("name", *FACTS, "sources"))
    if ("jetpack_floor" in values) == ("refused" in values):
        faults.append("it needs either jetpack_floor or refused.")
    if ("defaults" in values) == ("refused" in values):
        faults.append("it needs defaults, unless it is refused.")
    if faults:
        return faults
    for table, types in (("super", SUPER), ("defaults", DEFAULTS)):
        faults += _type_faults(f"{table}.", values.get(table, types), types, needed=types) if table in values else []
    faults += _type_faults("power_modes.", values.get("power_modes", {}), POWER_MODES, needed=())
    facts = [key for key in values if key in FACTS or key in SUPPORT]
    sourced = [fact for listed in values["sources"].values() for fact in listed]
    faults += [f"{fact} has no source." for fact in facts if fact not in sourced]
    faults += [f"{fact} has {sourced.count(fact)} sources." for fact in facts if sourced.count(fact) > 1]
    faults += [f"sources names {fact}, which it does not have." for fact in sourced if fact not in facts]
    for fact, certainty in values.get("certainty", {}).items():
        if fact not in facts:
            faults.append(f"certainty names {fact}, which it does not have.")
        if str(certainty).split(":")[0] not in CERTAINTIES:
            faults.append(f"certainty of {fact} must begin with one of {', '.join(CERTAINTIES)}, not {certainty!r}.")
    return faults


def _type_faults(prefix: str, values: Mapping[str, Any], types: _Types, needed: Any) -> list[str]:
    faults = [f"{prefix}{key} is missing." for key in needed if key not in values]
    for key, value in values.items():
        if key not in types:
            faults.append(f"{prefix}{key} is unknown. {did_you_mean(key, list(types))}")
        elif not isinstance(value, types[key]) or isinstance(value, bool):
            wanted = " or ".join(t.__name__ for t in types[key])
            faults.append(f"{prefix}{key} must be {wanted}, not {value!r}.")
    return faults


@cache
def profiles() -> Mapping[str, Profile]:
    """Return the profiles that come with edge-cl, by their key."""
    return {path.stem: read_profile(path) for path in sorted(PROFILES_DIR.glob("*.toml"))}


def find_profile(key: str) -> Profile:
    """Return the profile of a name.

    Raises:
        UsageError: there is none of that name.
        EdgeClError: its board is not supported.
    """
    known = profiles()
    if key not in known:
        raise UsageError(f"Unknown device {key!r}.", mend=did_you_mean(key, [*DEVICES, *known]))
    if known[key].refused:
        why = f"{known[key].name} is not supported: {known[key].refused}."
        raise EdgeClError(why, mend="Use an Orin or Thor board, or --device cpu.")
    return known[key]
