"""docs/json.md against what the commands print: every field is named, of the type named, and none is named in vain."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any
from unittest import mock

import pytest
from small import BACKBONE, IMAGE_SIZE, copied, drawn, edge_cl, write_looks, write_weights
from typer.core import TyperGroup
from typer.main import get_command

from edge_cl import Learner, benchmark, latency
from edge_cl.benchmark import ARMS, LearnRow
from edge_cl.cli import app
from edge_cl.export import compiler, engines, formats
from edge_cl.export.bundle import Bundle, BundleError
from edge_cl.export.exporter import Exported
from edge_cl.export.ladder import Prepared
from edge_cl.latency import PredictRow

PAGE = (Path(__file__).parents[1] / "docs/json.md").read_text()
TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "null": (NoneType,),
    "any": (object,),
}
Fields = Mapping[str, str]  # type by path: "a[].b", "a.<class>"


def read_page(text: str) -> tuple[dict[str, Fields], dict[str, list[Any]]]:
    """Return the fields and the examples of every command, by its heading."""
    fields, examples = {}, {}
    for part in re.split(r"^##+ ", text, flags=re.MULTILINE)[1:]:
        name = part.partition("\n")[0]
        rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", part, re.MULTILINE)
        assert len(dict(rows)) == len(rows), f"{name} names a field twice"
        if rows:
            fields[name] = dict(rows)
            examples[name] = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", part, re.M | re.S)]
    fields["log --report"] = {**fields["learn"], **fields["log --report"]}  # as it says
    return fields, examples


FIELDS, EXAMPLES = read_page(PAGE)
EXPORT = {f"export.{path}": kind for path, kind in FIELDS["export"].items()}  # as `learn` says
EXPORTING = {  # by command: the fields of its `export`
    "learn": EXPORT,
    **dict.fromkeys(("rename", "forget", "rollback"), EXPORT | {"export.error": "string"}),
}


def leaves(value: Any, known: Sequence[str], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of what holds no further fields; names that are data get the page's word for them."""
    if isinstance(value, dict) and (value or not path):
        word = re.compile(re.escape(f"{path}." if path else "") + r"<\w+>")
        named = [match[0] for other in known if (match := word.match(other))]
        for key, inner in value.items():
            yield from leaves(inner, known, named[0] if named else f"{path}.{key}".removeprefix("."))
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for inner in value:
            yield from leaves(inner, known, f"{path}[]")
    else:
        yield path, value


def fits(value: Any, kind: str) -> bool:
    """Return whether a value is of a type as the page names it."""
    if kind.startswith("list of "):
        return isinstance(value, list) and all(fits(inner, kind.removeprefix("list of ")) for inner in value)
    names = kind.split(" or ")
    if isinstance(value, bool):
        return "boolean" in names or "any" in names
    return any(isinstance(value, TYPES[name]) for name in names)


def faults(value: Any, fields: Fields) -> list[str]:
    """Return what an object has that the page does not name, or names otherwise."""
    found = []
    for path, inner in leaves(value, list(fields)):
        if path in fields:
            if not fits(inner, fields[path]):
                found.append(f"{path} is {inner!r}, not {fields[path]}")
        elif inner not in ([], {}) or not any(re.match(re.escape(path) + r"(\[\])?(\.|$)", other) for other in fields):
            found.append(f"{path} is not named")
    return found


# -- what the commands print --------------------------------------------


