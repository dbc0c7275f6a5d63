"""A checkpoint of an unknown family: proposes a family file for it, and tries one on a tiny random model.

*Proposal.* Names are compared with those of every family, tensor by tensor; the family that leaves least
unexplained is the base, and what differs from it is written as a family file that is ``like`` it. Nothing is
guessed: a tensor whose name no family knows stays unexplained, and the file does not pass the accounting.

*Trial.* transformers makes a tiny model of the checkpoint's own architecture and config with all parameters
drawn anew; it is saved as it would be published, opened through the family file, and every part that is
read of it must be what the Hugging Face modules compute. So a norm, bias or layout that the file forgets is
found without the large weights. Nothing writes GGUF files here, so of those the first layers themselves are
compared with what transformers makes of them.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.architectures.accounting import Inventory
from headatlas.architectures.family import MLP, Family, Linear, Norm, Prefix, Section, Value
from headatlas.architectures.model import Model
from headatlas.architectures.oracle import COMPARISONS, Compared
from headatlas.architectures.registry import claiming, families, parse_family
from headatlas.architectures.sizes import SIZES, ConfigReader
from headatlas.errors import HeadatlasError
from headatlas.weights.checkpoints import open_path
from headatlas.weights.gguf_source import GgufSource
from headatlas.weights.loading import (
    TooLargeError,
    auto_class,
    first_layers,
    in_first_layers,
    local_config,
    small_ids,
    transformers_at_work,
)
from headatlas.weights.source import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_SHAPES = 3
_BESIDE = "beside (read by no head)"


@dataclass(frozen=True)
class TensorGroup:
    """The tensors of one name but for the numbers of layer and expert.

    Attributes:
        pattern: The name, with ``{layer}`` and ``{expert}``.
        count: How many there are.
        shapes: Their shapes, the first few different ones.
        dtype: Type of the first.
        meanings: What families call a tensor of this name → the families.
    """

    pattern: str
    count: int
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    meanings: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Proposal:
    """A family file proposed for a checkpoint.

    Attributes:
        groups: Its tensors, by name.
        base: The family that explains most of it.
        family: What the file says; ``base`` itself if that claims the architecture.
        text: The proposed file; empty where nothing needs to be written.
        unexplained: Patterns that the proposal does not explain.
    """

    groups: tuple[TensorGroup, ...]
    base: Family
    family: Family
    text: str = ""
    unexplained: tuple[str, ...] = ()


def proposals(checkpoint: Checkpoint) -> list[Proposal]:
    """Family files for a checkpoint, each like another family; those that leave least unexplained first.

    A checkpoint whose architecture a family claims has one proposal, that family.
    """
    groups = inspect_tensors(checkpoint)
    if (claimed := claiming(checkpoint)) is not None:
        return [Proposal(groups, claimed[0], claimed[0])]
    found = []
    for base in families():
        if base.section(checkpoint.format) is not None:
            with suppress(HeadatlasError):  # what differs cannot be said in a file that is like this family
                proposal = _proposed(checkpoint, base, groups)
                rank = _misfits(proposal.family, checkpoint), -len(base.aliases.architectures), base.name
                found.append((rank, proposal))
    if not any(each.meanings for each in groups) or not found:
        raise HeadatlasError(
            f"{checkpoint.spec}: no tensor has a name that any family knows; write a family file by hand."
        )
    return [proposal for _, proposal in sorted(found, key=lambda each: each[0])]


# What families call a tensor ------------------------------------------------------------------------


def inspect_tensors(checkpoint: Checkpoint) -> tuple[TensorGroup, ...]:
    """Every tensor of a checkpoint, with what the families call one of this name."""
    meanings = _known_names(checkpoint)
    groups: dict[str, list[str]] = defaultdict(list)
    infos = checkpoint.source.infos()
    for name in infos:
        groups[_collapsed(name)].append(name)
    found = []
    for pattern, names in groups.items():
        shapes = tuple(dict.fromkeys(infos[name].shape for name in names))[:_SHAPES]
        found.append(TensorGroup(pattern, len(names), shapes, infos[names[0]].dtype, meanings(pattern)))
    return tuple(found)


def roles_in(family: Family, checkpoint: Checkpoint) -> dict[str, str]:
    """Pattern → what one family calls the tensors of that name, under any of its prefixes."""
    found: dict[str, str] = {}
    if (section := family.section(checkpoint.format)) is not None:
        for prefix in section.prefixes:
            for role, stem in _roles(section):
                for kind in ("weight", "bias"):
                    found.setdefault(section.name(stem, prefix, kind=kind), role)
            for role, pattern in _patterns(section):
                found.setdefault(section.filled(pattern, prefix), role)
    return found


def _known_names(checkpoint: Checkpoint) -> Callable[[str], dict[str, tuple[str, ...]]]:
    """A function from a collapsed name to role → families.

    A name under a prefix that no family has is known by what follows the prefix.
    """
    exact: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    globs: list[tuple[str, str, str]] = []
    for family in families():
        for name, role in roles_in(family, checkpoint).items():
            if "*" in name:
                globs.append((name, role, family.name))
            else:
                for key in {name, _tail(name)}:
                    exact[key][role].append(family.name)

    def meanings(pattern: str) -> dict[str, tuple[str, ...]]:
        found = exact.get(pattern) or exact.get(_tail(pattern))
        if found:
            return {role: tuple(sorted(set(by))) for role, by in found.items()}
        return next(({role: (by,)} for glob, role, by in globs if fnmatchcase(pattern, glob)), {})

    return meanings


def _collapsed(name: str) -> str:
    """A tensor's name with its first number as ``{layer}`` and later ones as ``{expert}``."""
    numbered = iter(["{layer}"])
    parts = [next(numbered, "{expert}") if part.isdigit() else part for part in name.split(".")]
    return ".".join(parts)


