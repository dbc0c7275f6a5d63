"""Write docs/cli.md from the commands themselves: ``python docs/make_cli.py``, or ``make docs``."""

from __future__ import annotations

from pathlib import Path

import typer.main
from typer.testing import CliRunner

from headatlas.cli import app

TARGET = Path(__file__).parent / "cli.md"

INTRODUCTION = """\
# The commands

This page is written by `docs/make_cli.py` from the commands themselves.

Data go to standard output, everything else (progress, captions, messages, errors) to standard error. So
`headatlas heads demo --json > heads.json` gives a clean file. There are no colour codes in what is piped.

What was given wrongly is said in one line that begins with `error:`, with exit code 2. `--debug`, anywhere on
the command line, shows the traceback instead; so does the environment variable `HEADATLAS_DEBUG=1`. Ctrl-C
in a long command ends it with exit code 130, SIGTERM with 143; one sentence says what is kept. A second
signal changes nothing. A command whose output nobody reads any more (`headatlas heads demo | head -3`) ends
in silence, with 141 as after SIGPIPE. Finished layers and measurements stay; what a command that measures
writes to DIR/evidence is written all the same.

`--quiet` (`-q`) says nothing but errors; `--verbose` (`-v`) says more, such as the time of each stage. Both
work anywhere on the command line. `--json` prints an object with what would be a table under `rows`;
[json.md](json.md) describes it.

`headatlas --install-completion` makes the shell complete commands and options. `python -m headatlas` is the
same as `headatlas`.
"""

EXAMPLES = {
    "plan": ["headatlas plan smollm2-135m", "headatlas plan ./my-model --lens maps --json"],
    "map": [
        "headatlas map smollm2-135m -o demo",
        "headatlas map ./my-model --relations core,my_relations/ -o mine",
        "headatlas map openai-community/gpt2-xl --preset maps-paper -o gpt2-xl-paper",
        "headatlas map ./my-model --layers 0-15 -o mine    # another machine can do --layers 16-31",
        "headatlas map ./my-model -o mine --cluster auto    # on the machines of a Ray cluster",
    ],
    "heads": [
        "headatlas heads demo",
        "headatlas heads demo --only country_to_capital --json",
        "headatlas heads demo --category Knowledge --tau 0.3",
    ],
    "head": ["headatlas head demo 23.4"],
    "describe": ["headatlas describe demo"],
    "info": ["headatlas info demo"],
    "plot": [
        "headatlas plot demo -o figure.pdf --width 170mm",
        "headatlas plot demo --panels subcategory -o finer.pdf",
        "headatlas plot demo --width 85mm --letters --no-caption -o column.pdf",
        "headatlas plot demo --kind relations --which Knowledge --dark -o slide.png",
        "headatlas plot demo --kind relations -o relations.svg --data relations.csv",
        "headatlas plot demo --kind behaviours --which induction --width 85mm -o induction.pdf",
        "headatlas plot demo --kind ablation --which country_to_capital --dark -o ablation.png",
    ],
    "report": ["headatlas report demo -o page.html --tau 0.3"],
    "export": ["headatlas export demo -o heads.csv", "headatlas export demo -o heads.parquet --k 5"],
    "structure": ["headatlas structure demo", "headatlas structure demo --json -o structure.pdf"],
    "compare": [
        "headatlas compare demo other -o compare.pdf --page compare.html",
        "headatlas compare Q8.gguf Q4.gguf --maps maps",
        "headatlas compare step1000 step2000 step3000 --kind trajectory -o training.pdf",
        "headatlas compare demo other --page compare.html --q-at 5",
        "headatlas compare demo other --data heads.csv --json",
    ],
    "relations list": ["headatlas relations list", "headatlas relations list all --long"],
    "relations check": [
        "headatlas relations check my_relations/",
        "headatlas relations check my_relations/ --tokenizer smollm2-135m",
    ],
    "relations show": ["headatlas relations show capital", "headatlas relations show Greek"],
    "relations new": ["headatlas relations new metal_symbol --category Chemistry -o metal_symbol.json"],
    "relations export": ["headatlas relations export copying,capital -o my_relations"],
    "relations mine": ["headatlas relations mine demo", "headatlas relations mine demo -o mined"],
    "families list": ["headatlas families list"],
    "families check": [
        "headatlas families check ./my-model",
        "headatlas families check ./my-model --write my_family.toml",
        "headatlas families check ./my-model --family my_family.toml --json",
    ],
    "evidence inference": [
        "headatlas evidence inference demo",
        "headatlas evidence inference demo --only country_to_capital,verb_to_past_tense --json",
    ],
    "evidence attention": [
        "headatlas evidence attention demo",
        "headatlas evidence attention demo --only country_to_capital --json",
    ],
    "evidence ablation": [
        "headatlas evidence ablation demo",
        "headatlas evidence ablation demo --ablate-heads 23.4,24.5 --only country_to_capital",
        "headatlas evidence ablation demo --only country_to_capital --shots 0",
    ],
    "behaviour": [
        "headatlas behaviour demo",
        "headatlas behaviour demo --only induction,previous_token --json",
        "headatlas behaviour demo --text my_text.txt",
    ],
    "salience": [
        "headatlas salience demo",
        "headatlas salience demo --head 23.4",
        "headatlas salience demo --tokens initial --json",
    ],
    "ask": [
        "headatlas ask demo 23.4 Portugal",
        "headatlas ask demo 23.4 Portugal Poland --top 5 --json",
    ],
    "query": [
        "headatlas query demo France=Paris Italy=Rome",
        "headatlas query smollm2-135m red=rouge --top 5 --json",
    ],
    "serve": [
        "headatlas serve demo --open",
        "headatlas serve demo --host 0.0.0.0 --port 8000    # prints an address with a token",
    ],
    "label": [
        "headatlas label demo",
        "headatlas label demo --describe-with http://localhost:11434/v1 --model-name llama3.2",
        "headatlas label demo --only 23.4,29.2 --json",
    ],
    "recipe": [
        "headatlas recipe demo --relation country_to_capital",
        "headatlas recipe demo --relation country_to_capital --do scale --factor 2 -o scaled.py",
        "headatlas recipe demo --heads 23.4,29.2 --as nnsight --do watch",
        "headatlas recipe demo --heads 23.4,29.2 --as checkpoint -o without.safetensors",
    ],
}


def commands() -> list[tuple[str, ...]]:
    """Every command as the words after ``headatlas``, groups left out, in the order of the help."""
    found: list[tuple[str, ...]] = []
    for name, command in typer.main.get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        found += [(name,)] if inner is None else [(name, each) for each in inner]
    return found


def help_text(*words: str) -> str:
    """What ``headatlas WORDS --help`` prints, 80 columns wide."""
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="headatlas", env={"COLUMNS": "82"})
    if result.exit_code:
        raise RuntimeError(f"headatlas {' '.join(words)} --help fails: {result.output}")
    return result.stdout.strip()


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, f"```text\n{help_text()}\n```\n"]
    for words in commands():
        name = " ".join(words)
        examples = "\n".join(EXAMPLES[name])
        parts.append(f"## {name}\n\n```sh\n{examples}\n```\n\n```text\n{help_text(*words)}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
