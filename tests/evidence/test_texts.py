"""Templates, words in them, and tasks: what the tokenizer does to them."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from headatlas.errors import HeadatlasError
from headatlas.evidence.asking import _shared
from headatlas.evidence.texts import (
    CUT_DIFFERENTLY,
    TARGET_CUT_DIFFERENTLY,
    Template,
    Text,
    continued,
    in_template,
    make_task,
    place,
    read_templates,
)
from headatlas.lenses import NEUTRAL_PREFIXES
from headatlas.relations import core, tokenise
from headatlas.relations.tokenising import word_ids
from tests.mapping.checkpoints import relation, word, word_tokenizer
from tests.relations.tiny_tokenizers import byte_level_bpe, sentence_piece

PAIRS = [(word(20 + at), [word(80 + at)]) for at in range(40)]


def test_the_shipped_templates() -> None:
    """Every relation of core can be asked, and no context template puts a lens's prefix before the word."""
    templates = read_templates()
    assert set(templates.tasks) >= {each.name for each in core()}
    assert len(templates.context) == 4
    for template in templates.context:
        assert not any(
            template.before.rstrip().endswith(prefix.strip() or prefix) for prefix in NEUTRAL_PREFIXES
        )


def test_a_file_replaces_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"tasks": {"country_to_capital": "{}:", "mine": "a {} b"}}))
    found = read_templates(path)
    assert found.context == read_templates().context
    assert str(found.tasks["country_to_capital"]) == "{}:" and str(found.tasks["mine"]) == "a {} b"
    assert found.tasks["copying"] == read_templates().tasks["copying"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"context": ["About it"]}', "the template 'About it' needs exactly one {}"),
        ('{"context": ["{} and {}"]}', "needs exactly one {}"),
        ('{"tasks": {"copying": "Repeat {}: "}}', "copying: the template 'Repeat {}: ' ends with a space"),
        ('{"tasks": {"copying": 3}}', "copying: the template 3 needs"),
        ('{"context": ["a {}", "a {}"]}', "the same template twice"),
        ('{"context": []}', '"context" holds no text'),
        ('{"context": "a {}"}', '"context" must be a list'),
        ('{"task": {}, "context": ["a {}"]}', "'task' means nothing here"),
        ("[]", 'must be an object with "context" or "tasks"'),
        ("{", "this is not JSON"),
        ("[" * 100_000, "this is not JSON"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, body: str | None, message: str) -> None:
    path = tmp_path / "mine.json"
    if body is not None:
        path.write_text(body)
    with pytest.raises(HeadatlasError) as caught:
        read_templates(path)
    assert message in str(caught.value) and "mine.json" in str(caught.value)


@pytest.mark.parametrize(
    "make", [byte_level_bpe, lambda: sentence_piece("always"), lambda: sentence_piece("never")]
)
def test_where_a_source_is(make) -> None:
    """In every way of cutting words the source's last token is found, in the tokens it has in the atlas."""
    tokenizer = make()
    words = ["Paris", "cat", "France", "tiger", "1999"]
    ids = word_ids(tokenizer, words)
    sources = [ids[each] for each in words]
    for template in (Template("The cat of ", ""), Template("The cat of ", " of Rome")):
        for text, source, each in zip(
            place(tokenizer, template, words, sources), sources, words, strict=True
        ):
            assert text is not None, each
            assert text.ids[text.source + 1 - len(source) : text.source + 1] == source
    assert place(tokenizer, Template("The cat", ""), ["Paris"], [ids["Paris"]]) == [None]


def test_a_source_that_is_cut_differently_is_listed() -> None:
    tokenizer = word_tokenizer()
    pairs = [*PAIRS[:35], ("w70,", [word(120)])]
    tokenised = tokenise(
        relation("some", pairs), tokenizer, competing=np.arange(300) > 3, max_source_tokens=3
    )
    found, texts = in_template(tokenised, tokenizer, Template("a ", " of"))
    assert found.left_out is None and len(found.pairs) == 35 == len(texts)
    assert texts[(20,)] == Text((1, 8, 20, 7), 2)
    glued, texts = in_template(tokenised, tokenizer, Template("a ", ","))
    assert glued.dropped[CUT_DIFFERENTLY] == tuple(source for source, _ in PAIRS[:35])
    assert "0 usable sources" in str(glued.left_out) and not texts


def test_a_task() -> None:
    """Examples are evenly spaced and not asked; right answers are the accepted tokens."""
    tokenizer = word_tokenizer()
    pairs = [(source, [*targets, word(200)]) for source, targets in PAIRS]
    tokenised = tokenise(
        relation("some", pairs), tokenizer, competing=np.arange(300) > 3, max_source_tokens=3
    )
    plain = make_task(tokenised, tokenizer, Template("The ", " of"), shots=0, sources=64)
    assert plain.words == tuple(source for source, _ in pairs)
    assert plain.prompts[0] == (1, 4, 20, 7) and plain.accepted[0] == {80, 200}
    assert plain.correct(np.array([80, 200, *[0] * 38])).tolist() == [True, True, *[False] * 38]
    few = make_task(tokenised, tokenizer, Template("The ", " of"), shots=4, sources=10)
    assert len(few.words) == 10
    examples = [word(20 + at) for at in (5, 15, 25, 35)]
    assert not set(examples) & set(few.words)
    text = tokenizer.decode(few.prompts[0])
    assert all(example in text for example in examples[:1])
    assert len(set(few.prompts)) == 10 and _shared(few.prompts) == len(few.prompts[0]) - 2


def test_a_target_that_is_cut_differently() -> None:
    """A target written without a space runs into the word before it, for a tokenizer that cuts at spaces."""
    assert continued(word_tokenizer(), ["The w20"], [[word(30), "7", word(31)]]) == [[(30,), (), (31,)]]
    assert continued(byte_level_bpe(), ["The cat"], [["Rome", "7"]])[0] == [
        word_ids(byte_level_bpe(), [each])[each] for each in ("Rome", "7")
    ]


def test_pairs_whose_target_is_cut_differently_are_dropped() -> None:
    tokenizer = word_tokenizer()
    tokenised = tokenise(
        relation("some", PAIRS), tokenizer, competing=np.arange(300) > 3, max_source_tokens=3
    )
    with patch("headatlas.evidence.texts.continued", lambda *_: [[(1, 2)]] * 3 + [[(83,)]] + [[()]] * 36):
        task = make_task(tokenised, tokenizer, Template("The ", " of"), shots=0, sources=64)
    assert task.words == (word(23),)
    assert len(task.dropped[TARGET_CUT_DIFFERENTLY]) == 39
