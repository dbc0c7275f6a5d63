"""The definition of a rank, computed without any cleverness: every logit in float64.

The engine must equal this, source by source.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from headatlas.atlas.layout import Layout
from headatlas.atlas.store import CELL_BEYOND, LayerRanks
from headatlas.mapping.inputs import LayerInputs
from headatlas.mapping.vocabulary import TIE, Vocabulary
from headatlas.options import FLOOR
from headatlas.scoring.scores import RANK_BEYOND, RANK_UNUSABLE, source_hits


def ranks_of(
    logits: torch.Tensor, columns: torch.Tensor, tie: torch.Tensor, ceiling: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Promotion and suppression ranks of target columns in rows of float64 logits.

    Args:
        logits: [n, V] float64.
        columns: [m] target columns, the same for every row.
        tie: [n] differences up to this count as equal.
        ceiling: Ranks from here on are ``RANK_BEYOND``.

    Returns:
        Two [n, m] int64: the number of other tokens whose logit is at least the target's, and at most it.
    """
    ordered = torch.from_numpy(np.sort(logits.numpy(), axis=1))
    target = logits[:, columns]
    # The target itself is always counted: subtract it.
    at_least = logits.shape[1] - torch.searchsorted(ordered, target - tie[:, None]) - 1
    at_most = torch.searchsorted(ordered, target + tie[:, None], right=True) - 1
    promotion, suppression = (
        torch.where(ranks < ceiling, ranks, RANK_BEYOND) for ranks in (at_least, at_most)
    )
    return promotion, suppression


def blank_below_floor(
    layout: Layout, ranks: NDArray[np.int16], cells: NDArray[np.uint8], ceiling: int
) -> None:
    """Clear calibration blocks of relations scoring below the floor even at k = ceiling, in place.

    What is stored then depends on the ranks alone, not on how much the engine happened to examine.
    """
    for block in layout.blocks:
        own = ranks[layout.own_pair[block.own]]
        hits = source_hits(own, block.own_source, block.n_sources, ceiling)
        if hits.mean() < FLOOR:
            cells[block.cells] = CELL_BEYOND


def brute_force_layer(
    layout: Layout, inputs: LayerInputs, vocabulary: Vocabulary, *, ceiling: int
) -> LayerRanks:
    """Every rank of one layer, by brute force in float64 (see :func:`headatlas.mapping.engine.map_layer`)."""
    n_heads = inputs.dims.n_heads
    ranks = np.full((2, n_heads, layout.n_pairs), RANK_UNUSABLE, dtype=np.int16)
    cells = np.full((2, n_heads, layout.n_cells), CELL_BEYOND, dtype=np.uint8)
    for head in range(n_heads):
        outputs = inputs.values(inputs.dims.kv_head(head)) @ inputs.output(head)
        for at, square in enumerate(_all_targets(outputs, layout, vocabulary, ceiling)):
            ranks[at, head, layout.own_pair] = square[layout.own_row, layout.own_column]
            for block in layout.blocks:
                values = square[np.ix_(block.rows, block.columns)].ravel()
                cells[at, head, block.cells] = np.where(values < 0, CELL_BEYOND, values)
            blank_below_floor(layout, ranks[at, head], cells[at, head], ceiling)
    control = np.full(layout.n_pairs, RANK_UNUSABLE, dtype=np.int16)
    square, _ = _all_targets(inputs.control, layout, vocabulary, ceiling)
    control[layout.own_pair] = square[layout.own_row, layout.own_column]
    return LayerRanks(ranks[0], ranks[1], control, cells[0], cells[1])


def _all_targets(
    outputs: torch.Tensor, layout: Layout, vocabulary: Vocabulary, ceiling: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[rows, T] promotion and suppression rank of every distinct target for every source row."""
    columns = torch.from_numpy(vocabulary.columns(layout.targets))
    unembed = vocabulary.rows.to(torch.float64)
    parts = []
    for rows in torch.split(outputs, 256):
        tie = TIE * vocabulary.longest * torch.linalg.vector_norm(rows, dim=1)
        parts.append(ranks_of(rows @ unembed.T, columns, tie, ceiling))
    promotion, suppression = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return promotion, suppression
