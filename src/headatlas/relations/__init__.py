"""What do we look for? Relations: shipped ones, the user's own, and how a tokenizer sees them."""

from headatlas.relations.relation import CORE_CATEGORIES, Pair, Relation, TokenisedPair, TokenisedRelation
from headatlas.relations.selection import (
    RelationSpec,
    core_relations,
    load_relations,
    match_relation,
    resolve_relations,
    try_relations,
)
from headatlas.relations.shipped import core, library
from headatlas.relations.tokenising import MIN_SOURCES, MIN_TARGETS, tokenise, too_small
from headatlas.relations.vocabulary import competing_tokens

__all__ = [
    "CORE_CATEGORIES",
    "MIN_SOURCES",
    "MIN_TARGETS",
    "Pair",
    "Relation",
    "RelationSpec",
    "TokenisedPair",
    "TokenisedRelation",
    "competing_tokens",
    "core",
    "core_relations",
    "library",
    "load_relations",
    "match_relation",
    "resolve_relations",
    "tokenise",
    "too_small",
    "try_relations",
]
