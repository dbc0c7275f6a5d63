"""A model by the meaning of its tensors, whatever its family and format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from headatlas.architectures.accounting import Inventory, Pieces, pieces_of
from headatlas.architectures.family import Family, Norm, Value, find_family
from headatlas.architectures.layouts import (
    Dims,
    LayerHeads,
    RightMap,
    as_linear,
    split_latent,
    split_outputs,
    stored_as,
    value_outputs,
    value_rows,
)
from headatlas.architectures.mlp import MlpReader, NormWeights
from headatlas.architectures.queries import AttentionRule, LayerQueries, attention_rule, queries_of_layer
from headatlas.errors import HeadatlasError
from headatlas.weights.source import Checkpoint, NoModulesError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from headatlas.weights import Tokenizer

# Rows whose hidden layer of the first MLP is in memory at a time: 256 MB at a width of 14,336.
_ROWS = 4096


def open_model(checkpoint: Checkpoint) -> Model:
    """Open a checkpoint: find its family and account for every tensor. Reads headers only.

    Raises:
        HeadatlasError: The architecture is not supported, the config contradicts itself, or tensors are
            unknown, missing or of the wrong shape.
    """
    family, section = find_family(checkpoint)
    inventory = Inventory(checkpoint, section)
    said = [caveat for caveat in section.caveats if inventory.holds(caveat.when)]
    for caveat in said:
        if caveat.refuse:
            raise HeadatlasError(f"{checkpoint.spec}: {caveat.text}")
    inventory.check()
    notes = [caveat.text for caveat in said]
    if aside := inventory.aside():
        begin = ", ".join(sorted({f"{name.partition('.')[0]}.*" for name in aside}))
        notes.append(
            f"{len(aside)} tensors that read images or sound ({begin}) are left aside; the heads are those "
            "of the text model."
        )
    if notes:
        checkpoint = replace(checkpoint, notes=(*checkpoint.notes, *notes))
    return Model(checkpoint, family, inventory)


class Model:
    """Weights of one model by their meaning. Tensors are read when asked for and not kept.

    All tensors are float32 on the CPU (float64 where the checkpoint stores float64).
    """

    def __init__(self, checkpoint: Checkpoint, family: Family, inventory: Inventory) -> None:
        self.checkpoint = checkpoint
        self.family = family
        self.dims: Dims = inventory.sizes.dims
        self._inventory = inventory
        self._section = inventory.section
        self._tokenizer: Tokenizer | None = None
        self._finite: set[str] = set()

    def embed(self, ids: Sequence[int] | None = None) -> torch.Tensor:
        """Rows of E [len(ids) or vocab, d_model] as stored, without any embedding scale.

        Where the family norms the embedding before the first block (BLOOM), the rows are normed.
        """
        rows = self._read(self._inventory.name(self._section.embed), ids)
        norm = self._section.embed_norm
        return rows if norm is None else self._norm(norm)(rows)

    def unembed(self, rows: slice | None = None) -> torch.Tensor:
        """U transposed: [vocab, d_model], one row a token, or some rows of it. Read anew at every call."""
        stem = self._inventory.unembed_stem or self._section.embed
        return self._read(self._inventory.name(stem), rows)

    def heads(self, layer: int) -> LayerHeads:
        """Value and output weights of all heads of a layer."""
        self._check_layer(layer)
        value, output = self._inventory.layers[layer].value, self._section.output
        if value is None:
            raise HeadatlasError(
                f"{self.checkpoint.spec}: layer {layer} has no attention heads; heads are in layers "
                f"{', '.join(map(str, self.layers_with_heads))}."
            )
        W_V, b_V = self._values(value, layer)
        stored = self._read(self.output_name(layer))
        return LayerHeads(W_V, b_V, W_O=split_outputs(stored, output.layout, self.dims))

    def queries(self, layer: int) -> LayerQueries:
        """Query and key weights of all heads of a layer."""
        self._check_layer(layer)
        return queries_of_layer(self._inventory, layer, self._read, self._norm)

    def attention_rule(self, modules: PreTrainedModel) -> AttentionRule:
        """The rule by which queries and keys make attention logits; ``modules`` say angles and scale."""
        return attention_rule(self._inventory, modules, self.body_module())

    @property
    def norms_embedding(self) -> bool:
        """Whether a norm of its own stands between embedding and first block, as in BLOOM."""
        return self._section.embed_norm is not None

    @property
    def stores_unembedding(self) -> bool:
        """Whether U is a stored tensor; if not, it is the embedding."""
        return self._inventory.unembed_stem is not None

    @property
    def layers_with_heads(self) -> tuple[int, ...]:
        """The layers that have attention heads: all but in hybrid models."""
        return tuple(at for at, parts in enumerate(self._inventory.layers) if parts.value is not None)

    @property
    def every_layer_has_heads(self) -> bool:
        """False for hybrid models."""
        return len(self.layers_with_heads) == self.dims.n_layers

    @property
    def only_attention(self) -> bool:
        """Whether nothing but attention carries anything from token to token, in any layer."""
        return self.every_layer_has_heads and not self._inventory.other_mixers

    def _values(self, value: Value, layer: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """W_V and b_V of a layer."""
        names, read = self._inventory, self._read
        if value.down is not None and value.norm is not None:
            up, down = read(names.name(value.stem, layer)), read(names.name(value.down.stem, layer))
            bias = names.bias(value.down, layer)
            gain = read(names.weight(value.norm, layer) or "") + self._section.gain_offset
            W_V, b_V = split_latent(up, down, None if bias is None else read(bias), gain, self.dims)
            if not _is_finite(W_V):
                raise HeadatlasError(
                    f"{self.checkpoint.spec}: the value weights of layer {layer} multiply to numbers that "
                    "are not finite; the file is damaged, fetch it again."
                )
            return W_V, b_V
        stored = read(names.name(value.stem, layer), value_rows(value.layout, self.dims))
        stored, bias = as_linear(stored, stored_as(value.layout)), names.bias(value, layer)
        W_V = value_outputs(stored, value.layout, self.dims).transpose(1, 2).contiguous()
        if bias is None:
            return W_V, None
        return W_V, value_outputs(read(bias), value.layout, self.dims).contiguous()

    def right_map(self, layer: int) -> RightMap:
        """The map of a head's output of this layer on its way to U."""
        self._check_layer(layer)
        post = self._section.post_attention_norm
        return RightMap(
            post_gain=None if post is None else self._gain(post, layer),
            centre=self.family.norm == "layer",
            final_gain=self._gain(self._section.final_norm),
        )

    def first_mlp(
        self, rows: torch.Tensor, progress: Callable[[int, int], None] | None = None
    ) -> torch.Tensor:
        """``mlp_0(norm(rows))``: the first block's MLP on rows [n, d_model], in at least float32.

        ``progress`` is called with (rows done, rows in all).
        """
        if not self._inventory.layers[0].has_mlp:
            raise HeadatlasError(f"{self.checkpoint.spec}: the first block has no MLP.")
        import torch

        norm = self._inventory.mlp_norm(0)
        normed = None if norm is None else self._norm(norm, 0)
        feed, dtype = (
            MlpReader(self._inventory, self._read).of(0),
            torch.promote_types(rows.dtype, torch.float32),
        )
        out = rows.new_empty(rows.shape, dtype=dtype)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS].to(dtype)
            out[start : start + _ROWS] = feed(part if normed is None else normed(part))
            if progress is not None:
                progress(start + len(part), len(rows))
        return out

    def final_norm(self, rows: torch.Tensor) -> torch.Tensor:
        """The whole final norm, with its scale and bias, on rows [..., d_model]."""
        return self._norm(self._section.final_norm)(rows)

    def body_module(self) -> str:
        """Path of the Hugging Face module of the decoder: embedding, blocks and final norm."""
        modules = self.family.modules
        return modules.body_of.get(self.checkpoint.architecture, modules.body).removesuffix(".")

    def stored_name(self, path: str) -> str:
        """The stored name (safetensors) of what has this path, inside the decoder, among the modules."""
        return self._inventory.prefix.body + path.removeprefix(f"{self.body_module()}.")

    def stored_pieces(self, layer: int) -> dict[str, Pieces]:
        """A layer's tensors that files have in pieces or under another name than :meth:`stored_name` says."""
        return pieces_of(self._inventory, layer)

    def needed_in_block(self, layer: int) -> set[str]:
        """Names of the stored tensors of a decoder block that a forward pass needs."""
        start = self._inventory.block(layer)
        return {name for name in self._inventory.expected if name.startswith(start)}

    def largest_mixture(self) -> tuple[int, int]:
        """The layer whose experts have most parameters, and how many; in one module. (0, 0): none."""
        names = self._inventory
        sizes = [(0, 0)]
        for layer, parts in enumerate(names.layers):
            if (form := parts.experts) is not None:
                beside = (form.router, form.shared_gate, *(form.shared.linears if form.shared else ()))
                skip = {names.name(each.stem, layer) for each in beside if each is not None}
                tensors = [name for name, shape in names.mlp_tensors(layer) if len(shape or ()) > 1]
                sizes.append((self._numbers(name for name in tensors if name not in skip), layer))
        most, layer = max(sizes)
        return layer, most

    def value_input_module(self, layer: int) -> str:
        """Path of the Hugging Face module whose input is x_l."""
        return self._module(self.family.modules.value_input, layer)

    def block_module(self, layer: int) -> str:
        """Path of the Hugging Face module of a block."""
        return self._module(self.family.modules.block, layer)

    def o_proj_module(self, layer: int) -> str:
        """Path of the Hugging Face module whose input is the concatenated head outputs."""
        return self._module(self.family.modules.output, layer)

    def output_name(self, layer: int) -> str:
        """The stored name of a layer's output projection."""
        return self._inventory.name(self._section.output.stem, layer)

    def mlp_modules(self, layer: int) -> tuple[str, ...]:
        """Paths of the Hugging Face modules of a block's MLP; the sum of their outputs is the MLP's.

        None where the block has no MLP.
        """
        modules = self.family.modules
        if not self._inventory.layers[layer].has_mlp:
            return ()
        beside = modules.mlp_beside if self._inventory.layers[layer].experts is not None else None
        return tuple(self._module(path, layer) for path in (modules.mlp, beside) if path)

    def attention_modules(self, layer: int) -> tuple[str, ...]:
        """Paths of the modules that write what a block adds before its MLP, as far as they are known."""
        inventory, mixer = self._inventory, self.family.modules.mixer
        heads = () if inventory.layers[layer].value is None else (self.o_proj_module(layer),)
        return (*heads, *((self._module(mixer, layer),) if mixer and layer in inventory.other_mixers else ()))

    def final_norm_module(self) -> str:
        """Path of the Hugging Face module of the final norm."""
        return self._module(self.family.modules.final_norm, None)

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer, loaded once."""
        from headatlas.weights import load_tokenizer

        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.checkpoint)
        return self._tokenizer

    def modules(self, dtype: torch.dtype | None = None) -> PreTrainedModel:
        """The whole model as Hugging Face modules, in evaluation mode; float32 unless told otherwise.

        On the CPU, or where the parameters of a model in memory are.
        """
        import torch

        from headatlas.weights import load_modules

        modules = load_modules(self.checkpoint, dtype or torch.float32, self._inventory.expected)
        self._check_decoder(modules)
        return modules

    def check_finite(self, name: str, tensor: torch.Tensor, *, whole: bool = True) -> None:
        """Refuse a stored tensor, or a part of it, that is not finite, unless all of it has been looked at.

        Compared with such a number, nothing has a rank; and states need not show it: of scores that are NaN,
        kernels of attention make finite ones.
        """
        if name not in self._finite:
            if not _is_finite(tensor):
                where = self._inventory.stored[name].file
                if self.checkpoint.format == "module":
                    where = f"The loaded {self.checkpoint.architecture}"
                raise HeadatlasError(
                    f"{where}: tensor {name!r} holds numbers that are not finite; it is damaged, or "
                    "overflowed when it was converted to a smaller type; use another file."
                )
            if whole:
                self._finite.add(name)

    @property
    def n_parameters(self) -> int:
        """Number of parameters in use; a tied unembedding that a safetensors file repeats counts once."""
        names = self._inventory
        twice = names.unembed_stem if names.sizes.tied and self.checkpoint.format != "gguf" else None
        skip = None if twice is None else names.name(twice)
        return self._numbers(name for name in names.expected if name != skip)

    @property
    def n_block_parameters(self) -> int:
        """Number of parameters of a decoder block, by the first one's."""
        start = self._inventory.block(0)
        return self._numbers(name for name in self._inventory.stored if name.startswith(start))

    def _numbers(self, names: Iterable[str]) -> int:
        """How many numbers stored tensors hold together."""
        return sum(prod(self._inventory.stored[name].shape) for name in names)

    def bytes_needed(self, *, forward_pass: bool) -> int:
        """Stored bytes that are read: all that a forward pass needs, or heads, E, U and the first MLP."""
        names, section = self._inventory, self._section
        wanted = set(names.expected)
        if not forward_pass:
            wanted = {names.name(section.embed), names.name(names.unembed_stem or section.embed)}
            wanted |= {name for layer in range(self.dims.n_layers) for name, _ in names.head_tensors(layer)}
            wanted |= {name for name, _ in names.mlp_tensors(0)}
        return sum(names.stored[name].nbytes for name in wanted)

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.dims.n_layers:
            raise IndexError(f"layer {layer} of a model with {self.dims.n_layers} layers")

    def _module(self, path: str, layer: int | None) -> str:
        body = f"{self.body_module()}."
        for _ in range(2):  # {block} itself holds {body} and {layer}
            path = path.format(block=self.family.modules.block, body=body, layer=layer)
        return path

    def _read(self, name: str, rows: slice | Sequence[int] | None = None) -> torch.Tensor:
        """A tensor or some of its rows, all finite."""
        tensor = self.checkpoint.source.read(name, rows)
        self.check_finite(name, tensor, whole=rows is None)
        return tensor

    def _check_decoder(self, modules: PreTrainedModel) -> None:
        """Look at every tensor of the decoder as modules hold it, and name one that is not finite."""
        body = self.body_module()
        for name, tensor in modules.get_submodule(body).state_dict().items():
            if tensor.is_floating_point() and not _is_finite(tensor):
                path = f"{body}.{name}".lstrip(".")
                same = self.stored_name(path)
                for stored in sorted(self._inventory.expected, key=lambda each: each != same):
                    self._read(stored)
                raise NoModulesError(
                    f"{self.checkpoint.spec}: parameter {path!r} of the modules is not finite, though all "
                    "that is stored is: numbers are too large for float32."
                )
        # That was all that is expected, but for an unembedding of its own.
        stem = self._inventory.unembed_stem
        beside = {self._inventory.name(stem, kind=kind) for kind in ("weight", "bias")} if stem else set()
        self._finite |= self._inventory.expected.keys() - beside

    def _gain(self, norm: Norm, layer: int | None = None) -> torch.Tensor | None:
        weight = self._inventory.weight(norm, layer)
        return None if weight is None else self._read(weight) + self._section.gain_offset

    def _norm(self, norm: Norm, layer: int | None = None) -> NormWeights:
        bias = self._inventory.bias(norm, layer)
        return NormWeights(
            kind=self.family.norm,
            eps=self._inventory.sizes.eps,
            gain=self._gain(norm, layer),
            bias=None if bias is None else self._read(bias),
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all numbers are finite; asking isfinite of each takes fifty times as long, and memory."""
    import torch

    return not tensor.numel() or all(bool(torch.isfinite(each)) for each in torch.aminmax(tensor))
