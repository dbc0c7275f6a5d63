"""Family files: what may stand in `families/*.toml`, all of them read once, and the one of a checkpoint.

A *stem* is a tensor name without its ``.weight`` or ``.bias``. In stems and patterns ``{block}`` is the
prefix of a layer, ``{layer}`` its number, ``{expert}`` an expert's number, ``{body}`` and ``{head}`` the
prefixes of the decoder and of the unembedding, which differ between checkpoints of one family. A stem that
ends in ``!`` is the whole name: ``{block}self_attn.sinks!``.

A *condition* says when a tensor is there: ``always``, ``never``, ``stored`` (both are legal) or a flag.

`oracles.json` says which oracles each family passed. It is written from the tests' own list of cases (`python
-m tests.architectures.proven`); a test holds the two together, so a family counts as proven only if the tests
hold it against the modules.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from headatlas.architectures.layouts import LinearLayout, ValueLayout
from headatlas.errors import HeadatlasError
from headatlas.weights.gguf_modules import BESIDE_TEXT
from headatlas.weights.source import Checkpoint

_FILLED_IN = dict.fromkeys(("block", "body", "head", "layer", "expert"), "")


class Strict(BaseModel):
    """A table in which every key is known, and what stands in braces can be filled in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="after")
    def _braces_can_be_filled_in(self) -> Self:
        for _, value in self:
            for text in value if isinstance(value, tuple) else (value,):
                try:
                    text.format(**_FILLED_IN) if isinstance(text, str) else None
                except (LookupError, ValueError, AttributeError) as error:
                    raise ValueError(
                        f"{text!r} cannot be filled in; in braces may stand {', '.join(_FILLED_IN)}"
                    ) from error
        return self


Names = Annotated[tuple[str, ...], BeforeValidator(lambda told: (told,) if isinstance(told, str) else told)]
"""One name, or alternatives in order."""


class ConfigValue(Strict):
    """The place of one number or word of the config."""

    key: Names = ()
    """Of these keys, the first that is there and not null counts. Empty: never stored. ``a.b`` is the key
    ``b`` of the table ``a``, or item ``b`` of the list."""
    default: bool | int | float | str | None = None  # value if the key is absent
    derive: str | None = None
    """Or an expression over values read before: ``a``, ``a / b``, ``4 * a`` or ``a * b``; ``embed_rows`` and
    ``mlp_rows`` are numbers of rows of the embedding and the first ``up``."""
    count: bool = False
    """Whether the number is that of the items under the key (a list, or the letters of a word)."""
    cases: tuple[ConfigCase, ...] = ()
    """Values that count instead under a flag of the config; the first whose flag is set."""


class ConfigCase(ConfigValue):
    """A value that counts where a flag of the config is set."""

    when: str


class Flag(ConfigValue):
    """A switch: true or false in the config, or a statement about what is there."""

    equals: tuple[bool | int | float | str, ...] | None = None
    """If given, the flag says whether the stored value is one of these."""
    unequal: bool | int | float | str | None = None
    """If given, the flag says whether the stored value is another than this."""
    given: bool | None = None
    """If true, the flag says whether the key is there and not null; if false, whether it is not."""


class ExpertKeys(Strict):
    """Config keys that describe the mixture of experts."""

    n_experts: ConfigValue  # experts to choose from
    top_k: ConfigValue  # experts a token is sent to
    width: ConfigValue  # hidden width of one expert
    shared_count: ConfigValue | None = None
    """Experts every token passes, where the config counts them in experts."""
    shared_width: ConfigValue | None = None
    """Hidden width of the experts every token passes; only where the family has them."""
    scale: ConfigValue = ConfigValue(default=1.0)  # factor on the weights of the chosen experts
    groups: ConfigValue = ConfigValue(default=1)
    """Groups that experts are divided into; only a few of them may be chosen from."""
    top_groups: ConfigValue = ConfigValue(default=1)  # groups to choose from
    jitter: ConfigValue = ConfigValue(default=0.0)
    """How near the best expert others count, for the scores ``sparsemixer``."""


