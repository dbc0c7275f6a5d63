"""Which tensors of a checkpoint have names that headatlas knows, and what the families call them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from headatlas.architectures.family import MLP, Experts, Family, Section
from headatlas.architectures.registry import families
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
    """What one family calls the tensors of a checkpoint's format, by their patterns."""
    return names_in(section_for(family, checkpoint))


def collapsed(name: str) -> str:
    """A tensor's name with its first number as ``{layer}`` and later ones as ``{expert}``."""
    numbered = iter(["{layer}"])
    parts = [next(numbered, "{expert}") if part.isdigit() else part for part in name.split(".")]
    return ".".join(parts)


def roles(section: Section) -> Iterator[tuple[str, str, bool]]:
    """What a section calls its tensors: role, stem, and whether it is a stem, not a pattern."""
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
