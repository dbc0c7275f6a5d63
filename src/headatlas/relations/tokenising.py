"""Relations as one tokenizer sees them: ids of sources and targets, what cannot be used, which ids compete.

A word is tokenised as it stands in running text, which for most words means with the space before it. How a
space becomes part of a token differs between tokenizers (byte-level BPE, SentencePiece with and without a
dummy prefix, WordPiece), so a word's ids are read off a text that holds it: those that follow the ids of a
short anchor when the word is written after it.

Padding rows, special and reserved tokens are never trained to be predicted in text. Left in the race they
would push real tokens down, so they do not compete; the atlas lists them.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from headatlas.options import TargetPolicy
from headatlas.relations.relation import Pair, Relation, TokenisedPair, TokenisedRelation

if TYPE_CHECKING:
    from headatlas.weights import Tokenizer


_OPEN = r"(?:<\|?|<｜|\[|>>|\{)"
_CLOSE = r"(?:\|?>|｜>|\]|<<|\})"
_WORDS = r"(?:unused|reserved|extra|dummy|place[_▁ ]?holder|special|control|padding|pad)"
# Names that tokenizers give to slots kept for later, as found in published vocabularies: <unused12> (Gemma),
# [unused3] (BERT), <|reserved_special_token_5|> (Llama 3), <extra_id_0> (T5), <|dummy_0|>, <|placeholder1|>
# (Phi), [control_8], <SPECIAL_20> (Mistral), >>UNUSED_1<< (Falcon), [UNUSED_TOKEN_146] (InternLM),
# <｜place▁holder▁no▁0｜> (DeepSeek), madeupword0001 (OPT). The number is required: "[control]" is text.
_RESERVED = re.compile(rf"{_OPEN}{_WORDS}[a-z_▁ -]*\d+{_CLOSE}|madeupword\d+", re.IGNORECASE)


def competing_tokens(tokenizer: Tokenizer, vocab_size: int) -> tuple[npt.NDArray[np.bool_], tuple[int, ...]]:
    """Which token ids [vocab_size] compete in a ranking; and the ids that do not, ascending.

    An id does not compete if the tokenizer has no token for it (a padding row or a gap), if its token is
    special, or if its name says that it is reserved. Byte-fallback tokens such as ``<0x0A>`` compete.
    """
    competing = np.zeros(vocab_size, dtype=np.bool_)
    # Several tokens may have one id: it competes if any of them is text.
    named = [index for token, index in tokenizer.get_vocab().items() if not is_reserved(token)]
    competing[[index for index in named if 0 <= index < vocab_size]] = True
    special = set(tokenizer.all_special_ids)
    special.update(index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    competing[[index for index in special if index < vocab_size]] = False
    return competing, tuple(np.flatnonzero(~competing).tolist())


def is_reserved(token: str) -> bool:
    """Whether the name of `token` says that it is a slot kept for later use, not text."""
    return _RESERVED.fullmatch(token) is not None


MIN_SOURCES = 30
MIN_TARGETS = 3

SOURCE_UNKNOWN = "source has an unknown or reserved token"
SOURCE_SEVERAL = "source is several tokens"
SOURCE_TOO_LONG = "source has too many tokens"
SOURCE_REPEATED = "source has the same tokens as an earlier one"
TARGET_SEVERAL = "no target is a single token"
NOT_DRAWN = "not drawn in the sample of sources"
TARGET_RESERVED = "every target of one token is unknown or reserved"

# Tried in turn, until a tokenizer cuts cleanly: the anchor keeps the ids it has on its own.
_SPACED_ANCHORS = ("The", "of", "\n")
_BARE_ANCHORS = ("\n", "The", ",")

# First words of the Unicode names of letters that are written without spaces between words.
_UNSPACED_SCRIPTS = {
    "BOPOMOFO", "CJK", "HALFWIDTH", "HIRAGANA", "IDEOGRAPHIC", "JAVANESE", "KATAKANA", "KATAKANA-HIRAGANA",
    "KHMER", "LAO", "MYANMAR", "THAI", "TIBETAN",
}  # fmt: skip


def written_bare(word: str) -> bool:
    """Whether `word` stands in text without a space of its own before it.

    True for words that begin with a digit, a punctuation mark, a symbol or an emoji, or with a letter of a
    script written without spaces (Chinese, Japanese, Thai, …).
    """
    first = word[0]
    return (
        unicodedata.category(first)[0] in "NPS"
        or unicodedata.name(first, "").split(" ")[0] in _UNSPACED_SCRIPTS
    )


def word_ids(tokenizer: Tokenizer, words: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The token ids of each word in its natural form; the tokenizer is called a few times for all of them.

    A word that no anchor leaves clean is encoded on its own, with its space.
    """
    distinct = list(dict.fromkeys(words))
    found: dict[str, tuple[int, ...]] = {}
    for anchors, gap, bare in [(_SPACED_ANCHORS, " ", False), (_BARE_ANCHORS, "", True)]:
        rest = [word for word in distinct if written_bare(word) is bare]
        for anchor in anchors:
            found |= _ids_after(tokenizer, anchor, gap, rest)
            rest = [word for word in rest if word not in found]
        found |= zip(rest, _encode(tokenizer, [gap + word for word in rest]), strict=True)
    return found


