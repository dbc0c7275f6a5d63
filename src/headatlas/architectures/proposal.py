"""Looks at a checkpoint of an unknown family: which tensors are known from other families, and what to write.

Names are compared with those of every family, tensor by tensor; the family that leaves least unexplained is
the base, and what differs from it is written as a family file that is ``like`` it. Nothing is guessed: a
tensor whose name no family knows stays unexplained, and the file does not pass the accounting.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from headatlas.architectures.accounting import Inventory, _fits
from headatlas.architectures.family import MLP, Family, Linear, Norm, Section, Value
from headatlas.architectures.registry import families, parse_family
from headatlas.architectures.tensor_groups import (
    TensorGroup,
    collapsed,
    filled,
    inspect_tensors,
    names_in,
    roles,
    section_for,
)
from headatlas.errors import HeadatlasError
from headatlas.weights.source import Checkpoint

_SIZES = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "vocab_size")


@dataclass(frozen=True)
class Proposal:
    """What a look at a checkpoint gives.

    Attributes:
        seen: Its tensors.
        base: The family that explains most of it.
        known: Whether that family claims the architecture, so that nothing needs to be written.
        text: The proposed family file; of a known family, empty.
        unexplained: Patterns that the proposal does not explain.
    """

    seen: tuple[TensorGroup, ...]
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
    seen = inspect_tensors(checkpoint)
    known = _claiming(checkpoint)
    if known is not None:
        return [Proposal(seen, known, True, "")]
    found = []
    for base in families():
        if section_for(base, checkpoint) is not None:
            text, left = _written(checkpoint, base, seen)
            proposal = Proposal(seen, base, False, text, left)
            size = len(base.aliases.architectures)
            with suppress(HeadatlasError):  # what differs cannot be said in a file that is like this family
                found.append((_misfits(proposal.family(), checkpoint), -size, proposal))
    if not any(each.meanings for each in seen) or not found:
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
    """How many kinds of tensors a family would miss, not know, or want in another shape."""
    section, stored = section_for(family, checkpoint), checkpoint.source.infos()
    every = {collapsed(name) for name in stored}
    if section is None:
        return 2 * len(every)
    try:
        inventory = Inventory(checkpoint, section)
    except HeadatlasError:  # the config lacks what the family reads, or contradicts it
        return len(every) + len(every - set(names_in(section)))
    ignored = inventory._ignored_patterns()
    wrong = {collapsed(name) for name in inventory.expected if name not in stored}
    wrong |= {
        collapsed(name)
        for name in stored
        if name not in inventory.expected and not any(fnmatchcase(name, each) for each in ignored)
    }
    there = {
        name: shape for name, shape in inventory.expected.items() if name in stored and shape is not None
    }
    wrong |= {collapsed(name) for name, shape in there.items() if not _fits(stored[name].shape, shape)}
    return len(wrong)


def _written(
    checkpoint: Checkpoint, base: Family, seen: tuple[TensorGroup, ...]
) -> tuple[str, tuple[str, ...]]:
    """The text of a family file for a checkpoint, and what it leaves unexplained."""
    section = section_for(base, checkpoint)
    assert section is not None  # noqa: S101 (the base was chosen among those that have one)
    stored = {each.pattern for each in seen}
    meanings = {each.pattern: each.meanings for each in seen}
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
    """What to change in a section so that it names what is stored, and what no family explains."""
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
