"""The application: global options, how errors are said, and which commands there are."""

from __future__ import annotations

import gc
import io
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headatlas import __version__
from headatlas.cli import compare, evidence, families, heads, map, relations, words
from headatlas.cli.output import say, say_error, set_level
from headatlas.errors import HeadatlasError

GLOBAL = ("--debug", "--quiet", "-q", "--verbose", "-v")
"""Options that people add to the end of a command; they are taken at any place."""
BROKEN_PIPE = 128 + 13
"""Exit code that a shell has of a program which SIGPIPE ends."""
GARBAGE_AFTER = 200_000
"""New objects after which Python looks for unreachable cycles among them."""

_MUST_BE = {
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
}
"""A kind of error of pydantic → what a value must be."""


class _Commands(TyperGroup):
    """Turns a HeadatlasError into one line and exit code 2, and takes global options at any place."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        first = [arg for arg in args[:end] if arg in GLOBAL]
        rest = [arg for arg in args[:end] if arg not in GLOBAL]
        return super().parse_args(ctx, [*first, *rest, *args[end:]])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HeadatlasError as error:
            if ctx.params.get("debug"):
                raise
            said = str(error)
        except typer.BadParameter as error:
            if error.param is None or not error.message:  # something is missing: typer says what
                raise
            said = _refused(error.param.opts[0], error)
        say_error(said)
        raise typer.Exit(2)


def _refused(option: str, error: typer.BadParameter) -> str:
    """A value that cannot be taken, in the words of our own errors."""
    # pydantic, which reads values for typer, does not say which, and names the class of its error first.
    for each in getattr(error.__cause__, "errors", list)():
        if each["type"] in _MUST_BE:
            must = _MUST_BE[each["type"]].format(**each.get("ctx", {}))
            return f"{option} is {each['input']}: it must be {must}."
    return f"{option}: {error.message.removeprefix('Value error, ')}"


def _not_there(error: OSError) -> str:
    """A refusal of the system in words, where no command said it better."""
    why = error.strerror or str(error)
    if error.filename is None:
        return (
            f"standard output, or a file, cannot be written or read ({why}); make room, or write elsewhere."
        )
    return f"{error.filename}: cannot be read or written ({why}); check the path and its permissions."


app = typer.Typer(
    name="headatlas",
    cls=_Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headatlas {__version__}")
        raise typer.Exit()


@app.callback()
def _global(
    version: Annotated[  # noqa: ARG001 - its callback prints it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[  # noqa: ARG001 - read where errors are caught
        bool, typer.Option("--debug", envvar="HEADATLAS_DEBUG", help="Show the traceback of an error.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say more, such as the time of each stage.")
    ] = False,
) -> None:
    """Say what every attention head of a language model does.

    Start with `headatlas map smollm2-135m -o demo`, then `headatlas heads demo`.
    """
    set_level(quiet=quiet, verbose=verbose)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")


_COMMANDS: dict[str, Callable[..., None]] = {
    "plan": map.plan_command,
    "map": map.map_command,
    "heads": heads.heads_command,
    "head": heads.head_command,
    "describe": heads.describe_command,
    "info": heads.info_command,
    "structure": heads.structure_command,
    "plot": heads.plot_command,
    "report": heads.report_command,
    "export": heads.export_command,
    "compare": compare.compare_command,
    "behaviour": evidence.behaviour_command,
    "salience": evidence.salience_command,
    "label": evidence.label_command,
    "ask": words.ask_command,
    "query": words.query_command,
    "recipe": words.recipe_command,
    "serve": words.serve_command,
    "relations list": relations.list_relations,
    "relations check": relations.check_relations,
    "relations show": relations.show_relations,
    "relations new": relations.new_relation,
    "relations export": relations.export_relations,
    "relations mine": relations.mine_relations_command,
    "families list": families.list_families,
    "families check": families.check_family,
    "evidence inference": evidence.inference_command,
    "evidence attention": evidence.attention_command,
    "evidence ablation": evidence.ablation_command,
}
_GROUPS = {
    name: typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=what)
    for name, what in (
        ("relations", "The relations to look for."),
        ("families", "The models that can be read."),
        ("evidence", "Check a map against the running model."),
    )
}
for _name, _command in _COMMANDS.items():
    _group, _, _part = _name.rpartition(" ")
    (_GROUPS[_group] if _group else app).command(_part)(_command)
for _name, _typer in _GROUPS.items():
    app.add_typer(_typer, name=_name)


def _nobody_reads(error: BaseException) -> bool:
    """Whether a command ended for a pipe whose reader is gone; typer ends it with 1, without a word."""
    return any(isinstance(each, BrokenPipeError) for each in (error, error.__context__))


def main() -> None:
    """The entry point of the ``headatlas`` command."""
    # Imports make some hundred thousand objects that stay; the default of 700 looks at them again and again.
    gc.set_threshold(GARBAGE_AFTER)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # in an encoding that may lack characters of ours
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="headatlas")
    except (OSError, SystemExit) as error:
        if _nobody_reads(error):
            sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # typer has put others in their place
            for number in (1, 2):  # what they still hold has to go somewhere when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            raise SystemExit(BROKEN_PIPE) from None
        if isinstance(error, SystemExit) or "--debug" in sys.argv or os.environ.get("HEADATLAS_DEBUG"):
            raise
        say_error(_not_there(error))
        raise SystemExit(2) from None
    finally:
        gc.freeze()  # without it the interpreter visits every object of torch once more before it ends