def tokenise(
    relation: Relation,
    tokenizer: Tokenizer,
    *,
    competing: npt.NDArray[np.bool_],
    max_source_tokens: int,
    target_policy: TargetPolicy = "single",
    sources: int | None = None,
) -> TokenisedRelation:
    """`relation` as `tokenizer` sees it: its usable pairs, and why the others are not.

    A target is usable if it is one token that competes ([vocab], from :func:`competing_tokens`); under
    ``"first-token"`` a target of several tokens counts by its first. A pair is usable if its source has 1 to
    `max_source_tokens` tokens, none of them unknown or reserved and not all the same as an earlier source's,
    and at least one target is usable. The relation is left out below `MIN_SOURCES` usable sources or
    `MIN_TARGETS` distinct targets. Of more usable sources than ``sources`` a sample is kept
    (:func:`sampled`).
    """
    ids = word_ids(tokenizer, (word for pair in relation.pairs for word in (pair.source, *pair.targets)))
    known = _meaningful(tokenizer, competing)
    usable: list[TokenisedPair] = []
    dropped: dict[str, list[str]] = {}
    seen: set[tuple[int, ...]] = set()
    for index, pair in enumerate(relation.pairs):
        source_ids = ids[pair.source]
        targets, target_reason = _targets(pair, ids, known, target_policy)
        reason = _source_reason(source_ids, known, max_source_tokens) or target_reason
        if reason is None and source_ids in seen:
            reason = SOURCE_REPEATED
        if reason is not None:
            dropped.setdefault(reason, []).append(pair.source)
            continue
        seen.add(source_ids)
        usable.append(TokenisedPair(index, source_ids, tuple(targets), tuple(targets.values())))
    reasons = {reason: tuple(sources) for reason, sources in dropped.items()}
    seen_as = TokenisedRelation(relation, tuple(usable), reasons, _left_out(usable))
    return seen_as if sources is None else sampled(seen_as, sources)