class ConfigKeys(Strict):
    """Config keys that hold the numbers headatlas needs."""

    nested: str | None = None  # name of a sub-config to read from if the config has it (multimodal models)
    numbers: dict[str, ConfigValue] = {}  # further numbers that expressions use
    n_layers: ConfigValue
    n_heads: ConfigValue
    n_kv_heads: ConfigValue
    d_model: ConfigValue
    d_head: ConfigValue
    d_mlp: ConfigValue
    vocab_size: ConfigValue
    latent: ConfigValue | None = None
    """Width of the latent that keys and values are made from, where there is one."""
    key_width: ConfigValue | None = None
    """Size of the part of a head's key that is made from the latent, where the config says it."""
    rotary_width: ConfigValue | None = None
    """Size of the part of the key that is not, and stands beside the latent."""
    further_layers: ConfigValue | None = None
    """Number of layers after the last that predict further tokens; they are ignored."""
    experts: ExpertKeys | None = None  # where the family has a mixture of experts
    eps: ConfigValue
    activation: ConfigValue
    gate_scale: ConfigValue = ConfigValue(default=1.0)  # factor inside the activation of the MLP's gate
    tied: ConfigValue
    flags: dict[str, Flag] = {}


PLAIN_CONDITIONS = ("always", "never", "stored")
_CONDITIONS = ("bias", "weight", "when", "present", "parallel", "normalise", "grouped")
"""Fields that hold a condition."""


class Prefix(Strict):
    """One way checkpoints of the family begin their names."""

    body: str
    head: str = ""


class Linear(Strict):
    """A projection: its stem, how the weight is stored, when it has a bias."""

    stem: str
    layout: LinearLayout = "linear"
    bias: str = "never"


class Norm(Strict):
    """A norm over d_model with a gain and a bias where ``weight`` and ``bias`` say so."""

    stem: Names  # in each layer the first that is stored counts
    weight: str = "always"
    bias: str = "never"
    layers: Literal["all", "without_heads"] = "all"  # which layers have it, where it stands in a layer


class Value(Strict):
    """The projection that makes the values, alone or fused with queries and keys."""

    stem: str
    layout: ValueLayout
    bias: str = "never"
    when: str = "always"  # condition on the config under which this alternative may be the one
    down: Linear | None = None  # for the latent layouts: the projection to the latent
    norm: Norm | None = None  # and the norm on it
    beside: tuple[str, ...] = ()
    """Stems of the query and key projections where they are separate; they share ``bias``."""

    @model_validator(mode="after")
    def _latent_is_whole(self) -> Self:
        if self.layout.startswith("latent") != (self.down is not None and self.norm is not None):
            raise ValueError("'down' and 'norm' belong to the latent layouts")
        return self


class Unembed(Strict):
    """Alternative stems of the unembedding; it may be absent where the embedding is tied."""

    stems: tuple[str, ...]
    bias: str = "never"


class Projections(Strict):
    """The projections of an MLP: gated (``down(act(gate(x)) * up(x))``) if ``gate`` is there, else plain."""

    gate: Linear | None = None
    gate_up: Linear | None = None  # gate and up in one tensor instead of the two
    up: Linear | None = None
    down: Linear | None = None

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Those there are."""
        return tuple(each for each in (self.gate, self.gate_up, self.up, self.down) if each is not None)

    @model_validator(mode="after")
    def _are_whole(self) -> Self:
        if self.linears and ((self.up is None) == (self.gate_up is None) or self.down is None):
            raise ValueError("an MLP needs 'down' and one of 'up' and 'gate_up'")
        return self


class MLP(Projections):
    """The block's MLP; without projections where no layer has a dense one. In ``gate_up`` gates are first."""

    norm: Norm | None = None
    """The norm whose output feeds it; None where the MLP reads the residual stream as it is."""
    parallel: str = "never"
    """Condition on the config under which the norm before the attention feeds it instead."""
    xielu: str | None = None  # stem of the activation's own parameters, for the activation of that name


class Experts(Projections):
    """A mixture of experts in one form; in each layer the form whose router and experts are stored counts."""

    when: str = "always"  # condition on the config under which this form may be the one
    router: Linear  # from d_model to one logit an expert
    scores: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    """From logits to scores. ``softmax`` over the chosen equals ``softmax`` with ``normalise``;
    ``sparsemixer`` is Phi-3.5-MoE's."""
    weighs_input: bool = False  # whether weights multiply what goes into an expert and not what comes out
    normalise: str = "always"
    """Condition under which the weights of the chosen experts are divided by their sum."""
    correction: str | None = None  # stem of a vector that is added to the scores for choosing only
    correction_axes: int = 1  # its number of axes, all but the last of size one
    grouped: str = "always"  # condition under which the config's groups of experts count
    group_score: Literal["best", "best_two"] = "best"
    """Groups of experts are ranked by their best score, or the sum of their best two."""
    layout: Literal["separate", "stacked", "stacked_in_out", "flat"] = "separate"
    """``separate`` (a tensor an expert, ``{expert}`` in the stems), ``stacked`` ([experts, out, in]),
    ``stacked_in_out`` ([experts, in, out]) or ``flat`` ([experts * width, d_model], DBRX)."""
    down: Linear
    interleaved: bool = False  # whether the rows of ``gate_up`` alternate; else the gate's come first
    glu: Literal["plain", "clamped"] = "plain"
    """``plain``: act(gate) * up. ``clamped``: GPT-OSS's, with its constants."""
    shared: MLP | None = None  # experts every token passes
    shared_gate: Linear | None = None  # projection to one number whose sigmoid scales the shared experts


