"""`posttrain check`, `data` and `settings`: what can be learned about a config without training."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click
import yaml

from posttrain.cli.options import FILE, set_option
from posttrain.cli.outcome import clean_errors, echo, write_file
from posttrain.cli.project_files import find_project, template_folder
from posttrain.config import ModelSection, RunConfig, load_config, point_label
from posttrain.errors import UserError

if TYPE_CHECKING:
    from posttrain.orchestration.dpo_start import DpoStart


@click.command()
@click.argument("config", type=FILE, required=False)
@set_option
def check(config: Path | None, assignments: tuple[str, ...]) -> None:
    """Check CONFIG and print what it costs, without running it.

    Without CONFIG, the project's configs/demo.yaml is checked.
    """
    if config is None:
        config = Path(os.path.relpath((find_project() or template_folder()) / "configs" / "demo.yaml"))
    with clean_errors():
        run = load_config(config, assignments)
        from posttrain.training.plan import plan, test_pairs

        model, start = _start_of(run)
        run_of_start = run.model_copy(update={"model": model})
        stages = plan(run_of_start)
        tried = _preflight(run_of_start, reads_base=start is None or start.kind != "full")
    echo(yaml.safe_dump(run.model_dump(), sort_keys=False, allow_unicode=True))
    for name, stage in stages.items():
        rows = "rows: unknown until loaded" if stage.n_rows is None else f"about {stage.n_rows} rows"
        steps = "steps: unknown until loaded" if stage.n_steps is None else f"{stage.n_steps} optimisation steps"
        memory = (
            "memory: unknown until the model is on this machine"
            if stage.memory_gib is None
            else f"about {stage.memory_gib:.1f} GiB per process for model and batch"
        )
        echo(f"{name}: {rows}, effective batch size {stage.effective_batch_size}, {steps}, {memory}")
    echo(f"model: {tried}")
    if n_test := test_pairs(run):
        from posttrain.evaluation.gate.foresight import foresight

        echo(f"verdict on about {foresight(n_test, n_test, run.gate)}")
    if start:
        echo(f"dpo starts from {start}, which is also its reference")
    if points := run.sweep_points():
        echo(f"sweep: dpo {len(points)} times: {'; '.join(point_label(values) for values, _ in points)}")


def _preflight(run: RunConfig, *, reads_base: bool) -> str:
    """Return what the preflight found, if the model is on this machine."""
    from posttrain.models.memory import read_shape

    if run.model.base == "demo" or read_shape(run.model) is None:
        # The demo's model need not be built and tried for this: it is the same for everyone.
        return f"{run.model.base} is checked when a run starts"
    from posttrain.models.base import resolve_base
    from posttrain.training.preflight import machine_problems, needs_of, preflight

    needs = needs_of(run, reads_base=reads_base)
    for problem in machine_problems(run.model, needs):
        echo(f"On this machine: {problem}", err=True)
    return preflight(resolve_base(run.model), run.model, needs, trains_here=False)


@click.command()
@click.argument("config", type=FILE)
@click.option("--html", type=FILE, help="Also write the whole data report to this file.")
@set_option
def data(config: Path, html: Path | None, assignments: tuple[str, ...]) -> None:
    """Check the data of CONFIG as a run does, without training."""
    with clean_errors():
        run = load_config(config, assignments)
        from posttrain.chat.findings import Findings
        from posttrain.chat.token_report import report_tokens
        from posttrain.chat.trained_text import first_rows
        from posttrain.config.check_policies import policy_of
        from posttrain.data.loader import load_preferences
        from posttrain.data.rows import canonical
        from posttrain.evaluation.gate.foresight import foresight
        from posttrain.models.base import resolve_base
        from posttrain.models.loading import load_chat
        from posttrain.reporting.pages.data_page import data_page, summary_lines
        from posttrain.reporting.trained_lines import trained_lines

        preferences, found = load_preferences(run.data)
        tokens, trained = None, []
        try:
            model, start = _start_of(run)
            chat = load_chat(resolve_base(model), model, start.load() if start else None)
        except UserError as error:
            echo(f"Tokens are not counted, and the rows as trained are not shown: {error}", err=True)
        else:
            must_fit, findings = policy_of("truncated", run.data.checks) == "fail", Findings(run.data.checks)
            tokens = report_tokens(chat, preferences, run.dpo.lengths, findings, must_fit=must_fit)
            findings.check_policies(chat.template, run.data.max_drop_share)
            trained = first_rows(chat, preferences, run.data.checks, loss_on_all=run.sft.loss_on == "all")
        if html:
            write_file(html, data_page(found, tokens, f"Data of {config.name}", trained))
    test = preferences.test
    n_prompts = len(set(map(canonical, test["prompt"])))
    verdict = f"verdict on {foresight(len(test), n_prompts, run.gate)}"
    for line in (*summary_lines(found, tokens), verdict, *trained_lines(trained, shutil.get_terminal_size().columns)):
        echo(line)


def _start_of(run: RunConfig) -> tuple[ModelSection, DpoStart | None]:
    """Return the model settings, and what DPO starts from. Imports ZenML only if it is needed."""
    if run.dpo.start is None:
        return run.model, None
    from posttrain.orchestration.dpo_start import start_of

    return start_of(run)


@click.command()
@click.option("--checks", is_flag=True, help="Print the data checks instead.")
@click.option(
    "--equivalents", is_flag=True, help="Print the names of our settings in TRL, LLaMA-Factory and axolotl instead."
)
def settings(checks: bool, equivalents: bool) -> None:
    """Print a table of all settings."""
    if equivalents:
        from posttrain.config.equivalents import equivalents_tables

        echo(equivalents_tables())
        return
    from posttrain.config.reference_tables import checks_table, settings_table

    echo(checks_table() if checks else settings_table())
