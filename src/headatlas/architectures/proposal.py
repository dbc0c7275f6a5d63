"""Proposes a family file for a checkpoint of an unknown family, by the names of its tensors.

Names are compared with those of every family, tensor by tensor; the family that leaves least unexplained is
the base, and what differs from it is written as a family file that is ``like`` it. Nothing is guessed: a
tensor whose name no family knows stays unexplained, and the file does not pass the accounting.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from headatlas.architectures.accounting import Inventory
from headatlas.architectures.family import MLP, Experts, Family, Linear, Norm, Section, Value
from headatlas.architectures.registry import families, parse_family
from headatlas.errors import HeadatlasError
from headatlas.weights.source import Checkpoint

_SHAPES = 3


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


def section_for(family: Family, checkpoint: Checkpoint) -> Section | None:
    """The part of a family file for the format of a checkpoint."""
    return family.gguf if checkpoint.format == "gguf" else family.safetensors


def inspect_tensors(checkpoint: Checkpoint) -> tuple[TensorGroup, ...]:
    """Every tensor of a checkpoint, with what the families call one of this name."""
    known = _known_names(checkpoint)
    groups: dict[str, list[str]] = defaultdict(list)
    infos = checkpoint.source.infos()
    for name in infos:
        groups[collapsed(name)].append(name)
    found = []
    for pattern, names in groups.items():
        shapes = tuple(dict.fromkeys(infos[name].shape for name in names))
        meanings = {role: tuple(sorted(set(by))) for role, by in known(pattern).items()}
        found.append(TensorGroup(pattern, len(names), shapes[:_SHAPES], infos[names[0]].dtype, meanings))
    return tuple(found)


def roles_in(family: Family, checkpoint: Checkpoint) -> dict[str, str]:
    """Pattern → what one family calls the tensors of that name."""
    return names_in(section_for(family, checkpoint))


def collapsed(name: str) -> str:
    """A tensor's name with its first number as ``{layer}`` and later ones as ``{expert}``."""
    numbered = iter(["{layer}"])
    parts = [next(numbered, "{expert}") if part.isdigit() else part for part in name.split(".")]
    return ".".join(parts)


def roles(section: Section) -> Iterator[tuple[str, str, bool]]:
    """Every tensor that a section names: role, stem, and whether it is a stem, not a pattern."""
    yield "embedding", section.embed, True
    yield from (("unembedding", stem, True) for stem in section.unembed.stems)
    norms = {
        "final norm": section.final_norm,
        "norm of the embedding": section.embed_norm,
        "norm before attention": section.attention_norm,
        "norm after attention": section.post_attention_norm,
        "norm before the MLP": section.mlp.norm,
    }
    there = {role: norm for role, norm in norms.items() if norm is not None}
    yield from ((role, stem, True) for role, norm in there.items() for stem in norm.stems)
    for value in section.value:
        yield ("values" if value.layout == "linear" else f"values ({value.layout})"), value.stem, True
        yield from (("queries or keys", stem, True) for stem in value.beside)
        latent = [value.down.stem] if value.down is not None else []
        latent += value.norm.stems if value.norm is not None else ()
        yield from (("latent of keys and values", stem, True) for stem in latent)
    yield "output of attention", section.output.stem, True
    yield from _mlp_roles("MLP", section.mlp)
    for experts in section.experts:
        yield from _expert_roles(experts)
    yield from (("beside (read by no head)", other.stem, True) for other in section.other)
    yield from (("ignored", pattern, False) for pattern in (*section.ignored, *section.without_heads))
    yield from (("beside the language model", pattern, False) for pattern in section.aside)


def _expert_roles(experts: Experts) -> Iterator[tuple[str, str, bool]]:
    yield "router", experts.router.stem, True
    if experts.correction is not None:
        yield "router", experts.correction, True
    yield from (("expert", linear.stem, True) for linear in experts.linears)
    if experts.shared is not None:
        yield from _mlp_roles("shared expert", experts.shared)
    if experts.shared_gate is not None:
        yield "shared expert", experts.shared_gate.stem, True


def _mlp_roles(what: str, mlp: MLP) -> Iterator[tuple[str, str, bool]]:
    for role, linear in {
        "gate": mlp.gate,
        "gate and up": mlp.gate_up,
        "up": mlp.up,
        "down": mlp.down,
    }.items():
        if linear is not None:
            yield f"{what}: {role}", linear.stem, True


def filled(section: Section, stem: str, body: str, head: str) -> str:
    stem = stem.replace("{block}", section.block)
    return stem.replace("{body}", body).replace("{head}", head)


