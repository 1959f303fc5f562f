"""The `posttrain` command. Beside the library, which knows nothing of ZenML, because `report` reads ZenML's artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml

from posttrain.cli.importing import import_config_command
from posttrain.config import load_config, point_label
from posttrain.errors import UserError

FILE = click.Path(dir_okay=False, path_type=Path)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """SFT, then DPO, then an honest answer to whether DPO helped."""


@main.command()
@click.argument(
    "config",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).parents[2] / "configs" / "demo.yaml",
)
def check(config: Path) -> None:
    """Check a config file and say what it will cost, without running anything."""
    with clean_errors():
        run = load_config(config)
        from posttrain.training.plan import plan

        stages = plan(run)
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
        from posttrain.chat.token_report import report_tokens
        from posttrain.config.check_policies import policy_of
        from posttrain.data.loader import load_preferences
        from posttrain.models.base import resolve_base
        from posttrain.models.loading import load_chat
        from posttrain.reporting.data_page import data_page, summary_lines

        preferences, found = load_preferences(run.data)
        tokens = None
        try:
            chat = load_chat(resolve_base(run.model), run.model)
        except UserError as error:
            click.echo(f"No tokens are counted: {error}", err=True)
        else:
            must_fit = policy_of("truncated", run.data.checks) == "fail"
            tokens = report_tokens(chat, preferences, run.dpo.lengths, must_fit=must_fit)
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
@click.option("--html", type=FILE, help="Write the run's page, with all figures and answers, to this file.")
def report(run: str | None, as_json: bool, html: Path | None) -> None:
    """Print the outcome of the last run of dpo_pipeline, or of the RUN with this name or id."""
    with clean_errors():
        from posttrain.orchestration.finished_runs import read_report, read_run_report
        from posttrain.reporting.run_page import report_page
        from posttrain.reporting.terminal import print_report

        outcome = read_report(run)
        if html:
            write(html, report_page(read_run_report(run)[0]))
    if html:
        click.echo(f"Written: {html}")
    elif as_json:
        click.echo(json.dumps(outcome.as_dict(), indent=2))
    else:
        print_report(outcome)


@main.command()
@click.argument("first")
@click.argument("second")
def compare(first: str, second: str) -> None:
    """Print how two runs differ: settings, figures, findings, and the second's model against the first's."""
    with clean_errors():
        from posttrain.orchestration.finished_runs import read_run_report
        from posttrain.reporting.compare import compare_runs, print_difference

        print_difference(compare_runs(read_run_report(first), read_run_report(second)))


@main.command()
@click.argument("places", nargs=-1, required=True, metavar="[VERSION] DEST")
@click.option("--adapter", is_flag=True, help="Keep an adapter as it is; else it is merged into its base.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Of the weights; auto: the base's own.",
)
@click.option("--public", is_flag=True, help="On the Hub: a repository that is made for it may be seen by all.")
def export(places: tuple[str, ...], adapter: bool, dtype: Any, public: bool) -> None:
    """Write a model for plain transformers to a folder, s3://bucket/folder or hf://organisation/name.

    VERSION is a version of a model (demo:3, demo:production), of a checkpoint (dpo_checkpoint:3) or a folder; the model in
    production where none is named.
    """
    if len(places) > 2:
        raise click.UsageError("name at most a VERSION and a DEST")
    with clean_errors():
        from posttrain.orchestration.versions import find_version
        from posttrain.reporting.model_card import model_card
        from posttrain.serving.export import ExportedModel, ExportOptions
        from posttrain.serving.export import export as export_model

        version = find_version(places[0] if len(places) == 2 else None)
        card = model_card(version.name, version.checkpoint.manifest, version.report, adapter=adapter)
        exported = ExportedModel(version.checkpoint, version.model, card, version.report)
        where = export_model(exported, places[-1], ExportOptions(adapter, dtype, private=not public))
    click.echo(f"{version.name} is at {where}")


@main.command()
@click.argument("versions", nargs=-1)
@click.option(
    "--prompt", "prompts", multiple=True, help="Ask this instead of reading from the terminal; may be repeated."
)
@click.option("--max-new-tokens", type=click.IntRange(1), default=256, show_default=True)
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: the likeliest word each time."
)
def chat(versions: tuple[str, ...], prompts: tuple[str, ...], max_new_tokens: int, temperature: float) -> None:
    """Talk to SFT and DPO of the last run side by side, or to any VERSIONS, as `export` takes them."""
    with clean_errors():
        from rich.console import Console

        from posttrain.orchestration.versions import find_version, stages_of
        from posttrain.serving.side_by_side import converse, load_speaker

        found = [find_version(name) for name in versions] or stages_of(None)
        speakers = [load_speaker(version.name, version.checkpoint, version.model) for version in found]
        asked = prompts or iter(_read_prompt, None)
        converse(speakers, asked, Console(), max_new_tokens=max_new_tokens, temperature=temperature)


def _read_prompt() -> str | None:
    """A line from the terminal; None at its end."""
    try:
        return str(click.prompt("you", prompt_suffix="> ", err=True))
    except click.Abort:
        return None


@main.group()
def ab() -> None:
    """Let people choose between SFT's and DPO's answers, without knowing whose is which."""


@ab.command("export")
@click.argument("file", type=FILE)
@click.option("--run", help="The last run where none is named.")
def ab_export(file: Path, run: str | None) -> None:
    """Write a page to FILE that people open, choose in, and save their choices from."""
    with clean_errors():
        from posttrain.feedback.ab import ab_page

        write(file, ab_page(_generations(run)))
    click.echo(f"Written: {file}")


@ab.command("score")
@click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--run", help="The last run where none is named.")
def ab_score(files: tuple[Path, ...], run: str | None) -> None:
    """Print how often people preferred DPO's answer, from the FILES that they saved."""
    with clean_errors():
        from posttrain.feedback.ab import ab_score as score

        found = score(_generations(run), files)
    share = found.share
    click.echo(
        f"DPO preferred on {share.value:.1%} of {found.n_wins + found.n_ties + found.n_losses} prompts ({share.low:.1%} to "
        f"{share.high:.1%}): {found.n_wins} won, {found.n_ties} tied, {found.n_losses} lost, p = {found.p_value:.2g}"
    )


