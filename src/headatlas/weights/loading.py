"""Modules of a checkpoint, whole or their first layers, made by transformers.

Quietly, offline, and without code that comes with a model. Tensors find their modules by transformers' own
names and conversions, not by a family file, so what modules compute says whether the family file is right.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.addresses import is_url
from headatlas.errors import HeadatlasError, first_line
from headatlas.weights.adapter import AdaptedSource
from headatlas.weights.checkpoints import SINGLE_NAME
from headatlas.weights.gguf_modules import finish, gguf_modules
from headatlas.weights.gguf_source import GgufSource
from headatlas.weights.safetensors_source import PLAIN, QUANTIZED, SafetensorsSource
from headatlas.weights.source import OFFLINE, Checkpoint, ModuleSource, NoModulesError, stock_class

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel


def load_modules(
    checkpoint: Checkpoint, dtype: torch.dtype | None = None, needed: Collection[str] = ()
) -> PreTrainedModel:
    """The checkpoint as a transformers model on the CPU, in evaluation mode, by default in float32.

    For a model that is already in memory, other modules of its class and config, on its device, which share
    parameters of this type and copy others. So its mode, hooks, compiled code and settings play no part, and
    it stays as it is. Stored tensors that are ``needed`` must have a place in the modules; what is missing,
    or would be passed over, is refused.
    """
    need_on_disk(checkpoint, "loading its modules")
    import torch

    wanted = torch.float32 if dtype is None else dtype
    if isinstance(checkpoint.source, ModuleSource):
        return _modules_beside(checkpoint.source, wanted, needed)
    with transformers_at_work(f"The model {checkpoint.path}"):
        model, report = _from_pretrained(checkpoint, wanted)
    missing, mismatched = sorted(report["missing_keys"]), sorted(map(str, report["mismatched_keys"]))
    if missing or mismatched:
        what = f"lacks {missing[0]!r}" if missing else f"has a wrong shape for {mismatched[0]}"
        more = len(missing) + len(mismatched) - 1
        raise HeadatlasError(
            f"{checkpoint.path} {what}{f' and {more} more tensors' if more else ''}, which a "
            f"{type(model).__name__} needs; fetch the model again."
        )
    _check_places(str(checkpoint.path), model, set(report["unexpected_keys"]) & set(needed))
    return at_rest(model)


def _check_places(where: str, model: PreTrainedModel, over: Collection[str]) -> None:
    """Refuse needed tensors that modules have no place for."""
    if over:
        also = f" and {len(over) - 1} more tensors" if len(over) > 1 else ""
        raise HeadatlasError(
            f"{where} holds {min(over)!r}{also}, for which a {type(model).__name__} of its config "
            "has no place; check that config and weights belong together."
        )


def at_rest(model: PreTrainedModel) -> PreTrainedModel:
    """The model in evaluation mode (no dropout), without gradients."""
    model.requires_grad_(False)
    model.train(mode=False)
    return model


def _modules_beside(source: ModuleSource, dtype: torch.dtype, needed: Collection[str]) -> PreTrainedModel:
    """New modules for the parameters of a model in memory, as they would be loaded from its saved files."""
    from torch import nn

    loaded, name = source.module, f"The loaded {type(source.module).__name__}"
    devices = devices_of(loaded)
    if len(devices) > 1:
        raise NoModulesError(f"{name} is spread over {len(devices)} devices; move it to one.")
    with transformers_at_work(name):
        # What a saved config does not hold, such as the implementation of attention, is left behind.
        config = _plain(type(loaded.config).from_dict(loaded.config.to_dict()))
    kind: Any = stock_class(loaded)
    model = _without_weights(name, lambda: kind._from_config(config, dtype=dtype))
    tensors, places = source.tensors(), model.state_dict(keep_vars=True)
    shared: dict[int, nn.Parameter] = {}
    filled: dict[str, torch.Tensor] = {}
    for path, place in places.items():
        tensor = tensors.get(path)
        if tensor is None or tensor.shape != place.shape:
            found = "lacks" if tensor is None else f"has the shape {list(tensor.shape)} for"
            raise HeadatlasError(
                f"{name} {found} {path!r}, which its config wants in {list(place.shape)}; check that config "
                "and weights belong together."
            )
        if not isinstance(place, nn.Parameter):
            filled[path] = tensor.detach().to(place.dtype)
            continue
        if id(tensor) not in shared:  # one parameter under two names stays one
            shared[id(tensor)] = nn.Parameter(source.floating(path).to(dtype), requires_grad=False)
        filled[path] = shared[id(tensor)]
    _check_places(name, model, (tensors.keys() - places.keys()) & set(needed))
    model.load_state_dict(filled, assign=True)
    nn.Module.to(model, devices.pop())
    return at_rest(model)


def devices_of(model: PreTrainedModel) -> set[torch.device]:
    """The devices that the tensors of a model in memory are on."""
    return {tensor.device for tensor in model.state_dict(keep_vars=True).values()}


def local_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The transformers config beside safetensors, as of a model that is not quantised."""
    from transformers import AutoConfig

    with transformers_at_work(f"The model {checkpoint.path}"):
        config: PretrainedConfig = AutoConfig.from_pretrained(str(checkpoint.folder), **OFFLINE)
    return _plain(config)


