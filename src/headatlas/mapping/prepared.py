"""A map ready to run: its options, the opened model, the axes of its atlas, what it says about itself."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from headatlas import __version__, architectures
from headatlas.architectures import Model, open_model
from headatlas.architectures.oracle import PASSED, VARIABLE, self_check
from headatlas.atlas.layout import Layout, build_layout
from headatlas.errors import HeadatlasError
from headatlas.files import atomic_write, cache_dir
from headatlas.lenses import LENSES, Lens, or_lens_maps
from headatlas.options import CEILING, MAX_CEILING, Sources, TargetPolicy, Thresholds, require_type
from headatlas.relations import (
    Relation,
    RelationSpec,
    TokenisedRelation,
    alternative_to,
    check_sources,
    competing_tokens,
    core,
    most_sources,
    resolve_relations,
    tokenise,
)
from headatlas.weights import Tokenizer, need_on_disk, open_checkpoint, tokenizer_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class MapOptions:
    """The choices of a map, checked before anything is opened."""

    lens: Lens = LENSES["neutral"]  # how heads see sources
    thresholds: Thresholds = Thresholds()  # how the atlas is read at first
    mask: bool = True  # whether ids that no text can produce are kept from competing
    ceiling: int = CEILING  # ranks are exact below it
    target_policy: TargetPolicy = "single"
    """``"single"``, or ``"first-token"``: targets of several tokens count by their first."""
    sources: Sources = None
    """The most usable sources a relation is asked of, or ``"all"``; None: a sample of 100 where more than 40
    relations are asked for, else all."""

    def __post_init__(self) -> None:
        require_type("thresholds", self.thresholds, Thresholds)
        if not 1 <= self.ceiling <= MAX_CEILING:
            raise HeadatlasError(f"`ceiling` is {self.ceiling}: it must lie between 1 and {MAX_CEILING}.")
        if self.target_policy not in get_args(TargetPolicy):
            known = ", ".join(get_args(TargetPolicy))
            raise HeadatlasError(
                f"`target_policy`: there is no policy {self.target_policy!r}; use one of {known}."
            )
        check_sources(self.sources)
        self.thresholds.check(self.ceiling)


@dataclass(frozen=True)
class PreparedMap:
    """A map ready to run: of which tokens ``competing`` [vocab] ranks are taken, and what the atlas records
    about itself."""

    model: Model
    options: MapOptions
    layout: Layout
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
    """Open a model that a lens can read; if it needs all of it, that must be on disk."""
    checkpoint = open_checkpoint(model, tokenizer, remote=remote, adapter=adapter)
    if not lens.weights_only:
        with or_lens_maps():
            need_on_disk(checkpoint, f"the {lens.name} lens")
    return open_model(checkpoint)


def prepare_map(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    relations: RelationSpec,
    options: MapOptions,
    *,
    remote: bool = False,
    adapter: str | Path | None = None,
    few: bool = False,
) -> PreparedMap:
    """Open the model and lay out what will be asked of it. Reads headers, tokenizer and relations.

    With ``few``, a relation of any usable pair is in: its ranks say something of these pairs, its scores and
    their calibration nothing.
    """
    asked, lens = resolve_relations(relations), options.lens
    most = most_sources(asked, options.sources)
    opened = open_for(lens, model, tokenizer, remote=remote, adapter=adapter)
    with ThreadPoolExecutor(1) as pool:  # reading and hashing files leaves the interpreter to others
        hashed = pool.submit(opened.checkpoint.source.fingerprint)
        words = opened.tokenizer()
    about = _about_model(opened, hashed.result())
    competing, masked = competing_tokens(words, opened.dims.vocab_size)
    if not options.mask:
        competing, masked = np.ones_like(competing), ()
    tokenised, replaced = as_seen_by(opened, words, competing, asked, options, few=few)
    layout = build_layout(tokenised)
    provenance = {
        "model": about,
        "tokenizer_hash": tokenizer_hash(words),
        "lens": {
            "name": lens.name,
            "prefixes": list(lens.prefixes),
            "summary": lens.summary,
            "weights_only": lens.weights_only,
        },
        "mask": options.mask,
        "thresholds": asdict(options.thresholds),
        "ceiling": options.ceiling,
        "target_policy": options.target_policy,
        "sources": most,
        "alternatives": replaced,
        "masked_ids": list(masked),
        "relations": {entry.name: entry.sha256 for entry in layout.relations},
        "versions": {
            "headatlas": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "numpy", "scipy", "zarr")},
        },
    }
    return PreparedMap(opened, options, layout, competing, provenance)


def as_seen_by(
    model: Model,
    words: Tokenizer,
    competing: NDArray[np.bool_],
    asked: Sequence[Relation],
    options: MapOptions,
    *,
    few: bool = False,
) -> tuple[list[TokenisedRelation], dict[str, str]]:
    """:func:`with_alternatives` for a model's tokenizer; refused where no relation can be used."""
    seen = partial(
        tokenise,
        tokenizer=words,
        competing=competing,
        max_source_tokens=options.lens.max_source_tokens,
        target_policy=options.target_policy,
        sources=most_sources(asked, options.sources),
    )
    tokenised, replaced = with_alternatives(asked, seen)
    if few:
        tokenised = [replace(item, left_out=unusable(item)) for item in tokenised]
    if all(item.left_out for item in tokenised):
        raise _nothing_usable(model.checkpoint.spec, tokenised, few)
    return tokenised, replaced