class Other(Strict):
    """A tensor pair the model needs to run but no head's formula reads (query norms, positions).

    A stem with ``*`` stands for all stored tensors whose names it fits, biases included.
    """

    stem: str
    bias: str = "never"
    present: str = "always"


class Queries(Strict):
    """The way from queries and keys to attention logits; a family says it itself, never by ``like``."""

    rotary: Literal["halves", "pairs", "none"]
    """Channels of a query and key that turn together, as stored: ``halves`` (i and i + n/2), ``pairs`` (2i
    and 2i + 1), or ``none``: positions are in the states."""
    rotary_module: str = "{body}rotary_emb"
    """Path of the Hugging Face module that gives cosines and sines; where a model has none, nothing turns."""
    turning: Literal["all", "sliding", "sliding_if_any", "no_rope_layers"] = "all"
    """Layers that turn: all; those of ``layer_types`` that are ``sliding``; the same, but all where the
    config has no window (``sliding_if_any``); or those marked in ``no_rope_layers``."""
    query_norm: Norm | None = None  # over the channels of each head, before it turns
    key_norm: Norm | None = None
    norm_over: Literal["head", "heads"] = "head"  # whether they are over each head or over all heads together
    clip: str | None = None  # key of the config with the largest size of a channel of queries and keys
    scale: str | None = None
    """Key of the config whose value to the power −½ multiplies logits; by default d_head does."""
    factor: str | float | None = None
    """Key of the config whose value itself multiplies logits instead, or the number."""
    cap: str | None = None  # key of the config with the soft-cap of logits: ``cap * tanh(logit / cap)``
    only: dict[str, bool | int | float | str] = {}  # config values without which all this does not hold


class Caveat(Strict):
    """A sentence that a reader must know about some models of the family."""

    when: str  # condition on the config
    text: str  # the sentence; with ``refuse`` it completes “SPEC: …”
    refuse: bool = False  # whether such a model is not opened at all


class Section(Strict):
    """Tensor names, layouts and config keys in one file format."""

    config: ConfigKeys
    prefixes: tuple[Prefix, ...]
    block: str
    gain_offset: float = 0.0  # what to add to stored norm weights to get the gain
    embed: str
    embed_norm: Norm | None = None  # the norm on the embedding, where there is one
    unembed: Unembed
    final_norm: Norm
    attention_norm: Norm | None = None
    """The norm before the attention; None where the attention reads the residual stream."""
    post_attention_norm: Norm | None = None
    """The norm on the attention's output, before the residual, where there is one."""
    value: tuple[Value, ...]  # alternatives; in each layer the first whose weight is stored counts
    queries: Queries | None = None
    """How queries and keys make attention logits; None where that is not read yet."""
    output: Linear
    mlp: MLP
    experts: tuple[Experts, ...] = ()  # alternatives; a layer without any of their routers has the dense MLP
    other: tuple[Other, ...] = ()
    without_heads: tuple[str, ...] = ()
    """Patterns of the tensors that layers without attention heads have in its place, or others beside it. A
    layer with such tensors and no value projection has no heads."""
    sparse: bool = False  # whether some layers have no MLP
    ignored: tuple[str, ...] = ()
    """Patterns of tensors that may be there and are never read; ``*`` matches anything."""
    aside: tuple[str, ...] = ()
    """Likewise for towers that read images or sound; whoever opens such a model is told."""
    caveats: tuple[Caveat, ...] = ()

    def filled(self, stem: str, prefix: Prefix, layer: int | None = None) -> str:
        """A stem or pattern with everything in braces filled in but for numbers that are not given."""
        for _ in range(2):  # {block} itself holds {body} and {layer}
            stem = stem.format(
                block=self.block,
                body=prefix.body,
                head=prefix.head,
                layer="{layer}" if layer is None else layer,
                expert="{expert}",
            )
        return stem

    def name(self, stem: str, prefix: Prefix, layer: int | None = None, kind: str = "weight") -> str:
        """The stored name of a stem's weight or bias."""
        filled = self.filled(stem, prefix, layer)
        if filled.endswith("!"):
            return filled[:-1] if kind == "weight" else f"{filled[:-1]}_{kind}"
        return f"{filled}.{kind}"

    @model_validator(mode="after")
    def _conditions_are_known(self) -> Self:
        unknown = set(_conditions(self)) - set(PLAIN_CONDITIONS) - set(self.config.flags)
        if unknown:
            raise ValueError(f"conditions {sorted(unknown)} are neither {PLAIN_CONDITIONS} nor config flags")
        if not self.prefixes or not self.value:
            raise ValueError("at least one prefix and one value projection are needed")
        if self.experts and self.config.experts is None:
            raise ValueError("experts need their config keys")
        return self