def _plain(config: PretrainedConfig) -> PretrainedConfig:
    """A config of plain tensors, which is what the sources read."""
    parts: list[Any] = [config, getattr(config, "text_config", None)]
    for part in parts:
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def load_skeleton(checkpoint: Checkpoint, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """The modules of a checkpoint that can stream, without their weights, in evaluation mode.

    Parameters are float32 on the meta device; buffers, which follow from the config, are real. Another
    ``config`` than the checkpoint's own asks for other modules.
    """
    import torch

    wanted = local_config(checkpoint) if config is None else config
    auto, options = auto_class(checkpoint), {"dtype": torch.float32, "trust_remote_code": False}
    return _without_weights(f"The model {checkpoint.path}", lambda: auto.from_config(wanted, **options))


def _without_weights(what: str, make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Modules whose parameters take no memory, at rest."""
    from accelerate import init_empty_weights

    with transformers_at_work(what), init_empty_weights(include_buffers=False):
        return at_rest(make())


def auto_class(checkpoint: Checkpoint) -> Any:
    """The class of transformers that makes the checkpoint's modules: images may go into them or not."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    def is_in(mapping: Any) -> bool:
        return any(checkpoint.architecture in (n if isinstance(n, tuple) else (n,)) for n in mapping.values())

    images = is_in(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    text = is_in(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    name = "AutoModelForImageTextToText" if images and not text else "AutoModelForCausalLM"
    return getattr(transformers, name)


def can_stream(checkpoint: Checkpoint) -> bool:
    """Whether :func:`load_skeleton` and single tensors make up for :func:`load_modules`.

    transformers converts what is in a GGUF file when it loads it, so the stored tensors are not the modules'.
    """
    return isinstance(checkpoint.source, SafetensorsSource | AdaptedSource)


def need_on_disk(checkpoint: Checkpoint, what: str) -> None:
    """Refuse (NoModulesError) what needs all of a model of which only single tensors are fetched."""
    if checkpoint.traffic is None:
        return
    how = "download it and give its folder"
    if not is_url(checkpoint.spec):
        how = "leave out `remote=True` to download it"
    raise NoModulesError(
        f"{checkpoint.spec}: {what} needs the whole model ({checkpoint.traffic.total / 1e9:.3g} GB), "
        f"which is read in place here; {how}."
    )


def _from_pretrained(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    """Model and loading report."""
    source, options = checkpoint.source, {"dtype": dtype, "output_loading_info": True}
    if isinstance(source, GgufSource):
        model, report = gguf_modules(source, options)
        if not report["missing_keys"] and not report["mismatched_keys"]:
            finish(model, source)
        return model, report
    if isinstance(source, SafetensorsSource) and not source.quantised:
        with _as_folder(source, checkpoint.folder) as folder:
            auto = auto_class(checkpoint)
            return auto.from_pretrained(str(folder), use_safetensors=True, **OFFLINE, **options)
    return _from_tensors(checkpoint, options)


def _from_tensors(checkpoint: Checkpoint, options: dict[str, Any]) -> Any:
    """Call ``from_pretrained`` with the plain tensors that a source shows.

    So FP8 and MXFP4 need none of the packages and devices that transformers asks for, an adapter not PEFT,
    and the modules hold the numbers that the source reads.
    """
    config, source = local_config(checkpoint), checkpoint.source
    tensors = {
        name: source.read(name).to(options["dtype"])
        for name, info in source.infos().items()
        if info.dtype in PLAIN | QUANTIZED
    }
    known = auto_class(checkpoint)._model_mapping[type(config)]
    classes = known if isinstance(known, tuple) else (known,)
    named = [each for each in classes if each.__name__ == checkpoint.architecture]
    return (named or classes)[0].from_pretrained(
        None, config=config, state_dict=tensors, **OFFLINE, **options
    )


@contextmanager
def _as_folder(source: SafetensorsSource, folder: Path) -> Iterator[Path]:
    """A folder in which transformers finds exactly these weights, whatever the file is called."""
    if len(source.files) > 1 or source.files == (folder / SINGLE_NAME,):
        yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="headatlas-") as name:
            (Path(name) / SINGLE_NAME).symlink_to(source.files[0].resolve())
            (Path(name) / "config.json").symlink_to((folder / "config.json").resolve())
            yield Path(name)


@contextmanager
def transformers_at_work(what: str) -> Iterator[None]:
    """Silence transformers, and turn what it raises into one sentence."""
    try:
        with _quiet():
            yield
    except (HeadatlasError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises plain ones, the others whatever a bad file leads to
        reason = first_line(error)
        if isinstance(error, KeyError):
            reason = f"it has no {reason}, or does not know it"
        hint = "check or fetch its files again"
        if "trust_remote_code" in str(error):
            hint = "headatlas never runs code from a model's folder"
        raise HeadatlasError(f"{what} cannot be loaded by transformers: {reason}; {hint}.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No warnings, messages or progress bars from transformers; everything is put back afterwards."""
    import huggingface_hub.utils
    import transformers

    hub: Any = huggingface_hub.utils
    logging: Any = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    no_hub_bars = hub.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity(logging.CRITICAL)
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()  # switches those of the Hub on, too
            if no_hub_bars:
                hub.disable_progress_bars()


# What makes an MLP or a vocabulary large; the attention does not depend on it.
_SMALL = dict.fromkeys(
    ("vocab_size", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size"), 8
)
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")  # the places in the list are their new ids


class TooLargeError(Exception):
    """More would be read than was allowed; the argument is the size in bytes."""


def _check_size(size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise TooLargeError(size)


def first_block(
    checkpoint: Checkpoint,
    *,
    body: str,
    without: Sequence[str],
    stored_name: Callable[[str], str],
    most_bytes: int,
) -> PreTrainedModel:
    """A transformers model of one block, in float32 and evaluation mode, without embedding and MLP.

    ``body`` is the path of the decoder among the modules; at the paths ``without`` is the first block's MLP,
    which is not read. ``stored_name`` leads from a parameter's path to the stored name (safetensors). Where
    more than ``most_bytes`` would be read, it is a :class:`TooLargeError`.
    """
    if isinstance(checkpoint.source, GgufSource):
        return _first_attention(checkpoint.source, most_bytes)
    if not can_stream(checkpoint) or checkpoint.traffic is not None:
        raise HeadatlasError(f"{checkpoint.spec}: the weights are not on disk.")
    config = local_config(checkpoint)
    with transformers_at_work(f"The first block of {checkpoint.spec}"):
        with_layers(config)
    model = load_skeleton(checkpoint, config)
    decoder: Any = model.get_submodule(body)
    embedding, infos = decoder.get_input_embeddings(), checkpoint.source.infos()
    wanted = {}
    for name, parameter in decoder.named_parameters():
        path = f"{body}.{name}" if body else name
        if parameter is embedding.weight or path.startswith(tuple(f"{part}." for part in without)):
            continue
        wanted[path] = stored = stored_name(path)
        if stored not in infos or infos[stored].shape != tuple(parameter.shape):
            found = f"has the shape {list(infos[stored].shape)}" if stored in infos else "is missing"
            raise HeadatlasError(
                f"{checkpoint.spec}: tensor {stored!r} {found}, transformers wants it in "
                f"{list(parameter.shape)}."
            )
    _check_size(sum(infos[stored].nbytes for stored in wanted.values()), most_bytes)
    tensors = {path: checkpoint.source.read(stored).float() for path, stored in wanted.items()}
    model.load_state_dict(tensors, assign=True, strict=False)
    return model


def _first_attention(source: GgufSource, most_bytes: int) -> PreTrainedModel:
    """The first block as transformers converts it; what is not read is made up, and small."""
    import torch

    def wanted(name: str) -> bool:
        if name.startswith("blk."):
            return name.startswith("blk.0.") and ".ffn" not in name
        return name not in ("token_embd.weight", "output.weight")

    def smaller(config: Any) -> Any:
        with_sizes(with_layers(config).get_text_config(), _SMALL)
        return config

    _check_size(sum(info.nbytes for name, info in source.infos().items() if wanted(name)), most_bytes)
    with transformers_at_work(f"The model {source.files[0]}"):
        return at_rest(gguf_modules(source, {"dtype": torch.float32}, change=smaller, wanted=wanted))


def with_layers(config: Any, layers: int = 1) -> Any:
    """The config cut down to its first layers; what is said layer by layer is cut as well."""
    text = config.get_text_config()
    every = text.num_hidden_layers
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == every:
            setattr(text, key, value[:layers])
    text.num_hidden_layers = layers
    return config


def with_sizes(config: Any, sizes: Mapping[str, int]) -> None:
    """Give a config these sizes, where it has such, and special tokens ids that lie in any vocabulary."""
    for key, size in sizes.items():
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, size)
    for place, key in enumerate(_TOKENS):
        if getattr(config, key, None) is not None:
            setattr(config, key, place)
