"""A GGUF file as transformers' config, tokenizer and modules: every key of the header is accounted for.

transformers' table of header keys (``integrations/ggml.py``) is incomplete: widths of experts, epsilons,
windows, how positions are scaled and more fall back to the defaults of a config class, and it passes over
tensors that its modules have no place for. Such modules run, and compute states that are not the model's. So
every key of the architecture is either carried over, set here, without effect, or of the one value that the
modules compute with; anything else is refused (NoModulesError). The modules must have taken as many numbers
as the file holds. Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. What a key means, and what
counts where it is absent, is llama.cpp's (``src/models/*.cpp``, ``src/llama-model.cpp``).

transformers reads the file with gguf's reader, which makes several numpy views for each of some hundred
thousand tokens, and it asks for the table of tensor names anew for every submodule. Both are replaced while
it works: by a reader that shows what :class:`GgufSource` has read already, without tokens (weights need
none), and by a table that is remembered. Measured on two CPU cores: SmolLM2-135M in 1.4 s instead of 10 s.
The tokenizer depends on the header alone and is kept in the user cache under its hash.
"""

from __future__ import annotations

import functools
import io
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from fnmatch import fnmatchcase
from importlib import resources
from math import prod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from headatlas.weights.gguf_source import GgufSource
from headatlas.weights.source import OFFLINE, NoModulesError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


_INSTEAD = "use safetensors of the model"
"""Advice where the modules would not be the model."""
BESIDE_TEXT = ("v.*", "mm.*", "a.*")
"""Tensors of towers for images and sound, and of what projects them, in llama.cpp's and Ollama's names."""
FREQUENCY_FACTORS = "rope_freqs.weight"
"""[d_rotary / 2]: what each frequency of the rotary embedding is divided by (Llama 3.1 and later)."""
_SHORT = "rope_factors_short.weight"
_BY_LENGTH = {"short_factor": _SHORT, "long_factor": "rope_factors_long.weight"}
_ORIGINAL = "original_max_position_embeddings"
_NO_PARAMETERS = (FREQUENCY_FACTORS, *_BY_LENGTH.values())

_NEEDED = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count")

# Blocks of the models whose queries are scaled by d_model / n_heads instead of d_head. The header does not
# say so; llama.cpp knows the two by their number of layers as well. Source: google/gemma_pytorch, config.py.
_SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}


class _Architecture(BaseModel, extra="forbid", frozen=True):
    """Rules by which the header of one GGUF architecture becomes a config; see ``gguf_headers.toml``."""

    eps: tuple[str, str] = ("attention.layer_norm_rms_epsilon", "rms_norm_eps")
    sets: Mapping[str, str] = {}
    fixed: Mapping[str, Any] = {}
    needs: tuple[str, ...] = ()
    rope: Literal["none", "whole", "part"] = "whole"
    head_dim: bool = True
    window: int | None = None


class _Rules(BaseModel, extra="forbid", frozen=True):
    """Rules for header keys of every architecture, and for those of each."""

    without_effect: tuple[str, ...]
    sizes: tuple[str, ...]
    windows: tuple[str, ...]
    positions: tuple[str, ...]
    fixed: Mapping[str, Any]
    architecture: Mapping[str, _Architecture]


@functools.cache
def _known() -> _Rules:
    text = resources.files("headatlas.weights").joinpath("gguf_headers.toml").read_text(encoding="utf-8")
    return _Rules.model_validate(tomllib.loads(text))


