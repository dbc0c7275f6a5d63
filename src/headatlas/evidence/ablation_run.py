"""Ablation: what a model loses without some of its heads, beside random heads.

Of a *relation*, the heads called for it are taken out, and its task is asked, and control tasks. Each is
saved in the atlas when it is done, and a killed run goes on with the next. *Heads of one's own choice* are
taken out together, and the loss on running texts and tasks is measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import comb, prod
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray

from headatlas.architectures import Model
from headatlas.atlas.evidence import (
    ADDED,
    CHOSEN,
    RANDOM,
    RELATION,
    RUNNING_TEXT,
    WHOLE,
    Ablation,
    HeadsAblation,
    evidence_group,
)
from headatlas.atlas.store import strings
from headatlas.atlas.stored import check_storable, read_dataset, store_dataset
from headatlas.errors import HeadatlasError
from headatlas.evidence.asking import Head, Questions, ablated, asking_takes
from headatlas.evidence.opening import Subject
from headatlas.evidence.statistics import named_heads, random_heads
from headatlas.evidence.texts import LENGTH, Ids, Task, Templates, make_task, read_templates, running_texts
from headatlas.lenses.forward import prefix_ids, require_finite, running
from headatlas.mapping.plan import seconds
from headatlas.options import LEAST_ASKED, AblationChoices, Method
from headatlas.progress import Progress, duration

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MIN_BASE = 0.2
MAX_BASE_DIFFERENCE = 0.2
"""Between a task and its control tasks."""
MAX_OVERLAP = 0.15
"""Heads called for a control task among those ablated; the share must be below this."""
N_CONTROLS = 2
N_ALONE = 8
BASE_PREFIX = "base-"
DEFINITIONS = 1
"""Goes up when a definition changes: what is stored is then asked and measured again."""
LEAST_LEFT = 0.4
"""Of the blocks, those that are run at least, on average over the heads ablated; for estimates."""
LOGIT_BYTES = 256 << 20
"""Of the logits of the running texts that go through together, at most (one text aside)."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def _tasks(subject: Subject, templates: Templates, choices: AblationChoices) -> Iterator[tuple[str, Task]]:
    """The task of each relation that has a template."""
    words = subject.prepared.model.tokenizer()
    for each in subject.relations:
        if (name := each.relation.name) in templates.tasks:
            template = templates.tasks[name]
            yield name, make_task(each, words, template, shots=choices.shots, sources=choices.sources)


def _cannot_be_asked(task: Task | None) -> str | None:
    """The reason why a relation's task cannot be asked, or None."""
    if task is None:
        return "there is no task template for it; give one with `templates`"
    if len(task.words) >= LEAST_ASKED:
        return None
    gone = "; ".join(f"{reason} ({len(words)})" for reason, words in task.dropped.items())
    why = f": {gone}" if gone else ""
    examples = "; examples are not asked, see `shots`" if task.shots else ""
    return f"{len(task.words)} pairs can be asked, at least {LEAST_ASKED} needed{why}{examples}"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _listed(table: pd.DataFrame) -> list[Head]:
    """The heads of a table's rows, in their order."""
    return [(int(layer), int(head)) for layer, head in table[["layer", "head"]].to_numpy()]


def _ordered(orders: Mapping[str, Sequence[Head]]) -> dict[str, Any]:
    """The heads of every order, as variables of a dataset."""
    places = np.array(list(orders.values()), dtype=np.int32).reshape(len(orders), -1, 2)
    return {"layer": (("order", "rank"), places[..., 0]), "head": (("order", "rank"), places[..., 1])}


# The heads of relations -------------------------------------------------------------------------------


@dataclass
class Ablations:
    """The result of a run."""

    done: list[Ablation] = field(default_factory=list)  # ablated tasks, new or from earlier runs
    skipped: dict[str, str] = field(default_factory=dict)  # relation → why it was not ablated


