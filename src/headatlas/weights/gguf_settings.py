"""Puts right what transformers leaves out of the config of a GGUF file, or refuses.

transformers' table of header keys (``integrations/ggml.py``) is incomplete: widths of experts, rotary
positions, epsilons, caps and windows fall back to the defaults of a config class, and a model would run with
them and give wrong states without a word. Here every key of the architecture in the header is accounted
for, as every tensor is: transformers carries it over, or :func:`completed` sets it, or it changes no state,
or it must have the one value that the modules compute with. Anything else is refused.

What a key means, and what counts where it is absent, is llama.cpp's (``src/models/*.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from headatlas.errors import HeadatlasError
from headatlas.weights.gguf_source import GgufSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_HEADS = ("attention.head_count", "attention.head_count_kv")
_SIZES = ("block_count", "embedding_length", "feed_forward_length", *_HEADS)
_WITHOUT_EFFECT = (
    "context_length",
    "vocab_size",  # the rows of the embedding count
    "tensor_data_layout",
    "use_parallel_residual",  # StableLM: whether a second norm is stored decides
    "rope.scaling.finetuned",
)
_NOTHING_ELSE: Mapping[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "nextn_predict_layers": 0,
    "attention.causal": True,
}
_ROPE = ("rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scale_linear")
_SCALING = ("type", "factor", "original_context_length", "attn_factor")
_FREQUENCIES, _LONG, _SHORT = (
    f"{stem}.weight" for stem in ("rope_freqs", "rope_factors_long", "rope_factors_short")
)


@dataclass(frozen=True)
class _Architecture:
    """How the header of one GGUF architecture becomes a config.

    Attributes:
        sets: Header key → attribute.
        fixed: Header key → the value that the modules compute with whatever the header says.
        needs: Keys without which the config class would fall back to the sizes of another model.
        rope: Rotary positions: none, over the whole head, or over part of it.
        head_dim: Whether the config says the size of a head; if not it is d_model / n_heads.
        window: How sliding windows are said: not at all, for all layers, or every so many layers not.
    """

    eps: str = "attention.layer_norm_rms_epsilon"
    eps_name: str = "rms_norm_eps"
    sets: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = _SIZES[:4]
    rope: Literal["none", "whole", "part"] = "whole"
    head_dim: bool = True
    window: int | None = None


_CAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
_EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
_WIDTH = {"expert_feed_forward_length": "moe_intermediate_size"}
_LAYER_NORM = "attention.layer_norm_epsilon"

_ARCHITECTURES: Mapping[str, _Architecture] = {
    "llama": _Architecture(),
    "qwen2": _Architecture(),
    "qwen3": _Architecture(),
    "qwen2moe": _Architecture(
        sets=_EXPERTS
        | _WIDTH
        | {
            "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
            "expert_weights_norm": "norm_topk_prob",
        },
        fixed={"expert_gating_func": 1, "expert_weights_scale": 1.0, "expert_shared_count": None},
    ),
    "qwen3moe": _Architecture(
        sets=_EXPERTS | _WIDTH | {"expert_weights_norm": "norm_topk_prob"},
        fixed={"expert_gating_func": 1, "expert_weights_scale": 1.0},
    ),
    "minimax-m2": _Architecture(
        sets={
            "expert_count": "num_local_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "intermediate_size",
        },
        fixed={"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.0},
        rope="part",
    ),
    "gemma2": _Architecture(sets=_CAPS, window=2),
    "gemma3": _Architecture(sets=_CAPS, window=6),
    "phi3": _Architecture(rope="part", head_dim=False, window=1),
    "starcoder2": _Architecture(eps=_LAYER_NORM, eps_name="norm_epsilon", head_dim=False, window=1),
    "nemotron": _Architecture(eps=_LAYER_NORM, eps_name="norm_eps", rope="part"),
    "stablelm": _Architecture(eps=_LAYER_NORM, eps_name="layer_norm_eps", rope="part", head_dim=False),
    "falcon": _Architecture(
        eps=_LAYER_NORM,
        eps_name="layer_norm_epsilon",
        sets={"feed_forward_length": "ffn_hidden_size"},
        fixed={_HEADS[1]: 1},
        head_dim=False,
    ),
    "bloom": _Architecture(
        eps=_LAYER_NORM,
        eps_name="layer_norm_epsilon",
        fixed={"attention.max_alibi_bias": 8.0},
        rope="none",
        head_dim=False,
    ),
    "gpt2": _Architecture(
        eps=_LAYER_NORM,
        eps_name="layer_norm_epsilon",
        sets={"context_length": "n_positions", "feed_forward_length": "n_inner"},
        needs=(*_SIZES[:4], "context_length"),
        rope="none",
        head_dim=False,
    ),
}

_REFUSED = {"gpt-oss": "leaves the experts out of GGUF files of this architecture"}


def check_convertible(source: GgufSource) -> None:
    """Refuse a file that transformers cannot turn into the modules it was made from.

    Raises:
        HeadatlasError: transformers cannot convert the architecture, a size that the modules need is missing
            from the header, or the header says something that they would not know.
    """
    name, known = _name(source), _ARCHITECTURES.get(_name(source))
    if known is None:
        why = _REFUSED.get(name, "cannot convert GGUF files of this architecture")
        raise HeadatlasError(f"{source.files[0]}: transformers {why} ({name}); {_INSTEAD}.")
    said = _said(source)
    for key in (*known.needs, known.eps):
        value = said.get(key)
        if isinstance(value, list):
            raise _not_carried(source, key, "one number for each layer")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise HeadatlasError(
                f"{source.files[0]}: the header has no {name}.{key}, without which transformers would make a "
                "model of another size; convert the model again."
            )
    for key, value in said.items():
        _check_key(source, known, key, value)


def completed(config: PretrainedConfig, source: GgufSource) -> PretrainedConfig:
    """The config that transformers made of the header, with what it left out.

    Raises:
        HeadatlasError: The header says something that the modules cannot be told.
    """
    known, said = _ARCHITECTURES[_name(source)], _said(source)
    infos = source.infos()
    raw: dict[str, Any] = config.to_dict()
    raw |= {attribute: said[key] for key, attribute in known.sets.items() if key in said}
    raw[known.eps_name] = said[known.eps]
    raw["tie_word_embeddings"] = "output.weight" not in infos
    raw["vocab_size"] = infos["token_embd.weight"].shape[0]
    size = _head_size(source, known)
    if known.head_dim:
        raw["head_dim"] = size
    if known.eps == "attention.layer_norm_rms_epsilon" and "attention.head_count_kv" not in said:
        raw["num_key_value_heads"] = said["attention.head_count"]
    if known.window is not None:
        raw |= _windows(source, known)
    if "query_pre_attn_scalar" in raw:
        raw["query_pre_attn_scalar"] = _gemma_scale(source, size)
    for attribute, tensor in (("attention_bias", "attn_q"), ("mlp_bias", "ffn_up")):
        if attribute in raw:
            raw[attribute] = f"blk.0.{tensor}.bias" in infos
    if known.rope != "none":
        _put_positions(raw, source, known, size)
    return type(config).from_dict(raw)


def check_all_taken(model: PreTrainedModel, source: GgufSource) -> None:
    """Refuse modules into which not every number of the file went; transformers drops tensors silently.

    Raises:
        HeadatlasError: The file holds more numbers than the modules.
    """
    held = {id(tensor): tensor.numel() for tensor in model.state_dict(keep_vars=True).values()}
    beside = ("rope_freqs.", "rope_factors_")  # these are in the config
    stored = [prod(info.shape) for name, info in source.infos().items() if not name.startswith(beside)]
    if sum(stored) != sum(held.values()):
        raise HeadatlasError(
            f"{source.files[0]}: its tensors hold {sum(stored):,} numbers, and transformers made modules of "
            f"{sum(held.values()):,} of them, so that their states would be wrong; {_INSTEAD}."
        )


_INSTEAD = "use the model's safetensors, or --lens maps, which reads the tensors alone"


def _name(source: GgufSource) -> str:
    return str(source.header.metadata.get("general.architecture"))


def _said(source: GgufSource) -> dict[str, Any]:
    """What the header says about its architecture, without that prefix."""
    prefix = f"{_name(source)}."
    return {
        key.removeprefix(prefix): value
        for key, value in source.header.metadata.items()
        if key.startswith(prefix)
    }


def _not_carried(source: GgufSource, key: str, value: object) -> HeadatlasError:
    return HeadatlasError(
        f"{source.files[0]}: the header says {_name(source)}.{key} = {value}, which transformers' modules of "
        f"this architecture would not know, so that their states would be wrong; {_INSTEAD}."
    )


def _check_key(source: GgufSource, known: _Architecture, key: str, value: Any) -> None:
    """Refuse a key that nothing accounts for, or that has another value than the modules compute with."""
    if key in known.fixed or (key in _NOTHING_ELSE and key not in known.sets):
        wanted = known.fixed.get(key, _NOTHING_ELSE.get(key))
        if wanted is not None and value != wanted:
            raise _not_carried(source, key, value)
        return
    windows = ("attention.sliding_window", "attention.sliding_window_pattern") if known.window else ()
    positions = (*_ROPE, *(f"rope.scaling.{each}" for each in _SCALING)) if known.rope != "none" else ()
    heads = ("attention.key_length", "attention.value_length")
    accounted = (*_SIZES, *heads, *_WITHOUT_EFFECT, *known.sets, known.eps, *windows, *positions)
    if key not in accounted:
        raise _not_carried(source, key, value)


def _head_size(source: GgufSource, known: _Architecture) -> int:
    """The size of a head; queries, keys and values must share it."""
    said = _said(source)
    usual = said["embedding_length"] // said["attention.head_count"]
    size: int = said.get("attention.key_length", usual)
    for key in ("attention.key_length", "attention.value_length"):
        if said.get(key, size) != (size if known.head_dim else usual):
            raise _not_carried(source, key, said[key])
    return size


def _windows(source: GgufSource, known: _Architecture) -> dict[str, Any]:
    """Sliding windows: their size, and which layers have none.

    A pattern of n says that every n-th layer has none; a list says so layer by layer.
    """
    said = _said(source)
    window = said.get("attention.sliding_window") or None
    if known.window == 1:
        return {"sliding_window": window}
    layers = range(said["block_count"])
    pattern = said.get("attention.sliding_window_pattern", known.window)
    if isinstance(pattern, list):
        if len(pattern) < len(layers):
            raise _not_carried(source, "attention.sliding_window_pattern", pattern)
        slides = [bool(pattern[layer]) for layer in layers]
    else:
        slides = [(layer + 1) % int(pattern) != 0 for layer in layers] if pattern else [False for _ in layers]
    types = ["sliding_attention" if each and window else "full_attention" for each in slides]
    # A window has to be a number even where no layer slides.
    return {"sliding_window": window or said.get("context_length", 1), "layer_types": types}


def _gemma_scale(source: GgufSource, size: int) -> int:
    """The number whose root divides attention; no header says it.

    As in llama.cpp's gemma2.cpp and gemma3.cpp: d_model / n_heads for the models of 27 billion parameters,
    told by their number of layers, else the size of a head.
    """
    said = _said(source)
    largest = {"gemma2": 46, "gemma3": 62}
    if said["block_count"] == largest[_name(source)]:
        return int(said["embedding_length"] // said["attention.head_count"])
    return size


def _put_positions(raw: dict[str, Any], source: GgufSource, known: _Architecture, size: int) -> None:
    """Rotary positions: base, the part of a head that turns, scaling; Gemma 3 has two sorts of layers."""
    said = _said(source)
    rope = _scaling(source)
    rope["rope_theta"] = float(said.get("rope.freq_base", _usual_base(source)))
    turning = said.get("rope.dimension_count", size)
    if known.rope == "part":
        rope["partial_rotary_factor"] = turning / size
    elif turning != size:
        raise _not_carried(source, "rope.dimension_count", turning)
    for key in ("rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_dim"):
        raw.pop(key, None)
    if _name(source) == "gemma3":
        local = {"rope_type": "default", "rope_theta": float(said.get("rope.freq_base_swa", 10_000.0))}
        raw["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    elif "rope.freq_base_swa" in said and said["rope.freq_base_swa"] != rope["rope_theta"]:
        raise _not_carried(source, "rope.freq_base_swa", said["rope.freq_base_swa"])
    else:
        raw["rope_parameters"] = rope


def _usual_base(source: GgufSource) -> float:
    """What counts where the header has no base: llama.cpp's default, and what Gemma 3's converter assumes."""
    return 1_000_000.0 if _name(source) == "gemma3" else 10_000.0


def _scaling(source: GgufSource) -> dict[str, Any]:
    """How frequencies are scaled, as transformers says it.

    Frequencies that a tensor divides one by one (Llama 3, Phi-3) are transformers' ``longrope``.
    """
    said, infos = _said(source), source.infos()
    kind = said.get("rope.scaling.type", "none")
    factor = float(said.get("rope.scaling.factor", said.get("rope.scale_linear", 1.0)))
    attention = float(said.get("rope.scaling.attn_factor", 1.0))
    trained = int(said.get("rope.scaling.original_context_length", said.get("context_length", 1)))
    if _FREQUENCIES in infos or _SHORT in infos:
        short = _SHORT if _SHORT in infos else _FREQUENCIES
        long = _LONG if _LONG in infos else short
        if factor != 1 and kind not in ("none", "longrope", "su"):
            raise _not_carried(source, "rope.scaling.type", kind)
        return {
            "rope_type": "longrope",
            "short_factor": source.read(short).tolist(),
            "long_factor": source.read(long).tolist(),
            "original_max_position_embeddings": trained,
            "factor": max(1.0, factor),
            "attention_factor": attention,
        }
    if kind not in ("none", "linear", "yarn"):
        raise _not_carried(source, "rope.scaling.type", kind)
    if attention != 1:
        raise _not_carried(source, "rope.scaling.attn_factor", attention)
    # llama.cpp scales by the factor unless the type forbids it.
    if factor == 1 or (kind == "none" and "rope.scaling.type" in said):
        return {"rope_type": "default"}
    if kind == "yarn":
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained}
    return {"rope_type": "linear", "factor": factor}
