"""``octavo pull``: fetch a model and print where it is."""

from __future__ import annotations

import click


@click.command()
@click.argument("model")
@click.option("--revision", help="Branch, tag or commit of a hub repository.")
@click.option("--quiet", is_flag=True, help="Show no progress bars.")
def pull(model: str, revision: str | None, quiet: bool) -> None:
    """Download MODEL unless it is here already, and print its path.

    MODEL is an alias (smollm2-135m), owner/name or owner/name:file.gguf on the Hugging Face hub, or a path.
    """
    from octavo.weights.open import open_checkpoint
    from octavo.weights.source import resolve

    path = resolve(model, revision=revision, progress=not quiet)
    open_checkpoint(path)  # what was fetched can also be run
    click.echo(path)
