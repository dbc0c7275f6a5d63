"""The choices people make: how an atlas is read, where a map is computed, which layers.

Each choice is declared here once, with the words that explain it. Python takes the classes as they are; the
command line makes its options from their fields (:mod:`headatlas.cli.options`). Nothing heavy is imported.

Errors name a parameter in backticks, with a value where there is one: `max_memory`, `lens=maps`. The
command line writes these as its own options.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

from headatlas.errors import HeadatlasError

CEILING = 32
"""Ranks are stored exactly below this; a larger k needs a new map (``ceiling=``)."""
MAX_CEILING = 250
TAU = 0.15
"""A head implements a relation from this score on (arXiv:2412.11965, section 3)."""
Q_MAX = 0.01
"""Largest false discovery rate at which a calibrated head counts."""
FLOOR = 0.03
"""Head × relation cells scoring below this are not calibrated: their p is 1."""
MANY_RELATIONS = 40
"""Relations are sampled where more than these are asked for."""
SAMPLE = 100
"""So many sources of each are asked then: a score of a half is known to ± 0.1 (95 %)."""
INFERENCE_SAMPLE = 50
"""So many sources of each does ``evidence inference`` ask: a score of a half is known to ± 0.14 (95 %)."""
LEAST_MEMORY = 1 << 20
"""A smaller ``max_memory`` is a missing unit."""

LEAST_DPI, MOST_DPI = 30, 2400
LEAST_ASKED = 20
"""A task of fewer questions is not ablated."""

Colours = Literal["green", "blue", "grey"]
Criterion = Literal["calibrated", "tau"]
FigureKind = Literal[
    "categories", "relations", "layers",
    "behaviours", "salience", "context", "without-context", "attention", "ablation",
]  # fmt: skip
"""The figures of an atlas: those of its map, then those of what was measured."""
Panels = Literal["category", "subcategory", "relation"]
LensName = Literal["neutral", "maps"]
TargetPolicy = Literal["single", "first-token"]
Method = Literal["zero", "mean"]
TokenChoice = Literal["wordlike", "initial", "all"]
Sources = int | Literal["all"] | None
RecipeForm = Literal["transformers", "transformer-lens", "nnsight", "checkpoint"]
Action = Literal["silence", "scale", "watch"]
"""Of a recipe: what it does to heads."""
Layers = str | int | range | slice | Iterable[int] | None


def _words(help_text: str, metavar: str | None = None) -> dict[str, str | None]:
    """Metadata of a field: what the command line shows for it."""
    return {"help": help_text, "metavar": metavar}


def _check_k(name: str, k: Any) -> None:
    if not isinstance(k, int) or isinstance(k, bool):
        raise HeadatlasError(f"`{name}` is {k!r}: it must be a whole number.")
    if k < 1:
        raise HeadatlasError(f"`{name}` is {k}: it must be at least 1.")
    if k > MAX_CEILING:
        raise HeadatlasError(f"`{name}` is {k}: it must be at most {MAX_CEILING}.")


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, which files can hold; anything else as it is, to be refused."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


@dataclass(frozen=True)
class Thresholds:
    """Thresholds from which a head counts: how an atlas is read. All can change after mapping.

    Attributes:
        k: A target counts when its rank is below k (relations other than copying).
        k_copy: The same for copying relations.
        tau: Smallest score at which a head implements a relation.
        q_max: Largest q at which it does, under the calibrated criterion.
        criterion: ``"calibrated"`` (score ≥ τ and q ≤ q_max) or ``"tau"`` (score ≥ τ alone).

    Raises:
        HeadatlasError: A k is no whole number from 1 to 250, or τ or q lies outside [0, 1].
    """

    k: int = field(
        default=10, metadata=_words("A target counts in the top N (all relations but copying).", "N")
    )
    k_copy: int = field(default=1, metadata=_words("The same for copying relations.", "N"))
    tau: float = field(default=TAU, metadata=_words("Smallest score at which a head is called.", "X"))
    q_max: float = field(default=Q_MAX, metadata=_words("Largest q at which a head is called.", "X"))
    criterion: Criterion = field(
        default="calibrated", metadata=_words("calibrated: score and q decide. tau: the score alone.")
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            object.__setattr__(self, each.name, _plain(getattr(self, each.name)))
        for name in ("k", "k_copy"):
            _check_k(name, getattr(self, name))
        for name in ("tau", "q_max"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise HeadatlasError(f"`{name}` is {value!r}: it must be a number.")
            if not 0.0 <= value <= 1.0:
                raise HeadatlasError(f"`{name}` is {value}: it must lie between 0 and 1.")
        if self.criterion not in get_args(Criterion):
            raise HeadatlasError(f"`criterion` is {self.criterion!r}: use 'calibrated' or 'tau'.")

    @classmethod
    def preset(cls, name: str) -> Thresholds:
        """The thresholds of a preset: ``"default"``, ``"maps-paper"`` or ``"maps-paper-llama3"``."""
        return preset(name).thresholds

    def changed(self, **changes: Any) -> Thresholds:
        """A copy with the given fields replaced; None leaves a field as it is."""
        known = [each.name for each in fields(self)]
        if unknown := [name for name in changes if name not in known]:
            raise HeadatlasError(f"there is no threshold {unknown[0]!r}; use {', '.join(known)}.")
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def check(self, ceiling: int) -> None:
        """Raise HeadatlasError for a k above the ceiling up to which ranks are stored."""
        for name in ("k", "k_copy"):
            k = getattr(self, name)
            if k > ceiling:
                raise HeadatlasError(
                    f"`{name}` is {k}, above the ceiling {ceiling} up to which ranks are stored: "
                    f"use a k of at most {ceiling}, or map again with `ceiling={k}`."
                )

    def k_for(self, copying: bool) -> int:
        """The k a relation is scored with."""
        return self.k_copy if copying else self.k

    def describe(self) -> str:
        """The criterion as it is printed under figures and tables."""
        rule = f"score ≥ {self.tau:g}"
        if self.criterion == "calibrated":
            rule += f" and q ≤ {self.q_max:g}"
        return f"k = {self.k} (copying {self.k_copy}), {rule}"


@dataclass(frozen=True)
class Compute:
    """Device, memory and cluster of a map. None of it changes a rank.

    Attributes:
        device: ``"cpu"``, ``"cuda"`` (all GPUs of this machine, layers shared out among them), ``"cuda:N"``,
            ``"mps"``, or ``"auto"``: a GPU if there is one.
        max_memory: Bytes of main memory to stay below, or text such as ``"6GB"``; None: what there is. An
            estimate, kept by working on fewer layers and heads at a time, and by streaming.
        stream: For the neutral lens: send all sources through the model layer by layer, reading each layer
            once (True), or load the whole model (False). None streams what does not fit into memory.
        cluster: ``"auto"`` or the address of a running Ray cluster, whose machines rank the layers; this
            process reads the model and writes the atlas. None computes here.

    Raises:
        HeadatlasError: The device has no known form, or the memory is no amount of memory.
    """

    device: str = field(
        default="auto",
        metadata=_words(
            "Where to compute. cuda: all GPUs, layers shared out. auto: a GPU if there is one.",
            "auto|cpu|cuda|cuda:N|mps",
        ),
    )
    max_memory: str | int | None = field(
        default=None,
        metadata=_words("Main memory to stay below, such as 6GB: fewer heads at a time, streaming.", "SIZE"),
    )
    stream: bool | None = field(
        default=None,
        metadata=_words(
            "neutral: run the model layer by layer, or load it whole. Default: by the memory there is."
        ),
    )
    cluster: str | None = field(
        default=None,
        metadata=_words("Map the layers on the machines of a running Ray cluster.", "auto|ADDRESS"),
    )

    def __post_init__(self) -> None:
        if re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", str(self.device)) is None:
            raise HeadatlasError(f"`device` is {str(self.device)!r}: use auto, cpu, cuda, cuda:N or mps.")
        if self.max_memory is not None:
            memory_of(self.max_memory)

    @property
    def memory(self) -> int | None:
        """``max_memory`` in bytes."""
        return None if self.max_memory is None else memory_of(self.max_memory)


@dataclass(frozen=True)
class Look:
    """The look of a figure of an atlas. None of it changes what is plotted.

    Attributes:
        caption: Whether the line under the figure is written.
        letters: Whether panels have letters: a, b, c.
        colours: ``"green"``, ``"blue"`` or ``"grey"``.
        dark: Light colours on a dark ground.
        used_levels: Leave numbers of categories that no head has out of the legend.
        transparent: No ground under the figure.
        dpi: Dots per inch of a PNG.

    Raises:
        HeadatlasError: There are no such colours, or dpi is no whole number from 30 to 2400.
    """

    caption: bool = field(default=True, metadata=_words("Write model, lens and thresholds under the figure."))
    letters: bool = field(default=False, metadata=_words("Give panels letters: a, b, c."))
    colours: Colours = field(default="green", metadata=_words("The scale of promotion and of categories."))
    dark: bool = field(default=False, metadata=_words("Light colours on a dark ground."))
    used_levels: bool = field(
        default=False, metadata=_words("Only those numbers of categories in the legend that some head has.")
    )
    transparent: bool = field(default=False, metadata=_words("No ground under the figure."))
    dpi: int = field(default=300, metadata=_words("Dots per inch of a PNG.", "N"))

    def __post_init__(self) -> None:
        if self.colours not in get_args(Colours):
            raise HeadatlasError(f"`colours` is {self.colours!r}: use 'green', 'blue' or 'grey'.")
        whole = isinstance(self.dpi, int) and not isinstance(self.dpi, bool)
        if not whole or not LEAST_DPI <= self.dpi <= MOST_DPI:
            raise HeadatlasError(
                f"`dpi` is {self.dpi!r}: it must be a whole number from {LEAST_DPI} to {MOST_DPI}."
            )


@dataclass(frozen=True)
class AblationChoices:
    """How tasks are asked and heads ablated. docs/evidence.md says why these."""

    shots: int = field(default=5, metadata=_words("Examples before each question.", "N"))
    method: Method = field(
        default="zero", metadata=_words("What takes the place of a head's output: nothing, or its mean.")
    )
    sources: int = field(default=64, metadata=_words("At most so many questions a relation.", "N"))
    max_heads: int = field(default=32, metadata=_words("At most so many heads are ablated.", "N"))
    draws: int = field(default=5, metadata=_words("Draws of random heads.", "N"))
    seed: int = field(default=0, metadata=_words("Of the draws.", "N"))

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise HeadatlasError(f"`method`: there is no method {self.method!r}; use zero or mean.")
        least = {"shots": 0, "sources": LEAST_ASKED, "max_heads": 1, "draws": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise HeadatlasError(f"`{name}` is {value!r}: it must be a whole number of at least {low}.")


@dataclass(frozen=True)
class Preset:
    """A named set of choices for a whole map."""

    thresholds: Thresholds  # how the atlas is read; ``"tau"`` is the paper's criterion (the score alone)
    lens: LensName
    mask: bool  # whether token ids that no text can produce are kept from competing


PRESETS = {
    "default": Preset(Thresholds(), "neutral", True),
    "maps-paper": Preset(Thresholds(criterion="tau"), "maps", False),
    "maps-paper-llama3": Preset(Thresholds(k=25, k_copy=3, criterion="tau"), "maps", False),
}


def preset(name: str) -> Preset:
    """The preset of that name, or a HeadatlasError that lists the names."""
    try:
        return PRESETS[name]
    except KeyError:
        known = ", ".join(PRESETS)
        raise HeadatlasError(f"`preset`: there is no preset {name!r}; use one of {known}.") from None


def require_type(name: str, value: object, kind: type) -> None:
    """Raise HeadatlasError for a parameter of another type, such as a dict in the place of thresholds."""
    if not isinstance(value, kind):
        raise HeadatlasError(
            f"`{name}` is of the type {type(value).__name__}: give a {kind.__name__}, "
            f"such as {kind.__name__}({fields(kind)[0].name}={fields(kind)[0].default!r})."
        )


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, of Python or of numpy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def memory_of(amount: str | int) -> int:
    """Bytes of ``"6GB"``, ``"512 MiB"``, ``"6e9"`` or a number, a megabyte at least."""
    units = {"": 1, "B": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    units |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
    text = str(amount).upper().replace("E", "e")
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([KMGT]?I?)B?\s*", text)
    try:
        n_bytes = float(found[1]) * units[found[2]] if found else 0.0
    except (KeyError, ValueError):
        n_bytes = 0.0
    if n_bytes < 1:
        raise HeadatlasError(f"`max_memory` {amount}: not an amount of memory; write it like 6GB or 800MB.")
    if n_bytes < LEAST_MEMORY:
        raise HeadatlasError(
            f"`max_memory` {amount}: {n_bytes:,.0f} bytes are too few; write it like 6GB or 800MB."
        )
    return int(n_bytes)


def layers_asked(layers: Layers, n_layers: int) -> list[int]:
    """The layers meant, ascending and each once.

    Args:
        layers: ``"A-B"`` (both included), ``"A"``, a layer, a range, a slice, a list, or None for all.
        n_layers: Layers of the model.

    Raises:
        HeadatlasError: Not of these forms, reversed, empty, or outside the model.
    """
    if layers is None:
        return list(range(n_layers))
    if isinstance(layers, str):
        found: list[Any] = _layers_of_text(layers)
    elif isinstance(layers, slice):
        found = list(range(n_layers))[layers]
    elif isinstance(layers, Iterable):
        found = list(layers)
    else:
        found = [layers]
    if not all(map(is_whole, found)):
        raise HeadatlasError(f"`layers` is {layers!r}: give A-B, a layer, a range, a slice or a list.")
    if not found:
        raise HeadatlasError(f"`layers` is {layers!r}: that is no layer; the model has 0 to {n_layers - 1}.")
    if not all(0 <= layer < n_layers for layer in found):
        raise HeadatlasError(f"`layers` is {layers!r}: the model has layers 0 to {n_layers - 1}.")
    return sorted({int(layer) for layer in found})


def _layers_of_text(text: str) -> list[int]:
    found = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
    if found is None:
        raise HeadatlasError(f"`layers` is {text!r}: write A-B, for example 0-15, or one layer.")
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first:
        raise HeadatlasError(f"`layers` is {text!r}: {last} comes before {first}; write {last}-{first}.")
    return list(range(first, last + 1))