def _nothing_usable(spec: str, tokenised: Sequence[TokenisedRelation], few: bool) -> HeadatlasError:
    if few:
        reasons = "; ".join(str(item.left_out) for item in tokenised)
        return HeadatlasError(f"{spec}: its tokenizer can use none of the pairs ({reasons}).")
    reasons = "; ".join(f"{item.relation.name}: {item.left_out}" for item in tokenised[:5])
    return HeadatlasError(
        f"{spec}: no relation can be used with this tokenizer ({reasons}); add pairs of words that are "
        "single tokens."
    )


def checked_once(model: Model, weights_hash: str) -> str:
    """The words of :func:`self_check`, which are kept in the user's cache where a check has passed.

    The check always comes to the same for the same weights, config, versions and way to read families, and
    imports everything that transformers runs models with, which takes longer than all else that opens a small
    model. It is made again where any of these has changed, for a model in memory, and where the environment
    variable ``HEADATLAS_SELF_CHECK`` is set.
    """
    checkpoint = model.checkpoint
    if checkpoint.loaded is not None or checkpoint.traffic is not None or VARIABLE in os.environ:
        return self_check(model)
    rules = Path(architectures.__file__).parent
    files = sorted(path for path in rules.rglob("*") if path.suffix in (".py", ".toml"))
    digest = hashlib.sha256("".join(f"{version(name)} " for name in ("torch", "transformers")).encode())
    digest.update(f"{weights_hash} {dict(checkpoint.config)!r} {model.family!r}".encode())
    for file in files:
        digest.update(file.read_bytes())
    kept = cache_dir() / "checked" / f"{digest.hexdigest()[:32]}.txt"
    if kept.is_file():
        return kept.read_text(encoding="utf-8")
    found = self_check(model)
    if found.startswith(PASSED):
        with suppress(HeadatlasError), atomic_write(kept) as temporary:
            temporary.write_text(found, encoding="utf-8")
    return found


def unusable(item: TokenisedRelation) -> str | None:
    """Why no pair of a relation is usable, or None if one is."""
    reasons = "; ".join(f"{', '.join(words)}: {reason}" for reason, words in item.dropped.items())
    return None if item.pairs else reasons


def with_alternatives(
    asked: Sequence[Relation], seen: Callable[[Relation], TokenisedRelation]
) -> tuple[list[TokenisedRelation], dict[str, str]]:
    """The relations as a tokenizer sees them; where all of core is asked, what it leaves out is replaced.

    After a relation of core that is left out comes the shipped one that stands in for it, if there is one
    that is usable and not asked for already. Returns the relations, and which of them stands in for which.
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


def _about_model(model: Model, weights_hash: str) -> dict[str, Any]:
    checkpoint, adapter = model.checkpoint, model.checkpoint.adapter
    about = {name: getattr(checkpoint, name) for name in ("name", "spec", "format", "revision")}
    about |= {"family": model.family.name, "dims": asdict(model.dims)}
    if not model.every_layer_has_heads:
        about["layers_with_heads"] = list(model.layers_with_heads)
    about["weights_hash"] = weights_hash
    if adapter is not None:
        merged = {name: getattr(adapter, name) for name in ("name", "folder", "base", "hash")}
        about["adapter"] = {**merged, "n_tensors": len(adapter.tensors)}
    return about | {"notes": list(checkpoint.notes), "self_check": checked_once(model, weights_hash)}


def with_traffic(provenance: dict[str, Any], model: Model) -> dict[str, Any]:
    """A provenance plus what this run fetched of a model that is not on disk; runs add up."""
    traffic = model.checkpoint.traffic
    if traffic is None:
        return provenance
    before = provenance["model"].get("fetched_bytes", 0)
    fetched = {"fetched_bytes": before + traffic.read, "stored_bytes": traffic.total}
    return {**provenance, "model": {**provenance["model"], **fetched}}


_Of = Callable[[dict[str, Any]], Any]
_SAME: dict[str, tuple[_Of, _Of | None]] = {
    "weights": (lambda p: p["model"]["weights_hash"], lambda p: p["model"]["name"]),
    "tokenizer": (lambda p: p["tokenizer_hash"], None),
    "lens": (lambda p: (p["lens"]["name"], list(p["lens"]["prefixes"])), lambda p: p["lens"]["name"]),
    "relations": (lambda p: list(p["relations"].items()), None),
    "ceiling": (lambda p: p["ceiling"], lambda p: p["ceiling"]),
    "target policy": (lambda p: p["target_policy"], lambda p: p["target_policy"]),
    "most sources": (lambda p: p.get("sources"), lambda p: p.get("sources")),
    "masked token ids": (lambda p: p["masked_ids"], None),
}
"""In what provenances must agree to share an atlas, and the names that people know these by."""


def differences(there: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """In what two provenances differ so that they cannot share an atlas, with both values where short."""
    found = []
    for name, (of, known_by) in _SAME.items():
        if of(there) != of(asked):
            first, second = ("" if known_by is None else str(known_by(p)) for p in (there, asked))
            found.append(f"{name} ({first}, not {second})" if first != second else name)
    return found
