"""What do we look for? Relations: shipped ones, the user's own, and how a tokenizer sees them."""

from headatlas.relations.readers import load
from headatlas.relations.relation import CORE_CATEGORIES, Pair, Relation, TokenisedPair, TokenisedRelation
from headatlas.relations.shipped import core, library
from headatlas.relations.tokenising import MIN_SOURCES, MIN_TARGETS, TargetPolicy, tokenise
from headatlas.relations.vocabulary import competing_tokens

__all__ = [
    "CORE_CATEGORIES",
    "MIN_SOURCES",
    "MIN_TARGETS",
    "Pair",
    "Relation",
    "TargetPolicy",
    "TokenisedPair",
    "TokenisedRelation",
    "competing_tokens",
    "core",
    "library",
    "load",
    "tokenise",
]
