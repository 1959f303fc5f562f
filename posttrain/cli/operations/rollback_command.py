"""`posttrain rollback`: take the model in production back to an earlier version."""

from __future__ import annotations

import click

from posttrain.cli.outcome import clean_errors, echo


@click.command()
@click.argument("name")
@click.argument("version", required=False)
@click.option("--reason", required=True, help="Why, for the history of the model.")
def rollback(name: str, version: str | None, reason: str) -> None:
    """Put an earlier version of model NAME back into production, in ZenML and MLflow.

    VERSION is the name or number of a version that was promoted once; by default the one that the version in production replaced.
    No later run promotes the rejected model again, unless `posttrain rollback` names it.
    """
    if not reason.strip():
        raise click.UsageError("--reason is empty: say why, for the history of the model")
    with clean_errors():
        from posttrain.orchestration.model_versions.rollback import roll_back

        done = roll_back(name, version, reason.strip())
    echo(f"{name}: version {done.standing} is in production")
    if done.rejected:
        echo(f"{name}: version {done.rejected} was taken out, and no run promotes it again")
