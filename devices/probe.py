"""What machine this is, read from the files of its system: no program is run, and nothing here needs a GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from edge_cl.devices.profile import DEVICES, Profile, find_profile, profiles

ROOT = Path("/")

# JetPack by Jetson Linux (L4T), for boards without the package nvidia-jetpack: the release notes of each JetPack.
JETPACK_BY_L4T: Mapping[tuple[int, ...], str] = {
    (32,): "4",
    (34,): "5.0",
    (35,): "5.0.2",
    (35, 2): "5.1",
    (35, 3): "5.1.1",
    (35, 4): "5.1.2",
    (35, 5): "5.1.3",
    (35, 6): "5.1.4",
    (36,): "6.0",
    (36, 4): "6.1",
    (36, 4, 3): "6.2",
    (36, 4, 4): "6.2.1",
    (36, 5): "6.2.2",
    (38,): "7.0",
    (38, 4): "7.1",
    (39,): "7.2",
}
TENSORRT_PACKAGES = ("libnvinfer10", "libnvinfer11", "libnvinfer8", "tensorrt")
DRIVERS = (  # where Jetson Linux 36 and later, 35 and earlier, and other Linux systems keep it
    "usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
    "usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
    "usr/lib/aarch64-linux-gnu/libcuda.so.1",
    "usr/lib/x86_64-linux-gnu/libcuda.so.1",
    "usr/lib64/libcuda.so.1",
    "usr/lib/wsl/lib/libcuda.so.1",
)


@dataclass(frozen=True)
class Machine:
    """What the files of a machine say; None, or nothing, where a file is missing or says nothing that can be read.

    Attributes:
        model: the device tree's name of the board.
        compatible: the device tree's list of what the board is compatible with, the most specific first.
        l4t: Jetson Linux release, such as 36.4.3.
        packages: installed Debian packages that matter here, with their versions.
        power_mode: number of nvpmodel's mode in force.
        power_modes: names of the modes by number, of /etc/nvpmodel.conf.
        cuda: version of the CUDA toolkit or runtime.
        driver: path of the CUDA driver library.
        memory_mb: total, 2^20 bytes.
        available_mb: what programs can still take without swapping.
        swap_free_mb: swap that is free.
        zram: whether some of the swap is compressed memory.
    """

    model: str | None = None
    compatible: tuple[str, ...] = ()
    l4t: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    power_mode: int | None = None
    power_modes: Mapping[int, str] = field(default_factory=dict)
    cuda: str | None = None
    driver: str | None = None
    memory_mb: int | None = None
    available_mb: int | None = None
    swap_free_mb: int | None = None
    zram: bool = False

    @property
    def soc(self) -> str | None:
        """The Tegra chip, such as tegra234, or None on other machines."""
        return next((n for n in map(_unbranded, self.compatible) if re.fullmatch(r"tegra\d+", n)), None)

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Part numbers of carrier board and module."""
        return tuple(dict.fromkeys(part for name in self.compatible for part in re.findall(r"p\d{4}(?:-\d{4})?", name)))

    @property
    def profile(self) -> Profile | None:
        """The profile of the board, or None where its part number is in no profile."""
        return next((p for p in profiles().values() if any(map(p.has_part, self.parts))), None)

    @property
    def supported(self) -> bool:
        """Whether it is a Jetson with the chip of a supported board."""
        return any(p.soc == self.soc and not p.refused for p in profiles().values())

    @property
    def jetpack(self) -> str | None:
        """Version of JetPack: of the package nvidia-jetpack, else by the Jetson Linux release."""
        package = version_of(self.packages.get("nvidia-jetpack"))
        return package or _jetpack_by_l4t(self.l4t)

    @property
    def tensorrt(self) -> str | None:
        """Version of TensorRT by its Debian package."""
        return next((version_of(self.packages[name]) for name in TENSORRT_PACKAGES if name in self.packages), None)


def numbers(version: str) -> tuple[int, ...]:
    """Return a version such as 10.3.0 as numbers, to compare."""
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version))


def version_of(package: str | None) -> str | None:
    """Return the upstream version in a package's: 6.2 of 6.2+b77, 10.3.0.30 of 10.3.0.30-1+cuda12.5."""
    match = re.match(r"\d{1,9}(?:\.\d{1,9})*", package or "")
    return match[0] if match else None


