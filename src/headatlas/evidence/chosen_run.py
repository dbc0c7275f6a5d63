"""Loss of a model without heads of one's own choice: on running texts and tasks, beside random heads.

Random heads are drawn layer by layer: as many of each layer as are chosen there, and none of the chosen ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from headatlas.architectures import Model
from headatlas.atlas import Atlas
from headatlas.atlas.evidence import CHOSEN, RANDOM, RUNNING_TEXT, WHOLE, HeadsAblation, evidence_group
from headatlas.atlas.stored import store_dataset
from headatlas.errors import HeadatlasError
from headatlas.evidence.ablation_hooks import Head, ablated, mean_outputs
from headatlas.evidence.ablation_run import MIN_SOURCES, Choices
from headatlas.evidence.opening import Subject, open_subject
from headatlas.evidence.tasks import Questions, Task, make_task
from headatlas.evidence.texts import LENGTH, Ids, encode, read_templates, shipped_texts
from headatlas.lenses.forward import prefix_ids, running
from headatlas.options import Compute
from headatlas.progress import Progress, Report, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFINITIONS = 1
"""Goes up when a definition changes: what is stored is then measured again."""
LOGIT_BYTES = 256 << 20
"""Of the logits of the texts that go through together, at most (one text aside)."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class _Items:
    """Texts or prompts that are measured alike.

    Attributes:
        on: ``text``, or the relation whose task it is.
        rows: Token ids of each.
        task: The task; None for running texts.
    """

    on: str
    rows: tuple[Ids, ...]
    task: Task | None


def run_chosen(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    heads: Sequence[Head],
    only: Sequence[str] | None = None,
    templates: str | Path | None = None,
    choices: Choices | None = None,
    compute: Compute | None = None,
    progress: Report | None = None,
) -> HeadsAblation:
    """Ablate chosen heads together and store what is lost; what is stored is not measured again.

    Args:
        atlas: An atlas from a folder.
        model: Its model; by default the one that the atlas names.
        tokenizer: Needed with a loaded model.
        heads: (layer, head), each once.
        only: Relations whose tasks are asked, by name or title; none by default: only the running texts.
        templates: A file; the shipped templates by default.
        choices: How; ``max_heads`` means nothing here.
        compute: Its device; a model in memory stays where it is.
        progress: Called with each step.

    Raises:
        HeadatlasError: A head is not there or named twice, or what :func:`run_ablation` refuses.
    """
    tell, chosen = progress or silent, choices or Choices()
    chosen.check()
    tell(Progress("open", 0, 0, atlas.model_name))
    subject = open_subject(atlas, model, tokenizer, compute=compute)
    opened = subject.prepared.model
    wanted = _checked(heads, opened)
    names = list(dict.fromkeys(atlas.known(name) for name in only or ()))
    items, skipped = _asked(subject, names, templates, chosen)
    orders = {CHOSEN: wanted, **_drawn(wanted, opened, chosen)}
    provenance: dict[str, Any] = {
        "heads": [f"{layer}.{head}" for layer, head in wanted],
        "method": chosen.method,
        "shots": chosen.shots,
        "seed": chosen.seed,
        "tasks": {each.on: each.task.template for each in items if each.task is not None},
        "skipped": skipped,
        "model": subject.prepared.provenance["model"],
        "versions": subject.prepared.provenance["versions"],
    }
    asked = [[each.on, each.rows, _accepted(each)] for each in items]
    body = [DEFINITIONS, chosen.method, orders, asked, provenance["model"]["weights_hash"]]
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    place = HeadsAblation.place(evidence_group(subject.path), digest[:12])
    if not place.is_dir():
        with running(opened, subject.device) as modules:
            data = _measured(opened, modules, items, orders, chosen.method, tell)
        store_dataset(place, data, {**provenance, "digest": digest})
    return HeadsAblation.read(place)


def _asked(
    subject: Subject, names: Sequence[str], templates: str | Path | None, chosen: Choices
) -> tuple[list[_Items], dict[str, str]]:
    """The running texts and the tasks of these relations, and why one is left out."""
    opened = subject.prepared.model
    found, words = read_templates(templates), opened.tokenizer()
    items, skipped = [_Items(RUNNING_TEXT, running_texts(words), None)], dict[str, str]()
    for relation in subject.relations:
        if (name := relation.relation.name) not in names:
            continue
        if name not in found.tasks:
            skipped[name] = "there is no task template for it; give one with `templates`"
            continue
        task = make_task(relation, words, found.tasks[name], shots=chosen.shots, sources=chosen.sources)
        if len(task.words) < MIN_SOURCES:
            skipped[name] = f"{len(task.words)} pairs can be asked, at least {MIN_SOURCES} needed"
        else:
            items.append(_Items(name, task.prompts, task))
    if not items[0].rows:
        raise HeadatlasError(
            f"{opened.checkpoint.spec}: its tokenizer makes {LENGTH} tokens of no shipped text."
        )
    return items, skipped


def _accepted(items: _Items) -> list[list[int]]:
    return [] if items.task is None else [sorted(right) for right in items.task.accepted]


def _checked(heads: Sequence[Head], model: Model) -> list[Head]:
    wanted, dims = [(int(layer), int(head)) for layer, head in heads], model.dims
    if not wanted:
        raise HeadatlasError("`heads`: no head is named; write them as (layer, head).")
    for layer, head in wanted:
        if layer not in model.layers_with_heads or not 0 <= head < dims.n_heads:
            raise HeadatlasError(
                f"`heads`: there is no head {layer}.{head}: {dims.n_layers} layers of {dims.n_heads} heads, "
                "both counted from 0."
            )
    if twice := next((head for head in wanted if wanted.count(head) > 1), None):
        raise HeadatlasError(f"`heads`: head {twice[0]}.{twice[1]} is named twice.")
    return sorted(wanted)


