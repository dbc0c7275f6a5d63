"""The atlas on disk: a Zarr group that xarray opens, one chunk per layer, written layer by layer.

A layer's arrays are written first and its ``layer_done`` flag last, so a layer is either complete or will be
done again. The group is created under another name and renamed, so it is either complete or not there. It can
also be read at an address, through fsspec.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from xarray.backends.zarr import ZarrBackendEntrypoint
from zarr.abc.store import Store
from zarr.storage import FsspecStore

from headatlas.addresses import failures, is_url, shown
from headatlas.atlas.layout import Layout
from headatlas.errors import HeadatlasError
from headatlas.files import atomic_folder, reading, unwritten
from headatlas.scoring.scores import RANK_FLAGS, RANK_MISSING

SCHEMA = "headatlas_schema"
SCHEMA_VERSION = 1
ATLAS_NAME = "atlas.zarr"
_FRESH = {"use_listings_cache": False}
CELL_BEYOND = 255
"""Code in the cell arrays: at or above the ceiling, or in a cell below the floor that was not examined."""


@dataclass(frozen=True)
class LayerRanks:
    """The result of mapping one layer: ranks, or codes of :mod:`headatlas.scoring.scores`."""

    promotion: NDArray[np.int16]  # [n_heads, n_pairs]
    suppression: NDArray[np.int16]
    control: NDArray[np.int16]  # [n_pairs] promotion ranks of the no-head control
    cell_promotion: NDArray[np.uint8]  # [n_heads, n_cells] ranks or ``CELL_BEYOND``
    cell_suppression: NDArray[np.uint8]


_PAIRS, _CELLS = ("layer", "head", "pair"), ("layer", "head", "cell")
_NEGATED = "the same for the negated logits"
_LAYER_ARRAYS = {
    "promotion_rank": (
        *("promotion", _PAIRS, np.int16, RANK_MISSING),
        "tokens whose logit is at least the target's; below the ceiling exact",
    ),
    "suppression_rank": ("suppression", _PAIRS, np.int16, RANK_MISSING, _NEGATED),
    "control_rank": (
        *("control", ("layer", "pair"), np.int16, RANK_MISSING),
        "promotion rank of the target in the source state itself, without any head",
    ),
    "cell_promotion_rank": (
        *("cell_promotion", _CELLS, np.uint8, CELL_BEYOND),
        "calibration cells: rank of each target of the relation for each source",
    ),
    "cell_suppression_rank": ("cell_suppression", _CELLS, np.uint8, CELL_BEYOND, _NEGATED),
}
"""Array → its attribute in :class:`LayerRanks`, dimensions, dtype, fill value, description."""

_REQUIRED = (
    *_LAYER_ARRAYS,
    *("layer_done", "layer", "head", "relation", "category", "subcategory", "title", "copying"),
    *("relation_sha256", "n_pairs", "n_sources", "n_targets", "left_out", "dropped", "pair_relation"),
    *("pair_source", "pair_target_id", "pair_source_tokens", "source", "target"),
    *("cell_source_relation", "cell_source_index", "cell_target_relation", "cell_target_id"),
)
_PROVENANCE = ("model", "lens", "ceiling", "thresholds", "mask")

Place = Path | str
"""The place of an atlas or of a part of it: a folder, or its address (text)."""


def within(place: Place, name: str) -> Place:
    """A group inside another."""
    return place / name if isinstance(place, Path) else f"{place}/{name}"


def names_in(place: Place) -> list[str]:
    """Names of the groups and files in a group, sorted; none where it is not there."""
    try:
        if isinstance(place, Path):
            return sorted(each.name for each in place.iterdir())
        files, inside = fsspec.core.url_to_fs(place, **_FRESH)
        return sorted(str(each).rstrip("/").rpartition("/")[2] for each in files.ls(inside, detail=False))
    except failures() as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return []
        why = f"{shown(str(place))}: cannot be listed ({type(error).__name__}); check it and access to it."
        raise HeadatlasError(why) from None


def atlas_path(path: str | Path) -> Place:
    """The ``.zarr`` folder meant by an output folder, or by the folder itself; an address stays one."""
    if isinstance(path, str) and is_url(path):
        address = path.rstrip("/")
        return address if address.endswith(".zarr") else f"{address}/{ATLAS_NAME}"
    given = Path(path)
    inside = given / ATLAS_NAME
    with reading(inside):
        return inside if given.suffix != ".zarr" or inside.is_dir() else given


def is_atlas(where: str | Path) -> bool:
    """Whether a place is meant as an atlas, not as a model: a folder with one, or an address ``….zarr``."""
    if isinstance(where, str) and is_url(where):
        return where.rstrip("/").endswith(".zarr")
    path = Path(atlas_path(where))
    with reading(path):
        return path.is_dir()


def holds_atlas(where: str | Path) -> bool:
    """As :func:`is_atlas`, but an address that names no file is looked at: it may hold an atlas."""
    if is_atlas(where) or not is_url(str(where)) or str(where).endswith((".gguf", ".safetensors")):
        return is_atlas(where)
    try:
        read_store(atlas_path(where))
    except HeadatlasError:
        return False
    return True


def create_store(
    path: Path, layout: Layout, *, n_layers: int, n_heads: int, attributes: Mapping[str, Any]
) -> None:
    """Write an empty atlas (every rank “not mapped”) at ``path``, which must not exist."""
    sizes = {"layer": n_layers, "head": n_heads, "pair": layout.n_pairs, "cell": layout.n_cells}
    done = (None, ("layer",), np.uint8, 0, "1 once a layer's ranks are complete")
    try:
        with atomic_folder(path) as temporary:
            _static_dataset(layout, n_layers, n_heads).to_zarr(temporary, mode="w", consolidated=False)
            group = zarr.open_group(temporary, mode="r+")
            for name, (_, dims, dtype, fill, description) in {**_LAYER_ARRAYS, "layer_done": done}.items():
                shape = tuple(sizes[d] for d in dims)
                group.create_array(
                    name,
                    shape=shape,
                    chunks=(1, *(max(1, n) for n in shape[1:])),
                    dtype=dtype,
                    fill_value=fill,
                    dimension_names=list(dims),
                    attributes={"long_name": description, **_flags(name)},
                )
            group.attrs.update({SCHEMA: SCHEMA_VERSION, "provenance": json.dumps(attributes)})
    except OSError as error:
        raise unwritten(path, error, "choose another `out`") from error


def _flags(name: str) -> dict[str, Any]:
    if name == "layer_done":
        return {}
    if name.startswith("cell"):
        return {"flag_values": [CELL_BEYOND], "flag_meanings": "beyond_ceiling_or_not_examined"}
    return {"flag_values": list(RANK_FLAGS.values()), "flag_meanings": " ".join(RANK_FLAGS)}


def copy_store(dataset: xr.Dataset, provenance: Mapping[str, Any], path: Path, source: Place | None) -> None:
    """Write an atlas at ``path``: a copy of the folder or address ``source``, or of what is in memory."""
    if path.exists():
        raise HeadatlasError(f"{path}: there is an atlas already; choose another folder.")
    try:
        with atomic_folder(path) as temporary:
            if isinstance(source, Path):
                shutil.copytree(source, temporary)
                return
            if source is not None:
                files, inside = fsspec.core.url_to_fs(source, **_FRESH)
                files.get(f"{inside}/", f"{temporary}/", recursive=True)
                return
            chunks = {name: (1, *dataset[name].shape[1:]) for name in (*_LAYER_ARRAYS, "layer_done")}
            encoding = {name: {"chunks": tuple(max(1, n) for n in each)} for name, each in chunks.items()}
            plain = dataset.drop_encoding()
            plain.attrs = {SCHEMA: SCHEMA_VERSION, "provenance": json.dumps(dict(provenance))}
            plain.to_zarr(temporary, mode="w", consolidated=False, encoding=encoding)
    except failures() as error:
        if isinstance(source, str):
            why = f"{shown(source)}: cannot be copied to {path} ({type(error).__name__}); try again."
            raise HeadatlasError(why) from None
        if isinstance(error, OSError):
            raise unwritten(path, error, "choose another folder") from error
        raise


def strings(values: Iterable[str]) -> NDArray[Any]:
    """Strings of variable length: the fixed-width kind has no stable Zarr 3 form yet."""
    return np.array(list(values), dtype=np.dtypes.StringDType())


def _whole(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def _static_dataset(layout: Layout, n_layers: int, n_heads: int) -> xr.Dataset:
    entries = layout.relations
    texts, numbers = (
        ("category", "subcategory", "title", "left_out", "dropped"),
        ("pairs", "sources", "targets"),
    )
    relation = {name: strings([getattr(e, name) for e in entries]) for name in texts}
    relation |= {f"n_{name}": _whole([getattr(e, f"n_{name}") for e in entries]) for name in numbers}
    relation["relation_sha256"] = strings([e.sha256 for e in entries])
    relation["copying"] = np.array([e.copying for e in entries], dtype=bool)
    pair = {
        "pair_relation": layout.pair_relation,
        "pair_source": layout.pair_source,
        "pair_target_id": layout.pair_target_id,
        "pair_source_tokens": layout.pair_source_length,
        "source": strings([source for source, _ in layout.pair_words]),
        "target": strings([target for _, target in layout.pair_words]),
    }
    sources, targets = ([getattr(b, of) for b in layout.blocks] for of in ("sources", "targets"))
    owner = [b.relation for b in layout.blocks]
    cells = {
        "cell_source_relation": ("cell_source", np.repeat(_whole(owner), list(map(len, sources)))),
        "cell_source_index": ("cell_source", np.concatenate([_whole([]), *sources])),
        "cell_target_relation": ("cell_target", np.repeat(_whole(owner), list(map(len, targets)))),
        "cell_target_id": ("cell_target", np.concatenate([_whole([]), *targets]).astype(np.int64)),
    }
    return xr.Dataset(
        {
            **{name: ("relation", values) for name, values in relation.items()},
            **{name: ("pair", values) for name, values in pair.items()},
            **cells,
        },
        coords={
            "layer": np.arange(n_layers, dtype=np.int32),
            "head": np.arange(n_heads, dtype=np.int32),
            "relation": strings([e.name for e in entries]),
        },
    )


class AtlasWriter:
    """Writes layers into an existing store; several processes may write different layers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._group = zarr.open_group(path, mode="r+")
        except OSError as error:
            raise unwritten(path, error, "make it with `headatlas map MODEL -o DIR`") from error
        # Opening an array takes as long as writing a small one.
        self._opened: dict[str, zarr.Array[Any]] = {}

    def done(self) -> NDArray[np.bool_]:
        """[n_layers] which layers are complete."""
        return np.asarray(self._array("layer_done")[:]).astype(bool)

    def is_done(self, layer: int) -> bool:
        """Whether one layer is complete."""
        return bool(self._array("layer_done")[layer])

    def write(self, layer: int, ranks: LayerRanks) -> None:
        """Write one layer, its flag last."""
        try:
            for name, (attribute, *_) in _LAYER_ARRAYS.items():
                self._array(name)[layer] = getattr(ranks, attribute)
            self._array("layer_done")[layer] = np.uint8(1)
        except OSError as error:
            saved = f"layer {layer} is not saved, finished layers are"
            full = f"{saved}: make room and run the same command again"
            raise unwritten(self._path, error, saved, full) from error

    def _array(self, name: str) -> zarr.Array[Any]:
        if name not in self._opened:
            array = self._group[name]
            if not isinstance(array, zarr.Array):
                raise HeadatlasError(f"{self._group.store}: {name} is not an array; this is no atlas.")
            # To find out whether a chunk is empty takes ten times as long as writing it.
            self._opened[name] = array.with_config({"write_empty_chunks": True})
        return self._opened[name]