def names_in(section: Section | None) -> dict[str, str]:
    """Collapsed name → role, for every prefix of a section."""
    found: dict[str, str] = {}
    if section is None:
        return found
    for prefix in section.prefixes:
        for role, stem, parts in roles(section):
            name = filled(section, stem, prefix.body, prefix.head)
            ends = (
                [name.rstrip("!")] if name.endswith("!") or not parts else [f"{name}.weight", f"{name}.bias"]
            )
            for end in ends:
                found.setdefault(end, role)
    return found


def _known_names(checkpoint: Checkpoint) -> Callable[[str], dict[str, list[str]]]:
    """A function from a collapsed name to role → families.

    A name under a prefix that no family has is known by what follows the prefix.
    """
    exact: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    globs: list[tuple[str, str, str]] = []
    for family in families():
        for name, role in names_in(section_for(family, checkpoint)).items():
            if "*" in name:
                globs.append((name, role, family.name))
            else:
                for key in {name, _tail(name)}:
                    exact[key][role].append(family.name)

    def meanings(pattern: str) -> dict[str, list[str]]:
        found = exact.get(pattern) or exact.get(_tail(pattern)) or {}
        for glob, role, name in globs:
            if not found and fnmatchcase(pattern, glob):
                return {role: [name]}
        return {role: list(by) for role, by in found.items()}

    return meanings


def _tail(name: str) -> str:
    """A collapsed name without its prefix: what follows the layer, or its last two parts."""
    _, layer, rest = name.partition("{layer}.")
    return f"{layer}{rest}" if layer else ".".join(name.split(".")[-2:])


_SIZES = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "vocab_size")


@dataclass(frozen=True)
class Proposal:
    """A family file proposed for a checkpoint.

    Attributes:
        groups: Its tensors, by name.
        base: The family that explains most of it.
        known: Whether that family claims the architecture, so that nothing needs to be written.
        text: The proposed family file; of a known family, empty.
        unexplained: Patterns that the proposal does not explain.
    """

    groups: tuple[TensorGroup, ...]
    base: Family
    known: bool
    text: str
    unexplained: tuple[str, ...] = field(default=())

    def family(self) -> Family:
        """The proposed family, or the known one.

        Raises:
            HeadatlasError: The proposal is no valid family file.
        """
        return self.base if self.known else parse_family(self.text, f"{_name_in(self.text)}.toml")


def proposals(checkpoint: Checkpoint) -> list[Proposal]:
    """Family files for a checkpoint, each like another family; those that leave least unexplained first.

    A checkpoint whose architecture a family claims has one proposal, that family.

    Raises:
        HeadatlasError: No family explains anything of it.
    """
    groups = inspect_tensors(checkpoint)
    known = _claiming(checkpoint)
    if known is not None:
        return [Proposal(groups, known, True, "")]
    found = []
    for base in families():
        if section_for(base, checkpoint) is not None:
            text, left = _written(checkpoint, base, groups)
            proposal = Proposal(groups, base, False, text, left)
            size = len(base.aliases.architectures)
            with suppress(HeadatlasError):  # what differs cannot be said in a file that is like this family
                found.append((_misfits(proposal.family(), checkpoint), -size, proposal))
    if not any(each.meanings for each in groups) or not found:
        raise HeadatlasError(
            f"{checkpoint.spec}: no tensor has a name that any family knows; write a family file by hand."
        )
    ranked = sorted(found, key=lambda each: (*each[:2], each[2].base.name))
    return [proposal for _, _, proposal in ranked]


def _claiming(checkpoint: Checkpoint) -> Family | None:
    for family in families():
        names = family.aliases.gguf if checkpoint.format == "gguf" else family.aliases.architectures
        if checkpoint.architecture in names and section_for(family, checkpoint) is not None:
            return family
    return None


def _misfits(family: Family, checkpoint: Checkpoint) -> int:
    """The number of kinds of tensors that a family would miss, not know, or want in another shape."""
    section, stored = section_for(family, checkpoint), checkpoint.source.infos()
    every = {collapsed(name) for name in stored}
    if section is None:
        return 2 * len(every)
    try:
        inventory = Inventory(checkpoint, section)
    except HeadatlasError:  # the config lacks what the family reads, or contradicts it
        return len(every) + len(every - set(names_in(section)))
    return len({collapsed(name) for names in inventory.misfits() for name in names})


