"""States of the ``neutral`` lens for models larger than memory: made block by block, when they are asked for.

Asking for the states of a layer sends all rows through the blocks up to it, one block in memory at a time. So
a run that maps layer after layer reads every layer once, and ranks its heads while they are in memory. The
states of a layer are saved as soon as it is through, then the states that enter the next block. A killed run
goes on at that block. Several processes of a job array may share the folder: the first to save a layer wins,
and the others take what it saved, for ranks are exact for the saved states.

The model's own modules do the computing. They are made without weights; only the embedding rows of the tokens
that occur, the position embedding and the final norm are filled in. Then:

1. *Rehearsal.* The decoder runs once with blocks that only write down what they are called with. This gives
   the states that enter block 0, and for every block the mask and the positions of each kind of row.
2. *Blocks.* For one block after another the weights are read, all rows go through in batches with what was
   written down, and the weights are let go.

So nothing here knows how a family makes masks or positions, and a pass can begin at any block whose input was
saved. Rows are those of the pass in memory: a prefix goes through once, and so does what several sources
begin with; nothing is padded. Memory holds the states of all rows, a batch of activations and one projection
in float32; on a GPU also one block as it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from headatlas.architectures import LayerHeads, Model
from headatlas.architectures.accounting import Pieces
from headatlas.devices import strict_products
from headatlas.errors import HeadatlasError
from headatlas.lenses.forward import (
    CPU,
    EnoughError,
    Step,
    batch_tokens,
    beginnings,
    ending,
    entering,
    shared_steps,
    walk,
)
from headatlas.lenses.lens import LayerStates
from headatlas.lenses.neutral import Collector, prefix_row
from headatlas.lenses.saved_states import (
    KINDS,
    claim,
    save_array,
    saved_array,
    saved_layer,
    state_file,
    states_key,
)
from headatlas.weights import load_skeleton

_HIDDEN, _CACHE = object(), object()
_Shape = tuple[int, int, int]
"""Rows, the length of each, and the number of tokens before."""


@dataclass(frozen=True)
class _Call:
    """Arguments of a block; hidden states and cache are left open."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, device: torch.device) -> _Call:
        """A copy with its tensors on a device."""
        from accelerate.utils import send_to_device  # its import would delay every map

        return _Call(send_to_device(self.args, device), send_to_device(self.kwargs, device))

    def filled(self, hidden: torch.Tensor, cache: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments for these hidden states and this cache."""

        def fill(value: Any) -> Any:
            return hidden if value is _HIDDEN else cache if value is _CACHE else value

        return tuple(map(fill, self.args)), {name: fill(value) for name, value in self.kwargs.items()}


class BlockPass:
    """Rows (prefix, beginning of a source) on their way through the blocks of a model.

    ``next`` is the block that comes next, ``hidden`` [n_tokens, d_model] float32 on the CPU what enters it:
    of the prefix tokens and, for each prefix, a last token of every beginning of a source.
    """

    def __init__(
        self,
        model: Model,
        prefixes: Sequence[list[int]],
        sources: Sequence[tuple[int, ...]],
        device: torch.device = CPU,
    ) -> None:
        """Make the modules and rehearse; ``prefixes`` and ``sources`` are token ids.

        The blocks work on the device; everything else stays on the CPU.
        """
        self._model = model
        self._prefixes = prefixes
        self._device = device
        self._steps = shared_steps(sources, batch_tokens(model, device))
        # What each block is called with: masks and positions depend on the shape alone.
        self._calls: dict[_Shape, list[_Call]] = {}
        self._modules = load_skeleton(model.checkpoint)
        self._source = model.checkpoint.source
        self._body: Any = self._modules.get_submodule(model.body_module())
        self._blocks = [
            self._modules.get_submodule(model.block_module(layer)) for layer in range(model.dims.n_layers)
        ]
        self._rows_a_prefix = len(beginnings(sources))
        self.n_tokens = sum(len(prefix) + self._rows_a_prefix for prefix in prefixes)
        ids = sorted({token for row in (*prefixes, *sources) for token in row})
        self._row_of = {token: row for row, token in enumerate(ids)}
        self._fill_in()
        self.next = 0
        self.hidden = torch.empty(self.n_tokens, model.dims.d_model)
        with torch.inference_mode():
            for prefix, start in self._starts():
                self._rehearse_all(prefix, start)

    def advance(self, collector: Collector, tell: Callable[[int], None], *, leave: bool = True) -> LayerHeads:
        """Send all rows through the next block; returns its heads, from the weights that were read for it.

        The collector takes the states, ``tell`` numbers of rows that have come through. Rows that do not
        ``leave`` end at the block's value projection, which is all that its states need, and it stays the
        next one.
        """
        layer = self.next
        stored = self._read(layer)
        with (
            torch.inference_mode(),
            strict_products(),
            collector.hooked(self._modules),
            nullcontext() if leave else ending(self._modules, self._model.value_input_module(layer)),
            with_weights(self._blocks[layer], stored, self._device),
        ):
            self._send(collector, tell, leave)
        heads = self._model.heads(layer)  # while the pages of its weights are in memory
        self.next = layer + leave
        return heads

    def _send(self, collector: Collector, tell: Callable[[int], None], leave: bool) -> None:
        """All rows through the next block; or where sources end, to its value projection."""
        from transformers import DynamicCache

        for prefix, start in self._starts():
            collector.expect([], [])
            cache = DynamicCache(config=self._body.config)
            if leave:
                self._through(range(start, start + len(prefix)), (1, len(prefix), 0), cache)
            for step, past in walk(self._steps, cache, self._device):
                collector.expect(step.rows, step.members)
                if leave or step.rows:
                    self._through(*self._rows_of(step, prefix, start), past)
                tell(len(step.members))

    def _starts(self) -> Iterator[tuple[list[int], int]]:
        """Each prefix with where its rows begin among the states of all tokens."""
        start = 0
        for prefix in self._prefixes:
            yield prefix, start
            start += len(prefix) + self._rows_a_prefix

    @staticmethod
    def _rows_of(step: Step, prefix: list[int], start: int) -> tuple[list[int], _Shape]:
        """Places of the rows of a step after a prefix, and their shape."""
        first = start + len(prefix)
        return [first + place for place in step.places], (len(step.ids), 1, len(prefix) + step.past)

    def _through(self, places: Sequence[int], shape: _Shape, cache: Any) -> None:
        """Some rows through the next block, in place."""
        rows, length, _ = shape
        where = torch.tensor(places)
        entering = self.hidden[where].view(rows, length, -1).to(self._device)
        args, kwargs = self._calls[shape][self.next].on(self._device).filled(entering, cache)
        try:
            left: Any = self._blocks[self.next](*args, **kwargs)
        except EnoughError:
            return
        left = left[0] if isinstance(left, tuple) else left
        self.hidden[where] = left.reshape(rows * length, -1).to("cpu")

    def _read(self, layer: int) -> dict[str, torch.Tensor]:
        """The stored weights of a block, views of the mapped files, by their paths in its module."""
        weights, unread = {}, self._model.needed_in_block(layer)
        path, pieces = self._model.block_module(layer), self._model.stored_pieces(layer)
        # Persistent buffers, too, are of the file: corrections of a router, for one.
        for name, tensor in self._blocks[layer].state_dict(keep_vars=True).items():
            stored, shape = self._model.stored_name(f"{path}.{name}"), tuple(tensor.shape)
            if stored not in self._source.infos() and stored in pieces:
                weights[name] = self._put_together(pieces[stored], shape)
                unread.difference_update(*pieces[stored])
            else:
                self._check(stored, shape)
                weights[name] = self._stored(stored)
                unread.discard(stored)
        if unread:
            raise HeadatlasError(
                f"{self._model.checkpoint.spec} holds {min(unread)!r}, for which modules of its config have "
                "no place; check that config and weights belong together."
            )
        self._source.release()  # what these views do not hold
        return weights

    def _stored(self, name: str) -> torch.Tensor:
        """A stored tensor, whose numbers are finite."""
        tensor = self._source.stored(name)
        self._model.check_finite(name, tensor)
        return tensor

    def _put_together(self, pieces: Pieces, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of this shape out of one that is stored under another name, or one for each expert."""
        first = self._source.infos().get(pieces[0][0])
        if first is not None and len(first.shape) == len(shape):
            self._check(pieces[0][0], shape)
            return self._stored(pieces[0][0])
        rows = shape[1] // len(pieces[0])
        for name in (name for piece in pieces for name in piece):
            self._check(name, (rows, *shape[2:]))
        if len(pieces) != shape[0]:
            raise HeadatlasError(
                f"{self._model.checkpoint.spec}: {len(pieces)} experts are stored, transformers expects "
                f"{shape[0]}; leave out `stream=True`, or use `lens=maps`."
            )
        return torch.stack([torch.cat([self._stored(name) for name in piece]) for piece in pieces])

    def _check(self, stored: str, shape: tuple[int, ...]) -> None:
        """Make sure that a tensor is there and has the shape of the module's."""
        info = self._source.infos().get(stored)
        if info is None or info.shape != shape:
            found = "is missing" if info is None else f"has the shape {list(info.shape)}"
            raise HeadatlasError(
                f"{self._model.checkpoint.spec}: tensor {stored!r} {found}, but transformers expects "
                f"{list(shape)}; leave out `stream=True`, or use `lens=maps`."
            )

    def _fill_in(self) -> None:
        """Give weights to everything in the decoder but the blocks; of the embedding only the rows needed."""
        blocks = {id(parameter) for block in self._blocks for parameter in block.parameters()}
        embedding = self._body.get_input_embeddings()
        for name, parameter in list(self._body.named_parameters()):
            if id(parameter) in blocks:
                continue
            path, _, leaf = name.rpartition(".")
            module = self._body.get_submodule(path)
            rows = list(self._row_of) if module is embedding else None
            stored = self._model.stored_name(f"{self._model.body_module()}.{name}")
            self._check(stored, tuple(parameter.shape))
            tensor = self._source.read(stored, rows).to(torch.float32)
            self._model.check_finite(stored, tensor, whole=rows is None)
            setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        embedding.padding_idx = None  # it would count rows of the whole embedding

    def _rehearse_all(self, prefix: list[int], start: int) -> None:
        """Write down the states that enter block 0 after a prefix, and what blocks are called with."""
        self._rehearse([prefix], range(start, start + len(prefix)), (1, len(prefix), 0))
        waiting = list(self._steps)
        while waiting:
            step = waiting.pop()
            self._rehearse([[token] for token in step.ids], *self._rows_of(step, prefix, start))
            waiting += step.then

    def _rehearse(self, rows: Sequence[Sequence[int]], where: Sequence[int], shape: _Shape) -> None:
        """Write down states and calls of some rows of one length."""
        from transformers import DynamicCache

        cache = DynamicCache(config=self._body.config)
        if shape[2]:
            # The rows ask the cache how much went before; what it holds is not looked at.
            nothing = torch.zeros(1, 1, shape[2], 1)
            for layer in range(len(self._blocks)):
                cache.update(nothing, nothing, layer)
        places = torch.tensor([[self._row_of[token] for token in row] for row in rows])
        firsts: list[torch.Tensor] = []
        calls: list[_Call] = []

        def write_down(*args: Any, **kwargs: Any) -> torch.Tensor:
            hidden = entering(args, kwargs)

            def opened(value: Any) -> Any:
                return _HIDDEN if value is hidden else _CACHE if value is cache else value

            firsts.append(hidden if type(hidden) is torch.Tensor else hidden.as_subclass(torch.Tensor))
            names = {name: opened(value) for name, value in kwargs.items()}
            calls.append(_Call(tuple(map(opened, args)), names))
            return hidden.as_subclass(_First)

        with played_by(self._blocks, write_down):
            embedded = self._body.get_input_embeddings()(places)
            try:
                self._body(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
            except (ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
                raise HeadatlasError(
                    f"{self._model.checkpoint.spec}: the blocks of this model hand on more than their hidden "
                    f"states ({error}), so it does not go through layer by layer; leave out `stream=True`."
                ) from error
        self._calls[shape] = calls
        self.hidden[torch.tensor(where)] = firsts[0].reshape(len(where), -1)


class _First(torch.Tensor):
    """Hidden states that are their own first item: some bodies expect a tuple of their blocks."""

    def __getitem__(self, key: Any) -> Any:
        return self if isinstance(key, int) and key == 0 else super().__getitem__(key)


@contextmanager
def played_by(blocks: Sequence[nn.Module], forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Call ``forward`` in place of each block."""
    for block in blocks:
        block.__dict__["forward"] = forward
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


# Weights of a block, each in float32 only while the module that holds it works ----------------------


@contextmanager
def with_weights(
    block: nn.Module, stored: Mapping[str, torch.Tensor], device: torch.device
) -> Iterator[None]:
    """Give a block of the meta device its weights while the block of code runs.

    A block of a 70B model takes 3.4 GB in float32. Its largest projection takes 0.9 GB, and the file that the
    rest waits in is mapped, not copied.

    A GPU gets them once, as they are stored. Every call of a module that has parameters of its own makes them
    float32 there, and lets them go. Parameters of a module of no common kind are there while the module
    around it works, which may read them itself (DBRX's experts). Buffers are on the device meanwhile.
    ``stored`` are parameters and stored buffers by their paths in the block, of any floating type.
    """
    # In float32 what is float64, for not every device knows that.
    waiting = {
        name: (each.float() if each.dtype == torch.float64 else each).to(device)
        for name, each in stored.items()
    }
    with ExitStack() as stack:
        for path, module in block.named_modules():
            empty = dict(module.named_parameters(recurse=False))
            if not empty:
                continue
            own = {name: waiting[f"{path}.{name}".lstrip(".")] for name in empty}
            around = (
                module if _is_common(module) or not path else block.get_submodule(path.rpartition(".")[0])
            )
            stack.callback(around.register_forward_pre_hook(_puts(module, own)).remove)
            stack.callback(around.register_forward_hook(_puts(module, empty), always_call=True).remove)
        stack.enter_context(_buffers_on(block, device, waiting))
        yield


def _is_common(module: nn.Module) -> bool:
    """Whether it is a projection, an embedding or a norm, whose parameters only its own call reads."""
    kind = type(module).__name__
    return isinstance(module, nn.Linear | nn.Embedding) or kind.startswith("Conv") or kind.endswith("Norm")


def _puts(module: nn.Module, parameters: Mapping[str, torch.Tensor]) -> Callable[..., None]:
    """A hook that gives a module these parameters, in float32."""

    def hook(*_: Any) -> None:
        for name, tensor in parameters.items():
            setattr(module, name, nn.Parameter(tensor.to(torch.float32), requires_grad=False))

    return hook


@contextmanager
def _buffers_on(block: nn.Module, device: torch.device, stored: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Buffers follow from the config and are real, or are stored; they are few."""
    before = [
        (module, name, buffer, stored.get(f"{path}.{name}".lstrip(".")))
        for path, module in block.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer, own in before:
        setattr(module, name, buffer.to(device) if own is None else own.to(buffer.dtype))
    try:
        yield
    finally:
        for module, name, buffer, _ in before:
            setattr(module, name, buffer)


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
        """Claim the folder; nothing is computed yet. Arguments are those of :meth:`NeutralStates.compute`.

        ``progress`` counts rows through a layer, the same for all rows and layers up to the ``last`` that
        will be asked for, whose block is not left (None: the model's last).
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
        claim(folder, states_key(sources, prefixes, identity))

    def layer(self, layer: int) -> LayerStates:
        """States at a layer, with its heads where its weights had to be read."""
        saved = saved_layer(self._folder, layer, self._shape)
        if saved is not None:
            return saved
        rows = self._pass_before(layer)
        while rows.next < layer:
            self._advance(rows, leave=True)
        return self._advance(rows, leave=layer < self._last)

    def _pass_before(self, layer: int) -> BlockPass:
        """The pass, as close before a layer as what is in memory or saved allows."""
        if self._pass is None or self._pass.next > layer:
            self._pass = BlockPass(self._model, self._rows, self._sources, self._device)
        shape = (self._pass.n_tokens, self._model.dims.d_model)
        for at, file in sorted(self._entering().items(), reverse=True):
            hidden = saved_array(file, shape) if self._pass.next < at <= layer else None
            if hidden is not None:
                self._pass.next, self._pass.hidden = at, torch.from_numpy(hidden)
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
        states = saved_layer(self._folder, layer, self._shape)
        if states is None:
            states = collector.layer(layer)
            for kind, part in zip(KINDS, (states.x, states.control), strict=True):
                save_array(self._folder, state_file(kind, layer), part.numpy())
        if leave:
            save_array(self._folder, f"entering_{rows.next:03d}.npy", rows.hidden.numpy())
        needed = self._model.dims.n_layers if layer == self._model.dims.n_layers - 1 else rows.next
        for at, file in self._entering().items():
            if at < needed:
                file.unlink(missing_ok=True)
        return replace(states, heads=heads)

    def _entering(self) -> dict[int, Path]:
        """Block → the saved states that enter it."""
        found: dict[int, Path] = {}
        with suppress(FileNotFoundError):  # another process may delete the folder at any time
            for file in self._folder.glob(f"entering_{3 * '[0-9]'}.npy"):
                found[int(file.stem.rpartition("_")[2])] = file
        return found