def _conditions(part: object) -> Iterator[str]:
    """Every condition named in a part of a section."""
    if isinstance(part, tuple):
        for each in part:
            yield from _conditions(each)
    elif isinstance(part, Strict):
        for name, value in part:
            if name in _CONDITIONS:
                yield value
            else:
                yield from _conditions(value)


class Modules(Strict):
    """Dotted paths in the Hugging Face module tree."""

    body: str
    body_of: dict[str, str] = Field(default_factory=dict)
    """Prefix of the decoder for architectures where it differs from ``body``."""
    block: str
    value_input: str  # the module whose input is the source state x_l
    output: str  # the module whose input is the concatenated outputs of the heads
    mlp: str  # the module whose output is the MLP's
    mlp_beside: str | None = None  # a second one in layers with experts, whose output is added to it
    mixer: str | None = None
    """The module that layers without heads have in place of attention, or all beside it."""
    final_norm: str


class Aliases(Strict):
    """Names under which a checkpoint may ask for the family."""

    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    gguf: tuple[str, ...] = ()


class Family(Strict):
    """One model family, as its TOML file describes it."""

    name: str  # identifier; the file's name
    title: str  # for people
    norm: Literal["rms", "layer"]  # ``rms`` (no centring) or ``layer`` (LayerNorm)
    aliases: Aliases
    safetensors: Section
    gguf: Section | None = None  # None where the family has no GGUF form
    modules: Modules

    def section(self, file_format: str) -> Section | None:
        """The part for a checkpoint's format; a loaded model counts as safetensors."""
        return self.gguf if file_format == "gguf" else self.safetensors


# All of them -----------------------------------------------------------------------------------------

Table = dict[str, Any]
_HERE = resources.files("headatlas.architectures")
_JOINED = ("safetensors", "gguf", "config", "flags", "experts", "mlp", "modules")


