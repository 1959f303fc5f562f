"""`posttrain collect` and `collected`: new preference pairs from answers of trained models."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain.cli.options import FILE, set_option
from posttrain.cli.outcome import clean_errors, echo, write_file
from posttrain.cli.project_commands import run_config
from posttrain.config import load_document
from posttrain.errors import UserError


@click.command()
@click.argument("config", type=FILE)
@set_option
@click.option("-s", "--stack", help="Name or id of the ZenML stack to run on.  [default: the active stack]")
def collect(config: Path, assignments: tuple[str, ...], stack: str | None) -> None:
    """Collect preference pairs as the `collect` section of CONFIG says.

    The same as `zenml pipeline run collect_pipeline -c CONFIG`.
    """
    with clean_errors():
        document, checked = load_document(config, assignments)
        if checked.collect is None:
            raise UserError(f"{config}: collect: missing: add the section, or name another file")
        run_config("collect_pipeline", config, document if assignments else None, stack)


@click.command()
@click.argument("version", required=False)
@click.option("--html", type=FILE, help="Write a page with figures and examples to this file.")
@click.option("--parquet", type=FILE, help="Write the pairs to this file.")
def collected(version: str | None, html: Path | None, parquet: Path | None) -> None:
    """Print what was collected.

    VERSION is that of the artifact collected_preferences. Without VERSION, the newest is shown.
    """
    with clean_errors():
        from posttrain.orchestration.collecting_runs.found_pairs import find_collected
        from posttrain.reporting.pages.collected_page import collected_page, summary_lines

        found, name = find_collected(version)
        if html:
            write_file(html, collected_page(found.table, found.report.model_dump(), f"Collected pairs, {name}"))
            echo(f"Written: {html}")
        if parquet:
            import pyarrow.parquet as pq

            try:
                pq.write_table(found.table, parquet)
            except OSError as error:
                raise UserError(f"{parquet}: cannot be written ({error.strerror}): choose another file") from error
            echo(f"Written: {parquet}")
    if not (html or parquet):
        echo(name)
        for line in summary_lines(found.report.model_dump()):
            echo(line)