def read_machine(root: Path | None = None) -> Machine:
    """Read what machine this is. Files that are missing or damaged leave their fact out.

    Args:
        root: of the file system; a captured tree may be given.
    """
    root = ROOT if root is None else root
    packages = _packages(root)
    memory = _memory_mb(root)
    return Machine(
        model=next(iter(_strings(root / "proc/device-tree/model")), None),
        compatible=_strings(root / "proc/device-tree/compatible"),
        l4t=_l4t(root),
        packages=packages,
        power_mode=_power_mode(root),
        power_modes=_power_modes(root),
        cuda=_cuda(root, packages),
        driver=next((f"/{p}" for p in DRIVERS if _exists(root / p)), None),
        memory_mb=memory.get("MemTotal"),
        available_mb=memory.get("MemAvailable"),
        swap_free_mb=memory.get("SwapFree"),
        zram="/zram" in _text(root / "proc/swaps"),
    )


def profile_for(device: str, root: Path | None = None) -> Profile | None:
    """Return the profile that a `--device` means: the one it names; with "auto" that of the board, where supported.

    Args:
        device: "auto", "cpu", "cuda" or the key of a profile.
        root: of the file system that "auto" looks at.

    Raises:
        UsageError: unknown name.
        EdgeClError: the board named is not supported.
    """
    if device not in DEVICES:
        return find_profile(device)
    found = read_machine(root).profile if device == "auto" else None
    return found if found and not found.refused else None


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # no right to look
        return False


def _strings(path: Path) -> tuple[str, ...]:
    """Read a property of the device tree: strings that each end with a zero byte."""
    return tuple(
        part for part in _text(path).split("\0") if part.strip() and part.isprintable() and "\ufffd" not in part
    )


def _unbranded(name: str) -> str:
    return name.removeprefix("nvidia,")


def _l4t(root: Path) -> str | None:
    """Read the release: "# R36 (release), REVISION: 4.3, GCID: ..." is 36.4.3."""
    match = re.match(
        r"\s*# R(\d{1,9}) \(release\), REVISION: (\d{1,9}(?:\.\d{1,9})*)", _text(root / "etc/nv_tegra_release")
    )
    return f"{match[1]}.{match[2]}" if match else None


def _jetpack_by_l4t(l4t: str | None) -> str | None:
    release = numbers(l4t or "")
    older = [known for known in JETPACK_BY_L4T if release and known[0] == release[0] and known <= release]
    return JETPACK_BY_L4T[max(older)] if older else None


def _packages(root: Path) -> Mapping[str, str]:
    """Read the versions of the installed packages that matter here from dpkg's own record."""
    text = _text(root / "var/lib/dpkg/status")
    wanted = re.compile(r"nvidia-jetpack|nvidia-l4t-core|tensorrt|libnvinfer\d+|python3-libnvinfer|cuda-cudart-[\d-]+")
    return {name: version for name, version in _installed(text) if wanted.fullmatch(name)}


def _installed(status: str) -> Iterator[tuple[str, str]]:
    for stanza in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): *(.*?)\s*$", stanza, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed") and "Package" in fields and "Version" in fields:
            yield fields["Package"], fields["Version"]


def _power_mode(root: Path) -> int | None:
    """Read the mode in force, which nvpmodel keeps as "pmode:0002", or as "pmode:0002 fmode:quiet" with the fan's."""
    match = re.match(r"\s*pmode:(\d{1,9})(?:\s|$)", _text(root / "var/lib/nvpmodel/status"))
    return int(match[1]) if match else None


def _power_modes(root: Path) -> Mapping[int, str]:
    """Read the names of the modes: a line "< POWER_MODEL ID=2 NAME=MAXN_SUPER >" each."""
    modes = re.compile(r"^<\s*POWER_MODEL\s+ID=(\d{1,9})\s+NAME=([^\s>]+)\s*>", re.MULTILINE)
    return {int(number): name for number, name in modes.findall(_text(root / "etc/nvpmodel.conf"))}


def _cuda(root: Path, packages: Mapping[str, str]) -> str | None:
    try:
        version = json.loads(_text(root / "usr/local/cuda/version.json"))["cuda"]["version"]
        if isinstance(version, str) and version_of(version):
            return version
    except (ValueError, LookupError, TypeError, RecursionError):
        pass  # missing, or damaged: the packages may say
    runtimes = [v for name, v in packages.items() if name.startswith("cuda-cudart-") and version_of(v)]
    return version_of(max(runtimes, key=numbers, default=None))


def _memory_mb(root: Path) -> dict[str, int]:
    lines = re.findall(r"^(\w+):\s+(\d{1,15}) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    return {name: int(kilobytes) // 1024 for name, kilobytes in lines}
