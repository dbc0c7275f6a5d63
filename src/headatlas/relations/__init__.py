"""Relations to look for: shipped ones, the user's own, and how a tokenizer sees them."""

from headatlas.relations.relation import (
    CORE_CATEGORIES,
    Pair,
    Relation,
    TokenisedPair,
    TokenisedRelation,
    checked_word,
)
from headatlas.relations.selection import (
    RelationSpec,
    check_sources,
    match_relation,
    most_sources,
    resolve_relations,
    try_relations,
)
from headatlas.relations.shipped import alternative_to, contexts, core, library, questions
from headatlas.relations.tokenising import (
    MIN_SOURCES,
    MIN_TARGETS,
    NOT_DRAWN,
    competing_tokens,
    drawn,
    sampled,
    tokenise,
    too_small,
    usable_words,
)

__all__ = [
    "CORE_CATEGORIES",
    "MIN_SOURCES",
    "MIN_TARGETS",
    "NOT_DRAWN",
    "Pair",
    "Relation",
    "RelationSpec",
    "TokenisedPair",
    "TokenisedRelation",
    "alternative_to",
    "check_sources",
    "checked_word",
    "competing_tokens",
    "contexts",
    "core",
    "drawn",
    "library",
    "match_relation",
    "most_sources",
    "questions",
    "resolve_relations",
    "sampled",
    "tokenise",
    "too_small",
    "try_relations",
    "usable_words",
]
