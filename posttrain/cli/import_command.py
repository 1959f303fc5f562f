"""`posttrain import-config`: take over the config of another tool."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain.cli.options import FILE
from posttrain.cli.outcome import clean_errors, echo, write_file
from posttrain.config.equivalents import TOOLS
from posttrain.config.import_config import import_config, summary_lines


@click.command("import-config")
@click.argument("file", type=FILE)
@click.option(
    "--from", "tool", type=click.Choice(["auto", *TOOLS]), default="auto", show_default=True, help="The tool of FILE."
)
@click.option("--output", type=FILE, help="Write the config to this file instead of printing it.")
def import_config_command(file: Path, tool: str, output: Path | None) -> None:
    """Convert a DPO config of TRL, LLaMA-Factory or axolotl.

    The report lists every setting of FILE, including those that cannot be carried over.
    """
    with clean_errors():
        imported = import_config(file, tool)
        if output is not None:
            write_file(output, imported.text)
    if output is None:
        echo(imported.text)
    for line in summary_lines(imported.tool.name, imported.fates):
        echo(line, err=output is None)
    if output is not None:
        echo(f"Written: {output}. Check it with `posttrain check {output}`.")
