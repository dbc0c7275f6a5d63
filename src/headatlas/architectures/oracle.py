"""Comparisons of what headatlas reads of a model with what its Hugging Face modules compute.

One set for all who ask: the tests, for every family and format; ``families check``, for a checkpoint of an
unknown family; and, for the first block only, the self-check of a map. A comparison yields pairs of tensors
that must be equal; who asks sets the tolerance. Everything is found through hooks on the paths that the model
names, so the paths are compared as well. No family is known here.

*The self-check* is a look at a real model when it is opened: does its first block compute what the family
file says? Random rows go into the Hugging Face modules of the checkpoint's own first block, and what every
head passes on, and what one head writes, must have the direction that the heads read from the checkpoint
give. (A positive factor per row and head is left open: it changes no rank, and an attention sink or a
latent's norm makes one.) Besides, the unembedding must be the tensor that transformers would use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from headatlas.architectures.model import Model
from headatlas.errors import HeadatlasError, first_line
from headatlas.weights.loading import TooLargeError, first_block, load_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from headatlas.architectures.layouts import Dims, LayerHeads

    Tensors = dict[str, torch.Tensor]

_ROWS = 3


@dataclass(frozen=True)
class Compared:
    """Two tensors [..., n] that must be equal."""

    part: str  # what was compared, e.g. ``"values of head 0.3"``
    ours: torch.Tensor  # as headatlas reads it
    theirs: torch.Tensor  # as the modules have it
    stored: bool = False  # whether both are numbers as stored, which no arithmetic has touched

    @property
    def distance(self) -> float:
        """The largest distance of two rows, relative to the root mean square length of theirs."""
        ours, theirs = (each.double().flatten(0, -2) for each in (self.ours, self.theirs))
        if ours.shape != theirs.shape:
            raise ValueError(f"{self.part}: shape {list(ours.shape)} instead of {list(theirs.shape)}")
        usual = theirs.norm() / theirs.shape[0] ** 0.5
        far = (ours - theirs).norm(dim=-1).max() / usual.clamp_min(1e-30)
        return float(far.nan_to_num(nan=inf))

    @property
    def directions(self) -> Compared:
        """Both with rows of length one: positive factors, which change no rank, are left open."""
        return Compared(self.part, directions_of(self.ours), directions_of(self.theirs))


class _Reached(Exception):  # noqa: N818 (a signal, no error)
    """A module is about to run that need not."""


@contextmanager
def recorded(
    modules: PreTrainedModel, paths: Sequence[str], stop_at: str | None = None
) -> Iterator[tuple[Tensors, Tensors]]:
    """Last inputs and outputs of the named modules during the block, in float64 on the CPU.

    The block ends before the module at ``stop_at`` runs.
    """
    import torch

    inputs: Tensors = {}
    outputs: Tensors = {}

    def kept(tensor: Any) -> torch.Tensor:
        return (tensor[0] if isinstance(tensor, tuple) else tensor).detach().cpu().double()  # type: ignore[no-any-return]

    def enter(path: str, _: Any, args: Any, kwargs: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        inputs[path] = kept(given)
        if path == stop_at:
            raise _Reached

    def leave(path: str, _: Any, __: Any, output: Any) -> None:
        outputs[path] = kept(output)

    with ExitStack() as stack, torch.no_grad():
        for path in dict.fromkeys(paths):
            module = modules.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(partial(enter, path), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(partial(leave, path)).remove)
        try:
            yield inputs, outputs
        except _Reached:
            return


@contextmanager
def _silenced(modules: PreTrainedModel, paths: Sequence[str]) -> Iterator[None]:
    """The modules' outputs are zero during the block."""
    import torch

    def nothing(_: Any, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    with ExitStack() as stack:
        for path in paths:
            stack.callback(modules.get_submodule(path).register_forward_hook(nothing).remove)
        yield


# What is compared -----------------------------------------------------------------------------------


def embeddings(model: Model, modules: PreTrainedModel) -> Iterator[Compared]:
    """E and U; where the embedding is normed, what enters the first block, up to positive factors."""
    untyped: Any = modules
    unembedding = untyped.get_output_embeddings().weight.detach()
    yield Compared("unembedding", model.unembed(), unembedding, stored=True)
    if model.norms_embedding:
        ids = random_ids(model, 1)
        first = model.block_module(0)
        with recorded(modules, [first]) as (entering, _):
            modules(ids)
        yield Compared("embedding", model.embed(ids[:, 0].tolist()), entering[first][:, 0]).directions
        return
    embedding = untyped.get_input_embeddings().weight.detach()
    yield Compared("embedding", model.embed(), embedding, stored=True)
    yield Compared("rows of the embedding", model.embed([7, 3]), embedding[[7, 3]], stored=True)


def values(model: Model, modules: PreTrainedModel) -> Iterator[Compared]:
    """Values of the recorded x_l against what enters the output projections, in texts of one token."""
    paths = {
        each: (model.value_input_module(each), model.o_proj_module(each)) for each in model.layers_with_heads
    }
    with recorded(modules, [path for both in paths.values() for path in both]) as (entering, _):
        modules(random_ids(model, 1))
    for layer, (source, output) in paths.items():
        yield from values_of_layer(model.heads(layer), model.dims, layer, entering[source], entering[output])


def values_of_layer(
    heads: LayerHeads, dims: Dims, layer: int, x: torch.Tensor, passed: torch.Tensor
) -> Iterator[Compared]:
    """Every head's values of source states x [n, 1, d_model] against passed [n, 1, n_heads * d_head].

    A token that is alone attends to itself, so what a head passes on is its value, up to a positive factor
    for each source and head: a sink or a gate takes a share, the norm of a latent divides by a number.
    """
    for head in range(dims.n_heads):
        ours, theirs = values_of_head(heads, dims, head, x), of_head(passed, head, dims)
        yield Compared(f"values of head {layer}.{head}", ours, theirs).directions


def outputs(model: Model, modules: PreTrainedModel) -> Iterator[Compared]:
    """Output of every head, for random values in it alone."""
    dims = model.dims
    for layer in model.layers_with_heads:
        projection, heads = modules.get_submodule(model.o_proj_module(layer)), model.heads(layer)
        passed = _random(2, 1, dims.n_heads * dims.d_head)
        for head in range(dims.n_heads):
            yield output_of_head(heads, dims, layer, head, passed, projection)


def output_of_head(
    heads: LayerHeads, dims: Dims, layer: int, head: int, passed: torch.Tensor, projection: Any
) -> Compared:
    """Output of one head for its part of what entered the output projection [..., n_heads * d_head]."""
    ours = of_head(passed, head, dims) @ heads.W_O[head].double()
    return Compared(f"output of head {layer}.{head}", ours, _written_by(projection, passed, head, dims))


def contributions(model: Model, modules: PreTrainedModel) -> Iterator[Compared]:
    """R_l((x_l W_V + b_V) W_O) U is a head's part of the logits, up to a positive factor for each source.

    Texts have one token: a head attends to the token itself, so its output is its value.
    """
    untyped: Any = modules
    dims, unembedding, final = model.dims, untyped.get_output_embeddings(), model.final_norm_module()
    U = model.unembed().double().T
    norms = {layer: _norms_of(model, modules, layer) for layer in model.layers_with_heads}
    paths = [final, *(path for each in norms.values() for path in each)]
    for layer in norms:
        paths += [model.o_proj_module(layer), model.value_input_module(layer)]
    with recorded(modules, paths) as (entering, left):
        logits = modules(random_ids(model, 1)).logits.detach().cpu().double()
    last = _frozen(modules.get_submodule(final), entering[final], left[final])
    for layer, around in norms.items():
        output, right, heads = model.o_proj_module(layer), model.right_map(layer), model.heads(layer)
        after = _norm_after(model, layer, around, entering, left[output])
        x, passed = entering[model.value_input_module(layer)], entering[output]
        for head in range(dims.n_heads):
            theirs = _written_by(modules.get_submodule(output), passed, head, dims)
            if after is not None:
                theirs = _frozen(modules.get_submodule(after), entering[after], left[after])(theirs)
            theirs = last(theirs) @ unembedding.weight.detach().cpu().double().T
            ours = right.apply(values_of_head(heads, dims, head, x) @ heads.W_O[head].double()) @ U
            yield Compared(f"part of the logits of head {layer}.{head}", ours, theirs).directions
    # Logits are what the final norm leaves, unembedded; multipliers and caps may follow and keep the order.
    order = _called(unembedding, left[final]).argsort()
    yield Compared("order of the logits", logits.gather(-1, order), logits.sort().values)


def residual_stream(model: Model, modules: PreTrainedModel) -> Iterator[Compared]:
    """With its MLP silenced, attention changes what leaves its block by what the right map's first half says.

    This compares the place of the norm after attention, and multipliers, with what really happens.
    """
    layer, dims = model.layers_with_heads[-1], model.dims
    source, output = model.value_input_module(layer), model.o_proj_module(layer)
    block = model.block_module(layer)
    ids = random_ids(model, 1)
    with _silenced(modules, model.mlp_modules(layer)):
        with recorded(modules, [source, output, block]) as (entering, left):
            modules(ids)
        with _silenced(modules, [output]), recorded(modules, [block]) as (_, without):
            modules(ids)
    heads, bias = model.heads(layer), getattr(modules.get_submodule(output), "bias", None)
    ours = left[block].new_zeros(left[block].shape)
    if bias is not None:
        ours = ours + bias.detach().cpu()
    for head in range(dims.n_heads):
        own = values_of_head(heads, dims, head, entering[source])
        share = (of_head(entering[output], head, dims) * own).sum(-1, keepdim=True)
        share = share / own.square().sum(-1, keepdim=True)
        if not bool((share > 0).all()):  # below one beside a sink, anything where values come from a latent
            raise HeadatlasError(f"head {layer}.{head} passes on its values with another sign")
        ours = ours + share * own @ heads.W_O[head].double()
    gain = model.right_map(layer).post_gain
    ours = ours if gain is None else ours * gain.double()
    yield Compared(f"attention's part of block {layer}", ours, left[block] - without[block]).directions


def final_norm(model: Model, modules: PreTrainedModel) -> Iterator[Compared]:
    """The final norm, whole and as far as the right map has it."""
    norm = modules.get_submodule(model.final_norm_module())
    rows = _random(4, model.dims.d_model)
    theirs = _called(norm, rows)
    yield Compared("final norm", model.final_norm(rows), theirs)
    bias = getattr(norm, "bias", None)
    right = model.right_map(model.layers_with_heads[0])
    ours = type(right)(None, right.centre, right.final_gain).apply(rows)
    without_bias = theirs if bias is None else theirs - bias.detach().cpu()
    yield Compared("final norm of the right map", ours, without_bias).directions


def first_mlp(model: Model, modules: PreTrainedModel) -> Iterator[Compared]:
    """With the first attention silenced, its block's MLP sees norm(rows)."""
    rows = _random(_ROWS, 5, model.dims.d_model)
    paths = model.mlp_modules(0)

    def enter(_: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (rows.to(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": rows.to(kwargs["hidden_states"])}

    block = modules.get_submodule(model.block_module(0))
    with ExitStack() as stack:
        stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
        stack.enter_context(_silenced(modules, model.attention_modules(0)))
        _, left = stack.enter_context(recorded(modules, paths))
        modules(random_ids(model, 5))
    theirs = sum(left[path].reshape(rows.shape) for path in paths)
    assert not isinstance(theirs, int)  # noqa: S101 (there is an MLP)
    yield Compared("first MLP", model.first_mlp(rows.flatten(0, 1)).reshape(rows.shape), theirs)


COMPARISONS: dict[str, Callable[[Model, PreTrainedModel], Iterator[Compared]]] = {
    "embedding and unembedding": embeddings,
    "values of every head": values,
    "outputs of every head": outputs,
    "part of every head in the logits": contributions,
    "attention in the residual stream": residual_stream,
    "final norm": final_norm,
    "first MLP": first_mlp,
}


# With what ------------------------------------------------------------------------------------------


def random_ids(model: Model, length: int) -> torch.Tensor:
    """Texts of random tokens [3, length]; ids below three may be special."""
    import torch

    generator = torch.Generator().manual_seed(length)
    return torch.randint(3, model.dims.vocab_size, (_ROWS, length), generator=generator)


def _random(*shape: int) -> torch.Tensor:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def directions_of(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length one."""
    import torch

    return torch.nn.functional.normalize(rows.double(), dim=-1)


def of_head(passed: torch.Tensor, head: int, dims: Dims) -> torch.Tensor:
    """One head's part [..., d_head] of what enters the output projection."""
    return passed[..., head * dims.d_head : (head + 1) * dims.d_head]


def values_of_head(heads: LayerHeads, dims: Dims, head: int, x: torch.Tensor) -> torch.Tensor:
    """x_l W_V + b_V of one query head."""
    group = dims.kv_head(head)
    own = x @ heads.W_V[group].to(x)
    return own if heads.b_V is None else own + heads.b_V[group].to(x)


def _written_by(projection: Any, passed: torch.Tensor, head: int, dims: Dims) -> torch.Tensor:
    """The output projection of one head's part alone, without its bias."""
    import torch

    alone = torch.zeros_like(passed)
    of_head(alone, head, dims).copy_(of_head(passed, head, dims))
    return _called(projection, alone) - _called(projection, torch.zeros_like(passed))


def _called(module: Any, rows: torch.Tensor) -> torch.Tensor:
    """A module's output in float64, computed in the type and on the device of its parameters."""
    import torch

    like = next(module.parameters(), rows)
    with torch.no_grad():
        output: torch.Tensor = module(rows.to(like))
    return output.cpu().double()


def _norms_of(model: Model, modules: PreTrainedModel, layer: int) -> list[str]:
    """Paths of all norms in a block, by the names of their classes."""
    block = model.block_module(layer)
    inside = modules.get_submodule(block).named_modules()
    return [f"{block}.{name}" for name, module in inside if "norm" in type(module).__name__.lower()]


def _norm_after(
    model: Model, layer: int, norms: Sequence[str], entering: Tensors, written: torch.Tensor
) -> str | None:
    """The path of the norm that the attention's output enters, or None, as the family file says."""
    import torch

    after = [path for path in norms if path in entering and torch.equal(entering[path], written)]
    said = model.right_map(layer).post_gain is not None
    if said != bool(after):
        raise HeadatlasError(
            f"layer {layer} has {len(after)} norms on the attention's output, the file says "
            f"{'one' if said else 'none'}"
        )
    return after[0] if after else None


def _frozen(norm: Any, entering: torch.Tensor, left: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A norm without bias whose scale is held at what it was, learnt from what went in and came out."""
    import torch

    centring = torch.allclose(_called(norm, entering + 1), left, rtol=1e-4, atol=1e-5)

    def centred(rows: torch.Tensor) -> torch.Tensor:
        return rows - rows.mean(-1, keepdim=True) if centring else rows

    bias = getattr(norm, "bias", None)
    scale = (left if bias is None else left - bias.detach().cpu()) / centred(entering)
    return lambda rows: centred(rows) * scale


# The self-check --------------------------------------------------------------------------------------

VARIABLE = "HEADATLAS_SELF_CHECK"
PASSED = "layer 0: "
"""First words of what is said where a check was made and found nothing."""
MOST_BYTES = 512 << 20
"""Stored bytes of a first block's attention that are read for it, at most."""
_CHECKED_ROWS = 4


def self_check(model: Model) -> str:
    """Hold the first block of a model against its Hugging Face modules, where that is cheap.

    Returns in words, for the provenance, what was checked, or why nothing was. Where they disagree the family
    file does not describe this checkpoint, which is refused.
    """
    if os.environ.get(VARIABLE, "1").lower() in ("0", "no", "false", "off"):
        return f"not run ({VARIABLE} is set)"
    try:
        heads = model.heads(0)
        modules = _to_compare_with(model)
    except TooLargeError as error:
        return f"not run (it would read {error.args[0] / 1e9:.1f} GB)"
    except HeadatlasError as error:
        return f"not run ({str(error).rstrip('.')})"
    _check_unembedding(model, modules)
    try:
        x, passed = _states(model, modules)
    except HeadatlasError as error:
        return f"not run ({error})"
    dims, tolerance = model.dims, 1e-3 if modules.dtype.itemsize >= 4 else 5e-2
    if passed.shape[-1] != dims.n_heads * dims.d_head:
        raise _disagreement(
            model, f"{dims.n_heads} heads of {dims.d_head}", f"{passed.shape[-1]} numbers in all"
        )
    for compared in values_of_layer(heads, dims, 0, x, passed):
        if compared.distance > tolerance:
            raise _disagreement(model, f"the {compared.part}", "others")
    head, projection = dims.n_heads // 2, modules.get_submodule(model.o_proj_module(0))
    if output_of_head(heads, dims, 0, head, passed, projection).directions.distance > tolerance:
        raise _disagreement(model, f"the output of head 0.{head}", "another")
    return (
        f"{PASSED}values of all {dims.n_heads} heads and output of head {head} as "
        f"{type(modules).__name__} of transformers computes them"
    )


def _to_compare_with(model: Model) -> PreTrainedModel:
    """The modules to compare with."""
    checkpoint = model.checkpoint
    if checkpoint.loaded is not None:
        return load_modules(checkpoint, checkpoint.loaded.dtype)  # in its own type nothing is copied
    if checkpoint.traffic is not None:
        raise HeadatlasError("the weights are not on disk")
    return first_block(
        checkpoint,
        body=model.body_module(),
        without=model.mlp_modules(0),
        stored_name=model.stored_name,
        most_bytes=MOST_BYTES,
    )


def _states(model: Model, modules: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """For random rows the source states and what enters the output projection [rows, 1, …]."""
    import torch

    rows = torch.randn(_CHECKED_ROWS, 1, model.dims.d_model, generator=torch.Generator().manual_seed(0))
    source, output = model.value_input_module(0), model.o_proj_module(0)
    like = next(modules.get_submodule(output).parameters())
    body: Any = modules.get_submodule(model.body_module())
    try:
        with recorded(modules, [source, output], stop_at=output) as (entering, _):
            # One token a row: a head attends to the token itself, so what it passes on is its value.
            body(inputs_embeds=rows.to(like), use_cache=False)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(modules).__name__
        raise HeadatlasError(f"{kind} does not run on embeddings alone: {first_line(error)}") from error
    if output not in entering:
        raise HeadatlasError(f"{type(modules).__name__} does not come to the first output projection")
    return entering[source].reshape(_CHECKED_ROWS, 1, -1), entering[output].reshape(_CHECKED_ROWS, 1, -1)


def _check_unembedding(model: Model, modules: PreTrainedModel) -> None:
    """A stored unembedding is used; without one it is the embedding, if the modules tie the two."""
    untyped: Any = modules
    output, embedding = untyped.get_output_embeddings(), untyped.get_input_embeddings()
    if output is None or model.stores_unembedding:
        return
    tied = getattr(output, "weight", None) is embedding.weight or modules.all_tied_weights_keys
    if not tied:  # without memory of their own, tied parameters are two that are listed
        raise _disagreement(model, "an unembedding tied to the embedding", "one of its own")


def _disagreement(model: Model, ours: str, theirs: str) -> HeadatlasError:
    return HeadatlasError(
        f"{model.checkpoint.spec}: read as the family {model.family.name!r}, layer 0 would have "
        f"{ours}, where transformers has {theirs}; such a model is not mapped. "
        f"Please report it; {VARIABLE}=0 maps it all the same."
    )
