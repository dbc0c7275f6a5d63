"""Ablation: what a task loses when the heads of its relation are taken out, beside random heads and other
tasks.

One relation after another; each is saved in the atlas when it is done, and a killed run goes on with the
next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from headatlas.atlas import Atlas
from headatlas.atlas.evidence import ADDED, RANDOM, RELATION, Ablation, evidence_group
from headatlas.atlas.stored import read_dataset, store_dataset
from headatlas.errors import HeadatlasError
from headatlas.evidence.ablation_hooks import Head, ablated, mean_outputs
from headatlas.evidence.opening import Subject, open_subject
from headatlas.evidence.tasks import Questions, Task, asking_takes, make_task
from headatlas.evidence.texts import Templates, read_templates
from headatlas.lenses.forward import running
from headatlas.mapping.plan import passing_seconds
from headatlas.options import Compute
from headatlas.progress import Progress, Report, duration, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Method = Literal["zero", "mean"]

MIN_SOURCES = 20
MIN_BASE = 0.2
MAX_BASE_DIFFERENCE = 0.2
"""Between a task and its control tasks."""
MAX_OVERLAP = 0.15
"""Heads called for a control task among those ablated; the share must be below this."""
N_CONTROLS = 2
BASE_PREFIX = "base-"
DEFINITIONS = 1
"""Goes up when a definition changes: stored answers of the whole model are then asked again."""
LEAST_LEFT = 0.4
"""Of the blocks, those that are run at least, on average over the heads ablated; for estimates."""
N_ALONE = 8


@dataclass(frozen=True)
class Choices:
    """Options of an ablation: how tasks are asked and heads ablated.

    Attributes:
        shots: Examples before each question.
        method: ``"zero"`` or ``"mean"``.
        sources: Sources asked at most.
        max_heads: Heads ablated at most.
        draws: Draws of random heads.
        seed: Of the draws.
    """

    shots: int = 5
    method: Method = "zero"
    sources: int = 64
    max_heads: int = 32
    draws: int = 5
    seed: int = 0

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            HeadatlasError: A number is out of range, or there is no such method.
        """
        if self.method not in get_args(Method):
            raise HeadatlasError(f"`method`: there is no method {self.method!r}; use zero or mean.")
        least = {"shots": 0, "sources": MIN_SOURCES, "max_heads": 1, "draws": 1, "seed": 0}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise HeadatlasError(f"`{name}` is {value!r}: it must be a whole number of at least {low}.")


@dataclass
class Ablations:
    """The result of a run.

    Attributes:
        done: Ablated tasks, new or from earlier runs.
        skipped: Relation → why it was not ablated.
    """

    done: list[Ablation] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def run_ablation(
    atlas: Atlas,
    model: str | Path | PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    only: Sequence[str] | None = None,
    templates: str | Path | None = None,
    choices: Choices | None = None,
    compute: Compute | None = None,
    progress: Report | None = None,
) -> Ablations:
    """Ablate the heads of relations and store what their tasks lose; what is stored is not measured again.

    Arguments and errors are those of :func:`headatlas.evidence.ablation`; ``progress`` is called with each
    step. The atlas's thresholds say which heads are called; control tasks come from all relations. What the
    defaults of ``choices`` are, and why, is in docs/evidence.md.
    """
    tell, chosen = progress or silent, choices or Choices()
    chosen.check()
    found = read_templates(templates)
    tell(Progress("open", 0, 0, atlas.model_name))
    subject = open_subject(atlas, model, tokenizer, compute=compute)
    names = list(dict.fromkeys(atlas.known(name) for name in only)) if only else list(atlas.relation_scores)
    folder = evidence_group(subject.path)
    out = Ablations(skipped=_without_relation(atlas, found))
    with running(subject.prepared.model, subject.device) as modules:
        run = _Run(subject, modules, found, chosen, folder)
        tell(Progress("estimate", 0, 0, run.estimate(names)))
        for at, name in enumerate(names):
            tell(Progress("ablation", at, len(names), name))
            if why := run.problem(name):
                out.skipped[name] = why
            else:
                out.done.append(run.stored(name))
        tell(Progress("ablation", len(names), len(names)))
    return out


def _without_relation(atlas: Atlas, templates: Templates) -> dict[str, str]:
    """Task templates of the user's for which the atlas has no relation: most likely a name is misspelt."""
    known = {*read_templates().tasks, *atlas.relations["relation"]}
    why = "a template is given for it, but the atlas has no such relation"
    return {name: why for name in templates.tasks if name not in known}


