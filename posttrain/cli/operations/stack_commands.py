"""`posttrain stack`: check where pipelines run."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain.cli.outcome import clean_errors, echo


@click.group()
def stack() -> None:
    """Check the ZenML stacks that pipelines run on."""


@stack.command("check")
@click.argument("name", required=False)
@click.option(
    "-c",
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Also check what a run with this file asks for, such as GPUs.",
)
def stack_check(name: str | None, config: Path | None) -> None:
    """Check that each part of a stack works.

    Failed checks are printed with a remedy. The default is the active stack.
    """
    with clean_errors():
        from posttrain.orchestration.stacks.stack_check import check_stack, steps_of

        findings = []
        for finding in check_stack(name, steps_of(config)):
            echo(str(finding))
            findings.append(finding)
    if n := sum(finding.state == "FAILED" for finding in findings):
        raise click.ClickException(f"{n} of {len(findings)} parts cannot be used")
