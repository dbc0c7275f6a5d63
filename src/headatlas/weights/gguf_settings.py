"""How a GGUF header and its file say positions and the scale of scores, which transformers leaves out.

transformers 5 takes over sizes, but not how positions are scaled (``rope.scaling.*`` and the tensors
``rope_freqs`` and ``rope_factors_*``), on how many dimensions they act, nor, for some architectures, their
base; and it passes over tensors that its modules have no place for. Modules made that way run, and compute
states that are not the model's. So positions and scores are completed here, and the modules must have taken
as many numbers as the file holds. All other keys, and that there are no others, is ``gguf_keys``'s.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what they mean: llama.cpp,
src/llama-model.cpp.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.weights.gguf_keys import INSTEAD
from headatlas.weights.gguf_source import GgufSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

BESIDE_TEXT = ("v.*", "mm.*", "a.*")
"""Tensors of towers for images and sound, and of what projects them, in llama.cpp's and Ollama's names."""
FREQUENCY_FACTORS = "rope_freqs.weight"
"""[d_rotary / 2]: what each frequency of the rotary embedding is divided by (Llama 3.1 and later)."""
_SHORT, _LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_ORIGINAL = "original_max_position_embeddings"
_BY_LENGTH, _FACTORS = (_SHORT, _LONG), ("short_factor", "long_factor")
_NO_PARAMETERS = (FREQUENCY_FACTORS, *_BY_LENGTH)

# Blocks of the models whose queries are scaled by d_model / n_heads instead of d_head. The header does not
# say so; llama.cpp knows the two by their number of layers as well. Source: google/gemma_pytorch, config.py.
_SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}


def of_text(name: str) -> bool:
    """Whether a tensor belongs to the language model."""
    return not any(fnmatchcase(name, pattern) for pattern in BESIDE_TEXT)


class _Header:
    """The keys of a header, without the architecture's name before them."""

    def __init__(self, source: GgufSource) -> None:
        self.file = source.files[0]
        self.metadata = source.header.metadata
        self.architecture = str(self.metadata.get("general.architecture"))

    def get(self, *keys: str) -> Any:
        """The value of the first of these keys that is there; None if none is."""
        found = (self.metadata.get(f"{self.architecture}.{key}") for key in keys)
        return next((value for value in found if value is not None), None)

    def number(self, *keys: str) -> float | None:
        """The same for a key that holds a number.

        Raises:
            HeadatlasError: It holds something else.
        """
        value = self.get(*keys)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return None if value is None else float(value)
        raise self.refusal(f"{self.architecture}.{keys[0]} is no number")

    def refusal(self, problem: str) -> HeadatlasError:
        return HeadatlasError(
            f"{self.file}: {problem}, so transformers would compute other states than the model does; "
            f"{INSTEAD}."
        )


def completed(config: PretrainedConfig, source: GgufSource) -> PretrainedConfig:
    """The config that transformers made of a header, with what the header says besides; changed in place.

    Raises:
        HeadatlasError: The header says something that changes what the model computes and is not known here.
    """
    header = _Header(source)
    untyped: Any = config
    _complete_scores(untyped, header)
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict):
        _complete_positions(untyped, rope, header, source)
    elif header.get("rope.scaling.type") not in (None, "none"):
        raise header.refusal("its header scales rotary positions")
    return config


def _complete_scores(config: Any, header: _Header) -> None:
    """How attention scores are scaled."""
    scale = header.number("attention.scale")
    if hasattr(config, "query_pre_attn_scalar"):
        d_head = config.head_dim
        wide = (header.architecture, config.num_hidden_layers) in _SCALED_BY_WIDTH
        usual = config.hidden_size // config.num_attention_heads if wide else d_head
        config.query_pre_attn_scalar = scale**-2 if scale else usual
    elif scale and abs(scale**-2 / _d_head(config) - 1) > 1e-3:
        raise header.refusal(f"its header says {header.architecture}.attention.scale = {scale:g}")


