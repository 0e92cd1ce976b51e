"""The container recipes: not built here, but read as Docker would read them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "devices/containers").glob("*.Dockerfile"))
INSTRUCTIONS = frozenset(
    [
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "ONBUILD",
        "RUN",
        "SHELL",
        "STOPSIGNAL",
        "USER",
        "VOLUME",
        "WORKDIR",
    ]
)
SET_BY_DOCKER = {"PATH"}  # of the base image


def read(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a recipe with their arguments: comments left out, continued lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, arguments.strip()) for word, _, arguments in (line.partition(" ") for line in joined.splitlines())]


def faults(text: str, context: Path) -> list[str]:
    """Return what Docker, or a reader, would find wrong with a recipe."""
    found, known = [], set(SET_BY_DOCKER)
    instructions = read(text)
    names = [name for name, _ in instructions]
    if set(names[: names.index("FROM")] if "FROM" in names else names) - {"ARG"}:
        found.append("FROM must come first, but for ARG")
    for name, arguments in instructions:
        if name not in INSTRUCTIONS:
            found.append(f"unknown instruction {name}")
        unknown = set(re.findall(r"\$\{(\w+)", arguments)) - known
        found += [f"{name} uses {variable}, which is not declared" for variable in sorted(unknown)]
        if name == "ARG":
            known.add(arguments.split("=")[0])
        elif name == "ENV":
            known |= {pair.split("=")[0] for pair in arguments.split()}
        elif name == "COPY":
            *sources, target = arguments.split()
            found += [f"COPY {source}: there is none" for source in sources if not (context / source).exists()]
            if len(sources) > 1 and not target.endswith("/"):
                found.append(f"COPY of several files to {target}, which is no folder")
        elif name == "RUN" and subprocess.run(["sh", "-n", "-c", arguments], capture_output=True).returncode:
            found.append(f"RUN is no shell command: {arguments}")
        elif name == "FROM":
            known = set(SET_BY_DOCKER)  # what is declared before serves FROM alone
            if not arguments.startswith("${REGISTRY}/nvidia/"):
                found.append(f"FROM {arguments} names a registry")
    return found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_recipe_reads_well(recipe: Path) -> None:
    text = recipe.read_text()
    assert faults(text, ROOT) == []
    assert "://" not in text  # no address of an index or of a wheel: build arguments give them
    names = [name for name, _ in read(text)]
    assert names.count("FROM") == names.count("ENTRYPOINT") == 1
    assert ("ENTRYPOINT", '["edge-cl"]') in read(text)


def test_there_is_one_for_each_jetpack() -> None:
    bases = {recipe.stem: dict(read(recipe.read_text()))["FROM"] for recipe in RECIPES}
    assert bases == {
        "jetpack6": "${REGISTRY}/nvidia/l4t-jetpack:${TAG}",
        "jetpack7": "${REGISTRY}/nvidia/tensorrt:${TAG}",
    }


@pytest.mark.parametrize(
    ("before", "after", "fault"),
    [
        ("WORKDIR", "WORKDIRS", "unknown instruction WORKDIRS"),
        ("COPY edge_cl", "COPY edge", "COPY edge: there is none"),
        ("LICENSE /src/", "LICENSE /src", "COPY of several files to /src, which is no folder"),
        ('ARG PACKAGES=""', "", "RUN uses PACKAGES, which is not declared"),
        ("ARG REGISTRY", "", "FROM uses REGISTRY, which is not declared"),
        ("FROM ${REGISTRY}/", "FROM example.com/", "FROM example.com/nvidia/"),
        ("ARG REGISTRY", "RUN true", "FROM must come first, but for ARG"),
        ("    fi \\", "    \\", "RUN is no shell command"),
    ],
)
def test_a_fault_of_a_recipe_is_found(before: str, after: str, fault: str) -> None:
    text = RECIPES[0].read_text()
    assert before in text
    assert any(fault in found for found in faults(text.replace(before, after), ROOT))


def test_the_package_can_be_built_from_what_a_recipe_copies() -> None:
    copied = {
        source
        for name, arguments in read(RECIPES[0].read_text())
        if name == "COPY"
        for source in arguments.split()[:-1]
    }
    assert copied >= {"pyproject.toml", "edge_cl", "export", "devices"}
    project = (ROOT / "pyproject.toml").read_text()
    for named in re.findall(r'^(?:readme|license-files) = \[?"([^"]+)"', project, re.MULTILINE):
        assert named in copied