def read_store(path: Place) -> tuple[xr.Dataset, dict[str, Any]]:
    """Open an atlas: its dataset (arrays read when used) and its provenance."""
    where = shown(str(path))
    nothing = HeadatlasError(f"{where}: there is no atlas here; make one with `headatlas map MODEL -o DIR`.")
    if isinstance(path, Path):
        with reading(path):
            if not path.is_dir():
                raise nothing
    incomplete = f"{where}: this is not a complete headatlas atlas"
    with opening(
        path,
        _no_atlas(where, "zarr.json is missing") if isinstance(path, Path) else nothing,
        lambda why: HeadatlasError(f"{incomplete} ({why}); {_over(where)}."),
    ):
        # An atlas of another version may be one that this version cannot open.
        _check_root(where, zarr.open_group(store_at(path), mode="r").attrs.asdict())
        dataset = open_arrays(path)
        dataset.encoding["source"] = where
        provenance = dict(json.loads(dataset.attrs["provenance"]))
    lacking = [name for name in _REQUIRED if name not in dataset.variables]
    lacking += [f"provenance {name!r}" for name in _PROVENANCE if name not in provenance]
    if lacking:
        raise HeadatlasError(f"{where}: the atlas lacks {', '.join(lacking)}; {_over(where)}.")
    if strange := _strange(provenance):
        raise HeadatlasError(
            f"{where}: its provenance {strange} is not what headatlas writes; map again into another folder."
        )
    return dataset, provenance


