"""A checkpoint held against families: which one explains its tensors, and does that compute what it computes?

*Explaining.* The family whose file names most of the tensors, in their shapes, comes closest; a file that is
``like`` it is proposed for an architecture that no family claims. Nothing is guessed: a tensor that this
family does not know stays unexplained, and the file passes the accounting when somebody has written it down.

*Trial.* transformers makes a tiny model of the checkpoint's own architecture and config with all parameters
drawn anew; it is saved as it would be published, opened through the family file, and every part that is
read of it must be what the Hugging Face modules compute. So a norm, bias or layout that the file forgets is
found without the large weights. Nothing writes GGUF files here, and transformers converts those of known
architectures alone, which the tests compare: of GGUF there is no trial.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.architectures.accounting import Inventory
from headatlas.architectures.family import Family, Strict, claiming, families, parse_family
from headatlas.architectures.model import Model
from headatlas.architectures.oracle import COMPARISONS
from headatlas.errors import HeadatlasError, first_line
from headatlas.weights.checkpoints import open_path
from headatlas.weights.loading import (
    at_rest,
    auto_class,
    local_config,
    transformers_at_work,
    with_layers,
    with_sizes,
)
from headatlas.weights.source import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_SHAPES = 3
_STEMS = ("embed", "beside", "correction")
_TABLES = ("value", "experts", "other")
"""Keys under which there are stems, or several tables with stems."""
_TRIED = 12


@dataclass(frozen=True)
class TensorGroup:
    """The tensors of one name but for the numbers of layer and expert."""

    name: str  # the name, with ``{layer}`` and ``{expert}``
    count: int
    shapes: tuple[tuple[int, ...], ...]  # their shapes, the first few different ones
    dtype: str  # type of the first
    role: str | None  # its key in the family file; None where the family does not know it


@dataclass(frozen=True)
class Report:
    """A family held against a checkpoint."""

    family: Family  # the family that fits best, or the one that was asked about
    closest: str | None  # the family that a proposed one is like; None if nothing is proposed
    proposal: str  # the proposed file; empty if nothing is
    tensors: tuple[TensorGroup, ...]  # the checkpoint's tensors as this family calls them
    accounting: str | None  # the objection of the accounting of tensors; None if there is none
    outcomes: tuple[Outcome, ...]  # the comparison with transformers, part by part
    not_run: str | None  # why there was none


def examine(checkpoint: Checkpoint, family: Family | None = None) -> Report:
    """Hold a family against a checkpoint; without one, that which claims its architecture or comes closest.

    Of several that explain every tensor, the comparison with transformers decides.
    """
    if family is None and (claimed := claiming(checkpoint)) is not None:
        family = claimed[0]
    candidates = _proposals(checkpoint) if family is None else [(family, None, "")]
    whole = [each for each in candidates[:_TRIED] if accounting(each[0], checkpoint) is None]
    reports: list[Report] = []
    for found, closest, text in whole or candidates[:1]:
        outcomes, not_run = list[Outcome](), None
        try:
            outcomes = try_family(found, checkpoint)
        except HeadatlasError as error:
            not_run = str(error)
        groups, objection = _tensors(checkpoint, found), accounting(found, checkpoint)
        reports.append(Report(found, closest, text, groups, objection, tuple(outcomes), not_run))
        if not any(each.problem for each in outcomes):
            break
    return min(reports, key=lambda each: sum(bool(outcome.problem) for outcome in each.outcomes))


# What explains it -----------------------------------------------------------------------------------


def _proposals(checkpoint: Checkpoint) -> list[tuple[Family, str, str]]:
    """Families that are like others, with the name of the other and their file; the closest first."""
    bases = [base for base in families() if base.section(checkpoint.format) is not None]
    bases.sort(key=lambda base: (_misfits(base, checkpoint), -len(base.aliases.architectures), base.name))
    if not bases or not any(each.role for each in _tensors(checkpoint, bases[0])):
        raise HeadatlasError(
            f"{checkpoint.spec}: no tensor has a name that any family knows; write a family file by hand."
        )
    return [_like(base, checkpoint) for base in bases]


def _like(base: Family, checkpoint: Checkpoint) -> tuple[Family, str, str]:
    """A family that is like a base under the checkpoint's own names."""
    kind, gguf = checkpoint.config.get("model_type"), checkpoint.format == "gguf"
    name = re.sub(r"\W", "_", str(kind or checkpoint.architecture).lower())
    name = f"{name}_new" if name in {family.name for family in families()} else name
    claimed = {each for family in families() for each in family.aliases.model_types}
    kinds = [kind] if isinstance(kind, str) and kind not in claimed and not gguf else []
    left = [each.name for each in _tensors(checkpoint, base) if each.role is None]
    lines = [
        f"# Proposed from {checkpoint.name}. Compare it with the model's own code before you use it.",
        *(f"# Not explained: {pattern}" for pattern in left),
        f"like = {json.dumps(base.name)}",  # a JSON string or list of strings is a TOML one
        f"name = {json.dumps(name)}",
        f"title = {json.dumps(checkpoint.architecture)}",
        "",
        "[aliases]",
        f"architectures = {json.dumps([] if gguf else [checkpoint.architecture])}",
        f"model_types = {json.dumps(kinds)}",
        *([f"gguf = {json.dumps([checkpoint.architecture])}"] if gguf else []),
    ]
    text = "\n".join(lines) + "\n"
    return parse_family(text, f"{name}.toml"), base.name, text


