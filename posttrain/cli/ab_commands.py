"""`posttrain ab`: blind comparison of SFT's and DPO's answers by people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from posttrain.cli.options import FILE
from posttrain.cli.outcome import clean_errors, echo, write_file
from posttrain.errors import UserError

run_option = click.option("--run", help="Name or id of the run.  [default: the last run]")


@click.group()
def ab() -> None:
    """Have people compare SFT's and DPO's answers in a blind test."""


@ab.command("export")
@click.argument("file", type=FILE)
@run_option
def ab_export(file: Path, run: str | None) -> None:
    """Write the page of a blind test to FILE.

    People open it in a browser, choose the better answers and save their choices.
    """
    with clean_errors():
        from posttrain.feedback.ab import ab_page

        write_file(file, ab_page(_generations(run)))
    echo(f"Written: {file}")


@ab.command("score")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@run_option
def ab_score(files: tuple[Path, ...], run: str | None) -> None:
    """Print how often people preferred DPO's answer.

    FILES are the choices that they saved.
    """
    with clean_errors():
        from posttrain.feedback.ab import ab_score as score

        found = score(_generations(run), files)
    share = found.share
    echo(
        f"DPO preferred on {share.value:.1%} of {found.n_wins + found.n_ties + found.n_losses} prompts ({share.low:.1%} to "
        f"{share.high:.1%}): {found.n_wins} won, {found.n_ties} tied, {found.n_losses} lost, p = {found.p_value:.2g}"
    )


def _generations(run: str | None) -> Any:
    from posttrain.orchestration.finished_runs import read_run_report

    generations = read_run_report(run)[0].generations
    if generations is None:
        raise UserError("the run generated no answers: set evaluation.generations.n above 0 and run again")
    return generations
