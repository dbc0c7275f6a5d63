"""States of the ``neutral`` lens for models larger than memory: made layer by layer, when they are asked for.

Asking for the states of a layer sends all rows through the blocks up to it (:mod:`headatlas.lenses.blocks`).
So a run that maps layer after layer reads every layer once, and ranks its heads while they are in memory.

The states of a layer are saved as soon as it is through, then the states that enter the next block. A killed
run goes on at that block. Several processes of a job array may share the folder: the first to save a layer
wins, and the others take what it saved, for ranks are exact for the saved states.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from headatlas.architectures import Model
from headatlas.lenses.blocks import BlockPass
from headatlas.lenses.forward import CPU
from headatlas.lenses.lens import LayerStates
from headatlas.lenses.neutral import Collector, prefix_row
from headatlas.lenses.saved_states import (
    KINDS,
    atomic_state_folder,
    belongs,
    has_layer,
    saved_layer,
    state_file,
    states_key,
    unwritable_states,
    whole_array,
    write_index,
)

_ENTERING = re.compile(r"^entering_(\d+)\.npy$")


class StreamedStates:
    """States of the ``neutral`` lens, computed up to a layer when it is asked for."""

    def __init__(
        self,
        model: Model,
        sources: Sequence[tuple[int, ...]],
        prefixes: Sequence[str],
        folder: Path,
        *,
        identity: str,
        progress: Callable[[int, int], None] | None = None,
        device: torch.device = CPU,
        last: int | None = None,
    ) -> None:
        """Claim the folder; nothing is computed yet.

        Args:
            model: The opened model, of safetensors.
            sources: Token ids of each source.
            prefixes: Texts, each put after what the tokenizer itself puts first.
            folder: Where the states go; those of the same question are kept, those of another replaced.
            identity: Says which model this is.
            progress: Called with (rows through a layer, the same for all rows and layers up to the last).
            device: Where the blocks work.
            last: The last layer that will be asked for: its block is not left. None: the model's last.

        Raises:
            HeadatlasError: A prefix has no tokens, or the folder cannot be written or holds something else.
        """
        self._model = model
        self._sources = sources
        self._rows = [prefix_row(model, prefix) for prefix in prefixes]
        self._folder = folder
        self._shape = (len(sources), model.dims.d_model)
        self._progress = progress
        self._device = device
        self._last = model.dims.n_layers - 1 if last is None else last
        self._pass: BlockPass | None = None
        wanted = states_key(sources, prefixes, identity)
        if not belongs(folder, wanted):
            with atomic_state_folder(folder, lambda: belongs(folder, wanted)) as temporary:
                write_index(temporary, wanted)

    def layer(self, layer: int) -> LayerStates:
        """States at a layer, with its heads where its weights had to be read.

        Raises:
            HeadatlasError: States are not finite, weights cannot be read, or the folder cannot be written.
        """
        if has_layer(self._folder, layer, self._shape):
            return saved_layer(self._folder, layer)
        rows = self._placed(layer)
        while rows.next < layer:
            self._advance(rows, leave=True)
        return self._advance(rows, leave=layer < self._last)

    def _placed(self, layer: int) -> BlockPass:
        """The pass, as close before a layer as what is in memory or saved allows."""
        if self._pass is None or self._pass.next > layer:
            self._pass = BlockPass(self._model, self._rows, self._sources, self._device)
        shape = (self._pass.n_tokens, self._model.dims.d_model)
        for at, file in sorted(self._entering().items(), reverse=True):
            if self._pass.next < at <= layer and whole_array(file, shape):
                self._pass.resume(at, torch.from_numpy(np.load(file, allow_pickle=False)))
                break
        return self._pass

    def _advance(self, rows: BlockPass, *, leave: bool) -> LayerStates:
        """The states of the next layer, saved; then what leaves its block, where it is left."""
        layer = rows.next
        collector = Collector(self._model, [layer], len(self._sources), len(self._rows))
        a_layer = len(self._rows) * len(self._sources)
        done, total = layer * a_layer, (max(layer, self._last) + 1) * a_layer

        def tell(more: int) -> None:
            nonlocal done
            done += more
            if self._progress is not None:
                self._progress(done, total)

        self._pass = None  # broken off within a block, a pass is of no use
        heads = rows.advance(collector, tell, leave=leave)
        self._pass = rows
        states = collector.layer(layer)
        if has_layer(self._folder, layer, self._shape):
            states = saved_layer(self._folder, layer)
        else:
            for kind, part in zip(KINDS, (states.x, states.control), strict=True):
                self._save(state_file(kind, layer), part)
        if leave:
            self._save(f"entering_{rows.next:03d}.npy", rows.hidden)
        needed = self._model.dims.n_layers if layer == self._model.dims.n_layers - 1 else rows.next
        for at, file in self._entering().items():
            if at < needed:
                file.unlink(missing_ok=True)
        return replace(states, heads=heads)

    def _entering(self) -> dict[int, Path]:
        """Block → the saved states that enter it."""
        found = {}
        for file in self._folder.glob("entering_*.npy"):
            if match := _ENTERING.match(file.name):
                found[int(match[1])] = file
        return found

    def _save(self, name: str, rows: torch.Tensor) -> None:
        """Write a file that appears whole or not at all; nothing where the folder is gone.

        Another process of a job array deletes it when the last layer is mapped.
        """
        if not self._folder.exists():
            return
        temporary = self._folder / f".{uuid.uuid4().hex[:8]}.npy"
        try:
            np.save(temporary, rows.numpy(), allow_pickle=False)
            temporary.replace(self._folder / name)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if not self._folder.exists():
                return
            raise unwritable_states(self._folder, error) from error
