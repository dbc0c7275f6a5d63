"""Source states of the ``neutral`` lens: one forward pass over (prefix, source) rows, with hooks.

A prefix goes through once, and its keys and values serve all sources; so do those of what several sources
begin with. Rows of equal length go through together, so there is no padding to get wrong. What is kept per
layer is the input of the value projection at the source's last token, averaged over the prefixes, and for the
no-head control the normed residual stream entering the block. The last layer ends at its value projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from headatlas.architectures import Model
from headatlas.devices import AT_ONCE, share_cores, strict_products
from headatlas.errors import HeadatlasError
from headatlas.lenses.forward import (
    CPU,
    EnoughError,
    batch_tokens,
    batches,
    branch,
    by_length,
    ending,
    entering,
    pre_hooks,
    prefix_ids,
    require_embedded,
    require_finite,
    running,
    shared_steps,
    twin,
    walk,
)
from headatlas.lenses.lens import LayerStates, or_lens_maps
from headatlas.lenses.saved_states import (
    KINDS,
    atomic_state_folder,
    belongs,
    has_layer,
    save_array,
    state_file,
    states_key,
    whole_array,
    write_index,
)

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

Begun: TypeAlias = "dict[tuple[int, ...], DynamicCache]"
"""Keys and values of prefixes, by their token ids."""

PART = 2048
"""Most sources of a part that is saved at a time."""
PART_BYTES = 256 << 20
"""Most bytes of its states, of all layers."""
ABREAST = 32
"""Sources in a row of a pass after all prefixes at once."""


class NeutralStates:
    """States of the ``neutral`` lens, read from a folder of ``.npy`` files, layer by layer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def compute(
        cls,
        model: Model,
        sources: Sequence[tuple[int, ...]],
        prefixes: Sequence[str],
        folder: Path,
        *,
        identity: str,
        progress: Callable[[int, int], None] | None = None,
        device: torch.device = CPU,
    ) -> NeutralStates:
        """Run the model over every (prefix, source) row and save the states; reuse them if they are there.

        Args:
            model: The opened model; it is loaded whole, in float32. One that is in memory already shares its
                parameters if they are of that type.
            sources: Token ids of each source.
            prefixes: Texts, each put after what the tokenizer itself puts first.
            folder: Where the states go.
            identity: Says which model this is; states of another are not reused.
            progress: Called with (rows done, rows in all).
            device: Where the model is put. One that is in memory already stays where it is.

        Raises:
            HeadatlasError: A tensor or the states are not finite, a prefix has no tokens, or the folder
                cannot be written or holds something else.
        """
        wanted = states_key(sources, prefixes, identity)
        shape = (len(sources), model.dims.d_model)
        layers = model.layers_with_heads

        def complete() -> bool:
            """Whether the folder holds the wanted states, every file of them whole."""
            return belongs(folder, wanted) and all(has_layer(folder, layer, shape) for layer in layers)

        if complete():
            return cls(folder)
        rows = [prefix_row(model, prefix) for prefix in prefixes]
        if progress is not None:  # before modules are loaded, which takes seconds
            progress(0, len(rows) * len(sources))
        with or_lens_maps(), running(model, device) as modules:
            collector = collected(model, modules, sources, rows, progress)
        del modules
        with atomic_state_folder(folder, complete) as temporary:
            collector.save(temporary)
            write_index(temporary, wanted)
        return cls(folder)

    def layer(self, layer: int) -> LayerStates:
        """States at a layer.

        Raises:
            FileNotFoundError: Another process was done with all layers, and has deleted them.
        """
        x, control = (
            torch.from_numpy(np.load(self.folder / state_file(kind, layer), allow_pickle=False))
            for kind in KINDS
        )
        return LayerStates(x, control)


