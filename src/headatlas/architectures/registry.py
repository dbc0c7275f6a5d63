"""All families, read once from `families/*.toml`: the one a checkpoint asks for, and the oracles each passed.

`oracles.json` is written from the tests' own list of cases (`python -m tests.architectures.proven`); a test
holds the two together, so a family counts as proven only if the tests hold it against the modules.
"""

from __future__ import annotations

import json
import tomllib
from difflib import get_close_matches
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from headatlas.architectures.family import Family, Section
from headatlas.errors import HeadatlasError
from headatlas.weights.gguf_modules import BESIDE_TEXT
from headatlas.weights.source import Checkpoint

Table = dict[str, Any]
_HERE = resources.files("headatlas.architectures")
_JOINED = ("safetensors", "gguf", "config", "flags", "experts", "mlp", "modules")


class Oracles(BaseModel):
    """The tiny random models of a family whose heads, norms and first MLP equal the modules'."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    safetensors: tuple[str, ...] = ()  # cases saved by transformers, and held in memory
    gguf: tuple[str, ...] = ()  # cases written as GGUF
    gguf_read: tuple[str, ...] = ()  # those of them that transformers reads back to the same weights


def oracles(family: Family) -> Oracles:
    """The cases that prove a family; none for one that no test knows."""
    return Oracles.model_validate(_stored()["families"].get(family.name, {}))


def tested_with() -> str:
    """The version of transformers whose modules were the oracles."""
    return str(_stored()["transformers"])


@cache
def unsupported() -> dict[str, str]:
    """Architectures that are known and not supported → why, as the end of a sentence."""
    groups = tomllib.loads((_HERE / "unsupported.toml").read_text("utf-8"))["group"]
    return {name: group["because"] for group in groups for name in group["architectures"]}


@cache
def _stored() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((_HERE / "oracles.json").read_text("utf-8"))
    return stored


@cache
def families() -> tuple[Family, ...]:
    """Every known family, by name."""
    return tuple(_family(table, name) for name, table in _shipped().items())


def parse_family(text: str, file: str) -> Family:
    """One family from the text of its TOML file; ``like`` may name any shipped family."""
    return _family(_table(text, file), file)


@cache
def _shipped() -> dict[str, Table]:
    """The tables of all shipped family files, by file name."""
    files = [file for file in (_HERE / "families").iterdir() if file.name.endswith(".toml")]
    files.sort(key=lambda file: file.name)
    return {file.name: _table(file.read_text("utf-8"), file.name) for file in files}


def _table(text: str, file: str) -> Table:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise HeadatlasError(f"{file}: not valid TOML ({error}); correct the file.") from error


def _family(table: Table, file: str) -> Family:
    """The family of a table, with what it takes over from the family it is like."""
    whole = _completed(table, file)
    aliases = table.get("aliases")
    if "like" in table and isinstance(aliases, dict) and not aliases.get("gguf"):
        whole.pop("gguf", None)
    try:
        family = Family.model_validate(whole)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise HeadatlasError(f"{file}: {where}: {first['msg']}; correct the family file.") from error
    if f"{family.name}.toml" != file:
        raise HeadatlasError(f"{file}: the family is called {family.name!r}; file and name must agree.")
    if family.gguf is None:
        return family
    # In GGUF, what reads images or sound has the same names beside every language model.
    gguf = family.gguf.model_copy(update={"aside": (*family.gguf.aside, *BESIDE_TEXT)})
    return family.model_copy(update={"gguf": gguf})


def _completed(table: Table, file: str, behind: tuple[str, ...] = ()) -> Table:
    """The table over that of the family it is like, table by table; ``false`` takes a table away.

    Names, title, aliases and queries are a family's own. The GGUF section comes along only where the family
    says which GGUF architectures are its.
    """
    if "like" not in table:
        return table
    base = f"{table['like']}.toml"
    if base not in _shipped() or base in (file, *behind):
        raise HeadatlasError(f"{file}: like = {table['like']!r} is no other family; correct the family file.")
    under = _completed(_shipped()[base], base, (file, *behind))
    for section in ("safetensors", "gguf"):  # how a family attends is not taken over
        if section in under:
            under = {**under, section: {key: at for key, at in under[section].items() if key != "queries"}}
    own = ("like", "name", "title", "aliases")
    whole = _over({key: part for key, part in under.items() if key not in own}, table)
    del whole["like"]
    return whole


def _over(under: Table, over: Table) -> Table:
    """A table with another laid over it: tables of parts are joined, parts are replaced as a whole."""
    merged = dict(under)
    for key, part in over.items():
        there = merged.get(key)
        if part is False and isinstance(there, dict | list):
            del merged[key]
        elif isinstance(part, dict) and isinstance(there, dict):
            merged[key] = _over(there, part) if key in _JOINED else part
        else:
            merged[key] = part
    return merged


def find_family(checkpoint: Checkpoint) -> tuple[Family, Section]:
    """The family of a checkpoint and the section for its format (a loaded module counts as safetensors)."""
    wanted = checkpoint.architecture
    if (found := claiming(checkpoint)) is not None:
        _check_model_type(checkpoint, found[0])
        return found
    names = supported(checkpoint.format == "gguf")
    because = unsupported().get(wanted)
    near = get_close_matches(wanted, names, n=3)
    why = f", because {because}" if because else ""
    among = f", among them {', '.join(near)}" if near else ""
    raise HeadatlasError(
        f"{checkpoint.spec}: the architecture {wanted!r} is not supported{why}; supported are {len(names)} "
        f"others{among}, see headatlas families list."
    )


def claiming(checkpoint: Checkpoint) -> tuple[Family, Section] | None:
    """The family that claims a checkpoint's architecture, and the section for its format."""
    for family in families():
        aliases, section = family.aliases, family.section(checkpoint.format)
        gguf = checkpoint.format == "gguf"
        names = aliases.gguf if gguf else (*aliases.architectures, *aliases.model_types)
        if section is not None and checkpoint.architecture in names:
            return family, section
    return None


def _check_model_type(checkpoint: Checkpoint, family: Family) -> None:
    """Refuse a config whose model type, by which transformers makes modules, is that of other models."""
    said = checkpoint.config.get("model_type")
    if not isinstance(said, str) or said in family.aliases.model_types:
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    made = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(said)
    others = any(said in each.aliases.model_types for each in families())
    if (made or others) and made not in family.aliases.architectures:
        raise HeadatlasError(
            f"{checkpoint.spec}: its config names the architecture {checkpoint.architecture!r}, but the "
            f"model type {said!r}, which is that of other models; correct the one that is wrong."
        )


def supported(gguf: bool = False) -> list[str]:
    """Supported architecture names, in GGUF's or Hugging Face's spelling."""
    aliases = [family.aliases for family in families() if family.gguf or not gguf]
    return sorted(name for each in aliases for name in (each.gguf if gguf else each.architectures))
