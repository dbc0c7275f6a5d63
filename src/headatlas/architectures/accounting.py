"""Every tensor of a checkpoint is used, declared ignored, or an error that names it.

:class:`Inventory` turns the stems of a family file into the names of one checkpoint, knows the shape that
the config implies for each, and checks the headers against it. Nothing here reads tensor data.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from headatlas.architectures.family import MLP, Experts, Linear, Norm, Other, Section, Value
from headatlas.architectures.layouts import linear_shape, stored_as, value_width
from headatlas.architectures.sizes import ExpertSizes, ModelSizes, read_sizes
from headatlas.errors import HeadatlasError
from headatlas.weights.source import Checkpoint, TensorInfo

Shape = tuple[int | None, ...]
"""Expected sizes; None for a size that neither the config nor the family says."""
XIELU = ("alpha_p", "alpha_n", "beta", "eps")
"""Names of the parameters of the activation xIELU."""
_NAMED = 5


@dataclass(frozen=True)
class LayerParts:
    """The family's alternatives that a layer has."""

    value: Value | None  # the value projection; None in a layer without attention heads
    experts: Experts | None  # the mixture of experts; None where the MLP is dense
    has_mlp: bool


class Inventory:
    """Names, shapes and sizes of one checkpoint, read through its family's section."""

    def __init__(self, checkpoint: Checkpoint, section: Section) -> None:
        self.checkpoint = checkpoint
        self.section = section
        self.stored: Mapping[str, TensorInfo] = checkpoint.source.infos()
        embedded = (each for each in section.prefixes if section.name(section.embed, each) in self.stored)
        self.prefix = next(embedded, section.prefixes[0])
        self.sizes: ModelSizes = read_sizes(checkpoint, section.config, dict(self._stored_sizes()))
        self._check_counts()
        # Layer → its tensors that do in place of attention, or beside it, what attention does.
        self.other_mixers = self._tensors_of_layers_without_heads()
        self.layers = [self._find_parts(layer) for layer in range(self.sizes.dims.n_layers)]
        # A stored unembedding counts even if the config calls it tied: so does transformers.
        stems = (stem for stem in section.unembed.stems if self.name(stem) in self.stored)
        self.unembed_stem = next(stems, None if self.sizes.tied else section.unembed.stems[0])
        # All tensors that a forward pass needs, with their shapes (None: not checked).
        self.expected: dict[str, Shape | None] = dict(self._expected())

    def name(self, stem: str, layer: int | None = None, kind: str = "weight") -> str:
        """The stored name of a stem's weight or bias."""
        return self.section.name(stem, self.prefix, layer, kind)

    def block(self, layer: int) -> str:
        """The beginning of the stored names of a decoder block's tensors."""
        return self._fill(self.section.block, layer)

    def has(self, condition: str, name: str) -> bool:
        """Whether a tensor under this condition is part of the model."""
        if condition in ("always", "never"):
            return condition == "always"
        return name in self.stored if condition == "stored" else self.sizes.flags[condition]

    def holds(self, condition: str) -> bool:
        """Whether a condition on the config alone holds."""
        return self.has(condition, "")

    @property
    def expert_sizes(self) -> ExpertSizes:
        """Sizes of the experts, in a model that has some."""
        if self.sizes.experts is None:
            raise HeadatlasError(
                f"{self.checkpoint.spec}: there is a mixture of experts, but the config speaks of none; "
                "check that config and weights belong together."
            )
        return self.sizes.experts

    def mlp_norm(self, layer: int) -> Norm | None:
        """The norm whose output feeds a layer's MLP; None where the layer has none."""
        mlp = self.section.mlp
        norm = self.section.attention_norm if self.holds(mlp.parallel) else mlp.norm
        return norm if norm is not None and self._has_norm(norm, layer) else None

    def _has_norm(self, norm: Norm, layer: int) -> bool:
        return norm.layers == "all" or self.layers[layer].value is None

    def weight(self, norm: Norm, layer: int | None) -> str | None:
        """The name of a norm's weight, or None if it has none."""
        name = self.name(self._stem(norm, layer), layer)
        return name if self.has(norm.weight, name) else None

    def bias(self, part: Linear | Norm | Value | Other, layer: int | None) -> str | None:
        """The name of a part's bias, or None if it has none."""
        name = self.name(self._stem(part, layer), layer, "bias")
        return name if self.has(part.bias, name) else None

    def _stem(self, part: Linear | Norm | Value | Other, layer: int | None) -> str:
        """A part's stem; of alternatives the first that is stored, else the last."""
        stems = (part.stem,) if isinstance(part.stem, str) else part.stem
        return next((stem for stem in stems if self.name(stem, layer) in self.stored), stems[-1])

    def misfits(self) -> tuple[list[str], list[str], list[str]]:
        """Names of the tensors that are missing, not known, and not of the shape that the config implies."""
        expected, stored = self.expected, self.stored
        patterns = self._ignored_patterns()
        missing = [name for name in expected if name not in stored]
        unknown = [name for name in stored if name not in expected and not _matches(name, patterns)]
        shaped = ((name, shape) for name, shape in expected.items() if name in stored and shape is not None)
        return missing, unknown, [name for name, shape in shaped if not _fits(stored[name].shape, shape)]

    def check(self) -> None:
        """Compare the headers with what the family and the config say."""
        missing, unknown, misshapen = self.misfits()
        if missing or unknown:
            found = [f"tensors missing: {_some(missing)}"] if missing else []
            found += [f"unknown tensors: {_some(unknown)}"] if unknown else []
            where = self.stored[unknown[0]].file if unknown else self.checkpoint.spec
            raise HeadatlasError(
                f"{where}: does not match the config of a {self.checkpoint.architecture!r} model "
                f"({'; '.join(found)}); check that config and weights belong together and that the file is "
                "complete."
            )
        for name in misshapen:
            implied = ", ".join("any" if size is None else str(size) for size in self.expected[name] or ())
            raise HeadatlasError(
                f"{self.stored[name].file}: tensor {name!r} has shape {list(self.stored[name].shape)}, but "
                f"the config implies [{implied}]; check that config and weights belong together."
            )

    def aside(self) -> list[str]:
        """Names of the stored tensors that belong to towers for images or sound."""
        aside = list(self.section.aside)
        return [name for name in self.stored if name not in self.expected and _matches(name, aside)]

    def _linears_of(self, mlp: MLP | Experts, width: int) -> list[tuple[Linear, int, int]]:
        """The projections of an MLP or an expert of this hidden width, with their output and input sizes."""
        d_model = self.sizes.dims.d_model
        sizes = [(mlp.gate, width, d_model), (mlp.gate_up, 2 * width, d_model)]
        sizes += [(mlp.up, width, d_model), (mlp.down, d_model, width)]
        return [(linear, d_out, d_in) for linear, d_out, d_in in sizes if linear is not None]

    def mlp_tensors(self, layer: int) -> Iterator[tuple[str, Shape | None]]:
        """Names and shapes of all tensors of a layer's MLP or mixture of experts, its norm included."""
        parts, mlp = self.layers[layer], self.section.mlp
        if not parts.has_mlp:
            return
        yield from self._norm(self.mlp_norm(layer), layer)
        if parts.experts is None:
            yield from self._linears(self._linears_of(mlp, self.sizes.d_mlp), layer)
            if mlp.xielu is not None:
                for name in XIELU:
                    yield f"{self._fill(mlp.xielu, layer)}.{name}", None
        else:
            yield from self._experts(parts.experts, layer)

    def head_tensors(self, layer: int) -> Iterator[tuple[str, Shape | None]]:
        """Names and shapes of the tensors that make a layer's W_V, b_V and W_O, and of b_O."""
        value, sizes, dims = self.layers[layer].value, self.sizes, self.sizes.dims
        if value is None:
            return
        if value.down is not None and value.norm is not None:
            latent, key, rotary = sizes.latent, sizes.key_width, sizes.rotary_width
            rows = None if key is None else dims.n_heads * (key + dims.d_head)
            beside = None if rotary is None or latent is None else latent + rotary
            by_head = value.layout == "latent_by_head"
            shape = (dims.n_heads, dims.d_head, latent) if by_head else (rows, latent)
            yield self.name(value.stem, layer), shape
            yield from self._weight_and_bias(value.down, layer, (beside, dims.d_model), beside)
            yield self.name(self._stem(value.norm, layer), layer), (latent,)
        else:
            width = value_width(value.layout, dims)
            whole = linear_shape(stored_as(value.layout), width, dims.d_model)
            yield from self._weight_and_bias(value, layer, whole, width)
        yield from self._linears([(self.section.output, dims.d_model, dims.n_heads * dims.d_head)], layer)

    def _check_counts(self) -> None:
        """Every layer and expert has a tensor of its own; no count of the config is believed blindly."""
        counts = {"layers": self.sizes.dims.n_layers}
        if self.sizes.experts is not None and any(e.layout == "separate" for e in self.section.experts):
            counts["experts"] = self.sizes.experts.n_experts
        for what, count in counts.items():
            if count > len(self.stored):
                raise HeadatlasError(
                    f"{self.checkpoint.spec}: the config speaks of {count:,} {what}, but only "
                    f"{len(self.stored):,} tensors are stored; check that config and weights belong together."
                )

    def _fill(self, stem: str, layer: int | None) -> str:
        return self.section.filled(stem, self.prefix, layer)

    def _stored_sizes(self) -> Iterator[tuple[str, int]]:
        """Numbers of rows that a family file may take from the tensors themselves."""
        up = self.section.mlp.up
        names = {"embed_rows": self.name(self.section.embed)}
        if up is not None:
            names["mlp_rows"] = self.name(up.stem, 0)
        for size, name in names.items():
            if name in self.stored and self.stored[name].shape:
                yield size, self.stored[name].shape[0]

    def _find_parts(self, layer: int) -> LayerParts:
        """The alternatives of a layer, known by what is stored; the first of each where nothing is."""
        section = self.section
        values = [value for value in section.value if self.holds(value.when)]
        stored = [value for value in values if self.name(value.stem, layer) in self.stored]
        value = (stored or values)[0] if stored or layer not in self.other_mixers else None
        experts = self._find_experts(layer)
        dense = [linear.stem for linear in section.mlp.linears]
        if not dense and experts is None and section.experts:
            experts = section.experts[0]
        absent = section.sparse and not any(self.name(stem, layer) in self.stored for stem in dense)
        return LayerParts(value, experts, has_mlp=experts is not None or not absent)

    def _find_experts(self, layer: int) -> Experts | None:
        """The form of a layer's mixture of experts; None where no router is stored."""
        forms = [each for each in self.section.experts if self.holds(each.when)]
        routed = [each for each in forms if self.name(each.router.stem, layer) in self.stored]
        for each in routed:
            if self.name(of_expert(each.down, 0).stem, layer) in self.stored:
                return each
        return routed[0] if routed else None

    def _tensors_of_layers_without_heads(self) -> dict[int, list[str]]:
        """Layer → its tensors that take the place of attention."""
        found: dict[int, list[str]] = {}
        if not self.section.without_heads:
            return found
        names = sorted(self.stored)
        for layer in range(self.sizes.dims.n_layers):
            patterns = [self._fill(each, layer) for each in self.section.without_heads]
            block = self.block(layer)
            within = names[bisect_left(names, block) : bisect_left(names, f"{block}\uffff")]
            if there := [name for name in within if _matches(name, patterns)]:
                found[layer] = there
        return found

    def _expected(self) -> Iterator[tuple[str, Shape | None]]:
        section, dims = self.section, self.sizes.dims
        yield self.name(section.embed), (dims.vocab_size, dims.d_model)
        if self.unembed_stem is not None:
            yield self.name(self.unembed_stem), (dims.vocab_size, dims.d_model)
        bias = self.name(self.unembed_stem or section.unembed.stems[0], kind="bias")
        if self.has(section.unembed.bias, bias):
            yield bias, (dims.vocab_size,)
        yield from self._norm(section.final_norm, None)
        yield from self._norm(section.embed_norm, None)
        for block in range(dims.n_layers):
            yield from self._layer(block)
        for other in section.other:
            for layer in self._layers_of(other.stem):
                if "*" not in other.stem:
                    if self.has(other.present, self.name(other.stem, layer)):
                        yield from self._weight_and_bias(other, layer)
                elif self.holds(other.present):
                    pattern = self._fill(other.stem, layer)
                    yield from ((name, None) for name in self.stored if fnmatchcase(name, pattern))

    def _layer(self, layer: int) -> Iterator[tuple[str, Shape | None]]:
        section = self.section
        norms = [section.attention_norm]
        if (value := self.layers[layer].value) is not None:
            norms.append(section.post_attention_norm)
            yield from self.head_tensors(layer)
            for stem in value.beside:
                yield from self._weight_and_bias(Linear(stem=stem, bias=value.bias), layer)
        for norm in norms:
            if norm is not None and self._has_norm(norm, layer):
                yield from self._norm(norm, layer)
        yield from self.mlp_tensors(layer)
        yield from ((name, None) for name in self.other_mixers.get(layer, ()))

    def _weight_and_bias(
        self,
        part: Linear | Value | Other,
        layer: int | None,
        shape: Shape | None = None,
        width: int | None = None,
    ) -> Iterator[tuple[str, Shape | None]]:
        """A projection's weight, and its bias of this width if it has one."""
        yield self.name(part.stem, layer), shape
        if (bias := self.bias(part, layer)) is not None:
            yield bias, None if shape is None else (width,)

    def _norm(self, norm: Norm | None, layer: int | None) -> Iterator[tuple[str, Shape]]:
        names = () if norm is None else (self.weight(norm, layer), self.bias(norm, layer))
        yield from ((name, (self.sizes.dims.d_model,)) for name in names if name is not None)

    def _linears(
        self, linears: list[tuple[Linear, int, int]], layer: int
    ) -> Iterator[tuple[str, Shape | None]]:
        for linear, d_out, d_in in linears:
            yield from self._weight_and_bias(linear, layer, linear_shape(linear.layout, d_out, d_in), d_out)

    def _experts(self, experts: Experts, layer: int) -> Iterator[tuple[str, Shape | None]]:
        sizes, d_model = self.expert_sizes, self.sizes.dims.d_model
        yield from self._linears([(experts.router, sizes.n_experts, d_model)], layer)
        if experts.correction is not None:
            axes = (*[1] * (experts.correction_axes - 1), sizes.n_experts)
            yield self.name(experts.correction, layer), axes
        for linear, d_out, d_in in self._linears_of(experts, sizes.width):
            yield from self._of_all_experts(experts, linear, d_out, d_in, layer)
        if experts.shared is not None and sizes.shared_width:
            yield from self._linears(self._linears_of(experts.shared, sizes.shared_width), layer)
            if experts.shared_gate is not None:
                yield from self._linears([(experts.shared_gate, 1, d_model)], layer)

    def _of_all_experts(
        self, experts: Experts, linear: Linear, d_out: int, d_in: int, layer: int
    ) -> Iterator[tuple[str, Shape | None]]:
        """One projection of every expert: a tensor each, or all in one."""
        sizes = self.expert_sizes
        if experts.layout == "flat":
            yield self.name(linear.stem, layer), (sizes.n_experts * sizes.width, self.sizes.dims.d_model)
        elif experts.layout == "separate":
            weight, bias = (self.name(linear.stem, layer, kind) for kind in ("weight", "bias"))
            for number in map(str, range(sizes.n_experts)):
                yield weight.replace("{expert}", number), linear_shape(linear.layout, d_out, d_in)
                if self.has(linear.bias, of_bias := bias.replace("{expert}", number)):
                    yield of_bias, (d_out,)
        else:
            shape = (d_out, d_in) if experts.layout == "stacked" else (d_in, d_out)
            yield self.name(linear.stem, layer), (sizes.n_experts, *shape)
            if (of_all := self.bias(linear, layer)) is not None:
                yield of_all, (sizes.n_experts, d_out)

    def _ignored_patterns(self) -> list[str]:
        patterns = []
        for pattern in (*self.section.ignored, *self.section.aside):
            patterns += [self._fill(pattern, layer) for layer in self._layers_of(pattern)]
        first, more = self.sizes.dims.n_layers, self.sizes.further_layers
        return patterns + [f"{self.block(layer)}*" for layer in range(first, first + more)]

    def _layers_of(self, stem: str) -> list[int | None]:
        """Every layer for a stem inside the blocks, else one entry for the whole model."""
        return list(range(self.sizes.dims.n_layers)) if "{block}" in stem else [None]