class _Keys:
    """The keys of a header that describe its architecture, without the architecture's name before them."""

    def __init__(self, source: GgufSource) -> None:
        self.source = source
        metadata = source.header.metadata
        self.architecture = str(metadata.get("general.architecture"))
        prefix = f"{self.architecture}."
        self.values = {
            key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)
        }

    def number(self, *keys: str) -> float | None:
        """The number under the first of these keys that is there; None if none is."""
        value = next((self.values[key] for key in keys if self.values.get(key) is not None), None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise self.refusal(f"{self.architecture}.{keys[0]} is no number")
        return None if value is None else float(value)

    @property
    def rules(self) -> _Architecture:
        """The rules by which this header becomes a config."""
        return _known().architecture[self.architecture]

    @property
    def usual_d_head(self) -> int:
        """d_model / n_heads, the size of a head where the header says no other."""
        return int(self.values["embedding_length"] // self.values["attention.head_count"])

    @property
    def d_head(self) -> int:
        """The size of a head's key."""
        return int(self.number("attention.key_length") or self.usual_d_head)

    def refusal(self, problem: str) -> NoModulesError:
        return NoModulesError(
            f"{self.source.files[0]}: {problem}, so transformers would compute other states than the model "
            f"does; {_INSTEAD}."
        )

    def unknown(self, key: str) -> NoModulesError:
        """The refusal of a key that says what the modules cannot be told."""
        value = self.values.get(key)
        return self.refusal(
            f"the header says {self.architecture}.{key} = {value}, which the modules of this architecture "
            "do not know"
        )


def of_text(name: str) -> bool:
    """Whether a tensor belongs to the language model."""
    return not any(fnmatchcase(name, pattern) for pattern in BESIDE_TEXT)


def check_convertible(source: GgufSource) -> None:
    """Refuse a file that transformers cannot turn into modules of its sizes."""
    keys = _Keys(source)
    name = keys.architecture
    if name not in _known().architecture:
        why = "cannot convert GGUF files of this architecture"
        if name == "gpt-oss":
            why = "leaves the experts out of GGUF files of this architecture"
        raise NoModulesError(f"{source.files[0]}: transformers {why} ({name}); {_INSTEAD}.")
    for key in (*_NEEDED, *keys.rules.needs, keys.rules.eps[0]):
        value = keys.values.get(key)
        if isinstance(value, list):
            raise keys.refusal(f"the header says {name}.{key} layer by layer, where modules know one number")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NoModulesError(
                f"{source.files[0]}: the header has no {name}.{key}, without which transformers would make a "
                "model of another size; convert the model again."
            )


def completed(config: PretrainedConfig, source: GgufSource) -> PretrainedConfig:
    """The config that transformers made of a header, with what it left out."""
    keys = _Keys(source)
    config = _with_sizes(config, keys)
    untyped: Any = config
    _complete_scores(untyped, keys)
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict):
        _complete_positions(untyped, rope, keys)
    elif keys.values.get("rope.scaling.type") not in (None, "none"):
        raise keys.refusal("its header scales rotary positions")
    _check_keys(keys)
    _check_heads(keys)
    return config


def _with_sizes(config: PretrainedConfig, keys: _Keys) -> PretrainedConfig:
    """The config with the sizes, epsilon, biases and windows of the header and the tensors."""
    rules, values, infos = keys.rules, keys.values, keys.source.infos()
    raw: dict[str, Any] = config.to_dict()
    raw |= {attribute: values[key] for key, attribute in rules.sets.items() if key in values}
    raw[rules.eps[1]] = values[rules.eps[0]]
    raw["tie_word_embeddings"] = "output.weight" not in infos
    raw["vocab_size"] = infos["token_embd.weight"].shape[0]
    if rules.head_dim:
        raw["head_dim"] = keys.d_head
    if rules.eps[1] == "rms_norm_eps" and "attention.head_count_kv" not in values:
        raw["num_key_value_heads"] = values["attention.head_count"]
    if rules.window is not None:
        raw |= _windows(keys, rules.window)
    for attribute, tensor in (("attention_bias", "attn_q"), ("mlp_bias", "ffn_up")):
        if attribute in raw:
            raw[attribute] = f"blk.0.{tensor}.bias" in infos
    return type(config).from_dict(raw)


def _windows(keys: _Keys, every: int) -> dict[str, Any]:
    """Sliding windows: their size, and which layers have none.

    A pattern of n says that every n-th layer has none; a list says so layer by layer.
    """
    values = keys.values
    if "attention.sliding_window" not in values:
        return {}
    window = values["attention.sliding_window"] or None
    if every == 1:
        return {"sliding_window": window}
    layers = range(values["block_count"])
    pattern = values.get("attention.sliding_window_pattern", every)
    if isinstance(pattern, list):
        if len(pattern) < len(layers):
            raise keys.unknown("attention.sliding_window_pattern")
        slides = [bool(pattern[layer]) for layer in layers]
    else:
        slides = [(layer + 1) % int(pattern) != 0 for layer in layers] if pattern else [False for _ in layers]
    types = ["sliding_attention" if each and window else "full_attention" for each in slides]
    # A window has to be a number even where no layer slides.
    return {"sliding_window": window or values.get("context_length", 1), "layer_types": types}


def _check_keys(keys: _Keys) -> None:
    """Refuse keys that nothing accounts for, or of another value than the modules compute with."""
    known, rules = _known(), keys.rules
    fixed = {key: value for key, value in known.fixed.items() if key not in rules.sets} | dict(rules.fixed)
    windows = known.windows if rules.window else ()
    positions = known.positions if rules.rope != "none" else ()
    others = {*known.sizes, *known.without_effect, *rules.sets, rules.eps[0], *windows, *positions}
    for key, value in keys.values.items():
        accounted = fixed[key] in ("any", value) if key in fixed else key in others
        if not accounted:
            raise keys.unknown(key)


def _check_heads(keys: _Keys) -> None:
    """Refuse heads of another size than stored, or than the modules make them."""
    size = keys.d_head
    # Modules are made as large as the header says: it must fit the queries before they are.
    heads, queries = keys.values["attention.head_count"], keys.source.infos().get("blk.0.attn_q.weight")
    if queries is not None and queries.shape[0] != heads * size:
        raise NoModulesError(
            f"{keys.source.files[0]}: its header speaks of {heads:,} heads with keys of {size:,} numbers, "
            f"and it holds queries of {queries.shape[0]:,} in all; {_INSTEAD}."
        )
    usual = size if keys.rules.head_dim else keys.usual_d_head
    if size != usual:
        raise keys.unknown("attention.key_length")
    if keys.values.get("attention.value_length", size) != usual:
        raise keys.unknown("attention.value_length")
    if keys.rules.rope == "whole" and keys.values.get("rope.dimension_count", size) != size:
        raise keys.unknown("rope.dimension_count")


def _complete_scores(config: Any, keys: _Keys) -> None:
    """Set the scale of attention scores."""
    scale = keys.number("attention.scale")
    if hasattr(config, "query_pre_attn_scalar"):
        wide = (keys.architecture, config.num_hidden_layers) in _SCALED_BY_WIDTH
        usual = keys.usual_d_head if wide else keys.d_head
        config.query_pre_attn_scalar = scale**-2 if scale else usual
    elif scale and abs(scale**-2 / keys.d_head - 1) > 1e-3:
        raise keys.refusal(f"its header says {keys.architecture}.attention.scale = {scale:g}")


def _complete_positions(config: Any, rope: dict[str, Any], keys: _Keys) -> None:
    """Set the rotary embedding: its base, its dimensions, its scaling.

    Where layers with a sliding window have one of their own, the header's scaling is that of the others.
    """
    table = rope.get("full_attention", rope)
    base = keys.number("rope.freq_base", "rope.global.freq_base")
    if base is not None:
        table["rope_theta"] = base
    local = keys.number("rope.freq_base_swa", "rope.local.freq_base")
    if local is not None and isinstance(rope.get("sliding_attention"), dict):
        rope["sliding_attention"]["rope_theta"] = local
    width = keys.number("rope.dimension_count")
    if width is not None and not (0 < width <= keys.d_head and width % 2 == 0):
        raise keys.refusal(f"its header has rotary positions on {width:g} dimensions of a head")
    share = 1.0 if width is None else width / keys.d_head
    if width is not None and (share != 1 or "partial_rotary_factor" in table):
        table["partial_rotary_factor"] = share
    scaling = _scaling(keys)
    table.update(scaling)
    # Phi-3's config has this length in a key of its own, which counts there.
    if _ORIGINAL in scaling and hasattr(config, _ORIGINAL):
        setattr(config, _ORIGINAL, scaling[_ORIGINAL])


def _scaling(keys: _Keys) -> dict[str, Any]:
    """The scaling of rotary positions as transformers writes it; empty where they are not."""
    kind = keys.values.get("rope.scaling.type")
    factor = keys.number("rope.scaling.factor", "rope.scale_linear")
    original, share = (
        keys.number(f"rope.scaling.{key}") for key in ("original_context_length", "attn_factor")
    )
    before = {} if original is None else {_ORIGINAL: int(original)}
    if _SHORT in keys.source.infos():
        if original is None:
            raise keys.refusal(f"it holds {_SHORT}, and its header no rope.scaling.original_context_length")
        factors = {key: keys.source.read(name).tolist() for key, name in _BY_LENGTH.items()}
        of_scores = {} if share is None else {"attention_factor": share}
        return {"rope_type": "longrope", **factors, **before, **of_scores}
    if kind == "none" or (kind in (None, "linear") and factor in (None, 0, 1)):
        return {}
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn" or share not in (None, 1):
        raise keys.refusal(f"its header scales rotary positions in a way that is not read ({kind})")
    betas = {name: keys.number(f"rope.scaling.yarn_{name}") for name in ("beta_fast", "beta_slow")}
    given = {name: beta for name, beta in betas.items() if beta is not None}
    return {"rope_type": "yarn", "factor": factor, **before, **given}


def finish(model: PreTrainedModel, source: GgufSource) -> None:
    """Divide the rotary frequencies as the file says, and make sure that the modules hold all of the file."""
    keys, infos = _Keys(source), source.infos()
    width = keys.number("rope.dimension_count")
    frequencies = {name: each for name, each in model.named_buffers() if name.endswith("inv_freq")}
    if width is not None and any(2 * len(each) != width for each in frequencies.values()):
        raise keys.refusal(f"its header has rotary positions on {width:g} dimensions")
    if FREQUENCY_FACTORS in infos:
        factors = source.read(FREQUENCY_FACTORS)
        if not frequencies or any(each.shape != factors.shape for each in frequencies.values()):
            raise keys.refusal(f"{FREQUENCY_FACTORS} fits no module")
        for each in frequencies.values():
            each.div_(factors.to(each))
    parameters = [info for name, info in infos.items() if of_text(name) and name not in _NO_PARAMETERS]
    stored = sum(prod(info.shape) for info in parameters)
    # One parameter under two names is tied, and stored once.
    taken = {id(each): each.numel() for each in model.state_dict(keep_vars=True).values()}
    if sum(taken.values()) != stored:
        raise keys.refusal(
            f"a {type(model).__name__} takes {sum(taken.values()):,} numbers of the {stored:,} in it"
        )


def gguf_modules(
    source: GgufSource,
    options: dict[str, Any],
    *,
    change: Callable[[Any], Any] = lambda config: config,
    wanted: Callable[[str], bool] = of_text,
) -> Any:
    """Call ``AutoModelForCausalLM.from_pretrained`` for the files of a source.

    ``change`` changes the config before the modules are made, ``wanted`` says by name which tensors to load.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_convertible(source)
    folder, name = str(source.files[0].parent), source.files[0].name
    # The progress bar of this route knows no switch; it writes to sys.stderr.
    with shown_to_transformers(source, wanted), redirect_stderr(io.StringIO()):
        config = AutoConfig.from_pretrained(folder, gguf_file=name, **OFFLINE)
        config = change(completed(config, source))
        options = {**OFFLINE, "gguf_file": name, "config": config, **options}
        return AutoModelForCausalLM.from_pretrained(folder, **options)


@contextmanager
def shown_to_transformers(source: GgufSource, wanted: Callable[[str], bool]) -> Iterator[None]:
    """Let gguf's reader show what a source has read, and its table of names be made once."""
    import gguf

    module: Any = gguf
    reader, names = module.GGUFReader, module.get_tensor_name_map
    module.GGUFReader = lambda _path: _as_reader(source, wanted)
    module.get_tensor_name_map = functools.cache(names)
    try:
        yield
    finally:
        module.GGUFReader, module.get_tensor_name_map = reader, names


def _as_reader(source: GgufSource, wanted: Callable[[str], bool]) -> SimpleNamespace:
    """A file as ``gguf.GGUFReader`` has it: its fields, without long arrays, and the tensors wanted."""
    from gguf.constants import GGMLQuantizationType

    tensors = [
        SimpleNamespace(
            name=name,
            shape=list(reversed(tensor.shape)),
            data=source.bytes_of(tensor),
            tensor_type=GGMLQuantizationType[tensor.dtype],
        )
        for name, tensor in source.tensors.items()
        if wanted(name)
    ]
    return SimpleNamespace(
        fields={key: _as_field(value) for key, value in source.header.metadata.items()}, tensors=tensors
    )


def _as_field(value: Any) -> SimpleNamespace:
    """A value as ``gguf.ReaderField`` has it: types, parts, and the places of the items among the parts."""
    from gguf.constants import GGUFValueType as Kind

    kinds = {bool: Kind.BOOL, int: Kind.INT64, float: Kind.FLOAT64, str: Kind.STRING}
    if isinstance(value, list):
        kind = kinds[type(value[0])] if value else Kind.INT64
        return SimpleNamespace(
            types=[Kind.ARRAY, kind], parts=[[item] for item in value], data=list(range(len(value)))
        )
    part = value.encode() if isinstance(value, str) else [value]
    return SimpleNamespace(types=[kinds[type(value)]], parts=[part], data=[0])
