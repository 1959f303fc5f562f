"""`posttrain ab`: blind comparison of SFT's and DPO's answers by people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from posttrain.cli.options import FILE
from posttrain.cli.outcome import clean_errors, echo, write_file
from posttrain.errors import UserError

run_option = click.option("--run", help="Name or id of the run.  [default: the last run]")
voted_run_option = click.option(
    "--run", help="Name or id of the run.  [default: the run whose answers the votes are about]"
)
votes_argument = click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)


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


@ab.command("serve")
@click.option("--votes", type=FILE, default="votes.db", show_default=True, help="SQLite file that stores the votes.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for other machines."
)
@click.option("--port", default=8765, show_default=True, type=click.IntRange(1, 65535), help="Port to listen on.")
@run_option
def ab_serve(votes: Path, host: str, port: int, run: str | None) -> None:
    """Serve the page of a blind test, and store votes as they come.

    Several people may vote at once. Whoever has the whole link can vote. The link stays the same for the same file of votes.
    """
    with clean_errors():
        from posttrain.feedback.vote_server import VoteServer, serve_votes
        from posttrain.feedback.vote_store import VoteStore

        server = VoteServer(VoteStore(votes), host, port)
        server.check()
        generations = _generations(run)
        token = server.store.prepare()
        echo(f"Give this link to people: {server.link(token)}\nScore their votes: posttrain ab score {votes}")
        serve_votes(generations, server, token)


@ab.command("score")
@votes_argument
@voted_run_option
def ab_score(files: tuple[Path, ...], run: str | None) -> None:
    """Print how often people preferred DPO's answer, and how far they agree.

    FILES are the choices that they saved, or the file of votes of `ab serve`.
    """
    with clean_errors():
        from posttrain.feedback.ballots import QUESTIONS
        from posttrain.feedback.vote_score import ab_score as score

        generations, ballots = _voted(files, run)
        found = score(generations, ballots)
    echo(f"DPO preferred on {_rate(found.overall)}")
    for name, rate in found.questions.items():
        echo(f"{QUESTIONS[name]} DPO on {_rate(rate)}")
    agreement = "no prompt has votes that could differ" if found.agreement is None else f"{found.agreement:.2f}"
    echo(
        f"{found.n_votes} votes by {found.n_raters} raters; agreement between them (Krippendorff's alpha): {agreement}"
    )


@ab.command("pairs")
@votes_argument
@click.option("--to", "target", type=FILE, default="voted.jsonl", show_default=True, help="File to write.")
@voted_run_option
def ab_pairs(files: tuple[Path, ...], target: Path, run: str | None) -> None:
    """Write the votes as preference pairs that `data.sources` reads.

    FILES are as for `ab score`. The answer that more people prefer is chosen; prompts without a majority are left out.
    """
    with clean_errors():
        from posttrain.feedback.vote_pairs import voted_pairs

        found = voted_pairs(*_voted(files, run))
        write_file(target, found.jsonl())
    echo(f"Written: {target}, {len(found.rows)} pairs; {found.n_ties} prompts without a majority were left out")


def _rate(rate: Any) -> str:
    share = rate.share
    return (
        f"{share.value:.1%} of {rate.n_wins + rate.n_ties + rate.n_losses} prompts ({share.low:.1%} to {share.high:.1%}): "
        f"{rate.n_wins} won, {rate.n_ties} tied, {rate.n_losses} lost, p = {rate.p_value:.2g}"
    )


def _voted(files: Sequence[Path], run: str | None) -> tuple[Any, Any]:
    """Return the answers that votes are about, and the votes."""
    from posttrain.feedback.ab import digest
    from posttrain.feedback.vote_files import read_ballots, the_answers
    from posttrain.orchestration.voted_run import find_answers

    ballots = read_ballots(files)
    if run is None:
        return find_answers(the_answers(ballots)), ballots
    generations = _generations(run)
    of_run = [ballot for ballot in ballots if ballot.answers == digest(generations)]
    return generations, of_run or ballots


def _generations(run: str | None) -> Any:
    from posttrain.orchestration.finished_runs import read_run_report

    generations = read_run_report(run)[0].generations
    if generations is None:
        raise UserError("the run generated no answers: set evaluation.generations.n above 0 and run again")
    return generations
