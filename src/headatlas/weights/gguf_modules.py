"""A GGUF file as transformers' config, tokenizer and modules, without the detours that take most of the time.

transformers reads the file with gguf's reader, which makes several numpy views for each of some hundred
thousand tokens, and it asks for the table of tensor names anew for every submodule. Both are replaced while
a model loads: tokens are stepped over (the config is known by then, and weights need no tokens), and the
table is remembered. Measured on two CPU cores: SmolLM2-135M in 1.4 s instead of 10 s. Tokenizer and config
depend on the header alone and are kept in the user cache under its hash.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headatlas.errors import HeadatlasError
from headatlas.weights.gguf_config import check_convertible, completed, of_text
from headatlas.weights.gguf_source import GgufHeader, GgufSource
from headatlas.weights.local_files import cache_dir, filled_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


_log = logging.getLogger(__name__)
_TOKENS = "tokenizer.ggml.tokens"
_NEEDS = {"gpt2": ("merges",), "llama": ("scores", "merges"), "t5": ("scores",)}
"""Arrays one of which each kind of tokenizer needs beside its tokens, as transformers 5.23 builds them."""


def gguf_tokenizer(path: Path, header: GgufHeader) -> PreTrainedTokenizerBase:
    """The tokenizer inside a GGUF file, out of the cache where it was converted before.

    Raises:
        HeadatlasError: The file has no tokenizer.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not header.arrays.get(_TOKENS):
        raise HeadatlasError(f"{path} holds no tokenizer ({_TOKENS} is missing); convert the model again.")
    kind = header.metadata.get("tokenizer.ggml.model")
    needs = [f"tokenizer.ggml.{each}" for each in _NEEDS.get(str(kind), ())]
    if needs and not any(header.arrays.get(each) for each in needs):
        raise HeadatlasError(
            f"{path}: its tokenizer ({kind}) lacks {' and '.join(needs)}, so that no text can be cut into "
            "its tokens; convert the model again, or pass a tokenizer (tokenizer=… in Python)."
        )
    kept = _place(path, header) / "tokenizer"
    if kept.is_dir():
        # The plain class, because a model's own class would build its tokenizer anew.
        tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(
            str(kept), local_files_only=True
        )
        return tokenizer
    tokenizer = AutoTokenizer.from_pretrained(
        str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    _keep(tokenizer, kept)
    return tokenizer


def gguf_config(path: Path, header: GgufHeader) -> PretrainedConfig:
    """The transformers config that a GGUF header stands for, out of the cache where it was made before."""
    from transformers import AutoConfig

    kept = _place(path, header) / "config"
    config: PretrainedConfig
    if kept.is_dir():
        config = AutoConfig.from_pretrained(str(kept), local_files_only=True, trust_remote_code=False)
        return config
    config = AutoConfig.from_pretrained(
        str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    _keep(config, kept)
    return config


def _place(path: Path, header: GgufHeader) -> Path:
    """The folder for this header as converted by this version of transformers."""
    import gguf
    import transformers

    with path.open("rb") as stream:
        digest = hashlib.sha256(stream.read(header.data_start))
    digest.update(f"{transformers.__version__} {getattr(gguf, '__version__', '')}".encode())
    return cache_dir() / "converted" / digest.hexdigest()[:32]


def _keep(item: PreTrainedTokenizerBase | PretrainedConfig, folder: Path) -> None:
    try:
        with filled_folder(folder) as work:
            item.save_pretrained(work)
    except (OSError, HeadatlasError) as error:
        _log.info("not kept in %s: %s", folder, error)  # a cache that cannot be written only costs time


LONG_ARRAY = 256


def gguf_modules(
    source: GgufSource,
    options: dict[str, Any],
    *,
    change: Callable[[Any], Any] | None = None,
    wanted: Callable[[str], bool] | None = None,
) -> Any:
    """Call ``AutoModelForCausalLM.from_pretrained`` for the files of a source.

    Args:
        source: An opened GGUF, whose header is thereby known to be sound; a split one is read as one file.
        options: Keyword arguments for ``from_pretrained``.
        change: Changes the config before the modules are made.
        wanted: Says by name which tensors to load; all of the language model if None.
    """
    from transformers import AutoModelForCausalLM

    file = source.files[0]
    check_convertible(source)
    with _reading(source.files, None, tokens=True):
        config = completed(gguf_config(file, source.header), source)
    config = config if change is None else change(config)
    # The progress bar of this route knows no switch; it writes to sys.stderr.
    with _reading(source.files, wanted or of_text, tokens=False), redirect_stderr(io.StringIO()):
        return AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, config=config, **options
        )


@contextmanager
def _reading(files: Sequence[Path], wanted: Callable[[str], bool] | None, *, tokens: bool) -> Iterator[None]:
    """Let transformers see all parts of a split file, the tensors wanted, and no tokens unless told so."""
    import gguf

    module: Any = gguf
    reader, names = module.GGUFReader, module.get_tensor_name_map
    plain = reader if tokens else _reader_without_tokens(reader)
    module.GGUFReader = _reader_of_parts(plain, files, wanted)
    module.get_tensor_name_map = functools.cache(names)
    try:
        yield
    finally:
        module.GGUFReader, module.get_tensor_name_map = reader, names


def _reader_of_parts(reader: Any, files: Sequence[Path], wanted: Callable[[str], bool] | None) -> Any:
    """A subclass of a reader whose tensors are those of all files, when it is asked for the first."""

    def init(self: Any, path: Any, *args: Any) -> None:
        reader.__init__(self, path, *args)
        if Path(path) == files[0]:
            for part in files[1:]:
                self.tensors += reader(part, *args).tensors
        self.tensors = [tensor for tensor in self.tensors if wanted is None or wanted(tensor.name)]

    return type("ReaderOfParts", (reader,), {"__init__": init})


def _reader_without_tokens(reader: Any) -> Any:
    """A subclass of gguf's reader that steps over long metadata arrays as if they were empty."""
    import numpy as np
    from gguf.constants import GGUFValueType

    usual = reader._get_field_parts

    def get_field_parts(self: Any, start: int, raw_type: int) -> Any:
        if raw_type != GGUFValueType.ARRAY:
            return usual(self, start, raw_type)
        item, length = self._get(start, np.uint32), self._get(start + 4, np.uint64)
        if length[0] <= LONG_ARRAY:
            return usual(self, start, raw_type)
        kind = GGUFValueType(item[0])
        position, count = start + 12, int(length[0])
        if kind == GGUFValueType.STRING:
            view = memoryview(self.data)
            for _ in range(count):
                position += 8 + int.from_bytes(view[position : position + 8], "little")
        else:
            position += count * np.dtype(self.gguf_scalar_to_np[kind]).itemsize
        return position - start, [item, length], [], [GGUFValueType.ARRAY, kind]

    return type("ReaderWithoutTokens", (reader,), {"_get_field_parts": get_field_parts})
