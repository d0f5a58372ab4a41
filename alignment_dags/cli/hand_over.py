"""Verbs that hand a registered model over: its card, a server, its publication, and votes of people on two models."""

from __future__ import annotations

import signal
import sys
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
    """Print a version's model card: what it was made from, how good it is, its limits, and what is unknown."""
    from alignment_dags.registry.cards import show_card, write_card
    from resources.home import ensure_home

    ensure_home()
    tell(lambda: write_card(model, out), as_json, show_card)


def publish(
    model: Annotated[str, typer.Argument(help="Registered model.", autocompletion=recipe_completions)],
    recipe: Annotated[Path | None, typer.Option(help="Its recipe (YAML), if not among those in use.")] = None,
    as_json: AsJson = False,
) -> None:
    """Publish the champion where its recipe says; nothing is done if it is there already."""
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
    """Serve a checkpoint with the OpenAI API until Ctrl-C; one request at a time, for a look."""
    quiet()
    from alignment_dags.registry.serve import find, serve, token_of

    token, made = token_of(token_env, host, no_token)  # before a model is loaded
    served = find(model, say)
    server = serve(served, host, port, token, precision)
    say(f"serving checkpoint {served.digest[:12]} until Ctrl-C; requests name it {' or '.join(served.names)}")
    if made:
        say(f"token, shown this once: {token}")
    print(server.url, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # as services are stopped
    try:
        server.serve_forever()
    finally:
        server.server_close()


ab = typer.Typer(help="Two models compared by people.", no_args_is_help=True)
SIDE = "MODEL@version, a recipe (its newest policy), RECIPE@sft, or with --items FILE a folder or a file of answers."


@ab.command("export")
def ab_export(
    a: Annotated[str, typer.Argument(help=f"The first model: {SIDE}")],
    b: Annotated[str, typer.Argument(help="The second model, whose win rate the votes give.")],
    items: Annotated[str, typer.Option(help="A suite that both have answered, or a file of prompts to answer now.")],
    out: Annotated[Path, typer.Option(help="Folder to make, for the people who vote.")],
    key: Annotated[Path | None, typer.Option(help="File of the key; OUT.key.json by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of order and sides; drawn, and kept in the key.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most items, drawn by the seed.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens, with a file of prompts.")] = 512,
    precision: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="Precision of models, with a file of prompts.")
    ] = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Write a page on which people choose between two models' answers without knowing whose they are."""
    quiet()
    from alignment_dags.registry.ab import export_ballot, show_exported

    tell(
        lambda: export_ballot(a, b, items, out, key, seed, limit, max_new_tokens, precision, say),
        as_json,
        show_exported,
    )


@ab.command("import")
def ab_import(
    votes: Annotated[list[Path], typer.Argument(help="Files of votes, as the page saves them.")],
    key: Annotated[Path, typer.Option(help="The key that `align ab export` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Turn votes into the second model's win rate with its 95 % interval; ties count half."""
    from alignment_dags.registry.ab import import_votes, show_result

    tell(lambda: import_votes(votes, key), as_json, show_result)