def _tail(name: str) -> str:
    """A collapsed name without its prefix: what follows the layer, or its last two parts."""
    _, layer, rest = name.partition("{layer}.")
    return f"{layer}{rest}" if layer else ".".join(name.split(".")[-2:])


def _roles(section: Section) -> Iterator[tuple[str, str]]:
    """Role and stem of every tensor that a section names."""
    yield "embedding", section.embed
    yield from (("unembedding", stem) for stem in section.unembed.stems)
    norms = {
        "final norm": section.final_norm,
        "norm of the embedding": section.embed_norm,
        "norm before attention": section.attention_norm,
        "norm after attention": section.post_attention_norm,
        "norm before the MLP": section.mlp.norm,
    }
    yield from ((role, stem) for role, norm in norms.items() if norm is not None for stem in norm.stems)
    for value in section.value:
        yield ("values" if value.layout == "linear" else f"values ({value.layout})"), value.stem
        yield from (("queries or keys", stem) for stem in value.beside)
        latent = [value.down.stem] if value.down is not None else []
        latent += value.norm.stems if value.norm is not None else ()
        yield from (("latent of keys and values", stem) for stem in latent)
    yield "output of attention", section.output.stem
    yield from _mlp_roles("MLP", section.mlp)
    for experts in section.experts:
        yield from (
            ("router", stem) for stem in (experts.router.stem, experts.correction) if stem is not None
        )
        yield from (("expert", linear.stem) for linear in experts.linears)
        if experts.shared is not None:
            yield from _mlp_roles("shared expert", experts.shared)
        if experts.shared_gate is not None:
            yield "shared expert", experts.shared_gate.stem
    yield from ((_BESIDE, other.stem) for other in section.other)


def _mlp_roles(what: str, mlp: MLP) -> Iterator[tuple[str, str]]:
    linears = {"gate": mlp.gate, "gate and up": mlp.gate_up, "up": mlp.up, "down": mlp.down}
    yield from ((f"{what}: {role}", linear.stem) for role, linear in linears.items() if linear is not None)


