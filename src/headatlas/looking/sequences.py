"""The token sequences that heads are watched on, and which positions in them a behaviour is about.

All sequences of a run have one length, so that the same query position and distance exist in each of them.

Every behaviour that is a share of attention is a matrix of weights [query, key]: what a head scores in a
sequence is the sum of weight × attention. Each query that counts has weight 1 ÷ (number of such queries) on
each of its keys, so the score is the mean over queries of the attention on the keys.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.evidence.texts import LENGTH, encode, running_texts, shipped_texts
from headatlas.lenses.forward import prefix_ids, require_embedded

if TYPE_CHECKING:
    from headatlas.architectures import Model
    from headatlas.weights import Tokenizer


BLOCKS = (11, 14, 17, 20, 23)
"""Lengths of the repeated blocks. They differ by more than a neighbour, so that what is special in a sequence
of one length is nothing special in those of another."""
PER_BLOCK = 5
MOST_WINDOWS = 400
"""Of a user's own text, from its beginning."""
LEAST_TEXTS = 20
"""Fewer sequences say too little about the spread over sequences."""
POOL = 1000
SEED = 20260

_ENDS = frozenset(".!?…。！？؟।")
_CLOSING = frozenset("\"'”’»)]}“」』")
_MARKS = ("Ġ", "▁", " ")
"""First characters of pieces of words that follow a space, in byte-level and SentencePiece vocabularies."""
NEAREST = 2
"""A query counts for the start of its line or sentence from so many tokens after it: the start itself and the
token before have behaviours of their own."""

Ids = NDArray[np.int64]
Bools = NDArray[np.bool_]
Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Sequences:
    """Token sequences that go through the model."""

    texts: Ids  # [n, length] token ids of text
    repeated: Ids  # [m, length] random tokens, then a block of random tokens twice
    blocks: Ids  # [m] length of the block that each of them repeats
    first: int  # tokens that the tokenizer itself puts first in each
    source: str  # the name of the user's file; empty for the shipped texts
    too_short: int  # texts that this tokenizer cuts into too few tokens; they are left out

    @cached_property
    def digest(self) -> str:
        """Says which tokens these are."""
        found = hashlib.sha256(repr((self.texts.shape, self.repeated.shape, self.first)).encode())
        for each in (self.texts, self.repeated, self.blocks):
            found.update(np.ascontiguousarray(each, dtype="<i8").tobytes())
        return found.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Their description, as the atlas keeps it."""
        return {
            "source": self.source,
            "texts": len(self.texts),
            "too_short": self.too_short,
            "repeated": len(self.repeated),
            "length": int(self.texts.shape[1]),
        }


def sequences_for(model: Model, competing: NDArray[np.bool_], text: str | Path | None = None) -> Sequences:
    """The sequences of a run, as the model's tokenizer cuts them.

    ``competing`` [vocab] says which tokens stand for text. ``text`` is a file of one's own in the place of
    the shipped texts: UTF-8, cut into windows.
    """
    tokenizer, spec = model.tokenizer(), model.checkpoint.spec
    positions = most_positions(model.checkpoint.config)
    if positions is not None and positions < LENGTH:
        raise HeadatlasError(f"{spec}: the model takes {positions} tokens, and {LENGTH} are needed.")
    first = tuple(prefix_ids(tokenizer, ""))
    room = LENGTH - len(first)
    if text is None:
        source, windows = "", running_texts(tokenizer)
        too_short = len(shipped_texts()) - len(windows)
    else:
        source, too_short = Path(text).name, 0
        row = encode(tokenizer, [_read(text)])[0]
        starts = range(len(first), len(row) - room + 1, room)
        windows = tuple(first + row[at : at + room] for at in starts)[:MOST_WINDOWS]
    if len(windows) < LEAST_TEXTS:
        what = str(text) if text is not None else f"{spec}: the shipped texts"
        raise HeadatlasError(
            f"{what}: long enough for {len(windows)} sequences of {room} tokens, and at least {LEAST_TEXTS} "
            f"are needed; give a file of more text with `text`."
        )
    require_embedded(model, windows)
    repeated, blocks = _repeated(tokenizer, competing, first, spec)
    return Sequences(np.array(windows), repeated, blocks, len(first), source, too_short)


def most_positions(config: Mapping[str, Any]) -> int | None:
    """How many positions a model takes; None if its config, or the header of its GGUF file, does not say."""
    inner = config.get("text_config") or {}
    in_gguf = f"{config.get('general.architecture')}.context_length"
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", in_gguf):
        found = config.get(name, inner.get(name))
        if isinstance(found, int) and found > 0:
            return found
    return None


def _read(text: str | Path) -> str:
    try:
        return Path(text).read_bytes().decode("utf-8")
    except OSError as error:
        raise HeadatlasError(f"{text}: cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError:
        raise HeadatlasError(f"{text}: is not UTF-8 text; save it as UTF-8.") from None


def _repeated(
    tokenizer: Tokenizer, competing: NDArray[np.bool_], first: tuple[int, ...], spec: str
) -> tuple[Ids, Ids]:
    """Sequences that end with a block of random tokens twice; no token occurs otherwise twice in one."""
    rng = np.random.Generator(np.random.PCG64(SEED))
    pool = _words(tokenizer, rng.permutation(np.flatnonzero(competing)))
    if len(pool) < LENGTH:
        raise HeadatlasError(f"{spec}: its tokenizer has {len(pool)} words, and {LENGTH} are needed.")
    rows, blocks = [], []
    for block in BLOCKS:
        before = LENGTH - len(first) - 2 * block
        for _ in range(PER_BLOCK):
            drawn = rng.choice(pool, before + block, replace=False).tolist()
            rows.append([*first, *drawn, *drawn[before:]])
            blocks.append(block)
    return np.array(rows), np.array(blocks)


def _words(tokenizer: Tokenizer, ids: NDArray[np.intp]) -> list[int]:
    """The first tokens that are words of two letters or more by themselves, as many as are needed."""
    found: list[int] = []
    for start in range(0, len(ids), POOL):
        part = ids[start : start + POOL].tolist()
        texts = tokenizer.batch_decode([[token] for token in part], clean_up_tokenization_spaces=False)
        for token, text in zip(part, texts, strict=True):
            word = text.strip()
            if len(word) >= 2 and word.isalnum() and word[0].isalpha():
                found.append(token)
        if len(found) >= POOL:
            break
    return found[:POOL]


# Which positions a behaviour is about ------------------------------------------------------------------


@dataclass(frozen=True)
class Pieces:
    """One sequence as text."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]  # what each token stands for
    begins: tuple[bool, ...]  # whether a word may begin there
    first: int  # position of the first token that is text and not the first position

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


def pieces(tokenizer: Tokenizer, ids: NDArray[np.int64], n_first: int) -> list[Pieces]:
    """Sequences [n, length] as text, token by token; the tokenizer itself puts ``n_first`` of them first."""
    distinct = np.unique(ids).tolist()
    rows = tokenizer.batch_decode([[token] for token in distinct], clean_up_tokenization_spaces=False)
    texts = dict(zip(distinct, rows, strict=True))
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
