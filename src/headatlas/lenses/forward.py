"""Run a model's own modules on rows of token ids: in float32 and evaluation mode, in batches, with hooks."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from headatlas.architectures import Model
from headatlas.devices import free_memory, strict_products
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    import numpy as np
    from transformers import DynamicCache, PreTrainedModel

    from headatlas.weights import Tokenizer

Ids = tuple[int, ...]
_T = TypeVar("_T")

CPU = torch.device("cpu")
ACTIVATIONS = 512 << 20
"""Bytes that the activations of the rows at hand may take on the CPU; on a GPU, a quarter of what is free."""
MOST_TOKENS = {"cpu": 2048, "mps": 8192, "cuda": 16384}
"""That go through together, by kind of device: more make the CPU no faster."""


@contextmanager
def running(model: Model, device: torch.device = CPU) -> Iterator[PreTrainedModel]:
    """Load the model's modules whole, in float32 and evaluation mode, for use without gradients.

    Those of a model that was in memory already are where it is; others are put on the device.
    """
    modules = model.modules()
    if model.checkpoint.loaded is None:
        torch.nn.Module.to(modules, device)
    with torch.inference_mode(), strict_products():
        yield modules


def prefix_ids(tokenizer: Tokenizer, prefix: str) -> list[int]:
    """Token ids of a prefix after whatever the tokenizer itself puts first (``<bos>`` or nothing)."""
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    dressed: list[int] = tokenizer("a")["input_ids"]
    first = next((at for at in range(len(dressed)) if dressed[at : at + len(plain)] == plain), 0)
    ids: list[int] = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    return dressed[:first] + ids


def by_length(sources: Sequence[tuple[int, ...]]) -> dict[int, list[int]]:
    """Length → the sources of that many tokens, by their places; short ones first."""
    found: dict[int, list[int]] = {}
    for at, source in enumerate(sources):
        found.setdefault(len(source), []).append(at)
    return dict(sorted(found.items()))


def batch_tokens(model: Model, device: torch.device) -> int:
    """Number of tokens that go through a block together, so that their activations stay within bounds.

    A token's activations are about what all projections of a block make of it, in float32.
    """
    a_token = 4 * model.n_block_parameters // model.dims.d_model
    room = ACTIVATIONS if device.type == "cpu" else free_memory(device) // 4
    return max(1, min(room // a_token, MOST_TOKENS[device.type]))


def batches(members: list[_T], length: int, tokens: int) -> Iterator[list[_T]]:
    """Sources of one length in parts of at most so many tokens that go through the model together."""
    size = max(1, tokens // length)
    for start in range(0, len(members), size):
        yield members[start : start + size]


# Sources as a tree: what several of them begin with goes through once ---------------------------------


@dataclass(frozen=True)
class Step:
    """One more token of some sources: n rows that go through the model together."""

    past: int  # tokens of the sources before this one
    parents: list[int]  # [n] rows, among those of the step before that go on, from which these go on
    ids: list[int]  # [n] token ids
    places: list[int]  # [n] where these rows stand among `beginnings`
    rows: list[int]  # those at which a source ends
    members: list[int]  # [len(rows)] the sources that end there, by their places
    going_on: list[int]  # rows from which later steps go on
    then: tuple[Step, ...]  # these steps


def beginnings(sources: Sequence[Ids]) -> list[Ids]:
    """All that sources begin with, and they themselves, once each; short ones first."""
    found = dict.fromkeys(source[:length] for source in sources for length in range(1, len(source) + 1))
    return sorted(found, key=len)


def shared_steps(sources: Sequence[Ids], tokens: int) -> tuple[Step, ...]:
    """The steps that take all sources through a model, every beginning a single time.

    A state depends on the tokens before it alone, so sources that begin alike share the states of their
    beginnings, as all of them share those of a prefix. So many ``tokens`` may be in work together, with those
    that they look back on.
    """
    places = {ids: at for at, ids in enumerate(beginnings(sources))}
    ending: dict[Ids, list[int]] = defaultdict(list)
    for at, source in enumerate(sources):
        ending[source].append(at)
    longer: dict[Ids, list[Ids]] = defaultdict(list)
    for ids in places:
        longer[ids[:-1]].append(ids)

    def following(before: Sequence[Ids]) -> Iterator[Step]:
        rows = [(row, ids) for row, begun in enumerate(before) for ids in longer[begun]]
        # Rows that go on stand together: so later steps are few and large.
        rows.sort(key=lambda each: each[1] not in longer)
        for part in batches(rows, len(before[0]) + 1, tokens):
            parents, found = [row for row, _ in part], [ids for _, ids in part]
            ends = [(row, at) for row, ids in enumerate(found) for at in ending.get(ids, ())]
            going_on = [row for row, ids in enumerate(found) if ids in longer]
            yield Step(
                past=len(before[0]),
                parents=parents,
                ids=[ids[-1] for ids in found],
                places=[places[ids] for ids in found],
                rows=[row for row, _ in ends],
                members=[at for _, at in ends],
                going_on=going_on,
                then=tuple(following([found[row] for row in going_on])) if going_on else (),
            )

    return tuple(following([()]))


def walk(
    steps: Iterable[Step], cache: DynamicCache, device: torch.device
) -> Iterator[tuple[Step, DynamicCache]]:
    """Each step with the keys and values of what its rows look back on.

    Whoever takes a step sends its rows through with that cache before asking for the next one.
    """
    for step in steps:
        past = branch(cache)
        past.batch_select_indices(torch.tensor(step.parents, device=device))
        yield step, past
        if step.then:
            past.batch_select_indices(torch.tensor(step.going_on, device=device))
            yield from walk(step.then, past, device)


def branch(cache: DynamicCache) -> DynamicCache:
    """A cache that goes on from another, which stays as it is."""
    past: DynamicCache = copy.copy(cache)
    # Layers take new tensors in the place of the old ones, which are not written to.
    past.layers = [copy.copy(layer) for layer in cache.layers]
    return past


def twin(modules: PreTrainedModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Modules with hooks of their own, on the tensors of these, or on parameters rounded to another type."""
    tensors: dict[int, Any] = {id(tensor): tensor for tensor in (*modules.parameters(), *modules.buffers())}
    if dtype is not None:
        rounded = ((id(each), each.to(dtype)) for each in modules.parameters())
        tensors |= {key: torch.nn.Parameter(each, requires_grad=False) for key, each in rounded}
    return copy.deepcopy(modules, tensors)