def _patterns(section: Section) -> Iterator[tuple[str, str]]:
    """Role and pattern of what a section knows and does not read."""
    yield from (("ignored", pattern) for pattern in (*section.ignored, *section.without_heads))
    yield from (("beside the language model", pattern) for pattern in section.aside)


# The file -------------------------------------------------------------------------------------------


def _misfits(family: Family, checkpoint: Checkpoint) -> int:
    """The number of kinds of tensors that a family would miss, not know, or want in another shape."""
    section = family.section(checkpoint.format)
    every = {_collapsed(name) for name in checkpoint.source.infos()}
    if section is None:
        return 2 * len(every)
    try:
        misfits = Inventory(checkpoint, section).misfits()
    except HeadatlasError:  # the config lacks what the family reads, or contradicts it
        return len(every) + len(every - set(roles_in(family, checkpoint)))
    return len({_collapsed(name) for names in misfits for name in names})


def _proposed(checkpoint: Checkpoint, base: Family, groups: tuple[TensorGroup, ...]) -> Proposal:
    """A family file that is like a base."""
    section = base.section(checkpoint.format)
    assert section is not None  # noqa: S101 (the base was chosen among those that have one)
    overlay, left = _differences(section, groups, _flags(checkpoint, section))
    keys = _config_keys(checkpoint, section)
    kind = checkpoint.config.get("model_type")
    name = re.sub(r"\W", "_", str(kind or checkpoint.architecture).lower())
    name = f"{name}_new" if name in {family.name for family in families()} else name
    gguf = checkpoint.format == "gguf"
    claimed = {each for family in families() for each in family.aliases.model_types}
    kinds = [kind] if isinstance(kind, str) and kind not in claimed and not gguf else []
    lines = [
        f"# Proposed from {checkpoint.name}. Compare it with the model's own code before you use it.",
        *(f"# Not explained: {pattern}" for pattern in left),
        f"like = {_toml(base.name)}",
        f"name = {_toml(name)}",
        f"title = {_toml(checkpoint.architecture)}",
        "",
        "[aliases]",
        f"architectures = {_toml([] if gguf else [checkpoint.architecture])}",
        f"model_types = {_toml(kinds)}",
        *([f"gguf = {_toml([checkpoint.architecture])}"] if gguf else []),
    ]
    table = "gguf" if gguf else "safetensors"
    for title, part in ((table, overlay), (f"{table}.config", keys)):
        if part:
            lines += ["", f"[{title}]", *(f"{key} = {_toml(value)}" for key, value in part.items())]
    text = "\n".join(lines) + "\n"
    return Proposal(groups, base, parse_family(text, f"{name}.toml"), text, left)


