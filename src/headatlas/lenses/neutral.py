"""Source states of the ``neutral`` lens: one forward pass over (prefix, source) rows, with hooks.

A prefix goes through once, and its keys and values serve all sources. Sources of equal length go through
together, so there is no padding to get wrong. What is kept per
layer is the input of the value projection at the source's last token, averaged over the prefixes, and for the
no-head control the normed residual stream entering the block. States are saved before any head is mapped:
ranks are exact for the saved states, and a resumed run reads the same ones.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headatlas.architectures import Model
from headatlas.devices import free_memory, strict_products
from headatlas.errors import HeadatlasError
from headatlas.lenses.lens import LayerStates, or_lens_maps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CPU = torch.device("cpu")
ACTIVATIONS = 512 << 20
"""Bytes that the activations of the rows at hand may take on the CPU; on a GPU, a quarter of what is free."""
MOST_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 16384}
"""That go through together, by kind of device: more make the CPU no faster."""
INDEX = "states.json"
KINDS = ("x", "control")


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
        if _complete(folder, wanted, layers, shape):
            return cls(folder)
        rows = [prefix_row(model, prefix) for prefix in prefixes]
        collector = Collector(model, layers, len(sources), len(prefixes))
        with or_lens_maps(), running(model, device) as modules, collector.hooked(modules):
            _forward(model, modules, rows, sources, collector, progress)
        del modules

        def complete() -> bool:
            return _complete(folder, wanted, layers, shape)

        with atomic_state_folder(folder, complete) as temporary:
            collector.save(temporary)
            write_index(temporary, wanted)
        return cls(folder)

    def layer(self, layer: int) -> LayerStates:
        """States at a layer."""
        return saved_layer(self.folder, layer)


def prefix_ids(tokenizer: PreTrainedTokenizerBase, prefix: str) -> list[int]:
    """Token ids of a prefix after whatever the tokenizer itself puts first (``<bos>`` or nothing)."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    dressed: list[int] = tokenizer("a")["input_ids"]
    first = next(
        (at for at in range(len(dressed)) if dressed[at : at + len(plain)] == plain),
        0,
    )
    ids: list[int] = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    return dressed[:first] + ids


def saved_layer(folder: Path, layer: int) -> LayerStates:
    """The states of a layer from its files."""
    x, control = (
        torch.from_numpy(np.load(folder / state_file(kind, layer), allow_pickle=False)) for kind in KINDS
    )
    return LayerStates(x, control)


def state_file(kind: str, layer: int) -> str:
    """The name of a file of states."""
    return f"{kind}_{layer:03d}.npy"


def states_key(sources: Sequence[tuple[int, ...]], prefixes: Sequence[str], identity: str) -> str:
    """Says of which model, prefixes and sources states are."""
    body = json.dumps([identity, list(prefixes), [list(source) for source in sources]])
    return hashlib.sha256(body.encode()).hexdigest()


def _complete(folder: Path, wanted: str, layers: Sequence[int], shape: tuple[int, int]) -> bool:
    """Whether a folder holds the wanted states, every file of them whole."""
    return belongs(folder, wanted) and all(has_layer(folder, layer, shape) for layer in layers)


def write_index(folder: Path, wanted: str) -> None:
    """Say whose states a folder holds."""
    (folder / INDEX).write_text(json.dumps({"states_key": wanted}), encoding="utf-8")


def belongs(folder: Path, wanted: str) -> bool:
    """Whether a folder is one of states with this states_key."""
    try:
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found == {"states_key": wanted})


def has_layer(folder: Path, layer: int, shape: tuple[int, int]) -> bool:
    """Whether the states [n, d_model] of a layer are there and whole."""
    return all(whole_array(folder / state_file(kind, layer), shape) for kind in KINDS)


def whole_array(file: Path, shape: tuple[int, int]) -> bool:
    """Whether a file holds a float32 array of this shape."""
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return False
    return bool(rows.shape == shape and rows.dtype == np.float32)


