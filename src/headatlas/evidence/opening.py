"""From an atlas back to its model: the same words, tokens and weights, checked, and enough memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from headatlas.atlas import Atlas
from headatlas.atlas.store import read_array
from headatlas.devices import free_memory, pick_device
from headatlas.errors import HeadatlasError
from headatlas.files import writing_in
from headatlas.lenses import lens_named
from headatlas.mapping.machine import this_machine
from headatlas.mapping.plan import Memory
from headatlas.mapping.prepared import MapOptions, PreparedMap, differences, prepare_map
from headatlas.options import Compute
from headatlas.progress import Progress, Report, reporting, silent
from headatlas.relations import Pair, Relation, TokenisedRelation, tokenise
from headatlas.weights import need_on_disk

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


GPU_REST = 2 << 30
"""Bytes of a GPU for activations and for the unembedding that heads are ranked with, at least."""


@dataclass(frozen=True)
class Subject:
    """An atlas with the model it is of, as a run examines it."""

    atlas: Atlas
    path: Path  # its store
    prepared: PreparedMap  # the model, and what the map asked of it
    relations: tuple[TokenisedRelation, ...]  # the scored relations asked for, as the tokenizer sees them
    device: torch.device  # where the model runs and heads are ranked
    compute: Compute  # what was asked of the machine
    tell: Report = silent  # takes each step of the run


@contextmanager
def examined(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    only: Sequence[str] | None = None,
    compute: Compute | None = None,
    progress: Report | bool | None = None,
) -> Iterator[Subject]:
    """Open the model of an atlas for a run; afterwards the atlas knows what the run has stored.

    Arguments and errors are those of :func:`open_subject`; ``progress`` is that of a map.
    """
    with reporting(progress) as tell:
        tell(Progress("open", 0, 0, atlas.model_name))
        subject = open_subject(atlas, model, tokenizer, only=only, compute=compute)
        with writing_in(atlas.folder):
            yield replace(subject, tell=tell)
    atlas.forget_evidence()


def open_subject(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    only: Sequence[str] | None = None,
    compute: Compute | None = None,
) -> Subject:
    """Open the model of an atlas; only headers, tokenizer and hashes are read."""
    compute = compute or Compute()
    device = pick_device(compute.device)
    prepared, path = reopened(atlas, model, tokenizer)
    wanted = [atlas.known(name) for name in only] if only else list(atlas.included["relation"])
    check_model_fits(prepared, device)
    relations = tuple(
        tokenise(
            relation,
            prepared.model.tokenizer(),
            competing=prepared.competing,
            max_source_tokens=prepared.options.lens.max_source_tokens,
            target_policy=prepared.options.target_policy,
            sources=prepared.provenance["sources"],
        )
        for relation in relations_of(atlas)
        if relation.name in wanted
    )
    return Subject(atlas, path, prepared, relations, device, compute)


def reopened(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreparedMap, Path]:
    """Prepare an atlas's map once more, whether or not the whole model fits; and the atlas's store."""
    if atlas.path is None:
        raise HeadatlasError(
            "evidence is stored with the atlas: map the model into a folder (out=…), or copy the atlas from "
            "its address, first."
        )
    prepared = asked_again(atlas, model, tokenizer)
    need_on_disk(prepared.model.checkpoint, "evidence")
    return prepared, atlas.path


def asked_again(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    relation: Relation | None = None,
) -> PreparedMap:
    """Prepare an atlas's map once more, or the same map of another relation of any number of pairs."""
    lens = lens_named(atlas.lens)
    chosen = MapOptions(
        lens=lens,
        thresholds=atlas.thresholds,
        mask=bool(atlas.provenance["mask"]),
        ceiling=int(atlas.provenance["ceiling"]),
        target_policy=atlas.provenance.get("target_policy", "single"),
        sources=atlas.provenance.get("sources") or "all",
    )
    if model is None and atlas.provenance["model"].get("format") == "module":
        raise HeadatlasError(
            f"{atlas.path or atlas.model_name}: this atlas was made from a model in memory; give the model "
            "and its tokenizer."
        )
    spec = str(atlas.provenance["model"]["spec"]) if model is None else model
    # What was mapped is the model with its adapter merged in.
    adapter = atlas.provenance["model"].get("adapter", {}).get("folder")
    asked = relations_of(atlas) if relation is None else [relation]
    few = relation is not None
    prepared = prepare_map(spec, tokenizer, asked, chosen, adapter=adapter, few=few)
    other = {"relations": prepared.provenance["relations"]} if few else {}
    if different := differences({**atlas.provenance, **other}, prepared.provenance):
        raise HeadatlasError(
            f"{spec}: this model differs from the atlas's in {', '.join(different)}; "
            "give the model that was mapped with `model`."
        )
    return prepared


def relations_of(atlas: Atlas) -> list[Relation]:
    """The relations of an atlas, from the words that it holds."""
    data, frame = atlas.dataset, atlas.relations
    of_pair = read_array(data, "pair_relation")
    source, target = (read_array(data, name) for name in ("source", "target"))
    found = []
    for at, row in enumerate(frame.to_dict("records")):
        pairs: dict[str, list[str]] = {}
        for pair in np.flatnonzero(of_pair == at):
            pairs.setdefault(str(source[pair]), []).append(str(target[pair]))
        body = tuple(Pair(word, tuple(targets)) for word, targets in pairs.items())
        found.append(Relation(row["relation"], row["title"], row["category"], body, bool(row["is_copying"])))
    return found


def check_model_fits(prepared: PreparedMap, device: torch.device) -> None:
    """Refuse a model that does not fit, before it is loaded.

    A GPU that shares the machine's memory is covered by the machine's; one with memory of its own must hold
    the float32 weights, and as much again is not asked for: batches are small.
    """
    need = Memory(prepared.model, lens_named("neutral"), len(prepared.layout.sources)).least
    have = this_machine().memory
    if need > have:
        raise HeadatlasError(
            f"{prepared.model.checkpoint.spec}: evidence loads the whole model and needs about "
            f"{need / 1e9:.0f} GB of memory, this machine has {have / 1e9:.0f} GB; use a machine with more."
        )
    if device.type == "cuda" and prepared.model.checkpoint.loaded is None:
        weights, free = 4 * prepared.model.n_parameters, free_memory(device)
        if weights + GPU_REST > free:
            raise HeadatlasError(
                f"{prepared.model.checkpoint.spec}: evidence puts the whole model on {device} and needs "
                f"about {(weights + GPU_REST) / 1e9:.0f} GB there, {free / 1e9:.0f} GB are free; "
                "use `device=cpu`."
            )
