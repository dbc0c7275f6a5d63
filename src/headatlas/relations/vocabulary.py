"""Which rows of the unembedding stand for something a tokenizer can say.

The others (padding rows, special and reserved tokens) are never trained to be predicted in text. Left in the
race they would push real tokens down, so they do not compete; the atlas lists them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OPEN = r"(?:<\|?|<｜|\[|>>|\{)"
_CLOSE = r"(?:\|?>|｜>|\]|<<|\})"
_WORDS = r"(?:unused|reserved|extra|dummy|place[_▁ ]?holder|special|control|padding|pad)"
# Names that tokenizers give to slots kept for later, as found in published vocabularies: <unused12> (Gemma),
# [unused3] (BERT), <|reserved_special_token_5|> (Llama 3), <extra_id_0> (T5), <|dummy_0|>, <|placeholder1|>
# (Phi), [control_8], <SPECIAL_20> (Mistral), >>UNUSED_1<< (Falcon), [UNUSED_TOKEN_146] (InternLM),
# <｜place▁holder▁no▁0｜> (DeepSeek), madeupword0001 (OPT). The number is required: "[control]" is text.
_RESERVED = re.compile(rf"{_OPEN}{_WORDS}[a-z_▁ -]*\d+{_CLOSE}|madeupword\d+", re.IGNORECASE)


def competing_tokens(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> tuple[npt.NDArray[np.bool_], tuple[int, ...]]:
    """Which token ids compete in a ranking.

    An id does not compete if the tokenizer has no token for it (a padding row or a gap), if its token is
    special, or if its name says that it is reserved. Byte-fallback tokens such as ``<0x0A>`` compete.

    Args:
        tokenizer: The model's tokenizer.
        vocab_size: Rows of the unembedding; may be more or fewer than the tokenizer has tokens.

    Returns:
        A boolean array [vocab_size], and the ids where it is False, ascending.
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
