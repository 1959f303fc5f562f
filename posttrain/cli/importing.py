"""`posttrain import-config`."""

from __future__ import annotations

from pathlib import Path

import click

from posttrain.config.equivalents import TOOLS
from posttrain.config.import_config import import_config, summary_lines
from posttrain.errors import UserError

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("import-config")
@click.argument("file", type=FILE)
@click.option(
    "--from", "tool", type=click.Choice(["auto", *TOOLS]), default="auto", show_default=True, help="The tool of FILE."
)
@click.option("--output", type=FILE, help="Write the config to this file instead of printing it.")
def import_config_command(file: Path, tool: str, output: Path | None) -> None:
    """Turn a DPO config of TRL, LLaMA-Factory or axolotl into one of this project.

    What cannot be carried over is listed, and every setting of FILE is accounted for.
    """
    try:
        imported = import_config(file, tool)
        if output is not None:
            output.write_text(imported.text, encoding="utf-8")
    except UserError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{output}: cannot be written ({error.strerror}): name another file") from error
    if output is None:
        click.echo(imported.text)
    for line in summary_lines(imported.tool.name, imported.fates):
        click.echo(line, err=output is None)
    if output is not None:
        click.echo(f"Written: {output}. Check it with `posttrain check {output}`.")
