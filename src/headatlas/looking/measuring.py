"""Attention of heads summed up sequence by sequence, and what every head's number is, kept in the atlas.

The weights come from the model's own modules, with everything that they do to them: windows, soft-caps, sinks
that are parameters. Never more than a few sequences' attention is in memory.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # scipy.stats takes three times as long to import

from headatlas import __version__
from headatlas.atlas import Atlas
from headatlas.atlas.behaviours import BEHAVIOURS, Looking
from headatlas.atlas.evidence import evidence_group
from headatlas.atlas.store import strings
from headatlas.atlas.stored import SHIPPED, check_storable, store_dataset
from headatlas.devices import pick_device
from headatlas.evidence.opening import check_model_fits, reopened
from headatlas.evidence.recording import attention_by_layer, with_attention
from headatlas.evidence.texts import BATCH_TOKENS
from headatlas.files import atomic_write, writing_in
from headatlas.lenses.forward import require_finite, running
from headatlas.looking import DEFINITIONS
from headatlas.looking.sequences import (
    IN_TEXT,
    LEAST_TEXTS,
    Sequences,
    everywhere,
    pieces,
    places,
    sequences_for,
)
from headatlas.mapping.prepared import PreparedMap
from headatlas.options import Compute
from headatlas.progress import Progress, Report, silent, steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from headatlas.architectures import Model

ATTENTION_BYTES = 64 << 20
"""Of attention weights in memory, at most (one sequence aside)."""
SECONDS_BETWEEN_SAVES = 30.0
SPREAD = ("sink_parameter", "entropy", "distance", "distance_variance")
"""Measured of whole rows of attention."""
SHARES = (*everywhere(3), *IN_TEXT)
"""Measured as attention on some positions."""
LEVEL = 0.95
ROUNDING = 1e-6
"""Differences of float32 attention weights below this are none."""
NO_SINK = 1e-3
"""Rows of attention that lack less than this have no sink parameter."""

Floats = NDArray[np.float64]


def run_behaviour(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    prepared: PreparedMap | None = None,
    text: str | Path | None = None,
    compute: Compute | None = None,
    progress: Report | None = None,
) -> Looking:
    """Measure where heads look and store it in the atlas; what is stored is not measured again.

    Arguments and errors are those of :func:`headatlas.behaviour`. ``prepared`` is the map that has just made
    the atlas: its model is open and is not opened again.
    """
    tell, path, device = progress or silent, atlas.path, pick_device((compute or Compute()).device)
    if prepared is None or path is None:
        tell(Progress("open", 0, 0, atlas.model_name))
        prepared, path = reopened(atlas, model, tokenizer)
    check_model_fits(prepared, device)
    sequences = sequences_for(prepared.model, prepared.competing, text)
    digest = hashlib.sha256(f"{DEFINITIONS} {sequences.digest}".encode()).hexdigest()
    group = evidence_group(path)
    place = Looking.place(group, digest[:12] if sequences.source else SHIPPED)
    if place.is_dir():
        there = Looking.read(place)
        if there.provenance.get("digest") == digest:
            return there
    check_storable(place)
    kept = group / f".{place.name}-{digest[:12]}.npz"
    weights = text_weights(prepared.model, sequences)
    with writing_in(path.parent):
        with running(prepared.model, device) as modules:
            sums = measure_attention(
                prepared.model,
                modules,
                sequences,
                weights,
                kept,
                steps(tell, "behaviour"),
            )
        data = _dataset(findings(sums, weights, sequences), prepared)
        store_dataset(place, data, _provenance(sequences, digest))
        kept.unlink(missing_ok=True)
    return Looking.read(place)


def _dataset(found: list[Found], prepared: PreparedMap) -> xr.Dataset:
    """Every behaviour over all layers; layers without heads hold no number."""
    dims, layers = prepared.model.dims, list(prepared.model.layers_with_heads)
    shape = (len(found), dims.n_layers, dims.n_heads)
    arrays = {name: np.full(shape, np.nan) for name in ("value", "expected", "low", "high", "p")}
    for at, each in enumerate(found):
        for name, array in arrays.items():
            array[at, layers] = getattr(each, name)
    return xr.Dataset(
        {
            **{name: (("behaviour", "layer", "head"), array) for name, array in arrays.items()},
            "n_sequences": ("behaviour", np.array([each.n for each in found])),
        },
        coords={
            "behaviour": strings(each.name for each in found),
            "layer": np.arange(dims.n_layers),
            "head": np.arange(dims.n_heads),
        },
    )


def _provenance(sequences: Sequences, digest: str) -> dict[str, Any]:
    return {
        "definitions": DEFINITIONS,
        "digest": digest,
        "texts": sequences.describe(),
        "versions": {"headatlas": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    }


# Attention summed up -----------------------------------------------------------------------------------


@dataclass
class Sums:
    """Running sums of everything seen so far."""

    shares: NDArray[np.float32]  # [text, behaviour, layer, head] attention on the positions of :data:`SHARES`
    spread: NDArray[np.float32]  # [text, behaviour, layer, head] of :data:`SPREAD`
    # [sequence, block, layer, head] mean attention that queries of a sequence of repeated tokens give the
    # place where a block of each length has the token after the earlier occurrence.
    repeated: NDArray[np.float32]
    attention: Floats  # [layer, head, query, key] summed over texts
    done: int  # sequences that are in, texts first

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


# From sums to numbers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One behaviour of all heads; arrays [layer, head]."""

    name: str
    # As the atlas stores them; p is NaN where nothing is tested.
    value: Floats
    expected: Floats
    low: Floats
    high: Floats
    p: Floats
    n: int  # sequences that have such a position


