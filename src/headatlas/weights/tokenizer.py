"""The tokenizer of a checkpoint, made by transformers once, and read from the cache without it afterwards.

Importing transformers takes longer than all that a map of a small model does before its first layer. So the
cache keeps what transformers made of the files: the ``tokenizers`` object that cuts text, which is the
whole of a fast tokenizer, and which tokens are special. It is kept under a hash of all that it was made of.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from headatlas.errors import HeadatlasError
from headatlas.files import atomic_folder, cache_dir, read_json_object, reading, refuse_pointer
from headatlas.weights.gguf_modules import shown_to_transformers
from headatlas.weights.gguf_source import GgufSource
from headatlas.weights.loading import transformers_at_work
from headatlas.weights.source import OFFLINE, Checkpoint

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerBase

# What a tokenizer is made of: whole, SentencePiece, or a list of words.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
# What transformers reads beside tokenizer.json; by config.json it knows a faulty pattern of Mistral's.
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
_GGUF_TOKENS = "tokenizer.ggml.tokens"
_GGUF_NEEDS = {"gpt2": ("merges",), "llama": ("scores", "merges"), "t5": ("scores",)}
"""Arrays one of which each kind of tokenizer needs beside its tokens, as transformers 5.23 builds them."""
_MADE_BY = ("transformers", "tokenizers", "gguf")
_log = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """The part of a tokenizer that is used; those of transformers have it."""

    @property
    def all_special_ids(self) -> list[int]: ...
    @property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]: ...
    @property
    def unk_token_id(self) -> int | None: ...
    def __call__(self, text: Any, *, add_special_tokens: bool = True, **quiet: Any) -> Mapping[str, Any]: ...
    def get_vocab(self) -> dict[str, int]: ...
    def convert_ids_to_tokens(self, ids: Any) -> Any: ...
    def batch_decode(self, sequences: Any, *, clean_up_tokenization_spaces: Literal[False]) -> list[str]: ...


class KeptTokenizer:
    """A tokenizer as transformers made it; the methods are those of transformers, with the same results."""

    def __init__(self, backend: tokenizers.Tokenizer, facts: Mapping[str, Any]) -> None:
        self._backend = backend
        self.all_special_ids: list[int] = facts["all_special_ids"]
        self.unk_token_id: int | None = facts["unk_token_id"]
        backend.encode_special_tokens = facts["split_special_tokens"]
        backend.no_truncation()
        backend.no_padding()

    @property
    def added_tokens_decoder(self) -> dict[int, tokenizers.AddedToken]:
        found: dict[int, tokenizers.AddedToken] = self._backend.get_added_tokens_decoder()
        return found

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = True, **_: Any
    ) -> dict[str, Any]:
        texts = [text] if isinstance(text, str) else list(text)
        rows = [one.ids for one in self._backend.encode_batch(texts, add_special_tokens=add_special_tokens)]
        return {"input_ids": rows[0] if isinstance(text, str) else rows}

    def get_vocab(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return vocabulary

    def convert_ids_to_tokens(self, ids: int | Sequence[int]) -> str | list[str | None] | None:
        name = self._backend.id_to_token
        return name(ids) if isinstance(ids, int) else [name(each) for each in ids]

    def batch_decode(self, sequences: Sequence[Sequence[int]], **_: Any) -> list[str]:
        texts: list[str] = self._backend.decode_batch(sequences, skip_special_tokens=False)
        return texts


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint, out of the cache where it was made before."""
    if checkpoint.loaded_tokenizer is not None:
        return checkpoint.loaded_tokenizer
    if checkpoint.path is None:
        raise HeadatlasError(
            f"The loaded model {checkpoint.name} came without its tokenizer; pass it too (tokenizer=…)."
        )
    if missing := missing_tokenizer(checkpoint):
        raise HeadatlasError(missing)
    place = _place(checkpoint)
    if place is not None and (place / "facts.json").is_file():
        import tokenizers

        kept = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
        return KeptTokenizer(kept, read_json_object(place / "facts.json"))
    made = made_by_transformers(checkpoint)
    backend: tokenizers.Tokenizer | None = getattr(made, "backend_tokenizer", None)
    if place is None or backend is None:
        return made
    facts = {
        each: getattr(made, each) for each in ("all_special_ids", "unk_token_id", "split_special_tokens")
    }
    _keep(place, backend, facts)
    return KeptTokenizer(backend, facts)


