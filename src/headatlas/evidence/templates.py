"""The texts in which heads are watched and tasks are asked: read from a file, checked for their slot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from headatlas.errors import HeadatlasError
from headatlas.relations import questions

SLOT = "{}"
SHIPPED = Path(__file__).parent / "data" / "templates.json"


@dataclass(frozen=True)
class Template:
    """A text with one slot for the source word.

    Attributes:
        before, after: What stands before and after the slot.
    """

    before: str
    after: str

    @classmethod
    def of(cls, text: Any, where: str) -> Template:
        """Read a template.

        Raises:
            HeadatlasError: It is no text with exactly one slot.
        """
        if not isinstance(text, str) or text.count(SLOT) != 1:
            raise HeadatlasError(
                f"{where}: the template {text!r} needs exactly one {SLOT}, for the source word."
            )
        before, after = text.split(SLOT)
        return cls(before, after)

    def filled(self, word: str) -> str:
        """The text with a word in its slot."""
        return self.before + word + self.after

    def __str__(self) -> str:
        return self.filled(SLOT)


@dataclass(frozen=True)
class Templates:
    """A file of templates.

    Attributes:
        context: For inference.
        tasks: For ablation, by the name of the relation.
    """

    context: tuple[Template, ...]
    tasks: dict[str, Template]


def read_templates(path: str | Path | None = None) -> Templates:
    """The shipped templates, with those of a file in their place.

    Args:
        path: A JSON object with ``"context"`` (a list of templates), ``"tasks"`` (relation → template), or
            both. What it does not hold is as shipped; so are tasks of relations that it does not name.

    Raises:
        HeadatlasError: The file cannot be read, or a template has no slot.
    """
    if path is None:
        return _shipped()
    found = _read(Path(path))
    return Templates(found.context or _shipped().context, {**_shipped().tasks, **found.tasks})


@cache
def _shipped() -> Templates:
    tasks = {name: _task(text, name) for name, text in questions().items()}
    return Templates(_read(SHIPPED).context, tasks)


def _read(path: Path) -> Templates:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HeadatlasError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise HeadatlasError(f"{path}: this is not JSON ({error}).") from error
    if not isinstance(body, dict) or not {"context", "tasks"} & body.keys():
        raise HeadatlasError(f'{path}: must be an object with "context" or "tasks", or both.')
    if unknown := sorted(body.keys() - {"context", "tasks", "note"}):
        raise HeadatlasError(f'{path}: {unknown[0]!r} means nothing here; use "context", "tasks" and "note".')
    context, tasks = body.get("context", []), body.get("tasks", {})
    if not isinstance(context, list) or not isinstance(tasks, dict):
        raise HeadatlasError(f'{path}: "context" must be a list of texts, "tasks" an object of texts.')
    if "context" in body and not context:
        raise HeadatlasError(f'{path}: "context" holds no text; leave it out for the shipped ones.')
    templates = tuple(Template.of(text, str(path)) for text in context)
    if len(set(templates)) < len(templates):
        raise HeadatlasError(f'{path}: "context" holds the same template twice.')
    return Templates(templates, {name: _task(text, f"{path}: {name}") for name, text in tasks.items()})


def _task(text: Any, where: str) -> Template:
    """A task's template; after a space of its own the answer's space would be a second one."""
    template = Template.of(text, where)
    if template.after.endswith(" "):
        raise HeadatlasError(
            f"{where}: the template {text!r} ends with a space; leave it out, the answer brings its own."
        )
    return template
