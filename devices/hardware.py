"""Checks of the board: which it is, JetPack, power mode, driver and memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from edge_cl.devices.finding import Finding, Subject
from edge_cl.devices.probe import Machine, numbers, version_of
from edge_cl.devices.profile import profiles

INSTALL_JETPACK = "sudo apt update && sudo apt install nvidia-jetpack"


def check_board(subject: Subject) -> Iterator[Finding]:
    """Say which board it is, and whether edge-cl supports it."""
    machine = subject.machine
    profile = machine.profile
    if profile is None:
        yield _unknown_board(machine)
    elif profile.refused:
        yield Finding("board", False, profile.name, "Use an Orin or Thor board.", profile.refused)
    else:
        yield Finding("board", True, f"{profile.name}, profile {profile.key}")


def _unknown_board(machine: Machine) -> Finding:
    if machine.soc is None:
        return Finding("board", True, "no Jetson")
    found = f"{machine.model or 'a Jetson'} ({machine.soc}, {' and '.join(machine.parts) or 'no part number'})"
    alike = [profile for profile in profiles().values() if profile.soc == machine.soc]
    supported = [profile.key for profile in alike if not profile.refused]
    if supported:
        mend = f"edge-cl learn --device {supported[0]} ..., or another profile: {', '.join(supported)}"
        return Finding("board", True, found, mend, "its part number is in no profile, so no defaults are chosen for it")
    why = alike[0].refused if alike else "edge-cl knows no profile with its chip"
    return Finding("board", False, found, "Use an Orin or Thor board.", why)


def check_jetpack(subject: Subject) -> Iterator[Finding]:
    """Hold the JetPack of a Jetson against the oldest that edge-cl supports on it."""
    machine, profile = subject.machine, subject.machine.profile
    if not machine.supported:
        return
    if machine.jetpack is None:
        cause = "neither the package nvidia-jetpack nor /etc/nv_tegra_release is here, which is usual in a container"
        yield Finding("jetpack", True, "version unknown", "Run edge-cl doctor on the board itself as well.", cause)
        return
    floor = profile.jetpack_floor if profile else "6.1"
    packaged = "nvidia-jetpack" in machine.packages
    found = f"JetPack {machine.jetpack}" + (f", Jetson Linux {machine.l4t}" if machine.l4t else "")
    if numbers(machine.jetpack) < numbers(floor):
        same = numbers(machine.jetpack)[0] == numbers(floor)[0]
        flash = f"Flash JetPack {floor} or newer with NVIDIA SDK Manager."
        cause = f"edge-cl needs JetPack {floor} or newer on this board"
        yield Finding("jetpack", False, found, f"{INSTALL_JETPACK}; or: {flash}" if same else flash, cause)
    elif not packaged:
        yield Finding("jetpack", True, found, INSTALL_JETPACK, "the package nvidia-jetpack is not installed")
    else:
        yield Finding("jetpack", True, found)


def check_power(subject: Subject) -> Iterator[Finding]:
    """Name the power mode, and a faster one where there is one."""
    machine = subject.machine
    if machine.power_mode is None:
        return
    modes = machine.power_modes
    name = modes.get(machine.power_mode, "of unknown name")
    found = f"mode {machine.power_mode} ({name})"
    best = max(modes, key=lambda number: _watts(modes[number]), default=machine.power_mode)
    if best != machine.power_mode and _watts(modes[best]) > _watts(name):
        cause = f"{modes[best]} is faster, where power supply and cooling allow it"
        yield Finding("power mode", True, found, f"sudo nvpmodel -m {best}", cause)
        return
    profile = machine.profile
    if profile and "MAXN_SUPER" in profile.power_modes.get("super", ()) and "MAXN_SUPER" not in modes.values():
        cause = "this board has faster Super modes, but /etc/nvpmodel.conf does not list them"
        yield Finding("power mode", True, found, "Flash JetPack 6.2 or newer with the Super configuration.", cause)
    else:
        yield Finding("power mode", True, found)


def _watts(mode: str) -> float:
    """Rank a mode by its name: MAXN_SUPER, then MAXN, then by watts (MODE_30W, 7W_AI)."""
    if mode.startswith("MAXN"):
        return math.inf if mode == "MAXN_SUPER" else 1e9
    match = re.search(r"(\d{1,4})W", mode)
    return float(match[1]) if match else 0.0


def check_driver(subject: Subject) -> Iterator[Finding]:
    """Look for the CUDA driver library and the CUDA runtime."""
    machine = subject.machine
    cuda = f"CUDA {machine.cuda}" if machine.cuda else "CUDA toolkit not found"
    if machine.driver:
        yield Finding("cuda", True, f"{cuda}, driver library {machine.driver}")
    elif not machine.supported:
        yield Finding("cuda", True, "no driver: edge-cl runs on the CPU")
    else:
        mend = "sudo apt install --reinstall nvidia-l4t-cuda; in a container: docker run --runtime nvidia ..."
        cause = "libcuda.so.1 is missing: part of Jetson Linux, brought into a container by NVIDIA's runtime"
        yield Finding("cuda", False, f"{cuda}, no driver library", mend, cause)


def check_memory(subject: Subject) -> Iterator[Finding]:
    """Hold the memory that is free against what a learn may take on this board."""
    machine, profile = subject.machine, subject.machine.profile
    if machine.memory_mb is None or machine.available_mb is None:
        return
    swap, free = machine.swap_free_mb or 0, machine.available_mb
    kind = " (zram: compressed, in the same memory)" if machine.zram and swap else ""
    found = f"{free} of {machine.memory_mb} MB free, {swap} MB of swap{kind}"
    budget = profile.defaults.memory_mb if profile and profile.defaults else 0
    if free >= budget:
        yield Finding("memory", True, found)
        return
    mend = f"End other programs, or learn with less: edge-cl learn --memory {max(free * 3 // 4, 1)}MB ..."
    real_swap = 0 if machine.zram else swap
    if free + real_swap >= budget:
        cause = f"a learn may take {budget} MB on this board, and would swap, which is slow"
        yield Finding("memory", True, found, mend, cause)
    else:
        cause = f"a learn may take {budget} MB on this board; the kernel would end a program"
        yield Finding("memory", False, found, mend, cause)


def same_cuda(built_for: str | None, machine: Machine) -> bool:
    """Return whether a library built for one CUDA suits a machine's, as far as is known: same major version."""
    ours = version_of(machine.cuda)
    return not built_for or not ours or numbers(built_for)[:1] == numbers(ours)[:1]