class _Run:
    """Tasks of one model, and their answers."""

    def __init__(
        self,
        subject: Subject,
        modules: PreTrainedModel,
        templates: Templates,
        choices: Choices,
        folder: Path,
    ) -> None:
        self._subject = subject
        self._folder = folder
        self._modules = modules
        self._choices = choices
        self._templates = templates.tasks
        words = subject.prepared.model.tokenizer()
        self.tasks: dict[str, Task] = {
            each.relation.name: make_task(
                each,
                words,
                self._templates[each.relation.name],
                shots=choices.shots,
                sources=choices.sources,
            )
            for each in subject.relations
            if each.relation.name in self._templates
        }
        self._base: dict[str, NDArray[np.bool_]] = {}
        self._known: dict[tuple[str, frozenset[Head]], NDArray[np.bool_]] = {}
        self._asked: dict[str, Questions] = {}
        self._means: tuple[str, torch.Tensor] | None = None

    def base(self, name: str) -> NDArray[np.bool_]:
        """[source] right answers of the whole model: those stored in the atlas, or asked and stored."""
        if name not in self._base:
            task, weights = self.tasks[name], self._subject.prepared.provenance["model"]["weights_hash"]
            body = repr([DEFINITIONS, task.prompts, [sorted(right) for right in task.accepted], weights])
            digest = hashlib.sha256(body.encode()).hexdigest()
            place = self._folder / f"{BASE_PREFIX}{digest[:12]}"
            if not place.is_dir():
                right = task.correct(self._questions(name).answers())
                store_dataset(
                    place, xr.Dataset({"base": ("source", right)}), {"relation": name, "digest": digest}
                )
            self._base[name] = np.asarray(read_dataset(place)[0]["base"].values).astype(bool)
        return self._base[name]

    def estimate(self, names: Sequence[str]) -> str:
        """The work ahead, if no answers are stored and every step is measured, and how long it takes here."""
        model = self._subject.prepared.model
        todo = [name for name in names if self._problem_beforehand(name) is None]
        runs = dict.fromkeys(self.tasks, 1.0 if todo else 0.0)
        for name in todo:
            n_heads = len(self._heads(name))
            orders = 2 + self._choices.draws + N_CONTROLS  # the controls' prompts are much as these
            runs[name] += 1 + len(steps_to(n_heads)) * orders + min(N_ALONE, n_heads)
        takes = {name: asking_takes(task.prompts) for name, task in self.tasks.items() if task.prompts}
        tokens, passes = (sum(runs[name] * each[at] for name, each in takes.items()) for at in range(2))
        least, most = passing_seconds(
            model, (LEAST_LEFT * tokens, tokens), (LEAST_LEFT * passes, passes), self._subject.device
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
        if name not in self.tasks:
            return "there is no task template for it; give one with `templates`"
        task = self.tasks[name]
        if len(task.words) < MIN_SOURCES:
            gone = "; ".join(f"{reason} ({len(words)})" for reason, words in task.dropped.items())
            why = f": {gone}" if gone else ""
            examples = "; examples are not asked, see `shots`" if task.shots else ""
            return f"{len(task.words)} pairs can be asked, at least {MIN_SOURCES} needed{why}{examples}"
        return None if self._heads(name) else "the atlas calls no head for it"

    def stored(self, name: str) -> Ablation:
        """The ablation of a relation: from the atlas if it is there, else measured and stored."""
        heads = self._orders(name)
        controls = self._controls(name, heads[RELATION])
        provenance = self._provenance(name, heads, controls)
        label = f"{name}-shots{self._choices.shots}-{self._choices.method}"
        path = Ablation.place(self._folder, label)
        if path.is_dir():
            there = Ablation.read(path)
            if there.provenance.get("key") == provenance["key"]:
                return there
        self._means, self._known, self._asked = None, {}, {}
        store_dataset(path, self._measured(name, heads, controls), provenance)
        return Ablation.read(path)

    def _heads(self, name: str) -> list[Head]:
        """Called heads, best first, no more than asked and than there are others to draw from."""
        table = self._subject.atlas.without_evidence
        mine = table[(table["relation"] == name) & table["implements"]]
        ordered = mine.sort_values("score", ascending=False, kind="stable")[["layer", "head"]].to_numpy()
        n_all = int((table["relation"] == name).sum())
        most = min(self._choices.max_heads, n_all - len(ordered))
        return [(int(layer), int(head)) for layer, head in ordered[:most]]

    def _orders(self, name: str) -> dict[str, list[Head]]:
        """Heads in the order in which they are ablated, for every curve."""
        table = self._subject.atlas.without_evidence
        rows = table[table["relation"] == name]
        heads = self._heads(name)
        by_added = rows.sort_values(["added", "score"], ascending=False, kind="stable")
        others = rows[~rows["implements"]][["layer", "head"]].to_numpy()
        orders = {
            RELATION: heads,
            ADDED: [(int(a), int(b)) for a, b in by_added[["layer", "head"]].to_numpy()[: len(heads)]],
        }
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
        for draw in range(self._choices.draws):
            rng = np.random.default_rng([self._choices.seed, seed, draw])
            drawn = rng.choice(len(others), size=len(heads), replace=False)
            orders[f"{RANDOM} {draw}"] = [(int(a), int(b)) for a, b in others[drawn]]
        return orders

    def _controls(self, name: str, heads: list[Head]) -> list[str]:
        base = float(self.base(name).mean())
        table = self._subject.atlas.without_evidence
        near = []
        for other, task in self.tasks.items():
            rows = table[(table["relation"] == other) & table["implements"]]
            called = {(int(a), int(b)) for a, b in rows[["layer", "head"]].to_numpy()}
            overlap = len(called & set(heads)) / len(heads)
            if other == name or overlap >= MAX_OVERLAP or len(task.words) < MIN_SOURCES:
                continue  # the model need not be asked
            accuracy = float(self.base(other).mean())
            difference = abs(accuracy - base)
            if accuracy >= MIN_BASE and difference <= MAX_BASE_DIFFERENCE:
                near.append((difference, other))
        return [other for _, other in sorted(near)[:N_CONTROLS]]

    def _measured(self, name: str, orders: dict[str, list[Head]], controls: list[str]) -> xr.Dataset:
        n_heads = len(orders[RELATION])
        steps = steps_to(n_heads)
        correct = np.stack(
            [np.stack([self._correct(name, heads[:n]) for n in steps]) for heads in orders.values()]
        )
        alone = np.stack([self._correct(name, [head]) for head in orders[RELATION][:N_ALONE]])
        control = np.array(
            [[self._correct(other, orders[RELATION][:n]).mean() for n in steps] for other in controls]
        ).reshape(len(controls), len(steps))
        places = np.array(list(orders.values()), dtype=np.int32).reshape(len(orders), n_heads, 2)
        strings = np.dtypes.StringDType()
        return xr.Dataset(
            {
                "base": ("source", self.base(name)),
                "correct": (("order", "step", "source"), correct),
                "n_ablated": ("step", np.array(steps, dtype=np.int32)),
                "alone": (("single", "source"), alone),
                "layer": (("order", "rank"), places[..., 0]),
                "head": (("order", "rank"), places[..., 1]),
                "control": (("control_name", "step"), control.astype(np.float64)),
                "control_base": (
                    "control_name",
                    np.array([self.base(other).mean() for other in controls], dtype=np.float64),
                ),
            },
            coords={
                "order": np.array(list(orders), dtype=strings),
                "source": np.array(self.tasks[name].words, dtype=strings),
                "control_name": np.array(controls, dtype=strings),
            },
        )

    def _correct(self, name: str, heads: Sequence[Head]) -> NDArray[np.bool_]:
        """[source] right answers without these heads; orders that agree are measured once."""
        key = name, frozenset(heads)
        if key not in self._known:
            if name not in self._asked:
                self._asked[name] = self._questions(name)
                self._asked[name].answers()
            model, means = self._subject.prepared.model, self._replacement(name)
            with ablated(model, self._modules, sorted(key[1]), means):
                found = self._asked[name].answers([layer for layer, _ in heads])
            self._known[key] = self.tasks[name].correct(found)
        return self._known[key]

    def _questions(self, name: str) -> Questions:
        return Questions(self._subject.prepared.model, self._modules, self.tasks[name].prompts)

    def _replacement(self, name: str) -> torch.Tensor | None:
        """The stand-in for ablated heads in a task; the last task's means are kept."""
        if self._choices.method == "zero":
            return None
        if self._means is None or self._means[0] != name:
            task = self.tasks[name]
            self._means = name, mean_outputs(self._subject.prepared.model, self._modules, task.prompts)
        return self._means[1]

    def _provenance(self, name: str, orders: dict[str, list[Head]], controls: list[str]) -> dict[str, Any]:
        task, prepared = self.tasks[name], self._subject.prepared.provenance
        said = {
            "relation": name,
            "template": task.template,
            "shots": task.shots,
            "method": self._choices.method,
            "thresholds": asdict(self._subject.atlas.thresholds),
            "seed": self._choices.seed,
            "controls": controls,
            "model": prepared["model"],
            "lens": prepared["lens"],
        }
        asked = [list(task.prompts), [sorted(right) for right in task.accepted]]
        body = repr([said["method"], asked, orders, controls, prepared["model"]["weights_hash"]])
        return {
            **said,
            "dropped": {reason: list(words) for reason, words in task.dropped.items()},
            "versions": prepared["versions"],
            "key": hashlib.sha256(body.encode()).hexdigest(),
        }


def steps_to(n: int) -> list[int]:
    """1, 2, 4, 8, … and n."""
    return [*(2**power for power in range(n.bit_length()) if 2**power < n), n]
