"""`posttrain report` and `compare`: the outcome of finished runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from posttrain.cli.options import FILE
from posttrain.cli.outcome import clean_errors, echo, write_file


@click.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the whole evaluation as JSON, for scripts.")
@click.option("--html", type=FILE, help="Write the run's report, with all figures and answers, to this file.")
def report(run: str | None, as_json: bool, html: Path | None) -> None:
    """Print the outcome of a run.

    RUN is its name or id. Without RUN, the last run of dpo_pipeline is reported.
    """
    with clean_errors():
        from posttrain.orchestration.finished_runs import read_outcome, read_run_report
        from posttrain.reporting.pages.run_page import report_page
        from posttrain.reporting.pages.verifier_page import verifier_page
        from posttrain.reporting.terminal import Report, print_report
        from posttrain.reporting.verifier_summary import print_verifier

        outcome = read_outcome(run)
        if html and isinstance(outcome, Report):
            write_file(html, report_page(read_run_report(run)[0]))
        elif html and not isinstance(outcome, Report):
            write_file(html, verifier_page(outcome.report))
    if html:
        echo(f"Written: {html}")
    elif as_json:
        echo(json.dumps(outcome.as_dict(), indent=2))
    elif isinstance(outcome, Report):
        print_report(outcome)
    else:
        print_verifier(outcome)


@click.command()
@click.argument("first")
@click.argument("second")
def compare(first: str, second: str) -> None:
    """Print the differences between two runs: settings, figures, findings and models."""
    with clean_errors():
        from posttrain.orchestration.finished_runs import read_run_report
        from posttrain.reporting.compare import compare_runs, print_difference

        print_difference(compare_runs(read_run_report(first), read_run_report(second)))
