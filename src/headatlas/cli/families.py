"""``families``: which models can be read, and a look at one that cannot yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headatlas.cli.options import AsJson, argument, option
from headatlas.cli.output import Column, print_json, print_records, print_text, say
from headatlas.errors import HeadatlasError

if TYPE_CHECKING:
    from headatlas.architectures.family import Family
    from headatlas.architectures.family_check import Report
    from headatlas.weights.source import Checkpoint

NOT_EXPLAINED = 1
"""Exit code when tensors stay unexplained or the comparison with transformers finds a difference."""


def list_families(as_json: AsJson = False) -> None:
    """List the model families: architectures, formats, and the oracles they passed.

    An oracle is a tiny random model whose heads, norms and first MLP, as headatlas reads them from a file,
    equal what the Hugging Face modules compute. The numbers say how many of a family passed, per format.
    """
    from headatlas.architectures.family import families, oracles, tested_with

    rows = [
        {
            "family": family.name,
            "title": family.title,
            "architectures": sorted(family.aliases.architectures),
            "gguf": sorted(family.aliases.gguf) if family.gguf else [],
            "oracles": oracles(family).model_dump(mode="json"),
        }
        for family in families()
    ]
    if as_json:
        print_json({"transformers": tested_with(), "rows": rows})
        return
    columns: tuple[Column, ...] = (
        *("family", ("architectures", lambda row: _first(row["architectures"]))),
        ("oracles", lambda row: len(row["oracles"]["safetensors"])),
        ("GGUF", lambda row: _first(row["gguf"])),
        ("oracles", lambda row: len(row["oracles"]["gguf"]) if row["gguf"] else None),
    )
    print_records(columns, rows)


def _first(names: list[str]) -> str | None:
    """The first name and how many more there are; ``--json`` has them all."""
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return names[0] + more if names else None


def check_family(
    path: Annotated[str, argument("PATH", "A folder, a file, or any other form of MODEL.")],
    write: Annotated[
        Path | None, option("--write", "Write the proposed file; the family gets its name.", "FILE.toml")
    ] = None,
    family: Annotated[
        Path | None, option("--family", "Check this family file instead of proposing one.", "FILE.toml")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what headatlas recognises in a checkpoint, tensor by tensor, and propose a family file.

    The names of the tensors are compared with those of every family; the proposed file is like the one that
    explains most of them, and lists what it does not explain. It is then held against
    the checkpoint's headers and, of safetensors, if transformers can build the architecture, against a tiny
    random model of the same config. The exit code is 0 if everything is explained and agrees, else 1.
    """
    from headatlas.architectures.family_check import examine
    from headatlas.weights import open_checkpoint

    checkpoint = open_checkpoint(path)
    report = examine(checkpoint, None if family is None else _read(family))
    if write is not None:
        _write(write, report.proposal)
    found = _found(checkpoint, report)
    if as_json:
        print_json(found)
    else:
        _print(found, write)
    if report.accounting is not None or any(each.problem for each in report.outcomes):
        raise typer.Exit(NOT_EXPLAINED)


def _found(checkpoint: Checkpoint, report: Report) -> dict[str, Any]:
    """Everything that was found of a checkpoint, as JSON has it."""
    tensors = [
        {"name": each.name, "count": each.count, "shapes": each.shapes, "dtype": each.dtype, "is": each.role}
        for each in report.tensors
    ]
    return {
        "model": checkpoint.name,
        "format": checkpoint.format,
        "architecture": checkpoint.architecture,
        "family": report.family.name,
        "closest": report.closest,
        "tensors": tensors,
        "unexplained": [each.name for each in report.tensors if each.role is None],
        "proposal": report.proposal or None,
        "accounting": report.accounting,
        "oracle": [vars(each) for each in report.outcomes],
        "oracle_not_run": report.not_run,
    }


def _read(file: Path) -> Family:
    """A family file of the user's own."""
    from headatlas.architectures.family import parse_family

    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise HeadatlasError(f"{file}: cannot be read as text ({error}); give a family file.") from error
    return parse_family(text, file.name)


def _print(result: dict[str, Any], write: Path | None) -> None:
    new = f", which is not known; closest is {result['closest']}" if result["proposal"] else ""
    say(f"{result['model']} ({result['format']}): {result['architecture']}{new}; family {result['family']}")
    columns: tuple[Column, ...] = (
        *(("tensor", "name"), "count"),
        ("shape", lambda row: ", ".join("×".join(map(str, shape)) for shape in row["shapes"])),
        ("is", lambda row: row["is"] or "not known"),
    )
    print_records(columns, result["tensors"])
    if result["proposal"]:
        print_text("\n" + result["proposal"].rstrip("\n") + "\n")
    if write is not None:
        say(f"written: {write}")
    say(f"accounting: {result['accounting'] or 'every tensor is used or declared ignored'}")
    for each in result["oracle"]:
        how = each["problem"] or "agrees"
        far = "" if each["distance"] is None else f" (relative difference {each['distance']:.1e})"
        say(f"tiny model, {each['part']}: {how}{far}")
    if result["oracle_not_run"]:
        say(f"tiny model: not compared. {result['oracle_not_run']}")


def _write(path: Path, text: str) -> None:
    """Write a proposal under its own name, which is that of the file."""
    import re

    from headatlas.files import atomic_write, reading

    if not text:
        raise HeadatlasError("`write`: there is nothing to propose, the family is known; leave it out.")
    if path.suffix != ".toml" or not re.fullmatch(r"\w+", path.stem):
        raise HeadatlasError(f"`write={path}`: give a file name like my_family.toml.")
    with reading(path):
        there = path.exists()
    if there:
        raise HeadatlasError(f"`write={path}`: the file is there already; choose another name.")
    named = re.sub(r'^name = ".*"$', f'name = "{path.stem}"', text, count=1, flags=re.MULTILINE)
    with atomic_write(path) as temporary:
        temporary.write_text(named, encoding="utf-8")
