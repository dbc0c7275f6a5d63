"""Attention summed up sequence by sequence: what each head scores in each, and its mean over all of them.

The weights come from the model's own modules, with everything that they do to them: windows, soft-caps, sinks
that are parameters. Never more than a few sequences' attention is in memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.evidence.recording import attention_by_layer, with_attention
from headatlas.evidence.texts import BATCH_TOKENS
from headatlas.files import atomic_write
from headatlas.lenses.forward import require_finite
from headatlas.looking.places import IN_TEXT, everywhere, pieces, places
from headatlas.looking.sequences import Sequences

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from headatlas.architectures import Model

ATTENTION_BYTES = 64 << 20
"""Of attention weights in memory, at most (one sequence aside)."""
SECONDS_BETWEEN_SAVES = 30.0
SPREAD = ("sink_parameter", "entropy", "distance", "distance_variance")
"""Measured of whole rows of attention."""
SHARES = (*everywhere(3), *IN_TEXT)
"""Measured as attention on some positions."""

Floats = NDArray[np.float64]


@dataclass
class Sums:
    """Running sums of everything seen so far.

    Attributes:
        shares: [text, behaviour, layer, head] attention on the positions of :data:`SHARES`.
        spread: [text, behaviour, layer, head] of :data:`SPREAD`.
        repeated: [sequence, block, layer, head] mean attention that queries of a sequence of repeated tokens
            give the place where a block of each length has the token after the earlier occurrence.
        attention: [layer, head, query, key] summed over texts.
        done: Sequences that are in, texts first.
    """

    shares: NDArray[np.float32]
    spread: NDArray[np.float32]
    repeated: NDArray[np.float32]
    attention: Floats
    done: int

    @classmethod
    def empty(cls, sequences: Sequences, n_layers: int, n_heads: int) -> Sums:
        """Of nothing."""
        n, length = sequences.texts.shape
        m, blocks = len(sequences.repeated), len(np.unique(sequences.blocks))
        return cls(
            np.zeros((n, len(SHARES), n_layers, n_heads), dtype=np.float32),
            np.zeros((n, len(SPREAD), n_layers, n_heads), dtype=np.float32),
            np.zeros((m, blocks, n_layers, n_heads), dtype=np.float32),
            np.zeros((n_layers, n_heads, length, length)),
            0,
        )

    def save(self, path: Path) -> None:
        """Keep it, so that a stopped run can go on."""
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **self.__dict__)

    def load(self, path: Path) -> None:
        """Go on from a file of :meth:`save`; one that is not whole, or of other shapes, is not used."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                found = {name: kept[name] for name in self.__dict__}
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return
        if all(np.shape(found[name]) == np.shape(mine) for name, mine in self.__dict__.items()):
            self.__dict__.update(found, done=int(found["done"]))


def text_weights(model: Model, sequences: Sequences) -> NDArray[np.float32]:
    """[text, behaviour, query, key] weights of :data:`SHARES` in each text."""
    length = sequences.texts.shape[1]
    fixed = everywhere(length)
    out = np.zeros((len(sequences.texts), len(SHARES), length, length), dtype=np.float32)
    for at, text in enumerate(pieces(model.tokenizer(), sequences.texts, sequences.first)):
        found = fixed | places(text)
        out[at] = np.stack([found[name] for name in SHARES])
    return out


def measure_attention(
    model: Model,
    modules: PreTrainedModel,
    sequences: Sequences,
    weights: NDArray[np.float32],
    kept: Path,
    progress: Callable[[int, int], None],
) -> Sums:
    """Run all sequences through the model and sum up what its heads attend to.

    ``weights`` are those of :func:`text_weights`. The file ``kept`` holds what is done, and a stopped run
    goes on from it; the caller deletes it. ``progress`` gets (sequences done, sequences in all).

    Raises:
        HeadatlasError: The model gives no attention weights, they are not finite, or ``kept`` cannot be
            written.
    """
    layers = model.layers_with_heads
    sums = Sums.empty(sequences, len(layers), model.dims.n_heads)
    sums.load(kept)
    every = np.concatenate([sequences.texts, sequences.repeated])
    n, total = len(sequences.texts), len(every)
    saved = time.monotonic()
    progress(sums.done, total)
    with with_attention(modules), torch.inference_mode():
        for rows in _batches(sums.done, n, total, model, sequences.texts.shape[1]):
            ids = torch.from_numpy(every[rows]).to(modules.device)
            seen = modules.base_model(input_ids=ids, output_attentions=True, use_cache=False)
            found = attention_by_layer(model.checkpoint.spec, layers, seen.attentions)
            for at, layer in enumerate(layers):
                attention = found[layer].float()
                finite = bool(torch.isfinite(attention).all())
                require_finite(model.checkpoint.spec, f"the attention of layer {layer} is", finite)
                if rows.start < n:
                    _add_texts(sums, rows, at, attention, torch.from_numpy(weights[rows]))
                else:
                    _add_repeated(sums, slice(rows.start - n, rows.stop - n), at, attention, sequences)
            sums.done = rows.stop
            progress(sums.done, total)
            if sums.done < total and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                sums.save(kept)
                saved = time.monotonic()
    return sums


def _batches(done: int, n: int, total: int, model: Model, length: int) -> Iterator[slice]:
    """Rows that go through together; texts and repeated tokens not mixed."""
    row = 4 * len(model.layers_with_heads) * model.dims.n_heads * length**2
    size = max(1, min(BATCH_TOKENS // length, ATTENTION_BYTES // row))
    for first, end in ((done, n), (max(done, n), total)):
        for start in range(first, end, size):
            yield slice(start, min(start + size, end))


def _add_texts(sums: Sums, rows: slice, at: int, attention: torch.Tensor, weights: torch.Tensor) -> None:
    """Add a layer's attention [row, head, query, key] in some texts."""
    shares = torch.einsum("nbqk,nhqk->nbh", weights.to(attention.device), attention)
    sums.shares[rows, :, at] = shares.cpu().numpy()
    sums.spread[rows, :, at] = _spread(attention).cpu().numpy()
    sums.attention[at] += attention.sum(dim=0).cpu().numpy()


def _add_repeated(sums: Sums, rows: slice, at: int, attention: torch.Tensor, sequences: Sequences) -> None:
    for number, block in enumerate(np.unique(sequences.blocks).tolist()):
        queries, keys = induction_places(attention.shape[-1], block)
        sums.repeated[rows, number, at] = attention[:, :, queries, keys].mean(dim=-1).cpu().numpy()


def induction_places(length: int, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries in the second of two blocks that end a sequence, and the keys after the earlier occurrences of
    their tokens."""
    queries = torch.arange(length - block, length)
    return queries, queries - block + 1


def _spread(attention: torch.Tensor) -> torch.Tensor:
    """[row, behaviour, head] of :data:`SPREAD`, means over queries from the second position on."""
    length = attention.shape[-1]
    used = attention[:, :, 1:]
    whole = used.sum(dim=-1)
    rest = (1.0 - whole).clamp(min=0.0)
    places_ = torch.arange(length, device=used.device, dtype=used.dtype)
    away = places_[1:, None] - places_[None, :]
    mean = (used * away).sum(dim=-1) / whole
    variance = (used * away.square()).sum(dim=-1) / whole - mean.square()
    entropy = -torch.xlogy(used, used).sum(dim=-1) - torch.xlogy(rest, rest)
    return torch.stack([each.mean(dim=-1) for each in (rest, entropy, mean, variance)], dim=1)
