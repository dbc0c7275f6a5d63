"""Which keys of a config hold the numbers that headatlas needs: the config part of a family file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A table in which every key is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ConfigValue(Strict):
    """Where one number or word of the config is.

    Attributes:
        key: Key or alternative keys, the first that is there and not null counts. Empty: never stored.
            ``a.b`` is the key ``b`` of the table ``a``, or item ``b`` of the list.
        default: Value if the key is absent.
        derive: Or an expression over values read before: ``a``, ``a / b``, ``4 * a`` or ``a * b``;
            ``embed_rows`` and ``mlp_rows`` are numbers of rows of the embedding and the first ``up``.
        count: Whether the number is that of the items under the key (a list, or the letters of a word).
        cases: What counts instead under a flag of the config; the first whose flag is set.
    """

    key: str | tuple[str, ...] = ()
    default: bool | int | float | str | None = None
    derive: str | None = None
    count: bool = False
    cases: tuple[ConfigCase, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The alternative keys in order."""
        return (self.key,) if isinstance(self.key, str) else self.key


class ConfigCase(ConfigValue):
    """A value that counts where a flag of the config is set."""

    when: str


class Flag(ConfigValue):
    """A switch: true or false in the config, or a statement about what is there.

    Attributes:
        equals: If given, the flag says whether the stored value is one of these.
        unequal: If given, the flag says whether the stored value is another than this.
        given: If true, the flag says whether the key is there and not null; if false, whether it is not.
    """

    equals: tuple[bool | int | float | str, ...] | None = None
    unequal: bool | int | float | str | None = None
    given: bool | None = None


class ExpertKeys(Strict):
    """Which config keys describe the mixture of experts.

    Attributes:
        n_experts: Experts to choose from.
        top_k: Experts a token is sent to.
        width: Hidden width of one expert.
        shared_count: Experts every token passes, where the config counts them in experts.
        shared_width: Hidden width of the experts every token passes; only where the family has them.
        scale: Factor on the weights of the chosen experts.
        groups: Groups that experts are divided into; only a few of them may be chosen from.
        top_groups: Groups to choose from.
        jitter: How near the best expert others count, for the scores ``sparsemixer``.
    """

    n_experts: ConfigValue
    top_k: ConfigValue
    width: ConfigValue
    shared_count: ConfigValue | None = None
    shared_width: ConfigValue | None = None
    scale: ConfigValue = ConfigValue(default=1.0)
    groups: ConfigValue = ConfigValue(default=1)
    top_groups: ConfigValue = ConfigValue(default=1)
    jitter: ConfigValue = ConfigValue(default=0.0)


class ConfigKeys(Strict):
    """Which config keys hold the numbers headatlas needs.

    Attributes:
        nested: Name of a sub-config to read from if the config has it (multimodal models).
        latent: Width of the latent that keys and values are made from, where there is one.
        key_width: Size of the part of a head's key that is made from the latent, where the config says it.
        rotary_width: Size of the part of the key that is not, and stands beside the latent.
        experts: Where the family has a mixture of experts.
        numbers: Further numbers that expressions use.
        further_layers: Number of layers after the last that predict further tokens; they are ignored.
        gate_scale: Factor inside the activation of the MLP's gate.
    """

    nested: str | None = None
    numbers: dict[str, ConfigValue] = {}
    n_layers: ConfigValue
    n_heads: ConfigValue
    n_kv_heads: ConfigValue
    d_model: ConfigValue
    d_head: ConfigValue
    d_mlp: ConfigValue
    vocab_size: ConfigValue
    latent: ConfigValue | None = None
    key_width: ConfigValue | None = None
    rotary_width: ConfigValue | None = None
    further_layers: ConfigValue | None = None
    experts: ExpertKeys | None = None
    eps: ConfigValue
    activation: ConfigValue
    gate_scale: ConfigValue = ConfigValue(default=1.0)
    tied: ConfigValue
    flags: dict[str, Flag] = {}