def _differences(
    section: Section, groups: tuple[TensorGroup, ...], flags: Mapping[str, bool]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Changes to a section so that it names what is stored, and the names that no family explains."""
    meanings = {each.pattern: each.meanings for each in groups}
    stored = set(meanings)
    prefix = _prefix(section, stored)
    overlay: dict[str, Any] = {} if prefix in section.prefixes else {"prefixes": [prefix.model_dump()]}

    def of(stem: str, kind: str = "weight") -> str:
        return section.name(stem, prefix, kind=kind)

    explained = {of(stem, kind) for _, stem in _roles(section) for kind in ("weight", "bias")}
    ignored = [section.filled(each, prefix) for each in (*section.ignored, *section.aside)]
    left = sorted(name for name in stored - explained if not any(fnmatchcase(name, each) for each in ignored))
    added = [name for name in left if _BESIDE in meanings[name]]
    biased = {_stem(section, name, prefix) for name in added if name.endswith(".bias")}
    new = sorted({_stem(section, name, prefix) for name in added})
    others = [each for each in section.other if each.present != "always" or of(each.stem) in stored]
    if len(others) != len(section.other) or new:
        plain = [each.model_dump(exclude_defaults=True) for each in others]
        overlay["other"] = plain + [{"stem": s, **({"bias": "stored"} if s in biased else {})} for s in new]
    for key in ("output", "mlp", "value", "final_norm", "attention_norm", "post_attention_norm"):
        part = getattr(section, key)
        changed = _with_biases(part, lambda stem: of(stem, "bias") in stored, flags)
        if changed != part:
            dumped = [each.model_dump(exclude_defaults=True) for each in changed] if key == "value" else None
            overlay[key] = changed.model_dump(exclude_defaults=True) if dumped is None else dumped
    return overlay, tuple(name for name in left if name not in added)


def _flags(checkpoint: Checkpoint, section: Section) -> Mapping[str, bool]:
    """The section's conditions on the config; none where the config cannot be read that way."""
    try:
        return Inventory(checkpoint, section).sizes.flags
    except HeadatlasError:
        return {}


def _with_biases(part: Any, has_bias: Callable[[str], bool], flags: Mapping[str, bool]) -> Any:
    """A part with ``bias = "stored"`` wherever a bias is stored that it says is not there."""
    if isinstance(part, tuple):
        return tuple(_with_biases(each, has_bias, flags) for each in part)
    if isinstance(part, Linear | Norm | Value):
        stems = part.stems if isinstance(part, Norm) else (part.stem, *getattr(part, "beside", ()))
        there = any(map(has_bias, stems))
        said = part.bias in ("always", "stored") or flags.get(part.bias, False)
        return part.model_copy(update={"bias": "stored"}) if there and not said else part
    if isinstance(part, MLP):
        names = ("norm", "gate", "gate_up", "up", "down")
        changed = {name: _with_biases(getattr(part, name), has_bias, flags) for name in names}
        return part.model_copy(update=changed)
    return part


def _prefix(section: Section, stored: set[str]) -> Prefix:
    """The prefixes under which the section's embedding or blocks are stored."""
    for each in section.prefixes:
        if section.name(section.embed, each) in stored:
            return each
    within = section.block.removeprefix("{body}")
    bodies = Counter(name[: name.index(within)] for name in stored if within in name)
    return Prefix(body=bodies.most_common(1)[0][0] if bodies else section.prefixes[0].body)


def _stem(section: Section, name: str, prefix: Prefix) -> str:
    """The stem that a collapsed name belongs to, in the words of a family file."""
    block = section.block.replace("{body}", prefix.body)
    ends = (".weight", ".bias")
    stem = next((name.removesuffix(end) for end in ends if name.endswith(end)), f"{name}!")
    if stem.startswith(block):
        return "{block}" + stem.removeprefix(block)
    if prefix.body and stem.startswith(prefix.body):
        return "{body}" + stem.removeprefix(prefix.body)
    return stem


def _config_keys(checkpoint: Checkpoint, section: Section) -> dict[str, Any]:
    """For sizes that the config has under another key than the section says: the key that a family knows."""
    config = ConfigReader(checkpoint, section.config.nested)
    sections = [each for family in families() if (each := family.section(checkpoint.format)) is not None]
    found: dict[str, Any] = {}
    for size in SIZES:
        wanted = getattr(section.config, size)
        if wanted.derive is None and config.stored(wanted)[1] is None:
            known = (key for each in sections for key in getattr(each.config, size).keys)
            keys = Counter(key for key in known if config.at(key) is not None)
            if keys:
                found[size] = {"key": keys.most_common(1)[0][0]}
    return found


def _toml(value: Any) -> str:
    """A value as inline TOML."""
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key} = {_toml(part)}" for key, part in value.items() if part is not None)
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list | tuple):
        parts = [_toml(part) for part in value]
        one = f"[{', '.join(parts)}]"
        return one if len(one) <= 90 else "[\n" + "".join(f"  {part},\n" for part in parts) + "]"
    # A JSON string, number or truth value is a TOML one.
    return json.dumps(value, ensure_ascii=False)


_SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "n_inner": 48, "ffn_dim": 48,
    "max_position_embeddings": 64, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 12, "q_lora_rank": 20, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "qk_head_dim": 12, "v_head_dim": 8, "word_embed_proj_dim": 32,
}  # fmt: skip
_HEADS, _D_HEAD, _MOST_LAYERS = 4, 8, 8
_TOLERANCE = 1e-3  # float32; what is wrong differs by far more
_TRIED = 12
_GGUF_LAYERS = 2
_MOST_BYTES = 4 << 30  # memory for the weights of these layers, the embedding and the unembedding


@dataclass(frozen=True)
class Outcome:
    """One part of the comparison.

    Attributes:
        part: What was compared.
        distance: The largest difference found, relative to the size of the numbers; None if none was made.
        problem: What is wrong, in words; empty if nothing.
    """

    part: str
    distance: float | None
    problem: str = ""


def try_family(family: Family, checkpoint: Checkpoint) -> list[Outcome]:
    """Hold a family file against a tiny model of a checkpoint's config, or against a GGUF's first layers.

    Of safetensors the weights are not read. There is an outcome for each part.
    """
    if isinstance(checkpoint.source, GgufSource):
        return _try_gguf(family, checkpoint, checkpoint.source)
    if checkpoint.format != "safetensors" or checkpoint.traffic is not None:
        raise HeadatlasError(
            f"{checkpoint.spec}: the comparison with transformers needs safetensors and their "
            "config.json on disk, or GGUF."
        )
    modules = _tiny(checkpoint)
    with tempfile.TemporaryDirectory(prefix="headatlas-") as folder:
        with transformers_at_work("The tiny model"):
            modules.save_pretrained(folder)
        try:
            saved = open_path(Path(folder), "the tiny model")
        except HeadatlasError as error:
            return [Outcome("accounting", None, str(error))]
        return _outcomes(family, saved, modules)


def subject(checkpoint: Checkpoint) -> str:
    """The model that :func:`try_family` compares with, in words."""
    return f"first {_GGUF_LAYERS} layers" if checkpoint.format == "gguf" else "tiny model"


def _try_gguf(family: Family, checkpoint: Checkpoint, source: GgufSource) -> list[Outcome]:
    """The first layers of a GGUF file as the family reads them and as transformers does."""
    key = f"{checkpoint.architecture}.block_count"
    stored = checkpoint.config.get(key)
    if family.gguf is None or not isinstance(stored, int):
        raise HeadatlasError(
            f"{checkpoint.spec}: the family {family.name!r} or the file does not say how many layers "
            "there are."
        )
    layers = min(stored, _GGUF_LAYERS)
    try:
        modules = first_layers(source, layers, _MOST_BYTES)
    except TooLargeError as error:
        raise HeadatlasError(
            f"{checkpoint.spec}: its first layers would take {error.args[0] / 1e9:.1f} GB of memory; a "
            "smaller model of the family can be compared."
        ) from error
    config, first = {**checkpoint.config, key: layers}, copy(source)
    first.tensors = {name: info for name, info in source.tensors.items() if in_first_layers(name, layers)}
    return _outcomes(family, replace(checkpoint, config=config, source=first), modules)


def _outcomes(family: Family, checkpoint: Checkpoint, modules: PreTrainedModel) -> list[Outcome]:
    """Every part of a checkpoint as a family reads it, compared with modules."""
    try:
        model = Model(checkpoint, family, _accounted(family, checkpoint))
    except HeadatlasError as error:
        return [Outcome("accounting", None, str(error))]
    # Without an MLP, or with a mixer of unknown place before it, there is nothing to compare.
    mlp = bool(model.mlp_modules(0) and model.attention_modules(0))
    parts = {part: compare for part, compare in COMPARISONS.items() if mlp or part != "first MLP"}
    return [_outcome(part, compare, model, modules) for part, compare in parts.items()]


