"""The `posttrain` command. Beside the library, which knows nothing of ZenML, because `report` reads ZenML's artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import click
import yaml

from posttrain.config import load_config, point_label
from posttrain.errors import UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """SFT, then DPO, then an honest answer to whether DPO helped."""


@main.command()
@click.argument(
    "config", type=click.Path(dir_okay=False, path_type=Path), default=Path(__file__).parent / "configs" / "demo.yaml"
)
def check(config: Path) -> None:
    """Check a config file and say what it will cost, without running anything."""
    try:
        run = load_config(config)
        from posttrain.plan import plan

        stages = plan(run)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    click.echo(yaml.safe_dump(run.model_dump(), sort_keys=False, allow_unicode=True))
    for name, stage in stages.items():
        rows = "rows: unknown until loaded" if stage.n_rows is None else f"about {stage.n_rows} rows"
        steps = "as many steps as the rows give" if stage.n_steps is None else f"{stage.n_steps} optimisation steps"
        memory = (
            "memory: unknown until the model is on this machine"
            if stage.memory_gib is None
            else f"about {stage.memory_gib:.1f} GiB for model and batch"
        )
        click.echo(f"{name}: {rows}, effective batch size {stage.effective_batch_size}, {steps}, {memory}")
    if points := run.sweep_points():
        click.echo(f"sweep: dpo {len(points)} times: {'; '.join(point_label(values) for values, _ in points)}")


@main.command()
@click.argument("config", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Write the whole report to this file.")
def data(config: Path, html: Path | None) -> None:
    """Read and check the data of CONFIG as a run would, and say what is wrong with it, without training."""
    try:
        run = load_config(config)
        from posttrain.data.page import data_page, summary_lines
        from posttrain.data.preferences import load_preferences
        from posttrain.model import load_chat, resolve_base
        from posttrain.tokens import report_tokens

        preferences, found = load_preferences(run.data)
        tokens = None
        try:
            chat = load_chat(resolve_base(run.model), run.model)
        except UserError as error:
            click.echo(f"No tokens are counted: {error}", err=True)
        else:
            tokens = report_tokens(chat, preferences, run.dpo.max_length, run.dpo.max_prompt_length, run.data.checks)
        if html:
            try:
                html.write_text(data_page(found, tokens, f"Data of {config.name}"), encoding="utf-8")
            except OSError as error:
                raise UserError(f"{html}: cannot be written ({error.strerror}): choose another file") from error
    except UserError as error:
        raise click.ClickException(str(error)) from error
    for line in summary_lines(found, tokens):
        click.echo(line)


@main.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="The whole evaluation, for scripts.")
def report(run: str | None, as_json: bool) -> None:
    """Print the outcome of the last run of dpo_pipeline, or of the RUN with this name or id."""
    from pipelines.report import read_report
    from posttrain.report import print_report

    try:
        outcome = read_report(run)
    except UserError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        print_report(outcome)


@main.command()
@click.option("--checks", is_flag=True, help="The checks of the data instead.")
def settings(checks: bool) -> None:
    """Print the table of all settings."""
    from posttrain.settings import checks_table, settings_table

    click.echo(checks_table() if checks else settings_table())


if __name__ == "__main__":
    main()
