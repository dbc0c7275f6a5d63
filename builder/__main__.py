"""The builder's commands: fetch packages, build relations, draw samples to judge, report, write cards."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

from builder import building, cards, verdicts
from builder.catalogue import Entry, catalogue
from builder.facts import FactsError, Pairs
from builder.packages import packages
from builder.store import Store

ROOT = Path(__file__).parent.parent
DATA = ROOT / "src" / "headatlas" / "relations" / "data"
NOTICE = ROOT / "NOTICE"
NOTICE_MARK = "Data in src/headatlas/relations/data comes from, or was checked with, these works:\n\n"


def main() -> int:
    """Run one command; 2 if something is missing or malformed."""
    parser = argparse.ArgumentParser(prog="python -m builder", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in [
        ("fetch", "bring the packages into FOLDER and unpack them"),
        ("build", "write src/headatlas/relations/data and NOTICE"),
        ("sample", "write the samples to judge into builder/verdicts"),
        ("report", "say what is judged, and with which bound"),
        ("show", "print the pairs of relations"),
    ]:
        command = commands.add_parser(name, help=help_text)
        command.add_argument("folder", type=Path, help="the folder of packages")
        command.add_argument("names", nargs="*", help="relations; all if none is named")
    counting = commands.add_parser("count", help="count the sources that tokenizers can use")
    counting.add_argument(
        "tokenizers", nargs="+", metavar="NAME=FOLDER", help="what cards call it, its files"
    )
    commands.add_parser("cards", help="write docs/relations")
    commands.add_parser("agreement", help="say how far the two readings agree")
    arguments = parser.parse_args()
    try:
        if arguments.command == "fetch":
            fetch(arguments.folder)
        elif arguments.command == "count":
            folders = dict(each.split("=", 1) for each in arguments.tokenizers)
            text = cards.count({name: Path(folder) for name, folder in folders.items()})
            cards.USABLE.write_text(text, encoding="utf-8")
        elif arguments.command == "agreement":
            found = verdicts.agreement(verdicts.second_reading())
            print(
                f"{found.n} pairs read twice, {found.only_first + found.both_bad} wrong for the first, "
                f"{found.only_second + found.both_bad} for the second reading, {found.both_bad} for both; "
                f"agreement {found.raw:.1%}, Cohen's kappa {found.kappa:.3f}"
            )
        elif arguments.command == "cards":
            for name, text in cards.pages().items():
                cards.PAGES.mkdir(exist_ok=True)
                (cards.PAGES / name).write_text(text, encoding="utf-8")
        else:
            run(arguments.command, arguments.folder, arguments.names)
    except (FactsError, ImportError, OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def fetch(folder: Path) -> None:
    """Download every package with its own tool and unpack it into a folder of its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in packages().values():
        if package.fetch:
            command = shlex.split(package.fetch)
            if command[0] == "pip":  # that of this Python
                command[:1] = [sys.executable, "-m", "pip"]
            subprocess.run(command, cwd=folder, check=True)
    for path in sorted(folder.iterdir()):
        if path.suffix == ".deb":
            subprocess.run(["dpkg-deb", "-x", path, folder / path.stem], check=True)
        elif path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
        elif path.suffix == ".tgz":
            with tarfile.open(path) as archive:
                archive.extractall(folder / path.stem, filter="data")


def run(command: str, folder: Path, names: list[str]) -> None:
    """Make the relations asked for and do with them what the command says."""
    unknown = set(names) - set(catalogue())
    if unknown:
        raise ValueError(f"no relation {sorted(unknown)[0]!r} in builder/catalogue.toml")
    store = Store(folder)
    chosen = [catalogue()[name] for name in names or catalogue()]
    relations = [(entry, building.made(entry, store)) for entry in chosen]
    {"build": build, "sample": draw, "report": report, "show": show}[command](relations)


def build(relations: list[tuple[Entry, Pairs]]) -> None:
    """Write the files, remove those the catalogue does not name, and bring NOTICE up to date."""
    for entry, pairs in relations:
        path = DATA / entry.category.lower() / f"{entry.name}.json"
        body = building.document(entry, pairs, building.judgement(entry, pairs))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(building.text(body), encoding="utf-8")
    if len(relations) == len(catalogue()):
        for path in DATA.glob("*/*.json"):
            if path.stem not in catalogue():
                path.unlink()
        used = {key for entry, _ in relations for key in entry.sources}
        before = NOTICE.read_text(encoding="utf-8").partition(NOTICE_MARK)[0]
        NOTICE.write_text(before + NOTICE_MARK + building.notice(used), encoding="utf-8")


def draw(relations: list[tuple[Entry, Pairs]]) -> None:
    """Write the samples of relations that are not in core."""
    for entry, pairs in relations:
        if not entry.core:
            path = building.HERE / "verdicts" / f"{entry.name}.tsv"
            verdicts.write_sample(entry.name, pairs, path, entry.draw)


def report(relations: list[tuple[Entry, Pairs]]) -> None:
    """One line a relation: pairs, verdicts, errors, bound."""
    for entry, pairs in relations:
        quality = building.judgement(entry, pairs)
        if quality is None:
            print(f"{entry.name:36} {len(pairs):4} pairs  core: every pair read")
        else:
            print(
                f"{entry.name:36} {len(pairs):4} pairs  {quality.judged:3} of {quality.sampled:3} judged  "
                f"{quality.wrong} wrong  upper bound {quality.upper:5.1%}  "
                f"{'shipped' if quality.shipped else 'not shipped'}"
            )


def show(relations: list[tuple[Entry, Pairs]]) -> None:
    """Print pairs to read."""
    for entry, pairs in relations:
        print(f"## {entry.name} ({len(pairs)})")
        print("; ".join(f"{source}: {', '.join(targets)}" for source, targets in pairs.items()))


if __name__ == "__main__":
    sys.exit(main())