def of_expert(linear: Linear, expert: int) -> Linear:
    """The projection of one expert."""
    return linear.model_copy(update={"stem": linear.stem.replace("{expert}", str(expert))})


def _fits(found: Sequence[int], wanted: Shape) -> bool:
    return len(found) == len(wanted) and all(b is None or a == b for a, b in zip(found, wanted, strict=True))


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


Pieces = tuple[tuple[str, ...], ...]
"""For every expert the tensors that are put below each other; of a single tensor one of one."""


def pieces_of(inventory: Inventory, layer: int) -> dict[str, Pieces]:
    """Names of a layer's tensors as modules have them → what files have instead."""
    stored, found = inventory.layers[layer].experts, dict[str, Pieces]()
    if stored is None:
        return found
    for form in inventory.section.experts:
        if form is not stored and form.layout == "stacked" and inventory.holds(form.when):
            found |= _renamed(inventory, layer, form, stored)
            if stored.layout == "separate":
                found |= _of_experts(inventory, layer, form, stored)
    return found


def _renamed(inventory: Inventory, layer: int, form: Experts, stored: Experts) -> dict[str, Pieces]:
    """Tensors that both forms have whole."""
    pairs = [(form.router, stored.router), (form.shared_gate, stored.shared_gate)]
    if form.shared is not None and stored.shared is not None:
        pairs += zip(form.shared.linears, stored.shared.linears, strict=True)
    if stored.layout != "separate":
        pairs += [(form.gate_up, stored.gate_up), (form.down, stored.down)]
    stems = [(here.stem, there.stem) for here, there in pairs if here is not None and there is not None]
    if form.correction is not None and stored.correction is not None:
        stems.append((form.correction, stored.correction))
    return {
        inventory.name(here, layer, kind): ((inventory.name(there, layer, kind),),)
        for here, there in stems
        for kind in ("weight", "bias")
    }


def _of_experts(inventory: Inventory, layer: int, form: Experts, stored: Experts) -> dict[str, Pieces]:
    """Tensors that the stored form has in pieces, one or two for each expert."""
    together = {form.gate_up: (stored.gate, stored.up), form.up: (stored.up,), form.down: (stored.down,)}
    return {
        inventory.name(whole.stem, layer): tuple(
            tuple(inventory.name(of_expert(part, number).stem, layer) for part in parts if part is not None)
            for number in range(inventory.expert_sizes.n_experts)
        )
        for whole, parts in together.items()
        if whole is not None
    }