class NeutralParts:
    """States of many sources, saved part by part as they are made: a stopped run goes on at the next part.

    For questions that need no control, which is not kept: that of a layer has no rows. A layer may have
    states of the first sources alone, where others are not needed so deep.
    """

    def __init__(self, folder: Path, layers: Sequence[int], parts: Mapping[range, int]) -> None:
        """``parts`` of the sources, each with the number of layers that it has."""
        self._folder, self._at, self._parts = folder, {layer: at for at, layer in enumerate(layers)}, parts

    @classmethod
    def compute(
        cls,
        model: Model,
        sources: Sequence[tuple[int, ...]],
        prefixes: Sequence[str],
        folder: Path,
        *,
        progress: Callable[[int, int], None] | None = None,
        device: torch.device = CPU,
        deepest: Sequence[int] | None = None,
        modules: PreTrainedModel | None = None,
    ) -> NeutralParts:
        """Run the model over the (prefix, source) rows of parts that are not saved yet.

        Memory holds the model and the states of one part. Arguments and errors are those of
        :meth:`NeutralStates.compute`; the folder is one of these states already (:func:`claim`).

        Args:
            deepest: The last layer that each source is needed at, the deepest first; the model's last by
                default.
            modules: The model's modules, if they are in memory.
        """
        layers, d_model = model.layers_with_heads, model.dims.d_model
        needed = [
            len(layers) if deepest is None else max(2, sum(layer <= deepest[at] for layer in layers))
            for at in range(len(sources))
        ]
        parts: dict[range, int] = {}
        # No source of a part goes deeper than it is needed.
        for n, group in groupby(range(len(sources)), lambda at: needed[at]):
            for alike in batches(list(group), 1, cls.part_size(model)):
                parts[range(alike[0], alike[-1] + 1)] = n
        todo = [
            part
            for part, n in parts.items()
            if not whole_array(folder / _part_file(part), (n, len(part), d_model))
        ]
        if not todo:
            return cls(folder, layers, parts)
        rows = [prefix_row(model, prefix) for prefix in prefixes]
        total = len(prefixes) * len(sources)
        before = total - len(prefixes) * sum(map(len, todo))

        def told(done: int) -> None:
            if progress is not None:
                progress(before + done, total)

        begun: Begun = {}  # prefixes go through once for all parts

        def make(modules: PreTrainedModel, part: range, tell: Callable[[int], None]) -> None:
            some, mine = [sources[at] for at in part], layers[: parts[part]]
            collector = collected(
                model,
                modules,
                some,
                rows,
                lambda done, _: tell(done),
                control=False,
                layers=mine,
                begun=begun,
            )
            save_array(
                folder, _part_file(part), np.stack([collector.layer(layer).x.numpy() for layer in mine])
            )

        opening = running(model, device) if modules is None else nullcontext(modules)
        with or_lens_maps(), opening as loaded:
            if model.only_attention:
                begun |= {tuple(row): _prefix_cache(loaded, [row]) for row in rows}
            make_parts(make, loaded, todo, told)
        return cls(folder, layers, parts)

    @staticmethod
    def part_size(model: Model) -> int:
        """Sources of a part."""
        a_source = 4 * model.dims.d_model * len(model.layers_with_heads)
        return max(1, min(PART, PART_BYTES // a_source))

    def layer(self, layer: int) -> LayerStates:
        """States at a layer, without a control.

        Raises:
            FileNotFoundError: Another run has deleted them.
        """
        at = self._at[layer]
        parts = [
            torch.from_numpy(np.load(self._folder / _part_file(part), mmap_mode="c")[at])
            for part, n in self._parts.items()
            if at < n
        ]
        x = torch.cat(parts)
        return LayerStates(x, x.new_empty((0, x.shape[1])))


def _part_file(part: range) -> str:
    return f"part_{part.start:06d}.npy"


def make_parts(
    make: Callable[[PreTrainedModel, range, Callable[[int], None]], None],
    modules: PreTrainedModel,
    parts: Sequence[range],
    progress: Callable[[int], None],
) -> None:
    """Make parts of sources, on a processor one a core: a pass shares it badly between its many small steps.

    Args:
        make: Called with modules of its own, a part, and a function to tell how much of it is done.
        modules: The model's.
        parts: Those to make.
        progress: Called with how much is done of all.
    """
    at_once = AT_ONCE if modules.device.type == "cpu" else 1
    free: SimpleQueue[PreTrainedModel] = SimpleQueue()
    for _ in range(at_once):
        free.put(twin(modules))

    def work(part: range, tell: Callable[[int], None]) -> None:
        mine = free.get()
        try:
            make(mine, part, tell)
        finally:
            free.put(mine)

    for _ in share_cores(work, parts, at_once, progress):
        pass


def collected(
    model: Model,
    modules: PreTrainedModel,
    sources: Sequence[tuple[int, ...]],
    prefixes: Sequence[list[int]],
    progress: Callable[[int, int], None] | None = None,
    *,
    control: bool = True,
    layers: Sequence[int] | None = None,
    begun: Begun | None = None,
) -> Collector:
    """Send every (prefix, source) row through modules in memory; the states stay in memory, too.

    Args:
        model, sources, progress: As for :meth:`NeutralStates.compute`.
        modules: The model's modules, in float32 and evaluation mode.
        prefixes: Token ids of each, from :func:`prefix_row`.
        control: Whether the states of the no-head control are kept, too.
        layers: Those whose states are kept, and no others are passed where that is possible; all by default.
        begun: Prefixes that went through already.
    """
    layers = model.layers_with_heads if layers is None else layers
    collector = Collector(model, layers, len(sources), len(prefixes), control=control)
    with collector.hooked(modules), torch.inference_mode(), strict_products():
        _forward(model, modules, prefixes, sources, collector, progress, {} if begun is None else begun)
    return collector


def prefix_row(model: Model, prefix: str) -> list[int]:
    """Token ids of a prefix.

    Raises:
        HeadatlasError: There are none, or the model's embedding has none of one.
    """
    ids = prefix_ids(model.tokenizer(), prefix)
    if not ids:
        raise HeadatlasError(
            f"{model.checkpoint.spec}: the tokenizer makes no token of the neutral prefix {prefix!r} and "
            "puts none first, but a source needs something before it; use `lens=maps`."
        )
    require_embedded(model, [ids])
    return ids


def _forward(
    model: Model,
    modules: PreTrainedModel,
    prefixes: Sequence[list[int]],
    sources: Sequence[tuple[int, ...]],
    collector: Collector,
    progress: Callable[[int, int], None] | None,
    begun: Begun,
) -> None:
    """Send all rows through; where there is only attention, each beginning a single time for all sources.

    What other mixers than attention keep of a prefix does not continue over several tokens in every family:
    in hybrid models the prefix goes through with each source.
    """
    done, total = 0, len(prefixes) * len(sources)
    for prefix in prefixes:
        given = model, modules, prefix, sources, collector
        for more in _shared(*given, begun) if model.only_attention else _whole(*given):
            done += more
            if progress is not None:
                progress(done, total)


def _shared(
    model: Model,
    modules: PreTrainedModel,
    prefix: list[int],
    sources: Sequence[tuple[int, ...]],
    collector: Collector,
    begun: Begun,
) -> Iterator[int]:
    """Send a prefix through, and after it every beginning of a source; yields numbers of sources done."""
    body: Any = modules.base_model
    device, last = modules.device, collector.last
    collector.expect([], [])
    cache = begun[tuple(prefix)] if tuple(prefix) in begun else _prefix_cache(modules, [prefix])
    # Positions follow from what the first layer keeps, which must therefore be left.
    end = ending(modules, model.value_input_module(last)) if last else nullcontext()
    with end:
        for step, past in walk(shared_steps(sources, batch_tokens(model, device)), cache, device):
            collector.expect(step.rows, step.members)
            ids = torch.tensor([[token] for token in step.ids], device=device)
            with suppress(EnoughError):
                body(input_ids=ids, past_key_values=past, use_cache=True)
            yield len(step.members)


def _prefix_cache(modules: PreTrainedModel, prefixes: Sequence[list[int]]) -> DynamicCache:
    """Keys and values in every layer of prefixes of one length, a row each."""
    from transformers import DynamicCache

    body: Any = modules.base_model
    cache = DynamicCache(config=body.config)
    with torch.inference_mode(), strict_products():
        ids = torch.tensor(prefixes, device=modules.device)
        body(input_ids=ids, past_key_values=cache, use_cache=True)
    return cache


def _whole(
    model: Model,
    modules: PreTrainedModel,
    prefix: list[int],
    sources: Sequence[tuple[int, ...]],
    collector: Collector,
) -> Iterator[int]:
    """Send every source through after its prefix; yields numbers of sources done."""
    body, device = modules.base_model, modules.device
    for length, members in by_length(sources).items():
        for batch in batches(members, length, batch_tokens(model, device)):
            ids = torch.tensor([[*prefix, *sources[at]] for at in batch], device=device)
            collector.expect(range(ids.shape[1] - 1, ids.numel(), ids.shape[1]), batch)
            body(input_ids=ids, use_cache=False)
            yield len(batch)


def after_all_prefixes(
    model: Model,
    modules: PreTrainedModel,
    tokens: Sequence[int],
    prefixes: Sequence[list[int]],
    *,
    onto: Mapping[int, torch.Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Collector:
    """About what :func:`collected` gives for sources of one token, from a single pass: to choose sources.

    A source sees the keys and values of all prefixes side by side. From the scores of their tokens ln(number
    of prefixes) is taken, so that together they weigh what one weighs.

    Args:
        model: Of a family where nothing but attention carries anything from token to token.
        modules: As for :func:`collected`, or a :func:`twin` of them in another type.
        tokens: The source tokens.
        prefixes: Token ids of each; those of another length than the first are left out.
        onto: Layer → a matrix [d_model, k]: [n, k + 1] the float32 products of states with it, and their
            lengths, are kept instead of states.
        progress: Called with the number of tokens done.
    """
    body: Any = modules.base_model
    device, layers = modules.device, model.layers_with_heads
    prefixes = [prefix for prefix in prefixes if len(prefix) == len(prefixes[0])]
    collector = Collector(model, layers, len(tokens), 1, control=False, onto=onto)
    with collector.hooked(modules), torch.inference_mode(), strict_products():
        cache: Any = _prefix_cache(modules, prefixes)
        for layer in cache.layers:
            layer.keys, layer.values = (_side_by_side(part) for part in (layer.keys, layer.values))
        n_seen = len(prefixes) * len(prefixes[0])
        # Sources abreast in a row, each of which sees no other: attention is slow at many rows of one token.
        alone = torch.full((ABREAST, ABREAST), -torch.inf).fill_diagonal_(0)
        mask = torch.cat([torch.full((ABREAST, n_seen), -math.log(len(prefixes))), alone], dim=1)
        mask = mask.to(device, modules.dtype)[None, None]
        for batch in batches(list(range(len(tokens))), 1, batch_tokens(model, device)):
            filled = [*batch, *(-len(batch) % ABREAST * batch[:1])]
            ids = torch.tensor([tokens[at] for at in filled], device=device).view(-1, ABREAST)
            past = branch(cache)
            past.batch_select_indices(torch.zeros(len(ids), dtype=torch.int64, device=device))
            collector.expect(range(len(batch)), batch)
            with ending(modules, model.value_input_module(layers[-1])), suppress(EnoughError):
                body(
                    input_ids=ids,
                    attention_mask=mask.expand(len(ids), -1, -1, -1),
                    position_ids=torch.full_like(ids, len(prefixes[0])),
                    past_key_values=past,
                    use_cache=True,
                )
            if progress is not None:
                progress(batch[-1] + 1)
    return collector


def _side_by_side(part: torch.Tensor) -> torch.Tensor:
    """[1, heads, prefixes · tokens, d] of keys or values [prefixes, heads, tokens, d]."""
    return part.transpose(0, 1).flatten(1, 2)[None]


class Collector:
    """Sums of the hooked states over prefixes, for some layers; those of the control if it is wanted.

    Attributes:
        last: The deepest of these layers.
    """

    def __init__(
        self,
        model: Model,
        layers: Sequence[int],
        n_sources: int,
        n_prefixes: int,
        *,
        control: bool = True,
        onto: Mapping[int, torch.Tensor] | None = None,
    ) -> None:
        shape, d_model = (len(layers), n_sources), model.dims.d_model
        width = d_model if onto is None else onto[layers[0]].shape[1] + 1
        x, controls = torch.zeros(*shape, width), torch.zeros(shape[0], n_sources * control, d_model)
        self._onto = onto
        self._sums = dict(zip(layers, zip(x, controls, strict=True), strict=True))
        self._takes = (self.take_x, self.take_control) if control else (self.take_x,)
        self._n_prefixes = n_prefixes
        self._spec = model.checkpoint.spec
        self._paths = {
            layer: (model.value_input_module(layer), model.block_module(layer)) for layer in layers
        }
        self._centre = model.family.norm == "layer"
        self._ends, self._members = torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        self._first = False
        self.last = layers[-1]

    def expect(self, ends: Sequence[int], members: Sequence[int]) -> None:
        """Say at which of all positions of the forward pass to come, row after row, sources end, and which.

        In a prefix they end at none.
        """
        self._ends, self._members = torch.tensor(list(ends)), torch.tensor(members)
        self._first = list(ends) == list(range(len(ends)))

    @contextmanager
    def hooked(self, modules: PreTrainedModel) -> Iterator[None]:
        """Collect while the block runs."""
        hooks = [
            (path, _reader(take, layer))
            for layer, paths in self._paths.items()
            for path, take in zip(paths, self._takes, strict=False)
        ]
        with pre_hooks(modules, hooks):
            yield

    def _at_ends(self, state: torch.Tensor) -> torch.Tensor:
        """[n, d_model] float32 states on the CPU where sources end, of all [rows, positions, d_model]."""
        rows = state.flatten(0, 1)
        mine = rows[: len(self._ends)] if self._first else rows[self._ends.to(rows.device)]
        return mine.to("cpu", torch.float32)

    def take_x(self, layer: int, state: torch.Tensor) -> None:
        """Add the value projection's input where sources end."""
        if len(self._ends):
            rows = self._at_ends(state)
            if self._onto is not None:
                lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
                rows = torch.cat([rows @ self._onto[layer], lengths], dim=1)
            self._sums[layer][0].index_add_(0, self._members, rows)

    def take_control(self, layer: int, state: torch.Tensor) -> None:
        """Add the normed state that enters the block, there."""
        if not len(self._ends):
            return
        state = self._at_ends(state)
        # The final norm without its gain, up to a positive scale: each prefix counts the same.
        if self._centre:
            state = state - state.mean(dim=-1, keepdim=True)
        self._sums[layer][1].index_add_(0, self._members, torch.nn.functional.normalize(state, dim=-1))

    def layer(self, layer: int) -> LayerStates:
        """The means over prefixes of one layer.

        Raises:
            HeadatlasError: They are not finite.
        """
        x, control = (sums / self._n_prefixes for sums in self._sums[layer])
        finite = all(bool(torch.isfinite(rows).all()) for rows in (x, control))
        require_finite(self._spec, f"the states of layer {layer} are", finite)
        return LayerStates(x, control)

    def save(self, folder: Path) -> None:
        """Write the means, one file per layer and kind."""
        for layer in self._sums:
            means = self.layer(layer)
            for kind, rows in zip(KINDS, (means.x, means.control), strict=True):
                np.save(folder / state_file(kind, layer), rows.numpy(), allow_pickle=False)


def _reader(take: Callable[[int, torch.Tensor], None], layer: int) -> Callable[..., None]:
    """A forward pre-hook that hands over the module's input."""

    def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(layer, entering(args, kwargs))

    return hook
