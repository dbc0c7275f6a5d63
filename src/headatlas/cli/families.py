"""``families``: which models can be read, and a look at one that cannot yet."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.options import AsJson
from headatlas.cli.output import print_json, print_table, print_text, say
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    from headatlas.architectures.family import Family
    from headatlas.architectures.family_check import Outcome, TensorGroup
    from headatlas.weights import Checkpoint

NOT_EXPLAINED = 1
"""Exit code when tensors stay unexplained or the comparison with transformers finds a difference."""


def register(app: typer.Typer) -> None:
    """Add the command group of this module."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The models that can be read.")
    group.command("list")(list_families)
    group.command("check")(check_family)
    app.add_typer(group, name="families")


def list_families(as_json: AsJson = False) -> None:
    """List the model families: architectures, formats, and the oracles they passed.

    An oracle is a tiny random model whose heads, norms and first MLP, as headatlas reads them from a file,
    equal what the Hugging Face modules compute. The numbers say how many of a family passed, per format.
    """
    from headatlas.architectures.registry import families, oracles, tested_with

    known = [(family, oracles(family)) for family in families()]
    if as_json:
        rows = [
            {
                "family": family.name,
                "title": family.title,
                "architectures": sorted(family.aliases.architectures),
                "gguf": sorted(family.aliases.gguf) if family.gguf else [],
                "oracles": proof.model_dump(mode="json"),
            }
            for family, proof in known
        ]
        print_json({"transformers": tested_with(), "rows": rows})
        return
    print_table(
        ["family", "architectures", "oracles", "GGUF", "oracles"],
        [
            [
                family.name,
                _first(sorted(family.aliases.architectures)),
                len(proof.safetensors),
                _first(sorted(family.aliases.gguf)) if family.gguf else "–",
                len(proof.gguf) if family.gguf else "–",
            ]
            for family, proof in known
        ],
    )


def _first(names: list[str]) -> str:
    """The first name and how many more there are; ``--json`` has them all."""
    return names[0] + (f" +{len(names) - 1}" if len(names) > 1 else "")


def check_family(
    path: Annotated[
        str,
        typer.Argument(metavar="PATH", help="A folder, a file, or any other form of MODEL."),
    ],
    write: Annotated[
        Path | None,
        typer.Option(
            "--write", metavar="FILE.toml", help="Write the proposed file; the family gets its name."
        ),
    ] = None,
    family: Annotated[
        Path | None,
        typer.Option(
            "--family", metavar="FILE.toml", help="Check this family file instead of proposing one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what headatlas recognises in a checkpoint, tensor by tensor, and propose a family file.

    The names of the tensors are compared with those of every family. What is proposed is then held against
    the checkpoint's headers and, if transformers can build the architecture, against a tiny random model of
    the same config; of a GGUF file, against its own first layers as transformers converts them. The exit
    code is 0 if everything is explained and agrees, else 1.
    """
    from headatlas.architectures.family_check import best, roles_in
    from headatlas.weights import open_checkpoint

    checkpoint = open_checkpoint(path)
    if family is not None:
        result = _own(checkpoint, family)
    else:
        proposal, outcomes, not_run = best(checkpoint)
        result = _result(checkpoint, proposal.family, outcomes, not_run) | {
            "closest": proposal.base.name,
            "tensors": _tensors(proposal.groups, roles_in(proposal.family, checkpoint)),
            "unexplained": list(proposal.unexplained),
            "proposal": proposal.text or None,
        }
    if write is not None:
        _write(write, result["proposal"])
    if as_json:
        print_json(result)
    else:
        _print(result, write)
    if result["accounting"] is not None or any(each["problem"] for each in result["oracle"]):
        raise typer.Exit(NOT_EXPLAINED)


def _own(checkpoint: Checkpoint, file: Path) -> dict[str, Any]:
    """Report on a family file of the user's own."""
    from headatlas.architectures.family_check import inspect_tensors, roles_in, try_family
    from headatlas.architectures.registry import parse_family

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HeadatlasError(f"{file}: cannot be read as text ({error}); give a family file.") from error
    family = parse_family(text, file.name)
    outcomes, not_run = [], None
    try:
        outcomes = try_family(family, checkpoint)
    except HeadatlasError as error:
        not_run = str(error)
    return _result(checkpoint, family, outcomes, not_run) | {
        "closest": None,
        "tensors": _tensors(inspect_tensors(checkpoint), roles_in(family, checkpoint)),
        "unexplained": [],
        "proposal": None,
    }


def _result(
    checkpoint: Checkpoint, family: Family, outcomes: list[Outcome], not_run: str | None
) -> dict[str, Any]:
    """Report on a checkpoint; ``accounting`` and ``oracle_not_run`` are None where all is well."""
    from headatlas.architectures.family_check import accounting, subject

    return {
        "model": checkpoint.name,
        "format": checkpoint.format,
        "architecture": checkpoint.architecture,
        "family": family.name,
        "accounting": accounting(family, checkpoint),
        "oracle_of": subject(checkpoint),
        "oracle": [vars(each) for each in outcomes],
        "oracle_not_run": not_run,
    }


def _tensors(groups: tuple[TensorGroup, ...], roles: Mapping[str, str]) -> list[dict[str, Any]]:
    """The tensors with what the chosen family calls them, and what all families do."""
    return [
        {
            "name": each.pattern,
            "count": each.count,
            "shapes": [list(shape) for shape in each.shapes],
            "dtype": each.dtype,
            "is": roles.get(each.pattern),
            "meanings": {role: list(by) for role, by in each.meanings.items()},
        }
        for each in groups
    ]


def _print(result: dict[str, Any], write: Path | None) -> None:
    new = f", which is not known; closest is {result['closest']}" if result["proposal"] else ""
    say(f"{result['model']} ({result['format']}): {result['architecture']}{new}; family {result['family']}")
    rows = []
    for each in result["tensors"]:
        shapes = ", ".join("×".join(map(str, shape)) for shape in each["shapes"])
        means = each["is"] or "; ".join(each["meanings"]) or "not known"
        by = sorted({name for names in each["meanings"].values() for name in names})
        rows.append([each["name"], each["count"], shapes, means, _some(by)])
    print_table(["tensor", "count", "shape", "is", "as in"], rows)
    if result["proposal"]:
        print_text("\n" + result["proposal"].rstrip("\n") + "\n")
    if write is not None:
        say(f"written: {write}")
    say(f"accounting: {result['accounting'] or 'every tensor is used or declared ignored'}")
    for each in result["oracle"]:
        how = each["problem"] or "agrees"
        far = "" if each["distance"] is None else f" (relative difference {each['distance']:.1e})"
        say(f"{result['oracle_of']}, {each['part']}: {how}{far}")
    if result["oracle_not_run"]:
        say(f"{result['oracle_of']}: not compared. {result['oracle_not_run']}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _write(path: Path, text: str | None) -> None:
    """Write a proposal under its own name, which is that of the file."""
    import re

    from headatlas.files import atomic_write

    if not text:
        raise HeadatlasError("`write`: there is nothing to propose, the family is known; leave it out.")
    if path.suffix != ".toml" or not re.fullmatch(r"\w+", path.stem):
        raise HeadatlasError(f"`write={path}`: give a file name like my_family.toml.")
    if path.exists():
        raise HeadatlasError(f"`write={path}`: the file is there already; choose another name.")
    named = re.sub(r'^name = ".*"$', f'name = "{path.stem}"', text, count=1, flags=re.MULTILINE)
    with atomic_write(path) as temporary:
        temporary.write_text(named, encoding="utf-8")
