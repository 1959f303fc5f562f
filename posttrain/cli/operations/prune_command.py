"""`posttrain prune`: give space back."""

from __future__ import annotations

import click

from posttrain.cli.outcome import clean_errors, echo


@click.command()
@click.option("--keep", type=click.IntRange(0), default=10, show_default=True, help="Number of newest runs to keep.")
@click.option("--dry-run", is_flag=True, help="Delete nothing, and print what would be deleted.")
def prune(keep: int, dry_run: bool) -> None:
    """Delete old runs with their artifacts, logs and MLflow runs, and the remains of interrupted trainings.

    The runs of all models that were ever promoted stay, with everything that they were made from, and so do the checkpoints of
    all versions of a model.
    """
    with clean_errors():
        from posttrain.orchestration.pruning import prune as delete

        for line in delete(keep, dry_run).lines(dry_run):
            echo(line)
