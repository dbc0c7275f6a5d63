"""The tutorial notebook, run from its first cell to its last on real weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


def of(notebook: Any, source: str) -> Any:
    """The result of the cell whose last line is this, up to a parenthesis."""
    (cell,) = (each for each in notebook.cells if each.source.splitlines()[-1].partition("(")[0] == source)
    return results(cell)[0].data


def results(cell: Any) -> Any:
    """The outputs of a cell; without ipywidgets, tqdm says that its bars will be plain."""
    return [each for each in cell.outputs if "IProgress not found" not in each.get("text", "")]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    return NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where).execute()


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5 and not any(cell.outputs or cell.execution_count for cell in code)


def test_every_cell_runs_and_shows_something(ran: Any) -> None:
    for cell in ran.cells:
        if cell.cell_type == "code":
            assert [each.output_type for each in results(cell)] == ["execute_result"], cell.source


def test_the_known_head_is_found(ran: Any) -> None:
    assert of(ran, "atlas.heads")["text/plain"].startswith("[(23, 4)")
    assert "image/png" in of(ran, "strict.plot.relations")
    assert "<img " in of(ran, "atlas")["text/html"]
    assert "Head 23.4" in of(ran, "card")["text/html"]


def test_the_page_is_in_its_cells(ran: Any) -> None:
    for source in ("atlas.explore", "card.explore"):
        shown = of(ran, source)["text/html"]
        assert shown.startswith("<iframe ") and len(shown) < 300_000