def run_ablation(
    subject: Subject, templates: Templates, choices: AblationChoices, only: Sequence[str] | None = None
) -> Ablations:
    """Ablate the heads of relations and store what their tasks lose; what is stored is not measured again.

    The atlas's thresholds say which heads are called; control tasks come from all relations of the subject.
    """
    atlas, tell = subject.atlas, subject.tell
    names = list(dict.fromkeys(atlas.known(name) for name in only)) if only else list(atlas.relation_scores)
    # Of the user's templates: most likely a name is misspelt.
    known = {*read_templates().tasks, *atlas.relations["relation"]}
    why = "a template is given for it, but the atlas has no such relation"
    out = Ablations(skipped={name: why for name in templates.tasks if name not in known})
    with running(subject.prepared.model, subject.device) as modules:
        run = _Run(subject, modules, templates, choices)
        tell(Progress("estimate", 0, 0, run.estimate(names)))
        for at, name in enumerate(names):
            tell(Progress("ablation", at, len(names), name))
            if problem := run.problem(name):
                out.skipped[name] = problem
            else:
                out.done.append(run.stored(name))
        tell(Progress("ablation", len(names), len(names)))
    return out


class _Run:
    """Tasks of one model, and their answers."""

    def __init__(
        self, subject: Subject, modules: PreTrainedModel, templates: Templates, choices: AblationChoices
    ) -> None:
        self._subject, self._modules, self._choices = subject, modules, choices
        self._folder = evidence_group(subject.path)
        self.tasks = dict(_tasks(subject, templates, choices))
        self._base: dict[str, Bools] = {}
        self._asked: dict[str, Questions] = {}
        self._known: dict[tuple[str, frozenset[Head]], Bools] = {}

    def base(self, name: str) -> Bools:
        """[source] right answers of the whole model: those stored in the atlas, or asked and stored."""
        if name not in self._base:
            task, weights = self.tasks[name], self._subject.prepared.provenance["model"]["weights_hash"]
            body = [DEFINITIONS, task.prompts, task.answers, weights]
            digest = _digest(repr(body))
            place = self._folder / f"{BASE_PREFIX}{digest[:12]}"
            if not place.is_dir():
                check_storable(place)
                right = task.correct(self._questions(name).answers())
                data = xr.Dataset({"base": ("source", right)})
                store_dataset(place, data, {"relation": name, "digest": digest})
            self._base[name] = np.asarray(read_dataset(place)[0]["base"].values).astype(bool)
        return self._base[name]

    def estimate(self, names: Sequence[str]) -> str:
        """The work ahead, if no answers are stored and every step is measured, and how long it takes here."""
        todo = [name for name in names if self._problem_beforehand(name) is None]
        runs = dict.fromkeys(self.tasks, 1.0 if todo else 0.0)
        for name in todo:
            n_heads = len(self._heads(name))
            orders = 2 + self._choices.draws + N_CONTROLS  # the controls' prompts are much as these
            runs[name] += 1 + len(steps_to(n_heads)) * orders + min(N_ALONE, n_heads)
        takes = {name: asking_takes(task.prompts) for name, task in self.tasks.items() if task.prompts}
        tokens, passes = (sum(runs[name] * each[at] for name, each in takes.items()) for at in range(2))
        least, most = seconds(
            self._subject.prepared.model,
            self._subject.device,
            tokens=(LEAST_LEFT * tokens, tokens),
            passes=(LEAST_LEFT * passes, passes),
        )
        return (
            f"tasks to ablate: {len(todo)}; at most {int(tokens):,} tokens through the model: "
            f"{duration(least)} to {duration(most)} on this machine if nothing else uses it"
        )

    def problem(self, name: str) -> str | None:
        """The reason why a relation cannot be ablated, or None."""
        if (why := self._problem_beforehand(name)) is not None:
            return why
        if (base := float(self.base(name).mean())) < MIN_BASE:
            return f"base accuracy is {base:.2f}, at least {MIN_BASE:g} needed; see `shots` and `templates`"
        return None

    def _problem_beforehand(self, name: str) -> str | None:
        """The reason that is known before the model is asked, or None."""
        why = _cannot_be_asked(self.tasks.get(name))
        return why or (None if self._heads(name) else "the atlas calls no head for it")

    def stored(self, name: str) -> Ablation:
        """The ablation of a relation: from the atlas if it is there, else measured and stored."""
        orders = self._orders(name)
        controls = self._controls(name, orders[RELATION])
        provenance = self._provenance(name, orders, controls)
        label = f"{name}-shots{self._choices.shots}-{self._choices.method}"
        path = Ablation.place(self._folder, label)
        if path.is_dir():
            there = Ablation.read(path)
            if there.provenance.get("key") == provenance["key"]:
                return there
        check_storable(path)
        self._asked, self._known = {}, {}
        store_dataset(path, self._measured(name, orders, controls), provenance)
        return Ablation.read(path)

    def _rows(self, name: str) -> pd.DataFrame:
        """The heads of a relation in the atlas, by score."""
        table = self._subject.atlas.without_evidence
        return table[table["relation"] == name].sort_values("score", ascending=False, kind="stable")

    def _heads(self, name: str) -> list[Head]:
        """Called heads, best first, no more than asked and than there are others to draw from."""
        rows = self._rows(name)
        called = _listed(rows[rows["implements"]])
        return called[: min(self._choices.max_heads, len(rows) - len(called))]

    def _orders(self, name: str) -> dict[str, list[Head]]:
        """Heads in the order in which they are ablated, for every curve."""
        table, heads = self._subject.atlas.without_evidence, self._heads(name)
        rows = table[table["relation"] == name]
        others = _listed(rows[~rows["implements"]])
        by_added = rows.sort_values(["added", "score"], ascending=False, kind="stable")
        orders = {RELATION: heads, ADDED: _listed(by_added[: len(heads)])}
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        for draw in range(self._choices.draws):
            rng = np.random.default_rng([self._choices.seed, seed, draw])
            drawn = rng.choice(len(others), size=len(heads), replace=False)
            orders[f"{RANDOM} {draw}"] = [others[at] for at in drawn]
        return orders

    def _controls(self, name: str, heads: list[Head]) -> list[str]:
        """Other tasks of about the same base accuracy, for which few of these heads are called."""
        base, near = float(self.base(name).mean()), []
        for other, task in self.tasks.items():
            rows = self._rows(other)
            overlap = len({*_listed(rows[rows["implements"]])} & {*heads}) / len(heads)
            if other == name or overlap >= MAX_OVERLAP or len(task.words) < LEAST_ASKED:
                continue  # the model need not be asked
            accuracy = float(self.base(other).mean())
            difference = abs(accuracy - base)
            if accuracy >= MIN_BASE and difference <= MAX_BASE_DIFFERENCE:
                near.append((difference, other))
        return [other for _, other in sorted(near)[:N_CONTROLS]]

    def _measured(self, name: str, orders: dict[str, list[Head]], controls: list[str]) -> xr.Dataset:
        heads = orders[RELATION]
        steps = steps_to(len(heads))
        correct = [[self._correct(name, order[:n]) for n in steps] for order in orders.values()]
        alone = [self._correct(name, [head]) for head in heads[:N_ALONE]]
        control = [[self._correct(other, heads[:n]).mean() for n in steps] for other in controls]
        bases = [self.base(other).mean() for other in controls]
        return xr.Dataset(
            {
                "base": ("source", self.base(name)),
                "correct": (("order", "step", "source"), np.array(correct)),
                "n_ablated": ("step", np.array(steps, dtype=np.int32)),
                "alone": (("single", "source"), np.array(alone)),
                **_ordered(orders),
                "control": (
                    ("control_name", "step"),
                    np.array(control, dtype=np.float64).reshape(len(controls), len(steps)),
                ),
                "control_base": ("control_name", np.array(bases, dtype=np.float64)),
            },
            coords={
                "order": strings(orders),
                "source": strings(self.tasks[name].words),
                "control_name": strings(controls),
            },
        )

    def _correct(self, name: str, heads: Sequence[Head]) -> Bools:
        """[source] right answers without these heads; orders that agree are measured once."""
        key = name, frozenset(heads)
        if key not in self._known:
            if name not in self._asked:
                self._asked[name] = self._questions(name)
            self._known[key] = self.tasks[name].correct(self._asked[name].answers(sorted(heads)))
        return self._known[key]

    def _questions(self, name: str) -> Questions:
        prompts = self.tasks[name].prompts
        return Questions(self._subject.prepared.model, self._modules, prompts, self._choices.method)

    def _provenance(self, name: str, orders: dict[str, list[Head]], controls: list[str]) -> dict[str, Any]:
        task, prepared = self.tasks[name], self._subject.prepared.provenance
        asked = [list(task.prompts), task.answers]
        body = [self._choices.method, asked, orders, controls, prepared["model"]["weights_hash"]]
        return {
            "relation": name,
            "template": task.template,
            "shots": task.shots,
            "method": self._choices.method,
            "thresholds": asdict(self._subject.atlas.thresholds),
            "seed": self._choices.seed,
            "controls": controls,
            "dropped": {reason: list(words) for reason, words in task.dropped.items()},
            "key": _digest(repr(body)),
            **{about: prepared[about] for about in ("model", "lens", "versions")},
        }


