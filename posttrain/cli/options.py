"""Types and options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

FILE = click.Path(dir_okay=False, path_type=Path)

set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="Use VALUE in place of the file's, such as dpo.beta=0.2 or data.sources.0.limit=100. May be repeated.",
)