def _complete_positions(config: Any, rope: dict[str, Any], header: _Header, source: GgufSource) -> None:
    """The rotary embedding: its base, its dimensions, its scaling.

    Where layers with a sliding window have one of their own, the header's scaling is that of the others.
    """
    table = rope.get("full_attention", rope)
    base = header.number("rope.freq_base", "rope.global.freq_base")
    if base is not None:
        table["rope_theta"] = base
    local = header.number("rope.freq_base_swa", "rope.local.freq_base")
    if local is not None and isinstance(rope.get("sliding_attention"), dict):
        rope["sliding_attention"]["rope_theta"] = local
    width = _rotary_width(header)
    share = 1.0 if width is None else width / _d_head(config)
    if width is not None and (share != 1 or "partial_rotary_factor" in table):
        table["partial_rotary_factor"] = share
    scaling = _scaling(header, source)
    table.update(scaling)
    # Phi-3's config has this length in a key of its own, which counts there.
    if _ORIGINAL in scaling and hasattr(config, _ORIGINAL):
        setattr(config, _ORIGINAL, scaling[_ORIGINAL])


def _scaling(header: _Header, source: GgufSource) -> dict[str, Any]:
    """How rotary positions are scaled, as transformers writes it; empty where they are not."""
    kind, factor = header.get("rope.scaling.type"), header.number("rope.scaling.factor", "rope.scale_linear")
    original, share = (
        header.number(f"rope.scaling.{key}") for key in ("original_context_length", "attn_factor")
    )
    before = {} if original is None else {_ORIGINAL: int(original)}
    if _SHORT in source.infos():
        if original is None:
            raise header.refusal(f"it holds {_SHORT}, and its header no rope.scaling.original_context_length")
        factors = {key: source.read(name).tolist() for key, name in zip(_FACTORS, _BY_LENGTH, strict=True)}
        of_scores = {} if share is None else {"attention_factor": share}
        return {"rope_type": "longrope", **factors, **before, **of_scores}
    if kind == "none" or (kind in (None, "linear") and factor in (None, 0, 1)):
        return {}
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn" or share not in (None, 1):
        raise header.refusal(f"its header scales rotary positions in a way that is not read ({kind})")
    keys = {"beta_fast": "yarn_beta_fast", "beta_slow": "yarn_beta_slow"}
    betas = {name: header.number(f"rope.scaling.{key}") for name, key in keys.items()}
    given = {name: beta for name, beta in betas.items() if beta is not None}
    return {"rope_type": "yarn", "factor": factor, **before, **given}


def _rotary_width(header: _Header) -> float | None:
    """On how many dimensions of a head positions act; None where the header does not say.

    Raises:
        HeadatlasError: On more than a head has.
    """
    width = header.number("rope.dimension_count")
    d_model, heads = header.number("embedding_length"), header.number("attention.head_count")
    d_head = header.number("attention.key_length") or (d_model / heads if d_model and heads else None)
    if width is not None and not (0 < width <= (d_head or 0) and width % 2 == 0):
        raise header.refusal(f"its header has rotary positions on {width:g} dimensions of a head")
    return width


def _d_head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def finish(model: PreTrainedModel, source: GgufSource) -> None:
    """Divide the rotary frequencies as the file says, and make sure that the modules hold all of the file.

    Raises:
        HeadatlasError: Numbers of the file are in no module, or positions act on other dimensions.
    """
    header, infos = _Header(source), source.infos()
    width = header.number("rope.dimension_count")
    frequencies = {name: each for name, each in model.named_buffers() if name.endswith("inv_freq")}
    if width is not None and any(2 * len(each) != width for each in frequencies.values()):
        raise header.refusal(f"its header has rotary positions on {width:g} dimensions")
    if FREQUENCY_FACTORS in infos:
        factors = source.read(FREQUENCY_FACTORS)
        if not frequencies or any(each.shape != factors.shape for each in frequencies.values()):
            raise header.refusal(f"{FREQUENCY_FACTORS} fits no module")
        for each in frequencies.values():
            each.div_(factors.to(each))
    parameters = [info for name, info in infos.items() if of_text(name) and name not in _NO_PARAMETERS]
    stored = sum(prod(info.shape) for info in parameters)
    # One parameter under two names is tied, and stored once.
    taken = {id(each): each.numel() for each in model.state_dict(keep_vars=True).values()}
    if sum(taken.values()) != stored:
        raise header.refusal(
            f"a {type(model).__name__} takes {sum(taken.values()):,} numbers of the {stored:,} in it"
        )
