"""The texts in which heads are recorded and tasks asked: templates, and words as a tokenizer cuts them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.lenses.forward import prefix_ids
from headatlas.relations import TokenisedRelation, questions
from headatlas.relations.tokenising import reduced, written_bare

if TYPE_CHECKING:
    from headatlas.weights import Tokenizer

SLOT = "{}"
SHIPPED = Path(__file__).parent / "data" / "templates.json"
CUT_DIFFERENTLY = "source is cut differently in the text"
TARGET_CUT_DIFFERENTLY = "target is cut differently after the text"

Ids = tuple[int, ...]

BATCH_TOKENS = 1024
"""Tokens that go through the model together, for its activations' sake."""


# Running texts --------------------------------------------------------------------------------------

LENGTH = 48
"""Tokens of a running text, with those that the tokenizer itself puts first."""
TEXT_FILES = ("english", "languages", "code", "tables")


def shipped_texts() -> list[tuple[str, str]]:
    """The fixed texts as (kind, text), in order; where they come from is said in ``data/README.md``."""
    found = []
    for name in TEXT_FILES:
        body = files("headatlas.evidence").joinpath(f"data/{name}.txt").read_text(encoding="utf-8")
        pieces = re.split(r"^=== (.+)\n", body, flags=re.MULTILINE)[1:]
        found += [(kind, text.rstrip("\n")) for kind, text in zip(pieces[::2], pieces[1::2], strict=True)]
    return found


# Templates ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """A text with one slot for the source word."""

    before: str
    after: str

    @classmethod
    def of(cls, text: Any, where: str) -> Template:
        """Read a template."""
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
    """A file of templates."""

    context: tuple[Template, ...]  # for inference
    tasks: dict[str, Template]  # for ablation, by the name of the relation


def read_templates(path: str | Path | None = None) -> Templates:
    """The shipped templates, with those of a file in their place.

    Args:
        path: A JSON object with ``"context"`` (a list of templates), ``"tasks"`` (relation → template), or
            both. What it does not hold is as shipped; so are tasks of relations that it does not name.
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
    except (RecursionError, ValueError) as error:
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


# Words in texts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A text as token ids."""

    ids: Ids  # after whatever the tokenizer itself puts first
    source: int  # position of the source's last token


