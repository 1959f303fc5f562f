"""`posttrain init` and `run`: make a project and run its pipelines."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

import click
import yaml

from posttrain import configure
from posttrain.cli.options import FILE, set_option
from posttrain.cli.outcome import clean_errors, echo
from posttrain.cli.project_files import find_project, make_project
from posttrain.config import load_document
from posttrain.errors import UserError


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def init(folder: Path) -> None:
    """Create a new project in FOLDER.

    It contains the pipelines, steps and configs, which run as they are and which you can change.
    """
    with clean_errors():
        make_project(folder)
    echo(f"Project created: {folder.resolve()}")
    echo("To train the built-in demo, in a few minutes on two CPU cores:")
    if folder.resolve() != Path.cwd():
        echo(f"  cd {shlex.quote(str(folder))}")
    echo("  zenml pipeline run dpo_pipeline\nFor your own data, see README.md there.")


@click.command()
@click.argument("config", type=FILE, required=False)
@set_option
@click.option("-s", "--stack", help="Name or id of the ZenML stack to run on.  [default: the active stack]")
def run(config: Path | None, assignments: tuple[str, ...], stack: str | None) -> None:
    """Run the pipeline of the current project with CONFIG.

    The same as `zenml pipeline run dpo_pipeline -c CONFIG`, or sweep_pipeline or verifier_pipeline where CONFIG has a `sweep` or
    a `verifier` section. Without CONFIG, configs/demo.yaml is run.
    """
    with clean_errors():
        project = find_project()
        if project is None:
            raise UserError(
                f"no project at or above {Path.cwd()}: change to its folder, or make one with `posttrain init DIR`"
            )
        configure()
        config = config or Path(os.path.relpath(project / "configs" / "demo.yaml"))
        document, checked = load_document(config, assignments)
        pipeline = next(
            (f"{name}_pipeline" for name in ("sweep", "verifier") if getattr(checked, name)), "dpo_pipeline"
        )
        run_config(pipeline, config, document if assignments else None, stack)


def run_config(pipeline: str, config: Path, document: dict[str, Any] | None, stack: str | None) -> None:
    """Run a pipeline with a config.

    Args:
        document: the content of the config after `--set`; None: the file itself.
        stack: name or id; None: the active one.
    """
    from posttrain.orchestration.zenml_command import run_pipeline

    if document is None:
        run_pipeline(pipeline, config, stack)
        return
    with tempfile.TemporaryDirectory(prefix="posttrain-") as folder:
        effective = Path(folder) / config.name
        effective.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
        try:
            run_pipeline(pipeline, effective, stack)
        except click.ClickException as error:
            message = error.message.replace(str(effective), f"{config} with --set")
            raise click.ClickException(message) from error
