"""Watch where the heads of an atlas's model look, and keep it in the atlas."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from headatlas import __version__
from headatlas.atlas import Atlas
from headatlas.atlas.behaviours import Looking
from headatlas.atlas.evidence import evidence_group
from headatlas.atlas.store import strings
from headatlas.atlas.stored import SHIPPED, store_dataset
from headatlas.devices import pick_device
from headatlas.evidence.opening import check_model_fits, open_subject
from headatlas.lenses.forward import running
from headatlas.looking import DEFINITIONS
from headatlas.looking.measuring import measure_attention, text_weights
from headatlas.looking.sequences import Sequences, sequences_for
from headatlas.looking.statistics import Found, findings
from headatlas.mapping.prepared import PreparedMap
from headatlas.options import Compute
from headatlas.progress import Progress, Report, silent, steps

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def run_behaviour(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    prepared: PreparedMap | None = None,
    text: str | Path | None = None,
    compute: Compute | None = None,
    progress: Report | None = None,
) -> Looking:
    """Measure where heads look and store it in the atlas; what is stored is not measured again.

    Arguments and errors are those of :func:`headatlas.behaviour`. ``prepared`` is the map that has just made
    the atlas: its model is open and is not opened again.
    """
    tell, path = progress or silent, atlas.path
    if prepared is None or path is None:
        tell(Progress("open", 0, 0, atlas.model_name))
        subject = open_subject(atlas, model, tokenizer, compute=compute)
        prepared, path, device = subject.prepared, subject.path, subject.device
    else:
        device = pick_device((compute or Compute()).device)
        check_model_fits(prepared, device)
    sequences = sequences_for(prepared.model, prepared.competing, text)
    digest = hashlib.sha256(f"{DEFINITIONS} {sequences.digest}".encode()).hexdigest()
    group = evidence_group(path)
    place = Looking.place(group, digest[:12] if sequences.source else SHIPPED)
    if place.is_dir():
        there = Looking.read(place)
        if there.provenance.get("digest") == digest:
            return there
    kept = group / f".{place.name}-{digest[:12]}.npz"
    weights = text_weights(prepared.model, sequences)
    with running(prepared.model, device) as modules:
        sums = measure_attention(
            prepared.model,
            modules,
            sequences,
            weights,
            kept,
            steps(tell, "behaviour"),
        )
    data = _dataset(findings(sums, weights, sequences), prepared)
    store_dataset(place, data, _provenance(sequences, digest))
    kept.unlink(missing_ok=True)
    return Looking.read(place)


def _dataset(found: list[Found], prepared: PreparedMap) -> xr.Dataset:
    """Every behaviour over all layers; layers without heads hold no number."""
    dims, layers = prepared.model.dims, list(prepared.model.layers_with_heads)
    shape = (len(found), dims.n_layers, dims.n_heads)
    arrays = {name: np.full(shape, np.nan) for name in ("value", "expected", "low", "high", "p")}
    for at, each in enumerate(found):
        for name, array in arrays.items():
            array[at, layers] = getattr(each, name)
    return xr.Dataset(
        {
            **{name: (("behaviour", "layer", "head"), array) for name, array in arrays.items()},
            "n_sequences": ("behaviour", np.array([each.n for each in found])),
        },
        coords={
            "behaviour": strings(each.name for each in found),
            "layer": np.arange(dims.n_layers),
            "head": np.arange(dims.n_heads),
        },
    )


def _provenance(sequences: Sequences, digest: str) -> dict[str, Any]:
    return {
        "definitions": DEFINITIONS,
        "digest": digest,
        "texts": sequences.describe(),
        "versions": {"headatlas": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    }
