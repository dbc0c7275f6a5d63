"""Reads the numbers headatlas needs from a model's config or GGUF header, as a family file directs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import inf
from typing import Any

from headatlas.architectures.family import ConfigKeys, ConfigValue, ExpertKeys, Flag
from headatlas.architectures.layouts import Dims
from headatlas.errors import HeadatlasError
from headatlas.weights.source import Checkpoint

_BELOW = {"eps": 1.0, "jitter": 1.0, "scale": inf, "gate_scale": inf}
"""Keys that hold a number, not negative and below this; under the others but ``activation`` are sizes."""
_MAY_BE_ZERO = ("key_width", "rotary_width", "further_layers", "shared_count", "shared_width")
_MAY_BE_ABSENT = ("key_width", "rotary_width")
_EXPRESSION = re.compile(r"(?:(?P<factor>\w+) \* )?(?P<a>\w+)(?: / (?P<b>\w+))?")


@dataclass(frozen=True)
class ExpertSizes:
    """Numbers of a mixture of experts, named and explained in :class:`ExpertKeys`."""

    n_experts: int
    top_k: int
    width: int
    scale: float
    groups: int
    top_groups: int
    jitter: float
    shared_width: int = 0  # 0 where no experts are shared


@dataclass(frozen=True)
class ModelSizes:
    """The numbers and switches of a config, named and explained in :class:`ConfigKeys`."""

    dims: Dims
    d_mlp: int  # width of the MLP's hidden layer
    eps: float  # epsilon of every norm
    activation: str  # name in transformers' ``ACT2FN``
    gate_scale: float
    tied: bool  # whether the unembedding may be absent because it is the embedding
    flags: Mapping[str, bool]
    experts: ExpertSizes | None  # None where the config says there are none
    latent: int | None = None  # None, as the next two, where the family has none or the config is silent
    key_width: int | None = None
    rotary_width: int | None = None
    further_layers: int = 0


def read_sizes(checkpoint: Checkpoint, keys: ConfigKeys, stored: Mapping[str, int]) -> ModelSizes:
    """Sizes and switches of a checkpoint, read from its config where its family has them.

    ``stored`` are sizes of stored tensors that expressions may use, by name.
    """
    reader = _ConfigReader(checkpoint, keys.nested)
    reader.known.update(stored)
    for name, flag in keys.flags.items():
        reader.flags[name] = reader.switch(name, flag)
    for name, value in keys.numbers.items():
        reader.size(name, value)
    found = reader.read(keys)
    dims = Dims(**{each.name: found.pop(each.name) for each in fields(Dims)})
    if dims.n_heads % dims.n_kv_heads:
        raise reader.contradiction(
            f"{dims.n_heads} attention heads cannot share {dims.n_kv_heads} key/value heads evenly"
        )
    experts = None if keys.experts is None else _experts(reader, keys.experts)
    return ModelSizes(dims=dims, flags=reader.flags, experts=experts, **found)


def _experts(reader: _ConfigReader, keys: ExpertKeys) -> ExpertSizes | None:
    """The sizes of the experts; None where a config of the family speaks of none."""
    if not reader.stored(keys.n_experts)[1]:
        return None
    found = reader.read(keys)
    found.pop("shared_count", None)  # for expressions only
    sizes = ExpertSizes(**found)
    if sizes.n_experts % sizes.groups:
        raise reader.contradiction(f"{sizes.n_experts} experts are no {sizes.groups} groups of one size")
    among = min(sizes.top_groups, sizes.groups) * (sizes.n_experts // sizes.groups)
    if sizes.top_k > among:
        raise reader.contradiction(f"a token is sent to {sizes.top_k:,} of {among:,} experts")
    return sizes


class _ConfigReader:
    """Reads the values of a checkpoint's config that a family file asks for."""

    def __init__(self, checkpoint: Checkpoint, nested: str | None) -> None:
        self._spec = checkpoint.spec
        self._config = self._outer = checkpoint.config
        self._prefix = f"{checkpoint.architecture}." if checkpoint.format == "gguf" else ""
        if nested is not None and isinstance(self._outer.get(nested), Mapping):
            self._config = self._outer[nested]
        self.flags: dict[str, bool] = {}  # switches that values may depend on
        self.known: dict[str, int] = {}  # sizes that expressions may use; those that are read are added

    def stored(self, value: ConfigValue) -> tuple[str, Any]:
        """The key that is there and what it holds, else the first key and the default."""
        for key in value.key:
            found = self._at(key)
            if found is not None:
                return self._prefix + key, found
        return self._prefix + (value.key[0] if value.key else ""), value.default

    def _at(self, key: str) -> Any:
        """The value under a key, or None; ``a.b`` may be a key itself (GGUF) or lead into a table."""
        found = self._config.get(self._prefix + key)
        outer, dot, inner = key.partition(".")
        table = self._config.get(outer) if found is None and dot else None
        if isinstance(table, Mapping):
            return table.get(inner)
        if isinstance(table, list) and inner.isdigit():
            return table[int(inner)] if int(inner) < len(table) else None
        return found

    def read(self, keys: ConfigKeys | ExpertKeys) -> dict[str, Any]:
        """Everything that the config says under these keys, by headatlas's name; sizes in their order."""
        values = [(name, value) for name, value in keys if isinstance(value, ConfigValue)]
        return {name: self._value(name, value) for name, value in values}

    def _value(self, name: str, value: ConfigValue) -> Any:
        if name == "tied":
            return self._tied(value)
        if name == "activation":
            return self._word(name, value)
        if name in _BELOW:
            return self._number(name, value, _BELOW[name])
        if name in _MAY_BE_ABSENT and self.stored(value)[1] is None:
            return None
        return self.size(name, value, least=0 if name in _MAY_BE_ZERO else 1)

    def contradiction(self, what: str) -> HeadatlasError:
        """The error to raise for a config whose numbers do not go together."""
        return HeadatlasError(
            f"{self._spec}: {what}; the config contradicts itself, check it against the model's source."
        )

    def _wrong(self, name: str, key: str, found: object, wanted: str) -> HeadatlasError:
        if found is None:
            return HeadatlasError(
                f"{self._spec}: the config has no {key!r} ({name}); add it or get a complete model."
            )
        return HeadatlasError(
            f"{self._spec}: config key {key!r} ({name}) is {found!r}, but must be {wanted}."
        )

    def _case(self, value: ConfigValue) -> ConfigValue:
        """The case that counts under the flags of this config."""
        return next((case for case in value.cases if self.flags[case.when]), value)

    def size(self, name: str, value: ConfigValue, least: int = 1) -> int:
        """A whole number of at least ``least``, kept for expressions."""
        value = self._case(value)
        key, found = self.stored(value)
        if value.count and isinstance(found, list | str):
            found = len(found)
        if found is None and value.derive is not None:
            found = self._derived(name, value.derive, key)
        if not isinstance(found, int) or isinstance(found, bool) or found < least:
            raise self._wrong(name, key, found, "a positive whole number")
        self.known[name] = found
        return found

    def _derived(self, name: str, expression: str, key: str) -> int | None:
        match = _EXPRESSION.fullmatch(expression)
        if match is None:
            raise ValueError(f"family file: cannot read the expression {expression!r}")
        factor = match["factor"] or "1"
        if match["a"] not in self.known or not (factor.isdigit() or factor in self.known):
            return None
        result = (int(factor) if factor.isdigit() else self.known[factor]) * self.known[match["a"]]
        if match["b"] is None:
            return result
        divisor = self.known[match["b"]]
        if result % divisor:
            raise self.contradiction(
                f"{match['a']} = {result} is no multiple of {match['b']} = {divisor}, and without {key!r} "
                f"{name} is unknown"
            )
        return result // divisor

    def _number(self, name: str, value: ConfigValue, most: float) -> float:
        """A number that is not negative, and below ``most``."""
        key, found = self.stored(value)
        if not isinstance(found, int | float) or isinstance(found, bool) or not 0 <= found < most:
            raise self._wrong(name, key, found, f"a {'small ' if most < inf else ''}positive number")
        return float(found)

    def _word(self, name: str, value: ConfigValue) -> str:
        """A name."""
        key, found = self.stored(self._case(value))
        if not isinstance(found, str):
            raise self._wrong(name, key, found, "a name")
        return found

    def _tied(self, value: ConfigValue) -> bool:
        """Whether the unembedding is the embedding; the outer of two configs is that of the unembedding."""
        inner = self._config
        self._config = self._outer if any(key in self._outer for key in value.key) else inner
        key, found = self.stored(value)
        self._config = inner
        return self._truth("tied", key, found)

    def switch(self, name: str, flag: Flag) -> bool:
        """A flag: what the config says, or whether it says something."""
        key, found = self.stored(flag)
        if flag.given is not None:
            return (found is not None) == flag.given
        if flag.equals is not None:
            return found in flag.equals
        if flag.unequal is not None:
            return found is not None and found != flag.unequal
        return self._truth(name, key, found)

    def _truth(self, name: str, key: str, found: object) -> bool:
        if not isinstance(found, bool):
            raise self._wrong(name, key, found, "true or false")
        return found
