# ruff: noqa: S106 -- the tokens given by keyword are pieces of text, not passwords
"""Tiny checkpoints on disk with a word-level tokenizer, and relations over its words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from headatlas.relations import Pair, Relation
from tests.architectures import tiny

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
TEXT = ("The", "\n", ",", "of", "a")
FIRST_WORD = len(SPECIAL) + len(TEXT)
VOCAB = 300


def word(token: int) -> str:
    """The word that is token ``token``."""
    return (*SPECIAL, *TEXT)[token] if token < FIRST_WORD else f"w{token}"


def word_tokenizer(vocab: int = VOCAB, template: str = "<s> $A") -> PreTrainedTokenizerFast:
    """One token a word; ``template`` says what is put around a text."""
    ids = {word(token): token for token in range(vocab)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    specials = [(token, ids[token]) for token in ("<s>", "</s>") if token in template.split()]
    if specials:
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def tiny_model(case: str, vocab: int = VOCAB, *, layers: int = 3) -> PreTrainedModel:
    """A random float32 model of a family (tests/architectures/tiny.py) with a larger vocabulary."""
    if case in tiny.CASES:
        kind, changes = tiny.CASES[case]
        with patch.dict(tiny.ALL, {case: partial(tiny._from_config, kind, changes | {"vocab_size": vocab})}):
            return tiny.tiny_model(case).float()
    sizes = {"vocab_size": vocab, "num_hidden_layers": layers}
    with (
        patch.dict(tiny._COMMON, sizes),
        patch.dict(tiny._GPT2, {"vocab_size": vocab, "n_layer": layers}),
    ):
        return tiny.tiny_model(case).float()


def save(model: PreTrainedModel, folder: Path, vocab: int = VOCAB) -> Path:
    """The model and its tokenizer as a folder."""
    model.save_pretrained(folder)
    word_tokenizer(vocab).save_pretrained(folder)
    return folder


def relation(
    name: str, pairs: Sequence[tuple[str, Sequence[str]]], *, copying: bool = False, category: str = "User"
) -> Relation:
    """A relation of written words."""
    body = tuple(Pair(source, tuple(targets)) for source, targets in pairs)
    return Relation(name, name.replace("_", " → "), category, body, copying=copying)


def random_relations(vocab: int = VOCAB, *, several_tokens: bool = True) -> list[Relation]:
    """One to one, several targets, few targets, copying; every seventh source has two tokens if wanted."""
    rng = np.random.default_rng(vocab)
    sources = [word(int(t)) for t in rng.permutation(np.arange(FIRST_WORD, vocab))[:40]]
    targets = [word(int(t)) for t in rng.permutation(np.arange(FIRST_WORD, vocab))[:40]]
    if several_tokens:
        sources = [f"{s} {targets[i]}" if i % 7 == 3 else s for i, s in enumerate(sources)]
    drawn = [rng.choice(np.arange(FIRST_WORD, vocab), 3, replace=False) for _ in range(35)]
    several = [(s, [word(int(t)) for t in ts]) for s, ts in zip(sources[:35], drawn, strict=True)]
    return [
        relation("one_to_one", [(s, [t]) for s, t in zip(sources, targets, strict=True)]),
        relation("several", several, category="Knowledge"),
        relation("few", [(s, [targets[i % 4]]) for i, s in enumerate(sources[2:])]),
        relation("copy", [(t, [t]) for t in targets[:33]], copying=True, category="Algorithmic"),
    ]


def silenced(model: PreTrainedModel, paths: Sequence[str]) -> PreTrainedModel:
    """The model with the parameters of some modules set to zero."""
    with torch.no_grad():
        for path in paths:
            for parameter in model.get_submodule(path).parameters():
                parameter.zero_()
    return model
