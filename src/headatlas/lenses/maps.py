"""Source states of the ``maps`` lens: the embedding and the first MLP, nothing else of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from headatlas.architectures import Model
from headatlas.errors import HeadatlasError
from headatlas.lenses.lens import LayerStates


class MapsStates:
    """``x_0 = E[s]``; ``x_l = mlp_0(norm(E[s]))`` for later layers (arXiv:2412.11965).

    The control reads the state itself. Positive scales (such as Gemma's √d) change no rank and are left out.
    """

    def __init__(self, model: Model, sources: Sequence[tuple[int, ...]]) -> None:
        """Read the embedding rows and the first MLP.

        Args:
            model: The opened model.
            sources: One token id each.
        """
        if any(len(source) != 1 for source in sources):
            raise ValueError("the maps lens reads sources of one token only")
        if not model.mlp_modules(0):
            raise HeadatlasError(
                f"{model.checkpoint.spec}: the first block has no MLP, which `lens=maps` needs; use "
                "`lens=neutral`."
            )
        self._first = model.embed([source[0] for source in sources]).to(torch.float32)
        with torch.inference_mode():
            self._later = model.first_mlp(self._first).to(torch.float32)

    def layer(self, layer: int) -> LayerStates:
        rows = self._first if layer == 0 else self._later
        return LayerStates(rows, rows)