class EnoughError(Exception):
    """Ends a pass at a value projection."""


@contextmanager
def pre_hooks(modules: torch.nn.Module, hooks: Iterable[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    """Have hooks see, or change, what enters submodules while the block runs.

    They are paths with forward pre-hooks that take keyword arguments as well.
    """
    with ExitStack() as stack:
        for path, hook in hooks:
            handle = modules.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def ending(modules: torch.nn.Module, path: str) -> AbstractContextManager[None]:
    """Have passes end with an `EnoughError` where a submodule begins, after the hooks that are there."""

    def end(*_: Any) -> None:
        raise EnoughError

    return pre_hooks(modules, [(path, end)])


def require_finite(spec: str, what: str, finite: bool | np.bool_) -> None:
    """Refuse numbers of a model that are not all finite; ``what`` says which, with its verb."""
    if not finite:
        raise HeadatlasError(f"{spec}: {what} not finite; the weights are damaged or overflow in float32.")


def require_embedded(model: Model, rows: Iterable[Sequence[int]]) -> None:
    """Refuse token ids that the model's embedding has no row for, as of tokens added without resizing it."""
    size = model.dims.vocab_size
    beyond = min((token for row in rows for token in row if token >= size), default=None)
    if beyond is not None:
        name = model.tokenizer().convert_ids_to_tokens(beyond)
        raise HeadatlasError(
            f"{model.checkpoint.spec}: its tokenizer gives token {beyond} ({name!r}), and the model's "
            f"vocabulary has {size} tokens; use its own tokenizer, or resize and train its embedding."
        )


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The tensor that enters a module, from the arguments that a hook sees."""
    found: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return found
