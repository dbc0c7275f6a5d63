"""Small layers with known or random weights, built straight from tensors."""

from __future__ import annotations

import numpy as np
import torch

from headatlas.architectures import Dims, LayerHeads, RightMap
from headatlas.atlas.layout import Layout, build_layout
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.relations.relation import Pair, Relation, TokenisedPair, TokenisedRelation


def relation(
    name: str, pairs: list[tuple[int, tuple[int, ...]]], *, copying: bool = False, category: str = "User"
) -> TokenisedRelation:
    """A tokenised relation of token ids: (source, accepted targets)."""
    words = tuple(Pair(f"w{s}", tuple(f"w{t}" for t in targets)) for s, targets in pairs)
    usable = tuple(
        TokenisedPair(i, (s,), targets, tuple(f"w{t}" for t in targets))
        for i, (s, targets) in enumerate(pairs)
    )
    return TokenisedRelation(Relation(name, name, category, words, copying=copying), usable, {}, None)


def random_relations(vocab: int, rng: np.random.Generator) -> list[TokenisedRelation]:
    """Four relations: one to one, several targets, few targets, copying."""
    sources = rng.permutation(vocab)[:40].tolist()
    targets = rng.permutation(vocab)[:40].tolist()
    one = [(s, (t,)) for s, t in zip(sources, targets, strict=True)]
    several = [(s, tuple(rng.choice(vocab, 3, replace=False).tolist())) for s in sources[:35]]
    few = [(s, (targets[i % 4],)) for i, s in enumerate(sources[5:])]
    copies = [(s, (s,)) for s in sources[:33]]
    return [
        relation("one", one),
        relation("several", several),
        relation("few", few),
        relation("copy", copies, copying=True),
    ]


def layer_inputs(
    layout_sources: int,
    *,
    dims: Dims,
    seed: int,
    scale: float = 1.0,
    bias: bool = True,
    norm: str = "layer",
) -> LayerInputs:
    """A random layer; ``norm`` is "layer" (centred, gains), "sandwich" (post gain) or "none"."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    heads = LayerHeads(
        normal(dims.n_kv_heads, dims.d_model, dims.d_head),
        normal(dims.n_kv_heads, dims.d_head) if bias else None,
        normal(dims.n_heads, dims.d_head, dims.d_model),
    )
    gain = normal(dims.d_model)
    right = {
        "layer": RightMap(None, True, gain),
        "sandwich": RightMap(normal(dims.d_model), False, gain),
        "none": None,
    }[norm]
    control_right = None if right is None else RightMap(None, right.centre, right.final_gain)
    return LayerInputs(
        dims=dims,
        states=normal(layout_sources, dims.d_model),
        heads=heads,
        right=right,
        use_bias=bias,
        control_states=normal(layout_sources, dims.d_model),
        control_right=control_right,
    )


def random_problem(
    seed: int, *, vocab: int = 700, norm: str = "layer", dims: Dims | None = None
) -> tuple[Layout, LayerInputs, Vocabulary]:
    """Axes, a layer and a vocabulary some tokens of which do not compete; some rows of U repeat."""
    rng = np.random.default_rng(seed)
    dims = dims or Dims(1, 4, 2, 24, 6, vocab)
    competing = np.ones(vocab, dtype=bool)
    masked = rng.choice(vocab, vocab // 20, replace=False)
    relations = random_relations(vocab, rng)
    used = {t for r in relations for p in r.pairs for t in p.target_ids}
    competing[[m for m in masked if m not in used]] = False
    unembed = torch.from_numpy(rng.standard_normal((vocab, dims.d_model)).astype(np.float32))
    unembed[10:20] = unembed[0:10]
    layout = build_layout(relations)
    inputs = layer_inputs(len(layout.sources), dims=dims, seed=seed, norm=norm, bias=norm != "none")
    return layout, inputs, Vocabulary.competing(unembed, competing)
