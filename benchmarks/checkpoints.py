"""Write a checkpoint of a known shape: random weights, planted heads, a tokenizer, relations.

    python -m benchmarks.checkpoints FOLDER --shape 8b [--layers N] [--seed 0] [--mlp zero]

``0.5b`` is the shape of Qwen2.5-0.5B without its biases, ``8b`` the exact shape of Llama-3.1-8B, ``70b`` that
of Llama-3.1-70B's layers, of which there are three unless told otherwise. The folder holds sharded bfloat16
safetensors, ``relations/`` and ``planted.json``, which says which heads were written to do what. One shard is
in memory at a time.

Only the shape is real: heads with random weights promote nothing in common for their sources, so that fewer
pairs survive screening than in a trained model.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize, silu
from transformers import LlamaConfig

from tests.mapping.checkpoints import FIRST_WORD, word, word_tokenizer

INDEX = "model.safetensors.index.json"
N_RELATIONS = 20
N_PLANTED_RELATIONS = 12
CATEGORIES = ("Algorithmic", "Knowledge", "Linguistic", "Translation")
KINDS = ("one target", "three targets", "few targets", "copying")
FEW = 12
POOL = 1 << 24
"""Random numbers that the MLPs after the first are cut from: drawing eight billion takes minutes."""
UNEMBED_SIZE = 0.02
BRANCH_SIZE = 0.5
"""Standard deviation of what all blocks together add to an embedding of standard deviation one."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama checkpoint, and the number of sources asked of it."""

    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocab: int
    sources: int = 3000


SHAPES = {
    "tiny": Shape(2, 4, 2, 64, 16, 160, 2048, sources=600),
    "0.5b": Shape(24, 14, 2, 896, 64, 4864, 151936),
    "8b": Shape(32, 32, 8, 4096, 128, 14336, 128256),
    "70b": Shape(3, 64, 8, 8192, 128, 28672, 128256),
}


@dataclass(frozen=True)
class Planted:
    """A head that was written to do something.

    Attributes:
        layer, head: Which.
        relation: The name of the relation.
        verb: ``"implements"`` or ``"suppresses"``.
    """

    layer: int
    head: int
    relation: str
    verb: str


@dataclass(frozen=True)
class Asked:
    """A relation in token ids: sources, and for each the accepted targets."""

    name: str
    category: str
    kind: str
    sources: list[int]
    targets: list[list[int]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a checkpoint as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--layers", type=int, help="instead of the shape's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--mlp",
        choices=["random", "zero"],
        default="random",
        help="MLPs after the first; zero ones take no room on disk where files can have holes",
    )
    given = parser.parse_args(arguments)
    if (given.folder / INDEX).exists():
        parser.error(f"{given.folder} holds a checkpoint already; remove it or choose another folder")
    shape = SHAPES[given.shape]
    if given.layers is not None:
        shape = replace(shape, layers=given.layers)
    planted = write(given.folder, shape, seed=given.seed, zero_mlp=given.mlp == "zero")
    stored = sum(file.stat().st_size for file in given.folder.glob("*.safetensors"))
    print(f"{given.folder}: {stored / 1e9:.3g} GB of weights, {len(planted)} planted heads")


def write(folder: Path, shape: Shape, *, seed: int = 0, zero_mlp: bool = False) -> list[Planted]:
    """Write a checkpoint, its tokenizer, its relations and the list of its planted heads.

    Args:
        folder: Made if it is not there; the index of the shards is written last.
        shape: The sizes.
        seed: The same seed gives the same bytes.
        zero_mlp: Whether the MLPs after the first are zero instead of random.
    """
    folder.mkdir(parents=True, exist_ok=True)
    relations = relations_of(shape, seed)
    planted = heads_to_plant(shape, relations, seed)
    _write_relations(folder / "relations", relations)
    _write_json(folder / "planted.json", {"seed": seed, "planted": [asdict(head) for head in planted]})
    word_tokenizer(shape.vocab).save_pretrained(folder)
    _config(shape).save_pretrained(folder)
    weights = _Weights(shape, seed, zero_mlp, relations, planted)
    weight_map: dict[str, str] = {}
    total = 0
    # Not enumerate: it holds on to the last shard while the next is made.
    for tensors in weights.shards():
        number = len(set(weight_map.values())) + 1
        shard = f"model-{number:05d}-of-{shape.layers + 2:05d}.safetensors"
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        total += sum(tensor.nbytes for tensor in tensors.values())
        weight_map |= dict.fromkeys(tensors, shard)
        if zero_mlp and (dig := shutil.which("fallocate")):
            subprocess.run([dig, "--dig-holes", str(folder / shard)], check=True)
        del tensors  # before the next shard is made
    _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return planted


