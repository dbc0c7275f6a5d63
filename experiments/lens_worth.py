"""Compare variants of a lens by agreement with text and by ablation; look for what explains the gap.

    python -m experiments.lens_worth agreement [--model smollm2-135m] [--out lens-worth]
    python -m experiments.lens_worth ablation
    python -m experiments.lens_worth gap [--relations rest]

Variants, words and metrics are fixed in docs/lenses.md. Scores are kept in the folder ``--out`` and not
computed again; give each model a folder of its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from experiments.worth_ablation import ablation_table
from experiments.worth_agreement import as_markdown, by_relation, table
from experiments.worth_gap import gap_tables, predicted_scores, predictors
from experiments.worth_scores import Bench, choose_words
from experiments.worth_variants import dynamic_scores, static_scores
from headatlas.architectures import open_model
from headatlas.evidence.texts import read_templates
from headatlas.lenses.forward import running
from headatlas.relations import core
from headatlas.weights import open_checkpoint

RELATIONS = (
    *("name_copying", "word_to_first_letter", "country_to_capital", "country_to_language"),
    *("verb_to_past_tense", "word_to_antonym", "english_to_french", "english_to_spanish"),
)
SOURCES = 64
PARTS = ("agreement", "ablation", "gap")


def main() -> None:
    """Run a part and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=Path("lens-worth"))
    parser.add_argument("--relations", choices=["chosen", "rest"], default="chosen")
    arguments = parser.parse_args()
    wanted = [each for each in core() if (each.name in RELATIONS) == (arguments.relations == "chosen")]
    folder = claimed(arguments.out / arguments.relations, arguments.model, [each.name for each in wanted])
    model = open_model(open_checkpoint(arguments.model))
    bench = Bench(model, choose_words(model, wanted, read_templates().context, SOURCES), folder)
    found = [f"{each.relation.name} {len(each.pairs)}" for each in bench.words.relations]
    print(f"{arguments.model}; sources: {', '.join(found)}", flush=True)
    PART[arguments.part](bench)


def claimed(folder: Path, model: str, names: list[str]) -> Path:
    """The folder, made for this model and these relations.

    Raises:
        SystemExit: It was made for others.
    """
    wanted = {"model": model, "relations": names, "sources": SOURCES}
    index = folder / "about.json"
    folder.mkdir(parents=True, exist_ok=True)
    if not index.exists():
        index.write_text(json.dumps(wanted), encoding="utf-8")
    if json.loads(index.read_text(encoding="utf-8")) != wanted:
        raise SystemExit(f"{folder} holds another model or other relations; give another --out")
    return folder


def agreement_part(bench: Bench) -> None:
    """Metrics (a) and (c)."""
    with running(bench.model) as modules:
        context, without, _ = dynamic_scores(bench, modules)
        static = static_scores(bench, modules)
    print(as_markdown(table(static, context, without)))
    each = by_relation(static, context, bench.words.names).round(2)
    print(as_markdown(each.reset_index(names="variant")))


def ablation_part(bench: Bench) -> None:
    """Metric (b)."""
    with running(bench.model) as modules:
        static = static_scores(bench, modules)
        attention, mixture, _ = predicted_scores(bench, modules)
        found = predictors(static["neutral"][0], attention, mixture[0])
        extra = {name: found[name] for name in ("mixture", "product + mixture")}
        print(as_markdown(ablation_table(bench, modules, static, extra)))


def gap_part(bench: Bench) -> None:
    """Look for what explains the gap between scores with and without context."""
    with running(bench.model) as modules:
        for frame in gap_tables(bench, modules):
            print(as_markdown(frame), end="\n\n")


PART = {"agreement": agreement_part, "ablation": ablation_part, "gap": gap_part}

if __name__ == "__main__":
    main()