def steps_to(n: int) -> list[int]:
    """1, 2, 4, 8, … and n."""
    return [*(2**power for power in range(n.bit_length()) if 2**power < n), n]


# Heads of one's own choice ----------------------------------------------------------------------------


def run_chosen(
    subject: Subject,
    heads: Sequence[Head],
    templates: Templates,
    choices: AblationChoices,
    only: Sequence[str] | None = None,
) -> HeadsAblation:
    """Ablate chosen heads together and store what is lost; what is stored is not measured again.

    The loss is that on running texts, and on the tasks of the relations of ``only``.
    """
    model, about = subject.prepared.model, subject.prepared.provenance
    wanted = sorted(named_heads(subject.atlas, heads))
    names = dict.fromkeys(subject.atlas.known(name) for name in only or ())
    tasks = {name: task for name, task in _tasks(subject, templates, choices) if name in names}
    skipped = {name: why for name in names if (why := _cannot_be_asked(tasks.get(name)))}
    tasks = {name: task for name, task in tasks.items() if name not in skipped}
    texts = running_texts(model.tokenizer())
    if not texts:
        raise HeadatlasError(
            f"{model.checkpoint.spec}: its tokenizer makes {LENGTH} tokens of no shipped text."
        )
    orders = {CHOSEN: wanted, **_drawn(wanted, model.dims.n_heads, choices)}
    asked = [[RUNNING_TEXT, texts, []], *([name, task.prompts, task.answers] for name, task in tasks.items())]
    digest = _digest(json.dumps([DEFINITIONS, choices.method, orders, asked, about["model"]["weights_hash"]]))
    place = HeadsAblation.place(evidence_group(subject.path), digest[:12])
    if not place.is_dir():
        check_storable(place)
        provenance = {
            "heads": [f"{layer}.{head}" for layer, head in wanted],
            "method": choices.method,
            "shots": choices.shots,
            "seed": choices.seed,
            "tasks": {name: task.template for name, task in tasks.items()},
            "skipped": skipped,
            "model": about["model"],
            "versions": about["versions"],
            "digest": digest,
        }
        with running(model, subject.device) as modules:
            data = _losses(subject, modules, texts, tasks, orders, choices.method)
        store_dataset(place, data, provenance)
    found = HeadsAblation.read(place)
    # Tasks that cannot be asked are no part of what is stored, so another call may have left out others.
    return replace(found, provenance={**found.provenance, "skipped": skipped})