def _misfits(family: Family, checkpoint: Checkpoint) -> int:
    """The number of kinds of tensors that a family would miss, not know, or want in another shape."""
    section = family.section(checkpoint.format)
    assert section is not None  # noqa: S101 (families without one are left out)
    try:
        misfits = Inventory(checkpoint, section).misfits()
    except HeadatlasError:  # the config lacks what the family reads, or contradicts it
        groups = _tensors(checkpoint, family)
        return len(groups) + sum(each.role is None for each in groups)
    return len({_collapsed(name) for names in misfits for name in names})


def _tensors(checkpoint: Checkpoint, family: Family) -> tuple[TensorGroup, ...]:
    """Every tensor of a checkpoint, with the meaning that a family gives it."""
    groups: dict[str, list[str]] = defaultdict(list)
    infos, roles = checkpoint.source.infos(), _named_roles(family, checkpoint)
    for name in infos:
        groups[_collapsed(name)].append(name)
    found = []
    for pattern, names in groups.items():
        shapes = tuple(dict.fromkeys(infos[name].shape for name in names))[:_SHAPES]
        globs = (role for glob, role in roles.items() if "*" in glob and fnmatchcase(pattern, glob))
        role = roles.get(pattern) or next(globs, None)
        found.append(TensorGroup(pattern, len(names), shapes, infos[names[0]].dtype, role))
    return tuple(found)


def _collapsed(name: str) -> str:
    """A tensor's name with its first number as ``{layer}`` and later ones as ``{expert}``."""
    numbered = iter(["{layer}"])
    parts = [next(numbered, "{expert}") if part.isdigit() else part for part in name.split(".")]
    return ".".join(parts)


def _named_roles(family: Family, checkpoint: Checkpoint) -> Mapping[str, str]:
    """Collapsed name or pattern → its key in the family file, under any of the family's prefixes."""
    found: dict[str, str] = {}
    if (section := family.section(checkpoint.format)) is None:
        return found
    for prefix in section.prefixes:
        for role, stem in _roles(section):
            for kind in ("weight", "bias"):
                found.setdefault(section.name(stem, prefix, kind=kind), role)
        if section.mlp.xielu is not None:
            found.setdefault(f"{section.filled(section.mlp.xielu, prefix)}.*", "mlp.xielu")
        for role in ("ignored", "without_heads", "aside"):
            for pattern in getattr(section, role):
                found.setdefault(section.filled(pattern, prefix), role)
    return found


def _roles(part: object, role: str = "") -> Iterator[tuple[str, str]]:
    """Key and stem of every tensor that a section names, or a part of it under a key."""
    if isinstance(part, tuple):
        for each in part:
            yield from _roles(each, role)
    elif isinstance(part, str):
        yield role, part
    elif isinstance(part, Strict):
        for key, value in part:
            if key in ("stem", "stems"):
                yield from _roles(value, role)
            elif isinstance(value, Strict) or key in _STEMS or key in _TABLES:
                yield from _roles(value, f"{role}.{key}".lstrip("."))


# The trial ------------------------------------------------------------------------------------------

_SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "n_inner": 48, "ffn_dim": 48,
    "max_position_embeddings": 64, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 12, "q_lora_rank": 20, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4, "qk_head_dim": 12, "v_head_dim": 8, "word_embed_proj_dim": 32,
}  # fmt: skip
_HEADS, _D_HEAD, _MOST_LAYERS = 4, 8, 8
_TOLERANCE = 1e-3  # float32; what is wrong differs by far more


@dataclass(frozen=True)
class Outcome:
    """One part of the comparison."""

    part: str  # what was compared
    distance: float | None
    """The largest difference found, relative to the size of the numbers; None if none was made."""
    problem: str = ""  # what is wrong, in words; empty if nothing


def try_family(family: Family, checkpoint: Checkpoint) -> list[Outcome]:
    """Hold a family file against a tiny model of a checkpoint's config, part by part."""
    if checkpoint.format != "safetensors" or checkpoint.traffic is not None:
        raise HeadatlasError(
            f"{checkpoint.spec}: the comparison with transformers needs safetensors and their "
            "config.json on disk."
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


def _outcomes(family: Family, checkpoint: Checkpoint, modules: PreTrainedModel) -> list[Outcome]:
    """Every part of a checkpoint as a family reads it, compared with modules."""
    try:
        model = Model(checkpoint, family, _accounted(family, checkpoint))
    except HeadatlasError as error:
        return [Outcome("accounting", None, str(error))]
    found = []
    for part, compare in COMPARISONS.items():
        # Without an MLP, or with a mixer of unknown place before it, there is nothing to compare.
        if part == "first MLP" and not (model.mlp_modules(0) and model.attention_modules(0)):
            continue
        distance, problem = None, ""
        try:
            distance = max((each.distance for each in compare(model, modules)), default=0.0)
            problem = "" if distance < _TOLERANCE else "differs from what transformers computes"
        except HeadatlasError as error:
            problem = str(error)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            # A wrong module path, or modules that do not fit the family's idea of them.
            problem = f"{type(error).__name__}: {first_line(error)}"
        found.append(Outcome(part, distance, problem))
    return found


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
    return at_rest(model)


def _shrink(config: Any) -> None:
    """Small sizes in place of large ones; what kind of model it is stays."""
    with_layers(config, _layers(config))
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None)
    config.num_attention_heads = _HEADS
    if shared is not None:
        config.num_key_value_heads = _HEADS if shared == heads else 1 if shared == 1 else _HEADS // 2
    if getattr(config, "head_dim", None) is not None:
        with suppress(AttributeError):  # where it follows from other sizes
            config.head_dim = _SIZES["qk_rope_head_dim"] if hasattr(config, "qk_rope_head_dim") else _D_HEAD
    with_sizes(config, _SIZES)
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
