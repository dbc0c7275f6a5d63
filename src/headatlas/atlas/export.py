"""The table of an atlas as a file: Parquet, CSV or JSON; and its rows as plain records."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from headatlas.addresses import output_path
from headatlas.atlas.atlas import Atlas, with_thresholds
from headatlas.errors import HeadatlasError
from headatlas.files import atomic_write
from headatlas.showing import safe_cells, safe_json

RECORD_FIELDS = (
    *("layer", "head", "relation", "category", "score", "suppression", "q", "control", "n_sources"),
)
"""The first fields of every record of :func:`heads_json`. Scripts rely on them."""


def export_table(atlas: Atlas, path: str | Path) -> Path:
    """Write one row per mapped head × scored relation; the file's suffix says the format.

    ``.parquet`` and ``.csv`` hold the rows of :func:`~headatlas.atlas.atlas.with_thresholds`; Parquet also
    carries :func:`header` as JSON in its schema metadata under ``headatlas``. ``.json`` is an object: the
    fields of :func:`header`, then ``rows``, a list of records.

    Returns:
        The path written.

    Raises:
        HeadatlasError: The suffix is none of the three, or the file cannot be written.
    """
    path = output_path(path)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        known = ", ".join(_WRITERS)
        raise HeadatlasError(
            f"{path}: the format {path.suffix or 'without a suffix'} is unknown; use {known}."
        )
    with atomic_write(path) as temporary:
        writer(atlas, temporary)
    return path


def heading(atlas: Atlas) -> dict[str, Any]:
    """The fields that every JSON document of an atlas begins with: model, lens, thresholds, caption."""
    return {
        "model": atlas.model_name,
        "lens": atlas.lens,
        "thresholds": asdict(atlas.thresholds),
        "caption": atlas.caption(),
    }


def header(atlas: Atlas) -> dict[str, Any]:
    """Metadata of a table: :func:`heading`, relations left out, provenance."""
    left_out = {"relations_left_out": atlas.left_out}
    return {**heading(atlas), **left_out, "provenance": atlas.provenance}


def heads_json(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of :attr:`Atlas.table` as records of plain Python values; NaN and NA become None.

    The fields of :data:`RECORD_FIELDS` come first; the other columns follow in their order.
    """
    columns = [*RECORD_FIELDS, *(name for name in frame.columns if name not in RECORD_FIELDS)]
    return plain_records(frame[columns])


def plain_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table as records of plain Python values; NaN and NA become None."""
    plain = pd.DataFrame(frame).astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]


def _write_parquet(atlas: Atlas, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(with_thresholds(atlas), preserve_index=False)
    metadata = dict(table.schema.metadata or {})
    metadata[b"headatlas"] = json.dumps(header(atlas), ensure_ascii=False).encode()
    pq.write_table(table.replace_schema_metadata(metadata), path)


def _write_csv(atlas: Atlas, path: Path) -> None:
    safe_cells(with_thresholds(atlas)).to_csv(path, index=False)


def _write_json(atlas: Atlas, path: Path) -> None:
    body = {**header(atlas), "rows": heads_json(atlas.table())}
    path.write_text(safe_json(body, indent=1) + "\n", encoding="utf-8")


_WRITERS: dict[str, Callable[[Atlas, Path], None]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".json": _write_json,
}
