"""Tokenizer and config of a GGUF file in the form transformers reads, converted once and kept.

Converting takes seconds, mostly spent reading the token list; the result depends on the header alone, so
it is kept in the user cache under the header's hash.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from headatlas.errors import HeadatlasError
from headatlas.weights.cache import cache_dir, filled_folder
from headatlas.weights.gguf_header import GgufHeader

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_log = logging.getLogger(__name__)
_TOKENS = "tokenizer.ggml.tokens"
_NEEDS = {"gpt2": ("merges",), "llama": ("scores", "merges"), "t5": ("scores",)}
"""Arrays one of which each kind of tokenizer needs beside its tokens, as transformers 5.23 builds them."""


def gguf_tokenizer(path: Path, header: GgufHeader) -> PreTrainedTokenizerBase:
    """The tokenizer inside a GGUF file, out of the cache where it was converted before.

    Raises:
        HeadatlasError: The file has no tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not header.arrays.get(_TOKENS):
        raise HeadatlasError(f"{path} holds no tokenizer ({_TOKENS} is missing); convert the model again.")
    kind = header.metadata.get("tokenizer.ggml.model")
    needs = [f"tokenizer.ggml.{each}" for each in _NEEDS.get(str(kind), ())]
    if needs and not any(header.arrays.get(each) for each in needs):
        raise HeadatlasError(
            f"{path}: its tokenizer ({kind}) lacks {' and '.join(needs)}, so that no text can be cut into "
            "its tokens; convert the model again, or pass a tokenizer (tokenizer=… in Python)."
        )
    kept = _place(path, header) / "tokenizer"
    if kept.is_dir():
        # The plain class, because a model's own class would build its tokenizer anew.
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
            str(kept), local_files_only=True
        )
        return tokenizer
    tokenizer = AutoTokenizer.from_pretrained(
        str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    _keep(tokenizer, kept)
    return tokenizer


def gguf_config(path: Path, header: GgufHeader) -> PretrainedConfig:
    """The transformers config that a GGUF header stands for, out of the cache where it was made before."""
    from transformers import AutoConfig

    kept = _place(path, header) / "config"
    config: PretrainedConfig
    if kept.is_dir():
        config = AutoConfig.from_pretrained(str(kept), local_files_only=True, trust_remote_code=False)
        return config
    config = AutoConfig.from_pretrained(
        str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    _keep(config, kept)
    return config


def _place(path: Path, header: GgufHeader) -> Path:
    """The folder for this header as converted by this version of transformers."""
    import gguf
    import transformers

    with path.open("rb") as stream:
        digest = hashlib.sha256(stream.read(header.data_start))
    digest.update(f"{transformers.__version__} {getattr(gguf, '__version__', '')}".encode())
    return cache_dir() / "converted" / digest.hexdigest()[:32]


def _keep(item: PreTrainedTokenizerBase | PretrainedConfig, folder: Path) -> None:
    try:
        with filled_folder(folder) as work:
            item.save_pretrained(work)
    except (OSError, HeadatlasError) as error:
        _log.info("not kept in %s: %s", folder, error)  # a cache that cannot be written only costs time
