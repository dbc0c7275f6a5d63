"""Predict from lens states alone which heads write in context: attention, and what explains it.

A made-up text of eight positions is put together from states that the lens gives for single tokens; no text
is run. Position 0 holds a token alone at the first position (where models have an attention sink), the last
a function word, one place the source, the others common words. Queries and keys are those of the model's own
projections, norms and rotary positions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from experiments.worth_agreement import THIRDS, Floats, given, known_mean, over_heads, shown, thirds
from experiments.worth_scores import Bench, Scores
from experiments.worth_variants import (
    States,
    by_relation,
    dynamic_scores,
    mean_states,
    neutral_parts,
    texts_after,
    watched,
)
from headatlas.architectures import Model
from headatlas.evidence.statistics import Estimate
from headatlas.evidence.texts import Ids
from headatlas.lenses import NEUTRAL_PREFIXES
from headatlas.relations.tokenising import word_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH = 8
FIRST = "The"
QUERIES = ("is", "the", "of", "and")
COMMON = ("time", "people", "way", "day", "work")
PLACES = (3, 4, 5, 6)
DRAWS = 200


@dataclass(frozen=True)
class MadeUp:
    """States that made-up texts consist of, each [n, d_model] a layer.

    Attributes:
        first: [1, d_model]: a token alone at the first position.
        queries, common, sources: The lens's states.
    """

    first: States
    queries: States
    common: States
    sources: States


@dataclass(frozen=True)
class AttentionInputs:
    """Queries and keys of one layer as the model makes them.

    Attributes:
        module: The attention module.
        rotate: Turns [n_heads, n, d_head] of one kind to a position.
    """

    module: Any
    rotate: Callable[[torch.Tensor, int], torch.Tensor]

    def queries(self, states: torch.Tensor, position: int) -> torch.Tensor:
        """[n_heads, n, d_head]."""
        return self.rotate(self._split(states, "q"), position)

    def keys(self, states: torch.Tensor, position: int) -> torch.Tensor:
        """[n_heads, n, d_head], each key repeated for the query heads of its group."""
        keys = self.rotate(self._split(states, "k"), position)
        return keys.repeat_interleave(int(self.module.num_key_value_groups), dim=0)

    def values(self, states: torch.Tensor) -> torch.Tensor:
        """[n_heads, n, d_head], repeated in the same way."""
        rows: torch.Tensor = self.module.v_proj(states)
        values = rows.reshape(len(rows), -1, self.module.head_dim).transpose(0, 1)
        return values.repeat_interleave(int(self.module.num_key_value_groups), dim=0)

    def _split(self, states: torch.Tensor, kind: str) -> torch.Tensor:
        rows: torch.Tensor = self.module.get_submodule(f"{kind}_proj")(states)
        rows = rows.reshape(len(rows), -1, self.module.head_dim).transpose(0, 1)
        norm = getattr(self.module, f"{kind}_norm", None)
        normed: torch.Tensor = rows if norm is None else norm(rows)
        return normed


@contextmanager
def catching(modules: PreTrainedModel, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The positions that attention modules are called with, by path."""
    caught: dict[str, Any] = {}

    def taking(path: str) -> Callable[..., None]:
        def hook(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
            caught[path] = kwargs["position_embeddings"]

        return hook

    handles = [
        modules.get_submodule(path).register_forward_pre_hook(taking(path), with_kwargs=True)
        for path in paths
    ]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def attention_inputs(model: Model, modules: PreTrainedModel, length: int = LENGTH) -> list[AttentionInputs]:
    """Queries and keys of every layer, for models whose attention is called as Llama's and Gemma's."""
    paths = [model.value_input_module(layer).rpartition(".")[0] for layer in range(model.dims.n_layers)]
    with catching(modules, paths) as caught, torch.inference_mode():
        modules.base_model(input_ids=torch.zeros((1, length), dtype=torch.int64), use_cache=False)
    found = []
    for path in paths:
        module: Any = modules.get_submodule(path)
        found.append(AttentionInputs(module, _rotation(module, *caught[path])))
    return found


def _rotation(
    module: Any, cos: torch.Tensor, sin: torch.Tensor
) -> Callable[[torch.Tensor, int], torch.Tensor]:
    apply = sys.modules[type(module).__module__].apply_rotary_pos_emb

    def rotate(rows: torch.Tensor, position: int) -> torch.Tensor:
        at = slice(position, position + 1)
        turned: torch.Tensor = apply(rows[None], rows[None], cos[:, at], sin[:, at])[0]
        return turned[0]

    return rotate


def predicted(
    attention: AttentionInputs, made_up: MadeUp, layer: int, *, uniform: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention and output that a made-up text predicts, means over queries and places.

    Args:
        attention: How the layer makes queries and keys.
        made_up: What the texts consist of.
        layer: Which.
        uniform: Give every position the same weight instead, as a control.

    Returns:
        [n_heads, n] the weight of the source, and [n_heads, n, d_head] the mixture of value vectors.
    """
    queries = attention.queries(made_up.queries(layer), LENGTH - 1) * attention.module.scaling
    sources, common, first = (part(layer) for part in (made_up.sources, made_up.common, made_up.first))
    source_values, common_values = attention.values(sources), attention.values(common)
    first_values, query_values = attention.values(first), attention.values(made_up.queries(layer))
    weights, mixtures = [], []
    for place in PLACES:
        free = [at for at in range(1, LENGTH - 1) if at != place]
        # Common words fill the free places in their order.
        fixed = torch.cat(
            [attention.keys(first, 0)] + [attention.keys(common[i : i + 1], at) for i, at in enumerate(free)],
            dim=1,
        )
        fixed_values = torch.cat([first_values, common_values], dim=1)
        keys = attention.keys(sources, place)
        own_keys = attention.keys(made_up.queries(layer), LENGTH - 1)
        for q in range(queries.shape[1]):
            query = queries[:, q : q + 1]
            around = torch.cat([fixed, own_keys[:, q : q + 1]], dim=1)
            others = (query @ around.transpose(1, 2)).expand(-1, keys.shape[1], -1)
            logits = torch.cat([(keys * query).sum(dim=-1, keepdim=True), others], dim=-1)
            weight = (torch.zeros_like(logits) if uniform else logits).softmax(dim=-1)
            around_values = torch.cat([fixed_values, query_values[:, q : q + 1]], dim=1)
            weights.append(weight[..., 0])
            mixtures.append(weight[..., :1] * source_values + weight[..., 1:] @ around_values)
    return torch.stack(weights).mean(dim=0), torch.stack(mixtures).mean(dim=0)


def made_up_of(bench: Bench, modules: PreTrainedModel) -> MadeUp:
    """The lens's states of the words that made-up texts consist of."""

    def tokens(words: Sequence[str]) -> list[Ids]:
        ids = word_ids(bench.model.tokenizer(), words)
        if long := [word for word in words if len(ids[word]) != 1]:
            raise SystemExit(f"made-up texts need words of one token; here {', '.join(long)} are several")
        return [ids[word] for word in words]

    def neutral(name: str, words: Sequence[str]) -> States:
        ids = tokens(words)
        return mean_states(
            [
                watched(bench, modules, f"{name} {at}", texts_after(bench.model, prefix, ids))
                for at, prefix in enumerate(NEUTRAL_PREFIXES)
            ]
        )

    # What the tokenizer itself puts first stands there, if it does so; else the word.
    first = texts_after(bench.model, "", [()])[0].ids[:1] or tokens([FIRST])[0]
    alone = watched(bench, modules, "first", texts_after(bench.model, None, [first]))
    sources = mean_states(neutral_parts(bench, modules))
    return MadeUp(alone.states, neutral("queries", QUERIES), neutral("common", COMMON), sources)


def predicted_scores(bench: Bench, modules: PreTrainedModel) -> tuple[Scores, Scores, Scores]:
    """[layer, head, relation] predicted attention, and the scores of the predicted mixtures and of mixtures
    with the same weight everywhere.
    """
    made_up = made_up_of(bench, modules)
    by_layer = attention_inputs(bench.model, modules)

    def both(layer: int, *, uniform: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        return predicted(by_layer[layer], made_up, layer, uniform=uniform)

    attention = bench.kept("predicted attention", lambda: by_relation(bench, lambda layer: both(layer)[0]))
    mixture = bench.of_outputs("mixture", lambda layer: both(layer)[1])
    uniform = bench.of_outputs("uniform mixture", lambda layer: both(layer, uniform=True)[1])
    return attention, mixture, uniform


def predictors(score: Floats, attention: Floats, mixture: Floats) -> dict[str, Floats]:
    """Predictors of scores in context by name, each [layer, head, relation], from the static parts."""
    product = score * attention
    return {
        "neutral": score,
        "product": product,
        "mixture": mixture,
        "root": score * np.sqrt(attention),
        "neutral + mixture": score + mixture,
        "product + mixture": product / product.std() + mixture / mixture.std(),
    }


def gap_tables(bench: Bench, modules: PreTrainedModel) -> Iterator[pd.DataFrame]:
    """Tables of how well the predictors do, and of how well attention itself is predicted."""
    context, _, measured = dynamic_scores(bench, modules)
    neutral = bench.of_states("neutral", mean_states(neutral_parts(bench, modules)), right=True)
    attention, mixture, uniform = predicted_scores(bench, modules)
    found = predictors(neutral[0], attention, mixture[0])
    found["control: uniform mixture"] = uniform[0]
    found["control: neutral + uniform mixture"] = neutral[0] + uniform[0]
    found["not static: × attention in the text"] = neutral[0] * measured
    yield _judged(found, context[0])
    yield _shuffled(neutral[0], attention, context[0])
    yield pd.DataFrame(
        {
            "layers": ["all", *THIRDS],
            "r of predicted and measured attention": [
                shown(known_mean(over_heads(attention[part], measured[part])))
                for part in (slice(None), *thirds(len(attention)))
            ],
        }
    )


def _shuffled(score: Floats, attention: Floats, context: Floats) -> pd.DataFrame:
    """The product with the predicted attention of other heads: what a factor that knows nothing gives."""
    rng = np.random.default_rng(0)
    heads = attention.reshape(-1, attention.shape[-1])
    base = over_heads(score, context)
    found = []
    for _ in range(DRAWS):
        product = score * rng.permutation(heads).reshape(attention.shape)
        r = over_heads(product, context)
        partial = given(r, base, over_heads(product, score))
        found.append((np.nanmean(r), np.nanmean(partial)))
    low, middle, high = np.quantile(found, [0.025, 0.5, 0.975], axis=0)
    return pd.DataFrame(
        {
            "attention of other heads": ["r with context", "partial r"],
            f"median and 95 % of {DRAWS} draws": [
                shown(Estimate(*map(float, each))) for each in zip(middle, low, high, strict=True)
            ],
        }
    )


def _judged(found: dict[str, Floats], context: Floats) -> pd.DataFrame:
    """One row a predictor: r with context, difference to the score alone, partial r given it, thirds."""
    score = found["neutral"]
    base = over_heads(score, context)
    rows = []
    for name, each in found.items():
        r = over_heads(each, context)
        row = {"predictor": name, "with context": shown(known_mean(r)), "minus neutral": "", "partial r": ""}
        if name != "neutral":
            row["minus neutral"] = shown(known_mean(r - base), sign=True)
            row["partial r"] = shown(known_mean(given(r, base, over_heads(each, score))))
        for label, part in zip(THIRDS, thirds(len(each)), strict=True):
            row[label] = f"{known_mean(over_heads(each[part], context[part])).value:.2f}"
        rows.append(row)
    return pd.DataFrame(rows)
