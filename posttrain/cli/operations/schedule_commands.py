"""`posttrain schedule`: list, pause, resume and delete schedules."""

from __future__ import annotations

import click

from posttrain.cli.outcome import clean_errors, echo


@click.group()
def schedule() -> None:
    """Manage scheduled pipelines.

    To make or update a schedule, run a file that has a `schedule` section.
    """


@schedule.command("list")
def schedule_list() -> None:
    """Print each schedule, when it starts runs, and how its last run ended."""
    with clean_errors():
        from posttrain.orchestration.stacks.schedules import every, last_run

        for found in every():
            state, run = "active" if found.active else "paused", last_run(found)
            outcome = f"last run {run.name}: {run.status.value}" if run else "no run yet"
            echo(f"{found.name}  {found.cron_expression or 'not by cron'}  {state}  {outcome}")


@schedule.command("pause")
@click.argument("name")
def schedule_pause(name: str) -> None:
    """Pause a schedule until it is resumed.

    Refused while one of its runs is in progress.
    """
    with clean_errors():
        from posttrain.orchestration.stacks.schedules import find, set_active

        set_active(find(name), False)
    echo(f"Schedule {name} is paused.")


@schedule.command("resume")
@click.argument("name")
def schedule_resume(name: str) -> None:
    """Resume a paused schedule."""
    with clean_errors():
        from posttrain.orchestration.stacks.schedules import find, set_active

        set_active(find(name), True)
    echo(f"Schedule {name} is active.")


@schedule.command("delete")
@click.argument("name")
def schedule_delete(name: str) -> None:
    """Delete a schedule and keep its runs.

    Refused while one of its runs is in progress.
    """
    with clean_errors():
        from posttrain.orchestration.stacks.schedules import delete, find

        delete(find(name))
    echo(f"Schedule {name} is deleted.")
