"""An atlas of a small random model with that model open, and a client that asks as a browser on it would."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from headatlas.atlas import Atlas
from headatlas.options import Compute
from headatlas.progress import silent
from headatlas.serving.answering import Answers
from headatlas.serving.guard import Access, Guard
from headatlas.serving.run import application, open_answers
from tests.kinds import check_kinds
from tests.writing.conftest import mapped


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mapped Gemma 3 (groups, norms after attention), lens neutral."""
    return mapped(tmp_path_factory.mktemp("serving") / "gemma3", "gemma3", "neutral")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mapped GPT-2 (values with a bias), lens maps."""
    return mapped(tmp_path_factory.mktemp("serving") / "gpt2", "gpt2", "maps")


def held(folder: Path) -> Answers:
    return open_answers(Atlas.open(folder), None, None, Compute(), silent)


@pytest.fixture(scope="session")
def answers(gemma: Path) -> Answers:
    torch.set_num_threads(1)
    return held(gemma)


@pytest.fixture(scope="session")
def app(answers: Answers) -> Guard:
    return application(answers.atlas, answers, Access("127.0.0.1", None))


def client_of(app: Guard, **headers: str) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1:8000", headers=headers, raise_server_exceptions=False)


@pytest.fixture
def client(app: Guard) -> Iterator[TestClient]:
    with client_of(app) as found:
        yield found


def told(response: Any, status: int = 200) -> Any:
    """The body of an answer of this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    check_kinds(response.json())
    return response.json()
