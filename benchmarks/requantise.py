"""Write a GGUF file again with its weight matrices in another type, for comparing quantisations.

Every matrix is dequantised and quantised anew; norms, header and tokenizer stay as they are. Matrices whose
rows do not fit the type's blocks, and the embedding (which files of llama.cpp keep finer, too), go into Q8_0.
What the first quantisation lost is lost in the copy as well: compare two copies, or a copy with the file.

    python -m benchmarks.requantise smollm2-135m Q8.gguf --type Q8_0
    python -m benchmarks.requantise smollm2-135m Q4.gguf --type Q4_0
    headatlas compare Q8.gguf Q4.gguf
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from headatlas.weights import open_checkpoint
from headatlas.weights.gguf_source import GgufSource

FINER = GGMLQuantizationType.Q8_0


def requantise(source: Path, target: Path, kind: GGMLQuantizationType) -> None:
    """Write ``source`` again at ``target`` with its matrices in ``kind``."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, str(architecture))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type"):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if values.ndim < 2:
            writer.add_tensor(tensor.name, values)
            continue
        block, _ = GGML_QUANT_SIZES[kind]
        finer = tensor.name == "token_embd.weight" or values.shape[-1] % block
        chosen = FINER if finer else kind
        writer.add_tensor(tensor.name, quantize(values, chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Write the copy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a GGUF file, or any name of one that headatlas map takes")
    parser.add_argument("target", type=Path)
    parser.add_argument("--type", required=True, help="Q8_0, Q5_1, Q5_0, Q4_1, Q4_0")
    args = parser.parse_args()
    checkpoint = open_checkpoint(args.model)
    if not isinstance(checkpoint.source, GgufSource):
        raise SystemExit(f"{args.model}: no GGUF file")
    for note in checkpoint.notes:
        print(note)
    requantise(checkpoint.source.files[0], args.target, GGMLQuantizationType[args.type])
    return 0


if __name__ == "__main__":
    sys.exit(main())
