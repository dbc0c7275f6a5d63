"""Python as text: one text a library, put together of an introduction, names of the model, and functions.

Text of others (names of models and relations) goes in as literals alone. Only strings are handled here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pprint import pformat
from string import Template
from typing import Literal

from headatlas import __version__

Action = Literal["silence", "scale", "watch"]
Head = tuple[int, int]

FUNCTIONS: dict[Action, str] = {"silence": "silenced", "scale": "scaled", "watch": "watched"}
"""Names of the function in the code."""
SAYS: dict[Action, str] = {
    "silence": "Set to zero what heads bring to the output projection, at every position",
    "scale": "Multiply by FACTOR what heads bring to the output projection, at every position",
    "watch": "Collect what heads bring to the output projection, at every position",
}
CHANGES: dict[Action, str] = {
    "silence": "rows[..., chosen, :] = 0.0",
    "scale": "rows[..., chosen, :] *= FACTOR",
    "watch": "",
}
HOOK_Z = "blocks.{layer}.attn.hook_z"
"""TransformerLens's name, in every family, of what the heads of a layer bring to the output projection."""


@dataclass(frozen=True)
class Place:
    """The place of heads in a model.

    Attributes:
        model: The model's name, as it is; text of others.
        outputs: Alternative paths of the Hugging Face module of the output projection, with ``{layer}``.
        n_heads: Query heads of a layer.
        d_head: Channels of each, at the input of the output projection: head · d_head and on.
    """

    model: str
    outputs: tuple[str, ...]
    n_heads: int
    d_head: int


def written(
    form: str,
    do: Action,
    place: Place,
    heads: Sequence[Head],
    control: Sequence[Head],
    *,
    why: str,
    seed: int,
    factor: float | None,
) -> str:
    """The code for one library (``transformers``, ``transformer-lens`` or ``nnsight``).

    ``why`` says how the heads were chosen, and is text of others; ``control`` are drawn with ``seed``.
    """
    dialect = _DIALECTS[form]
    body = dialect.watching if do == "watch" else dialect.changing
    lines = [
        *_names(place, heads, why),
        f"CONTROL = {_listed(control)}",
        f"# CONTROL: random other heads of the same layers, seed {seed}" + _fewer(heads, control),
        f"N_HEADS, D_HEAD = {place.n_heads}, {place.d_head}",
        f"OUTPUTS = {_listed(place.outputs)}" if dialect.finding else f"HOOK = {HOOK_Z!r}",
        *([f"FACTOR = {factor!r}"] if do == "scale" else []),
    ]
    filled = {"function": FUNCTIONS[do], "says": SAYS[do], "change": CHANGES[do], "version": __version__}
    usage = dialect.watching_usage if do == "watch" else dialect.usage
    start = [_INTRODUCTION, usage, '"""\n', *([dialect.imports] if dialect.imports else [])]
    text = "\n".join([*start, *lines, "", dialect.finding + body])
    return Template(text).substitute(filled)


def _fewer(heads: Sequence[Head], control: Sequence[Head]) -> str:
    return "" if len(control) == len(heads) else "; fewer than HEADS, for a layer has no more"


def written_loader(
    place: Place, file: str, heads: Sequence[Head], *, why: str, factor: float | None, gguf: bool
) -> str:
    """The code that loads changed output projections over a model of transformers."""
    done = "set to zero" if factor is None else f"multiplied by {factor!r}"
    names = [
        *_names(place, heads, why),
        f"FILE = {_literal(file)}",
        f"# The columns of HEADS in W_O are {done}.",
    ]
    kept = "names and types of the checkpoint"
    filled = {
        "version": __version__,
        "kept": "names of the modules, in float32: the model is a GGUF file" if gguf else kept,
    }
    return Template("\n".join([_LOADER, *names, "", _LOADING])).substitute(filled)


def _names(place: Place, heads: Sequence[Head], why: str) -> list[str]:
    return [f"MODEL = {_literal(place.model)}", f"WHY = {_literal(why)}", f"HEADS = {_listed(heads)}"]


def _literal(text: str) -> str:
    # A template's own sign is doubled.
    return repr(text).replace("$", "$$")


def _listed(items: Sequence[object]) -> str:
    return pformat(list(items), width=100, compact=True)