@pytest.fixture(scope="module")
def printed(taught: Learner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What every command printed, by its heading: one run or more, which together print every field."""
    root = tmp_path_factory.mktemp("printed")
    store = copied(taught, root / "store").store.path
    with drawn(), mock.patch.dict("os.environ", {"EDGE_CL_STORE": str(store)}):
        found = {**_stores(root), **_learns(root), **_answers(root)}
        return {**found, **_exports(root), **_versions(root), **_benchmarks(root)}


def _json(*args: object, code: int = 0) -> Any:
    run = edge_cl(*args, "--json")
    assert run.code == code, run.err
    return json.loads(run.out)


def _stores(root: Path) -> dict[str, list[Any]]:
    weights = write_weights(root / "weights.safetensors")
    tiny = ("--backbone", BACKBONE, "--weights", weights, "--image-size", IMAGE_SIZE, "--patch-stride", 12)
    return {
        "init": [_json("init", "--store", root / "shipped"), _json("init", "--store", root / "tiny", *tiny)],
        "init --backbone list": [_json("init", "--backbone", "list")],
        "doctor": [json.loads(edge_cl("doctor", "--json").out)],  # printed whatever it finds
    }


def _learns(root: Path) -> dict[str, list[Any]]:
    """Learn twins, with all that a learn may be given; then nothing new, with a bundle that cannot be written."""
    twins = root / "twins"
    for k in range(3):  # nothing tells them apart: some are mistaken
        write_looks(twins, {f"twin {k}": 12}, 12, first=100 * k)
    (twins / "twin 0" / "broken.png").write_bytes(b"x")
    strange = write_looks(root / "strange", {"x": 16}, 4)
    limits = ("--time", "1h", "--memory", "64GB", "--method", "prototype")
    given = ("learn", "--new-classes", twins, "--update", "--negatives", strange, *limits)
    looked = _json(*given, "--dry-run")
    with mock.patch.object(formats, "export_bundle", return_value=Exported(mock.Mock(), 0.5, 100, True, ("x",))):
        learned = _json(*given, "--export", root / "bundle")
    with mock.patch.object(formats, "export_bundle", side_effect=BundleError("Full.")):
        unexported = _json(*given, "--export", root / "bundle", code=1)
    return {
        "learn": [learned, unexported, _json(*given)],
        "learn --dry-run": [looked],
        "log --report": [_json("log", "--report")],
    }


def _answers(root: Path) -> dict[str, list[Any]]:
    fresh, broken = root / "twins", root / "twins" / "twin 0" / "broken.png"
    return {
        "predict": [_json("predict", fresh / "twin 1", broken), _json("predict", fresh / "twin 1", "--rule", "base")],
        "eval": [_json("eval", fresh), _json("eval", fresh, "--unknown", root / "strange")],
        "classes": [_json("classes")],
    }


def _exports(root: Path) -> dict[str, list[Any]]:
    engine = Prepared(Path("bundle/engines/prefix.engine"), "built", "fp16", 0.001)
    with (
        mock.patch.object(formats, "export_bundle", return_value=Exported(mock.Mock(), 0.5, 100, True, ("x",))),
        mock.patch.object(compiler, "TensorRTCompiler"),
        mock.patch.object(engines, "prepare_engines", return_value={"prefix": engine}),
        mock.patch.object(Bundle, "open"),
    ):
        bundles = [_json("export", root / "bundle", "--format", name) for name in ("onnx", "tensorrt")]
    return {"export": bundles, "export --format peft": [_json("export", root / "peft", "--format", "peft")]}


def _versions(root: Path) -> dict[str, list[Any]]:
    with mock.patch.object(formats, "export_bundle", return_value=Exported(mock.Mock(), 0.5, 100, True, ("x",))):
        renamed = _json("rename", "twin 0", "one", "--export", root / "bundle")
    with mock.patch.object(formats, "export_bundle", side_effect=BundleError("Full.")):
        forgotten = _json("forget", "one", "--export", root / "bundle", code=1)
    return {
        "rename": [renamed],
        "forget": [forgotten],
        "log": [_json("log")],
        "rollback": [_json("rollback")],
        "prune": [_json("prune", "--keep", 1, "--dry-run"), _json("prune", "--keep", 1)],
    }


def _benchmarks(root: Path) -> dict[str, list[Any]]:
    """Have the commands sum up rows: to measure them takes minutes."""
    learned = [LearnRow(1, 0, arm, 2, 10.0, 12.0, 900.0, 700.0, 950.0, 100.0, 0.9) for arm in ARMS]
    bare = PredictRow(latency.BARE, "onnxruntime", "", "fp32", 0, "", 10.0, 11.0, 1.0, 90.0, None, None)
    routed = PredictRow("1 task", "torch", "shared", "fp32", 1, "routed", 10.0, 11.0, 1.0, 90.0, 0.5, 80.0)
    for part, first in (("train", 0), ("test", 50)):
        write_looks(root / "data" / part, {"a": 0, "b": 5}, 2, first=first)
    weights = ("--backbone", BACKBONE, "--weights", root / "weights.safetensors", "--image-size", IMAGE_SIZE)
    cheapest = (*weights, "--device", "cpu", "--increment", 1, "--method", "ncm")
    with (
        mock.patch.object(benchmark, "learn_rows", return_value=iter(learned)),
        mock.patch.object(latency, "measure", return_value=[bare, routed]),
    ):
        return {
            "benchmark learn": [_json("benchmark", "learn", root / "data", "--output", root / "learn")],
            "benchmark accuracy": [
                _json("benchmark", "accuracy", root / "data", "--output", root / "accuracy", *cheapest)
            ],
            "benchmark predict": [_json("benchmark", "predict", "--output", root / "predict")],
        }


# -- the page -----------------------------------------------------------


def _commands(group: Any, before: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _commands(command, f"{name} ")
        elif any("--json" in parameter.opts for parameter in command.params):
            yield before + name


def test_every_command_has_a_section() -> None:
    named = {re.sub(r" --.*", "", heading) for heading in FIELDS}
    assert named == set(_commands(get_command(app)))
    assert len(named) > 12


@pytest.mark.parametrize("command", FIELDS)
def test_what_is_printed_is_what_is_named(printed: dict[str, list[Any]], command: str) -> None:
    own = FIELDS[command]
    allowed = {**EXPORTING.get(command, {}), **own}
    assert [fault for value in printed[command] for fault in faults(value, allowed)] == []
    found = {path for value in printed[command] for path, _ in leaves(value, list(allowed))}
    absent = {path for path in own if path.startswith("export.")} if command == "log --report" else set()
    containers = {path for path in own if any(other.startswith(f"{path}.") for other in found)}
    assert set(own) - found - containers - absent == set()


@pytest.mark.parametrize("command", FIELDS)
def test_examples_are_such_objects(command: str) -> None:
    allowed = {**EXPORTING.get(command, {}), **FIELDS[command]}
    assert EXAMPLES[command]
    assert [fault for value in EXAMPLES[command] for fault in faults(value, allowed)] == []


def test_tables_and_lines_are_narrow() -> None:
    assert [line for line in PAGE.splitlines() if len(line) > 120] == []


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ({"a": 1, "b": [{"c": None}, {"c": "x"}], "m": {"cup": 0.5}, "l": [0.5, None]}, []),
        ({"a": 1.0}, ["a is 1.0, not integer"]),
        ({"a": True}, ["a is True, not integer"]),
        ({"a": None}, ["a is None, not integer"]),
        ({"b": [{"c": "x", "d": 1}]}, ["b[].d is not named"]),
        ({"b": [], "m": {}, "n": []}, ["n is not named"]),
        ({"m": {"cup": "x"}}, ["m.<class> is 'x', not number"]),
        ({"l": ["x"]}, ["l is ['x'], not list of number or null"]),
    ],
)
def test_what_is_not_as_named_is_found(value: Any, found: list[str]) -> None:
    fields = {"a": "integer", "b[].c": "string or null", "m.<class>": "number", "l": "list of number or null"}
    assert faults(value, fields) == found
