"""`posttrain why`: why each step of a run was computed or taken from the cache."""

from __future__ import annotations

import shutil

import click

from posttrain.cli.outcome import clean_errors, echo


@click.command()
@click.argument("run", required=False)
@click.option("--ids", is_flag=True, help="Print the ids of all added and removed rows.")
def why(run: str | None, ids: bool) -> None:
    """Print what changed in a run, and why each step ran or was cached.

    It is compared with the last successful run before it of the same model. RUN is a name or an id. Without RUN, the last run of
    dpo_pipeline is explained.
    """
    with clean_errors():
        from posttrain.orchestration.history.why import explain_run
        from posttrain.reporting.past_runs.explanation import explanation_lines

        for line in explanation_lines(explain_run(run), shutil.get_terminal_size().columns, ids):
            echo(line)
