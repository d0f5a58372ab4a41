"""Verbs that hand a registered model over: its card, a server, its publication, and votes of people on two models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from alignment_dags.cli.arguments import Model, recipe_completions
from alignment_dags.cli.output import AsJson, quiet, say, tell


def card(
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Write it to this file instead of printing it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a version's card: base, data with licences, method, evaluations with intervals, limits, and what is
    unknown."""
    from alignment_dags.registry.cards import show_card, write_card
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: write_card(model, out), as_json, show_card)


def publish(
    model: Annotated[str, typer.Argument(help="Registered model.", autocompletion=recipe_completions)],
    recipe: Annotated[Path | None, typer.Option(help="Its recipe (YAML), if not among those in use.")] = None,
    as_json: AsJson = False,
) -> None:
    """Publish the champion where its recipe's section `publish` says; nothing is done if it is there already."""
    from alignment_dags.registry.cards import publish_champion, show_published
    from resources.home import ensure_home

    ensure_home()
    result = tell(lambda: publish_champion(model, recipe), as_json, show_published)
    if result["withheld"]:
        raise typer.Exit(1)


def serve(
    model: Annotated[
        str,
        typer.Argument(
            help="MODEL, MODEL@champion, MODEL@version, or a folder of `align export`.",
            autocompletion=recipe_completions,
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 are open to others.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    precision: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Precision of weights and computation.")
    ] = "bfloat16",
    token_env: Annotated[
        str, typer.Option(help="Environment variable with the token; without it a token is made and printed once.")
    ] = "ALIGN_SERVE_TOKEN",
    no_token: Annotated[bool, typer.Option("--no-token", help="Ask for no token; on 127.0.0.1 only.")] = False,
) -> None:
    """Serve a checkpoint with the OpenAI API (chat completions, completions) until Ctrl-C; for a look, not for load."""
    quiet()
    from alignment_dags.registry.serve import find, serve, token_of

    token, made = token_of(token_env, host, no_token)  # before a model is loaded
    served = find(model, say)
    server = serve(served, host, port, token, precision)
    say(f"{served.names[0]}, checkpoint {served.digest[:12]}, as {', '.join(served.names)}")
    if made:
        say(f"token, shown this once: {token}")
    print(server.url, flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()
