"""The application: global options, how errors are said, and which commands there are."""

from __future__ import annotations

import gc
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headatlas import __version__
from headatlas.cli import (
    compare,
    evidence,
    families,
    heads,
    map,
    plot,
    relations,
    serve,
    words,
)
from headatlas.cli.output import say, say_error, set_level
from headatlas.errors import HeadatlasError

GLOBAL = ("--debug", "--quiet", "-q", "--verbose", "-v")
"""Options that people add to the end of a command; they are taken at any place."""
GARBAGE_AFTER = 200_000
"""New objects after which Python looks for unreachable cycles among them."""


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
            # pydantic, with which typer reads values, names the class of its error first.
            said = f"{error.param.opts[0]}: {error.message.removeprefix('Value error, ')}"
        say_error(said)
        raise typer.Exit(2)


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
        bool,
        typer.Option("--debug", envvar="HEADATLAS_DEBUG", help="Show the traceback of an error."),
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


for _commands in (
    map,
    heads,
    plot,
    compare,
    relations,
    families,
    evidence,
    words,
    serve,
):
    _commands.register(app)


def main() -> None:
    """The entry point of the ``headatlas`` command."""
    # Imports make some hundred thousand objects that stay; the default of 700 looks at them again and again.
    gc.set_threshold(GARBAGE_AFTER)
    try:
        app(prog_name="headatlas")
    finally:
        gc.freeze()  # without it the interpreter visits every object of torch once more before it ends