def _written(
    checkpoint: Checkpoint, base: Family, groups: tuple[TensorGroup, ...]
) -> tuple[str, tuple[str, ...]]:
    """The text of a family file for a checkpoint, and what it leaves unexplained."""
    section = section_for(base, checkpoint)
    assert section is not None  # noqa: S101 (the base was chosen among those that have one)
    stored = {each.pattern for each in groups}
    meanings = {each.pattern: each.meanings for each in groups}
    overlay, left = _differences(section, stored, meanings, _flags(checkpoint, section))
    keys = _config_keys(checkpoint, section)
    name = re.sub(r"\W", "_", str(checkpoint.config.get("model_type") or checkpoint.architecture).lower())
    taken = {family.name for family in families()}
    name = f"{name}_new" if name in taken else name
    gguf = checkpoint.format == "gguf"
    kind = checkpoint.config.get("model_type")
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
    if overlay:
        lines += ["", f"[{table}]", *(f"{key} = {_toml(part)}" for key, part in overlay.items())]
    if keys:
        lines += ["", f"[{table}.config]", *(f"{key} = {_toml(part)}" for key, part in keys.items())]
    return "\n".join(lines) + "\n", left


def _differences(
    section: Section,
    stored: set[str],
    meanings: Mapping[str, Mapping[str, tuple[str, ...]]],
    flags: Mapping[str, bool],
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Changes to a section so that it names what is stored, and the names that no family explains."""
    prefix = _prefix(section, stored)
    overlay: dict[str, Any] = {}
    if prefix not in [{"body": each.body, "head": each.head} for each in section.prefixes]:
        overlay["prefixes"] = [prefix]

    def of(stem: str, end: str = "weight") -> str:
        name = filled(section, stem, prefix["body"], prefix["head"])
        return name.rstrip("!") if name.endswith("!") else f"{name}.{end}"

    explained = {of(stem, end) for _, stem, parts in roles(section) if parts for end in ("weight", "bias")}
    left = sorted(name for name in stored - explained if not _ignored(section, name, prefix))
    others = [each for each in section.other if each.present != "always" or of(each.stem) in stored]
    added = [name for name in left if "beside (read by no head)" in meanings[name]]
    new = sorted({_stem(section, name, prefix) for name in added})
    if len(others) != len(section.other) or new:
        plain = [each.model_dump(exclude_defaults=True) for each in others]
        biased = {_stem(section, name, prefix) for name in added if name.endswith(".bias")}
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


def _prefix(section: Section, stored: set[str]) -> dict[str, str]:
    """The prefixes under which the section's embedding or blocks are stored."""
    for each in section.prefixes:
        if f"{filled(section, section.embed, each.body, each.head)}.weight" in stored:
            return {"body": each.body, "head": each.head}
    within = section.block.removeprefix("{body}")
    bodies = Counter(name[: name.index(within)] for name in stored if within in name)
    return {"body": bodies.most_common(1)[0][0] if bodies else section.prefixes[0].body, "head": ""}


def _stem(section: Section, name: str, prefix: Mapping[str, str]) -> str:
    """The stem that a collapsed name belongs to, in the words of a family file."""
    block = section.block.replace("{body}", prefix["body"])
    ends = (".weight", ".bias")
    stem = next((name.removesuffix(end) for end in ends if name.endswith(end)), f"{name}!")
    if stem.startswith(block):
        return "{block}" + stem.removeprefix(block)
    body = prefix["body"]
    return "{body}" + stem.removeprefix(body) if body and stem.startswith(body) else stem


def _ignored(section: Section, name: str, prefix: Mapping[str, str]) -> bool:
    patterns = (
        filled(section, each, prefix["body"], prefix["head"]) for each in (*section.ignored, *section.aside)
    )
    return any(fnmatchcase(name, each) for each in patterns)


def _config_keys(checkpoint: Checkpoint, section: Section) -> dict[str, Any]:
    """For sizes that the config has under another key than the section says: the key that a family knows."""
    config = checkpoint.config
    if section.config.nested is not None and isinstance(config.get(section.config.nested), Mapping):
        config = config[section.config.nested]
    start = f"{checkpoint.architecture}." if checkpoint.format == "gguf" else ""
    found: dict[str, Any] = {}
    for size in _SIZES:
        wanted = getattr(section.config, size)
        there = any(start + key.partition(".")[0] in config or start + key in config for key in wanted.keys)
        if there or wanted.default is not None or wanted.derive is not None:
            continue
        sections = [each for family in families() if (each := section_for(family, checkpoint)) is not None]
        keys = Counter(
            key for each in sections for key in getattr(each.config, size).keys if start + key in config
        )
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


def _name_in(text: str) -> str:
    match = re.search(r'^name = "(?P<name>\w+)"$', text, re.MULTILINE)
    if match is None:
        raise ValueError("the proposal has no name")
    return match["name"]