def encode(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """Token ids of texts, after whatever the tokenizer itself puts first."""
    if not texts:
        return []
    first = tuple(prefix_ids(tokenizer, ""))
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    return [first + tuple(row) for row in rows["input_ids"]]


def running_texts(tokenizer: Tokenizer) -> tuple[Ids, ...]:
    """The shipped texts that are long enough, each cut after ``LENGTH`` tokens."""
    rows = encode(tokenizer, [text for _, text in shipped_texts()])
    return tuple(row[:LENGTH] for row in rows if len(row) >= LENGTH)


def source_words(relation: TokenisedRelation) -> list[str]:
    """The source of each usable pair, as written."""
    return [relation.relation.pairs[pair.index].source for pair in relation.pairs]


def place(
    tokenizer: Tokenizer, template: Template, words: Sequence[str], sources: Sequence[Ids]
) -> list[Text | None]:
    """The text of each word, given its token ids in the atlas; None where it is cut differently there."""
    begun = encode(tokenizer, [template.before + word for word in words])
    whole = encode(tokenizer, [template.filled(word) for word in words])
    return [
        Text(full, len(start) - 1) if start[-len(ids) :] == ids and full[: len(start)] == start else None
        for start, full, ids in zip(begun, whole, sources, strict=True)
    ]


def in_template(
    relation: TokenisedRelation, tokenizer: Tokenizer, template: Template
) -> tuple[TokenisedRelation, dict[Ids, Text]]:
    """Restrict a relation to what a template can use, with the text of each of its sources.

    Returns:
        The relation with the pairs that stay, those dropped listed among ``dropped``; source ids → text.
    """
    words = source_words(relation)
    placed = place(tokenizer, template, words, [pair.source_ids for pair in relation.pairs])
    gone = tuple(word for word, text in zip(words, placed, strict=True) if text is None)
    stay = {pair.index: text for pair, text in zip(relation.pairs, placed, strict=True) if text is not None}
    pairs = [pair for pair in relation.pairs if pair.index in stay]
    texts = {} if relation.left_out else {pair.source_ids: stay[pair.index] for pair in pairs}
    return reduced(relation, pairs, {**relation.dropped, **({CUT_DIFFERENTLY: gone} if gone else {})}), texts


def answered(text: str, target: str) -> str:
    """A text with a target after it, a space between them unless the target is written without one."""
    return text + ("" if written_bare(target) else " ") + target


def continued(
    tokenizer: Tokenizer, texts: Sequence[str], targets: Sequence[Sequence[str]]
) -> list[list[Ids]]:
    """The ids that follow those of each text when each of its targets is written after it.

    A target whose text changes how the text before it is cut gives an empty tuple.
    """
    prompts = encode(tokenizer, texts)
    flat = [answered(text, target) for text, group in zip(texts, targets, strict=True) for target in group]
    rows = iter(encode(tokenizer, flat))
    return [
        [row[len(prompt) :] if (row := next(rows))[: len(prompt)] == prompt else () for _ in group]
        for prompt, group in zip(prompts, targets, strict=True)
    ]


# Tasks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Prompts of one relation, with the answers that are right."""

    relation: str
    template: str  # with ``{}``
    shots: int
    words: tuple[str, ...]  # sources asked
    prompts: tuple[Ids, ...]  # token ids of each prompt
    accepted: tuple[frozenset[int], ...]  # for each, the token ids that are right
    dropped: dict[str, tuple[str, ...]]  # reason → sources that cannot be asked

    @property
    def answers(self) -> list[list[int]]:
        """The token ids that are right for each prompt, in the order of a hash."""
        return [sorted(right) for right in self.accepted]

    def correct(self, answers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n] which answers are right."""
        return np.array(
            [int(a) in right for a, right in zip(answers, self.accepted, strict=True)], dtype=bool
        )


def make_task(
    relation: TokenisedRelation,
    tokenizer: Tokenizer,
    template: Template,
    *,
    shots: int,
    sources: int,
) -> Task:
    """Write a relation's task: questions in its task template, after examples.

    Examples are evenly spaced over the usable pairs, and not asked; of the others at most so many
    ``sources`` are, evenly spaced.
    """
    examples = spread(len(relation.pairs), shots)
    words = source_words(relation)
    lines = [
        f"{answered(template.filled(words[at]), relation.pairs[at].target_words[0])}\n" for at in examples
    ]
    asked = Template("".join(lines) + template.before, template.after)
    rest = [at for at in range(len(words)) if at not in set(examples)]
    pairs, words = [relation.pairs[at] for at in rest], [words[at] for at in rest]
    placed = place(tokenizer, asked, words, [pair.source_ids for pair in pairs])
    following = continued(
        tokenizer, [asked.filled(word) for word in words], [pair.target_words for pair in pairs]
    )
    usable: list[tuple[str, Ids, frozenset[int]]] = []
    dropped: dict[str, tuple[str, ...]] = {}
    for word, pair, text, after in zip(words, pairs, placed, following, strict=True):
        right = frozenset(token for token, ids in zip(pair.target_ids, after, strict=True) if ids == (token,))
        if text is not None and right:
            usable.append((word, text.ids, right))
        else:
            reason = CUT_DIFFERENTLY if text is None else TARGET_CUT_DIFFERENTLY
            dropped[reason] = (*dropped.get(reason, ()), word)
    chosen = [usable[at] for at in spread(len(usable), sources)]
    asked_words, prompts, accepted = zip(*chosen, strict=True) if chosen else ((), (), ())
    return Task(relation.relation.name, str(template), shots, asked_words, prompts, accepted, dropped)


def spread(n: int, wanted: int) -> list[int]:
    """At most ``wanted`` of n places, evenly spaced."""
    return sorted({int((at + 0.5) * n / wanted) for at in range(wanted)}) if n > wanted else list(range(n))
