"""Every key of a GGUF header is accounted for before transformers makes modules of the file.

transformers' table of header keys (``integrations/ggml.py``) is incomplete: widths of experts, epsilons,
windows and more fall back to the defaults of a config class, and a model would run with them and give wrong
states without a word. Here, as for tensors, every key of the architecture is either carried over, set by
:func:`with_every_key` or by ``gguf_settings`` (positions, scores), without effect, or of the one value that
the modules compute with. Anything else is refused.

What a key means, and what counts where it is absent, is llama.cpp's (``src/models/*.cpp``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from headatlas.errors import HeadatlasError
from headatlas.weights.gguf_source import GgufSource

if TYPE_CHECKING:
    from transformers import PretrainedConfig

INSTEAD = "use `lens=maps`, which reads the tensors alone, or safetensors of the model"
"""What to do where the modules would not be the model."""
_HEADS = ("attention.head_count", "attention.head_count_kv")
_SIZES = ("block_count", "embedding_length", "feed_forward_length", *_HEADS)
_WITHOUT_EFFECT = (
    "context_length",
    "vocab_size",  # the rows of the embedding count
    "tensor_data_layout",
    "use_parallel_residual",  # StableLM: whether a second norm is stored decides
    "rope.scaling.finetuned",
    "attention.scale",  # gguf_settings takes it over, or refuses it
)
_NOTHING_ELSE: Mapping[str, Any] = {
    "expert_count": 0,
    "expert_used_count": 0,
    "nextn_predict_layers": 0,
    "attention.causal": True,
    "rope.scaling.yarn_log_multiplier": 0.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.alpha": 0.0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "attention.temperature_scale": 0.0,
    "attention.output_scale": 1.0,
    "attention.clamp_kqv": 0.0,
}
_ROPE = (
    "rope.global.freq_base",
    "rope.local.freq_base",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.dimension_count",
    "rope.scale_linear",
)
_SCALING = ("type", "factor", "original_context_length", "attn_factor", "yarn_beta_fast", "yarn_beta_slow")


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
        raise HeadatlasError(f"{source.files[0]}: transformers {why} ({name}); {INSTEAD}.")
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


def check_keys(source: GgufSource) -> None:
    """Refuse a header with a key that nothing accounts for, or with heads of another size than stored.

    Raises:
        HeadatlasError: There is one, or the modules could not be told what it says.
    """
    known = _ARCHITECTURES[_name(source)]
    for key, value in _said(source).items():
        _check_key(source, known, key, value)
    size = _head_size(source)
    # Modules are made as large as the header says: it must fit the queries before they are.
    heads, queries = _said(source)["attention.head_count"], source.infos().get("blk.0.attn_q.weight")
    if queries is not None and queries.shape[0] != heads * size:
        raise HeadatlasError(
            f"{source.files[0]}: its header speaks of {heads:,} heads with keys of {size:,} numbers, and it "
            f"holds queries of {queries.shape[0]:,} in all; {INSTEAD}."
        )
    usual = size if known.head_dim else _usual_size(source)
    if size != usual or _said(source).get("attention.value_length", size) != usual:
        raise _not_carried(source, "attention.key_length", size)
    turning = _said(source).get("rope.dimension_count", size)
    if known.rope == "whole" and turning != size:
        raise _not_carried(source, "rope.dimension_count", turning)


def with_every_key(config: PretrainedConfig, source: GgufSource) -> PretrainedConfig:
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
    if known.head_dim:
        raw["head_dim"] = _head_size(source)
    if known.eps == "attention.layer_norm_rms_epsilon" and "attention.head_count_kv" not in said:
        raw["num_key_value_heads"] = said["attention.head_count"]
    if known.window is not None:
        raw |= _windows(source, known)
    for attribute, tensor in (("attention_bias", "attn_q"), ("mlp_bias", "ffn_up")):
        if attribute in raw:
            raw[attribute] = f"blk.0.{tensor}.bias" in infos
    return type(config).from_dict(raw)


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
        f"this architecture would not know, so that their states would be wrong; {INSTEAD}."
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


def _usual_size(source: GgufSource) -> int:
    said = _said(source)
    return int(said["embedding_length"] // said["attention.head_count"])


def _head_size(source: GgufSource) -> int:
    """The size of a head's key."""
    return int(_said(source).get("attention.key_length", _usual_size(source)))


def _windows(source: GgufSource, known: _Architecture) -> dict[str, Any]:
    """Sliding windows: their size, and which layers have none.

    A pattern of n says that every n-th layer has none; a list says so layer by layer.
    """
    said = _said(source)
    if "attention.sliding_window" not in said:
        return {}
    window = said["attention.sliding_window"] or None
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
