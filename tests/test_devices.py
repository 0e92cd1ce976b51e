"""Profiles and probe, on file trees that stand for machines (tests/device_trees/SOURCE.md)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edge_cl.config import LearnConfig
from edge_cl.devices import Machine, find_profile, profile_for, profiles, read_machine
from edge_cl.devices.profile import PROFILES_DIR, Profile, read_profile, tomllib
from edge_cl.errors import EdgeClError, UsageError

TREES = Path(__file__).parent / "device_trees"


@pytest.mark.parametrize(
    ("tree", "profile", "l4t", "jetpack", "mode", "cuda", "tensorrt", "memory_mb"),
    [
        ("orin_nano_8gb", "orin-nano-8gb", "36.4.3", "6.2", "15W", "12.6.11", "10.3.0.30", 7619),
        ("agx_orin_64gb", "agx-orin-64gb", "36.4.0", "6.1", "MAXN", "12.6.68", "10.3.0.30", 62841),
        ("thor_t5000", "thor-t5000", "38.2.0", "7.0", "120W", "13.0.0", "10.13.3.9", 125806),
        ("xavier_nx", "xavier-nx", "35.2.1", "5.1", "MODE_15W_6CORE", "11.4.298", "8.5.2", 6694),
        ("pc", None, None, None, None, "12.8.90", None, 32000),
        ("damaged", None, None, None, None, None, None, None),
        ("no such tree", None, None, None, None, None, None, None),
    ],
)
def test_a_machine_is_read_from_its_files(
    tree: str,
    profile: str | None,
    l4t: str | None,
    jetpack: str | None,
    mode: str | None,
    cuda: str | None,
    tensorrt: str | None,
    memory_mb: int | None,
) -> None:
    machine = read_machine(TREES / tree)
    assert (machine.profile.key if machine.profile else None) == profile
    assert (machine.l4t, machine.jetpack, machine.cuda, machine.tensorrt) == (l4t, jetpack, cuda, tensorrt)
    assert machine.power_modes.get(-1 if machine.power_mode is None else machine.power_mode) == mode
    assert machine.memory_mb == memory_mb


def test_the_device_tree_is_read_string_by_string() -> None:
    machine = read_machine(TREES / "orin_nano_8gb")
    assert machine.model == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert machine.compatible == ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")
    assert (machine.soc, machine.parts) == ("tegra234", ("p3768-0000", "p3767-0005"))


def test_super_is_a_power_mode_of_the_same_part(tmp_path: Path) -> None:
    tree = shutil.copytree(TREES / "orin_nano_8gb", tmp_path / "tree")
    (tree / "proc/device-tree/compatible").write_bytes(b"nvidia,p3768-0000+p3767-0005\0nvidia,tegra234\0")
    assert read_machine(tree).profile == read_machine(TREES / "orin_nano_8gb").profile


def test_only_installed_packages_count() -> None:
    packages = read_machine(TREES / "orin_nano_8gb").packages
    assert "libnvinfer8" not in packages  # removed, its configuration left behind
    assert packages["nvidia-jetpack"] == "6.2+b77"


def test_driver_memory_and_swap() -> None:
    machine = read_machine(TREES / "orin_nano_8gb")
    assert machine.driver == "/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1"
    assert (machine.available_mb, machine.swap_free_mb, machine.zram) == (5759, 3809, True)
    assert not read_machine(TREES / "pc").zram


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("# R32 (release), REVISION: 7.2, GCID: 1, BOARD: t186ref", "32.7.2", "4"),
        ("# R35 (release), REVISION: 1.0, GCID: 1, BOARD: t186ref", "35.1.0", "5.0.2"),
        ("# R35 (release), REVISION: 4.1, GCID: 1, BOARD: t186ref", "35.4.1", "5.1.2"),
        ("# R36 (release), REVISION: 3.0, GCID: 1, BOARD: generic", "36.3.0", "6.0"),
        ("# R36 (release), REVISION: 4.7, GCID: 1, BOARD: generic", "36.4.7", "6.2.1"),
        ("# R36 (release), REVISION: 5.0, GCID: 1, BOARD: generic", "36.5.0", "6.2.2"),
        ("# R38 (release), REVISION: 2.2, GCID: 1, BOARD: generic", "38.2.2", "7.0"),
        ("# R38 (release), REVISION: 4.0, GCID: 1, BOARD: generic", "38.4.0", "7.1"),
        ("# R39 (release), REVISION: 2.0, GCID: 1, BOARD: generic", "39.2.0", "7.2"),
        ("# R99 (release), REVISION: 1.0", "99.1.0", None),
        ("# R" + "9" * 5000 + " (release), REVISION: 1.0", None, None),
        ("", None, None),
    ],
)
def test_jetpack_by_release_where_its_package_is_absent(
    tmp_path: Path, release: str, l4t: str | None, jetpack: str | None
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text(release)
    machine = read_machine(tmp_path)
    assert (machine.l4t, machine.jetpack) == (l4t, jetpack)


def test_the_package_of_jetpack_beats_the_table() -> None:
    assert Machine(l4t="36.4.3", packages={"nvidia-jetpack": "6.2.2+b24"}).jetpack == "6.2.2"


@pytest.mark.parametrize(
    ("status", "mode"),
    [
        ("pmode:0002", 2),
        ("pmode:0002 \n", 2),
        ("pmode:0000 fmode:quiet\n", 0),
        ("pmode:0003\nfmode:cool", 3),
        ("pmode:2x", None),
        ("pmode:2x fmode:quiet", None),
        ("fmode:1", None),
        ("", None),
    ],
)
def test_the_power_mode_in_force(tmp_path: Path, status: str, mode: int | None) -> None:
    (tmp_path / "var/lib/nvpmodel").mkdir(parents=True)
    (tmp_path / "var/lib/nvpmodel/status").write_text(status)
    assert read_machine(tmp_path).power_mode == mode


@pytest.mark.parametrize("content", ['{"cuda": []}', '{"cuda": {"version": 12}}', "[" * 100000, "null", "\0"])
def test_damaged_cuda_versions_are_passed_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "usr/local/cuda").mkdir(parents=True)
    (tmp_path / "usr/local/cuda/version.json").write_text(content)
    assert read_machine(tmp_path).cuda is None


def test_what_may_not_be_looked_at_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, **_: object) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    for name in ("read_bytes", "exists"):
        monkeypatch.setattr(Path, name, denied)
    assert read_machine(Path("/")) == Machine()


# Profiles ------------------------------------------------------------------------------------------------------------


def test_every_board_is_either_supported_or_refused_with_a_reason() -> None:
    assert len(profiles()) == 10
    for profile in profiles().values():
        assert bool(profile.jetpack_floor) != bool(profile.refused)
        assert bool(profile.defaults) != bool(profile.refused)
    parts = [part for profile in profiles().values() for part in profile.parts]
    assert len(parts) == len(set(parts))


@pytest.mark.parametrize("key", sorted(profiles()))
def test_the_facts_of_a_profile_agree_with_each_other(key: str) -> None:
    profile = profiles()[key]
    operations = {"7.2": 1024, "8.7": 2048, "11.0": 8192}[profile.compute_capability]
    assert profile.fp16_tflops == pytest.approx(profile.sm_count * operations * profile.sm_mhz * 1e-6, rel=0.01)
    if profile.super_mode:
        boosted = profile.sm_count * operations * profile.super_mode.sm_mhz * 1e-6
        assert profile.super_mode.fp16_tflops == pytest.approx(boosted, rel=0.01)
    if profile.defaults:
        assert (
            profile.defaults.memory_mb <= min(profile.memory_gb) * 1024 // 2
        )  # half at most: a robot has other programs
        assert profile.defaults.precision == "fp16"
    assert profile.key == key
    assert "super" in profile.power_modes or "MAXN_SUPER" not in profile.power_modes.get("standard", ())


def test_a_board_of_unknown_part_is_recognised_by_none() -> None:
    profile = find_profile("thor-t4000")
    assert profile.parts == ()
    assert profile.certainty["parts"].startswith("unconfirmed")
    assert Machine(compatible=("nvidia,p4071-0000+p3834-0004", "nvidia,tegra264")).profile is None


@pytest.mark.parametrize(
    ("part", "expected"),
    [("p3668", True), ("p3668-0001", True), ("p3668-0003", True), ("p3667-0001", False), ("p36681", False)],
)
def test_a_part_without_variant_stands_for_all_of_them(part: str, expected: bool) -> None:
    assert profiles()["xavier-nx"].has_part(part) is expected


NANO = (PROFILES_DIR / "orin-nano-8gb.toml").read_text()


@pytest.mark.parametrize(
    ("before", "after", "faults"),
    [
        ("sm_count = 8", "sm_cuont = 8", ["sm_count is missing.", "sm_cuont is unknown. Did you mean sm_count"]),
        ("sm_count = 8", 'sm_count = "8"', ["sm_count must be int, not '8'."]),
        ("sm_count = 8", "sm_count = true", ["sm_count must be int, not True."]),
        ('name = "Jetson', 'title = "Jetson', ["name is missing.", "title is unknown."]),
        ('jetpack_floor = "6.1"', "", ["either jetpack_floor or refused"]),
        ("batch = 16", "", ["defaults.batch is missing."]),
        (
            "batch = 16",
            "batches = 16",
            ["defaults.batch is missing.", "defaults.batches is unknown. Did you mean batch"],
        ),
        ("sm_mhz = 1020", 'sm_mhz = "1020"', ["super.sm_mhz must be int or float"]),
        ("standard = [", "normal = [", ["power_modes.normal is unknown."]),
        (
            ' = ["compute_capability"]',
            ' = ["dla_count"]',
            ["compute_capability has no source.", "dla_count has 2 sources"],
        ),
        (' = ["compute_capability"]', ' = ["compute_capability", "price"]', ["sources names price"]),
        ("defaults = ", "default = ", ["certainty names default"]),
        ('"chosen: ', '"guessed: ', ["certainty of defaults must begin with one of calculated, unconfirmed, chosen"]),
        ("name = ", "name = = ", ["Cannot read the profile"]),
    ],
)
def test_a_bad_profile_is_refused_with_every_fault(tmp_path: Path, before: str, after: str, faults: list[str]) -> None:
    path = tmp_path / "board.toml"
    path.write_text(NANO)
    assert replace(read_profile(path), key="orin-nano-8gb") == profiles()["orin-nano-8gb"]
    assert before in NANO
    path.write_text(NANO.replace(before, after))
    with pytest.raises(EdgeClError) as error:
        read_profile(path)
    for fault in faults:
        assert fault in str(error.value)
    assert str(path) in error.value.mend


def test_a_profile_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeClError, match="Cannot read the profile"):
        read_profile(tmp_path / "no.toml")


# What --device means ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "tree", "expected"),
    [
        ("auto", "orin_nano_8gb", "orin-nano-8gb"),
        ("auto", "xavier_nx", None),
        ("auto", "pc", None),
        ("cpu", "orin_nano_8gb", None),
        ("cuda", "orin_nano_8gb", None),
        ("thor-t4000", "pc", "thor-t4000"),
        ("agx-orin-32gb", "orin_nano_8gb", "agx-orin-32gb"),
    ],
)
def test_the_profile_that_a_device_means(device: str, tree: str, expected: str | None) -> None:
    profile = profile_for(device, TREES / tree)
    assert (profile.key if profile else None) == expected


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ("orin-nano-8g", UsageError, r"Unknown device 'orin-nano-8g'.\nDid you mean orin-nano-8gb"),
        ("cdua", UsageError, r"Unknown device 'cdua'.\nDid you mean cuda"),
        ("xavier-nx", EdgeClError, r"Jetson Xavier NX is not supported: its last JetPack is 5"),
    ],
)
def test_a_device_that_cannot_be(device: str, error: type[EdgeClError], message: str) -> None:
    with pytest.raises(error, match=message):
        profile_for(device)


def test_a_profile_sets_memory_and_pictures_at_once_alone() -> None:
    settings, base = find_profile("orin-nano-4gb").settings(LearnConfig(seed=3)), LearnConfig(seed=3)
    assert (settings.micro_batch, settings.memory_mb) == (8, 1536)
    assert replace(settings, micro_batch=base.micro_batch, memory_mb=base.memory_mb) == base


def test_neither_the_probe_nor_a_profile_needs_torch() -> None:
    code = "import sys, edge_cl.cli; assert 'edge_cl.devices' not in sys.modules; import edge_cl.devices"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_the_package_holds_the_profiles() -> None:
    tools = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "edge_cl.devices.profiles" in tools["packages"]
    assert tools["package-data"]["edge_cl.devices.profiles"] == ["*.toml"]


def _row(profile: Profile) -> str:
    def number(value: float) -> str:
        return f"{value:g}"

    boost = profile.super_mode
    clock = number(profile.sm_mhz) + (f" ({number(boost.sm_mhz)})" if boost else "")
    bandwidth = number(profile.bandwidth_gb_s)
    if boost and boost.bandwidth_gb_s != profile.bandwidth_gb_s:
        bandwidth += f" ({number(boost.bandwidth_gb_s)})"
    defaults = profile.defaults
    cells = [
        f"`{profile.key}`",
        ", ".join(profile.parts) or "unknown",
        profile.compute_capability,
        "/".join(map(str, profile.memory_gb)),
        bandwidth,
        f"{profile.sm_count} @ {clock}" + ("?" if "sm_mhz" in profile.certainty else ""),
        number(profile.fp16_tflops) + (f" ({number(boost.fp16_tflops)})" if boost else ""),
        str(profile.dla_count),
        profile.jetpack_floor or "refused",
        f"{defaults.memory_mb} MB, {defaults.batch}" if defaults else "",
    ]
    return f"| {' | '.join(cells)} |"


def test_the_documented_table_is_that_of_the_profiles() -> None:
    text = (Path(__file__).parents[1] / "docs/boards.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("| `")] == [*map(_row, profiles().values())]