@contextmanager
def opening(
    place: Place, missing: HeadatlasError, broken: Callable[[object], HeadatlasError]
) -> Iterator[None]:
    """Say of a group whether it is not there, cannot be read, or is proved broken."""
    try:
        with warnings.catch_warnings():
            # A killed process may leave a half-written file beside the whole one that it was to replace.
            warnings.filterwarnings("ignore", message=".* is not recognized as a component of a Zarr")
            yield
    except HeadatlasError:
        raise
    except failures(AttributeError, KeyError, TypeError) as error:
        found = broken(error)
        if isinstance(error, FileNotFoundError):
            found = missing
        elif isinstance(place, str):
            why = f"cannot be read ({type(error).__name__}); check address and access."
            found = HeadatlasError(f"{shown(place)}: {why}")
        elif isinstance(error, OSError):
            found = _unreadable(place, error)
        # The own text of an error at an address may hold it with its credentials.
        raise found from (None if isinstance(place, str) else error)


def put_array(
    group: zarr.Group, name: str, values: NDArray[Any], dims: Sequence[str], description: str
) -> None:
    """Write an array of numbers in one chunk, in the place of an older one."""
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=tuple(max(1, n) for n in values.shape),
        fill_value=np.nan,
        dimension_names=list(dims),
        attributes={"long_name": description},
        overwrite=True,
    )
    array[...] = values


