"""Queries and keys of heads, and the attention logits they make: W_Q, W_K, their norms, rotation and scale.

Which tensors these are is the family file's; angles, scale and soft-cap are those of the modules' config.
A logit depends on two states and, with rotary positions, on how far they are apart:

    logit(q, k, d) = cap(scale · ⟨R_d clip(norm(x_q W_Q + b_Q)), clip(norm(x_k W_K + b_K))⟩)

R_d turns pairs of channels by angles proportional to the distance d (Su and others, arXiv:2104.09864 §3.2.2).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from headatlas.architectures.accounting import Inventory
from headatlas.architectures.family import Norm, Queries
from headatlas.architectures.layouts import as_linear, split_fused, stored_as
from headatlas.architectures.mlp import NormWeights
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LayerQueries:
    """Query and key weights of every head of one layer; the last two say what ``Queries`` of a family file
    does."""

    W_Q: torch.Tensor  # [n_heads, d_model, d_head] float32
    b_Q: torch.Tensor | None  # [n_heads, d_head]  # noqa: N815 (the field's name)
    W_K: torch.Tensor  # [n_kv_heads, d_model, d_head] float32, shared by the query heads of a key/value group
    b_K: torch.Tensor | None  # [n_kv_heads, d_head]  # noqa: N815 (the field's name)
    query_norm: NormWeights | None
    key_norm: NormWeights | None
    rotary: Literal["halves", "pairs", "none"]
    norm_over: Literal["head", "heads"]

    def queries(self, x: torch.Tensor) -> torch.Tensor:
        """Queries [n_heads, n, d_head] of states [n, d_model], before they turn; in the states' type."""
        return self._projected(x, self.W_Q, self.b_Q, self.query_norm)

    def keys(self, x: torch.Tensor) -> torch.Tensor:
        """Keys [n_kv_heads, m, d_head] of states [m, d_model], before they turn; in the states' type."""
        return self._projected(x, self.W_K, self.b_K, self.key_norm)

    def _projected(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, norm: NormWeights | None
    ) -> torch.Tensor:
        rows = x @ weight.to(x)
        if bias is not None:
            rows = rows + bias.to(x).unsqueeze(1)
        if norm is None:
            return rows
        if self.norm_over == "heads":
            together = norm(rows.transpose(0, 1).flatten(1))
            return together.view(len(x), *weight.shape[::2]).transpose(0, 1)
        if norm.gain is not None and norm.gain.ndim == 2:  # a gain for each head
            norm = replace(norm, gain=norm.gain.unsqueeze(1))
        return norm(rows)