def usable_words(
    words: Iterable[str],
    tokenizer: Tokenizer,
    *,
    competing: npt.NDArray[np.bool_],
    max_source_tokens: int,
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The token ids of words as sources of relations have them; and why the others cannot be sources."""
    ids, known = word_ids(tokenizer, words), _meaningful(tokenizer, competing)
    reasons = {word: _source_reason(each, known, max_source_tokens) for word, each in ids.items()}
    bad = {word: reason for word, reason in reasons.items() if reason is not None}
    return {word: each for word, each in ids.items() if word not in bad}, bad


def _meaningful(tokenizer: Tokenizer, competing: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[vocab] which tokens compete and are not the unknown one."""
    known, unknown = competing.copy(), tokenizer.unk_token_id
    if unknown is not None and unknown < len(known):
        known[unknown] = False
    return known


def reduced(
    relation: TokenisedRelation, pairs: Sequence[TokenisedPair], dropped: dict[str, tuple[str, ...]]
) -> TokenisedRelation:
    """A tokenised relation with some of its pairs only, left out if they are too few."""
    left_out = relation.left_out or _left_out(list(pairs))
    return replace(relation, pairs=tuple(pairs), dropped=dropped, left_out=left_out)


def sampled(relation: TokenisedRelation, n: int) -> TokenisedRelation:
    """A tokenised relation with at most `n` of its usable sources, the others dropped as `NOT_DRAWN`.

    Which are drawn is decided by hashes of the words, not by their order or number: two tokenizers, and
    relations that ask the same words, get the same ones as far as they can use them.
    """
    if len(relation.pairs) <= n:
        return relation
    words = [relation.relation.pairs[pair.index].source for pair in relation.pairs]
    kept = set(drawn(words, n))
    gone = tuple(word for word in words if word not in kept)
    stay = [pair for pair, word in zip(relation.pairs, words, strict=True) if word in kept]
    return replace(reduced(relation, stay, {**relation.dropped, NOT_DRAWN: gone}), sampled=n)


def drawn(words: Iterable[str], n: int) -> list[str]:
    """The `n` of these sources that a sample of them holds."""
    return sorted(words, key=lambda word: hashlib.sha256(word.encode()).digest())[:n]


def _targets(
    pair: Pair, ids: dict[str, tuple[int, ...]], known: npt.NDArray[np.bool_], policy: TargetPolicy
) -> tuple[dict[int, str], str | None]:
    """Usable target ids with the (first) word each stands for; if there are none, why."""
    candidates = [(word, ids[word]) for word in pair.targets]
    if policy == "single":
        candidates = [(word, tokens) for word, tokens in candidates if len(tokens) == 1]
    targets: dict[int, str] = {}
    for word, tokens in candidates:
        if _all_known(tokens[:1], known):
            targets.setdefault(tokens[0], word)
    if targets:
        return targets, None
    return targets, TARGET_RESERVED if candidates else TARGET_SEVERAL


def _source_reason(tokens: Sequence[int], known: npt.NDArray[np.bool_], longest: int) -> str | None:
    if not _all_known(tokens, known):
        return SOURCE_UNKNOWN
    if len(tokens) > longest:
        return SOURCE_SEVERAL if longest == 1 else SOURCE_TOO_LONG
    return None


def _all_known(tokens: Sequence[int], known: npt.NDArray[np.bool_]) -> bool:
    """Whether there are tokens and all of them compete and mean something."""
    return bool(tokens) and all(token < len(known) and known[token] for token in tokens)


def too_small(sources: int, targets: int, usable: str = "") -> str | None:
    """Why so many (usable) sources and distinct targets are too few for an atlas, or None."""
    if sources < MIN_SOURCES:
        return f"{sources} {usable}sources, at least {MIN_SOURCES} needed"
    if targets < MIN_TARGETS:
        return f"{targets} distinct targets, at least {MIN_TARGETS} needed"
    return None


def _left_out(usable: list[TokenisedPair]) -> str | None:
    targets = {token for pair in usable for token in pair.target_ids}
    return too_small(len(usable), len(targets), "usable ")


def _ids_after(tokenizer: Tokenizer, anchor: str, gap: str, words: list[str]) -> dict[str, tuple[int, ...]]:
    """The ids that follow those of `anchor`, for the words that leave the anchor's ids as they are."""
    if not words:
        return {}
    start, *rows = _encode(tokenizer, [anchor, *(anchor + gap + word for word in words)])
    size = len(start)
    return {
        word: row[size:] for word, row in zip(words, rows, strict=True) if row[:size] == start and row[size:]
    }


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[tuple[int, ...]]:
    if not texts:
        return []
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [tuple(row) for row in rows]
