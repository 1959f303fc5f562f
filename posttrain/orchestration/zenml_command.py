"""ZenML's own command, run in this process."""

from __future__ import annotations

from pathlib import Path

from zenml.client import Client
from zenml_cli import cli

from posttrain.errors import UserError


def run_pipeline(name: str, config: Path, stack: str | None = None) -> None:
    """Run `zenml pipeline run NAME --config CONFIG`, on a stack other than the active one if named.

    Raises:
        UserError: there is no such stack.
    """
    options = []
    if stack:
        try:
            Client().get_stack(stack)
        except KeyError as error:
            known = ", ".join(sorted(found.name for found in Client().list_stacks(size=1000).items))
            raise UserError(f"--stack {stack}: no such stack (known: {known})") from error
        options = ["--stack", stack]
    cli.main(["pipeline", "run", name, "--config", str(config), *options], prog_name="zenml", standalone_mode=False)
