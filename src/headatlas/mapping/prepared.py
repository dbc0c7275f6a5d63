"""What a map is asked to do: options checked, model opened, relations tokenised, axes laid out."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from headatlas import __version__
from headatlas.architectures import Model, open_model
from headatlas.architectures.selfcheck import self_check
from headatlas.atlas.layout import Layout, build_layout
from headatlas.errors import HeadatlasError
from headatlas.lenses import Lens, lens_named
from headatlas.mapping.pair_index import PairIndex, index_pairs
from headatlas.options import CEILING, MAX_CEILING, TargetPolicy, Thresholds
from headatlas.relations import (
    MIN_SOURCES,
    Relation,
    RelationSpec,
    TokenisedRelation,
    alternative_to,
    competing_tokens,
    core,
    resolve_relations,
    tokenise,
)
from headatlas.weights import MergedAdapter, fingerprint, need_on_disk, open_checkpoint, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Options:
    """The choices of a map, checked before anything is opened.

    Attributes:
        lens: How heads see sources.
        thresholds: How the atlas is read at first.
        mask: Whether ids that no text can produce are kept from competing.
        ceiling: Ranks are exact below it.
        target_policy: ``"single"``, or ``"first-token"``: targets of several tokens count by their first.
        sources: The most usable sources a relation is asked of; None for all.
    """

    lens: Lens
    thresholds: Thresholds
    mask: bool
    ceiling: int
    target_policy: TargetPolicy
    sources: int | None


def options(
    *,
    lens: str = "neutral",
    thresholds: Thresholds | None = None,
    mask: bool = True,
    ceiling: int = CEILING,
    target_policy: TargetPolicy = "single",
    sources: int | None = None,
) -> Options:
    """The choices of a map, checked.

    Raises:
        HeadatlasError: A name is unknown or a number out of range.
    """
    if not 1 <= ceiling <= MAX_CEILING:
        raise HeadatlasError(f"`ceiling` is {ceiling}: it must lie between 1 and {MAX_CEILING}.")
    if target_policy not in get_args(TargetPolicy):
        known = ", ".join(get_args(TargetPolicy))
        raise HeadatlasError(f"`target_policy`: there is no policy {target_policy!r}; use one of {known}.")
    check_sources(sources)
    thresholds = Thresholds() if thresholds is None else thresholds
    thresholds.check(ceiling)
    return Options(lens_named(lens), thresholds, mask, ceiling, target_policy, sources)


def check_sources(sources: int | None) -> None:
    """Refuse a sample of sources that is no whole number, or so small that every relation is left out."""
    if sources is not None and (type(sources) is not int or sources < MIN_SOURCES):
        raise HeadatlasError(
            f"`sources` is {sources!r}: it must be a whole number of at least {MIN_SOURCES}, "
            "which a relation needs."
        )


@dataclass(frozen=True)
class PreparedMap:
    """A map ready to run.

    Attributes:
        model: The opened model.
        options: The choices.
        layout: The atlas's axes.
        pair_index: The same in the engine's coordinates.
        competing: [vocab] bool.
        provenance: What the atlas records about itself.
    """

    model: Model
    options: Options
    layout: Layout
    pair_index: PairIndex
    competing: NDArray[np.bool_]
    provenance: dict[str, Any]


def open_for(
    lens: Lens,
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    remote: bool,
    adapter: str | Path | None = None,
) -> Model:
    """Open a model that a lens can read.

    Raises:
        HeadatlasError: It cannot be opened, or the lens needs all of it and it is not on disk.
    """
    checkpoint = open_checkpoint(model, tokenizer, remote=remote, adapter=adapter)
    if not lens.weights_only:
        need_on_disk(checkpoint, f"the {lens.name} lens")
    return open_model(checkpoint)


def prepare(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    relations: RelationSpec,
    chosen: Options,
    *,
    remote: bool = False,
    adapter: str | Path | None = None,
) -> PreparedMap:
    """Open the model and lay out what will be asked of it. Reads headers, tokenizer and relations.

    Raises:
        HeadatlasError: The model or the relations cannot be used.
    """
    asked = resolve_relations(relations)
    opened = open_for(chosen.lens, model, tokenizer, remote=remote, adapter=adapter)
    checked = self_check(opened)
    words = opened.tokenizer()
    competing, masked = competing_tokens(words, opened.dims.vocab_size)
    if not chosen.mask:
        competing, masked = np.ones_like(competing), ()
    tokenised, replaced = with_alternatives(
        asked,
        partial(
            tokenise,
            tokenizer=words,
            competing=competing,
            max_source_tokens=chosen.lens.max_source_tokens,
            target_policy=chosen.target_policy,
            sources=chosen.sources,
        ),
    )
    if all(item.left_out for item in tokenised):
        reasons = "; ".join(f"{item.relation.name}: {item.left_out}" for item in tokenised[:5])
        raise HeadatlasError(
            f"{opened.checkpoint.spec}: no relation can be used with this tokenizer ({reasons}); "
            "add pairs of words that are single tokens."
        )
    layout = build_layout(tokenised)
    return PreparedMap(
        opened,
        chosen,
        layout,
        index_pairs(layout, competing),
        competing,
        _provenance(opened, chosen, layout, [int(i) for i in masked], checked, replaced),
    )


def with_alternatives(
    asked: Sequence[Relation], seen: Callable[[Relation], TokenisedRelation]
) -> tuple[list[TokenisedRelation], dict[str, str]]:
    """The relations as a tokenizer sees them; where all of core is asked, what it leaves out is replaced.

    After a relation of core that is left out comes the shipped one that stands in for it, if there is one
    that is usable and not asked for already.

    Args:
        asked: The relations.
        seen: Tokenises one.

    Returns:
        The relations, and relation left out → the one that stands in for it.
    """
    names, hashes = {relation.name for relation in asked}, {relation.sha256 for relation in asked}
    found, replaced = [], {}
    for relation in asked:
        found.append(seen(relation))
        other = alternative_to(relation) if found[-1].left_out else None
        if other is None or other.name in names or not all(each.sha256 in hashes for each in core()):
            continue
        if not (instead := seen(other)).left_out:
            found.append(instead)
            replaced[relation.name] = other.name
    return found, replaced


def _provenance(
    model: Model,
    chosen: Options,
    layout: Layout,
    masked: list[int],
    checked: str,
    replaced: dict[str, str],
) -> dict[str, Any]:
    checkpoint = model.checkpoint
    return {
        "model": {
            "name": checkpoint.name,
            "spec": checkpoint.spec,
            "format": checkpoint.format,
            "revision": checkpoint.revision,
            "family": model.family.name,
            "dims": asdict(model.dims),
            **({} if model.every_layer_has_heads else {"layers_with_heads": list(model.layers_with_heads)}),
            "weights_hash": fingerprint(checkpoint),
            **_adapter(checkpoint.adapter),
            "notes": list(checkpoint.notes),
            "self_check": checked,
        },
        "tokenizer_hash": tokenizer_hash(model.tokenizer()),
        "lens": {
            "name": chosen.lens.name,
            "prefixes": list(chosen.lens.prefixes),
            "summary": chosen.lens.summary,
            "weights_only": chosen.lens.weights_only,
        },
        "mask": chosen.mask,
        "thresholds": asdict(chosen.thresholds),
        "ceiling": chosen.ceiling,
        "target_policy": chosen.target_policy,
        "sources": chosen.sources,
        "alternatives": replaced,
        "masked_ids": masked,
        "relations": {entry.name: entry.sha256 for entry in layout.relations},
        "versions": {
            "headatlas": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy", "scipy", "zarr")},
        },
    }


def _adapter(merged: MergedAdapter | None) -> dict[str, Any]:
    """An adapter that is merged into the weights, for the provenance."""
    if merged is None:
        return {}
    shown = {name: getattr(merged, name) for name in ("name", "folder", "base", "hash")}
    return {"adapter": {**shown, "n_tensors": len(merged.tensors)}}


def with_traffic(provenance: dict[str, Any], model: Model) -> dict[str, Any]:
    """A provenance plus what this run fetched of a model that is not on disk; runs add up."""
    traffic = model.checkpoint.traffic
    if traffic is None:
        return provenance
    before = provenance["model"].get("fetched_bytes", 0)
    fetched = {"fetched_bytes": before + traffic.read, "stored_bytes": traffic.total}
    return {**provenance, "model": {**provenance["model"], **fetched}}


_SAME: dict[str, Callable[[dict[str, Any]], Any]] = {
    "weights": lambda p: p["model"]["weights_hash"],
    "tokenizer": lambda p: p["tokenizer_hash"],
    "lens": lambda p: (p["lens"]["name"], list(p["lens"]["prefixes"])),
    "relations": lambda p: list(p["relations"].items()),
    "ceiling": lambda p: p["ceiling"],
    "target policy": lambda p: p["target_policy"],
    "most sources": lambda p: p.get("sources"),
    "masked token ids": lambda p: p["masked_ids"],
}


_SHOWN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "weights": lambda p: p["model"]["name"],
    "lens": lambda p: p["lens"]["name"],
    "ceiling": lambda p: p["ceiling"],
    "target policy": lambda p: p["target_policy"],
    "most sources": lambda p: p.get("sources"),
}
"""What people know these by."""


def differences(there: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """In what two provenances differ so that they cannot share an atlas, with both values where short."""
    found = []
    for name, of in _SAME.items():
        if of(there) != of(asked):
            shown = [str(_SHOWN[name](p)) if name in _SHOWN else "" for p in (there, asked)]
            found.append(f"{name} ({shown[0]}, not {shown[1]})" if shown[0] != shown[1] else name)
    return found