def _drawn(heads: Sequence[Head], n_heads: int, choices: AblationChoices) -> dict[str, list[Head]]:
    """Random heads of the same layers, each draw another; fewer draws, or none, where there are no more."""
    layers = [layer for layer, _ in heads]
    mine = {layer: layers.count(layer) for layer in layers}
    possible = prod(comb(n_heads - n, n) for n in mine.values())
    draws, found = random_heads(heads, n_heads, choices.seed), list[list[Head]]()
    while len(found) < min(choices.draws, possible):
        if (draw := next(draws)) not in found:
            found.append(draw)
    return {f"{RANDOM} {number}": draw for number, draw in enumerate(found)}


def _losses(
    subject: Subject,
    modules: PreTrainedModel,
    texts: Sequence[Ids],
    tasks: Mapping[str, Task],
    orders: Mapping[str, list[Head]],
    method: Method,
) -> xr.Dataset:
    """Loss and right answers of the whole model, and without the heads of each order."""
    model = subject.prepared.model
    conditions: dict[str, list[Head]] = {WHOLE: [], **orders}
    rows = {RUNNING_TEXT: texts, **{name: task.prompts for name, task in tasks.items()}}
    losses: dict[str, list[Floats]] = {name: [] for name in conditions}
    rights: dict[str, list[Bools]] = {name: [] for name in conditions}
    total = len(rows) * len(conditions)
    for number, (on, prompts) in enumerate(rows.items()):
        asked = Questions(model, modules, prompts, method)
        for at, (name, heads) in enumerate(conditions.items()):
            done = number * len(conditions) + at
            subject.tell(Progress("ablation", done, total, f"{on}: {name}"))
            if on == RUNNING_TEXT:
                loss, right = _text_loss(model, modules, texts, heads, asked.means if heads else None)
            else:
                loss, right = _task_loss(asked, tasks[on], heads)
            require_finite(model.checkpoint.spec, "a loss is", np.isfinite(loss).all())
            losses[name].append(loss)
            rights[name].append(right)
    subject.tell(Progress("ablation", total, total))
    return xr.Dataset(
        {
            "loss": (("condition", "item"), np.stack([np.concatenate(each) for each in losses.values()])),
            "correct": (("condition", "item"), np.stack([np.concatenate(each) for each in rights.values()])),
            **_ordered(orders),
            "on": ("item", strings([on for on, prompts in rows.items() for _ in prompts])),
        },
        coords={"condition": strings(conditions), "order": strings(orders)},
    )


