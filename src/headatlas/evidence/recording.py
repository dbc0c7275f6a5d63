"""Record what heads read and write in running texts: a forward pass with hooks, kept in files.

Hooks sit on the value projection (its input at the source's last token is the state without context) and on
the *input* of the output projection (the heads' outputs side by side; at its output they are summed and
cannot be told apart).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headatlas.architectures import Model
from headatlas.errors import HeadatlasError
from headatlas.evidence.texts import Text
from headatlas.lenses.forward import (
    batch_tokens,
    batches,
    by_length,
    entering,
    pre_hooks,
    require_embedded,
    require_finite,
    shared_steps,
    walk,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Watched:
    """The recording of some texts, in files; row i of everything belongs to text i.

    Files are new for ``n_texts``; by default those that are there are read.
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
    """Run texts through the model and keep what its heads read and write, in files in an existing folder.

    What several texts begin with goes through once, where there is only attention: its keys and values serve
    them all. In hybrid models every text goes through whole, those of one length together. Nothing is padded.
    ``progress`` gets (texts done, texts in all).
    """
    require_embedded(model, [text.ids for text in texts])
    recorder = _Recorder(model, texts, Watched(model, folder, len(texts)))
    send = _beginnings_once if model.only_attention else _each_whole
    done = 0
    with with_attention(modules), pre_hooks(modules, recorder.hooks()), torch.inference_mode():
        for more in send(model, modules, texts, recorder):
            done += more
            if progress is not None:
                progress(done, len(texts))
    for kind in ("states", "outputs"):
        for layer, rows in recorder.watched.arrays[kind].items():
            require_finite(model.checkpoint.spec, f"the {kind} of layer {layer} are", np.isfinite(rows).all())
    return recorder.watched


class _Recorder:
    """Puts what hooks see in its place."""

    def __init__(self, model: Model, texts: Sequence[Text], watched: Watched) -> None:
        self.watched = watched
        self._model, self._texts = model, texts
        self._at: dict[str, tuple[list[int], list[int], list[int]]] = {}

    def expect(self, sources: Iterable[tuple[int, int, int]], ends: Iterable[tuple[int, int, int]]) -> None:
        """Say what the next rows hold: (row, position in it, text), of sources and of the ends of texts."""
        for kind, places in (("states", sources), ("outputs", ends)):
            row, position, text = zip(*places, strict=True) if (places := list(places)) else ((), (), ())
            self._at[kind] = list(row), list(position), list(text)

    def hooks(self) -> list[tuple[str, Callable[..., None]]]:
        """Those that see states and outputs."""
        layers = self._model.layers_with_heads
        hooks = [(self._model.value_input_module(layer), self._hook("states", layer)) for layer in layers]
        return hooks + [(self._model.o_proj_module(layer), self._hook("outputs", layer)) for layer in layers]

    def _hook(self, kind: str, layer: int) -> Callable[..., None]:
        def take(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            row, position, text = self._at[kind]
            if text:
                self._keep(kind, layer, text, entering(args, kwargs)[row, position])

        return take

    def keep_attention(self, weights: Sequence[torch.Tensor | None] | None) -> None:
        """Keep what the ends of texts give their sources, of the attentions of an output.

        The last key is the end itself; those that a sliding window has left behind get nothing.
        """
        row, position, text = self._at["outputs"]
        layers, spec = self._model.layers_with_heads, self._model.checkpoint.spec
        for layer, each in attention_by_layer(spec, layers, weights).items() if text else ():
            back = [len(self._texts[at].ids) - self._texts[at].source for at in text]
            n_new, n_keys = each.shape[-2:]
            where = torch.tensor([n_keys - n_new + at + 1 for at in position]) - torch.tensor(back)
            seen = each[row, :, position, where.clamp(min=0).tolist()]
            self._keep(
                "attention", layer, text, torch.where((where >= 0).to(seen.device)[:, None], seen, 0.0)
            )

    def _keep(self, kind: str, layer: int, text: list[int], seen: torch.Tensor) -> None:
        self.watched.arrays[kind][layer][text] = seen.cpu().float().numpy()


def _beginnings_once(
    model: Model, modules: PreTrainedModel, texts: Sequence[Text], recorder: _Recorder
) -> Iterator[int]:
    """Send every beginning of a text through a single time; yields numbers of texts done."""
    from transformers import DynamicCache

    body: Any = modules.base_model
    device, n = modules.device, len(texts)
    # A text is read at its source as well: that is where a shorter text ends.
    asked = [text.ids for text in texts] + [text.ids[: text.source + 1] for text in texts]
    steps = shared_steps(asked, batch_tokens(model, device))
    for step, past in walk(steps, DynamicCache(config=body.config), device):
        ending = list(zip(step.rows, step.members, strict=True))
        ends = [(row, 0, at) for row, at in ending if at < n]
        recorder.expect([(row, 0, at - n) for row, at in ending if at >= n], ends)
        ids = torch.tensor([[token] for token in step.ids], device=device)
        seen = body(input_ids=ids, past_key_values=past, use_cache=True, output_attentions=bool(ends))
        recorder.keep_attention(seen.attentions)
        yield len(ends)


def _each_whole(
    model: Model, modules: PreTrainedModel, texts: Sequence[Text], recorder: _Recorder
) -> Iterator[int]:
    """Send every text through from its beginning; yields numbers of texts done."""
    for length, members in by_length([text.ids for text in texts]).items():
        for batch in batches(members, length, batch_tokens(model, modules.device)):
            recorder.expect(
                [(row, texts[at].source, at) for row, at in enumerate(batch)],
                [(row, length - 1, at) for row, at in enumerate(batch)],
            )
            ids = torch.tensor([texts[at].ids for at in batch], device=modules.device)
            seen = modules.base_model(input_ids=ids, output_attentions=True, use_cache=False)
            recorder.keep_attention(seen.attentions)
            yield len(batch)


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
    """Layer that has heads → [row, n_heads, T, T], of the attentions that a forward pass gave, all of
    them.
    """
    given = [each for each in weights or () if each is not None]
    if len(given) != len(layers):
        raise HeadatlasError(
            f"{spec}: the model gives attention weights of {len(given)} layers, and {len(layers)} have "
            "heads; where heads look cannot be seen without them, ablation does without."
        )
    return dict(zip(layers, given, strict=True))