def open_arrays(place: Place) -> xr.Dataset:
    """A Zarr group as an xarray dataset whose arrays are read when used."""
    # By its name, xarray would look for the engine in the metadata of every installed package.
    engine = ZarrBackendEntrypoint
    return xr.open_dataset(store_at(place), engine=engine, consolidated=False, chunks=None)  # type: ignore[arg-type]


def _check_root(where: str, attributes: Mapping[str, Any]) -> None:
    """Refuse a group that is no atlas, or one of another schema."""
    if SCHEMA not in attributes:
        raise _no_atlas(where, f"its attributes lack {SCHEMA}")
    if attributes[SCHEMA] != SCHEMA_VERSION:
        raise HeadatlasError(
            f"{where}: the atlas has schema {attributes[SCHEMA]}, this headatlas reads {SCHEMA_VERSION}; "
            "use the headatlas version that made it, or map again into another folder."
        )


def _no_atlas(where: str, why: str) -> HeadatlasError:
    return HeadatlasError(
        f"{where}: this is not a complete headatlas atlas ({why}); choose another folder, "
        "or make an atlas with `headatlas map MODEL -o DIR`."
    )


def store_at(place: Place) -> Path | Store:
    """A place as Zarr takes it; the listings of an address are not those of an earlier call."""
    if isinstance(place, Path):
        return place
    try:
        return FsspecStore.from_url(place, read_only=True, storage_options=_FRESH)
    except ImportError as error:
        raise HeadatlasError(f"{shown(place)}: a package is missing ({error}).") from None