class Oracles(BaseModel):
    """The tiny random models of a family whose heads, norms and first MLP equal the modules'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    safetensors: tuple[str, ...] = ()  # cases saved by transformers, and held in memory
    gguf: tuple[str, ...] = ()  # cases written as GGUF
    gguf_read: tuple[str, ...] = ()  # those of them that transformers reads back to the same weights


def oracles(family: Family) -> Oracles:
    """The cases that prove a family; none for one that no test knows."""
    return Oracles.model_validate(_stored()["families"].get(family.name, {}))


def tested_with() -> str:
    """The version of transformers whose modules were the oracles."""
    return str(_stored()["transformers"])


@cache
def unsupported() -> dict[str, str]:
    """Architectures that are known and not supported → why, as the end of a sentence."""
    groups = tomllib.loads((_HERE / "unsupported.toml").read_text("utf-8"))["group"]
    return {name: group["because"] for group in groups for name in group["architectures"]}


@cache
def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((_HERE / "oracles.json").read_text("utf-8"))
    return stored


@cache
def families() -> tuple[Family, ...]:
    """Every known family, by name."""
    return tuple(_family(table, name) for name, table in _shipped().items())


def parse_family(text: str, file: str) -> Family:
    """One family from the text of its TOML file; ``like`` may name any shipped family."""
    return _family(_table(text, file), file)


@cache
def _shipped() -> dict[str, Table]:
    """The tables of all shipped family files, by file name."""
    files = [file for file in (_HERE / "families").iterdir() if file.name.endswith(".toml")]
    files.sort(key=lambda file: file.name)
    return {file.name: _table(file.read_text("utf-8"), file.name) for file in files}


def _table(text: str, file: str) -> Table:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HeadatlasError(f"{file}: not valid TOML ({error}); correct the file.") from error


def _family(table: Table, file: str) -> Family:
    """The family of a table, with what it takes over from the family it is like."""
    whole = _completed(table, file)
    aliases = table.get("aliases")
    if "like" in table and isinstance(aliases, dict) and not aliases.get("gguf"):
        whole.pop("gguf", None)
    try:
        family = Family.model_validate(whole)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise HeadatlasError(f"{file}: {where}: {first['msg']}; correct the family file.") from error
    if f"{family.name}.toml" != file:
        raise HeadatlasError(f"{file}: the family is called {family.name!r}; file and name must agree.")
    if family.gguf is None:
        return family
    # In GGUF, what reads images or sound has the same names beside every language model.
    gguf = family.gguf.model_copy(update={"aside": (*family.gguf.aside, *BESIDE_TEXT)})
    return family.model_copy(update={"gguf": gguf})


def _completed(table: Table, file: str, behind: tuple[str, ...] = ()) -> Table:
    """The table over that of the family it is like, table by table; ``false`` takes a table away.

    Names, title, aliases and queries are a family's own. The GGUF section comes along only where the family
    says which GGUF architectures are its.
    """
    if "like" not in table:
        return table
    base = f"{table['like']}.toml"
    if base not in _shipped() or base in (file, *behind):
        raise HeadatlasError(f"{file}: like = {table['like']!r} is no other family; correct the family file.")
    under = _completed(_shipped()[base], base, (file, *behind))
    for section in ("safetensors", "gguf"):  # how a family attends is not taken over
        if section in under:
            under = {**under, section: {key: at for key, at in under[section].items() if key != "queries"}}
    own = ("like", "name", "title", "aliases")
    whole = _over({key: part for key, part in under.items() if key not in own}, table)
    del whole["like"]
    return whole


def _over(under: Table, over: Table) -> Table:
    """A table with another laid over it: tables of parts are joined, parts are replaced as a whole."""
    merged = dict(under)
    for key, part in over.items():
        there = merged.get(key)
        if part is False and isinstance(there, dict | list):
            del merged[key]
        elif isinstance(part, dict) and isinstance(there, dict):
            merged[key] = _over(there, part) if key in _JOINED else part
        else:
            merged[key] = part
    return merged


def find_family(checkpoint: Checkpoint) -> tuple[Family, Section]:
    """The family of a checkpoint and the section for its format (a loaded module counts as safetensors)."""
    wanted = checkpoint.architecture
    if (found := claiming(checkpoint)) is not None:
        _check_model_type(checkpoint, found[0])
        return found
    names = supported(checkpoint.format == "gguf")
    because = unsupported().get(wanted)
    near = get_close_matches(wanted, names, n=3)
    why = f", because {because}" if because else ""
    among = f", among them {', '.join(near)}" if near else ""
    raise HeadatlasError(
        f"{checkpoint.spec}: the architecture {wanted!r} is not supported{why}; supported are {len(names)} "
        f"others{among}, see headatlas families list."
    )


def claiming(checkpoint: Checkpoint) -> tuple[Family, Section] | None:
    """The family that claims a checkpoint's architecture, and the section for its format."""
    for family in families():
        aliases, section = family.aliases, family.section(checkpoint.format)
        gguf = checkpoint.format == "gguf"
        names = aliases.gguf if gguf else (*aliases.architectures, *aliases.model_types)
        if section is not None and checkpoint.architecture in names:
            return family, section
    return None


def _check_model_type(checkpoint: Checkpoint, family: Family) -> None:
    """Refuse a config whose model type, by which transformers makes modules, is that of other models."""
    said = checkpoint.config.get("model_type")
    if not isinstance(said, str) or said in family.aliases.model_types:
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    made = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(said)
    others = any(said in each.aliases.model_types for each in families())
    if (made or others) and made not in family.aliases.architectures:
        raise HeadatlasError(
            f"{checkpoint.spec}: its config names the architecture {checkpoint.architecture!r}, but the "
            f"model type {said!r}, which is that of other models; correct the one that is wrong."
        )


def supported(gguf: bool = False) -> list[str]:
    """Supported architecture names, in GGUF's or Hugging Face's spelling."""
    aliases = [family.aliases for family in families() if family.gguf or not gguf]
    return sorted(name for each in aliases for name in (each.gguf if gguf else each.architectures))
