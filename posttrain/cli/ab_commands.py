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
votes_argument = click.argument("files", type=click.Path(path_type=Path), nargs=-1)
argilla_option = click.option(
    "--argilla", metavar="DATASET", help="Take the votes from a dataset in Argilla instead of files."
)


@click.group()
def ab() -> None:
    """Have people compare SFT's and DPO's answers in a blind test."""


@ab.command("export")
@click.argument("file", type=FILE, required=False)
@click.option("--argilla", metavar="DATASET", help="Create this dataset in Argilla instead of a file.")
@click.option(
    "--raters", default=1, show_default=True, type=click.IntRange(1), help="Argilla only: answers for each prompt."
)
@run_option
def ab_export(file: Path | None, argilla: str | None, raters: int, run: str | None) -> None:
    """Write the page of a blind test to FILE.

    People open it in a browser, choose the better answers and save their choices. With --argilla they do so in Argilla, whose
    address and key are in ARGILLA_API_URL and ARGILLA_API_KEY.
    """
    with clean_errors():
        from posttrain.feedback.ab import ab_page

        if (file is None) == (argilla is None):
            raise UserError("name either a FILE or a dataset with --argilla")
        generations = _generations(run)
        if argilla is not None:
            from posttrain.feedback.argilla_votes import export_to_argilla

            n_pairs = export_to_argilla(generations, argilla, raters)
            echo(f"Created in Argilla: {argilla}, {n_pairs} prompts")
        elif file is not None:
            write_file(file, ab_page(generations))
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
@argilla_option
@voted_run_option
def ab_score(files: tuple[Path, ...], argilla: str | None, run: str | None) -> None:
    """Print how often people preferred DPO's answer, and how far they agree.

    FILES are the choices that they saved, or the file of votes of `ab serve`.
    """
    with clean_errors():
        from posttrain.feedback.ballots import QUESTIONS
        from posttrain.feedback.vote_score import ab_score as score

        generations, ballots = _voted(files, argilla, run)
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
@argilla_option
@voted_run_option
def ab_pairs(files: tuple[Path, ...], target: Path, argilla: str | None, run: str | None) -> None:
    """Write the votes as preference pairs that `data.sources` reads.

    FILES are as for `ab score`. The answer that more people prefer is chosen; prompts without a majority are left out.
    """
    with clean_errors():
        from posttrain.feedback.vote_pairs import voted_pairs

        found = voted_pairs(*_voted(files, argilla, run))
        write_file(target, found.jsonl())
    echo(f"Written: {target}, {len(found.rows)} pairs; {found.n_ties} prompts without a majority were left out")


def _rate(rate: Any) -> str:
    share = rate.share
    return (
        f"{share.value:.1%} of {rate.n_wins + rate.n_ties + rate.n_losses} prompts ({share.low:.1%} to {share.high:.1%}): "
        f"{rate.n_wins} won, {rate.n_ties} tied, {rate.n_losses} lost, p = {rate.p_value:.2g}"
    )


def _voted(files: Sequence[Path], argilla: str | None, run: str | None) -> tuple[Any, Any]:
    """Return the answers that votes are about, and the votes."""
    from posttrain.feedback.ab import digest
    from posttrain.feedback.vote_files import read_ballots, the_answers
    from posttrain.orchestration.voted_run import find_answers

    if bool(files) == bool(argilla):
        raise UserError("name either FILES with votes or a dataset with --argilla")
    if argilla:
        from posttrain.feedback.argilla_votes import ballots_from_argilla

        ballots = ballots_from_argilla(argilla)
    else:
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
