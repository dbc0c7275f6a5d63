"""The structure of the package: who may import whom, what stays free of torch, how long a module may be."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"

ORDER = (
    *("errors", "showing", "options", "progress", "addresses", "files", "devices"),
    *("weights", "architectures", "relations", "scoring", "atlas", "arrangement"),
    *("lenses", "mapping", "evidence", "looking", "writing", "describing", "recipes"),
    *("figures", "report", "serving", "outputs", "cli"),
)
"""Data flow from left to right; a folder imports only from itself and from those on its left."""

NO_TORCH = (
    *(
        "errors",
        "showing",
        "options",
        "progress",
        "addresses",
        "files",
        "scoring",
        "relations",
        "atlas",
        "arrangement",
    ),
    *("describing", "recipes", "figures", "report"),
)
MOST_LINES = 700

# Installed for transformers, which imports them when a model or tokenizer asks for it.
FOR_OTHERS = {"protobuf", "sentencepiece"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((SOURCE / "headatlas").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> tuple[tuple[str, bool], ...]:
    """What a module imports, and whether only inside a function or for the type checker."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    return tuple(_imports(tree, inside=False))


def _imports(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            for alias in child.names:
                whole = f"{child.module}.{alias.name}"
                yield (whole if whole in modules() else str(child.module)), inside
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        typed = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        yield from _imports(child, inside or later or typed)


def folder(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_folder_has_its_place() -> None:
    assert {folder(name) for name in modules()} - {"", "__main__"} <= set(ORDER)


def test_imports_flow_one_way() -> None:
    wrong = []
    for name in modules():
        here = folder(name)
        if here in ("", "__main__"):
            continue
        for target, _ in imports(name):
            there = folder(target)
            if not target.startswith("headatlas.") or there == here:
                continue
            if ORDER.index(there) > ORDER.index(here):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def reachable(start: str) -> dict[str, str]:
    """Everything imported at module level from `start` on, with the module that imports it."""
    found: dict[str, str] = {}
    queue = [start]
    while queue:
        name = queue.pop()
        for target, inside in imports(name):
            if inside:
                continue
            packages = [target.rsplit(".", cut)[0] for cut in range(target.count(".") + 1)]
            for each in packages if target.startswith("headatlas") else [target]:
                if each not in found:
                    found[each] = name
                    if each in modules():
                        queue.append(each)
    return found


@pytest.mark.parametrize("name", [name for name in modules() if folder(name) in NO_TORCH])
def test_reading_an_atlas_needs_no_torch(name: str) -> None:
    heavy = {"torch", "transformers", "gguf", "huggingface_hub"}
    assert not {target: by for target, by in reachable(name).items() if target.split(".")[0] in heavy}


def test_an_atlas_is_drawn_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.synthetic import make_atlas\n"
        "from headatlas.outputs import write_outputs\n"
        f"write_outputs(make_atlas(Path({str(tmp_path)!r}) / 'atlas.zarr', 2, 2), Path({str(tmp_path)!r}))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize("name", modules())
def test_modules_are_short_and_say_what_they_are(name: str) -> None:
    text = modules()[name].read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES
    assert ast.get_docstring(ast.parse(text)), f"{name} has no docstring"


@pytest.mark.parametrize("name", modules())
def test_first_lines_say_what_a_thing_is(name: str) -> None:
    """No docstring begins with a question or points at the one before it."""
    found = re.findall(
        r'^ *"""((?:What|Where|The same)\b.*)', modules()[name].read_text(encoding="utf-8"), re.M
    )
    assert not found


def test_no_name_stands_in_two_rooms() -> None:
    """A public function or class is found by its name alone."""
    rooms: dict[str, set[str]] = {}
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                rooms.setdefault(node.name, set()).add(folder(name))
    assert {each: there for each, there in rooms.items() if len(there) > 1} == {}


def test_dependencies_are_those_that_are_imported() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["cluster"]]
    declared = {re.split(r"[<>=\[;]", text)[0] for text in needed}
    used = set()
    for name in modules():
        for target, _ in imports(name):
            top = target.split(".")[0]
            if top != "headatlas" and top not in sys.stdlib_module_names:
                used.add(top)
    assert used == declared - FOR_OTHERS


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    names = {re.split(r"[<>=\[;]", text)[0] for group in groups for text in group}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert names | {"hatchling"} == set(pinned)
    assert pinned["torch"] == "2.13.0"


def test_the_version_is_said_once() -> None:
    import headatlas

    assert importlib.metadata.version("headatlas") == headatlas.__version__
    assert f"version: {headatlas.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {headatlas.__version__}" in (ROOT / "CHANGELOG.md").read_text()
