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

_KINDS = ("states", "outputs", "attention")


class Watched:
    """The recording of some texts, in files; row i of everything belongs to text i."""

    def __init__(self, model: Model, folder: Path) -> None:
        self._dims = model.dims
        self._folder = folder

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
        return torch.from_numpy(np.load(_file(self._folder, kind, layer), allow_pickle=False))


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
    watcher = _Watcher(model, len(texts), folder)
    done = 0
    with with_attention(modules), watcher.hooked(modules), torch.inference_mode():
        for length, members in by_length([text.ids for text in texts]).items():
            for batch in batches(members, length, BATCH_TOKENS):
                watcher.rows = batch
                watcher.sources = torch.tensor([texts[at].source for at in batch])
                ids = torch.tensor([texts[at].ids for at in batch], device=modules.device)
                seen = modules.base_model(input_ids=ids, output_attentions=True, use_cache=False)
                watcher.take_attention(seen.attentions)
                done += len(batch)
                if progress is not None:
                    progress(done, len(texts))
    watcher.check()
    return Watched(model, folder)


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


def _file(folder: Path, kind: str, layer: int) -> Path:
    return folder / f"{kind}_{layer:03d}.npy"


class _Watcher:
    """Takes what the hooks see of the texts at hand.

    Attributes:
        rows: Which texts the rows of the forward pass are.
        sources: [len(rows)] positions of their sources.
    """

    def __init__(self, model: Model, n_texts: int, folder: Path) -> None:
        dims = model.dims
        self._spec = model.checkpoint.spec
        self._paths = {
            layer: (model.value_input_module(layer), model.o_proj_module(layer))
            for layer in model.layers_with_heads
        }
        widths = dict(zip(_KINDS, (dims.d_model, dims.n_heads * dims.d_head, dims.n_heads), strict=True))
        try:
            self._arrays: dict[str, dict[int, Any]] = {
                kind: {
                    layer: np.lib.format.open_memmap(
                        _file(folder, kind, layer), mode="w+", dtype=np.float32, shape=(n_texts, width)
                    )
                    for layer in self._paths
                }
                for kind, width in widths.items()
            }
        except OSError as error:
            raise HeadatlasError(
                f"{folder}: cannot be written ({error.strerror or error}); free space there."
            ) from error
        self.rows: list[int] = []
        self.sources = torch.zeros(0, dtype=torch.int64)

    @contextmanager
    def hooked(self, modules: PreTrainedModel) -> Iterator[None]:
        hooks = [
            (path, _reader(take, layer))
            for layer, paths in self._paths.items()
            for path, take in zip(paths, (self._take_state, self._take_outputs), strict=True)
        ]
        with pre_hooks(modules, hooks):
            yield

    def take_attention(self, weights: Sequence[torch.Tensor | None] | None) -> None:
        """[row, n_heads, T, T] a layer that has heads.

        Raises:
            HeadatlasError: The model does not give them.
        """
        for layer, each in attention_by_layer(self._spec, tuple(self._paths), weights).items():
            at, sources = self._places(each.device)
            self._arrays["attention"][layer][self.rows] = each[at, :, -1, sources].cpu().float().numpy()

    def _take_state(self, layer: int, entering: torch.Tensor) -> None:
        seen = entering[self._places(entering.device)]
        self._arrays["states"][layer][self.rows] = seen.cpu().float().numpy()

    def _places(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Each row, and where its source is."""
        return torch.arange(len(self.rows), device=device), self.sources.to(device)

    def _take_outputs(self, layer: int, entering: torch.Tensor) -> None:
        self._arrays["outputs"][layer][self.rows] = entering[:, -1].cpu().float().numpy()

    def check(self) -> None:
        for kind in ("states", "outputs"):
            for layer, rows in self._arrays[kind].items():
                if not np.isfinite(rows).all():
                    raise HeadatlasError(
                        f"{self._spec}: the {kind} of layer {layer} are not finite; "
                        "the weights are damaged or overflow in float32."
                    )
                rows.flush()


def _reader(take: Callable[[int, torch.Tensor], None], layer: int) -> Callable[..., None]:
    def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(layer, args[0] if args else kwargs["hidden_states"])

    return hook