@contextmanager
def atomic_state_folder(folder: Path, complete: Callable[[], bool]) -> Iterator[Path]:
    """A temporary folder that becomes ``folder`` when the block ends well, in the place of older states.

    Where ``folder`` is ``complete`` by then, another process of a job array has made the same states and may
    be reading them: it stays.
    """
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        try:
            temporary.replace(folder)
        except OSError:
            # Something is in the way. What is complete stays, even if it came a moment ago.
            if not complete():
                _discard(folder)
                temporary.replace(folder)
    except OSError as error:
        if complete():
            return
        raise HeadatlasError(
            f"{folder}: cannot be written ({error.strerror or error}); free space or choose another -o."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def discard_states(folder: Path) -> None:
    """Delete saved states and what a killed process left of them; a folder of anything else is left alone."""
    _discard(folder)
    for left in folder.parent.glob(f".{folder.name}." + 8 * "[0-9a-f]"):
        shutil.rmtree(left, ignore_errors=True)


def _discard(folder: Path) -> None:
    if (folder / INDEX).is_file():
        # Another process may be writing to it: moved away at once, it cannot be found half deleted.
        away = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
        with suppress(FileNotFoundError):
            folder.rename(away)
        shutil.rmtree(away, ignore_errors=True)


def prefix_row(model: Model, prefix: str) -> list[int]:
    """Token ids of a prefix.

    Raises:
        HeadatlasError: There are none.
    """
    ids = prefix_ids(model.tokenizer(), prefix)
    if not ids:
        raise HeadatlasError(
            f"{model.checkpoint.spec}: the tokenizer makes no token of the neutral prefix {prefix!r} and "
            "puts none first, but a source needs something before it; use `lens=maps`."
        )
    return ids


@contextmanager
def running(model: Model, device: torch.device = CPU) -> Iterator[PreTrainedModel]:
    """The model's modules, loaded whole, in float32 and evaluation mode, without gradients.

    Those of a model that was in memory already are where it is; others are put on the device.
    """
    modules = model.modules()
    if model.checkpoint.loaded is None:
        torch.nn.Module.to(modules, device)
    with torch.inference_mode(), strict_products():
        yield modules


def by_length(sources: Sequence[tuple[int, ...]]) -> dict[int, list[int]]:
    """Length → the sources of that many tokens, by their places; short ones first."""
    found: dict[int, list[int]] = {}
    for at, source in enumerate(sources):
        found.setdefault(len(source), []).append(at)
    return dict(sorted(found.items()))


def batch_tokens(model: Model, device: torch.device) -> int:
    """How many tokens go through a block together, so that their activations stay within bounds.

    A token's activations are about what all projections of a block make of it, in float32.
    """
    a_token = 4 * model.n_block_parameters // model.dims.d_model
    room = ACTIVATIONS if device.type == "cpu" else free_memory(device) // 4
    return max(1, min(room // a_token, MOST_TOKENS[device.type]))


def batches(members: list[int], length: int, tokens: int) -> Iterator[list[int]]:
    """Sources of one length in parts of at most so many tokens that go through the model together."""
    size = max(1, tokens // length)
    for start in range(0, len(members), size):
        yield members[start : start + size]


def _forward(
    model: Model,
    modules: PreTrainedModel,
    prefixes: Sequence[list[int]],
    sources: Sequence[tuple[int, ...]],
    collector: Collector,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Send all rows through; where there is only attention, each prefix a single time for all sources.

    What other mixers than attention keep of a prefix does not continue over several tokens in every family:
    in hybrid models the prefix goes through with each source.
    """
    body, device = modules.base_model, modules.device
    tokens, once = batch_tokens(model, device), model.only_attention
    done, total = 0, len(prefixes) * len(sources)
    for prefix in prefixes:
        collector.members = []
        kept = None
        if once:
            kept = body(input_ids=torch.tensor([prefix], device=device), use_cache=True).past_key_values
        for length, members in by_length(sources).items():
            for collector.members in batches(members, length, tokens):
                before = [] if once else prefix
                ids = torch.tensor([[*before, *sources[at]] for at in collector.members], device=device)
                past = copy.deepcopy(kept)
                if past is not None:
                    past.batch_repeat_interleave(len(ids))
                body(input_ids=ids, past_key_values=past, use_cache=once)
                done += len(collector.members)
                if progress is not None:
                    progress(done, total)


class Collector:
    """Sums of the hooked states over prefixes, for some layers.

    Attributes:
        members: Which sources the rows of the forward pass at hand are; empty while a prefix goes through.
    """

    def __init__(self, model: Model, layers: Sequence[int], n_sources: int, n_prefixes: int) -> None:
        shape = (len(layers), n_sources, model.dims.d_model)
        sums = zip(layers, torch.zeros(shape), torch.zeros(shape), strict=True)
        self._sums = {layer: (x, control) for layer, x, control in sums}
        self._n_prefixes = n_prefixes
        self._spec = model.checkpoint.spec
        self._paths = {
            layer: (model.value_input_module(layer), model.block_module(layer)) for layer in layers
        }
        self._centre = model.family.norm == "layer"
        self.members: list[int] = []

    @contextmanager
    def hooked(self, modules: PreTrainedModel) -> Iterator[None]:
        """Collect while the block runs."""
        hooks = [
            (path, _reader(take, layer))
            for layer, paths in self._paths.items()
            for path, take in zip(paths, (self.take_x, self.take_control), strict=True)
        ]
        with pre_hooks(modules, hooks):
            yield

    def take_x(self, layer: int, state: torch.Tensor) -> None:
        """Add the value projection's input of the rows at hand; nothing while a prefix goes through."""
        if not self.members:
            return
        self._sums[layer][0][self.members] += state

    def take_control(self, layer: int, state: torch.Tensor) -> None:
        """Add the normed state that enters the block."""
        if not self.members:
            return
        # The final norm without its gain, up to a positive scale: each prefix counts the same.
        if self._centre:
            state = state - state.mean(dim=-1, keepdim=True)
        self._sums[layer][1][self.members] += torch.nn.functional.normalize(state, dim=-1)

    def means(self, layer: int) -> LayerStates:
        """The means over prefixes of one layer.

        Raises:
            HeadatlasError: They are not finite.
        """
        x, control = (sums / self._n_prefixes for sums in self._sums[layer])
        if not all(bool(torch.isfinite(rows).all()) for rows in (x, control)):
            raise HeadatlasError(
                f"{self._spec}: the states of layer {layer} are not finite; "
                "the weights are damaged or overflow in float32."
            )
        return LayerStates(x, control)

    def save(self, folder: Path) -> None:
        """Write the means, one file per layer and kind."""
        for layer in self._sums:
            means = self.means(layer)
            for kind, rows in zip(KINDS, (means.x, means.control), strict=True):
                np.save(folder / state_file(kind, layer), rows.numpy(), allow_pickle=False)


@contextmanager
def pre_hooks(modules: torch.nn.Module, hooks: Iterable[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    """Have hooks see, or change, what enters submodules while the block runs.

    Args:
        modules: The model.
        hooks: Paths of submodules, each with a forward pre-hook that takes keyword arguments as well.
    """
    handles = [
        modules.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True) for path, hook in hooks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _reader(take: Callable[[int, torch.Tensor], None], layer: int) -> Callable[..., None]:
    """A forward pre-hook that hands over the module's input at the last position, in float32 on the CPU."""

    def hook(_module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = args[0] if args else kwargs["hidden_states"]
        take(layer, state[:, -1].to("cpu", torch.float32))

    return hook
