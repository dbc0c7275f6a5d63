"""Compute what the heads of an atlas's model write, and keep it in the atlas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import xarray as xr

from headatlas import __version__
from headatlas.atlas import Atlas
from headatlas.atlas.evidence import evidence_group
from headatlas.atlas.salience import Salience, operations_sha256, salience_path, stored_salience
from headatlas.atlas.store import strings
from headatlas.atlas.stored import COPY_IT, check_storable, store_dataset
from headatlas.devices import AT_ONCE, share_cores
from headatlas.errors import HeadatlasError
from headatlas.evidence.opening import relations_of, reopened
from headatlas.files import check_writable, writing_in
from headatlas.lenses import MapsStates, NeutralParts, NeutralStates, States, StreamedStates
from headatlas.lenses.saved_states import (
    check_states_folder,
    claim,
    discard_states,
    states_key,
)
from headatlas.mapping.machine import Machine, this_machine
from headatlas.mapping.plan import streams_within
from headatlas.mapping.prepared import PreparedMap
from headatlas.mapping.run import layer_inputs
from headatlas.mapping.vocabulary import Vocabulary
from headatlas.options import Compute, TokenChoice
from headatlas.progress import Progress, Report, silent, steps
from headatlas.relations import Relation, core, library
from headatlas.writing import DEFINITIONS, stored_as_asked
from headatlas.writing.explaining import Explained, Library, fields_of
from headatlas.writing.operations import Ints, LayerOperations, Operations
from headatlas.writing.screening import Screening, screening_pays
from headatlas.writing.tokens import SourceTokens, source_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORK_NAME = "salience-work"
"""Folder beside an atlas that holds states and finished layers until all is stored."""
_DIMS = {
    "gain": ("order",),
    "source": ("order",),
    "promoted": ("order", "place"),
    "suppressed": ("order", "place"),
    "singular_values": ("d_head",),
    "effective_rank": (),
    "copying": (),
    "squared_norm": (),
    "reads": ("direction", "end", "place"),
    "writes": ("direction", "end", "place"),
}
"""Dimensions of each array of a layer after the head."""
_TOKENS = ("source", "promoted", "suppressed", "reads", "writes")


def run_salience(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    tokens: TokenChoice | None = None,
    most: int | None = None,
    exact: bool = False,
    compute: Compute | None = None,
    progress: Report | None = None,
) -> Salience:
    """Compute salience and store it in the atlas.

    Source states and finished layers are kept beside the atlas until all is stored: a stopped run goes on.

    Args:
        atlas: An atlas from a folder.
        model: Its model; by default the one that the atlas names.
        tokenizer: Needed with a loaded model.
        tokens: The source tokens; by default those that are stored, else all for a lens of weights only and
            word-like ones for another.
        most: The most source tokens; by default as many as are stored of this choice, else
            :func:`default_most`.
        exact: Whether all tokens are followed, and not those alone that a screening pass proposes.
        compute: Its device and memory, for the lens's forward pass.
        progress: Called with each step.

    Raises:
        HeadatlasError: The model is not the atlas's or does not fit into memory, or there is no such choice,
            or nothing can be written there.
    """
    if most is not None and most < 1:
        raise HeadatlasError(f"`most` is {most}: it must be at least 1.")
    if tokens is not None and tokens not in get_args(TokenChoice):
        raise HeadatlasError(f"`tokens` is {tokens!r}: use {', '.join(get_args(TokenChoice))}.")
    tell = progress or silent
    tell(Progress("open", 0, 0, atlas.model_name))
    machine = this_machine(compute or Compute())
    prepared, path = reopened(atlas, model, tokenizer)
    if (there := stored_as_asked(atlas, tokens, most, exact)) is not None:
        return there
    place, work = salience_path(evidence_group(path)), atlas.folder / WORK_NAME
    check_storable(place)
    check_writable(work, COPY_IT)
    lens = prepared.options.lens
    stored = stored_salience(atlas.place)
    said = {} if stored is None else stored.provenance["tokens"]
    choice = tokens or said.get("choice", "all" if lens.weights_only else "wordlike")
    if most is None and choice == said.get("choice"):
        most = said.get("most")
    chosen = source_tokens(prepared.model, prepared.competing, lens, choice, most)
    with writing_in(atlas.folder):
        try:
            layers, followed = _computed(prepared, chosen.ids, work, machine, tell, exact=exact)
        except FileNotFoundError:
            # Another run of the same question was done first, and has cleared up.
            if (there := stored_as_asked(atlas, tokens, most, exact)) is None:
                raise
            return there
        known = {relation.sha256: relation for relation in (*core(), *library(), *relations_of(atlas))}
        data = _dataset(prepared, layers, chosen, list(known.values()))
        store_dataset(place, data, _provenance(prepared, chosen, followed, data))
        discard_states(work)
    return Salience.read(place)


def _computed(
    prepared: PreparedMap, ids: Ints, work: Path, machine: Machine, tell: Report, *, exact: bool
) -> tuple[dict[int, LayerOperations], int]:
    """Operations of every layer, and how many of the tokens were followed through the model.

    Layers that the folder holds are not computed again.
    """
    model, lens = prepared.model, prepared.options.lens
    identity = f"{prepared.provenance['model']['weights_hash']} {DEFINITIONS}{' exact' * exact}"
    sources = [(token,) for token in ids.tolist()]
    check_states_folder(work)
    claim(work, states_key(sources, lens.prefixes, identity))
    at_once = min(NeutralParts.part_size(model), len(ids))
    streamed = not lens.weights_only and streams_within(model, lens, at_once, None, machine)
    in_parts = not (lens.weights_only or streamed)
    screening: Screening | None = None
    if in_parts and not exact and screening_pays(model, len(ids)):
        screening = Screening.of(prepared, ids, work, machine.devices[0], tell)
    n_followed = len(ids) if screening is None else len(screening.followed)
    files = {layer: work / f"operations_{layer:03d}.npz" for layer in model.layers_with_heads}
    found = {layer: LayerOperations.load(file) for layer, file in files.items() if file.is_file()}
    if len(found) == len(files):
        return found, n_followed
    states: States
    if screening is not None:
        states = screening.states(machine.devices[0], tell)
    elif in_parts:
        states = NeutralParts.compute(
            model, sources, lens.prefixes, work, progress=steps(tell, "states"), device=machine.devices[0]
        )
    else:
        states = word_states(prepared, sources, work, machine, tell, identity=identity, streamed=streamed)
    layers = _Layers(prepared, ids, states, screening)
    tell(Progress("salience", len(found), len(files)))
    # A streamed layer goes through the model when it is asked for: in order, and on all cores.
    todo, at_once = sorted(files.keys() - found.keys()), 1 if streamed else AT_ONCE
    for layer, made in share_cores(lambda layer, _: layers.operations(layer), todo, at_once):
        found[layer] = made
        if work.is_dir():  # another run of the same question may have cleared up
            made.save(files[layer])
        tell(Progress("salience", len(found), len(files)))
    return found, n_followed


class _Layers:
    """Layers with their states; several threads may ask for operations at a time."""

    def __init__(self, prepared: PreparedMap, ids: Ints, states: States, screening: Screening | None) -> None:
        self._prepared, self._ids, self._states, self._screening = prepared, ids, states, screening
        self._of_layer = Operations(Vocabulary.read(prepared.model.unembed, prepared.competing))
        self._reading = Lock()

    def operations(self, layer: int) -> LayerOperations:
        """The operations of a layer."""
        with self._reading:
            inputs = layer_inputs(self._prepared, self._states, layer)
            self._prepared.model.checkpoint.release()
        if self._screening is None:
            return self._of_layer.layer(inputs, self._ids)
        return self._of_layer.layer(*self._screening.given(layer, inputs))


def word_states(
    prepared: PreparedMap,
    sources: Sequence[tuple[int, ...]],
    folder: Path,
    machine: Machine,
    tell: Report,
    *,
    identity: str,
    last: int | None = None,
    streamed: bool | None = None,
) -> States:
    """The states of sources, given as token ids, as the lens of a map sees them.

    Args:
        prepared: The map.
        sources: Token ids of each.
        folder: Where those of a forward pass are kept.
        machine: Where it goes.
        tell: Called with each step.
        identity: Says which model this is; states of another are not reused.
        last: The last layer needed of a streamed pass; all by default.
        streamed: Whether the model goes through layer by layer; by default where memory asks for it.
    """
    model, lens = prepared.model, prepared.options.lens
    if lens.weights_only:
        return MapsStates(model, sources, steps(tell, "states"))
    streamed = streams_within(model, lens, len(sources), streamed, machine)
    end = model.layers_with_heads[-1] if last is None else last
    make = partial(StreamedStates, last=end) if streamed else NeutralStates.compute
    return make(
        model,
        sources,
        lens.prefixes,
        folder,
        identity=identity,
        device=machine.devices[0],
        progress=steps(tell, "states"),
    )


def _dataset(
    prepared: PreparedMap, layers: dict[int, LayerOperations], chosen: SourceTokens, relations: list[Relation]
) -> xr.Dataset:
    """All layers as one dataset; layers without heads hold nothing."""
    dims = prepared.model.dims
    empty = LayerOperations.empty(dims.n_heads, dims.d_head)
    each = [layers.get(layer, empty) for layer in range(dims.n_layers)]
    arrays = {
        one.name: np.stack([getattr(layer, one.name) for layer in each]) for one in fields(LayerOperations)
    }
    squared = arrays.pop("squared_norm")
    total = squared.sum(axis=1, keepdims=True)
    arrays["norm_share"] = np.divide(squared, total, out=np.full_like(squared, np.nan), where=total > 0)
    named = np.unique(np.concatenate([arrays[name].ravel() for name in _TOKENS]))
    named = named[named >= 0]
    variables = {
        name: (("layer", "head", *_DIMS.get(name, ())), array.astype(np.int32 if name in _TOKENS else float))
        for name, array in (arrays | {}).items()
    }
    return xr.Dataset(
        {
            **variables,
            **_explanations(arrays, chosen, relations),
            "text": ("token", strings([chosen.texts[token] for token in named.tolist()])),
        },
        coords={"token": named, "layer": np.arange(dims.n_layers), "head": np.arange(dims.n_heads)},
    )


def _explanations(
    arrays: dict[str, Any], chosen: SourceTokens, relations: list[Relation]
) -> dict[str, tuple[tuple[str, str], Any]]:
    """explained, relations and rest [layer, head]."""
    texts, shape = chosen.texts, arrays["source"].shape[:2]
    known = Library(relations)
    heads: list[Explained] = []
    for at in np.ndindex(shape):
        there = arrays["source"][at] >= 0
        targets = np.concatenate([arrays["promoted"][at], arrays["suppressed"][at]], axis=1)[there]
        heads.append(
            known.explain(
                [texts[token] for token in arrays["source"][at][there].tolist()],
                arrays["gain"][at][there],
                [[texts[token] for token in row if token >= 0] for row in targets.tolist()],
            )
        )
    # Layers without heads are no heads among which a field could be found by chance.
    exists = (arrays["source"] >= 0).any(axis=-1).ravel()
    of_those = [each for each, there in zip(heads, exists, strict=True) if there]
    found = iter(fields_of(of_those, known.fields, [texts[token] for token in chosen.ids.tolist()]))
    rest = [next(found) if there else [] for there in exists]
    columns = {
        "relations": [json.dumps(each.relations, ensure_ascii=False) for each in heads],
        "rest": [json.dumps(each, ensure_ascii=False) for each in rest],
    }
    share = np.array([each.share for each in heads]).reshape(shape)
    return {
        "explained": (("layer", "head"), share),
        **{name: (("layer", "head"), strings(each).reshape(shape)) for name, each in columns.items()},
    }


def _provenance(
    prepared: PreparedMap, chosen: SourceTokens, followed: int, data: xr.Dataset
) -> dict[str, Any]:
    return {
        "definitions": DEFINITIONS,
        "operations": operations_sha256(data),
        "lens": prepared.options.lens.name,
        "tokens": {
            "choice": chosen.choice,
            "n": len(chosen.ids),
            "followed": followed,
            "most": chosen.most,
            "left": chosen.left,
            "undertrained": len(chosen.undertrained),
            "undertrained_ids": chosen.undertrained.tolist(),
            "reference": chosen.reference,
        },
        "versions": {
            "headatlas": __version__,
            **{name: version(name) for name in ("torch", "transformers")},
        },
    }
