"""Which positions of a sequence a behaviour is about: for each query, the keys that count.

Every behaviour that is a share of attention is a matrix of weights [query, key]: what a head scores in a
sequence is the sum of weight × attention. Each query that counts has weight 1 ÷ (number of such queries) on
each of its keys, so the score is the mean over queries of the attention on the keys.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Bools = NDArray[np.bool_]
Weights = NDArray[np.float32]

_ENDS = frozenset(".!?…。！？؟।")
_CLOSING = frozenset("\"'”’»)]}“」』")
_MARKS = ("Ġ", "▁", " ")
"""First characters of pieces of words that follow a space, in byte-level and SentencePiece vocabularies."""
NEAREST = 2
"""A query counts for the start of its line or sentence from so many tokens after it: the start itself and the
token before have behaviours of their own."""


@dataclass(frozen=True)
class Pieces:
    """One sequence as text.

    Attributes:
        ids: Token ids.
        texts: What each token stands for.
        begins: Whether a word may begin there.
        first: Position of the first token that is text and not the first position.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    begins: tuple[bool, ...]
    first: int

    @cached_property
    def line_starts(self) -> Bools:
        """Tokens after a line break, the first line of the sequence aside."""
        out = np.zeros(len(self.ids), dtype=bool)
        for at in range(self.first + 1, len(self.ids)):
            out[at] = "\n" in self.texts[at - 1] and "\n" not in self.texts[at]
        return out

    @cached_property
    def sentence_starts(self) -> Bools:
        """Tokens after the end of a sentence or line, the first sentence of the sequence aside."""
        out = np.zeros(len(self.ids), dtype=bool)
        ended = False
        for at in range(self.first, len(self.ids)):
            text = self.texts[at]
            out[at] = ended and bool(text.strip()) and self.begins[at] and not _closes(text)
            bare = text.strip().rstrip("".join(_CLOSING))
            if bare:
                ended = bare[-1] in _ENDS
            ended = ended or "\n" in text
        return out

    @cached_property
    def kinds(self) -> dict[str, Bools]:
        """Kind of token → where such tokens are."""
        starts = self.sentence_starts | self.line_starts
        tests: dict[str, Callable[[int], bool]] = {
            "punctuation": lambda at: _all(
                self.texts[at], lambda char: unicodedata.category(char)[0] in "PS"
            ),
            "digits": lambda at: _all(self.texts[at], str.isnumeric),
            "names": lambda at: at > self.first and not starts[at] and self._capitalised(at),
            "line_breaks": lambda at: "\n" in self.texts[at],
        }
        return {
            name: np.array([at >= self.first and test(at) for at in range(len(self.ids))])
            for name, test in tests.items()
        }

    def _capitalised(self, at: int) -> bool:
        """A word that begins with a capital letter and goes on with small ones."""
        word = self.texts[at].strip()
        return self.begins[at] and len(word) > 1 and word[0].isupper() and word[1:].islower()


def _all(text: str, test: Callable[[str], bool]) -> bool:
    body = text.strip()
    return bool(body) and all(test(char) for char in body)


def _closes(text: str) -> bool:
    return _all(text, lambda char: char in _CLOSING)


def pieces(tokenizer: PreTrainedTokenizerBase, ids: NDArray[np.int64], n_first: int) -> list[Pieces]:
    """Sequences [n, length] as text, token by token; the tokenizer itself puts ``n_first`` of them first."""
    distinct = np.unique(ids).tolist()
    texts = dict(zip(distinct, tokenizer.batch_decode([[token] for token in distinct]), strict=True))
    names = dict(zip(distinct, tokenizer.convert_ids_to_tokens(distinct), strict=True))
    out = []
    for row in ids.tolist():
        words = tuple(texts[token] for token in row)
        begins = tuple(
            str(names[token]).startswith(_MARKS) or at == 0 or not words[at - 1][-1:].isalnum()
            for at, token in enumerate(row)
        )
        out.append(Pieces(tuple(row), words, begins, max(n_first, 1)))
    return out


def everywhere(length: int) -> dict[str, Weights]:
    """Weights of the behaviours that are the same in every sequence of a length.

    The previous token counts from the third position on: before, it is the first position.
    """
    first = np.arange(length) == 0
    keys = {
        "previous_token": np.eye(length, k=-1, dtype=bool) & ~first[None, :],
        "self": np.eye(length, dtype=bool) & ~first[:, None],
        "first_position": first[None, :] & ~first[:, None],
    }
    return {name: _weights(where) for name, where in keys.items()}


IN_TEXT = (
    *("duplicate_token", "induction", "line_start", "sentence_start"),
    *("punctuation", "digits", "names", "line_breaks"),
)
"""Behaviours whose positions differ from text to text."""


def places(text: Pieces) -> dict[str, Weights]:
    """Weights of the behaviours in :data:`IN_TEXT`; all zero where the text has no such position.

    The first position is never a key: what it draws is drawn whatever token is there.
    """
    length, first = len(text.ids), text.first
    ids = np.array(text.ids)
    earlier = np.tri(length, k=-1, dtype=bool)
    content = np.arange(length) >= first
    same = (ids[:, None] == ids[None, :]) & earlier & content[None, :]
    after = np.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    keys = {
        "duplicate_token": same,
        "induction": after & earlier,
        "line_start": _latest(text.line_starts),
        "sentence_start": _latest(text.sentence_starts),
    }
    upto = np.tri(length, dtype=bool)
    keys |= {name: upto & where[None, :] for name, where in text.kinds.items()}
    return {name: _weights(keys[name]) for name in IN_TEXT}


def _latest(starts: Bools) -> Bools:
    """[query, key] the start of each query's line or sentence, if :data:`NEAREST` or more tokens back."""
    length = len(starts)
    out = np.zeros((length, length), dtype=bool)
    latest = -1
    for query in range(length):
        if starts[query]:
            latest = query
        if latest >= 0 and query - latest >= NEAREST:
            out[query, latest] = True
    return out


def _weights(keys: Bools) -> Weights:
    n_queries = int(keys.any(axis=1).sum())
    return keys.astype(np.float32) / np.float32(max(n_queries, 1))