main.add_command(import_config_command)


@main.group()
def stack() -> None:
    """Where pipelines run."""


@stack.command("check")
@click.argument("name", required=False)
@click.option(
    "-c", "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What a run will ask for."
)
def stack_check(name: str | None, config: Path | None) -> None:
    """Ask each part of the stack NAME, or of the active one, whether it can be used, and say what to do where it cannot."""
    with clean_errors():
        from posttrain.orchestration.stack_check import check_stack, steps_of

        findings = []
        for finding in check_stack(name, steps_of(config)):
            click.echo(finding)
            findings.append(finding)
    if n := sum(finding.state == "FAILED" for finding in findings):
        raise click.ClickException(f"{n} of {len(findings)} parts cannot be used")


@main.group()
def schedule() -> None:
    """What runs by itself. `zenml pipeline run` with a file that has a `schedule` makes one, and brings it up to date."""


@schedule.command("list")
def schedule_list() -> None:
    """Print each schedule, when it fires, and how its last run ended."""
    with clean_errors():
        from posttrain.orchestration.schedules import every, last_run

        for found in every():
            state, run = "active" if found.active else "paused", last_run(found)
            outcome = f"last run {run.name}: {run.status.value}" if run else "no run yet"
            click.echo(f"{found.name}  {found.cron_expression or 'not by cron'}  {state}  {outcome}")


@schedule.command("pause")
@click.argument("name")
def schedule_pause(name: str) -> None:
    """Let a schedule fire no more until it is resumed; not while a run of it is going."""
    with clean_errors():
        from posttrain.orchestration.schedules import find, set_active

        set_active(find(name), False)
    click.echo(f"Schedule {name} is paused.")


@schedule.command("resume")
@click.argument("name")
def schedule_resume(name: str) -> None:
    """Let a paused schedule fire again."""
    with clean_errors():
        from posttrain.orchestration.schedules import find, set_active

        set_active(find(name), True)
    click.echo(f"Schedule {name} is active.")


@schedule.command("delete")
@click.argument("name")
def schedule_delete(name: str) -> None:
    """Delete a schedule, but not while a run of it is going; its runs stay on record."""
    with clean_errors():
        from posttrain.orchestration.schedules import delete, find

        delete(find(name))
    click.echo(f"Schedule {name} is deleted.")


def _generations(run: str | None) -> Any:
    from posttrain.orchestration.finished_runs import read_run_report

    generations = read_run_report(run)[0].generations
    if generations is None:
        raise UserError("the run has no answers: raise evaluation.generations.n, and run again")
    return generations


@contextmanager
def clean_errors() -> Iterator[None]:
    """Inside, a user's mistake is one line."""
    try:
        yield
    except UserError as error:
        raise click.ClickException(str(error)) from error


@main.command()
@click.argument("files", nargs=-1, required=True)
def send(files: tuple[str, ...]) -> None:
    """Send to MLflow what it did not take during a run: the FILES that the run has named, here or in the artifact store."""
    with clean_errors():
        from posttrain.orchestration.step_tracking import send_unsent

        for file in files:
            n_records = send_unsent(file)
            click.echo(f"{file}: {n_records} records are in MLflow")


def write(path: Path, text: str) -> None:
    """Writes a text file.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}): name another file") from error


@main.command()
@click.option("--checks", is_flag=True, help="The checks of the data instead.")
@click.option("--equivalents", is_flag=True, help="What TRL, LLaMA-Factory and axolotl call the settings, instead.")
def settings(checks: bool, equivalents: bool) -> None:
    """Print the table of all settings."""
    if equivalents:
        from posttrain.config.equivalents import equivalents_tables

        click.echo(equivalents_tables())
        return
    from posttrain.config.reference_tables import checks_table, settings_table

    click.echo(checks_table() if checks else settings_table())


if __name__ == "__main__":
    main()