@dataclass(frozen=True)
class Dialect:
    """The pieces of the code for one library."""

    imports: str
    finding: str
    changing: str
    watching: str
    usage: str
    watching_usage: str


_INTRODUCTION = '''"""$says.

Written by headatlas $version, which is not needed here. HEADS are (layer, head), both from 0: query heads,
whose channels begin at head * D_HEAD. Give CONTROL instead for random heads of the same layers.'''

# transformers ----------------------------------------------------------------------------------------

_MODULES = '''
def _outputs(model, heads):
    """Layer -> its output projection, and layer -> its heads; layers in order."""
    chosen = {}
    for layer, head in sorted(heads):
        chosen.setdefault(layer, []).append(head)
    return {layer: _output(model, layer) for layer in chosen}, chosen


def _output(model, layer):
    for path in OUTPUTS:
        try:
            return model.get_submodule(path.format(layer=layer))
        except AttributeError:
            pass
    raise ValueError(f"no module {OUTPUTS[0].format(layer=layer)}: this model is not like {MODEL}")


def _entering(args, kwargs):
    """The input of a module, head by head: [..., N_HEADS, D_HEAD]."""
    entering = args[0] if args else next(iter(kwargs.values()))
    return entering.unflatten(-1, (N_HEADS, D_HEAD))

'''

TRANSFORMERS = Dialect(
    imports="from contextlib import contextmanager\n",
    finding=_MODULES,
    changing='''
@contextmanager
def $function(model, heads=HEADS):
    """$says, inside the block."""
    outputs, chosen = _outputs(model, heads)
    handles = [
        outputs[layer].register_forward_pre_hook(_changing(chosen[layer]), with_kwargs=True)
        for layer in outputs
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def _changing(chosen):
    def hook(_module, args, kwargs):
        rows = _entering(args, kwargs).clone()
        $change
        changed = rows.flatten(-2)
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): changed})

    return hook
''',
    watching='''
@contextmanager
def $function(model, heads=HEADS):
    """$says, inside the block.

    Gives a dict: (layer, head) -> list of [batch, position, D_HEAD], one for each forward pass.
    """
    outputs, chosen = _outputs(model, heads)
    found = {head: [] for head in heads}
    handles = [
        outputs[layer].register_forward_pre_hook(_collecting(layer, chosen[layer], found), with_kwargs=True)
        for layer in outputs
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _collecting(layer, chosen, found):
    def hook(_module, args, kwargs):
        rows = _entering(args, kwargs)
        for head in chosen:
            found[layer, head].append(rows[..., head, :].detach().clone())

    return hook
''',
    usage="""
    model = transformers.AutoModelForCausalLM.from_pretrained(…)
    with $function(model):
        logits = model(**inputs).logits
    with $function(model, CONTROL):
        control = model(**inputs).logits""",
    watching_usage="""
    model = transformers.AutoModelForCausalLM.from_pretrained(…)
    with $function(model) as found:
        model(**inputs)
    layer, head = HEADS[0]
    found[layer, head][0]  # [batch, position, D_HEAD]; times the head's part of W_O: what it writes""",
)

# transformer-lens ------------------------------------------------------------------------------------

_HOOKED = """
def _by_layer(heads):
    chosen = {}
    for layer, head in sorted(heads):
        chosen.setdefault(layer, []).append(head)
    return chosen

"""