def _place(checkpoint: Checkpoint) -> Path | None:
    """The folder of the cache for what these versions make of a checkpoint's files; None for one of several
    files in older formats."""
    digest = hashlib.sha256(" ".join(version(each) for each in _MADE_BY).encode())
    if isinstance(checkpoint.source, GgufSource):
        with checkpoint.source.files[0].open("rb") as stream:
            digest.update(stream.read(checkpoint.source.header.data_start))
    else:
        files = [checkpoint.folder / name for name in ("tokenizer.json", *_BESIDE)]
        if not files[0].is_file():
            return None
        for path in files:
            digest.update(f"\n{path.name}\n".encode())
            with reading(path):
                if path.is_file():
                    digest.update(path.read_bytes())
    return cache_dir() / "tokenizers" / digest.hexdigest()[:32]


def _keep(place: Path, backend: tokenizers.Tokenizer, facts: Mapping[str, Any]) -> None:
    try:
        with atomic_folder(place) as work:
            work.mkdir()
            backend.save(str(work / "tokenizer.json"), pretty=False)
            (work / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    except OSError as error:
        _log.info("not kept in %s: %s", place, error)  # a cache that cannot be written only costs time


def made_by_transformers(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint that is on disk, as transformers makes it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with transformers_at_work(f"The tokenizer of {checkpoint.path}"):
        if isinstance(checkpoint.source, GgufSource):
            path = checkpoint.source.files[0]
            # For the config, which needs no tensors; tokens are read from the file itself.
            with shown_to_transformers(checkpoint.source, lambda _: False):
                made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                    str(path.parent), gguf_file=path.name, **OFFLINE
                )
            return made
        # tokenizer.json says how text is cut. For some model types AutoTokenizer would build the cutter of
        # the type's own tokenizer class from its vocabulary instead, whatever the file says.
        whole = checkpoint.folder / "tokenizer.json"
        kind = PreTrainedTokenizerFast if whole.is_file() else AutoTokenizer
        if whole.is_file():
            with whole.open("rb") as stream:
                refuse_pointer(whole, stream.read(8))
        _check_lengths(checkpoint.folder / "tokenizer_config.json")
        return kind.from_pretrained(str(checkpoint.folder), **OFFLINE)


def _check_lengths(config: Path) -> None:
    """Refuse a length that is no number, which transformers would only trip over when a text is cut."""
    if config.is_file():
        length = read_json_object(config).get("model_max_length")
        if not isinstance(length, int | float | None):
            raise HeadatlasError(
                f"{config}: model_max_length is {length!r:.100}, not a number; correct it or fetch it again."
            )


def missing_tokenizer(checkpoint: Checkpoint) -> str:
    """Say what of a tokenizer a checkpoint lacks; empty if nothing, or where one was given."""
    if checkpoint.path is None or checkpoint.loaded_tokenizer is not None:
        return ""
    if isinstance(checkpoint.source, GgufSource):
        return _missing_in(checkpoint.source)
    with reading(checkpoint.folder):
        there = any((checkpoint.folder / name).is_file() for name in _TOKENIZER_FILES)
    return "" if there else f"{checkpoint.folder} holds no tokenizer; put the model's tokenizer.json there."


def _missing_in(source: GgufSource) -> str:
    path, header = source.files[0], source.header
    if not header.arrays.get(_GGUF_TOKENS):
        return f"{path} holds no tokenizer ({_GGUF_TOKENS} is missing); convert the model again."
    kind = header.metadata.get("tokenizer.ggml.model")
    needs = [f"tokenizer.ggml.{each}" for each in _GGUF_NEEDS.get(str(kind), ())]
    if not needs or any(header.arrays.get(each) for each in needs):
        return ""
    return (
        f"{path}: its tokenizer ({kind}) lacks {' and '.join(needs)}, so that no text can be cut into "
        "its tokens; convert the model again, or pass a tokenizer (tokenizer=… in Python)."
    )


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """``sha256:`` over the sorted vocabulary (token, id) and the ids of the special tokens."""
    body = [sorted(tokenizer.get_vocab().items()), sorted(set(tokenizer.all_special_ids))]
    return f"sha256:{hashlib.sha256(json.dumps(body).encode()).hexdigest()}"
