"""`posttrain trace`: find a row in the stored data, and the models that were trained on it."""

from __future__ import annotations

import functools

import click

from posttrain.cli.outcome import clean_errors, echo

N_SHOWN = 20
WIDTH = 80


@click.command()
@click.argument("row", required=False)
@click.option("--file", metavar="FILE", help="Find all rows of a file as in data.exclude instead.")
def trace(row: str | None, file: str | None) -> None:
    """Find ROW in the data of all runs, and the models that were trained on it.

    ROW is the id of a row, or a text that its prompt or a response contains, without regard to case. For each row the source, the
    split, and the checkpoints and promoted versions are printed.
    """
    if bool(row) == bool(file):
        raise click.UsageError("give either ROW, an id or a text, or --file FILE")
    with clean_errors():
        from posttrain.data.exclusion import Exclusion
        from posttrain.data.search import find_excluded, find_rows
        from posttrain.orchestration.tracing import trace as find

        if row:
            found = find(functools.partial(find_rows, wanted=row))
        else:
            found = find(functools.partial(find_excluded, exclusion=Exclusion(file)))
    echo(f"{len(found.rows)} rows found in {found.n_datasets} different data sets")
    for known in found.rows[:N_SHOWN]:
        text = " ".join(known.text.split())
        echo(
            f"{known.id}  {known.source}  {known.kind}, {known.split}: {text if len(text) <= WIDTH else text[:WIDTH] + '…'}"
        )
        for model in sorted(known.models):
            echo(f"  trained on it: {model}")
        if not known.models:
            echo("  no stored model was trained on it")
    if len(found.rows) > N_SHOWN:
        rest = sorted({model for known in found.rows[N_SHOWN:] for model in known.models})
        echo(f"and {len(found.rows) - N_SHOWN} more, trained on by {', '.join(rest) or 'no stored model'}")
    if found.unknown:
        echo(f"Not known, because their training data was deleted: {', '.join(found.unknown)}", err=True)
