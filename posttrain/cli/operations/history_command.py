"""`posttrain history`: all runs of a model."""

from __future__ import annotations

import json
from pathlib import Path

import click

from posttrain.cli.options import FILE
from posttrain.cli.outcome import clean_errors, echo, write_file

N_ROWS = 30


@click.command()
@click.argument("name", required=False)
@click.option("--all", "all_rows", is_flag=True, help=f"Print all rows, not only the newest {N_ROWS}.")
@click.option("--json", "as_json", is_flag=True, help="Print all runs as JSON, for scripts.")
@click.option("--html", type=FILE, help="Write a page with a chart and all runs to this file.")
def history(name: str | None, all_rows: bool, as_json: bool, html: Path | None) -> None:
    """Print all runs of a model, with what each found and cost, and every change of the version in production.

    NAME is the `name` of the config. Without NAME, the model of the last run is shown.
    """
    with clean_errors():
        from posttrain.orchestration.history.model_history import history_of
        from posttrain.reporting.pages.history_page import history_page
        from posttrain.reporting.past_runs.history_table import print_history

        found = history_of(name)
        if html:
            write_file(html, history_page(found))
    if html:
        echo(f"Written: {html}")
    elif as_json:
        echo(json.dumps(found.as_dict(), indent=2))
    else:
        print_history(found, None if all_rows else N_ROWS)
