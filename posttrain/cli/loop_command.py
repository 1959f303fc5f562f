"""`posttrain loop`: rounds of collecting pairs and training on them."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain.cli.options import FILE, set_option
from posttrain.cli.outcome import clean_errors, echo, write_file
from posttrain.config import load_document


@click.command()
@click.argument("config", type=FILE)
@click.option(
    "--rounds", default=3, show_default=True, type=click.IntRange(1, 100), help="Rounds after the first training."
)
@click.option("--html", type=FILE, help="Write a page with the rounds side by side to this file.")
@set_option
@click.option("-s", "--stack", help="Name or id of the ZenML stack to run on.  [default: the active stack]")
def loop(config: Path, rounds: int, html: Path | None, assignments: tuple[str, ...], stack: str | None) -> None:
    """Train CONFIG, then repeat: collect pairs from the model in production, train on them, judge, promote.

    Every step is a pipeline run. The same command continues an interrupted loop, and adds rounds with a larger --rounds.
    """
    with clean_errors():
        document, checked = load_document(config, assignments)
        from posttrain.orchestration.rounds.loop_runs import run_loop
        from posttrain.orchestration.rounds.round_results import figures_of_rounds
        from posttrain.reporting.pages.rounds_page import MEANINGS, print_rounds, rounds_page

        found = figures_of_rounds(run_loop(document, rounds, stack))
        print_rounds(found)
        for name, meaning in MEANINGS:
            echo(f"{name}: {meaning}")
        if html:
            write_file(html, rounds_page(found, f"Rounds of {checked.name}"))
            echo(f"Written: {html}")