def _outcome(
    part: str,
    compare: Callable[[Model, PreTrainedModel], Iterator[Compared]],
    model: Model,
    modules: PreTrainedModel,
) -> Outcome:
    try:
        distance = max((each.distance for each in compare(model, modules)), default=0.0)
    except HeadatlasError as error:
        return Outcome(part, None, str(error))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        # A wrong module path, or modules that do not fit the family's idea of them.
        why = str(error).splitlines()[:1]
        return Outcome(part, None, f"{type(error).__name__}: {''.join(why)}")
    problem = "" if distance < _TOLERANCE else "differs from what transformers computes"
    return Outcome(part, distance, problem)


def _accounted(family: Family, checkpoint: Checkpoint) -> Inventory:
    """A checkpoint's tensors as a family explains them, all of them."""
    section = family.section(checkpoint.format)
    if section is None:
        raise HeadatlasError(f"The family {family.name!r} has no section for {checkpoint.format}.")
    inventory = Inventory(checkpoint, section)
    inventory.check()
    return inventory


def accounting(family: Family, checkpoint: Checkpoint) -> str | None:
    """The objection of the accounting of tensors to a family; None if there is none."""
    try:
        _accounted(family, checkpoint)
    except HeadatlasError as error:
        return str(error)
    return None


def best(checkpoint: Checkpoint) -> tuple[Proposal, list[Outcome], str | None]:
    """The proposal to show for a checkpoint: the first that is whole and agrees with transformers, if any is.

    With it the outcomes of its comparison, and why there was none where there is none.
    """
    found = proposals(checkpoint)
    whole = [each for each in found[:_TRIED] if accounting(each.family, checkpoint) is None]
    tried: list[tuple[Proposal, list[Outcome]]] = []
    for proposal in whole or found[:1]:
        try:
            outcomes = try_family(proposal.family, checkpoint)
        except HeadatlasError as error:
            return proposal, [], str(error)
        if not any(each.problem for each in outcomes):
            return proposal, outcomes, None
        tried.append((proposal, outcomes))
    return *min(tried, key=lambda each: sum(bool(outcome.problem) for outcome in each[1])), None


def _tiny(checkpoint: Checkpoint) -> PreTrainedModel:
    """A random model of the checkpoint's architecture with small sizes."""
    import torch

    config = local_config(checkpoint)
    with transformers_at_work(f"A tiny model of the config of {checkpoint.spec}"):
        _shrink(config.get_text_config())
        model: PreTrainedModel = auto_class(checkpoint).from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            usual = 0.3 if parameter.ndim == 1 else 0.0
            parameter.normal_(usual, 0.4 if parameter.ndim == 1 else 0.25, generator=generator)
    model.requires_grad_(False)
    model.train(mode=False)
    return model


def _shrink(config: Any) -> None:
    """Small sizes in place of large ones; what kind of model it is stays."""
    layers = _layers(config)
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            setattr(config, key, value[:layers])
    config.num_hidden_layers = layers
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None)
    config.num_attention_heads = _HEADS
    if shared is not None:
        config.num_key_value_heads = _HEADS if shared == heads else 1 if shared == 1 else _HEADS // 2
    if getattr(config, "head_dim", None) is not None:
        with suppress(AttributeError):  # where it follows from other sizes
            config.head_dim = _SIZES["qk_rope_head_dim"] if hasattr(config, "qk_rope_head_dim") else _D_HEAD
    for key, size in _SIZES.items():
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, size)
    small_ids(config)
    if isinstance(rope := getattr(config, "rope_parameters", None), dict) and "rope_type" in rope:
        kept = {key: value for key, value in rope.items() if not isinstance(value, list)}
        config.rope_parameters = {**kept, "rope_type": "default"}
        if "mrope_section" in rope:
            config.rope_parameters["mrope_section"] = [_D_HEAD // 8, _D_HEAD // 8, _D_HEAD // 4]


def _layers(config: Any) -> int:
    """Enough layers to see each kind of them."""
    kinds = getattr(config, "layer_types", None) or []
    firsts = [kinds.index(kind) for kind in set(kinds)]
    wanted = max([2, *(first + 1 for first in firsts)])
    return min(int(config.num_hidden_layers), wanted, _MOST_LAYERS)