def _text_loss(
    model: Model,
    modules: PreTrainedModel,
    rows: Sequence[Ids],
    heads: Sequence[Head],
    means: torch.Tensor | None,
) -> tuple[Floats, Bools]:
    """[text] mean of −ln p(token | tokens before) over the tokens that something stands before.

    The heads are out. Tokens that the tokenizer itself puts first are not predicted, and nothing is right.
    """
    run: Any = modules
    out, start = np.empty(len(rows)), max(len(prefix_ids(model.tokenizer(), "")), 1)
    size = max(1, LOGIT_BYTES // (4 * LENGTH * run.get_output_embeddings().weight.shape[0]))
    with torch.inference_mode(), ablated(model, modules, heads, means):
        for first in range(0, len(rows), size):
            ids = torch.tensor(rows[first : first + size], device=modules.device)
            logits = run(input_ids=ids, use_cache=False).logits[:, start - 1 : -1].float()
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, start:], reduction="none")
            out[first : first + size] = loss.double().mean(dim=1).cpu().numpy()
    return out, np.zeros(len(rows), dtype=bool)


def _task_loss(asked: Questions, task: Task, heads: Sequence[Head]) -> tuple[Floats, Bools]:
    """[prompt] −ln of the probability of all accepted targets together, and whether the best token is one."""
    loss, best = np.empty(len(task.prompts)), np.empty(len(task.prompts), dtype=np.int64)
    for members, logits in asked.logits(heads):
        logs = logits.float().log_softmax(dim=-1)
        for row, at in enumerate(members):
            loss[at] = -float(logs[row, sorted(task.accepted[at])].double().logsumexp(dim=0))
        best[members] = logits.argmax(dim=-1).cpu().numpy()
    return loss, task.correct(best)
