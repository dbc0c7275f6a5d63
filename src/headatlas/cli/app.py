"""The application: global options, how errors are said, and which commands there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from headatlas import __version__
from headatlas.cli import arranging, catalogue, drawing, evidence, making, reading
from headatlas.cli.output import say
from headatlas.errors import HeadatlasError


class _Commands(TyperGroup):
    """Turns a HeadatlasError into one line and exit code 2, and takes ``--debug`` at any place."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # People add --debug to the end of the command that failed.
        end = args.index("--") if "--" in args else len(args)
        if "--debug" in args[:end]:
            args = ["--debug", *(arg for arg in args[:end] if arg != "--debug"), *args[end:]]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HeadatlasError as error:
            if ctx.params.get("debug"):
                raise
            say(f"error: {error}")
            raise typer.Exit(2) from error


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
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="HEADATLAS_DEBUG", help="Show the traceback of an error."),
    ] = False,
) -> None:
    """Say what every attention head of a language model does.

    Start with `headatlas map smollm2-135m -o demo`, then `headatlas heads demo`.
    """


making.register(app)
reading.register(app)
drawing.register(app)
arranging.register(app)
catalogue.register(app)
evidence.register(app)


def main() -> None:
    """The entry point of the ``headatlas`` command."""
    app(prog_name="headatlas")
