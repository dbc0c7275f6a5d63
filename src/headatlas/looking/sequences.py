"""The token sequences that heads are watched on: fixed texts, a user's own text, repeated random tokens.

All sequences of a run have one length, so that the same query position and distance exist in each of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from headatlas.errors import HeadatlasError
from headatlas.evidence.texts import LENGTH, encode, running_texts, shipped_texts
from headatlas.lenses.forward import prefix_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from headatlas.architectures import Model

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

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Sequences:
    """Token sequences that go through the model.

    Attributes:
        texts: [n, length] token ids of text.
        repeated: [m, length] random tokens, then a block of random tokens twice.
        blocks: [m] length of the block that each of them repeats.
        first: Tokens that the tokenizer itself puts first in each.
        source: The name of the user's file; empty for the shipped texts.
        too_short: Texts that this tokenizer cuts into too few tokens; they are left out.
    """

    texts: Ids
    repeated: Ids
    blocks: Ids
    first: int
    source: str
    too_short: int

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

    Raises:
        HeadatlasError: The file cannot be read or is too short, the model takes too few positions, or the
            tokenizer has too few words.
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
    tokenizer: PreTrainedTokenizerBase, competing: NDArray[np.bool_], first: tuple[int, ...], spec: str
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


def _words(tokenizer: PreTrainedTokenizerBase, ids: NDArray[np.intp]) -> list[int]:
    """The first tokens that are words of two letters or more by themselves, as many as are needed."""
    found: list[int] = []
    for start in range(0, len(ids), POOL):
        part = ids[start : start + POOL].tolist()
        for token, text in zip(part, tokenizer.batch_decode([[token] for token in part]), strict=True):
            word = text.strip()
            if len(word) >= 2 and word.isalnum() and word[0].isalpha():
                found.append(token)
        if len(found) >= POOL:
            break
    return found[:POOL]