def findings(sums: Sums, weights: NDArray[np.float32], sequences: Sequences) -> list[Found]:
    """Every behaviour that the sequences have places for, in the order of the atlas.

    ``weights`` [text, behaviour, query, key] are those that they were measured with.
    """
    even = uniform(sums.attention)
    found = {}
    for name in SHARES:
        mine = weights[:, SHARES.index(name)]
        there = np.flatnonzero(mine.any(axis=(1, 2)))
        if len(there) < LEAST_TEXTS:
            continue
        values = sums.shares[there, SHARES.index(name)].astype(np.float64)
        if name in everywhere(3):
            expected = np.einsum("nqk,lqk->nl", mine[there].astype(np.float64), even)[:, :, None]
            expected = np.broadcast_to(expected, values.shape)
        else:
            expected = elsewhere(values, mine[there], sums.attention, len(sequences.texts))
        found[name] = compared(name, values, expected)
    if len(sequences.repeated) >= LEAST_TEXTS:
        found["induction_repeated"] = compared("induction_repeated", *other_blocks(sums, sequences))
    levels = _even_spread(even)
    for at, name in enumerate(SPREAD):
        values = sums.spread[:, at].astype(np.float64)
        if name != "sink_parameter" or values.mean(axis=0).max() > NO_SINK:
            expected = np.broadcast_to(levels[name][:, None], values.shape[1:])
            found[name] = described(name, values, expected)
    return [found[each.name] for each in BEHAVIOURS if each.name in found]


def uniform(attention: Floats) -> Floats:
    """[layer, query, key] attention of a head that spreads evenly over what its layer can see.

    Softmax gives every key that is not masked something, so what no head ever attends to cannot be seen.
    """
    visible = (attention.sum(axis=1) > 0).astype(np.float64)
    return np.asarray(visible / visible.sum(axis=-1, keepdims=True))


def elsewhere(values: Floats, weights: NDArray[np.float32], attention: Floats, n: int) -> Floats:
    """[text, layer, head] what a head gives the same query positions and distances in the other texts.

    The mean over all n texts at these positions, the text itself taken out: ``attention`` [layer, head,
    query, key] is the sum over all texts, ``values`` what is given in this text, and ``weights`` [text,
    query, key] say which positions they are.
    """
    rows = weights.reshape(len(weights), -1).astype(np.float64)
    all_texts = np.einsum("np,lhp->nlh", rows, attention.reshape(*attention.shape[:2], -1), optimize=True)
    return np.asarray((all_texts - values) / (n - 1))


def other_blocks(sums: Sums, sequences: Sequences) -> tuple[Floats, Floats]:
    """Values and expected levels [sequence, layer, head] of induction on repeated random tokens.

    Expected is the mean attention at the same positions in sequences whose block has another length, where
    they are random tokens like all others.
    """
    lengths = np.unique(sequences.blocks)
    measured = sums.repeated.astype(np.float64)
    number = np.searchsorted(lengths, sequences.blocks)
    values = measured[np.arange(len(measured)), number]
    levels = np.stack(
        [measured[sequences.blocks != block, at].mean(axis=0) for at, block in enumerate(lengths)]
    )
    return values, levels[number]


def compared(name: str, values: Floats, expected: Floats) -> Found:
    """A share of attention [sequence, layer, head] against its expected level: t interval of the mean over
    sequences, and a one-sided paired t test of value > expected.
    """
    mean, low, high = interval(values)
    excess = values - expected
    excess[np.abs(excess) < ROUNDING] = 0.0
    n = len(excess)
    centre, error = excess.mean(axis=0), excess.std(axis=0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, centre / error, np.sign(centre) * np.inf)
    p = np.where(np.isnan(t), 1.0, stdtr(n - 1, -t))
    return Found(name, mean, expected.mean(axis=0), np.maximum(low, 0.0), np.minimum(high, 1.0), p, n)


def described(name: str, values: Floats, expected: Floats) -> Found:
    """A number that is not tested, with its interval."""
    mean, low, high = interval(values)
    return Found(name, mean, expected, np.maximum(low, 0.0), high, np.full(mean.shape, np.nan), len(values))


def interval(values: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean over sequences (the first axis) and its 95 % interval by Student's t."""
    n = len(values)
    mean = values.mean(axis=0)
    half = stdtrit(n - 1, 0.5 + LEVEL / 2) * values.std(axis=0, ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half


def _even_spread(even: Floats) -> dict[str, Floats]:
    """[layer] entropy, distance and its variance of the even head; nothing goes to a sink parameter."""
    length = even.shape[-1]
    used = even[:, 1:]
    away = np.arange(1, length)[:, None] - np.arange(length)[None, :]
    mean = (used * away).sum(axis=-1)
    variance = (used * away**2).sum(axis=-1) - mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(used > 0, -used * np.log(used), 0.0).sum(axis=-1)
    rows = {"entropy": entropy, "distance": mean, "distance_variance": variance}
    return {
        "sink_parameter": np.zeros(len(even)),
        **{name: each.mean(axis=-1) for name, each in rows.items()},
    }
