"""Source states of lens variants, and the scores that they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experiments.worth_scores import Bench, Scores
from headatlas.architectures import Model
from headatlas.evidence.asking import ablated
from headatlas.evidence.recording import Watched, watch
from headatlas.evidence.texts import Ids, Text
from headatlas.lenses import NEUTRAL_PREFIXES, MapsStates
from headatlas.lenses.forward import prefix_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OTHER_PREFIXES = {
    "alone": None,
    "word": " table",
    "symbol": " =",
    "sentence": "It was late in the evening when the",
}
"""Kinds that the shipped lens does not have; None: nothing before the source, not even ``<bos>``."""

States = Callable[[int], torch.Tensor]


def texts_after(model: Model, prefix: str | None, sources: Sequence[Ids]) -> list[Text]:
    """Each source after a prefix."""
    before = () if prefix is None else tuple(prefix_ids(model.tokenizer(), prefix))
    return [Text((*before, *ids), len(before) + len(ids) - 1) for ids in sources]


def watched(bench: Bench, modules: PreTrainedModel, name: str, texts: Sequence[Text]) -> Watched:
    """States and outputs in some texts, from the folder if they are there."""
    folder = bench.folder / f"seen_{name.replace(' ', '_')}"
    if folder.exists():
        return Watched(bench.model, folder)
    begun = folder.with_name(f"begun_{folder.name}")
    begun.mkdir(exist_ok=True)
    watch(bench.model, modules, texts, begun)
    begun.replace(folder)
    return Watched(bench.model, folder)


def input_norm(model: Model, modules: PreTrainedModel, layer: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The norm before the attention of a block, of models that call it as Llama and Gemma do."""
    norm: Callable[[torch.Tensor], torch.Tensor] = modules.get_submodule(
        f"{model.block_module(layer)}.input_layernorm"
    )
    return norm


def without_heads(
    bench: Bench, modules: PreTrainedModel, sources: Sequence[Ids]
) -> tuple[Watched, torch.Tensor, torch.Tensor]:
    """States with all heads at zero, and the streams [n, d_model] that enter block 0 and block 1.

    No head brings anything, so position and neighbours play no role.
    """
    model, dims = bench.model, bench.model.dims
    entering: dict[int, list[torch.Tensor]] = {0: [], 1: []}

    def taking(block: int) -> Callable[..., None]:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering[block].append((args[0] if args else kwargs["hidden_states"])[:, -1].clone())

        return hook

    everything = [(layer, head) for layer in range(dims.n_layers) for head in range(dims.n_heads)]
    folder = bench.folder / "seen_mlps_only"
    folder.mkdir(exist_ok=True)
    handles = [
        modules.get_submodule(model.block_module(block)).register_forward_pre_hook(
            taking(block), with_kwargs=True
        )
        for block in entering
    ]
    try:
        with ablated(model, modules, everything):
            # Texts of one length are run in their order, so the streams are in the order of the sources.
            seen = watch(model, modules, texts_after(model, None, sources), folder)
    finally:
        for handle in handles:
            handle.remove()
    return seen, torch.cat(entering[0]), torch.cat(entering[1])


def mean_states(parts: Sequence[Watched]) -> States:
    """The mean of states."""
    return lambda layer: torch.stack([part.states(layer) for part in parts]).mean(dim=0)


def rms_states(parts: Sequence[Watched]) -> States:
    """The mean of states that are scaled to a root mean square of 1 first."""

    def states(layer: int) -> torch.Tensor:
        rows = torch.stack([part.states(layer) for part in parts])
        return (rows / rows.square().mean(dim=-1, keepdim=True).sqrt()).mean(dim=0)

    return states


def neutral_parts(bench: Bench, modules: PreTrainedModel) -> list[Watched]:
    """States and outputs after each of the shipped lens's prefixes."""
    sources = bench.words.sources
    return [
        watched(bench, modules, f"neutral {at}", texts_after(bench.model, prefix, sources))
        for at, prefix in enumerate(NEUTRAL_PREFIXES)
    ]


def static_scores(bench: Bench, modules: PreTrainedModel) -> dict[str, Scores]:
    """Scores of every variant by name."""
    return {**_from_weights(bench, modules), **_from_prefixes(bench, modules)}


def _from_weights(bench: Bench, modules: PreTrainedModel) -> dict[str, Scores]:
    model, sources = bench.model, bench.words.sources
    paper = MapsStates(model, sources)
    norms = [input_norm(model, modules, layer) for layer in range(model.dims.n_layers)]
    seen, first, second = without_heads(bench, modules, sources)
    variants: dict[str, tuple[States, bool]] = {
        "maps": (lambda layer: paper.layer(layer).x, False),
        "maps right": (lambda layer: paper.layer(layer).x, True),
        "maps norm": (lambda layer: norms[layer](paper.layer(layer).x), True),
        "residual": (lambda layer: norms[layer](second if layer else first), True),
        "mlps only": (seen.states, True),
    }
    return {name: bench.of_states(name, states, right=right) for name, (states, right) in variants.items()}


def _from_prefixes(bench: Bench, modules: PreTrainedModel) -> dict[str, Scores]:
    parts = neutral_parts(bench, modules)
    found = {
        "neutral": bench.of_states("neutral", mean_states(parts), right=True),
        "neutral no right": bench.of_states("neutral no right", mean_states(parts), right=False),
    }
    for at, part in enumerate(parts):
        found[f"neutral 1: {at}"] = bench.of_states(f"neutral one {at}", part.states, right=True)
    found["neutral 2"] = bench.of_states("neutral 2", mean_states(parts[:2]), right=True)
    found["neutral scores"] = np.mean([found[f"neutral 1: {at}"] for at in range(len(parts))], axis=0)
    found["neutral rms"] = bench.of_states("neutral rms", rms_states(parts), right=True)
    for name, prefix in OTHER_PREFIXES.items():
        seen = watched(bench, modules, name, texts_after(bench.model, prefix, bench.words.sources))
        found[name] = bench.of_states(name, seen.states, right=True)
    return found


def dynamic_scores(bench: Bench, modules: PreTrainedModel) -> tuple[Scores, Scores, Scores]:
    """Scores with and without context, and [layer, head, relation] the attention that the source gets.

    All are means over the context templates.
    """
    context, without, attention = [], [], []
    for at, texts in enumerate(bench.words.texts.values()):
        seen = watched(bench, modules, f"context {at}", texts)
        context.append(bench.of_outputs(f"context {at}", seen.outputs))
        without.append(bench.of_states(f"without {at}", seen.states, right=True))
        attention.append(by_relation(bench, seen.attention))
    return np.mean(context, axis=0), np.mean(without, axis=0), np.mean(attention, axis=0)


def by_relation(bench: Bench, weights: Callable[[int], torch.Tensor]) -> Scores:
    """[layer, head, relation] means over each relation's sources of [n_heads, n] a layer."""
    layout = bench.words.layout
    rows = [np.unique(layout.own_row[block.own]) for block in layout.blocks]
    layers = [weights(layer).to(torch.float64).numpy() for layer in range(bench.model.dims.n_layers)]
    return np.stack([np.stack([each[:, row].mean(axis=1) for row in rows], axis=-1) for each in layers])
