"""A GGUF file as transformers' config, tokenizer and modules, by its own header reader and tensors.

transformers reads the file with gguf's reader, which makes several numpy views for each of some hundred
thousand tokens, and it asks for the table of tensor names anew for every submodule. Both are replaced while
it works: by a reader that shows what :class:`GgufSource` has read already, without tokens (weights need
none), and by a table that is remembered. Measured on two CPU cores: SmolLM2-135M in 1.4 s instead of 10 s.
The tokenizer depends on the header alone and is kept in the user cache under its hash.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.files import atomic_folder
from headatlas.weights.gguf_config import check_convertible, completed, of_text
from headatlas.weights.gguf_source import GgufSource
from headatlas.weights.local_files import cache_dir

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase


_log = logging.getLogger(__name__)
_TOKENS = "tokenizer.ggml.tokens"
_NEEDS = {"gpt2": ("merges",), "llama": ("scores", "merges"), "t5": ("scores",)}
"""Arrays one of which each kind of tokenizer needs beside its tokens, as transformers 5.23 builds them."""


def gguf_tokenizer(source: GgufSource) -> PreTrainedTokenizerBase:
    """The tokenizer inside a GGUF file, out of the cache where it was converted before.

    Raises:
        HeadatlasError: The file has no tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path, header = source.files[0], source.header
    if not header.arrays.get(_TOKENS):
        raise HeadatlasError(f"{path} holds no tokenizer ({_TOKENS} is missing); convert the model again.")
    kind = header.metadata.get("tokenizer.ggml.model")
    needs = [f"tokenizer.ggml.{each}" for each in _NEEDS.get(str(kind), ())]
    if needs and not any(header.arrays.get(each) for each in needs):
        raise HeadatlasError(
            f"{path}: its tokenizer ({kind}) lacks {' and '.join(needs)}, so that no text can be cut into "
            "its tokens; convert the model again, or pass a tokenizer (tokenizer=… in Python)."
        )
    kept = _place_of_conversion(source)
    tokenizer: PreTrainedTokenizerBase
    if kept.is_dir():
        # The plain class, because a model's own class would build its tokenizer anew.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(kept), local_files_only=True)
        return tokenizer
    tokenizer = AutoTokenizer.from_pretrained(
        str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    try:
        with atomic_folder(kept) as work:
            tokenizer.save_pretrained(work)
    except OSError as error:
        _log.info("not kept in %s: %s", kept, error)  # a cache that cannot be written only costs time
    return tokenizer


def _place_of_conversion(source: GgufSource) -> Path:
    """The folder of the cache for this header's tokenizer as this version of transformers converts it."""
    import gguf
    import transformers

    with source.files[0].open("rb") as stream:
        digest = hashlib.sha256(stream.read(source.header.data_start))
    digest.update(f"{transformers.__version__} {getattr(gguf, '__version__', '')}".encode())
    return cache_dir() / "converted" / digest.hexdigest()[:32] / "tokenizer"


def gguf_modules(
    source: GgufSource,
    options: dict[str, Any],
    *,
    change: Callable[[Any], Any] = lambda config: config,
    wanted: Callable[[str], bool] = of_text,
) -> Any:
    """Call ``AutoModelForCausalLM.from_pretrained`` for the files of a source.

    Args:
        source: An opened GGUF, whose header is thereby known to be sound; a split one is read as one file.
        options: Keyword arguments for ``from_pretrained``.
        change: Changes the config before the modules are made.
        wanted: Says by name which tensors to load.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    check_convertible(source)
    folder, name = str(source.files[0].parent), source.files[0].name
    # The progress bar of this route knows no switch; it writes to sys.stderr.
    with _shown_to_transformers(source, wanted), redirect_stderr(io.StringIO()):
        config = AutoConfig.from_pretrained(
            folder, gguf_file=name, local_files_only=True, trust_remote_code=False
        )
        config = change(completed(config, source))
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, config=config, **options)


@contextmanager
def _shown_to_transformers(source: GgufSource, wanted: Callable[[str], bool]) -> Iterator[None]:
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
            data=source.stored(tensor),
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
