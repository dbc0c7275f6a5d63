"""Tasks that a transformer can only do with a head of a known kind, as batches of token ids.

``induction``: a list of different words, then the same list begun at another place; the words of the second
list are predicted. How far back to look differs from sequence to sequence, so a head must find the word that
followed last time, and copy it (relation: word → itself).

``lookup``: one key among filler words, then a question; the answer is the value that this question has for
the key, the same in every sequence. A head must carry the key to the end, and something must turn it into its
value (relation: key → value, one for each question). The pairs are random, so nothing about them can be
guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from headatlas.relations import Relation
from tests.mapping.checkpoints import FIRST_WORD, relation, word

START = 1
"""Token id of ``<s>``, which stands first in every sequence."""


@dataclass(frozen=True)
class Batch:
    """Sequences and where the answers are.

    Attributes:
        ids: [n, length] token ids.
        answers: [n, length] the token that must follow each position; -100 where nothing is asked.
        asked: [n, length] number of the relation that the answer tests; -1 where nothing is asked.
    """

    ids: torch.Tensor
    answers: torch.Tensor
    asked: torch.Tensor


class Task(Protocol):
    """A task that a model is trained on and asked for."""

    @property
    def vocab(self) -> int: ...

    def relations(self) -> list[Relation]:
        """The relations that the heads are asked for, in the order of ``Batch.asked``."""

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        """Fresh sequences."""


@dataclass(frozen=True)
class Induction:
    """A list of different words, then the list again, begun elsewhere."""

    n_words: int = 64
    n_listed: int = 12

    @property
    def vocab(self) -> int:
        return FIRST_WORD + self.n_words

    def relations(self) -> list[Relation]:
        words = [word(token) for token in range(FIRST_WORD, self.vocab)]
        return [relation("copying", [(w, [w]) for w in words], copying=True, category="Algorithmic")]

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        # Any word but the special tokens, so that the prefixes of the neutral lens are ordinary words too.
        order = torch.rand(n, self.vocab - 4, generator=generator).argsort(dim=1)[:, : self.n_listed] + 4
        shift = torch.randint(1, self.n_listed, (n, 1), generator=generator)
        place = (torch.arange(self.n_listed) + shift) % self.n_listed
        ids = torch.cat([torch.full((n, 1), START), order, order.gather(1, place)], dim=1)
        answers = torch.full_like(ids, -100)
        # Not the first word of the second list, nor the list's own first: nothing said what precedes them.
        known = torch.where(place[:, 1:] > 0, order.gather(1, place)[:, 1:], -100)
        answers[:, self.n_listed + 1 : -1] = known
        return Batch(ids, answers, torch.where(answers >= 0, 0, -1))


@dataclass(frozen=True)
class Lookup:
    """One key among fillers, then a question."""

    n_keys: int = 48
    n_questions: int = 3
    n_fillers: int = 24
    length: int = 8
    seed: int = 0

    @property
    def _keys(self) -> int:
        return FIRST_WORD + self.n_fillers

    @property
    def _questions(self) -> int:
        return self._keys + self.n_keys

    @property
    def _values(self) -> int:
        return self._questions + self.n_questions

    @property
    def vocab(self) -> int:
        return self._values + self.n_keys * self.n_questions

    def value_ids(self) -> np.ndarray:
        """[n_questions, n_keys] the answer to each question about each key."""
        rng = np.random.default_rng(self.seed)
        rows = [
            rng.permutation(self.n_keys) + self._values + q * self.n_keys for q in range(self.n_questions)
        ]
        return np.stack(rows)

    def relations(self) -> list[Relation]:
        return [
            relation(f"key_value{q}", [(word(self._keys + k), [word(int(v))]) for k, v in enumerate(row)])
            for q, row in enumerate(self.value_ids())
        ]

    def batch(self, n: int, generator: torch.Generator) -> Batch:
        def draw(low: int, high: int, *shape: int) -> torch.Tensor:
            return torch.randint(low, high, shape, generator=generator)

        ids = draw(4, self._keys, n, self.length)
        ids[:, 0] = START
        key, question = draw(0, self.n_keys, n), draw(0, self.n_questions, n)
        ids[torch.arange(n), draw(1, self.length - 1, n)] = key + self._keys
        ids[:, -1] = question + self._questions
        answers, asked = torch.full_like(ids, -100), torch.full_like(ids, -1)
        answers[:, -1] = torch.from_numpy(self.value_ids())[question, key]
        asked[:, -1] = question
        return Batch(ids, answers, asked)