def queries_of_layer(
    inventory: Inventory,
    layer: int,
    read: Callable[[str], torch.Tensor],
    norm: Callable[[Norm, int], NormWeights],
) -> LayerQueries:
    """Read the queries and keys of a layer that has heads."""
    rules, value, dims = _rules(inventory), inventory.layers[layer].value, inventory.sizes.dims
    if value is None or value.layout.startswith("latent"):
        raise _unread(inventory)
    names = value.beside or (value.stem,)
    biased = all(inventory.has(value.bias, inventory.name(stem, layer, "bias")) for stem in names)

    def both(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        stored = [read(inventory.name(stem, layer, kind)) for stem in names]
        if value.beside:
            heads = zip(stored, (dims.n_heads, dims.n_kv_heads), strict=True)
            queries, keys = (each.reshape(n, dims.d_head, *each.shape[1:]) for each, n in heads)
        else:
            [whole] = stored
            whole = as_linear(whole, stored_as(value.layout)) if kind == "weight" else whole
            queries, keys, _ = split_fused(whole, value.layout, dims)
        return queries, keys

    def normed(each: Norm | None) -> NormWeights | None:
        return None if each is None or inventory.weight(each, layer) is None else norm(each, layer)

    W_Q, W_K = (each.transpose(1, 2).contiguous() for each in both("weight"))
    b_Q, b_K = both("bias") if biased else (None, None)
    query_norm, key_norm = normed(rules.query_norm), normed(rules.key_norm)
    return LayerQueries(W_Q, b_Q, W_K, b_K, query_norm, key_norm, rules.rotary, rules.norm_over)


def _rules(inventory: Inventory) -> Queries:
    if inventory.section.queries is None:
        raise _unread(inventory)
    return inventory.section.queries


def _unread(inventory: Inventory) -> HeadatlasError:
    checkpoint = inventory.checkpoint
    return HeadatlasError(
        f"{checkpoint.spec}: how queries and keys of {checkpoint.architecture!r} models make attention is "
        "not read yet, so where its heads would look cannot be said."
    )


@dataclass(frozen=True)
class AttentionRule:
    """The way a model's layers make attention logits of queries and keys."""

    scale: float  # multiplies a product
    cap: float | None  # soft-cap of logits, or None
    clip: float | None  # the largest size of a channel of queries and keys, or None
    turning: frozenset[int]  # layers in which queries and keys turn with their position
    _angles: Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]

    def logits(
        self, layer: int, heads: LayerQueries, queries: torch.Tensor, keys: torch.Tensor, distance: int
    ) -> torch.Tensor:
        """Attention logits [n_heads, n, m], before the softmax, of what :class:`LayerQueries` gives.

        The distance is the position of the query less that of the key; the kind of the layer may decide about
        the angles.
        """
        if self.clip is not None:
            queries, keys = queries.clamp(-self.clip, self.clip), keys.clamp(-self.clip, self.clip)
        if layer in self.turning:
            cos, sin = self._angles(layer, distance)
            queries = turned(queries, cos[-1], sin[-1], heads.rotary)
            keys = turned(keys, cos[0], sin[0], heads.rotary)
        keys = keys.repeat_interleave(len(queries) // len(keys), dim=0)
        found = self.scale * queries @ keys.transpose(1, 2)
        return found if self.cap is None else self.cap * (found / self.cap).tanh()


def turned(rows: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, rotary: str) -> torch.Tensor:
    """Rows [..., d_head] with the first 2 * len(cos) channels turned by the angles, pair by pair."""
    import torch

    width = 2 * len(cos)
    turning, rest = rows[..., :width], rows[..., width:]
    cos, sin = cos.to(rows), sin.to(rows)
    if rotary == "halves":
        first, second = turning[..., : width // 2], turning[..., width // 2 :]
    else:
        first, second = turning[..., 0::2], turning[..., 1::2]
    both = (first * cos - second * sin, second * cos + first * sin)
    joined = torch.cat(both, dim=-1) if rotary == "halves" else torch.stack(both, dim=-1).flatten(-2)
    return torch.cat((joined, rest), dim=-1)


def attention_rule(inventory: Inventory, modules: PreTrainedModel, body: str) -> AttentionRule:
    """The rule of a model, from its family file and the config of its modules, whose decoder is ``body``."""
    rules, config = _rules(inventory), modules.config.get_text_config()
    for key, wanted in rules.only.items():
        if getattr(config, key, wanted) != wanted:
            raise HeadatlasError(
                f"{inventory.checkpoint.spec}: attention with {key} = {getattr(config, key)!r} is not read "
                "yet, so where its heads would look cannot be said."
            )
    if rules.factor is None:
        base = inventory.sizes.dims.d_head if rules.scale is None else getattr(config, rules.scale)
        scale = float(base) ** -0.5
    else:
        scale = float(getattr(config, rules.factor) if isinstance(rules.factor, str) else rules.factor)
    cap, clip = (None if key is None else getattr(config, key, None) for key in (rules.cap, rules.clip))
    path, _, name = rules.rotary_module.format(body=f"{body}.").lstrip(".").rpartition(".")
    rotary = None if rules.rotary == "none" else getattr(modules.get_submodule(path), name)
    turning = frozenset() if rotary is None else _turning(rules, config, inventory.sizes.dims.n_layers)
    return AttentionRule(scale, cap, clip, turning, _angles_of(rotary, config))


def _turning(rules: Queries, config: Any, n_layers: int) -> frozenset[int]:
    """The layers in which queries and keys turn."""
    window = getattr(config, "sliding_window", None)
    if rules.turning == "all" or (rules.turning == "sliding_if_any" and window is None):
        return frozenset(range(n_layers))
    if rules.turning == "no_rope_layers":  # 1 where there is one
        return frozenset(at for at, turns in enumerate(config.no_rope_layers) if turns)
    return frozenset(at for at, kind in enumerate(config.layer_types) if kind == "sliding_attention")


def _angles_of(rotary: Any, config: Any) -> Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]:
    """Cosines and sines [position, pair] at positions 0 … distance, as the module gives them."""

    def angles(layer: int, distance: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        at = next(rotary.buffers())
        by_kind = "layer_type" in inspect.signature(rotary.forward).parameters
        kind = {"layer_type": config.layer_types[layer]} if by_kind else {}
        # Two positions at least: at the first all angles are 0, and look as if they were given twice.
        positions = torch.arange(max(distance, 1) + 1, device=at.device).unsqueeze(0)
        with torch.no_grad():
            cos, sin = rotary(torch.zeros(1, device=at.device, dtype=torch.float32), positions, **kind)
        once = slice(distance + 1), _once(cos[0])
        return cos[0][once].cpu(), sin[0][once].cpu()

    return angles


def _once(cos: torch.Tensor) -> slice:
    """Places of each angle among cosines [position, channel]: given once, in two halves, or side by side."""
    import torch

    half = cos.shape[-1] // 2
    if torch.equal(cos[:, :half], cos[:, half:]):
        return slice(half)
    return slice(None, None, 2) if torch.equal(cos[:, ::2], cos[:, 1::2]) else slice(None)
