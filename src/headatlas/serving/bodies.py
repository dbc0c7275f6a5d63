"""Questions and answers, field by field: by these models bodies are checked and the API is described."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.json_schema import models_json_schema

from headatlas import __version__
from headatlas.relations.relation import MAX_WORD_CHARACTERS

MOST_PAIRS = 64
MOST_CHARACTERS = 20_000
MOST_HEADS = 100_000
LISTED = 5
"""Tokens of each list of what a head writes."""

Word = Annotated[str, StringConstraints(min_length=1, max_length=MAX_WORD_CHARACTERS)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MOST_CHARACTERS)]
Place = Annotated[int, Field(ge=0, lt=MOST_HEADS)]
Rank = Annotated[
    int | None, Field(description="null from the ceiling on; of a word also where it cannot be a target")
]


class Asked(BaseModel):
    """A body without fields that mean nothing."""

    model_config = ConfigDict(extra="forbid", strict=True)


class PairAsked(Asked):
    """A word and what should follow from it."""

    source: Word
    target: Word


class Pairs(Asked):
    """Pairs to rank for every head."""

    pairs: Annotated[list[PairAsked], Field(min_length=1, max_length=MOST_PAIRS)]


class NamedPairs(Pairs):
    """Pairs to write as a relation file."""

    name: Word


class WordAsked(Asked):
    """A word to send through every head."""

    word: Word


class TextAsked(Asked):
    """A text to show all heads."""

    text: Text


class HeadInText(TextAsked):
    """One head in a text."""

    layer: Place
    head: Place


class LookInText(TextAsked):
    """From which token, and perhaps to which, heads look."""

    query: Place
    key: Place | None = None


class Told(BaseModel):
    """An answer: its numbers are finite, its texts as tokens have them."""

    model_config = ConfigDict(frozen=True)


class OfAtlas(Told):
    """The first fields of every answer about heads, as of the JSON of the commands."""

    model: str
    lens: str
    thresholds: dict[str, Any]
    caption: str


class About(OfAtlas):
    """The model served, and how much may be asked."""

    most_pairs: int
    most_tokens: Annotated[int, Field(description="of a text, with those the tokenizer puts first")]
    headatlas: str


class PairRow(Told):
    """A head's ranks of the pairs, promoting and suppressing."""

    layer: int
    head: int
    sign: str
    score: float
    suppression: float
    control: float
    ranks: list[Rank]
    suppression_ranks: list[Rank]


class PairTold(Told):
    """A pair that was ranked."""

    source: str
    target: str


class PairsAnswer(OfAtlas):
    """Every head, the best first; ranks stand in the order of ``pairs``."""

    k: int
    ceiling: int
    pairs: list[PairTold]
    dropped: dict[str, list[str]]
    rows: list[PairRow]


class WordRow(Told):
    """A head asked for a word: gain, ranks of the word itself, and the strongest tokens of either sign."""

    layer: int
    head: int
    gain: float
    rank: Rank = None
    suppression_rank: Rank = None
    promoted: list[str]
    suppressed: list[str]


class WordAnswer(OfAtlas):
    """Every head, the largest gain first."""

    word: str
    tokens: list[str]
    can_be_target: Annotated[
        bool, Field(description="whether the tokenizer can use the word as a target; if not, it has no ranks")
    ]
    rows: list[WordRow]


class Weight(Told):
    """One weight of attention: from the token at ``query`` to that at ``key``."""

    query: int
    key: int
    attention: float


class TextRow(Told):
    """A head in a text."""

    layer: int
    head: int
    first_position: Annotated[
        float, Field(description="mean attention to the first token, from those after it")
    ]
    weights: Annotated[
        list[Weight],
        Field(description="the largest weights from one token to an earlier one that is not the first"),
    ]


class TextAnswer(OfAtlas):
    """A text's tokens, and every head, the one with the largest such weights first."""

    tokens: list[str]
    rows: list[TextRow]


class Written(Told):
    """The strongest tokens of what a head writes at one position."""

    promoted: list[str]
    suppressed: list[str]


class HeadInTextAnswer(OfAtlas):
    """One head in a text: row q of ``pattern`` has the attention to keys 0 … q."""

    layer: int
    head: int
    pattern: list[list[float]]
    written: list[Written]


class LookRow(Told):
    """A head's weight from the token asked to a key."""

    layer: int
    head: int
    key: int
    attention: float


class LookAnswer(OfAtlas):
    """Every head, the largest weight first; without a key asked, the one that each head looks at most."""

    query: int
    rows: list[LookRow]


class RelationFile(Told):
    """A relation file as `headatlas map --relations` reads it."""

    name: str
    text: str


class Problem(Told):
    """One sentence that says what is wrong."""

    error: str


QUESTIONS: dict[str, tuple[type[Asked], type[Told], str]] = {
    "/api/pairs": (Pairs, PairsAnswer, "Rank the targets of pairs for every head."),
    "/api/word": (WordAsked, WordAnswer, "Say what every head writes for a word."),
    "/api/text": (TextAsked, TextAnswer, "Say where every head looks in a text."),
    "/api/text/head": (
        HeadInText,
        HeadInTextAnswer,
        "Say where one head looks in a text and what it writes.",
    ),
    "/api/text/look": (LookInText, LookAnswer, "Say which heads look from one token of a text, and where."),
    "/api/relation": (NamedPairs, RelationFile, "Write pairs as a relation file."),
}
"""Path → body, answer and what it does."""

PROBLEMS = {
    400: "not JSON, or not what can be asked",
    401: "no token, or a wrong one",
    403: "asked from another site, or by another name of this machine",
    408: "the body came too slowly",
    413: "the body is too large",
    415: "the body is not application/json",
    503: "too many questions are waiting",
}


def openapi() -> dict[str, Any]:
    """The description of the API (OpenAPI 3.1)."""
    models: set[type[BaseModel]] = {
        each for asked, told, _ in QUESTIONS.values() for each in (asked, told)
    } | {About, Problem}
    named: list[tuple[type[BaseModel], Literal["validation"]]] = [
        (each, "validation") for each in sorted(models, key=lambda each: each.__name__)
    ]
    _, defined = models_json_schema(named, ref_template="#/components/schemas/{model}")
    paths: dict[str, Any] = {
        path: {
            "post": _operation(does, told) | {"requestBody": {"required": True, "content": _content(asked)}}
        }
        for path, (asked, told, does) in QUESTIONS.items()
    }
    paths["/api/about"] = {"get": _operation("Say what is served.", About)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "headatlas serve", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": defined["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(does: str, told: type[Told]) -> dict[str, Any]:
    problems = {
        str(code): {"description": text, "content": _content(Problem)} for code, text in PROBLEMS.items()
    }
    return {
        "summary": does,
        "responses": {"200": {"description": "the answer", "content": _content(told)}, **problems},
    }


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
