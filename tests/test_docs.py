"""The documentation is complete and true: every command and option, every link, every example."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import typer.main
from typer.testing import CliRunner

import headatlas
from headatlas.cli import app
from tests.test_house import modules

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def make_cli() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs" / "make_cli.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_is_up_to_date(make_cli: ModuleType) -> None:
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == make_cli.page(), "run `make docs`"


def test_every_command_has_an_example_and_no_other(make_cli: ModuleType) -> None:
    assert set(make_cli.EXAMPLES) == {" ".join(words) for words in make_cli.commands()}


def test_every_option_says_what_it_does(make_cli: ModuleType) -> None:
    for words in make_cli.commands():
        command = typer.main.get_command(app)
        for word in words:
            command = command.commands[word]
        assert command.help
        for parameter in command.params:
            assert parameter.name == "help" or parameter.help, f"{' '.join(words)}: {parameter.name}"


def shell_commands() -> list[str]:
    """Every ``headatlas …`` line of the pages' shell blocks."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            joined = block.replace("\\\n", " ")
            lines += [line for line in joined.splitlines() if line.startswith("headatlas ")]
    return lines


@pytest.mark.parametrize("line", dict.fromkeys(shell_commands()))
def test_commands_in_the_docs_parse(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    words = words[: next((at for at, word in enumerate(words) if word in (">", "|")), None)]
    command = typer.main.get_command(app)
    if words[0].startswith("--"):
        assert words[0] in {option for parameter in command.params for option in parameter.opts}
        return
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(line, list(words))  # raises on an unknown option or a missing argument


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_python_examples_use_names_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        compile(block, page.name, "exec")
        for name in re.findall(r"\bha\.(\w+)", block):
            assert name in headatlas.__all__, name
        for name in re.findall(r"\batlas\.(\w+)", block):
            assert hasattr(headatlas.Atlas, name) or name in (
                "dataset",
                "provenance",
                "thresholds",
                "path",
            ), name


def test_relation_files_in_the_docs_are_read_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "relations.md").read_text(encoding="utf-8")
    examples = re.findall(r"`(\w+\.(?:csv|tsv|json))`:\n\n```\w*\n(.*?)```", text, re.DOTALL)
    assert len(examples) == 5
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_relations").mkdir()
    for name, content in examples:
        (tmp_path / "my_relations" / name).write_text(content, encoding="utf-8")
    after = text[text.index(examples[-1][1]) :]
    command, printed = re.findall(r"```sh\n(.*?)```\n\n```text\n(.*?)```", after, re.DOTALL)[0]
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0
    assert result.stdout == printed
    said = result.stderr.splitlines()
    assert len(said) == len(examples) and all("at least 30 needed" in line for line in said)
    assert "```text\n" + said[1] + "\n```" in after


def documented() -> list[str]:
    """Modules whose docstrings have examples."""
    return [name for name, path in modules().items() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", documented())
def test_examples_in_docstrings_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_some_examples_do_run() -> None:
    finder = doctest.DocTestFinder()
    run = [
        example
        for name in documented()
        for test in finder.find(importlib.import_module(name))
        for example in test.examples
        if not example.options.get(doctest.SKIP)
    ]
    assert len(run) >= 4
