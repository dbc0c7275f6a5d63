"""Atlases of what a person gives: those that there are, and those of models, which are mapped first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePath
from typing import Any

from headatlas.addresses import output_path, shown
from headatlas.atlas import Atlas
from headatlas.atlas.store import holds_atlas
from headatlas.errors import HeadatlasError
from headatlas.files import check_writable
from headatlas.mapping.run import OtherMapError, map_heads
from headatlas.options import Compute, Preset, Sources
from headatlas.progress import Report
from headatlas.relations import Relation, RelationSpec, resolve_relations
from headatlas.weights.named import aliases


def atlases_given(
    places: Sequence[str],
    *,
    maps: str | Path | None,
    lens: str | None,
    relations: RelationSpec | None,
    sources: Sources,
    preset: Preset,
    compute: Compute,
    progress: Callable[[], AbstractContextManager[Report]],
) -> list[Atlas]:
    """Open every atlas and map every model, all models alike.

    Args:
        places: Folders or addresses of atlases, or models as :func:`headatlas.map_heads` takes them.
        maps: Folder in which each model gets a folder with its atlas; what is mapped there already is not
            mapped again. None keeps the atlases in memory.
        lens, relations, sources: As for :func:`headatlas.map_heads`; None: as in the first atlas among the
            places, or the defaults where all are models.
        preset: Lens and mask where no atlas says them.
        compute: As for :func:`headatlas.map_heads`.
        progress: Gives the function to tell of each map's steps.

    Raises:
        HeadatlasError: A place is neither, a model cannot be mapped, or choices of maps are given where all
            places are atlases.
    """
    models = [place for place in places if not holds_atlas(place)]
    for place in models:
        if "/" not in place and ":" not in place and place not in aliases() and not Path(place).exists():
            raise HeadatlasError(
                f"{place!r} is neither an atlas nor a model here; give the folder of an atlas, a model's "
                f"folder or file, org/name for one on the Hub, or a short name ({', '.join(aliases())})."
            )
    chosen = {"maps": maps, "lens": lens, "relations": relations, "sources": sources}
    if not models and (given := [name for name, value in chosen.items() if value is not None]):
        raise HeadatlasError(f"`{given[0]}` is for models that are mapped, and all of these are atlases.")
    there = {place: Atlas.open(place) for place in places if place not in models}
    like = _like(next(iter(there.values()), None), preset)
    like |= {name: value for name, value in chosen.items() if name != "maps" and value is not None}
    if models:  # before anything is mapped
        like["relations"] = _resolved(like["relations"], given=relations is not None)
    if maps is not None and models:
        check_writable(maps)
    folders = dict(zip(models, folder_names(models), strict=True))
    for model, folder in folders.items():
        out = None if maps is None else output_path(maps) / folder
        with progress() as tell:
            try:
                there[model] = map_heads(model, out=out, compute=compute, progress=tell, **like)
            except OtherMapError as error:
                raise HeadatlasError(
                    f"{out}: the atlas there is of another map ({_difference(error)}); choose another `maps`."
                ) from error
    return [there[place] for place in places]


def _like(atlas: Atlas | None, preset: Preset) -> dict[str, Any]:
    """Lens, mask, relations and sources of an atlas, or those of a map by default."""
    if atlas is None:
        return {"lens": preset.lens, "mask": preset.mask, "relations": "core", "sources": None}
    return {
        "lens": atlas.lens,
        "mask": bool(atlas.provenance["mask"]),
        "relations": atlas.relations["relation"].tolist(),
        "sources": atlas.provenance.get("sources") or "all",
    }


def _resolved(relations: RelationSpec, *, given: bool) -> tuple[Relation, ...]:
    try:
        return resolve_relations(relations)
    except HeadatlasError as error:
        if given:
            raise
        raise HeadatlasError(
            f"the first atlas has relations that are not shipped ({str(error).partition(';')[0]}); give them "
            "with `relations`."
        ) from error


def folder_names(models: Sequence[str]) -> list[str]:
    """A folder's name for each model: the end of its name, with as many parts as tell them apart.

    >>> folder_names(["a/model.gguf", "b/model.gguf"])
    ['a-model.gguf', 'b-model.gguf']
    """
    parts = [[part for part in PurePath(shown(model)).parts if part.strip("/.:")] for model in models]
    longest = max((len(each) for each in parts), default=1)
    for n in range(1, longest + 1):
        names = ["-".join(each[-n:]).replace(":", "-") for each in parts]
        if len(set(names)) == len(set(models)):
            return names
    return [f"{name}-{at}" for at, name in enumerate(names)]


def _difference(error: OtherMapError) -> str:
    """The middle of that error's sentence: in what the maps differ."""
    return str(error).partition(": the atlas there ")[2].partition("; choose ")[0]
