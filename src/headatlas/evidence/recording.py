"""Record what heads read and write in running texts: a forward pass with hooks, kept in files.

Hooks sit on the value projection (its input at the source's last token is the state without context) and on
the *input* of the output projection (the heads' outputs side by side; at its output they are summed and
cannot be told apart).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headatlas.architectures import Model
from headatlas.errors import HeadatlasError
from headatlas.evidence.texts import BATCH_TOKENS, Text
from headatlas.lenses.forward import batches, by_length, pre_hooks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Watched:
    """The recording of some texts, in files; row i of everything belongs to text i.

    Args:
        model: Whose heads are recorded.
        folder: Of the files.
        n_texts: New files for so many texts; by default those that are there are read.
    """

    def __init__(self, model: Model, folder: Path, n_texts: int | None = None) -> None:
        self._dims = dims = model.dims
        widths = {"states": dims.d_model, "outputs": dims.n_heads * dims.d_head, "attention": dims.n_heads}
        try:
            self.arrays: dict[str, dict[int, Any]] = {
                kind: {
                    layer: np.lib.format.open_memmap(
                        folder / f"{kind}_{layer:03d}.npy",
                        mode="r" if n_texts is None else "w+",
                        dtype=np.float32,
                        shape=None if n_texts is None else (n_texts, width),
                    )
                    for layer in model.layers_with_heads
                }
                for kind, width in widths.items()
            }
        except OSError as error:
            raise HeadatlasError(
                f"{folder}: cannot be written ({error.strerror or error}); free space there."
            ) from error

    def states(self, layer: int) -> torch.Tensor:
        """[n, d_model] float32: what enters the value projection at the source's last token."""
        return self._read("states", layer)

    def outputs(self, layer: int) -> torch.Tensor:
        """[n_heads, n, d_head] float32: what each head brings to the output projection at the last
        position.
        """
        rows = self._read("outputs", layer)
        return rows.view(len(rows), self._dims.n_heads, self._dims.d_head).transpose(0, 1)

    def attention(self, layer: int) -> torch.Tensor:
        """[n_heads, n] float32: the weight that the last position gives the source's last token."""
        return self._read("attention", layer).T

    def _read(self, kind: str, layer: int) -> torch.Tensor:
        return torch.from_numpy(np.array(self.arrays[kind][layer]))


def watch(
    model: Model,
    modules: PreTrainedModel,
    texts: Sequence[Text],
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Watched:
    """Run texts through the model and keep what its heads read and write.

    Texts of one length go together, so nothing is padded.

    Args:
        model: The opened model.
        modules: Its modules, in evaluation mode.
        texts: What to run.
        folder: An existing folder for the files.
        progress: Called with (texts done, texts in all).

    Raises:
        HeadatlasError: What was seen is not finite, or the folder cannot be written.
    """
    watched = Watched(model, folder, len(texts))
    rows: list[int] = []

    def keep(kind: str, layer: int, seen: torch.Tensor) -> None:
        watched.arrays[kind][layer][rows] = seen.cpu().float().numpy()

    def at_sources(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row of the batch, and where its source is."""
        return torch.arange(len(rows), device=device), torch.tensor(
            [texts[at].source for at in rows], device=device
        )

    def hook(kind: str, layer: int) -> Callable[..., None]:
        def take(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entering = args[0] if args else kwargs["hidden_states"]
            keep(kind, layer, entering[at_sources(entering.device)] if kind == "states" else entering[:, -1])

        return take

    layers = model.layers_with_heads
    hooks = [(model.value_input_module(layer), hook("states", layer)) for layer in layers]
    hooks += [(model.o_proj_module(layer), hook("outputs", layer)) for layer in layers]
    done = 0
    with with_attention(modules), pre_hooks(modules, hooks), torch.inference_mode():
        for length, members in by_length([text.ids for text in texts]).items():
            for batch in batches(members, length, BATCH_TOKENS):
                rows[:] = batch
                ids = torch.tensor([texts[at].ids for at in batch], device=modules.device)
                seen = modules.base_model(input_ids=ids, output_attentions=True, use_cache=False)
                weights = attention_by_layer(model.checkpoint.spec, layers, seen.attentions)
                for layer, each in weights.items():
                    at, sources = at_sources(each.device)
                    keep("attention", layer, each[at, :, -1, sources])
                done += len(batch)
                if progress is not None:
                    progress(done, len(texts))
    _check(watched, model.checkpoint.spec)
    return watched


def _check(watched: Watched, spec: str) -> None:
    """Refuse states and outputs that are not finite."""
    for kind in ("states", "outputs"):
        for layer, rows in watched.arrays[kind].items():
            if not np.isfinite(rows).all():
                raise HeadatlasError(
                    f"{spec}: the {kind} of layer {layer} are not finite; "
                    "the weights are damaged or overflow in float32."
                )


@contextmanager
def with_attention(modules: PreTrainedModel) -> Iterator[None]:
    """Attention computed so that its weights can be seen; put back afterwards."""
    config: Any = modules.config
    before = config._attn_implementation
    modules.set_attn_implementation("eager")
    try:
        yield
    finally:
        modules.set_attn_implementation(before)


def attention_by_layer(
    spec: str, layers: Sequence[int], weights: Sequence[torch.Tensor | None] | None
) -> dict[int, torch.Tensor]:
    """Layer → [row, n_heads, T, T], of what a forward pass gave.

    Args:
        spec: The model's name, for errors.
        layers: Those that have heads.
        weights: The attentions of the output.

    Raises:
        HeadatlasError: The model does not give them all.
    """
    given = [each for each in weights or () if each is not None]
    if len(given) != len(layers):
        raise HeadatlasError(
            f"{spec}: the model gives attention weights of {len(given)} layers, and {len(layers)} have "
            "heads; where heads look cannot be seen without them, ablation does without."
        )
    return dict(zip(layers, given, strict=True))