def planted_in(folder: Path) -> list[Planted]:
    """The planted heads of a checkpoint that :func:`write` made."""
    return [Planted(**head) for head in json.loads((folder / "planted.json").read_text())["planted"]]


def relations_of(shape: Shape, seed: int) -> list[Asked]:
    """Twenty relations over distinct sources, of four kinds in turn."""
    rng = np.random.default_rng(seed)
    words = (rng.permutation(shape.vocab - FIRST_WORD) + FIRST_WORD).tolist()
    size = shape.sources // N_RELATIONS
    found = []
    for number, sources in enumerate(np.array(words[: size * N_RELATIONS]).reshape(N_RELATIONS, size)):
        kind = KINDS[number % len(KINDS)]
        drawn = rng.choice(words, (size, 3), replace=False)
        targets = {
            "one target": drawn[:, :1],
            "three targets": drawn,
            "few targets": drawn[np.arange(size) % FEW, :1],
            "copying": sources[:, None],
        }[kind]
        # The kinds come round with every category: five relations each.
        category = CATEGORIES[number // (N_RELATIONS // len(CATEGORIES))]
        name = f"relation_{number:02d}_{kind.replace(' ', '_')}"
        found.append(Asked(name, category, kind, sources.tolist(), targets.tolist()))
    return found


def heads_to_plant(shape: Shape, relations: Sequence[Asked], seed: int) -> list[Planted]:
    """About one head a layer, at least six, at most one in a value group; every fourth suppresses."""
    rng = np.random.default_rng([seed, 1])
    groups = list(product(range(shape.layers), range(shape.kv_heads)))
    chosen = rng.permutation(len(groups))[: max(6, shape.layers)]
    width = shape.heads // shape.kv_heads
    return [
        Planted(
            layer,
            group * width + int(rng.integers(width)),
            relations[number % N_PLANTED_RELATIONS].name,
            "suppresses" if number % 4 == 3 else "implements",
        )
        for number, (layer, group) in enumerate(groups[at] for at in chosen)
    ]


class _Weights:
    """Makes the tensors shard by shard; a tensor's numbers depend on the seed and its name alone."""

    def __init__(
        self, shape: Shape, seed: int, zero_mlp: bool, relations: Sequence[Asked], planted: Sequence[Planted]
    ) -> None:
        self._shape, self._seed, self._zero_mlp = shape, seed, zero_mlp
        self._planted = planted
        # A head tells as many sources apart as it has dimensions.
        self._pairs = {
            each.name: (
                each.sources[: shape.d_head],
                [targets[0] for targets in each.targets[: shape.d_head]],
            )
            for each in relations
        }
        self._branch = BRANCH_SIZE / (2 * shape.layers) ** 0.5
        self._pool = torch.randn(POOL, generator=self._generator("pool")).bfloat16()

    def shards(self) -> Iterator[dict[str, torch.Tensor]]:
        """Embedding; unembedding and final norm; then a shard a layer."""
        shape = self._shape
        names = {head.relation for head in self._planted}
        embed = self._normal("model.embed_tokens.weight", shape.vocab, shape.d_model, 1.0)
        embedded = {name: embed[self._pairs[name][0]].float() for name in names}
        yield {"model.embed_tokens.weight": embed}
        del embed
        unembed = self._normal("lm_head.weight", shape.vocab, shape.d_model, UNEMBED_SIZE)
        outputs = {name: normalize(unembed[self._pairs[name][1]].float()) for name in names}
        yield {"lm_head.weight": unembed, "model.norm.weight": _ones(shape.d_model)}
        del unembed
        after_mlp: dict[str, torch.Tensor] = {}
        for layer in range(shape.layers):
            tensors = self._layer(layer)
            if layer == 0:
                after_mlp = {name: _first_mlp(rows, tensors) for name, rows in embedded.items()}
            for head in self._planted:
                if head.layer == layer:
                    # What the lens maps reads: E at layer 0, the first MLP's output after it. The neutral
                    # lens reads the residual stream, which stays close to E. The head does for both.
                    states = [embedded[head.relation]]
                    if layer:
                        states.append(after_mlp[head.relation])
                    sign = 1 if head.verb == "implements" else -1
                    _plant(tensors, shape, head, states, sign * outputs[head.relation])
            yield tensors
            del tensors  # before the next layer is made

    def _layer(self, layer: int) -> dict[str, torch.Tensor]:
        shape, block = self._shape, f"model.layers.{layer}"
        d, wide = shape.d_model, shape.heads * shape.d_head
        narrow = shape.kv_heads * shape.d_head
        sizes = {
            "self_attn.q_proj": (wide, d, d**-0.5),
            "self_attn.k_proj": (narrow, d, d**-0.5),
            "self_attn.v_proj": (narrow, d, d**-0.5),
            "self_attn.o_proj": (d, wide, self._branch * wide**-0.5),
            "mlp.gate_proj": (shape.d_mlp, d, d**-0.5),
            "mlp.up_proj": (shape.d_mlp, d, d**-0.5),
            "mlp.down_proj": (d, shape.d_mlp, self._branch * shape.d_mlp**-0.5),
        }
        tensors = {
            f"{block}.{norm}.weight": _ones(d) for norm in ("input_layernorm", "post_attention_layernorm")
        }
        for part, (rows, columns, size) in sizes.items():
            name = f"{block}.{part}.weight"
            if layer and part.startswith("mlp"):
                tensors[name] = self._cheap(name, rows, columns, size)
            else:
                tensors[name] = self._normal(name, rows, columns, size)
        return tensors

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(
            int(np.random.default_rng([self._seed, *name.encode()]).integers(2**62))
        )

    def _normal(self, name: str, rows: int, columns: int, size: float) -> torch.Tensor:
        """[rows, columns] bfloat16 normal numbers of a standard deviation."""
        out = torch.empty(rows, columns, dtype=torch.bfloat16)
        generator = self._generator(name)
        for part in torch.split(out, max(1, POOL // columns)):
            part.copy_(torch.randn(part.shape, generator=generator).mul_(size))
        return out

    def _cheap(self, name: str, rows: int, columns: int, size: float) -> torch.Tensor:
        """Numbers as of :meth:`_normal` from the pool, begun anywhere in it; or zeros."""
        if self._zero_mlp:
            return torch.zeros(rows, columns, dtype=torch.bfloat16)
        start = int(torch.randint(POOL, (1,), generator=self._generator(name)))
        pool = (self._pool.roll(start).float() * size).bfloat16()
        return pool.repeat(-(-rows * columns // POOL))[: rows * columns].view(rows, columns)


def _ones(n: int) -> torch.Tensor:
    return torch.ones(n, dtype=torch.bfloat16)


def _first_mlp(rows: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first block's MLP on the embeddings [n, d_model]; a part of its width at a time."""
    gate, up, down = (tensors[f"model.layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up", "down"))
    x = rows / rows.square().mean(dim=1, keepdim=True).sqrt()
    out = torch.zeros_like(rows)
    for at in torch.split(torch.arange(len(gate)), 2048):
        here = slice(int(at[0]), int(at[-1]) + 1)
        inner = silu(x @ gate[here].float().T) * (x @ up[here].float().T)
        out += inner @ down[:, here].float().T
    return out


def _plant(
    tensors: dict[str, torch.Tensor],
    shape: Shape,
    head: Planted,
    states: Sequence[torch.Tensor],
    outputs: torch.Tensor,
) -> None:
    """Make a head turn row i of every stack of states into ``outputs[i]`` (up to scale).

    Args:
        tensors: The layer's, changed in place.
        shape: The sizes.
        head: Which.
        states: Stacks of [n, d_model], n ≤ d_head.
        outputs: [n, d_model], small beside the residual stream.
    """
    n = len(outputs)
    W_V = torch.linalg.pinv(torch.cat([normalize(each) for each in states])) @ torch.eye(n).repeat(
        len(states), 1
    )
    group = head.head // (shape.heads // shape.kv_heads)
    block = f"model.layers.{head.layer}.self_attn"
    values = tensors[f"{block}.v_proj.weight"][group * shape.d_head : (group + 1) * shape.d_head]
    values.zero_()
    values[:n] = W_V.T
    output = tensors[f"{block}.o_proj.weight"][:, head.head * shape.d_head : (head.head + 1) * shape.d_head]
    output.zero_()
    output[:, :n] = outputs.T * 0.1


def _config(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=shape.vocab,
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.d_head,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )


def _write_relations(folder: Path, relations: Sequence[Asked]) -> None:
    folder.mkdir(exist_ok=True)
    for each in relations:
        pairs = [
            [word(source), [word(target) for target in targets]]
            for source, targets in zip(each.sources, each.targets, strict=True)
        ]
        title = f"{each.name.split('_')[1]} → {each.kind}"
        body = {"name": each.name, "title": title, "category": each.category, "pairs": pairs}
        _write_json(folder / f"{each.name}.json", body)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
