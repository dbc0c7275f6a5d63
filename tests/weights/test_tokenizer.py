"""Tokenizers: as transformers makes them, and made by it only once."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from headatlas.weights import load_modules, load_tokenizer, open_checkpoint, tokenizer_hash
from headatlas.weights.tokenizer import KeptTokenizer
from tests.mapping.checkpoints import word_tokenizer
from tests.relations.tiny_tokenizers import byte_level_bpe, sentence_piece, word_piece
from tests.weights import builders

TEXTS = [
    "", "a", " the year 1987 and\n naïve", "<s> the </s>", "don't, he said . Yes !", "東京 🗼", "[UNK] the"
]  # fmt: skip


def with_template() -> PreTrainedTokenizerBase:
    """One that puts a token first, cuts off at four, pads, and cleans spaces up by itself."""
    made = word_tokenizer()
    made.backend_tokenizer.enable_truncation(4)
    made.backend_tokenizer.enable_padding(length=9)
    made.clean_up_tokenization_spaces = True
    return made


def with_added_tokens() -> PreTrainedTokenizerBase:
    made = builders.tiny_tokenizer()
    made.add_tokens([AddedToken("<|tool|>", special=True), AddedToken("yesterday", special=False)])
    return made


def splitting_special_tokens() -> PreTrainedTokenizerBase:
    made = builders.tiny_tokenizer()
    made.split_special_tokens = True
    made.init_kwargs["split_special_tokens"] = True
    return made


MAKERS: list[Callable[[], PreTrainedTokenizerBase]] = [
    byte_level_bpe, word_piece, lambda: sentence_piece("first"), lambda: sentence_piece("always"),
    builders.tiny_tokenizer, with_template, with_added_tokens, splitting_special_tokens,
]  # fmt: skip


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A model without a tokenizer of its own."""
    shutil.copytree(llama_folder, tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    return tmp_path / "model"


@pytest.mark.parametrize("make", MAKERS)
def test_a_kept_tokenizer_does_what_that_of_transformers_does(
    make: Callable[[], PreTrainedTokenizerBase], folder: Path, private_cache: Path
) -> None:
    make().save_pretrained(folder)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for _ in range(2):  # made, then read from the cache
        ours = load_tokenizer(open_checkpoint(folder))
        assert isinstance(ours, KeptTokenizer)
        assert ours.get_vocab() == theirs.get_vocab()
        assert ours.all_special_ids == theirs.all_special_ids
        assert ours.unk_token_id == theirs.unk_token_id
        assert ours.added_tokens_decoder == theirs.added_tokens_decoder
        assert tokenizer_hash(ours) == tokenizer_hash(theirs)
        for special in (True, False):
            rows = theirs(TEXTS, add_special_tokens=special)["input_ids"]
            assert ours(TEXTS, add_special_tokens=special)["input_ids"] == rows
            assert ours(TEXTS[3], add_special_tokens=special)["input_ids"] == rows[3]
            assert ours.batch_decode(rows, clean_up_tokenization_spaces=False) == theirs.batch_decode(
                rows, clean_up_tokenization_spaces=False
            )
        ids = sorted(theirs.get_vocab().values())
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
        assert ours.convert_ids_to_tokens(ids[-1]) == theirs.convert_ids_to_tokens(ids[-1])
        assert len(list(private_cache.glob("tokenizers/*/facts.json"))) == 1


def test_a_changed_file_is_another_tokenizer(llama_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(llama_folder, tmp_path / "model")
    config = tmp_path / "model/tokenizer_config.json"
    before = load_tokenizer(open_checkpoint(tmp_path / "model"))
    config.write_text(json.dumps({**json.loads(config.read_text()), "unk_token": "the"}))
    after = load_tokenizer(open_checkpoint(tmp_path / "model"))
    assert after.unk_token_id == before.get_vocab()["the"] != before.unk_token_id


@pytest.mark.parametrize("form", ["safetensors", "gguf"])
def test_a_second_opening_does_without_transformers(
    form: str, llama_folder: Path, tmp_path: Path, private_cache: Path
) -> None:
    spec = llama_folder
    if form == "gguf":
        spec = builders.qwen2_gguf(tmp_path / "tiny.gguf", builders.tiny_qwen2())
    first = load_tokenizer(open_checkpoint(spec))
    code = (
        "import sys; from headatlas.weights import *; "
        f"words = load_tokenizer(open_checkpoint({str(spec)!r})); "
        f"print(words({TEXTS[2]!r})['input_ids'], 'transformers' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{first(TEXTS[2])['input_ids']} False\n"


def test_gguf_tokenizer_is_converted_once(
    tmp_path: Path, private_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("read or converted again")

    monkeypatch.setattr("gguf.GGUFReader", refuse)  # it makes objects of each token
    checkpoint = open_checkpoint(builders.qwen2_gguf(tmp_path / "tiny.gguf", builders.tiny_qwen2()))
    first = load_tokenizer(checkpoint)
    assert first.get_vocab() == builders.tiny_tokenizer().get_vocab()
    load_modules(checkpoint)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    second = load_tokenizer(checkpoint)
    assert second(TEXTS) == first(TEXTS)
    assert tokenizer_hash(second) == tokenizer_hash(first)