LENS = Dialect(
    imports="from contextlib import contextmanager\n",
    finding="",
    changing=_HOOKED
    + '''
@contextmanager
def $function(model, heads=HEADS):
    """$says, inside the block."""
    hooks = [(HOOK.format(layer=layer), _changing(chosen)) for layer, chosen in _by_layer(heads).items()]
    with model.hooks(fwd_hooks=hooks):
        yield model


def _changing(chosen):
    def change(z, hook):
        rows = z.clone().reshape(*z.shape[:2], N_HEADS, D_HEAD)
        $change
        return rows.reshape(z.shape)

    return change
''',
    watching=_HOOKED
    + '''
@contextmanager
def $function(model, heads=HEADS):
    """$says, inside the block.

    Gives a dict: (layer, head) -> list of [batch, position, D_HEAD], one for each forward pass.
    """
    found = {head: [] for head in heads}
    hooks = [
        (HOOK.format(layer=layer), _collecting(layer, chosen, found))
        for layer, chosen in _by_layer(heads).items()
    ]
    with model.hooks(fwd_hooks=hooks):
        yield found


def _collecting(layer, chosen, found):
    def collect(z, hook):
        rows = z.reshape(*z.shape[:2], N_HEADS, D_HEAD)
        for head in chosen:
            found[layer, head].append(rows[:, :, head].detach().clone())

    return collect
''',
    usage="""
    model = transformer_lens.model_bridge.TransformerBridge.boot_transformers(…)
    with $function(model):
        logits = model(tokens)
    with $function(model, CONTROL):
        control = model(tokens)

Where value biases are folded (enable_compatibility_mode, or a HookedTransformer of versions before 4 without
fold_value_biases=False), z lacks the head's value bias, and the model keeps it.""",
    watching_usage="""
    model = transformer_lens.model_bridge.TransformerBridge.boot_transformers(…)
    with $function(model) as found:
        model(tokens)
    layer, head = HEADS[0]
    found[layer, head][0]  # [batch, position, D_HEAD]

Where value biases are folded (enable_compatibility_mode, or a HookedTransformer of versions before 4 without
fold_value_biases=False), z lacks the head's value bias.""",
)

# nnsight ---------------------------------------------------------------------------------------------

_ENVOYS = '''
def _outputs(model, heads):
    """(output projection, layer, heads), layers in order, which nnsight needs."""
    chosen = {}
    for layer, head in sorted(heads):
        chosen.setdefault(layer, []).append(head)
    return [(_output(model, layer), layer, chosen[layer]) for layer in chosen]


def _output(model, layer):
    for path in OUTPUTS:
        found = model
        try:
            for part in path.format(layer=layer).split("."):
                found = found[int(part)] if part.isdigit() else getattr(found, part)
        except AttributeError:
            continue
        return found
    raise ValueError(f"no module {OUTPUTS[0].format(layer=layer)}: this model is not like {MODEL}")

'''

NNSIGHT = Dialect(
    imports="",
    finding=_ENVOYS,
    changing='''
def $function(model, heads=HEADS):
    """$says; call it inside a trace."""
    for output, _, chosen in _outputs(model, heads):
        rows = output.input.clone().unflatten(-1, (N_HEADS, D_HEAD))
        $change
        output.input = rows.flatten(-2)
''',
    watching='''
def $function(model, heads=HEADS):
    """$says; call it inside a trace.

    Gives a dict: (layer, head) -> [batch, position, D_HEAD]; save it with nnsight.save.
    """
    found = {}
    for output, layer, chosen in _outputs(model, heads):
        rows = output.input.unflatten(-1, (N_HEADS, D_HEAD))
        for head in chosen:
            found[layer, head] = rows[..., head, :].clone()
    return found
''',
    usage="""
    model = nnsight.LanguageModel(…)  # or TransformersModel(…)
    with model.trace(prompt):
        $function(model)            # or $function(model, CONTROL)
        logits = model.output.logits.save()""",
    watching_usage="""
    model = nnsight.LanguageModel(…)  # or TransformersModel(…)
    with model.trace(prompt):
        found = nnsight.save($function(model))""",
)

_DIALECTS = {"transformers": TRANSFORMERS, "transformer-lens": LENS, "nnsight": NNSIGHT}

# A file over a model ---------------------------------------------------------------------------------

_LOADER = '''"""Load changed output projections over a model of transformers.

Written by headatlas $version, which is not needed here. The metadata of FILE say in "parameters" which
parameter of the model each tensor replaces. Tensors have the
$kept.

    model = transformers.AutoModelForCausalLM.from_pretrained(…)
    load_over(model)
"""

import json

import torch
from safetensors import safe_open
'''

_LOADING = '''
def load_over(model, file=FILE):
    """Copy each tensor of the file over the parameter that it replaces, and return the model."""
    with safe_open(file, framework="pt") as changed, torch.no_grad():
        for name, path in json.loads(changed.metadata()["parameters"]).items():
            model.get_parameter(path).copy_(changed.get_tensor(name))
    return model
'''
