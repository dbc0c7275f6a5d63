"""Reads the numbers headatlas needs from a model's config or GGUF header, as a family file directs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from headatlas.architectures.family import ConfigKeys, ConfigValue, ExpertKeys, Flag
from headatlas.architectures.layouts import Dims
from headatlas.errors import HeadatlasError
from headatlas.weights.source import Checkpoint

_SIZES = ("n_layers", "n_heads", "n_kv_heads", "d_model", "d_head", "d_mlp", "vocab_size")
_EXPRESSION = re.compile(r"(?:(?P<factor>\w+) \* )?(?P<a>\w+)(?: / (?P<b>\w+))?")


@dataclass(frozen=True)
class ExpertSizes:
    """Sizes of a mixture of experts; ``shared_width`` is 0 where no experts are shared."""

    n_experts: int
    top_k: int
    width: int
    shared_width: int
    scale: float
    groups: int
    top_groups: int
    jitter: float = 0.0


@dataclass(frozen=True)
class ModelSizes:
    """The numbers and switches of a config, in headatlas's names."""

    dims: Dims
    d_mlp: int  # width of the MLP's hidden layer
    eps: float  # epsilon of every norm
    activation: str  # name in transformers' ``ACT2FN``
    tied: bool  # whether the unembedding may be absent because it is the embedding
    flags: Mapping[str, bool]  # the family's switches, e.g. ``attention_bias``
    latent: int | None = None  # width of the latent that values are made from; None where they are not
    key_width: int | None = None  # part of a key that is made from the latent; None: the config is silent
    rotary_width: int | None = None  # part beside it, likewise
    experts: ExpertSizes | None = None  # None where the config says there are none
    further_layers: int = 0  # layers after the last, for predicting further tokens
    gate_scale: float = 1.0  # factor inside the activation of the MLP's gate


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
    sizes = {name: reader.size(name, getattr(keys, name)) for name in _SIZES}
    d_mlp = sizes.pop("d_mlp")
    dims = Dims(**sizes)
    if dims.n_heads % dims.n_kv_heads:
        raise reader.contradiction(
            f"{dims.n_heads} attention heads cannot share {dims.n_kv_heads} key/value heads evenly"
        )
    return ModelSizes(
        dims=dims,
        d_mlp=d_mlp,
        eps=reader.number("eps", keys.eps),
        activation=reader.word("activation", keys.activation),
        tied=reader.tied(keys.tied),
        flags=reader.flags,
        latent=None if keys.latent is None else reader.size("latent", keys.latent),
        key_width=reader.perhaps("key_width", keys.key_width),
        rotary_width=reader.perhaps("rotary_width", keys.rotary_width),
        experts=None if keys.experts is None else _experts(reader, keys.experts),
        further_layers=0 if keys.further_layers is None else reader.size("further", keys.further_layers, 0),
        gate_scale=reader.number("gate_scale", keys.gate_scale, most=inf),
    )


def _experts(reader: _ConfigReader, keys: ExpertKeys) -> ExpertSizes | None:
    """The sizes of the experts; None where a config of the family speaks of none."""
    if not reader.stored(keys.n_experts)[1]:
        return None
    n_experts, top_k = reader.size("n_experts", keys.n_experts), reader.size("top_k", keys.top_k)
    width = reader.size("width", keys.width)
    if keys.shared_count is not None:
        reader.size("shared_count", keys.shared_count, least=0)
    groups, top_groups = reader.size("groups", keys.groups), reader.size("top_groups", keys.top_groups)
    if n_experts % groups:
        raise reader.contradiction(f"{n_experts} experts are no {groups} groups of one size")
    among = min(top_groups, groups) * (n_experts // groups)
    if top_k > among:
        raise reader.contradiction(f"a token is sent to {top_k:,} of {among:,} experts")
    return ExpertSizes(
        n_experts=n_experts,
        top_k=top_k,
        width=width,
        shared_width=0 if keys.shared_width is None else reader.size("shared_width", keys.shared_width, 0),
        scale=reader.number("scale", keys.scale, most=inf),
        groups=groups,
        top_groups=top_groups,
        jitter=reader.number("jitter", keys.jitter),
    )


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
        for key in value.keys:
            found = self._at(key)
            if found is not None:
                return self._prefix + key, found
        return self._prefix + (value.keys[0] if value.keys else ""), value.default

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

    def perhaps(self, name: str, value: ConfigValue | None) -> int | None:
        """A size that the config need not say."""
        return self.size(name, value, 0) if value is not None and self.stored(value)[1] is not None else None

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

    def number(self, name: str, value: ConfigValue, most: float = 1.0) -> float:
        """A number that is not negative, and below ``most``."""
        key, found = self.stored(value)
        if not isinstance(found, int | float) or isinstance(found, bool) or not 0 <= found < most:
            raise self._wrong(name, key, found, f"a {'small ' if most < inf else ''}positive number")
        return float(found)

    def word(self, name: str, value: ConfigValue) -> str:
        """A name."""
        key, found = self.stored(self._case(value))
        if not isinstance(found, str):
            raise self._wrong(name, key, found, "a name")
        return found

    def tied(self, value: ConfigValue) -> bool:
        """Whether the unembedding is the embedding; the outer of two configs is that of the unembedding."""
        inner = self._config
        self._config = self._outer if any(key in self._outer for key in value.keys) else inner
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
