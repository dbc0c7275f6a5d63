"""Yardsticks of the engine: the plain way, timed, and float64 in bounded memory, compared."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.atlas import Atlas
from headatlas.atlas.layout import Layout
from headatlas.atlas.store import CELL_BEYOND
from headatlas.lenses import MapsStates, NeutralStates, States
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.prepared import PreparedMap
from headatlas.mapping.vocabulary import TIE, Vocabulary
from headatlas.options import FLOOR
from headatlas.scoring.scores import RANK_BEYOND, source_hits

ROWS = 512
"""Rows of logits that are in memory at a time."""
COLUMNS = 4096
"""Rows of U that are float64 at a time."""

Ints = NDArray[np.int64]


def states_of(prepared: PreparedMap, out: Path) -> States:
    """The states that were mapped: of the lens ``maps`` anew, of ``neutral`` as they were saved."""
    if prepared.options.lens.weights_only:
        return MapsStates(prepared.model, prepared.layout.sources)
    return NeutralStates(out / "states")


def plain_seconds(
    layout: Layout, inputs: LayerInputs, head: int, vocabulary: Vocabulary, k: int, device: str = "cpu"
) -> float:
    """Seconds of one head the plain way: for every relation E·W_V·W_O·U, then the top k of both signs.

    In float32, as the published reference does it (arXiv:2412.11965): each relation by itself. On a GPU all
    of it lies in the GPU's memory before the clock starts.
    """
    asked = [np.unique(layout.own_row[block.own]) for block in layout.blocks]
    return _seconds(asked, inputs, head, vocabulary, k, device)


def shared_seconds(layout: Layout, inputs: LayerInputs, head: int, vocabulary: Vocabulary, k: int) -> float:
    """Seconds of one head with each distinct source once, whatever number of relations has it."""
    return _seconds([np.arange(len(layout.sources))], inputs, head, vocabulary, k, "cpu")


def _seconds(
    asked: list[Ints],
    inputs: LayerInputs,
    head: int,
    vocabulary: Vocabulary,
    k: int,
    device: str,
) -> float:
    W_V = inputs.heads.W_V[inputs.dims.kv_head(head)].to(device)
    W_O = inputs.output(head).to(device, torch.float32)
    U = vocabulary.rows.to(device, torch.float32).T
    states = inputs.states.to(device)
    finish = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    finish()
    start = time.perf_counter()
    for rows in asked:
        for part in torch.split(states[torch.from_numpy(rows).to(device)], ROWS):
            logits = part @ W_V @ W_O @ U
            torch.topk(logits, k)
            torch.topk(logits, k, largest=False)
    finish()
    return time.perf_counter() - start


def ranks(outputs: torch.Tensor, columns: Ints, vocabulary: Vocabulary, ceiling: int) -> tuple[Ints, Ints]:
    """Ranks as of :func:`tests.mapping.oracle.ranks_of`, with a part of U in float64 at a time.

    Args:
        outputs: [n, d_model] float64 rows, ready for U.
        columns: [m] target columns, the same for every row.
        vocabulary: Competing rows of U.
        ceiling: Ranks from here on are ``RANK_BEYOND``.

    Returns:
        Promotion and suppression ranks, [n, m] each.
    """
    tie = TIE * vocabulary.longest * torch.linalg.vector_norm(outputs, dim=1, keepdim=True)
    target = outputs @ vocabulary.float32(columns).to(torch.float64).T
    # A target is counted among those that reach it.
    at_least, at_most = torch.full(target.shape, -1), torch.full(target.shape, -1)
    for rows in torch.split(vocabulary.rows, COLUMNS):
        ordered = torch.from_numpy(np.sort((outputs @ rows.to(torch.float64).T).numpy(), axis=1))
        at_least += len(rows) - torch.searchsorted(ordered, target - tie)
        at_most += torch.searchsorted(ordered, target + tie, right=True)
    found = (torch.where(each < ceiling, each, RANK_BEYOND).numpy() for each in (at_least, at_most))
    promotion, suppression = found
    return promotion, suppression


def check(
    prepared: PreparedMap,
    inputs: LayerInputs,
    vocabulary: Vocabulary,
    atlas: Atlas,
    layer: int,
    head: int,
    rows: Ints,
) -> int:
    """Stop unless an atlas holds the ranks that float64 finds for one head, and for the layer's control.

    Args:
        prepared: What was mapped.
        inputs: The layer's states and weights.
        vocabulary: Competing rows of U.
        atlas: The map.
        layer, head: Which head.
        rows: Which rows of the source stack, ascending.

    Returns:
        The number of ranks compared.
    """
    layout, ceiling = prepared.layout, prepared.options.ceiling
    columns = vocabulary.columns(layout.targets)
    at = np.full(len(layout.sources), -1)
    at[rows] = np.arange(len(rows))
    index = torch.from_numpy(rows)
    outputs = inputs.values(inputs.dims.kv_head(head))[index] @ inputs.output(head)
    stored = {name: atlas.dataset[name].values[layer] for name in atlas.dataset if name.endswith("_rank")}
    expected = ranks(outputs, columns, vocabulary, ceiling)
    compared = 0
    for verb, square in zip(("promotion", "suppression"), expected, strict=True):
        own = stored[f"{verb}_rank"][head]
        compared += _check_own(layout, own, square, at, f"{verb} of head {layer}.{head}")
        compared += _check_cells(layout, own, stored[f"cell_{verb}_rank"][head], square, at, ceiling)
    square, _ = ranks(inputs.control[index], columns, vocabulary, ceiling)
    return compared + _check_own(layout, stored["control_rank"], square, at, f"control of layer {layer}")


def _check_own(layout: Layout, stored: NDArray[np.int16], square: Ints, at: Ints, what: str) -> int:
    mine = np.flatnonzero(at[layout.own_row] >= 0)
    expected = square[at[layout.own_row[mine]], layout.own_column[mine]]
    np.testing.assert_array_equal(stored[layout.own_pair[mine]], expected, err_msg=what)
    return len(mine)


def _check_cells(
    layout: Layout,
    own: NDArray[np.int16],
    stored: NDArray[np.uint8],
    square: Ints,
    at: Ints,
    ceiling: int,
) -> int:
    """Cells of relations that reach the floor by their own ranks; those of others are blank."""
    compared = 0
    for block in layout.blocks:
        cells = stored[block.cells].reshape(len(block.rows), len(block.columns))
        mine = np.flatnonzero(at[block.rows] >= 0)
        expected = square[np.ix_(at[block.rows[mine]], block.columns)]
        pairs = own[layout.own_pair[block.own]]
        if source_hits(pairs, block.own_source, block.n_sources, ceiling).mean() < FLOOR:
            expected = np.full_like(expected, RANK_BEYOND)
        expected = np.where(expected == RANK_BEYOND, CELL_BEYOND, expected)
        np.testing.assert_array_equal(cells[mine], expected, err_msg=f"cells of {block.cells}")
        compared += expected.size
    return compared