def _drawn(heads: Sequence[Head], model: Model, choices: Choices) -> dict[str, list[Head]]:
    """Random heads of the same layers, each draw another; fewer draws, or none, where there are no more."""
    by_layer: dict[int, set[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, set()).add(head)
    others = {layer: sorted(set(range(model.dims.n_heads)) - mine) for layer, mine in by_layer.items()}
    possible = prod(comb(len(others[layer]), len(mine)) for layer, mine in by_layer.items())
    rng = np.random.default_rng([choices.seed, *(number for head in sorted(heads) for number in head)])
    found: list[list[Head]] = []
    while len(found) < min(choices.draws, possible):
        draw = [
            (layer, int(head))
            for layer, mine in by_layer.items()
            for head in sorted(rng.choice(others[layer], len(mine), replace=False))
        ]
        if draw not in found:
            found.append(draw)
    return {f"{RANDOM} {number}": draw for number, draw in enumerate(found)}


def running_texts(tokenizer: PreTrainedTokenizerBase) -> tuple[Ids, ...]:
    """The shipped texts that are long enough, each cut after ``LENGTH`` tokens."""
    rows = encode(tokenizer, [text for _, text in shipped_texts()])
    return tuple(row[:LENGTH] for row in rows if len(row) >= LENGTH)


def _measured(
    model: Model,
    modules: PreTrainedModel,
    items: Sequence[_Items],
    orders: dict[str, list[Head]],
    method: str,
    tell: Report,
) -> xr.Dataset:
    conditions: dict[str, list[Head]] = {WHOLE: [], **orders}
    losses: dict[str, list[Floats]] = {name: [] for name in conditions}
    rights: dict[str, list[Bools]] = {name: [] for name in conditions}
    done, total = 0, len(items) * len(conditions)
    for each in items:
        means = mean_outputs(model, modules, each.rows) if method == "mean" else None
        asked = Questions(model, modules, each.rows)
        for name, heads in conditions.items():
            tell(Progress("ablation", done, total, f"{each.on}: {name}"))
            with ablated(model, modules, heads, means):
                loss, right = _lost(model, modules, each, asked, [layer for layer, _ in heads])
            losses[name].append(loss)
            rights[name].append(right)
            done += 1
    tell(Progress("ablation", done, total))
    places = np.array(list(orders.values()), dtype=np.int32)
    strings = np.dtypes.StringDType()
    return xr.Dataset(
        {
            "loss": (("condition", "item"), np.stack([np.concatenate(each) for each in losses.values()])),
            "correct": (("condition", "item"), np.stack([np.concatenate(each) for each in rights.values()])),
            "layer": (("order", "rank"), places[..., 0]),
            "head": (("order", "rank"), places[..., 1]),
            "on": ("item", np.array([each.on for each in items for _ in each.rows], dtype=strings)),
        },
        coords={
            "condition": np.array(list(conditions), dtype=strings),
            "order": np.array(list(orders), dtype=strings),
        },
    )


def _lost(
    model: Model, modules: PreTrainedModel, items: _Items, asked: Questions, without: Sequence[int]
) -> tuple[Floats, Bools]:
    """[item] loss in nats, and whether the answer is right, without heads of these layers.

    Raises:
        HeadatlasError: A loss is not finite.
    """
    if items.task is None:
        loss = _text_loss(modules, items.rows, len(prefix_ids(model.tokenizer(), "")))
        right = np.zeros(len(loss), dtype=bool)
    else:
        loss, right = _task_loss(asked, items.task, without)
    if not np.isfinite(loss).all():
        raise HeadatlasError(
            f"{model.checkpoint.spec}: a loss is not finite; the weights are damaged or overflow in float32."
        )
    return loss, right


def _text_loss(modules: PreTrainedModel, rows: Sequence[Ids], first: int) -> Floats:
    """[text] mean of −ln p(token | tokens before) over the tokens that something stands before.

    Args:
        modules: The running model.
        rows: Token ids, all of one length.
        first: Tokens that the tokenizer itself puts first; they are not predicted.
    """
    out = np.empty(len(rows))
    run: Any = modules
    start = max(first, 1)
    for part in _parts(len(rows), 4 * len(rows[0]) * run.get_output_embeddings().weight.shape[0]):
        ids = torch.tensor(rows[part], device=modules.device)
        with torch.inference_mode():
            logits = run(input_ids=ids, use_cache=False).logits[:, start - 1 : -1].float()
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, start:], reduction="none")
        out[part] = loss.double().mean(dim=1).cpu().numpy()
    return out


def _parts(n: int, n_bytes: int) -> Iterator[slice]:
    """Slices of n rows of so many bytes of logits each that go through together."""
    size = max(1, LOGIT_BYTES // n_bytes)
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _task_loss(asked: Questions, task: Task, without: Sequence[int]) -> tuple[Floats, Bools]:
    """[prompt] −ln of the probability of all accepted targets together, and whether the best token is one."""
    loss, best = np.empty(len(task.prompts)), np.empty(len(task.prompts), dtype=np.int64)
    for members, logits in asked.logits(without):
        logs = logits.float().log_softmax(dim=-1)
        for row, at in enumerate(members):
            loss[at] = -float(logs[row, sorted(task.accepted[at])].double().logsumexp(dim=0))
        best[members] = logits.argmax(dim=-1).cpu().numpy()
    return loss, task.correct(best)
