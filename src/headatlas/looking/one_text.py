"""One text seen by all heads: where each looks from every token, and what it brings to its output there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headatlas.architectures import Model
from headatlas.devices import strict_products
from headatlas.errors import HeadatlasError
from headatlas.evidence.recording import attention_by_layer, with_attention
from headatlas.evidence.texts import encode
from headatlas.lenses.forward import entering, pre_hooks, prefix_ids, require_embedded, require_finite
from headatlas.looking.sequences import most_positions, pieces
from headatlas.mapping.inputs import given_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_TOKENS = 512
"""Of a text, with those that the tokenizer puts first."""
ATTENTION_BYTES = 256 << 20
"""That the attention of all heads to one text may take: with many heads texts are shorter."""


@dataclass(frozen=True)
class OneText:
    """A text as all heads see it."""

    ids: tuple[int, ...]  # [T] token ids, with those that the tokenizer itself puts first
    texts: tuple[str, ...]  # [T] what each stands for
    attention: Mapping[int, torch.Tensor]  # Layer → [n_heads, T, T] float32, from query to key
    # Layer → [n_heads, T, d_head] float32: what each head brings to the output projection.
    outputs: Mapping[int, torch.Tensor]

    def written(self, model: Model, layer: int, head: int) -> torch.Tensor:
        """[T, d_model] float64: what a head writes at each position, after the right map, ready for U."""
        rows, right = self.outputs[layer], model.right_map(layer)
        inputs = given_values(model.dims, rows, model.heads(layer), right)
        return inputs.values(head) @ inputs.output(head)


def most_tokens(model: Model) -> int:
    """How many tokens a text may have."""
    heads = len(model.layers_with_heads) * model.dims.n_heads
    within = int((ATTENTION_BYTES / (4 * heads)) ** 0.5)
    return min(MOST_TOKENS, most_positions(model.checkpoint.config) or MOST_TOKENS, within)


def text_ids(model: Model, text: str) -> tuple[int, ...]:
    """Token ids of a text, after those that the tokenizer itself puts first; none or too many are refused."""
    [ids], most = encode(model.tokenizer(), [text]), most_tokens(model)
    if len(ids) == len(prefix_ids(model.tokenizer(), "")):
        raise HeadatlasError("the text has no tokens; write some words.")
    if len(ids) > most:
        raise HeadatlasError(f"the text has {len(ids)} tokens, and {most} are the most; shorten it.")
    require_embedded(model, [ids])
    return ids


def look_at(
    model: Model, modules: PreTrainedModel, ids: tuple[int, ...], tell: Callable[[int, int], None]
) -> OneText:
    """Run one text through a model in float32 and keep what its heads attend to and bring.

    ``tell`` gets (layers done, layers in all) while the text goes through; what it raises ends it.
    """
    layers, dims = model.layers_with_heads, model.dims
    outputs: dict[int, torch.Tensor] = {}

    def hook(layer: int) -> Callable[..., None]:
        def take(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows = entering(args, kwargs)[0].to("cpu", torch.float32)
            outputs[layer] = rows.view(len(ids), dims.n_heads, dims.d_head).transpose(0, 1)
            tell(len(outputs), len(layers))

        return take

    hooks = [(model.o_proj_module(layer), hook(layer)) for layer in layers]
    with with_attention(modules), pre_hooks(modules, hooks), torch.inference_mode(), strict_products():
        seen = modules.base_model(
            input_ids=torch.tensor([ids], device=modules.device), output_attentions=True, use_cache=False
        )
    found = attention_by_layer(model.checkpoint.spec, layers, seen.attentions)
    attention = {layer: found[layer][0].to("cpu", torch.float32) for layer in layers}
    for layer in layers:
        finite = all(bool(torch.isfinite(each[layer]).all()) for each in (attention, outputs))
        require_finite(model.checkpoint.spec, f"what layer {layer} sees in this text is", finite)
    shown = pieces(model.tokenizer(), np.array([ids]), 0)[0].texts
    return OneText(ids, shown, attention, outputs)