def _strange(provenance: dict[str, Any]) -> str | None:
    """The first entry, of those that readers rely on, that has been changed into something else."""
    for name, kind in (("model", dict), ("lens", dict), ("ceiling", int), ("thresholds", dict)):
        if not isinstance(provenance[name], kind):
            return repr(name)
    for name, key, wanted in (("model", "name", str), ("lens", "name", str), ("lens", "prefixes", list)):
        if not isinstance(provenance[name].get(key, [] if key == "prefixes" else None), wanted):
            return repr(f"{name}: {key}")
    return None


def read_array(data: xr.Dataset, name: str) -> NDArray[Any]:
    """The values of an array, read from disk if they have not been."""
    try:
        return np.asarray(data[name].values)
    except failures() as error:
        where = _source(data)
        if is_url(where):
            raise HeadatlasError(
                f"{where}: {name} cannot be read ({type(error).__name__}); try again later."
            ) from None
        if isinstance(error, OSError):
            raise _unreadable(f"{where}: {name}", error) from error
        raise damaged(data, name, error) from error


def load_arrays(data: xr.Dataset) -> xr.Dataset:
    """The dataset, every array of it read into memory."""
    for name in data.variables:
        read_array(data, str(name))
    return data.load()


def damaged(data: xr.Dataset, name: str, why: object) -> HeadatlasError:
    """The error for an array proved wrong: it cannot be decoded, or contradicts others."""
    where = _source(data)
    return HeadatlasError(f"{where}: {name} is damaged ({why}); {_over(where)}.")


def _over(where: str) -> str:
    """The remedy for a store that is proved damaged; the atlas around damaged evidence is not."""
    if Path(where).parent.name == "evidence":
        return "remove this folder and run `headatlas evidence` again"
    return "remove the folder and map again"


def _source(data: xr.Dataset) -> str:
    return str(data.encoding.get("source", "the atlas"))


def _unreadable(what: object, error: OSError) -> HeadatlasError:
    # A disk that does not answer, or a right that is missing, says nothing about the bytes.
    return HeadatlasError(
        f"{what} cannot be read ({error.strerror or error}); it may be sound: check the disk and its rights."
    )


def remove_atlas(folder: str | Path) -> bool:
    """Delete the atlas in an output folder, and nothing else; True if there was one."""
    given = Path(folder)
    path = given if given.suffix == ".zarr" else given / ATLAS_NAME
    if not path.exists() and not path.is_symlink():
        return False
    try:
        attributes = json.loads((path / "zarr.json").read_text("utf-8"))["attributes"]
        is_atlas = not path.is_symlink() and SCHEMA in attributes
    except (OSError, ValueError, KeyError, TypeError):
        is_atlas = False
    if not is_atlas:
        raise HeadatlasError(
            f"{path}: this is not an atlas of headatlas, so `force=True` does not delete it."
        )
    try:
        shutil.rmtree(path)
    except OSError as error:
        raise HeadatlasError(f"{path}: cannot be deleted ({error.strerror or error}).") from error
    return True
