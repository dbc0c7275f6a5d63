"""``serve``: an atlas with its model behind it."""

from __future__ import annotations

from typing import Annotated

from headatlas.cli.options import AtlasArgument, ModelOption, computes, option
from headatlas.cli.output import print_text, progress_shown, say, stopping
from headatlas.options import Compute

STOPPED_SERVING = "stopped; nothing was stored"


@computes("device", "max_memory")
def serve_command(
    folder: AtlasArgument,
    compute: Compute,
    model: ModelOption = None,
    port: Annotated[int, option("--port", "Listen at this port; 0: a free one.", "N", min=0, max=65535)] = 0,
    host: Annotated[
        str, option("--host", "Listen at this address. All but loopback ask for a token.", "ADDRESS")
    ] = "127.0.0.1",
    open_browser: Annotated[bool, option("--open/--no-open", "Open the page in a browser.")] = False,
) -> None:
    """Show an atlas's page and answer questions there: your own pairs, words and texts.

    The model is opened once and kept in memory. The address is printed; with --host it holds a token, made
    anew each time or taken from the environment variable HEADATLAS_TOKEN. Nothing is stored. Ctrl-C ends it.
    """
    from headatlas.atlas import Atlas
    from headatlas.serving.run import (
        access_for,
        address_of,
        application,
        listen,
        open_answers,
        serve_until_stopped,
    )

    atlas = Atlas.open(folder)
    access = access_for(host)
    listening = listen(host, port)
    with listening, stopping(lambda: STOPPED_SERVING):
        with progress_shown() as progress:
            answers = open_answers(atlas, model, None, compute, progress)
        app = application(atlas, answers, access)
        address = address_of(listening, access)

        def ready() -> None:
            print_text(address)
            say(f"{atlas.model_name} answers at this address: open it in a browser. Ctrl-C ends it.")
            if open_browser:
                import webbrowser

                webbrowser.open(address)

        serve_until_stopped(app, listening, ready)
        say(STOPPED_SERVING)
