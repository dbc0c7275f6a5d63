"""The answers: one open model and one atlas, asked from one thread at a time."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from headatlas import __version__
from headatlas.atlas import Atlas
from headatlas.atlas.export import heading, plain_records
from headatlas.devices import strict_products
from headatlas.errors import HeadatlasError
from headatlas.looking.one_text import OneText, look_at, most_tokens, text_ids
from headatlas.mapping.run import layer_inputs
from headatlas.progress import Progress
from headatlas.relations import Relation, checked_word
from headatlas.serving.bodies import (
    LISTED,
    MOST_PAIRS,
    About,
    Asked,
    HeadInText,
    HeadInTextAnswer,
    LookAnswer,
    LookInText,
    LookRow,
    NamedPairs,
    Pairs,
    PairsAnswer,
    RelationFile,
    TextAnswer,
    TextAsked,
    TextRow,
    Told,
    Weight,
    WordAnswer,
    WordAsked,
    WordRow,
    Written,
)
from headatlas.writing.opened import OpenModel, head_outputs, strongest
from headatlas.writing.words import ranked_heads

TEXTS_KEPT = 2
"""Texts whose attention stays in memory, for the questions that follow."""
LOOKS = 3
DIGITS = 4

Check = Callable[[], None]
"""Called between steps; raises where nobody waits for the answer any more."""


class Answers:
    """Answers about an atlas, by its model, which is held."""

    def __init__(self, atlas: Atlas, opened: OpenModel) -> None:
        self.atlas, self.opened = atlas, opened
        self.model = opened.prepared.model
        self._heading = heading(atlas)
        self._texts: OrderedDict[tuple[int, ...], OneText] = OrderedDict()
        self.of: dict[str, Callable[[Any, Check], Told]] = {
            "/api/pairs": self.pairs,
            "/api/word": self.word,
            "/api/text": self.text,
            "/api/text/head": self.head_in_text,
            "/api/text/look": self.look,
            "/api/relation": self.relation,
        }

    def about(self) -> About:
        """The model served, and how much may be asked."""
        return About(
            **self._heading,
            most_pairs=MOST_PAIRS,
            most_tokens=most_tokens(self.model),
            headatlas=__version__,
        )

    def answer(self, path: str, body: Asked, check: Check) -> Told:
        """The answer to a question; what ``check`` raises goes through."""
        with torch.inference_mode(), strict_products():
            return self.of[path](body, check)

    def pairs(self, asked: Pairs, check: Check) -> PairsAnswer:
        """Ranks of pairs for every head, as :func:`headatlas.query` has them."""
        relation = Relation.from_pairs("query", [(each.source, each.target) for each in asked.pairs])
        found = ranked_heads(self.opened, relation, lambda _: check())
        return PairsAnswer.model_validate({**found.attrs, "rows": plain_records(found)})

    def word(self, asked: WordAsked, check: Check) -> WordAnswer:
        """The tokens that every head writes for a word."""
        opened, word = self.opened, checked_word(asked.word)
        ids = opened.source_ids([word])[word]
        heads, rows, gains = [], [], []

        def tell(_: Progress) -> None:
            check()

        with opened.states([ids], tell) as states:
            for layer in self.model.layers_with_heads:
                check()
                inputs = layer_inputs(opened.prepared, states, layer)
                size = float(inputs.states[0].double().norm())
                values = [inputs.values(group) for group in range(inputs.dims.n_kv_heads)]
                for head, row in enumerate(head_outputs(inputs)):
                    written = values[inputs.dims.kv_head(head)] @ inputs.heads.W_O[head].double()
                    heads.append((layer, head))
                    gains.append(float(written.norm()) / size if size else 0.0)
                    rows.append(row)
        lists = []
        for part in torch.split(torch.cat(rows), 64):
            check()
            lists += strongest(part, opened.vocabulary, LISTED)
        texts = opened.texts({*ids, *(token for pair in lists for side in pair for token in side)})
        ranks = self._ranks_of_itself(word, check)
        found = [
            WordRow(
                layer=layer,
                head=head,
                gain=round(gain, 6),
                **({} if ranks is None else ranks[layer, head]),
                promoted=[texts[token] for token in promoted],
                suppressed=[texts[token] for token in suppressed],
            )
            for (layer, head), gain, (promoted, suppressed) in zip(heads, gains, lists, strict=True)
        ]
        own = "ranks are the word's own" if ranks else "no ranks: the tokenizer cannot use it as a target"
        return WordAnswer(
            **self._said(
                f"lens {self.atlas.lens}; what each head writes for this word by itself, whatever the rest "
                "of the model writes and whether or not it attends to the word; gain is ‖what it writes‖ / "
                f"‖state‖; {own}"
            ),
            word=word,
            tokens=[texts[token] for token in ids],
            can_be_target=ranks is not None,
            rows=sorted(found, key=lambda row: (-row.gain, row.layer, row.head)),
        )

    def _ranks_of_itself(
        self, word: str, check: Check
    ) -> dict[tuple[int, int], dict[str, int | None]] | None:
        """Head → exact ranks of a word in what the head writes for it; None where it cannot be a target."""
        relation = Relation.from_pairs("copying", [(word, word)])
        try:
            self.opened.asking(relation)
        except HeadatlasError:
            return None
        found = ranked_heads(self.opened, relation, lambda _: check())
        return {
            (row["layer"], row["head"]): {
                "rank": row["ranks"][0],
                "suppression_rank": row["suppression_ranks"][0],
            }
            for row in plain_records(found)
        }

    def text(self, asked: TextAsked, check: Check) -> TextAnswer:
        """The places that every head looks at in a text."""
        seen = self._seen(asked.text, check)
        length = len(seen.ids)
        # The first token draws attention whatever it is; a token's weight on itself says little.
        earlier = torch.ones(length, length, dtype=torch.bool).tril(-1)
        earlier[:, 0] = False
        rows = []
        for layer, attention in seen.attention.items():
            check()
            largest = torch.where(earlier, attention, -1.0).flatten(1).topk(min(LOOKS, length**2), dim=1)
            firsts = attention[:, 1:, 0].mean(dim=1) if length > 1 else torch.zeros(len(attention))
            for head, (weights, places) in enumerate(zip(*map(torch.Tensor.tolist, largest), strict=True)):
                looks = [
                    Weight(query=place // length, key=place % length, attention=round(weight, DIGITS))
                    for weight, place in zip(weights, places, strict=True)
                    if weight >= 0
                ]
                first = round(float(firsts[head]), DIGITS)
                rows.append(TextRow(layer=layer, head=head, first_position=first, weights=looks))
        rows.sort(key=lambda row: (-sum(look.attention for look in row.weights), row.layer, row.head))
        return TextAnswer(**self._of_text(), tokens=list(seen.texts), rows=rows)

    def head_in_text(self, asked: HeadInText, check: Check) -> HeadInTextAnswer:
        """Attention of one head in a text, and what it writes at each position."""
        if asked.head >= self.atlas.n_heads or asked.layer not in self.model.layers_with_heads:
            raise HeadatlasError(f"there is no head {asked.layer}.{asked.head} in this model.")
        seen = self._seen(asked.text, check)
        check()
        lists = strongest(seen.written(self.model, asked.layer, asked.head), self.opened.vocabulary, LISTED)
        texts = self.opened.texts(token for pair in lists for side in pair for token in side)
        attention = np.round(seen.attention[asked.layer][asked.head].double().numpy(), DIGITS).tolist()
        return HeadInTextAnswer(
            **self._of_text(),
            layer=asked.layer,
            head=asked.head,
            pattern=[row[: at + 1] for at, row in enumerate(attention)],
            written=[
                Written(promoted=[texts[each] for each in plus], suppressed=[texts[each] for each in minus])
                for plus, minus in lists
            ],
        )

    def look(self, asked: LookInText, check: Check) -> LookAnswer:
        """Which heads look from one token, and where."""
        seen = self._seen(asked.text, check)
        if max(asked.query, asked.key or 0) >= len(seen.ids):
            raise HeadatlasError(f"the text has {len(seen.ids)} tokens, numbered from 0.")
        if asked.key is not None and asked.key > asked.query:
            raise HeadatlasError("a token attends to itself and to those before it, not to later ones.")
        rows = []
        for layer, attention in seen.attention.items():
            weights = attention[:, asked.query, : asked.query + 1]
            keys = weights.argmax(dim=1) if asked.key is None else torch.full((len(weights),), asked.key)
            for head, (key, weight) in enumerate(
                zip(keys.tolist(), weights.gather(1, keys[:, None])[:, 0].tolist(), strict=True)
            ):
                rows.append(LookRow(layer=layer, head=head, key=key, attention=round(weight, DIGITS)))
        rows.sort(key=lambda row: (-row.attention, row.layer, row.head))
        return LookAnswer(**self._of_text(), query=asked.query, rows=rows)

    def relation(self, asked: NamedPairs, check: Check) -> RelationFile:
        """Pairs as a relation file."""
        check()
        pairs = [(each.source, each.target) for each in asked.pairs]
        relation = Relation.from_pairs(asked.name, pairs)
        return RelationFile(name=f"{relation.name}.json", text=relation.to_json())

    def _said(self, caption: str) -> dict[str, Any]:
        """The first fields of an answer, with a caption of its own."""
        return {**self._heading, "caption": f"{self.atlas.model_name}; {caption}"}

    def _of_text(self) -> dict[str, Any]:
        return self._said(
            "attention and outputs in this one text: no test, no expected level; "
            "the tokens promoted are those of this head alone, whatever the rest of the model writes"
        )

    def _seen(self, text: str, check: Check) -> OneText:
        """A text as all heads see it; of the last few, from memory."""
        ids = text_ids(self.model, text)
        if ids not in self._texts:
            while len(self._texts) >= TEXTS_KEPT:
                self._texts.popitem(last=False)
            self._texts[ids] = look_at(self.model, self.opened.modules, ids, lambda *_: check())
        self._texts.move_to_end(ids)
        return self._texts[ids]
