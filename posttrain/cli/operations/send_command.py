"""`posttrain send`: send to MLflow what a run could not."""

from __future__ import annotations

import click

from posttrain.cli.outcome import clean_errors, echo


@click.command()
@click.argument("files", nargs=-1, required=True)
def send(files: tuple[str, ...]) -> None:
    """Send to MLflow what a run could not send.

    FILES are those that the run has named, on this machine or in the artifact store.
    """
    with clean_errors():
        from posttrain.orchestration.running_step.step_tracking import send_unsent

        for file in files:
            n_records = send_unsent(file)
            echo(f"{file}: {n_records} records are in MLflow")
